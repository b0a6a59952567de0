"""The selection policy against a plain-Python reference, on generated rows with ties, nulls and large token counts."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import polars as pl
from hypothesis import given, settings
from hypothesis import strategies as st

from trajscore.policies.selection import SelectOptions, decide

Row = dict[str, Any]


def _reference(rows: list[Row], options: SelectOptions) -> list[str]:
    """The step of each row, by loops over lists."""
    name = options.metrics[0]
    steps = []
    for row in rows:
        step = ""
        if row["status"] != "ok":
            step = f"refused:{row['status']}"
        elif row[name] is None:
            step = "undefined_metric"
        elif options.where is not None and row["where"] is not True:
            step = "where"
        steps.append(step)
    if options.prefer:
        good = {row["prompt_id"] for row, step in zip(rows, steps, strict=True) if not step and row["correct"] is True}
        for number, row in enumerate(rows):
            if not steps[number] and row["prompt_id"] in good and row["correct"] is not True:
                steps[number] = "prefer"
    sign = -1 if options.order == "descending" else 1
    alive = [row for row, step in zip(rows, steps, strict=True) if not step]
    alive.sort(key=lambda row: (sign * row[name], row["id"], row["row"]))
    left, seen = [], dict.fromkeys((row["prompt_id"] for row in alive), 0)
    for row in alive:
        seen[row["prompt_id"]] += 1
        if options.per_prompt is not None and seen[row["prompt_id"]] > options.per_prompt:
            steps[row["row"]] = "per_prompt"
        else:
            left.append(row)
    size = len(left)
    if options.top is not None:
        size = options.top
    elif options.fraction is not None:
        size = max(1, int(Fraction(str(options.fraction)) * len(left)))
    elif options.max_tokens is not None:
        total = 0
        for size, row in enumerate(left):  # noqa: B007 - the length of the prefix is wanted
            total += row["n_tokens"]
            if total > options.max_tokens:
                break
        else:
            size = len(left)
    for row in left[size:]:
        steps[row["row"]] = options.budget or ""
    return [step or "kept" for step in steps]


_row = st.fixed_dictionaries(
    {
        "id": st.sampled_from(["a", "b", "B", "é", "z", "10", "9"]),
        "prompt_id": st.sampled_from(["p", "q", "r"]),
        "status": st.sampled_from(["ok", "ok", "ok", "ok", "too_long"]),
        "rsr": st.none() | st.sampled_from([1.0, 1.5, 2.0, 0.5, 1e-300]),
        "correct": st.sampled_from([True, False, None]),
        "where": st.sampled_from([True, True, False, None]),
        "n_tokens": st.integers(1, 2**31),
    }
)
_budget = st.one_of(
    st.just({}),
    st.builds(lambda k: {"top": k}, st.integers(1, 9)),
    st.builds(lambda f: {"fraction": f}, st.sampled_from([1e-9, 0.1, 0.29, 0.3, 0.5, 1.0])),
    st.builds(lambda n: {"max_tokens": n}, st.integers(1, 2**34)),
)
_options = st.builds(
    lambda budget, **rest: SelectOptions(**budget, **rest),
    _budget,
    per_prompt=st.none() | st.integers(1, 3),
    where=st.sampled_from([None, "true"]),
    prefer=st.sampled_from([None, "correct"]),
    order=st.sampled_from([None, "ascending", "descending"]),
)
_KINDS = {"rsr": pl.Float64, "correct": pl.Boolean, "where": pl.Boolean, "n_tokens": pl.UInt32, "row": pl.UInt32}
_SCHEMA = dict.fromkeys(("id", "prompt_id", "status"), pl.String) | _KINDS


@settings(max_examples=250, deadline=None)
@given(rows=st.lists(_row, max_size=25), options=_options)
def test_decisions_equal_the_reference(rows: list[Row], options: SelectOptions) -> None:
    rows = [{**row, "row": number} for number, row in enumerate(rows)]
    decided = decide(pl.DataFrame(rows, schema=_SCHEMA), options, {"rsr": "lower"})
    assert decided["row"].to_list() == list(range(len(rows)))
    assert decided["step"].to_list() == _reference(rows, options)
    assert decided["kept"].to_list() == [step == "kept" for step in decided["step"]]
