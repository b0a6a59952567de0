"""The selection policy against plain-Python references, on generated rows with ties, nulls and large token counts."""

from __future__ import annotations

import math
import statistics
from collections import Counter
from fractions import Fraction
from typing import Any

import polars as pl
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from trajscore.errors import UsageError
from trajscore.metrics import parse_metric
from trajscore.selection.budgets import budget_steps
from trajscore.selection.combination import COMBINATIONS
from trajscore.selection.decide import decide, draws
from trajscore.selection.policy import Policy, Quota, parse_quota
from trajscore.selection.weights import WEIGHTS

Row = dict[str, Any]
BETTER = {"rsr": "lower", "length": "higher"}


def _standings(rows: list[Row], values: list[float], kind: str, within: str) -> list[float]:
    """Each row's standing among the rows of its group, by definition: higher is better."""
    result = []
    for row, value in zip(rows, values, strict=True):
        pairs = zip(rows, values, strict=True)
        group = [other for peer, other in pairs if within == "corpus" or peer["prompt_id"] == row["prompt_id"]]
        if kind == "rank":
            worse, equal = sum(other < value for other in group), sum(other == value for other in group)
            result.append((worse + equal / 2) / len(group))
        else:
            spread = statistics.pstdev(group)
            result.append(0.0 if min(group) == max(group) else (value - statistics.fmean(group)) / spread)
    return result


def _merits(rows: list[Row], options: Policy) -> list[float]:
    name = options.metrics[0]
    if options.order == "random":
        return list(draws(pl.Series([row["id"] for row in rows], dtype=pl.String), options.seed))
    if options.combine is None:
        up = options.order == "descending" if options.order else BETTER[name] == "higher"
        return [row[name] if up else -row[name] for row in rows]
    weights = options.metric_weights or (1.0,) * len(options.metrics)
    total = [0.0] * len(rows)
    for metric, weight in zip(options.metrics, weights, strict=True):
        sign = (1 if BETTER[metric] == "higher" else -1) * (1 if weight > 0 else -1)
        values = [sign * row[metric] for row in rows]
        for number, each in enumerate(_standings(rows, values, options.combine, options.combine_within)):
            total[number] += each * abs(weight) / sum(map(abs, weights))
    return total


def _greedy(rows: list[Row], options: Policy) -> set[int]:
    """The rows kept of those that reach the budget, best first: sizes from the largest down, each filled greedily."""
    limit = len(rows)
    if options.top is not None:
        limit = min(limit, options.top)
    elif options.fraction is not None:
        limit = min(limit, max(1, int(Fraction(str(options.fraction)) * len(rows))))
    size = limit
    while True:
        kept: list[Row] = []
        used: Counter[tuple[int, Any]] = Counter()
        tokens = 0
        for row in rows:
            groups = [
                (number, row[f"quota:{number}"])
                for number, quota in enumerate(options.quotas)
                if quota.value in (None, row[f"quota:{number}"])
            ]
            if any(used[group] >= options.quotas[group[0]].cap(size) for group in groups):
                continue
            tokens += row["n_tokens"]
            if len(kept) == size or (options.max_tokens is not None and tokens > options.max_tokens):
                break
            kept.append(row)
            used.update(groups)
        if len(kept) == size:
            return {row["row"] for row in kept}
        # The package skips sizes that no quota can reach; one by one down from there must end at the same place.
        size = len(kept)


def _reference(rows: list[Row], options: Policy) -> list[str]:
    """The step of each row, by loops over lists; a row that a budget or quota drops is `cut`."""
    steps = []
    for row in rows:
        step = ""
        if row["status"] != "ok":
            step = f"refused:{row['status']}"
        elif any(row[name] is None for name in options.ranking):
            step = "undefined_metric"
        elif options.where is not None and row["where"] is not True:
            step = "where"
        steps.append(step)
    if options.prefer:
        good = {row["prompt_id"] for row, step in zip(rows, steps, strict=True) if not step and row["correct"] is True}
        for number, row in enumerate(rows):
            if not steps[number] and row["prompt_id"] in good and row["correct"] is not True:
                steps[number] = "prefer"
    alive = [row for row, step in zip(rows, steps, strict=True) if not step]
    merit = {row["row"]: each for row, each in zip(alive, _merits(alive, options), strict=True)}
    # Rounded: sums in another order end in other last bits, and what is a tie must not depend on them.
    alive.sort(key=lambda row: (-round(merit[row["row"]], 9), row["id"], row["row"]))
    left, seen = [], dict.fromkeys((row["prompt_id"] for row in alive), 0)
    for row in alive:
        seen[row["prompt_id"]] += 1
        if options.per_prompt is not None and seen[row["prompt_id"]] > options.per_prompt:
            steps[row["row"]] = "per_prompt"
        else:
            left.append(row)
    kept = _greedy(left, options)
    for row in left:
        steps[row["row"]] = "kept" if row["row"] in kept else "cut"
    return steps


_row = st.fixed_dictionaries(
    {
        "id": st.sampled_from(["a", "b", "B", "é", "z", "10", "9"]),
        "prompt_id": st.sampled_from(["p", "q", "r"]),
        "status": st.sampled_from(["ok", "ok", "ok", "ok", "too_long"]),
        "rsr": st.none() | st.sampled_from([1.0, 1.5, 2.0, 0.5, 1e-300]),
        "length": st.none() | st.sampled_from([1.0, 2.0, 8.0, 30.0]),
        "correct": st.sampled_from([True, False, None]),
        "where": st.sampled_from([True, True, False, None]),
        "n_tokens": st.integers(1, 2**31),
        "quota:0": st.sampled_from(["A", "A", "A", "B", "C", None]),
        "quota:1": st.sampled_from(["x", "y"]),
        "weight_value": st.sampled_from([0.0, 0.25, 0.5, 1.0]),
    }
)
_budget = st.one_of(
    st.just({}),
    st.builds(lambda k: {"top": k}, st.integers(1, 9)),
    st.builds(lambda f: {"fraction": f}, st.sampled_from([1e-9, 0.1, 0.29, 0.3, 0.5, 1.0])),
    st.builds(lambda n: {"max_tokens": n}, st.integers(1, 2**34)),
)
_quota = st.builds(
    lambda column, value, limit: Quota(column, value, limit, "c=1"),
    st.sampled_from(["teacher", "domain"]),
    st.sampled_from([None, None, "A", "x"]),
    st.sampled_from([1, 2, 5, 0.2, 0.34, 0.5, 0.51, 1.0]),
)
_quotas = st.lists(_quota, max_size=2).map(tuple)
_combination = st.one_of(
    st.builds(lambda order: {"order": order}, st.sampled_from([None, "ascending", "descending", "random"])),
    st.builds(
        lambda combine, within, weights: {
            "metrics": ("rsr", "length"),
            "combine": combine,
            "combine_within": within,
            "metric_weights": weights,
        },
        st.sampled_from(list(COMBINATIONS)),
        st.sampled_from(["corpus", "prompt"]),
        st.sampled_from([(), (1.0, 1.0), (2.0, 0.7), (1.0, -0.3)]),
    ),
)
_options = st.builds(
    lambda budget, combination, **rest: Policy(**budget, **combination, **rest),
    _budget,
    _combination,
    quotas=st.just(()) | _quotas,
    per_prompt=st.none() | st.integers(1, 3),
    where=st.sampled_from([None, "true"]),
    prefer=st.sampled_from([None, "correct"]),
)
_KINDS = {"rsr": pl.Float64, "length": pl.Float64, "correct": pl.Boolean, "where": pl.Boolean, "row": pl.UInt32} | {
    "n_tokens": pl.UInt32,
    "weight_value": pl.Float64,
}
_SCHEMA = dict.fromkeys(("id", "prompt_id", "status", "quota:0", "quota:1"), pl.String) | _KINDS


def _numbered(rows: list[Row]) -> list[Row]:
    return [{**row, "row": number} for number, row in enumerate(rows)]


def _decide(rows: list[Row], options: Policy) -> pl.DataFrame:
    return decide(pl.DataFrame(rows, schema=_SCHEMA), options, BETTER)


@settings(max_examples=250, deadline=None)
@given(rows=st.lists(_row, max_size=25), options=_options)
def test_decisions_equal_the_reference(rows: list[Row], options: Policy) -> None:
    rows = _numbered(rows)
    expected = _reference(rows, options)
    if "cut" in expected and "kept" not in expected and options.max_tokens is None:
        # Shares that no set can have: the reference kept nothing of what reached the budget.
        with pytest.raises(UsageError, match="no row can be kept"):
            _decide(rows, options)
        return
    try:
        decided = _decide(rows, options)
    except UsageError:
        # The first row may have too many tokens, or the quotas may be impossible: both keep nothing.
        assume("kept" in expected)
        raise
    assert decided["row"].to_list() == list(range(len(rows)))
    cuts = {"quota": "cut"} | ({options.budget: "cut"} if options.budget else {})
    assert [cuts.get(step, step) for step in decided["step"]] == expected
    assert decided["kept"].to_list() == [step == "kept" for step in decided["step"]]


@settings(max_examples=150, deadline=None)
@given(rows=st.lists(_row, max_size=25, unique_by=lambda row: row["id"]), options=_options, random=st.randoms())
def test_the_order_of_the_rows_does_not_matter(rows: list[Row], options: Policy, random: Any) -> None:
    weight = None if options.order == "random" else "softmax"
    options = Policy(**{**options.__dict__, "weight": weight})
    shuffled = random.sample(rows, len(rows))
    try:
        first, second = (_decide(_numbered(each), options).drop("row").sort("id") for each in (rows, shuffled))
    except UsageError:
        assume(False)
    # Bit for bit, the weights and combined values too.
    assert first.equals(second)


@settings(max_examples=150, deadline=None)
@given(rows=st.lists(_row, min_size=1, max_size=40), quotas=_quotas, budget=_budget)
def test_quotas_hold_of_the_rows_that_are_kept(
    rows: list[Row], quotas: tuple[Quota, ...], budget: dict[str, Any]
) -> None:
    frame = pl.DataFrame(_numbered(rows), schema=_SCHEMA)
    options = Policy(quotas=quotas, **budget)
    try:
        kept = frame.filter(budget_steps(frame, options).is_null())
    except UsageError:
        assume(False)
    for number, quota in enumerate(quotas):
        for value, count in Counter(kept[f"quota:{number}"]).items():
            if quota.value in (None, value):
                whole = 1 if isinstance(quota.limit, int) else kept.height
                assert Fraction(count, whole) <= Fraction(str(quota.limit))
    if budget.get("top"):
        assert kept.height <= budget["top"]
    if budget.get("max_tokens"):
        assert sum(kept["n_tokens"]) <= budget["max_tokens"]


@settings(max_examples=200, deadline=None)
@given(
    values=st.lists(st.sampled_from("AABC"), min_size=1, max_size=30),
    share=st.sampled_from([0.2, 0.34, 0.4, 0.5, 0.75]),
)
def test_one_quota_keeps_as_many_rows_as_its_share_allows(values: list[str], share: float) -> None:
    sizes = Counter(values).values()
    cap = [int(Fraction(str(share)) * size) for size in range(len(values) + 1)]
    most = max(n for n in range(len(values) + 1) if sum(min(size, cap[n]) for size in sizes) >= n)
    options = Policy(quotas=(Quota("t", None, share, "t"),))
    frame = pl.DataFrame({"quota:0": values})
    if most == 0:
        with pytest.raises(UsageError, match="no row can be kept"):
            budget_steps(frame, options)
    else:
        assert budget_steps(frame, options).is_null().sum() == most


def test_the_reason_says_whether_the_budget_or_a_quota_was_full() -> None:
    frame = pl.DataFrame({"quota:0": list("AAABBC"), "n_tokens": [5, 1, 1, 5, 5, 1]})
    two = (Quota("teacher", None, 1, "teacher=1"),)
    assert budget_steps(frame, Policy(quotas=two, top=2)).to_list() == [
        None, "quota", "quota", None, "top", "top",
    ]  # fmt: skip
    assert budget_steps(frame, Policy(quotas=two, max_tokens=10)).to_list() == [
        None, "quota", "quota", None, "quota", "max_tokens",
    ]  # fmt: skip
    # Of three values none can have more than a third: one each, though the budget has room for four.
    third = (Quota("teacher", None, 0.34, "teacher=0.34"),)
    assert budget_steps(frame, Policy(quotas=third, top=4)).to_list() == [
        None, "quota", "quota", None, "quota", None,
    ]  # fmt: skip


def test_a_quota_for_one_value_leaves_the_others_alone() -> None:
    frame = pl.DataFrame({"quota:0": ["A", "A", None, "B", "B", None]})
    only = (Quota("teacher", "A", 1, "teacher:A=1"),)
    assert budget_steps(frame, Policy(quotas=only)).to_list() == [None, "quota", None, None, None, None]
    unknown_too = (Quota("teacher", None, 1, "teacher=1"),)
    assert budget_steps(frame, Policy(quotas=unknown_too)).to_list() == [
        None, "quota", None, None, "quota", "quota",
    ]  # fmt: skip


def test_combined_values_by_hand() -> None:
    rows = _numbered(
        [
            {"id": "a", "prompt_id": "p", "status": "ok", "rsr": 2.0, "length": 10.0},
            {"id": "b", "prompt_id": "p", "status": "ok", "rsr": 4.0, "length": 30.0},
            {"id": "c", "prompt_id": "q", "status": "ok", "rsr": 4.0, "length": 20.0},
            {"id": "d", "prompt_id": "q", "status": "ok", "rsr": 1.0, "length": None},
        ]
    )
    by_rank = _decide(rows, Policy(metrics=("rsr", "length"), combine="rank"))
    # rsr: 2 beats two rows that tie: 5/6, 2/6, 2/6. length: 1/6, 5/6, 3/6.
    assert by_rank["combined"].to_list() == pytest.approx([1 / 2, 7 / 12, 5 / 12, None])
    assert by_rank["step"].to_list() == ["kept", "kept", "kept", "undefined_metric"]
    heavy = _decide(rows, Policy(metrics=("rsr", "length"), combine="rank", metric_weights=(3.0, -1.0)))
    assert heavy["combined"].to_list() == pytest.approx([5 / 6, 7 / 24, 3 / 8, None])
    alone = _decide(rows, Policy(metrics=("rsr", "length"), combine="zscore", combine_within="prompt"))
    # In p each metric is one deviation to either side, and they cancel; c is alone: 0.
    assert alone["combined"].to_list() == pytest.approx([0.0, 0.0, 0.0, None])
    corpus = _decide(rows, Policy(metrics=("rsr", "length"), combine="zscore"))
    assert corpus["combined"][0] == pytest.approx((math.sqrt(2) - math.sqrt(1.5)) / 2)


@pytest.mark.parametrize("value", [0.1, 1e-300, 1e300, 3.0])
def test_a_constant_group_has_no_spread(value: float) -> None:
    # The mean of three times 0.1 is not 0.1 in binary floating point: a deviation taken from it would be noise.
    frame = pl.DataFrame({"v": [value] * 3})
    assert frame.select(COMBINATIONS["zscore"](pl.col("v"))).to_series().to_list() == [0.0] * 3
    assert frame.select(COMBINATIONS["rank"](pl.col("v"))).to_series().to_list() == [0.5] * 3
    spread = pl.DataFrame({"v": [value, 2 * value]})
    assert spread.select(COMBINATIONS["zscore"](pl.col("v"))).to_series().to_list() == pytest.approx([-1.0, 1.0])


def _weights(rows: list[Row], options: Policy) -> dict[str, float]:
    decided = _decide(_numbered(rows), options)
    assert decided.filter(~pl.col("kept"))["sample_weight"].null_count() == (~decided["kept"]).sum()
    return dict(decided.filter("kept").select("id", "sample_weight").iter_rows())


def _reference_weights(rows: list[Row], kept: set[str], options: Policy) -> dict[str, float]:
    """Raw weights of kept rows by loops; `rows` are all that were ranked, best first."""
    merit = {row["id"]: -row["rsr"] for row in rows}
    raw: dict[str, float] = {}
    for row in rows:
        if row["id"] not in kept:
            continue
        prompt = row["prompt_id"]
        peers = [
            r["id"] for r in rows
            if r["id"] in kept and (options.weight_within == "corpus" or r["prompt_id"] == prompt)
        ]  # fmt: skip
        own = merit[row["id"]]
        if options.weight == "softmax":
            total = sum(math.exp((merit[peer] - own) / options.temperature) for peer in peers)
            raw[row["id"]] = len(peers) / total
        elif options.weight == "rank":
            raw[row["id"]] = sum((merit[p] < own) + (merit[p] == own) / 2 for p in peers) + 0.5
            raw[row["id"]] /= (len(peers) + 1) / 2
        elif options.weight == "paced":
            raw[row["id"]] = row["weight_value"] * (1 - row["weight_value"])
        else:
            mates = [r["id"] for r in rows if r["prompt_id"] == prompt]
            chosen = [name for name in mates if name in kept]
            after = mates[mates.index(chosen[-1]) + 1 :]
            threshold = merit[after[0]] if after else math.nan
            denominator = sum(merit[name] for name in chosen) - len(chosen) * threshold
            raw[row["id"]] = (own - threshold) / denominator if denominator > 1e-12 else 1 / len(chosen)
    mean = sum(raw.values()) / len(raw)
    return {name: value / mean for name, value in raw.items()}


_weighted = _row.filter(lambda row: row["status"] == "ok" and row["rsr"] is not None)


@settings(max_examples=150, deadline=None)
@given(
    rows=st.lists(_weighted, min_size=1, max_size=7, unique_by=lambda row: row["id"]),
    weight=st.sampled_from(list(WEIGHTS)),
    within=st.sampled_from(["corpus", "prompt"]),
    temperature=st.sampled_from([0.01, 0.3, 1.0, 100.0]),
    per_prompt=st.none() | st.integers(1, 3),
    top=st.none() | st.integers(1, 5),
    quotas=st.just(()) | st.just((Quota("t", None, 1, "t=1"),)),
)
def test_weights_equal_the_reference(
    rows: list[Row], weight: str, within: str, temperature: float, per_prompt: Any, top: Any, quotas: Any
) -> None:
    options = Policy(
        per_prompt=per_prompt, top=top, quotas=quotas, weight=weight, weight_within=within, temperature=temperature
    )
    try:
        found = _weights(rows, options)
    except UsageError:
        assume(weight != "paced")
        raise
    ranked = sorted(rows, key=lambda row: (row["rsr"], row["id"]))
    expected = _reference_weights(ranked, set(found), options)
    assert found == pytest.approx(expected, rel=1e-6, abs=1e-9)
    assert math.fsum(found.values()) / len(found) == pytest.approx(1, abs=1e-12)
    assert all(math.isfinite(each) and each >= 0 for each in found.values())


def _scored(name: str, merit: float, prompt: str = "p", **values: Any) -> Row:
    return {"id": name, "prompt_id": prompt, "status": "ok", "rsr": -merit, **values}


def test_lark_weights_by_hand() -> None:
    rows = [_scored("a", 0.9), _scored("b", 0.5), _scored("c", 0.3), _scored("d", 0.1, "q"), _scored("e", 0.1, "q")]
    # p: threshold 0.3, excess 0.6 and 0.2. q: both kept and tied. Each prompt has the same total, the mean is 1.
    options = Policy(per_prompt=2, weight="lark")
    assert _weights(rows, options) == pytest.approx({"a": 1.5, "b": 0.5, "d": 1.0, "e": 1.0})
    # All kept: nothing was cut, so nothing tells how far above a threshold they are.
    assert _weights(rows[:3], Policy(weight="lark")) == {"a": 1.0, "b": 1.0, "c": 1.0}
    # Tied with the best one that was not kept: no excess at all, hence uniform.
    tied = [_scored("a", 0.5), _scored("b", 0.5), _scored("c", 0.5)]
    assert _weights(tied, Policy(per_prompt=2, weight="lark")) == {"a": 1.0, "b": 1.0}
    # So large that 1e-8 vanishes beside it.
    huge = [_scored("a", 1e12), _scored("b", 1e12)]
    assert _weights(huge, Policy(weight="lark")) == {"a": 1.0, "b": 1.0}


def test_softmax_neither_overflows_nor_is_undefined() -> None:
    rows = [_scored("a", 1e6), _scored("b", -1e6)]
    assert _weights(rows, Policy(weight="softmax")) == {"a": 2.0, "b": 0.0}
    assert _weights(rows, Policy(weight="softmax", temperature=1e-300)) == {"a": 2.0, "b": 0.0}
    assert _weights(rows[:1], Policy(weight="softmax")) == {"a": 1.0}
    assert _weights([], Policy(weight="softmax")) == {}


@pytest.mark.parametrize("wrong", [None, -0.1, 1.5, math.nan])
def test_a_pass_rate_that_is_none_is_not_guessed(wrong: float | None) -> None:
    rows = [_scored("a", 1.0, weight_value=0.5), _scored("b", 1.0, weight_value=wrong)]
    with pytest.raises(UsageError, match="'b'"):
        _weights(rows, Policy(weight="paced"))
    assert _weights(rows, Policy(weight="paced", top=1)) == {"a": 1.0}
    with pytest.raises(UsageError, match="weighs 0"):
        _weights([_scored("a", 1.0, weight_value=1.0)], Policy(weight="paced"))


def test_draws_are_uniform_and_depend_on_seed_and_id_alone() -> None:
    ids = pl.Series([f"id-{number}" for number in range(20_000)])
    values = draws(ids, 0)
    assert values.min() >= 0  # type: ignore[operator]
    assert values.max() < 1  # type: ignore[operator]
    counts = Counter(int(10 * value) for value in values)
    # 10 cells of 2,000: standard deviation 42, so 5 of them.
    assert all(abs(counts[cell] - 2000) < 212 for cell in range(10))
    assert draws(ids[::-1], 0).reverse().equals(values)
    assert (draws(ids, 1) == values).sum() == 0


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("teacher", "cannot be read"),
        ("=0.3", "cannot be read"),
        ("teacher=", "cannot be read"),
        ("teacher=-1", "cannot be read"),
        ("teacher=1e3", "cannot be read"),
        ("teacher=0", "limit is 0"),
        ("teacher=0.0", "limit is 0.0"),
        ("teacher=1.5", "limit is 1.5"),
        ("tacher=0.5", "no column 'tacher'"),
    ],
)
def test_quotas_that_cannot_be_read(text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        parse_quota(text, ["teacher", "a:b"])
    assert caught.value.hint


def test_quotas_are_read_as_they_are_meant() -> None:
    columns = ["teacher", "a:b", "x=y"]
    assert repr(parse_quota("teacher=1", columns).limit) == "1"
    assert repr(parse_quota("teacher=1.0", columns).limit) == "1.0"
    assert parse_quota("a:b=.5", columns) == Quota("a:b", None, 0.5, "a:b=.5")
    assert parse_quota("teacher:v1:b=3", columns).value == "v1:b"
    assert parse_quota("teacher:=3", columns).value == ""
    assert parse_quota("x=y=3", columns).column == "x=y"


@pytest.mark.parametrize("text", ["rsr:", "rsr:0", "rsr:nan", "rsr:inf", "rsr:two"])
def test_metric_weights_that_cannot_be_read(text: str) -> None:
    with pytest.raises(UsageError, match=r"weight|no number"):
        parse_metric(text)
