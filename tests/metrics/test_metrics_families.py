"""Metrics of two models, of phases, of the prompt and of loops: cases worked out by hand, controls and corner cases."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from typing import Any

import polars as pl
import pytest

import trajscore.metrics as tm
from tests.metrics import test_corpus_metrics, test_metrics
from trajscore.metrics import METRICS
from trajscore.metrics.measure import measure
from trajscore.scores.source import open_scores

_LOG = {"teacher_sentence_logprob": pl.List(pl.Float32), "student_sentence_logprob": pl.List(pl.Float32)}
_TOKENS = {
    "student_surprisal": pl.List(pl.Float32),
    "student_unconditional_surprisal": pl.List(pl.Float32),
    "student_entropy": pl.List(pl.Float32),
    "phase": pl.List(pl.UInt8),
}


def _values(name: str, **columns: Any) -> list[float | None]:
    schema = {column: _LOG.get(column) or _TOKENS.get(column) for column in columns}
    frame = pl.DataFrame(columns, schema_overrides={name: kind for name, kind in schema.items() if kind is not None})
    values: list[float | None] = frame.select(METRICS[name].value())[name].to_list()
    return values


def _sentences(name: str, teacher: Sequence[float | None], student: Sequence[float | None]) -> float | None:
    """Of probabilities, which are stored as logarithms."""
    logs = [[None if p is None else math.log(p) if p else -math.inf for p in side] for side in (teacher, student)]
    return _values(name, teacher_sentence_logprob=[logs[0]], student_sentence_logprob=[logs[1]])[0]


def test_teacher_sentences_by_hand() -> None:
    teacher, student = [0.9, 0.5, 0.2, 0.30, 0.05], [0.5, 0.45, 0.9, 0.15, 0.0]
    # Differences 0.4, 0.05, -0.7, 0.15, 0.05: two above 0.1.
    assert _sentences("teacher_sentences", teacher, student) == 2
    assert _sentences("teacher_sentence_ratio", teacher, student) == 2 / 5
    # Control: by log-ratios, 0.05 against 0 would be the strongest Teacher sentence of all.
    assert math.log(0.05 / 1e-30) > math.log(0.9 / 0.5)


def test_a_sentence_that_one_side_lacks_is_left_out_of_count_and_ratio() -> None:
    assert _sentences("teacher_sentences", [0.9, None, 0.9], [0.1, 0.1, None]) == 1
    assert _sentences("teacher_sentence_ratio", [0.9, None, 0.2], [0.1, 0.1, 0.2]) == 1 / 2
    for name in ("teacher_sentences", "teacher_sentence_ratio"):
        assert _sentences(name, [None, None], [0.5, 0.5]) is None
        assert _sentences(name, [], []) is None
        assert _sentences(name, [0.5], [0.5]) == 0
        assert _sentences(name, [math.nan, 0.9], [0.5, 0.1]) is None
        assert _values(name, teacher_sentence_logprob=[None], student_sentence_logprob=[[-1.0]]) == [None]


def test_the_margin_is_strict_and_a_parameter() -> None:
    frame = pl.DataFrame(
        {"teacher_sentence_logprob": [[0.0, math.log(0.5)]], "student_sentence_logprob": [[math.log(0.5)] * 2]}
    )
    assert frame.select(tm.teacher_sentences(beta=0.5)).item() == 0
    assert frame.select(tm.teacher_sentences(beta=0.49)).item() == 1
    assert frame.select(tm.teacher_sentences(beta=-0.01)).item() == 2
    near = pl.DataFrame(
        {
            "teacher_sentence_logprob": [[math.log(0.605), math.log(0.595)]],
            "student_sentence_logprob": [[math.log(0.5)] * 2],
        }
    )
    assert near.select(tm.teacher_sentences()).item() == 1
    assert near.select(tm.teacher_sentence_ratio()).item() == 0.5
    assert frame.select(tm.teacher_sentence_ratio(beta=0.49)).item() == 0.5


def test_ratio_of_a_data_set_counts_each_sentence_equally() -> None:
    rows = {
        "id": ["a", "b"],
        "prompt_id": ["p", "q"],
        "status": ["ok", "ok"],
        "teacher_sentence_logprob": [[-0.1], [-0.1, -3.0, -3.0]],
        "student_sentence_logprob": [[-3.0], [-3.0, -3.0, -3.0]],
    }
    found = measure(open_scores(pl.LazyFrame(rows)), [METRICS["teacher_sentence_ratio"]])
    assert found["teacher_sentence_ratio"].to_list() == [1.0, 1 / 3]
    terms = [found[f"teacher_sentence_ratio:{term}"].sum() for term in ("numerator", "denominator")]
    assert terms == [2, 4]  # and not the mean of the ratios, 2/3


def test_phase_entropy_by_hand() -> None:
    entropy, phase = [1.0, 2.0, 40.0, 0.5, 1.5], [0, 0, 1, 2, 2]
    assert _values("phase_entropy", student_entropy=[entropy], phase=[phase]) == [0.5]
    # Never below 0: an answer that is less certain than the thinking is no penalty.
    assert _values("phase_entropy", student_entropy=[[1.0, 3.0]], phase=[[0, 2]]) == [0.0]
    frame = pl.DataFrame({"student_entropy": [entropy], "phase": [phase]})
    assert frame.select(tm.phase_entropy(alpha=0.5)).item() == 1.0
    assert frame.select(tm.phase_entropy(alpha=-1)).item() == 2.5


@pytest.mark.parametrize("phase", [[2, 2], [1, 2], [1, 1], None])
def test_phase_entropy_needs_thinking(phase: list[int] | None) -> None:
    assert _values("phase_entropy", student_entropy=[[1.0, 2.0]], phase=[phase]) == [None]


def test_phase_entropy_does_not_excuse_a_missing_answer() -> None:
    assert _values("phase_entropy", student_entropy=[[1.0, 2.0]] * 2, phase=[[0, 0], [0, 1]]) == [1.5, 1.0]


def test_a_bad_token_outside_both_phases_counts_too() -> None:
    assert _values("phase_entropy", student_entropy=[[1.0, math.nan, 0.5]], phase=[[0, 1, 2]]) == [None]


def test_ood_ratio_by_hand() -> None:
    values = _values(
        "ood_ratio",
        distilled_surprisal=[[1.0, 3.0], [0.0, 0.0], None],
        student_surprisal=[[0.5, 0.5], [2.0, 1.0], [1.0]],
    )
    assert values == [1.5, -1.5, None]


def test_ifd_by_hand() -> None:
    surprisal, without = [4.0, 1.0, 0.0], [8.0, 0.5, 1.5]
    assert _values("ifd", student_surprisal=[surprisal], student_unconditional_surprisal=[without]) == [0.5]
    # A first token without a predecessor is in neither mean: (1 + 0) / (0.5 + 1.5).
    values = _values("ifd", student_surprisal=[surprisal], student_unconditional_surprisal=[[None, 0.5, 1.5]])
    assert values == [0.5]
    values = _values("ifd", student_surprisal=[[9.0, 1.0]], student_unconditional_surprisal=[[None, 4.0]])
    assert values == [0.25]  # and not ((9 + 1) / 2) / 4
    for nothing in ([None, None], [0.0, 0.0], None):
        assert _values("ifd", student_surprisal=[[1.0, 1.0]], student_unconditional_surprisal=[nothing]) == [None]


def _lark(prompts: list[str], losses: list[list[float] | None], collisions: list[list[float] | None]) -> list[Any]:
    return _values("lark", prompt_id=prompts, student_surprisal=losses, student_collision=collisions)


def test_lark_by_hand() -> None:
    # p = 1/2 and 1/4: L = ln 2 and 2 ln 2; B = 1 - 2/2 + 1/2 and 1 - 2/4 + 1/2.
    half, quarter = math.log(2), math.log(4)
    values = _lark(["p", "p"], [[half], [quarter]], [[0.5], [0.5]])
    rho = (0.5 / half, 1.0 / quarter)
    average = 1.5 / (3 * half)
    expected = [(1 / 3) * (2 * rho[0] - average), (2 / 3) * (2 * rho[1] - average)]
    assert values == pytest.approx(expected, rel=1e-6)
    # Within a prompt the values add up to the average rho.
    assert sum(values) == pytest.approx(average, rel=1e-6)


def test_lark_of_an_only_candidate_is_its_rho() -> None:
    assert _lark(["p", "q"], [[2.0], [1.0]], [[0.5], [0.25]]) == pytest.approx(
        [(1.5 - 2 * math.exp(-2)) / 2, (1.25 - 2 * math.exp(-1)) / 1]
    )


def test_lark_leaves_undefined_candidates_out_and_is_relative_to_the_others() -> None:
    alone = _lark(["p"], [[2.0, 1.0]], [[0.5, 0.5]])
    with_undefined = _lark(
        ["p"] * 5,
        [[2.0, 1.0], [math.nan, 1.0], None, [], [1.0]],
        [[0.5, 0.5], [0.5, 0.5], [0.5], [], [math.inf]],
    )
    assert with_undefined == [*alone, None, None, None, None]
    assert _lark(["p", "p"], [[2.0, 1.0], [3.0]], [[0.5, 0.5], [0.1]])[0] != alone[0]


def test_lark_of_certain_candidates() -> None:
    assert _lark(["p"], [[0.0, 0.0]], [[1.0, 1.0]]) == [None]
    certain, other = _lark(["p", "p"], [[0.0], [2.0]], [[1.0], [0.5]])
    assert certain == 0.0
    assert other > 0


def test_lark_does_not_depend_on_the_order_of_rows_to_the_last_bit() -> None:
    draw = random.Random(5)
    rows = [(f"p{draw.randrange(3)}", [draw.uniform(0, 9)], [draw.random()]) for _ in range(400)]
    order = list(range(400))
    expected = _lark(*(list(column) for column in zip(*rows, strict=True)))
    draw.shuffle(order)
    turned = _lark(*(list(column) for column in zip(*(rows[n] for n in order), strict=True)))
    assert turned == [expected[n] for n in order]


def test_lark_of_a_data_set_is_the_mean() -> None:
    rows = {
        "id": ["a", "b", "c"],
        "prompt_id": ["p", "p", "q"],
        "status": ["ok", "ok", "too_long"],
        "student_surprisal": [[1.0], [3.0], None],
        "student_collision": [[0.5], [0.5], None],
    }
    found = measure(open_scores(pl.LazyFrame(rows)), [METRICS["lark"]])
    assert found["lark:numerator"].to_list() == found["lark"].to_list()
    assert found["lark:denominator"].to_list() == [1.0, 1.0, None]


def test_loop_flags_are_the_stored_numbers() -> None:
    assert _values("compression_ratio", response_compression=[2.5, None, math.nan]) == [2.5, None, None]
    assert _values("repeated_line_ratio", repeated_lines=[0.0, 0.75, None]) == [0.0, 0.75, None]
    assert _values("repeated_ngram_ratio", repeated_ngrams=[0.0, 0.75, None]) == [0.0, 0.75, None]


def test_a_loop_is_above_one_of_the_limits() -> None:
    rows = {
        "response_compression": [7.0, 7.5, 2.0, 2.0, None, None, math.nan],
        "repeated_lines": [0.65, 0.0, 0.75, None, None, None, math.nan],
        "repeated_ngrams": [0.5, 0.0, 0.0, 0.75, 0.25, None, 0.0],
    }
    assert _values("loop", **rows) == [0.0, 1.0, 1.0, 1.0, 0.0, None, 0.0]


LN2 = math.log(2)
BY_HAND: dict[str, tuple[dict[str, Any], float]] = {
    # Of 4 entropies the 0.995 quantile lies between 3 and 2: the largest alone counts.
    "hes": ({"student_entropy": [0.5, 3.0, 1.0, 2.0]}, 3.0),
    # p = 1/2, and (1/2, 1/4, 1/4) beside it: 1 - 1 + 3/8; p = 1: 0.
    "el2n": ({"student_surprisal": [LN2, 0.0], "student_collision": [0.375, 1.0]}, math.sqrt(0.375) / 2),
    # The first tokens of sentences 0 and 2 are left out: 1, 2 and 4 remain.
    "aslec_drop": ({"student_surprisal": [9.0, 1.0, 2.0, 8.0, 4.0], "sentence": [0, 0, 0, 2, 2]}, -7 / 3),
    "inference_entropy": ({"inference_entropy": 1.5}, 1.5),
    # Every sentence counts once, and one in which no token starts not at all.
    "lalp": ({"student_local_sentence_logprob": [-0.5, None, -2.0, -4.0]}, -6.5 / 3),
    "step_errors": ({"step_rewards": [0.9, 0.49, 0.5, 0.0]}, 0.5),
    "das_margin": (
        {"teacher_sentence_logprob": [-0.5, -3.0, -1.0], "student_sentence_logprob": [-2.5, -1.0, -1.25]},
        2.25,
    ),
    "log_ratio": ({"student_surprisal": [2.0, 1.0], "teacher_surprisal": [0.5, 2.0]}, 0.25),
    # k1 is -1.5 and 1.
    "k2": ({"student_surprisal": [2.0, 1.0], "teacher_surprisal": [0.5, 2.0]}, (1.125 + 0.5) / 2),
    "k3": (
        {"student_surprisal": [2.0, 1.0], "teacher_surprisal": [0.5, 2.0]},
        (math.exp(1.5) - 2.5 + math.exp(-1.0)) / 2,
    ),
    "confidence_shift": ({"student_surprisal": [2.0, 1.0], "distilled_surprisal": [0.5, 2.0]}, 0.5),
    "sampler_mismatch": ({"student_surprisal": [2.0, 1.0], "sampler_logprob": [-0.5, -2.0]}, 1.25),
    # Ratios 1/2, and 4, which counts as 2.
    "importance": ({"student_surprisal": [LN2, 0.0], "sampler_logprob": [0.0, -2 * LN2]}, 1.25),
    # q = 1/2 and 1/4, up to the 1e-6 that keeps either from being certain.
    "chunk_divergence": (
        {"teacher_chunk_logprob": [-100 * LN2], "student_chunk_logprob": [-200 * LN2]},
        0.5 * LN2 + 0.5 * math.log(0.5 / 0.75),
    ),
    # Means of what the two models' predictions were found to differ by.
    **{
        name: ({name: [0.25, 1.0, 0.5]}, 1.75 / 3)
        for name, metric in METRICS.items()
        if metric.columns == (name,) and name != "inference_entropy"
    },
}
ELSEWHERE = {
    "teacher_sentences": test_teacher_sentences_by_hand,
    "teacher_sentence_ratio": test_teacher_sentences_by_hand,
    "phase_entropy": test_phase_entropy_by_hand,
    "ood_ratio": test_ood_ratio_by_hand,
    "ifd": test_ifd_by_hand,
    "lark": test_lark_by_hand,
    "aslec_casl": test_corpus_metrics.test_casl_by_hand,
    "rule_quality": test_corpus_metrics.test_rule_quality_by_hand,
    "loop": test_a_loop_is_above_one_of_the_limits,
    **dict.fromkeys(
        ("compression_ratio", "repeated_line_ratio", "repeated_ngram_ratio"), test_loop_flags_are_the_stored_numbers
    ),
    **dict.fromkeys(test_metrics.HAND_COMPUTED, test_metrics.test_hand_computed),
}
"""Metrics of several rows, or of several cases by hand, and the test that has these."""


def test_every_metric_has_a_case_by_hand() -> None:
    assert BY_HAND.keys() | ELSEWHERE.keys() == METRICS.keys()


@pytest.mark.parametrize("name", BY_HAND)
def test_by_hand(name: str) -> None:
    columns, expected = BY_HAND[name]
    row = {column: [values] for column, values in columns.items()}
    tolerance = 1e-5 if name == "chunk_divergence" else 1e-6
    assert pl.DataFrame(row).select(METRICS[name].value()).item() == pytest.approx(expected, rel=tolerance)


def test_the_share_of_high_entropies_is_a_quantile_and_ties_count() -> None:
    """Of 201 the quantile 0.995 is the value at place 199: the two largest count, and whatever equals them."""
    entropies = [float(n) for n in range(201)]
    assert pl.DataFrame({"student_entropy": [entropies]}).select(tm.hes()).item() == 199 + 200
    # Of 301 it lies between the values at places 298 and 299: a quantile that falls to the lower one counts three.
    longer = [float(n) for n in range(301)]
    assert pl.DataFrame({"student_entropy": [longer]}).select(tm.hes()).item() == 299 + 300
    tied = [1.0] * 9
    assert pl.DataFrame({"student_entropy": [tied]}).select(tm.hes()).item() == 9.0
    assert pl.DataFrame({"student_entropy": [entropies]}).select(tm.hes(share=1)).item() == sum(entropies)


def test_divergences_of_equal_models_are_zero() -> None:
    chunks = [-0.0, -1e-3, -5.0, -700.0]
    same = {"teacher_chunk_logprob": [chunks], "student_chunk_logprob": [chunks]}
    assert pl.DataFrame(same).select(tm.chunk_divergence()).item() == 0.0
    other = {"teacher_chunk_logprob": [chunks], "student_chunk_logprob": [[-0.5, *chunks[1:]]]}
    assert pl.DataFrame(other).select(tm.chunk_divergence()).item() > 0
    # Where models agree almost, rounding would turn some of these negative.
    near = [[2.0**-n * (1 + 2.0**-20)] for n in range(8, 60)]
    almost = pl.DataFrame({"student_surprisal": near, "teacher_surprisal": [[0.0]] * len(near)})
    assert almost.select(tm.k3().min()).item() >= 0
    teachers = [[-5.0 * (1 + 2.0**-n)] for n in range(12, 52)]
    almost = pl.DataFrame({"teacher_chunk_logprob": teachers, "student_chunk_logprob": [[-5.0]] * len(teachers)})
    assert almost.select(tm.chunk_divergence().min()).item() >= 0
    tokens = {"student_surprisal": [[0.5, 2.0]], "teacher_surprisal": [[0.5, 2.0]]}
    assert pl.DataFrame(tokens).select(tm.log_ratio(), tm.k2(), tm.k3()).row(0) == (0.0, 0.0, 0.0)
