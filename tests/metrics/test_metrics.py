"""Every metric against plain float64 Python on generated tables, then hand-computed cases, empties, bounds and invariances."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import trajscore.metrics as tm
from tests.helpers.score_tables import (
    INPUT_FIELDS,
    float32,
    random_rows,
    refused,
    table,
    trajectory,
    with_every_column,
    write_folder,
)
from trajscore.errors import UsageError
from trajscore.metrics import METRICS, check_values, dataset_value, find, require
from trajscore.metrics.measure import measure, measure_following
from trajscore.schema import COLUMNS
from trajscore.scores import scan
from trajscore.scores.source import open_scores

FIELDS = [
    *INPUT_FIELDS,
    pa.field("step_rewards", pa.list_(pa.float64())),
    pa.field("inference_entropy", pa.float64()),
]
EVERY = {*COLUMNS, "step_rewards", "inference_entropy"}
OF_TOKENS = {name for name, column in COLUMNS.items() if column.axis != "row"} | {"step_rewards"}
"""Columns of lists."""

Row = dict[str, Any]
Value = float | None


def _mean(values: Sequence[float | None] | None) -> Value:
    if not values or any(value is None or not math.isfinite(value) for value in values):
        return None
    return math.fsum(value for value in values if value is not None) / len(values)


def _over(top: Value, bottom: Value) -> Value:
    return None if top is None or not bottom else top / bottom


def _less(left: Value, right: Value) -> Value:
    return None if left is None or right is None else left - right


def _clipped(row: Row) -> Value:
    return _mean([min(float(rank), 100.0) for rank in row["student_rank"]])


def _filtered(row: Row) -> Value:
    rank, surprisal = row["student_rank"], row["student_surprisal"]
    if _mean(surprisal) is None:
        return None
    k = -(-30 * len(rank) // 100)
    threshold = sorted(surprisal, reverse=True)[k - 1]
    chosen = [(r, s) for r, s in zip(rank, surprisal, strict=True) if s >= threshold]
    return None if threshold == 0 else _mean([r / s for r, s in chosen])


def _sentences(row: Row) -> tuple[Value, Value]:
    pairs = zip(row["teacher_sentence_logprob"], row["student_sentence_logprob"], strict=True)
    gaps = [math.exp(t) - math.exp(s) for t, s in pairs if t is not None and s is not None]
    return (float(sum(gap > 0.1 for gap in gaps)), float(len(gaps))) if gaps else (None, None)


def _penalty(row: Row) -> Value:
    entropy, phase = row["student_entropy"], row["phase"]
    thinking, answer = (_mean([h for h, p in zip(entropy, phase, strict=True) if p == which]) for which in (0, 2))
    difference = _less(thinking, 0.0 if 2 not in phase else answer)
    return None if difference is None or _mean(entropy) is None else max(0.0, difference)


def _ifd(row: Row) -> Value:
    both = list(zip(row["student_surprisal"], row["student_unconditional_surprisal"], strict=True))
    both = [(s, u) for s, u in both if u is not None]
    return _over(_mean([s for s, _ in both]), _mean([u for _, u in both]))


def _lark(rows: list[Row]) -> list[Value]:
    """As the paper writes it, with rho; no candidate's loss is 0 where it is used."""
    terms = []
    for row in rows:
        pairs = zip(row["student_surprisal"], row["student_collision"], strict=True)
        terms.append((_mean(row["student_surprisal"]), _mean([1 - 2 * math.exp(-s) + c for s, c in pairs])))
    values: list[Value] = []
    for row, (loss, brier) in zip(rows, terms, strict=True):
        own = [t for r, t in zip(rows, terms, strict=True) if r["prompt_id"] == row["prompt_id"]]
        pool = [(each, b) for each, b in own if each is not None and b is not None]
        losses = math.fsum(each for each, _ in pool)
        if loss is None or brier is None or losses == 0:
            values.append(None)
            continue
        average = math.fsum(b for _, b in pool) / losses
        rho = brier / loss if loss else 0.0
        values.append(loss / losses * (2 * rho - average) if loss else 2 * brier / losses)
    return values


def _looped(compression: Value, lines: Value, ngrams: Value) -> Value:
    if compression is None and lines is None and ngrams is None:
        return None
    return float((compression or 0) > 7 or (lines or 0) > 0.65 or (ngrams or 0) > 0.5)


def _pairs(row: Row, left: str, right: str) -> list[tuple[float, float]] | None:
    """Two token columns side by side; None where one holds no number."""
    columns = [row[left], row[right]]
    return None if None in map(_mean, columns) else list(zip(*columns, strict=True))


def _over_tokens(row: Row, left: str, right: str, of: Callable[[float, float], float]) -> Value:
    pairs = _pairs(row, left, right)
    return None if pairs is None else _mean([of(a, b) for a, b in pairs])


def _quantile(values: Sequence[float], share: Fraction) -> float:
    """Linear between order statistics, in exact arithmetic."""
    ordered = [Fraction(value) for value in sorted(values)]
    place = share * (len(ordered) - 1)
    below = place.numerator // place.denominator
    above = min(below + 1, len(ordered) - 1)
    return float(ordered[below] + (ordered[above] - ordered[below]) * (place - below))


def _high_sum(row: Row) -> Value:
    entropy = row["student_entropy"]
    if _mean(entropy) is None:
        return None
    return math.fsum(h for h in entropy if h >= _quantile(entropy, Fraction(995, 1000)))


def _by_place(row: Row, first: int) -> tuple[list[float], list[float]]:
    """ln p of the first tokens of sentences, and of the others."""
    heads: list[float] = []
    others: list[float] = []
    seen = Counter[int]()
    for surprisal, sentence in zip(row["student_surprisal"], row["sentence"], strict=True):
        (heads if seen[sentence] < first else others).append(-surprisal)
        seen[sentence] += 1
    return heads, others


def _casl(rows: list[Row]) -> list[Value]:
    """By the normal equations, in exact arithmetic."""
    defined: dict[int, list[Fraction]] = {}
    for number, row in enumerate(rows):
        heads, others = _by_place(row, 1)
        if _mean(row["student_surprisal"]) is None or not heads or not others:
            continue
        every = [Fraction(each) for each in (*heads, *others)]
        m, m_first, m_other = (sum(map(Fraction, part), Fraction(0)) / len(part) for part in (every, heads, others))
        defined[number] = [m, m_other, m_first, Fraction(len(heads), len(every)), Fraction(1)]
    gamma = _third_coefficient([[*each[1:], each[0]] for each in defined.values()])
    return [
        None if gamma is None or number not in defined else float(defined[number][0] - gamma * defined[number][3])
        for number in range(len(rows))
    ]


def _third_coefficient(lines: list[list[Fraction]]) -> Fraction | None:
    """Of the least-squares fit of the last column by the others; None where these do not determine it."""
    size = 4
    square = [[sum((a[i] * a[j] for a in lines), Fraction(0)) for j in range(size + 1)] for i in range(size)]
    for step in range(size):
        pivot = next((line for line in range(step, size) if square[line][step]), None)
        if pivot is None:
            return None
        square[step], square[pivot] = square[pivot], square[step]
        square[step] = [each / square[step][step] for each in square[step]]
        for line in range(size):
            if line != step:
                factor = square[line][step]
                square[line] = [a - factor * b for a, b in zip(square[line], square[step], strict=True)]
    return square[2][size]


def _quality(rows: list[Row]) -> list[Value]:
    criteria: dict[int, list[float]] = {}
    for number, row in enumerate(rows):
        if words := row["response_words"]:
            counts = [row[f"{name}_words"] / words for name in ("verification", "exploration", "conclusion")]
            criteria[number] = [float(words), *counts]
    values: list[Value] = [None] * len(rows)
    for number, own in criteria.items():
        total = 0.0
        for place, weight in enumerate((0.3, 0.2, 0.25, 0.25)):
            column = [each[place] for each in criteria.values()]
            centre = math.fsum(column) / len(column)
            spread = math.sqrt(math.fsum((each - centre) ** 2 for each in column) / len(column))
            total += 0.0 if min(column) == max(column) else weight * (own[place] - centre) / spread
        values[number] = total
    return values


def _margin(row: Row) -> Value:
    pairs = zip(row["teacher_sentence_logprob"], row["student_sentence_logprob"], strict=True)
    gaps = [t - s for t, s in pairs if t is not None and s is not None]
    total = math.fsum(max(0.0, gap) for gap in gaps) if gaps and not any(map(math.isnan, gaps)) else math.nan
    return total if math.isfinite(total) else None


def _binary(teacher: float, student: float) -> float:
    lt, ls = teacher / 100 - 1e-6, student / 100 - 1e-6
    q = math.exp(lt)
    cross = -(q * ls + (1 - q) * math.log(-math.expm1(ls)))
    return cross + q * lt + (1 - q) * math.log(-math.expm1(lt))


def _wrong(row: Row) -> Value:
    rewards = row["step_rewards"]
    return None if _mean(rewards) is None else sum(reward < 0.5 for reward in rewards) / len(rewards)


EXTRAS = [name for name in METRICS if "--extra" in COLUMNS.get(name, COLUMNS["id"]).flag]
"""Means of what `score --extra` writes."""

ORACLES: dict[str, Callable[[Row], Value]] = {
    **{name: lambda row, name=name: _mean(row[name]) for name in EXTRAS},  # type: ignore[misc]
    "sampler_mismatch": lambda row: _over_tokens(row, "student_surprisal", "sampler_logprob", lambda s, q: abs(s + q)),
    "importance": lambda row: _over_tokens(
        row, "student_surprisal", "sampler_logprob", lambda s, q: min(2.0, math.exp(-s - q))
    ),
    "rsr": lambda row: _over(_clipped(row), _mean(row["student_surprisal"])),
    "surprisal": lambda row: _mean(row["student_surprisal"]),
    "rank": _clipped,
    "rank_unclipped": lambda row: _mean([float(rank) for rank in row["student_rank"]]),
    "entropy": lambda row: _mean(row["student_entropy"]),
    "rank_entropy_ratio": lambda row: _over(_clipped(row), _mean(row["student_entropy"])),
    "rsr_filtered": _filtered,
    "length": lambda row: float(row["n_tokens"]) if row["n_tokens"] else None,
    "teacher_sentences": lambda row: _sentences(row)[0],
    "teacher_sentence_ratio": lambda row: _over(*_sentences(row)),
    "hes": _high_sum,
    "el2n": lambda row: _over_tokens(
        row, "student_surprisal", "student_collision", lambda s, c: math.sqrt(max(0.0, 1 - 2 * math.exp(-s) + c))
    ),
    "aslec_drop": lambda row: None if _mean(row["student_surprisal"]) is None else _mean(_by_place(row, 1)[1]),
    "step_errors": _wrong,
    "lalp": lambda row: _mean([each for each in row["student_local_sentence_logprob"] or [] if each is not None]),
    "inference_entropy": lambda row: row["inference_entropy"],
    "das_margin": _margin,
    "log_ratio": lambda row: _less(_mean(row["student_surprisal"]), _mean(row["teacher_surprisal"])),
    "k2": lambda row: _over_tokens(row, "student_surprisal", "teacher_surprisal", lambda s, t: (t - s) ** 2 / 2),
    "k3": lambda row: _over_tokens(
        row, "student_surprisal", "teacher_surprisal", lambda s, t: math.exp(s - t) - 1 + (t - s)
    ),
    "confidence_shift": lambda row: (
        None
        if (pairs := _pairs(row, "student_surprisal", "distilled_surprisal")) is None
        else math.fsum(s - d for s, d in pairs)
    ),
    "chunk_divergence": lambda row: _over_tokens(row, "teacher_chunk_logprob", "student_chunk_logprob", _binary),
    "kl_student_teacher": lambda row: _mean(row["kl_student_teacher"]),
    "kl_teacher_student": lambda row: _mean(row["kl_teacher_student"]),
    "js": lambda row: _mean(row["js"]),
    "phase_entropy": _penalty,
    "ood_ratio": lambda row: _less(_mean(row["distilled_surprisal"]), _mean(row["student_surprisal"])),
    "ifd": _ifd,
    "compression_ratio": lambda row: row["response_compression"],
    "repeated_line_ratio": lambda row: row["repeated_lines"],
    "repeated_ngram_ratio": lambda row: row["repeated_ngrams"],
    "loop": lambda row: _looped(row["response_compression"], row["repeated_lines"], row["repeated_ngrams"]),
}

OF_ROWS: dict[str, Callable[[list[Row]], list[Value]]] = {"lark": _lark, "aslec_casl": _casl, "rule_quality": _quality}
"""Metrics that need other rows, too."""

LOWER = {
    "step_errors",
    "rsr",
    "surprisal",
    "rank",
    "rank_unclipped",
    "rank_entropy_ratio",
    "rsr_filtered",
    "phase_entropy",
}
LOWER |= {"compression_ratio", "repeated_line_ratio", "repeated_ngram_ratio", "loop"}
HIGHER = {"length", "hes", "lalp", "inference_entropy", "aslec_drop", "aslec_casl", "rule_quality", "lark", "ifd"}
HIGHER |= {"teacher_sentences", "teacher_sentence_ratio", "das_margin"}
NONE = {"entropy", "kl_student_teacher", "kl_teacher_student", "js", "ood_ratio", "log_ratio", "k2", "k3"}
NONE |= {"confidence_shift", "el2n", "chunk_divergence", "sampler_mismatch", "importance", *EXTRAS}
DIRECTIONS = dict.fromkeys(LOWER, "lower") | dict.fromkeys(HIGHER, "higher") | dict.fromkeys(NONE)
"""As the sources have it, written down once more: a sign that turns over would keep the worst rows."""

_nats = st.floats(0, 60, width=32) | st.sampled_from([0.0, 1.0, 7.28125])
_TOKEN = {
    "student_rank": st.integers(1, 2**32 - 1) | st.integers(1, 200),
    "phase": st.integers(0, 2),
    "student_collision": st.floats(0, 1, width=32),
    **dict.fromkeys(("student_surprisal", "student_entropy", "teacher_surprisal", "distilled_surprisal"), _nats),
    **dict.fromkeys(("kl_student_teacher", "kl_teacher_student", "js"), _nats),
    "sampler_logprob": st.floats(-60, 0, width=32),
    **dict.fromkeys(EXTRAS, st.floats(0, 1, width=32)),
    "student_unconditional_surprisal": _nats | st.none(),
}
_logprob = st.none() | st.floats(-20, 0, width=32) | st.just(-math.inf)
_CHUNK = dict.fromkeys(("teacher_chunk_logprob", "student_chunk_logprob"), st.floats(-900, 0, width=32))
_SENTENCE_COLUMNS = ("teacher_sentence_logprob", "student_sentence_logprob", "student_local_sentence_logprob")
_PAIR = dict.fromkeys(_SENTENCE_COLUMNS, _logprob)


@st.composite
def _row(draw: st.DrawFn) -> Row:
    tokens = draw(st.lists(st.fixed_dictionaries(_TOKEN), max_size=25))
    pairs = draw(st.lists(st.fixed_dictionaries(_PAIR), max_size=6))
    number = st.none() | st.floats(0, 50, width=32)
    chunks = draw(st.lists(st.fixed_dictionaries(_CHUNK), max_size=6))
    words = draw(st.integers(0, 9))
    return {
        **{name: [chunk[name] for chunk in chunks] for name in _CHUNK},
        "sentence": sorted(draw(st.lists(st.integers(0, 4), min_size=len(tokens), max_size=len(tokens)))),
        "step_rewards": draw(st.none() | st.lists(st.sampled_from([0.0, 0.25, 0.5, 0.75]), max_size=5)),
        "response_words": words,
        **{f"{name}_words": draw(st.integers(0, words)) for name in ("verification", "exploration", "conclusion")},
        **{name: [token[name] for token in tokens] for name in _TOKEN},
        **{name: [pair[name] for pair in pairs] for name in _PAIR},
        "prompt_id": draw(st.sampled_from("pqr")),
        "n_tokens": len(tokens),
        "inference_entropy": draw(st.none() | st.floats(0, 4.3)),
        "response_compression": draw(number),
        "repeated_lines": draw(number),
        "repeated_ngrams": draw(number),
    }


CANCELLING = {"lark", "ood_ratio", "phase_entropy", "log_ratio", "k2", "k3", "el2n", "confidence_shift", "aslec_casl"}
CANCELLING |= {"sampler_mismatch", "importance", "rule_quality", "das_margin", "chunk_divergence"}
"""Differences of numbers much larger than they are."""

_rows = st.lists(_row(), min_size=1, max_size=8)


def _table(rows: Sequence[Row]) -> pl.DataFrame:
    frame = pl.from_arrow(table(rows, FIELDS))
    assert isinstance(frame, pl.DataFrame)
    return frame


def _frame(rows: Sequence[Row]) -> pl.DataFrame:
    return _table([trajectory(number, row.get("student_rank", []), []) | row for number, row in enumerate(rows)])


def _values(frame: pl.DataFrame | pl.LazyFrame, name: str) -> list[Value]:
    values: list[Value] = frame.lazy().select(METRICS[name].value()).collect()[name].to_list()
    return values


def _one(name: str, rank: list[Any] | None, surprisal: list[Any] | None, entropy: list[Any] | None = None) -> Value:
    return _values(_frame([{"student_rank": rank, "student_surprisal": surprisal, "student_entropy": entropy}]), name)[
        0
    ]


def test_every_metric_has_an_oracle() -> None:
    assert {*ORACLES, *OF_ROWS} == set(METRICS)


def _oracle(name: str, rows: list[Row]) -> list[Value]:
    return OF_ROWS[name](rows) if name in OF_ROWS else [ORACLES[name](row) for row in rows]


@settings(max_examples=60, deadline=None)
@given(rows=_rows)
def test_metrics_equal_the_oracles(rows: list[Row]) -> None:
    """All of them on the same rows: what costs time is to draw rows."""
    table = _frame(rows).select(metric.value() for metric in METRICS.values())
    for name in METRICS:
        for value, oracle in zip(table[name].to_list(), _oracle(name, rows), strict=True):
            if value is None or oracle is None:
                assert value is oracle, name
            elif name in CANCELLING:
                assert value == pytest.approx(oracle, rel=1e-9, abs=1e-11), name
            else:
                assert value == pytest.approx(oracle, rel=1e-12, abs=0), name


def test_ones_and_constants() -> None:
    """Rows of one token and one sentence, and rows of which all tokens are alike."""
    rows = []
    for number, row in enumerate(with_every_column([row for row in random_rows(40) if row["status"] == "ok"])):
        size = 1 if number % 2 else 5
        constant = {
            name: [next((each for each in value if each is not None), None)] * size
            for name, value in row.items()
            if name in OF_TOKENS and isinstance(value, list) and value
        }
        rows.append(row | constant | {"n_tokens": size, "sentence": [0] * size, "phase": [2 * (number % 3 > 0)] * size})
    frame = _table(rows)
    rows = frame.to_dicts()
    table = frame.select(metric.value() for metric in METRICS.values())
    for name in METRICS:
        assert _nearly(table[name], _as_numbers(_oracle(name, rows))), name


@pytest.fixture(scope="module")
def drawn() -> tuple[pl.DataFrame, list[Row]]:
    """Rows with every column, as a frame and with what its float32 holds."""
    frame = _table(with_every_column([row for row in random_rows(60, seed=8) if row["status"] == "ok"], seed=8))
    return frame, frame.to_dicts()


def test_the_oracles_reject_what_is_nearly_right(drawn: tuple[pl.DataFrame, list[Row]]) -> None:
    """The control: other parameters, a sign that is turned, a relative in its place."""
    frame, rows = drawn
    wrong = {
        "rsr": tm.rsr(r_max=99),
        "rank": tm.rank(r_max=101),
        "rank_entropy_ratio": tm.rank_entropy_ratio(r_max=99),
        "rsr_filtered": tm.rsr_filtered(top_percent=25),
        "hes": tm.hes(share=0.2),
        "aslec_drop": tm.aslec_drop(first=2),
        "step_errors": tm.step_errors(threshold=0.45),
        "teacher_sentences": tm.teacher_sentences(beta=-0.5),
        "teacher_sentence_ratio": tm.teacher_sentence_ratio(beta=-0.5),
        "phase_entropy": tm.phase_entropy(alpha=0.9),
        "chunk_divergence": tm.chunk_divergence(temperature=101.0),
        "log_ratio": -tm.log_ratio(),
        "das_margin": tm.teacher_sentences(),
        "k2": tm.k3(),
    }
    assert {name for name, metric in METRICS.items() if metric.parameters} <= wrong.keys()
    for name, expression in wrong.items():
        oracle = _as_numbers(_oracle(name, rows))
        assert _nearly(frame.select(METRICS[name].value()).to_series(), oracle), name
        assert not _nearly(frame.select(expression).to_series(), oracle), name


OF_TEXT = {
    "rule_quality",
    "inference_entropy",
    "compression_ratio",
    "repeated_line_ratio",
    "repeated_ngram_ratio",
    "loop",
}
"""Metrics that read no list and no number of tokens."""


@pytest.mark.parametrize("name", [name for name in METRICS if name not in OF_TEXT])
def test_the_oracles_notice_a_token_that_is_missing_or_at_another_place(
    name: str, drawn: tuple[pl.DataFrame, list[Row]]
) -> None:
    """The control: the metric of lists without their first or last element, or of which one is moved against the others."""
    frame, rows = drawn
    oracle, metric = _as_numbers(_oracle(name, rows)), METRICS[name]
    assert _nearly(frame.select(metric.value()).to_series(), oracle)
    lists = [column for column in metric.columns if column in OF_TOKENS]
    assert lists or metric.columns == ("n_tokens",)
    lost = pl.col("n_tokens") - 1
    wrong = [
        [*(pl.col(column).list.slice(1) for column in lists), lost],
        [*(pl.col(column).list.head(pl.col(column).list.len().cast(pl.Int64) - 1) for column in lists), lost],
    ]
    # A list that repeats its first element and has lost its last: every value stands a place too late.
    late = [
        pl.concat_list(pl.col(column).list.head(1), column).list.head(pl.col(column).list.len()) for column in lists
    ]
    for each in [*wrong, *([column] for column in late)]:
        assert not _nearly(frame.with_columns(each).select(metric.value()).to_series(), oracle)


def _as_numbers(values: list[Value]) -> list[float]:
    return [math.nan if value is None else value for value in values]


def _nearly(values: pl.Series, oracle: list[float]) -> bool:
    found = values.fill_null(math.nan).to_list()
    return bool(found == pytest.approx(oracle, rel=1e-9, abs=1e-11, nan_ok=True))


@pytest.mark.parametrize("name", METRICS)
def test_function_of_the_same_name_gives_the_tables_value(name: str) -> None:
    frame = _table(with_every_column(random_rows(20, seed=1)))
    if name in EXTRAS:
        extra = COLUMNS[name].flag.removeprefix("--teacher MODEL --extra ")
        assert frame.select(tm.divergence(extra)).to_series().equals(frame.select(METRICS[name].value()).to_series())
        return
    assert frame.select(getattr(tm, name)()).to_series().to_list() == _values(frame, name)
    assert frame.select(getattr(tm, name)()).columns == [name]
    assert any(value is not None for value in _values(frame, name))


@pytest.mark.parametrize(
    ("rank", "surprisal", "published"),
    [
        (153, 7.28, 13.70),
        (504, 9.62, 10.42),
        (18, 4.91, 3.66),
        (1414, 10.69, 9.35),
        (6, 3.84, 1.56),
        (425, 12.50, 8.00),
    ],
)
def test_token_case_study_of_the_paper(rank: int, surprisal: float, published: float) -> None:
    # The printed surprisals are rounded: 100 / 7.28 is 13.74 where 13.70 is printed, the largest gap of the seven.
    value = _one("rsr", [rank], [surprisal])
    assert value == pytest.approx(published, rel=0.003, abs=0.005)


HAND_COMPUTED = {
    "rsr": (1 + 100 + 18 + 1) / (0.25 + 7.25 + 4.5 + 0.0),
    "surprisal": 3.0,
    "rank": 30.0,
    "rank_unclipped": 43.25,
    "entropy": 2.0,
    "rank_entropy_ratio": 15.0,
    # k = ceil(0.3 * 4) = 2: the tokens with 7.25 and 4.5, ranks unclipped.
    "rsr_filtered": (153 / 7.25 + 18 / 4.5) / 2,
    "length": 4.0,
}


@pytest.mark.parametrize(("name", "expected"), HAND_COMPUTED.items())
def test_hand_computed(name: str, expected: float) -> None:
    value = _one(name, [1, 153, 18, 1], [0.25, 7.25, 4.5, 0.0], [0.5, 4.5, 2.5, 0.5])
    assert value == pytest.approx(expected, rel=1e-15)


def test_filtered_includes_ties_and_counts_without_rounding_error() -> None:
    assert _one("rsr_filtered", [2, 4, 6, 8], [1.0, 2.0, 2.0, 2.0]) == pytest.approx((4 + 6 + 8) / 6)
    # T = 10: k is 3, and the fourth largest must not slip in through 0.3 * 10 in floating point.
    surprisals = [float(n) for n in range(1, 11)]
    assert _one("rsr_filtered", [1] * 10, surprisals) == pytest.approx((1 / 10 + 1 / 9 + 1 / 8) / 3)
    # T = 37: 11.1 tokens are twelve.
    longer = [float(n) for n in range(1, 38)]
    assert _one("rsr_filtered", [1] * 37, longer) == pytest.approx(math.fsum(1 / n for n in range(26, 38)) / 12)


def test_one_token() -> None:
    assert _one("rsr", [3], [1.5], [0.5]) == 2.0
    assert _one("rsr_filtered", [300], [1.5]) == 200.0
    assert _one("rank_entropy_ratio", [3], [1.5], [0.5]) == 6.0


_SENTENCES = {"teacher_sentences", "teacher_sentence_ratio", "das_margin", "aslec_casl", "lalp"}
_NOT_LISTS = {
    "rule_quality",
    "length",
    "inference_entropy",
    "compression_ratio",
    "repeated_line_ratio",
    "repeated_ngram_ratio",
    "loop",
}


@pytest.mark.parametrize("name", METRICS)
def test_empty_and_refused_rows_are_null(name: str) -> None:
    lists = [column for column in METRICS[name].columns if column in OF_TOKENS]
    empty: list[float] = []
    rows = [refused(0, "too_long") | dict.fromkeys(lists), trajectory(1, [], []) | dict.fromkeys(lists, empty)]
    assert _values(_table(rows), name) == [None, None]


@pytest.mark.parametrize("name", sorted(set(METRICS) - _NOT_LISTS - _SENTENCES))
@pytest.mark.parametrize("bad", [math.nan, math.inf, None])
def test_a_token_that_is_no_number_makes_the_metric_null(name: str, bad: Value) -> None:
    good: dict[str, list[Any]] = {column: [1.0, 2.0, 3.0, 4.0] for column in METRICS[name].columns}
    good |= {"student_rank": [1, 2, 3, 4], "phase": [0, 1, 2, 2], "prompt_id": "p"}  # type: ignore[dict-item]
    good |= {name: [-1.0, -2.0, -3.0, -4.0] for name in good if name.endswith("_chunk_logprob")}
    good["sentence"] = [0, 0, 1, 1]
    assert _values(_frame([good]), name) != [None]
    for column in METRICS[name].columns:
        if (
            column in COLUMNS
            and COLUMNS[column].dtype != COLUMNS["student_surprisal"].dtype
            and (column != "student_rank" or bad is not None)
        ):
            continue  # these types have no such value
        if column == "student_unconditional_surprisal" and bad is None:
            continue  # a first token that follows nothing
        for place in range(4):
            spoilt = [*good[column][:place], bad, *good[column][place + 1 :]]
            assert _values(_frame([good | {column: spoilt}]), name) == [None], column


def test_zero_denominators_are_null_and_never_the_best() -> None:
    assert _one("rsr", [1, 1], [0.0, 0.0]) is None
    assert _one("rsr_filtered", [1, 1], [0.0, 0.0]) is None
    assert _one("rank_entropy_ratio", [1, 1], [1.0, 1.0], [0.0, 0.0]) is None
    assert _one("surprisal", [1, 1], [0.0, 0.0]) == 0.0


def test_sums_do_not_wrap_or_forget() -> None:
    # The sum of two such ranks exceeds uint32; in float32 the small surprisals would vanish beside the large one.
    assert _one("rank_unclipped", [2**32 - 1, 2**32 - 1], [1.0, 1.0]) == 2.0**32 - 1
    surprisals = [2.0**24, *([1.0] * 64)]
    assert _one("surprisal", [1] * 65, surprisals) == (2.0**24 + 64) / 65


def test_clip_is_a_parameter() -> None:
    frame = _frame([{"student_rank": [1000], "student_surprisal": [2.0], "student_entropy": [1.0]}])
    assert frame.select(tm.rsr(r_max=500)).item() == 250.0
    assert frame.select(tm.rank(r_max=50)).item() == 50.0
    assert frame.select(tm.rank_entropy_ratio(r_max=10)).item() == 10.0


_LOWER_BOUNDS = {"rank": 1.0, "rank_unclipped": 1.0, "length": 1.0, "ood_ratio": -7.28, "lark": -math.inf}
_LOWER_BOUNDS |= dict.fromkeys(
    ("log_ratio", "confidence_shift", "aslec_drop", "aslec_casl", "rule_quality", "lalp"), -math.inf
)
_UPPER_BOUNDS = {"teacher_sentence_ratio": 1.0, "rank": 100.0}
_UPPER_BOUNDS |= {"importance": 2.0, "aslec_drop": 0.0, "lalp": 0.0, "el2n": math.sqrt(2), "step_errors": 1.0}
_UPPER_BOUNDS |= dict.fromkeys(("repeated_line_ratio", "repeated_ngram_ratio", "loop"), 1.0)


def test_bounds() -> None:
    rows = with_every_column([row for row in random_rows(200) if row["status"] == "ok"])
    table = _table(rows).select(metric.value() for metric in METRICS.values())
    for name in METRICS:
        values = table[name].drop_nulls().to_list()
        assert values, name
        low, high = _LOWER_BOUNDS.get(name, 0.0), _UPPER_BOUNDS.get(name, math.inf)
        assert all(math.isfinite(value) and low <= value <= high for value in values), name


def test_invariant_to_part_size_and_row_order(tmp_path: Path) -> None:
    rows = with_every_column(random_rows(60, seed=3), seed=3)
    whole = write_folder(tmp_path / "whole", rows, input_fields=FIELDS, part_rows=1000)
    small = write_folder(tmp_path / "small", rows, input_fields=FIELDS, part_rows=7)
    turned = write_folder(tmp_path / "turned", rows[::-1], input_fields=FIELDS, part_rows=11)
    every = [metric.value() for metric in METRICS.values()]
    expected = scan(whole).select(every).collect()
    assert scan(small).select(every).collect().equals(expected)
    assert scan(turned).select(every).collect().reverse().equals(expected)
    assert scan(small).select(every).collect(engine="streaming").equals(expected)
    for folder in (whole, small, turned):
        source = open_scores(folder)
        for made in (measure(source, [*METRICS.values()]), measure_following(source, [*METRICS.values()], None)[0]):
            measured = made.select(*METRICS)
            assert (measured.reverse() if folder == turned else measured).equals(expected)


def _dataset(frame: pl.DataFrame, name: str) -> Value:
    metric = METRICS[name]
    terms = measure(open_scores(frame.lazy()), [metric])
    return dataset_value(terms[f"{name}:numerator"], terms[f"{name}:denominator"])


def _three(rows: list[tuple[list[int], list[float], list[float]]]) -> pl.DataFrame:
    names = ("student_rank", "student_surprisal", "student_entropy")
    return _frame([dict(zip(names, row, strict=True)) for row in rows])


def test_dataset_value_is_the_ratio_of_sums_of_means() -> None:
    frame = _three([([10, 10, 10, 10], [1.0, 1.0, 1.0, 1.0], [1.0] * 4), ([1], [4.0], [1.0])])
    assert _dataset(frame, "rsr") == (10 + 1) / (1 + 4)
    # Controls: the mean of ratios and the pooled ratio are other numbers on this table.
    assert _dataset(frame, "rsr") != (10 / 1 + 1 / 4) / 2
    assert _dataset(frame, "rsr") != (40 + 1) / (4 + 4)


def test_dataset_value_of_a_plain_metric_is_the_mean_and_skips_undefined_rows() -> None:
    frame = _three([([1, 3], [1.0, 2.0], [1.0, 1.0]), ([], [], []), ([9], [0.0], [1.0])])
    assert _dataset(frame, "rank") == (2 + 9) / 2
    # The row whose rsr is undefined must not bring its rank into the numerator either.
    assert _dataset(frame, "rsr") == 2 / 1.5
    assert _dataset(frame.head(0), "rsr") is None


def test_dataset_value_does_not_depend_on_row_order() -> None:
    numerators = pl.Series([0.1, 1e16, 0.3, -1e16, 0.7, 1e-9] * 50, dtype=pl.Float64)
    forward = dataset_value(numerators, pl.repeat(1.0, 300, eager=True))
    assert forward == dataset_value(numerators.reverse(), pl.repeat(1.0, 300, eager=True))
    assert forward == dataset_value(numerators.shuffle(1), pl.repeat(1.0, 300, eager=True))


def test_float32_helper_is_what_is_stored() -> None:
    assert _one("surprisal", [1], [0.1]) == float32([0.1])[0]


def test_unknown_metric_suggests_a_name() -> None:
    with pytest.raises(UsageError, match="rsr"):
        find(["rssr"])


@pytest.mark.parametrize("name", METRICS)
def test_missing_column_names_the_flag_that_writes_it(name: str) -> None:
    for column in METRICS[name].columns:
        present = EVERY - {column}
        with pytest.raises(UsageError) as caught:
            require([METRICS[name]], present)
        assert repr(column) in caught.value.problem
        hint = "corpus must bring it" if column not in COLUMNS else COLUMNS[column].flag or "--student"
        assert hint in caught.value.hint
        assert caught.value.exit_code == 2
    require([METRICS[name]], EVERY)


@pytest.mark.parametrize("name", sorted(set(METRICS) - _NOT_LISTS))
def test_columns_of_another_type_are_refused_by_name(name: str) -> None:
    wrong: dict[str, pl.DataType] = dict.fromkeys(METRICS[name].columns, pl.Float32())
    with pytest.raises(UsageError, match=f"'{name}'") as caught:
        check_values([METRICS[name]], wrong)
    assert "Float32" in caught.value.hint


@pytest.mark.parametrize("name", METRICS)
def test_documented(name: str) -> None:
    metric = METRICS[name]
    assert metric.direction == DIRECTIONS[name]
    assert metric.meaning
    assert "arXiv" in metric.source
    documentation = getattr(tm, name if name not in EXTRAS else "divergence").__doc__ or ""
    assert ">>>" in documentation
    assert "arXiv" in documentation
    assert "float64 per row" in documentation
