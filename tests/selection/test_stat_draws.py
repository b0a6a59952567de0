"""STAT-Sel's draws and decisions: exact counts with one, frequencies by a chi-square test over seeds, steps that add up."""

from __future__ import annotations

import math
from collections import Counter

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trajscore.errors import UsageError
from trajscore.selection.decide import decide
from trajscore.selection.policy import Policy
from trajscore.selection.stat_draws import STAT_STEPS, StatOptions, decide_stat, draw_questions

MISSING = {"v1": ["add", "div"], "v2": ["add"], "v3": ["add", "geo"], "v4": []}
SKILL_MAP = {"add": [f"a{i}" for i in range(8)], "div": ["d0", "d1", "a0"], "geo": ["g0"], "unused": ["u0"]}


def test_exact_counts_with_one_seed() -> None:
    """Worked by hand: 3 pairs x 5 of the 8 questions of add, 3 of 3 of div, 1 of 1 of geo."""
    drawn = draw_questions(MISSING, SKILL_MAP, 5, seed=3)
    assert sum(drawn.values()) == 3 * 5 + 3 + 1
    assert drawn["g0"] == drawn["d0"] == drawn["d1"] == 1
    assert sum(count for name, count in drawn.items() if name.startswith("a")) == 15 + 1
    assert drawn["u0"] == 0
    assert max(drawn[f"a{i}"] for i in range(1, 8)) <= 3, "a question comes at most once for a pair"
    assert drawn == draw_questions(MISSING, SKILL_MAP, 5, seed=3)
    assert drawn != draw_questions(MISSING, SKILL_MAP, 5, seed=4)


def _chi_square(observed: list[int], expected: list[float]) -> float:
    return sum((seen - due) ** 2 / due for seen, due in zip(observed, expected, strict=True))


def test_frequencies_over_seeds() -> None:
    """With one draw per pair, counts are multinomial: chi-square with cells - 1 degrees of freedom, bounds at p = 0.001."""
    seeds = 3000
    drawn = sum((draw_questions(MISSING, SKILL_MAP, 1, seed) for seed in range(seeds)), Counter[str]())
    skills = [sum(drawn[f"a{i}"] for i in range(1, 8)), drawn["d0"] + drawn["d1"], drawn["g0"], drawn["a0"]]
    # A skill is drawn as often as questions lack it (3 : 1 : 1); a0 belongs to two skills.
    expected = [3 * 7 / 8 * seeds, 2 / 3 * seeds, float(seeds), (3 / 8 + 1 / 3) * seeds]
    assert drawn["g0"] == seeds
    # 7 + 2 + a0: ten cells; the sum of two fixed totals leaves eight degrees of freedom (26.12 at p = 0.001).
    cells = [drawn[f"a{i}"] for i in range(1, 8)] + [drawn["d0"], drawn["d1"], drawn["a0"]]
    due = [3 / 8 * seeds] * 7 + [seeds / 3] * 2 + [(3 / 8 + 1 / 3) * seeds]
    assert _chi_square(cells, due) < 26.12
    assert sum(skills) == pytest.approx(sum(expected))
    # The control: were every question equally likely, the same counts would be far off.
    flat = [sum(cells) / len(cells)] * len(cells)
    assert _chi_square(cells, flat) > 100


def test_pairs_of_questions_over_seeds() -> None:
    """Without replacement: each of the 3 pairs out of 3 questions equally often (13.82: p = 0.001, 2 degrees of freedom)."""
    seeds = 1500
    pairs = Counter(
        tuple(sorted(draw_questions({"v": ["s"]}, {"s": ["x", "y", "z"]}, 2, seed))) for seed in range(seeds)
    )
    assert set(pairs) == {("x", "y"), ("x", "z"), ("y", "z")}
    assert _chi_square(list(pairs.values()), [seeds / 3] * 3) < 13.82


def _rows(prompts: list[str], per_prompt: int) -> pl.DataFrame:
    names = [(prompt, answer) for prompt in prompts for answer in range(per_prompt)]
    return pl.DataFrame(
        {
            "row": range(len(names)),
            "id": [f"{prompt}/{answer}" for prompt, answer in names],
            "prompt_id": [prompt for prompt, _ in names],
            "status": ["too_long" if prompt == "a1" and answer == 0 else "ok" for prompt, answer in names],
            "rsr": [None if prompt == "a2" else float((answer * 7) % 5) for prompt, answer in names],
        },
        schema_overrides={"rsr": pl.Float64},
    )


def _decide(rows: pl.DataFrame, options: StatOptions) -> pl.DataFrame:
    ordinary = decide(rows, Policy(metrics=("rsr",), per_prompt=options.answers), {"rsr": "lower"})
    return decide_stat(ordinary, MISSING, SKILL_MAP, options)


def test_steps_by_hand() -> None:
    rows = _rows([*SKILL_MAP["add"], "d0", "d1", "g0", "u0"], 4)
    decided = _decide(rows, StatOptions(per_skill=8, answers=2))
    steps = {row["id"]: row["step"] for row in decided.iter_rows(named=True)}
    draws = dict(decided.select("prompt_id", "draws").unique().iter_rows())
    # a2 has no trajectory with a metric, so it is not drawn; every other question of each skill is.
    often = dict.fromkeys(("a1", "a3", "a4", "a5", "a6", "a7"), 3)
    assert draws == {"a0": 4, **often, "a2": None, "d0": 1, "d1": 1, "g0": 1, "u0": None}
    assert steps["a1/0"] == "refused:too_long"
    assert steps["a2/1"] == "undefined_metric"
    assert steps["u0/0"] == steps["u0/3"] == "not_drawn"
    # rsr by answer: 0, 2, 4, 1, lower is better: the best two are 0 and 3.
    assert [steps[f"g0/{answer}"] for answer in range(4)] == ["kept", "answers", "answers", "kept"]
    assert decided["kept"].sum() == 2 * 10
    assert decided["row"].to_list() == rows["row"].to_list()


@given(st.integers(1, 6), st.integers(1, 5), st.one_of(st.none(), st.integers(1, 40)), st.integers(0, 5))
def test_every_row_has_one_step(per_skill: int, answers: int, total: int | None, seed: int) -> None:
    rows = _rows([*SKILL_MAP["add"], "d0", "g0", "u0"], 4)
    decided = _decide(rows, StatOptions(per_skill, answers, total, seed))
    everything = _decide(rows, StatOptions(per_skill, answers, None, seed))
    assert decided.height == rows.height
    assert decided["kept"].to_list() == [step == "kept" for step in decided["step"]]
    assert set(decided["step"]) <= {"kept", "refused:too_long", "undefined_metric", *STAT_STEPS}
    assert decided["kept"].sum() == min(everything["kept"].sum(), total or math.inf)
    assert set(decided.filter("kept")["id"]) <= set(everything.filter("kept")["id"])
    assert decided.filter("kept")["draws"].null_count() == 0


def test_total_is_drawn_evenly() -> None:
    """Every kept row is as likely to stay (29.59: p = 0.001, 10 degrees of freedom; draws are without replacement)."""
    rows = _rows(["g0", "d0", "d1"], 4).filter(pl.col("row") != 11)
    kept = Counter[str]()
    for seed in range(1100):
        kept.update(_decide(rows, StatOptions(5, 4, 2, seed)).filter("kept")["id"].to_list())
    assert sum(kept.values()) == 2200
    assert _chi_square(list(kept.values()), [200.0] * 11) < 29.59


def test_no_question_in_common() -> None:
    with pytest.raises(UsageError, match="label the corpus that was scored"):
        _decide(_rows(["other"], 2), StatOptions())


@pytest.mark.parametrize("values", [{"per_skill": 0}, {"answers": 0}, {"total": 0}, {"answers": True}, {"total": 1.5}])
def test_options_out_of_range(values: dict[str, int]) -> None:
    with pytest.raises(UsageError):
        StatOptions(**values)
