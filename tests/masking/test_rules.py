"""Every rule of `mask` against plain float64 Python on generated tables, hand-worked cases, ties, draws and invariances."""

from __future__ import annotations

import hashlib
import itertools
import math
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from typing import Any, Literal

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.helpers.score_tables import float32
from trajscore.errors import UsageError
from trajscore.masking import rules
from trajscore.masking.mask import mask
from trajscore.masking.noise import exponential_noise
from trajscore.masking.normalising import ColumnRange, corpus_range, normalised
from trajscore.masking.rules import BY, DECOUPLED, RULES, Rule, RuleSettings
from trajscore.metrics.sentence_classes import probability_leads

Row = dict[str, Any]
OPTIONS: dict[str, dict[str, Any]] = {
    "divergence": {"by": "js"},
    "confidence_gap": {"tau": 0.5},
    "teacher_sentences": {"beta": 0.2},
    "surprisal_band": {"low": 0.5, "high": 2.0},
    "opd_reward": {"bound": 2.5, "decay": 0.875, "importance": True},
}
TOKEN_COLUMNS = (
    "student_entropy", "student_surprisal", "teacher_entropy", "teacher_surprisal", "distilled_surprisal",
    "kl_student_teacher", "kl_teacher_student", "js",
)  # fmt: skip
SHARES = [1e-300, 0.01, 0.29, 1 / 3, 0.5, 0.999, 1.0]

_value = st.sampled_from([0.0, 0.25, 1.0, 1.0, 3.0]) | st.floats(0, 20, width=32)


@st.composite
def _rows(draw: st.DrawFn) -> list[Row]:
    rows = []
    for number in range(draw(st.integers(1, 5))):
        n = draw(st.integers(1, 14))
        lists = {name: draw(st.lists(_value, min_size=n, max_size=n)) for name in TOKEN_COLUMNS}
        sentence = sorted(draw(st.lists(st.integers(0, 3), min_size=n, max_size=n)))
        logprobs = st.lists(st.none() | st.floats(-4, 0, width=32), min_size=4, max_size=4)
        gaps = draw(st.lists(st.integers(1, 3), min_size=n, max_size=n))
        positions = list(itertools.accumulate(gaps))
        rows.append(
            {
                "id": f"id-{number}",
                "prompt_id": "p",
                "teacher": draw(st.sampled_from(["T", None])),
                "status": "ok",
                "n_tokens": n,
                "correct": draw(st.sampled_from([True, False, None])),
                "input_ids": [1000 + place % 2 for place in range(positions[-1] + draw(st.integers(1, 3)))],
                "positions": positions,
                "sentence": sentence,
                "student_sentence_logprob": draw(logprobs),
                "teacher_sentence_logprob": draw(logprobs),
                "phase": draw(st.lists(st.integers(0, 2), min_size=n, max_size=n)),
                "sampler_logprob": [-value for value in draw(st.lists(_value, min_size=n, max_size=n))],
                **lists,
            }
        )
    return rows


_FLOATS = dict.fromkeys(
    (*TOKEN_COLUMNS, "sampler_logprob", "student_sentence_logprob", "teacher_sentence_logprob"), pl.List(pl.Float32)
)
SCHEMA: dict[str, Any] = {
    **dict.fromkeys(("id", "prompt_id", "teacher", "status"), pl.String),
    "n_tokens": pl.UInt32,
    "correct": pl.Boolean,
    "input_ids": pl.List(pl.Int32),
    "positions": pl.List(pl.UInt32),
    "sentence": pl.List(pl.UInt32),
    "phase": pl.List(pl.UInt8),
    **_FLOATS,
}


def frame(rows: list[Row]) -> pl.LazyFrame:
    """Rows as polars reads them from a part."""
    return pl.DataFrame([{name: row.get(name) for name in SCHEMA} for row in rows], schema=SCHEMA).lazy()


def _percentile(values: list[float]) -> float:
    ordered = sorted(values)
    place = Fraction(98, 100) * (len(ordered) - 1)
    below = math.floor(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (ordered[above] - ordered[below]) * float(place - below)


def _normalised(rows: list[Row], row: Row, column: str, scope: str, clip: bool) -> list[float]:
    pool = row[column] if scope == "trajectory" else [value for each in rows for value in each[column]]
    low, high = min(pool), _percentile(pool) if clip else max(pool)
    if high <= low:
        return [0.0] * len(row[column])
    return [(min(value, high) - low) / (high - low) for value in row[column]]


def _soft_or(rows: list[Row], row: Row, scope: str) -> list[float]:
    h = _normalised(rows, row, "student_entropy", scope, True)
    d = _normalised(rows, row, "kl_student_teacher", scope, False)
    return [a + b - a * b for a, b in zip(h, d, strict=True)]


def _q3(rows: list[Row], row: Row, scope: str) -> list[float]:
    h = _normalised(rows, row, "student_entropy", scope, True)
    return [k * (1 - a) for a, k in zip(h, row["kl_teacher_student"], strict=True)]


def _gate(rows: list[Row], row: Row, scope: str) -> list[float]:
    pairs = zip(row["student_entropy"], row["teacher_entropy"], strict=True)
    return [1 / (1 + math.exp(-(s - t) / 0.5)) for s, t in pairs]


def _of_teacher(rows: list[Row], row: Row, scope: str) -> list[float]:
    flags = []
    for index in row["sentence"]:
        t, s = row["teacher_sentence_logprob"][index], row["student_sentence_logprob"][index]
        flags.append(float(t is not None and s is not None and math.exp(t) - math.exp(s) > 0.2))
    return flags


def _reward(rows: list[Row], row: Row, scope: str) -> list[float]:
    values = []
    for place, s, t, q in zip(
        row["positions"], row["student_surprisal"], row["teacher_surprisal"], row["sampler_logprob"], strict=True
    ):
        values.append(
            max(-2.5, min(2.5, s - t)) * min(2.0, math.exp(-s) / math.exp(q)) * 0.875 ** (place - row["positions"][0])
        )
    return values


def _opener(rows: list[Row], row: Row, scope: str) -> list[float]:
    sums = [0.0, *itertools.accumulate(row["student_entropy"])]
    return [float(not number or before < 0.1 * sums[-1]) for number, before in enumerate(sums[:-1])]


def _conflict(rows: list[Row], row: Row, scope: str) -> list[float]:
    """Token by token, in both directions, as long as some row of the other outcome agrees."""

    def said(each: Row) -> list[int]:
        return [each["input_ids"][place] for place in each["positions"]]

    weights = [1.0] * len(row["positions"])
    if row["correct"] is None:
        return weights
    others = [said(each) for each in rows if each["correct"] is (not row["correct"])]
    for way in (1, -1):
        own = said(row)[::way]
        for number, token in enumerate(own):
            if not any(number < len(each) and each[::way][number] == token for each in others):
                break
            weights[number if way == 1 else -1 - number] *= 2.0 if row["correct"] else 0.0
    return weights


VALUES: dict[str, Callable[[list[Row], Row, str], list[float]]] = {
    "all": lambda rows, row, scope: [1.0] * len(row["positions"]),
    "answers": lambda rows, row, scope: [float(p == 2) for p in row["phase"]],
    "thinking": lambda rows, row, scope: [float(p in (0, 1)) for p in row["phase"]],
    "prefix": lambda rows, row, scope: [1.0] * len(row["positions"]),
    "opener": _opener,
    "probable": lambda rows, row, scope: [float(math.exp(-s) > 0.1) for s in row["student_surprisal"]],
    "probable_soft": lambda rows, row, scope: [math.exp(-s) for s in row["student_surprisal"]],
    "yet_to_learn": lambda rows, row, scope: [
        float(s - d <= 0) for s, d in zip(row["student_surprisal"], row["distilled_surprisal"], strict=True)
    ],
    "conflict": _conflict,
    "entropy": lambda rows, row, scope: row["student_entropy"],
    "entropy_sample": lambda rows, row, scope: row["student_entropy"],
    "divergence": lambda rows, row, scope: row["js"],
    "soft_or": _soft_or,
    "soft_or_sample": _soft_or,
    "q3": _q3,
    "confidence_gap": _gate,
    "teacher_sentences": _of_teacher,
    "surprisal_band": lambda rows, row, scope: [float(0.5 <= s <= 2.0) for s in row["student_surprisal"]],
    "opd_reward": _reward,
}
"""Each rule by loops over lists."""


def _size(keep: float, n: int) -> int:
    return max(1, math.floor(Fraction(str(keep)) * n))


def _kept(labelled: Row, row: Row) -> list[bool]:
    """Which scored tokens have a label, after everything else about labels was checked."""
    expected = [-100] * len(row["input_ids"])
    flags = [labelled["labels"][place] != -100 for place in row["positions"]]
    for place, flag in zip(row["positions"], flags, strict=True):
        if flag:
            expected[place] = row["input_ids"][place]
    assert labelled["labels"] == expected
    assert labelled["input_ids"] == row["input_ids"]
    return flags


def _earliness(seed: int, row: Row, weights: list[float]) -> list[float]:
    """What a draw without replacement ranks by, in whole-number arithmetic: the largest are drawn."""
    order = []
    state = int.from_bytes(hashlib.blake2b(f"{seed}\0{row['id']}".encode(), digest_size=8).digest(), "little")
    for place, weight in zip(row["positions"], weights, strict=True):
        z = (state + (place + 1) * 0x9E3779B97F4A7C15) % 2**64
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) % 2**64
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) % 2**64
        uniform = (((z ^ (z >> 31)) >> 11) + 0.5) / 2**53
        order.append(math.log(uniform) / weight if weight > 0 else -math.inf)
    return order


def _check_row(rule: str, values: list[float], flags: list[bool], keep: float | None) -> None:
    if not RULES[rule].takes_share:
        assert flags == [RULES[rule].soft or value == 1 for value in values]
        return
    assert keep is not None
    assert sum(flags) == _size(keep, len(values))
    kept = [value for value, flag in zip(values, flags, strict=True) if flag]
    left = [value for value, flag in zip(values, flags, strict=True) if not flag]
    # A value that comes from one column as it is has no rounding error.
    exact = not RULES[rule].clipped and RULES[rule].kind == "share"
    slack = 0.0 if exact or not left or math.isinf(max(left)) else 1e-9 * max(1.0, abs(max(left)))
    assert not left or min(kept) >= max(left) - slack


def _options(rule: str, keep: float) -> dict[str, Any]:
    return {**OPTIONS.get(rule, {}), **({"keep": keep} if RULES[rule].takes_share else {})}


def test_every_rule_has_an_oracle() -> None:
    assert VALUES.keys() == RULES.keys()


@settings(max_examples=20, deadline=None)
@given(rows=_rows(), keep=st.sampled_from(SHARES), scope=st.sampled_from(["corpus", "trajectory"]))
def test_rules_equal_plain_python(rows: list[Row], keep: float, scope: Literal["corpus", "trajectory"]) -> None:
    """All of them on the same rows: what costs time is to draw rows."""
    for rule in RULES:
        _check_rule(rule, rows, keep, scope)


def _check_rule(rule: str, rows: list[Row], keep: float, scope: Literal["corpus", "trajectory"]) -> None:
    options = _options(rule, keep)
    result = mask(frame(rows), rule, scope=scope, seed=7, **options)
    masked = {row["id"]: row for row in result.frame.collect().to_dicts()}
    assert result.rows_in == len(rows) == result.rows_masked + sum(result.dropped.values())
    kept_tokens = 0
    for row in rows:
        values = VALUES[rule](rows, row, scope)
        if RULES[rule].kind == "tokens" and not any(values):
            assert row["id"] not in masked
            continue
        flags = _kept(masked[row["id"]], row)
        if RULES[rule].kind == "draw":
            values = _earliness(7, row, values)
        _check_row(rule, values, flags, options.get("keep"))
        if rule == "prefix":
            assert flags == sorted(flags, reverse=True)
        kept_tokens += sum(flags)
        if RULES[rule].soft:
            weights = masked[row["id"]]["loss_weight"]
            expected = [0.0] * len(row["input_ids"])
            for place, value in zip(row["positions"], values, strict=True):
                expected[place] = value
            assert weights == pytest.approx(expected, rel=1e-6)
        else:
            assert "loss_weight" not in masked[row["id"]]
    assert result.tokens_kept == kept_tokens
    assert result.dropped.get("nothing_kept", 0) == len(rows) - len(masked)


@pytest.mark.parametrize("rule", [name for name in RULES if RULES[name].takes_share and not RULES[name].clipped])
def test_the_oracle_rejects_another_mask(rule: str) -> None:
    """The control: the smallest in place of the largest, one too many, one too few."""
    values = [0.0, 1.0, 2.0, 3.0]
    for flags in ([True, True, False, False], [False, True, True, True], [False, False, False, True]):
        with pytest.raises(AssertionError):
            _check_row(rule, values, flags, 0.5)


@pytest.fixture(scope="module")
def drawn() -> list[Row]:
    """Rows in which every rule tells tokens apart and some first token is kept, with three entropies far above the others."""
    draw = np.random.default_rng(4)
    rows = []
    for number in range(6):
        n = 30 + number
        lists = {name: float32(list(draw.exponential(size=n))) for name in TOKEN_COLUMNS}
        if number < 3:
            lists["student_entropy"][-1 - number] += 40.0
        else:
            for column in ("kl_student_teacher", "kl_teacher_student", "js"):
                lists[column][0] = 9.0
            lists["student_entropy"][0] = 0.125 if number == 3 else 5.0
        row = _row(number, **lists) | {
            "correct": number % 2 == 0,
            "sampler_logprob": [-2.0 * draw.random() for _ in range(n)],
        }
        row |= {
            "sentence": sorted(int(each) for each in draw.integers(0, 4, n)),
            "phase": [0] * 7 + [1] + [2] * (n - 8) if number else [2] * n,
        }
        row |= {"teacher_sentence_logprob": list(np.log([0.65, 0.5, 0.3, 0.9]))}
        row |= {"student_sentence_logprob": list(np.log([0.2, 0.35, 0.4, 0.88]))}
        # Four tokens alike at the start, two at the end.
        ends = [*range(100, 104), *(1000 * number + place for place in range(n - 6)), 200, 201]
        rows.append(row | {"input_ids": [1, *ends], "sampler_logprob": float32(row["sampler_logprob"])})
    return rows


_LOWEST = {"share": -math.inf, "draw": 0.0, "tokens": False, "weights": 0.0}
_OTHER_SIDE: dict[str, Callable[[pl.Expr], pl.Expr]] = {
    "share": lambda value: -value,
    "draw": lambda value: 1 / value,
    "tokens": lambda value: ~value,
    "weights": lambda value: 1 - value,
}


def _spoilt(rule: Rule, how: str) -> Callable[[RuleSettings, Any], pl.Expr]:
    """The rule's values, wrong."""

    def value(settings: RuleSettings, ranges: Any) -> pl.Expr:
        made, token = rule.value(settings, ranges), pl.element()
        if rule.name == "prefix":
            # It ranks all alike, so that places decide.
            made = made.list.eval(-pl.int_range(pl.len()).cast(pl.Float64))
        if how == "first missing":
            lowest = pl.lit(_LOWEST[rule.kind])
            return made.list.eval(pl.when(pl.int_range(pl.len()) == 0).then(lowest).otherwise(token))
        if how == "a place too late":
            return made.list.eval(token.shift(1).fill_null(token.first()))
        return made.list.eval(_OTHER_SIDE[rule.kind](token))

    return value


_NOTICED = (AssertionError, KeyError)
"""Wrong labels, or a row that is missing."""


@pytest.mark.parametrize("name", RULES)
def test_the_oracles_notice_values_that_are_wrong(name: str, drawn: list[Row], monkeypatch: pytest.MonkeyPatch) -> None:
    """The control: a rule that leaves the first token out, takes its neighbour's value, keeps the other side or share."""
    rule, counted = RULES[name], rules._count
    _check_rule(name, drawn, 0.3, "corpus")
    for how in ("first missing", "a place too late", "other side"):
        if how == "a place too late" and name in ("all", "prefix"):
            continue  # values that are all alike, or in order, are so a place further on
        monkeypatch.setitem(RULES, name, replace(rule, value=_spoilt(rule, how)))
        with pytest.raises(_NOTICED):
            _check_rule(name, drawn, 0.3, "corpus")
    monkeypatch.setitem(RULES, name, rule)
    if rule.takes_share:
        for wrong in (lambda keep: counted(1 - keep), lambda keep: counted(keep) - 1):
            monkeypatch.setattr(rules, "_count", wrong)
            with pytest.raises(_NOTICED):
                _check_rule(name, drawn, 0.3, "corpus")


WRONG_PARAMETERS: dict[str, list[dict[str, Any]]] = {
    "opener": [{"share": 0.2}],
    "divergence": [{"by": "kl_student_teacher"}],
    "soft_or": [{"clip": 1.0}],
    "soft_or_sample": [{"clip": 1.0}],
    "q3": [{"clip": 1.0}],
    "confidence_gap": [{"tau": 1.0}],
    "teacher_sentences": [{"beta": 0.1}],
    "probable": [{"tau": 0.2}],
    "yet_to_learn": [{"tau": 0.1}],
    "surprisal_band": [{"low": 0.4}, {"high": 1.5}],
    "opd_reward": [{"bound": 2.0}, {"decay": 0.8}, {"importance": False}, {"signed": False}],
}


def test_the_oracles_notice_other_parameters(drawn: list[Row], monkeypatch: pytest.MonkeyPatch) -> None:
    """The control: every parameter of every rule with another value, as it was told or as its default."""
    told = {name: {key for changed in each for key in changed} for name, each in WRONG_PARAMETERS.items()}
    assert told == {name: {each.name for each in rule.parameters} for name, rule in RULES.items() if rule.parameters}
    for name, each in WRONG_PARAMETERS.items():
        for changed in each:
            rule, own = RULES[name], OPTIONS.get(name, {})
            (key,) = changed
            if key in own:
                monkeypatch.setitem(OPTIONS, name, {**own, **changed})
            others = [replace(one, default=changed.get(one.name, one.default)) for one in rule.parameters]
            monkeypatch.setitem(RULES, name, replace(rule, parameters=tuple(others)))
            with pytest.raises(_NOTICED):
                _check_rule(name, drawn, 0.3, "corpus")
            monkeypatch.undo()


def _row(number: int = 0, **lists: Any) -> Row:
    n = len(next(iter(lists.values())))
    base = {"id": f"id-{number}", "prompt_id": "p", "status": "ok", "n_tokens": n, "positions": list(range(1, n + 1))}
    return {**base, "input_ids": list(range(n + 1)), **lists}


def _mask(rule: str, rows: list[Row], **options: Any) -> list[list[int]]:
    """Kept scored tokens of each row, 0-based."""
    masked = mask(frame(rows), rule, **options).frame.collect()
    return [[i - 1 for i, label in enumerate(labels) if label != -100] for labels in masked["labels"].to_list()]


def test_hand_computed_soft_or() -> None:
    """Entropies 0..4 and 100: the percentile is 4 + (100 - 4) * 0.9 = 90.4, so h = 0, 1/90.4, ... and 1."""
    row = _row(student_entropy=[0.0, 1.0, 2.0, 3.0, 4.0, 100.0], kl_student_teacher=[8.0, 0.0, 2.0, 0.0, 0.0, 0.0])
    result = mask(frame([row]), "soft_or", keep=0.5)
    assert result.ranges["student_entropy"].high == pytest.approx(90.4)
    assert result.ranges["kl_student_teacher"] == ColumnRange(0.0, 8.0)
    # d = 1, 0, 0.25, 0, 0, 0: scores 1, 0.011, 0.266, 0.033, 0.044, 1
    assert _mask("soft_or", [row], keep=0.5) == [[0, 2, 5]]


def test_hand_computed_shares_of_a_trajectorys_own_range() -> None:
    """Of 0, 1, 2, 4 and 50 the quantile 0.9 is 4 + (50 - 4) * 0.6 = 31.6; without a clip the range ends at 50."""
    table = pl.DataFrame({"x": [[4.0, 0.0, 50.0, 1.0, 2.0]]})
    clipped = table.select(normalised("x", 0.9)).item().to_list()
    assert clipped == pytest.approx([4 / 31.6, 0, 1, 1 / 31.6, 2 / 31.6])
    assert table.select(normalised("x")).item().to_list() == pytest.approx([0.08, 0, 1, 0.02, 0.04])
    # It begins at the smallest value, and where all are alike there is nothing to tell apart.
    others = pl.DataFrame({"x": [[2.0, 4.0, 3.0], [5.0, 5.0, 5.0], [7.0]]})
    for quantile in (1.0, 0.98):
        first, *alike = others.select(normalised("x", quantile)).to_series().to_list()
        assert first == pytest.approx([0, 1, 0.5 if quantile == 1 else 1 / 1.96])
        assert alike == [[0, 0, 0], [0]]


def test_hand_computed_q3() -> None:
    """A confident token with a divergence of 2 goes before an uncertain one with 9, whose 1 - h is 0."""
    row = _row(student_entropy=[0.0, 5.0], kl_teacher_student=[2.0, 9.0])
    assert _mask("q3", [row], keep=0.5) == [[0]]
    row = _row(student_entropy=[0.0, 0.0], kl_teacher_student=[2.0, 9.0])
    assert _mask("q3", [row], keep=0.5) == [[1]]


def test_hand_computed_gate() -> None:
    row = _row(student_entropy=[1.0, 1.0, 0.0], teacher_entropy=[1.0, 0.0, 200.0])
    weights = mask(frame([row]), "confidence_gap").frame.collect()["loss_weight"].item().to_list()
    assert weights == float32([0.0, 0.5, 1 / (1 + math.exp(-1)), 1 / (1 + math.exp(200))])
    weights = mask(frame([row]), "confidence_gap", tau=1e-300).frame.collect()["loss_weight"].item().to_list()
    assert weights == [0.0, 0.5, 1.0, 0.0]


def test_hand_computed_reward() -> None:
    """Probabilities 1/4, 1/2, 1/2 under the student and 1/2, 1/2, 1/8 under the teacher: ln 2, 0, -ln 4."""
    ln2 = math.log(2)
    row = _row(student_surprisal=[2 * ln2, ln2, ln2], teacher_surprisal=[ln2, ln2, 3 * ln2])

    def weights(row: Row, **options: Any) -> list[float]:
        return list(mask(frame([row]), "opd_reward", **options).frame.collect()["loss_weight"].item().to_list()[1:])

    assert weights(row) == float32([ln2, 0.0, -2 * ln2])
    assert weights(row, bound=ln2) == float32([ln2, 0.0, -ln2])
    assert weights(row, signed=False) == float32([ln2, 0.0, 0.0])
    assert weights(row, decay=0.5) == float32([ln2, 0.0, -ln2 / 2])
    # The sampler gave 1/4, 1/8 and 1: ratios 1, 4 (at most 2) and 1/2.
    sampled = {**row, "sampler_logprob": [-2 * ln2, -3 * ln2, 0.0], "student_surprisal": [2 * ln2, ln2, ln2]}
    assert weights({**sampled, "teacher_surprisal": [ln2, 0.0, 3 * ln2]}, importance=True) == float32(
        [ln2, 2 * ln2, -ln2]
    )
    assert mask(frame([row]), "opd_reward").metadata["signed"]
    assert not mask(frame([row]), "opd_reward", signed=False).metadata["signed"]


@pytest.mark.parametrize("rule", [name for name in RULES if RULES[name].soft])
def test_only_a_rule_that_is_declared_signed_gives_negative_weights(rule: str) -> None:
    row = _row(0, **{name: [1.0, 2.0, 0.5] for name in TOKEN_COLUMNS} | {"teacher_surprisal": [2.0, 0.0, 1.0]})
    found = mask(frame([row]), rule).frame.collect()["loss_weight"].item()
    assert (found.min() < 0) == RULES[rule].signed


@pytest.mark.parametrize("rule", [name for name in RULES if RULES[name].kind == "share"])
def test_ties_go_to_the_earlier_token(rule: str) -> None:
    row = _row(0, **{name: [1.0] * 7 for name in TOKEN_COLUMNS})
    assert _mask(rule, [row], keep=0.5) == [[0, 1, 2]]


@pytest.mark.parametrize("rule", [name for name in RULES if RULES[name].takes_share])
def test_one_token_and_all_tokens(rule: str) -> None:
    one = _row(0, **{name: [0.5] for name in TOKEN_COLUMNS})
    more = _row(1, **{name: [0.5, 0.0, 2.0] for name in TOKEN_COLUMNS})
    assert _mask(rule, [one, more], keep=1e-9)[0] == [0]
    assert [len(kept) for kept in _mask(rule, [one, more], keep=1e-9)] == [1, 1]
    assert _mask(rule, [one, more], keep=1.0) == [[0], [0, 1, 2]]


def test_shares_are_meant_in_decimal() -> None:
    """0.29 * 100 is 28.999999999999996 in binary."""
    row = _row(student_entropy=[float(i) for i in range(100)])
    assert len(_mask("entropy", [row], keep=0.29)[0]) == 29


def test_a_draw_depends_on_seed_id_and_position_only() -> None:
    draw = np.random.default_rng(0)
    rows = [_row(n, student_entropy=list(draw.exponential(size=20))) for n in range(30)]
    first = _mask("entropy_sample", rows, keep=0.3, seed=1)
    assert first == _mask("entropy_sample", rows, keep=0.3, seed=1)
    assert first == _mask("entropy_sample", rows[::-1], keep=0.3, seed=1)[::-1]
    assert first[7:9] == _mask("entropy_sample", rows[7:9], keep=0.3, seed=1)
    assert first != _mask("entropy_sample", rows, keep=0.3, seed=2)
    assert (
        len(
            {
                tuple(kept)
                for kept in _mask("entropy_sample", [_row(n, student_entropy=[1.0] * 20) for n in range(9)], keep=0.3)
            }
        )
        > 1
    )


def test_a_draw_is_the_same_on_every_machine() -> None:
    """Kept as numbers: another hash or generator would change everybody's masks."""
    rows = [_row(n, student_entropy=[1.0, 2.0, 3.0, 4.0, 5.0, 6.0]) for n in range(3)]
    assert _mask("entropy_sample", rows, keep=0.5, seed=0) == [[0, 2, 5], [2, 3, 5], [2, 3, 5]]


def test_noise_is_that_of_the_generator_in_whole_numbers() -> None:
    row = _row(0, student_entropy=[1.0] * 40)
    found = frame([row]).select(exponential_noise(7)).collect().item().to_list()
    assert found == pytest.approx([-each for each in _earliness(7, row, [1.0] * 40)], rel=1e-13)


def test_draws_have_the_probabilities_of_sampling_without_replacement() -> None:
    """Pairs of 4 tokens with weights 1, 2, 3, 4, over 40,000 trajectories; a control with equal weights must be far away."""
    weights, count = [1.0, 2.0, 3.0, 4.0], 40_000
    rows = [_row(n, student_entropy=weights) for n in range(count)]
    found = Counter(tuple(kept) for kept in _mask("entropy_sample", rows, keep=0.5))

    def distance(probability: Callable[[int, int], float]) -> float:
        pairs = itertools.combinations(range(4), 2)
        return max(abs(found[a, b] / count - probability(a, b) - probability(b, a)) for a, b in pairs)

    total = sum(weights)
    assert distance(lambda a, b: weights[a] / total * weights[b] / (total - weights[a])) < 0.01
    assert distance(lambda a, b: 1 / 12) > 0.1


def test_tokens_without_entropy_are_drawn_last() -> None:
    rows = [_row(n, student_entropy=[0.0, 0.0, 1e-30, 0.0]) for n in range(20)]
    assert _mask("entropy_sample", rows, keep=0.25) == [[2]] * 20
    assert _mask("entropy_sample", rows, keep=0.5) == [[0, 2]] * 20


def test_hand_computed_parts_of_the_divergence() -> None:
    """q = 1/2 and p = 1/4 over three words: 1/2 1/4 1/4 against 1/4 1/2 1/4."""
    pairs = [(0.5, 0.25), (0.25, 0.5), (0.25, 0.25)]
    whole = sum(q * math.log(q / p) for q, p in pairs)
    written = 0.5 * math.log(2) + 0.5 * math.log(0.5 / 0.75)
    others = sum(q / 0.5 * math.log((q / 0.5) / (p / 0.75)) for q, p in pairs[1:])
    row = _row(
        student_surprisal=[math.log(4), 0.0], teacher_surprisal=[math.log(2), 0.0], kl_teacher_student=[whole, 0.0]
    )
    for by, expected in (("tckd", written), ("nckd", others)):
        settings = RuleSettings("divergence", keep=0.5, given={"by": by})
        values = frame([row]).select(settings.definition.value(settings, {})).collect().item().to_list()
        assert values == pytest.approx([expected, 0.0], abs=1e-6)
        assert _mask("divergence", [row], keep=0.5, by=by) == [[0]]
    assert whole == pytest.approx(written + 0.5 * others)


@pytest.mark.parametrize("by", [name for name in BY if name not in DECOUPLED])
def test_divergence_reads_the_column_that_is_named(by: str) -> None:
    options = RuleSettings("divergence", keep=0.5, given={"by": by})
    assert options.columns == (by,)
    rows = frame([_row(student_entropy=[0.0, 0.0])]).with_columns(pl.lit([0.25, 0.5], pl.List(pl.Float32)).alias(by))
    assert mask(rows, "divergence", keep=0.5, by=by).frame.collect()["labels"].item().to_list() == [-100, -100, 2]


@settings(max_examples=100, deadline=None)
@given(
    lists=st.lists(
        st.lists(
            st.floats(-(2.0**100), 2.0**100, width=32) | st.sampled_from([0.0, -0.0, 1.0, 1.0 + 2.0**-23]), max_size=70
        ),
        max_size=6,
    )
)
def test_corpus_ranges_are_exact(lists: list[list[float]]) -> None:
    rows = pl.LazyFrame({"x": lists}, schema={"x": pl.List(pl.Float32)})
    parts = [rows.slice(first, 2) for first in range(0, max(1, len(lists)), 2)]
    values = [value for each in lists for value in each]
    if not values:
        assert corpus_range(parts, "x", 0.98) is None
        return
    clipped, full = corpus_range(parts, "x", 0.98), corpus_range(parts, "x")
    assert full == ColumnRange(min(values), max(values))
    assert clipped is not None
    assert clipped.low == min(values)
    assert clipped.high == pytest.approx(np.quantile(np.array(values, np.float64), 0.98), rel=1e-9, abs=1e-15)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rule": "entopy", "keep": 0.5}, "entropy"),
        ({"rule": "entropy"}, "--keep"),
        ({"rule": "entropy", "keep": 0.0}, "above 0"),
        ({"rule": "entropy", "keep": 1.5}, "at most 1"),
        ({"rule": "entropy", "keep": math.nan}, "--keep"),
        ({"rule": "all", "keep": 0.5}, "no --keep"),
        ({"rule": "entropy", "keep": 0.5, "beta": 0.1}, "no parameter 'beta'"),
        ({"rule": "soft_or", "keep": 0.5, "scope": "batch"}, "trajectory"),
        ({"rule": "divergence", "keep": 0.5, "by": "jsd"}, "js"),
        ({"rule": "confidence_gap", "tau": 0.0}, "above 0"),
        ({"rule": "confidence_gap", "tau": math.inf}, "--tau"),
        ({"rule": "teacher_sentences", "beta": 1.0}, "--beta"),
        ({"rule": "surprisal_band"}, "--low or --high"),
        ({"rule": "surprisal_band", "low": 2.0, "high": 1.0}, "above --high"),
        ({"rule": "surprisal_band", "low": -1.0}, "--low"),
    ],
)
def test_wrong_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        mask(frame([]), **options)
    assert caught.value.exit_code == 2
    assert caught.value.hint


@pytest.mark.parametrize("rule", RULES.values(), ids=lambda rule: rule.name)
def test_documented(rule: Any) -> None:
    assert rule.meaning
    assert rule.source
    assert (rule.value.__doc__ or "").strip()
    assert rule.clipped.keys() <= set(rule.columns)
    assert all(each.sentence for each in rule.parameters)


def test_hand_computed_runs() -> None:
    """Correct 5 6 7 9, wrong 5 6 8 9 9: from the start 5 6, from the end 9; the wrong row's second last 9 is none."""
    rows = [
        {**_row(0, student_entropy=[0.0] * 4), "input_ids": [1, 5, 6, 7, 9], "correct": True},
        {**_row(1, student_entropy=[0.0] * 5), "input_ids": [1, 5, 6, 8, 9, 9], "correct": False},
        {**_row(2, student_entropy=[0.0]), "input_ids": [1, 5], "correct": None},
        {**_row(3, student_entropy=[0.0]), "input_ids": [1, 5], "correct": True, "prompt_id": "another"},
    ]
    weights = mask(frame(rows), "conflict").frame.collect()["loss_weight"].to_list()
    assert weights == [[0, 2, 2, 1, 2], [0, 0, 0, 1, 1, 0], [0, 1], [0, 1]]
    # Said by both, whole: both runs cover it, and the factors multiply.
    same = [{**_row(n, student_entropy=[0.0]), "input_ids": [1, 5], "correct": n == 0} for n in range(2)]
    assert mask(frame(same), "conflict").frame.collect()["loss_weight"].to_list() == [[0, 4], [0, 0]]
    with pytest.raises(UsageError, match="correct"):
        mask(frame(rows).drop("correct"), "conflict")


def test_hand_computed_openers() -> None:
    row = _row(student_entropy=[0.5, 0.5, 1.0, 8.0, 0.0])
    assert _mask("opener", [row]) == [[0, 1]]  # 0.5 + 0.5 of 10 is the tenth
    assert _mask("opener,share=0.05", [row]) == [[0]]
    assert _mask("opener,share=1", [row]) == [[0, 1, 2, 3]]
    assert _mask("opener", [_row(student_entropy=[0.0, 0.0])]) == [[0]]


def test_hand_computed_shares_and_thresholds() -> None:
    row = _row(student_surprisal=[math.log(2), math.log(10), 0.0], distilled_surprisal=[0.5, 3.0, 0.0])
    assert _mask("probable", [row]) == [
        [0, 2]
    ]  # a probability of exactly tau, or a hair below as float32, is not enough
    assert _mask("probable,tau=0.5", [_row(student_surprisal=[0.0, 0.75])]) == [[0]]
    assert _mask("yet_to_learn", [row]) == [[1, 2]]
    assert _mask("yet_to_learn,tau=-0.1", [row]) == [[1]]
    assert _mask("prefix", [_row(student_entropy=[0.0] * 5)], keep=0.5) == [[0, 1]]


LN2 = math.log(2)
_ENTROPIES = {"student_entropy": [0.5, 2.0, 1.0, 0.0]}
_TWO_MODELS = {
    "student_surprisal": [LN2, 2 * LN2],
    "teacher_surprisal": [0.0, 3 * LN2],
    "distilled_surprisal": [0.0, 3 * LN2],
}
_BOTH = {
    "student_entropy": [1.0, 0.0, 2.0],
    "kl_student_teacher": [0.0, 4.0, 1.0],
    "kl_teacher_student": [1.0, 2.0, 8.0],
}
BY_HAND: dict[str, tuple[Row, dict[str, Any], list[int] | list[float]]] = {
    "all": (_ENTROPIES, {}, [0, 1, 2, 3]),
    "answers": ({"phase": [0, 0, 1, 2, 2]}, {}, [3, 4]),
    "thinking": ({"phase": [0, 0, 1, 2, 2]}, {}, [0, 1, 2]),
    "prefix": (_ENTROPIES, {"keep": 0.75}, [0, 1, 2]),
    # A tenth of 3.5 is 0.35, which the first token holds.
    "opener": (_ENTROPIES, {}, [0]),
    "entropy": (_ENTROPIES, {"keep": 0.5}, [1, 2]),
    # Three of four are drawn, and what has no entropy comes last.
    "entropy_sample": (_ENTROPIES, {"keep": 0.75}, [0, 1, 2]),
    "divergence": ({"js": [0.25, 0.5, 0.125]}, {"by": "js", "keep": 0.34}, [1]),
    # h = 1/2, 0 and 1 and d = 0, 1 and 1/4: 1/2, 1 and 1.
    "soft_or": (_BOTH, {"keep": 0.67}, [1, 2]),
    # Two of three are drawn, one of which has the score 0.
    "soft_or_sample": ({**_BOTH, "kl_student_teacher": [0.0, 0.0, 1.0]}, {"keep": 0.67}, [0, 2]),
    # 1 - h = 1/2, 1 and 0: 1/2, 2 and 0.
    "q3": (_BOTH, {"keep": 0.34}, [1]),
    "confidence_gap": ({"student_entropy": [1.0, 0.0], "teacher_entropy": [1.0, LN2]}, {}, [0.5, 1 / 3]),
    # Of probabilities 0.5 against 0.25, 0.25 against 0.5, and 0.5 against nothing.
    "teacher_sentences": (
        {
            "sentence": [0, 0, 1, 2],
            "teacher_sentence_logprob": [-LN2, -2 * LN2, -LN2],
            "student_sentence_logprob": [-2 * LN2, -LN2, None],
        },
        {},
        [0, 1],
    ),
    "probable": ({"student_surprisal": [LN2, 3.0, 0.0]}, {}, [0, 2]),
    "probable_soft": (_TWO_MODELS, {}, [0.5, 0.25]),
    "yet_to_learn": (_TWO_MODELS, {}, [1]),
    "conflict": ({"student_entropy": [0.0, 0.0]}, {}, [1.0, 1.0]),
    "surprisal_band": ({"student_surprisal": [0.25, 0.5, 2.0, 2.25]}, {"low": 0.5, "high": 2.0}, [1, 2]),
    "opd_reward": (_TWO_MODELS, {}, [LN2, -LN2]),
}
"""A row, settings, and the tokens that are kept, or of soft rules the weights; `conflict` with two rows stands above."""


def test_every_rule_has_a_case_by_hand() -> None:
    assert BY_HAND.keys() == RULES.keys()


@pytest.mark.parametrize("name", BY_HAND)
def test_by_hand(name: str) -> None:
    columns, options, expected = BY_HAND[name]
    row = _row(**columns) | ({"correct": True} if name == "conflict" else {})
    if RULES[name].soft:
        assert mask(frame([row]), name, **options).frame.collect()["loss_weight"].item().to_list() == float32(
            [0, *expected]
        )
    else:
        assert _mask(name, [row], **options) == [expected]


@pytest.mark.parametrize("name", RULES)
def test_empties_ones_and_constants(name: str, drawn: list[Row]) -> None:
    """Rows of one token and of tokens that are all alike are as the oracle has them; a row without a token is counted."""
    rows = []
    for number, row in enumerate(drawn):
        size = 1 if number % 2 else 5
        alike = {column: [row[column][0]] * size for column in (*TOKEN_COLUMNS, "sampler_logprob", "phase", "sentence")}
        same = {"n_tokens": size, "positions": list(range(1, size + 1)), "input_ids": [1, *[7] * size]}
        rows.append(row | alike | same)
    _check_rule(name, rows, 0.5, "corpus")
    _check_rule(name, rows, 0.5, "trajectory")
    empty: Row = {column: [] for column, kind in SCHEMA.items() if isinstance(kind, pl.List)} | {"n_tokens": 0}
    found = mask(frame([*rows, rows[0] | empty | {"id": "empty"}]), name, **_options(name, 0.5))
    assert found.dropped["nothing_kept"] == 1 + len(rows) - mask(frame(rows), name, **_options(name, 0.5)).rows_masked


def test_what_lies_on_a_bound() -> None:
    """A margin has to be exceeded, a probability too; a band has its ends, and without a low one it begins at 0."""
    sentences: Row = {"sentence": [0, 0], "teacher_sentence_logprob": [0.0], "student_sentence_logprob": [-LN2]}
    lead = frame([_row(**sentences)]).select(probability_leads()).collect().item().item()
    assert mask(frame([_row(**sentences)]), f"teacher_sentences,beta={lead!r}").rows_masked == 0
    assert mask(frame([_row(**sentences)]), f"teacher_sentences,beta={lead - 1e-9!r}").tokens_kept == 2
    band = _row(student_surprisal=[0.0, 0.5, 1.0])
    assert _mask("surprisal_band", [band], high=0.5) == [[0, 1]]
    assert _mask("surprisal_band", [band], low=0.5, high=0.5) == [[1]]
