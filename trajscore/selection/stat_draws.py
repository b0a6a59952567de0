"""STAT-Sel's draws: which trajectories a Missing-Skill-Profile asks for (arXiv 2510.10023, section 4.3, appendix B.2).

Steps that drop rows here, after the ordinary ones: `not_drawn` (no draw hit the question), `answers` (drawn, but others of the
question are better), `total` (left out at random).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl

from trajscore.errors import UsageError
from trajscore.selection.decide import KEPT

STAT_STEPS = ("not_drawn", "answers", "total")


@dataclass(frozen=True)
class StatOptions:
    """How STAT-Sel draws; the defaults are the published numbers, without the published total of 9,500.

    Attributes:
        per_skill: questions drawn for each difficult question and each skill it lacks.
        answers: best trajectories kept of each drawn question.
        total: trajectories kept in all, drawn at random; None for all.
        seed: of the draws.

    Raises:
        UsageError: a number is below 1.
    """

    per_skill: int = 5
    answers: int = 3
    total: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("per_skill", "answers", "total"):
            value = getattr(self, name)
            if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
                raise UsageError(f"--{name.replace('_', '-')} is {value!r}.", "Give a whole number of at least 1.")


def draw_questions(
    missing: Mapping[str, Sequence[str]], skill_map: Mapping[str, Sequence[str]], per_skill: int, seed: int
) -> Counter[str]:
    """How often each training question is drawn.

    For every difficult question and every skill it lacks, `per_skill` different questions of that skill, uniformly; all of them
    if there are fewer, none if the skill has no question. Draws of different pairs are independent.

    Args:
        missing: difficult question -> skills it lacks; a skill twice counts once.
        skill_map: skill -> training questions, each once.
        per_skill: draws per pair.
        seed: of the draws; the same arguments give the same draws.

    >>> draw_questions({"q1": ["a"], "q2": ["a", "b"]}, {"a": ["x"], "b": ["x", "y"]}, 5, seed=0)
    Counter({'x': 3, 'y': 1})
    """
    generator = np.random.default_rng(seed)
    drawn: Counter[str] = Counter()
    for skills in missing.values():
        for skill in dict.fromkeys(skills):
            pool = skill_map.get(skill, ())
            if pool:
                places = generator.choice(len(pool), min(per_skill, len(pool)), replace=False)
                drawn.update(pool[place] for place in places)
    return drawn


def decide_stat(
    decided: pl.DataFrame,
    missing: Mapping[str, Sequence[str]],
    skill_map: Mapping[str, Sequence[str]],
    options: StatOptions,
) -> pl.DataFrame:
    """The decisions of STAT-Sel, made of the ordinary ones.

    Only questions that still have a trajectory are drawn, so that no draw is lost.

    Args:
        decided: what `policies.selection.decide` gives with `per_prompt=options.answers` and no budget.
        missing: difficult question -> skills it lacks.
        skill_map: skill -> training questions (`prompt_id`).
        options: how to draw.

    Returns:
        `decided` with `step` and `kept` as STAT-Sel has them, and `draws` (uint32): how many draws hit the row's question,
        which is the row's weight; null where none did.

    Raises:
        UsageError: no trajectory belongs to a question that has a missing skill.
    """
    alive = set(decided.filter("kept")["prompt_id"].to_list())
    pools = {skill: [name for name in dict.fromkeys(names) if name in alive] for skill, names in skill_map.items()}
    drawn = draw_questions(missing, pools, options.per_skill, options.seed)
    if not drawn:
        raise UsageError(
            "no trajectory belongs to a question that has one of the profile's missing skills.",
            "The Skill-Map's question_id must be the scores' prompt_id: label the corpus that was scored.",
        )
    counts = pl.DataFrame(
        {"prompt_id": list(drawn), "draws": list(drawn.values())}, schema={"prompt_id": pl.String, "draws": pl.UInt32}
    )
    joined = decided.join(counts, on="prompt_id", how="left", maintain_order="left")
    reached = pl.col("step").is_in([KEPT, "per_prompt"])
    stepped = joined.with_columns(
        step=pl.when(reached & pl.col("draws").is_null())
        .then(pl.lit("not_drawn"))
        .when(pl.col("step") == "per_prompt")
        .then(pl.lit("answers"))
        .otherwise("step")
    )
    rows = stepped.filter(pl.col("step") == KEPT)["row"].to_numpy()
    beyond = np.random.default_rng([options.seed, 1]).permutation(rows)[options.total :] if options.total else rows[:0]
    left_out = (pl.col("step") == KEPT) & pl.col("row").is_in(pl.Series(beyond).implode())
    return stepped.with_columns(step=pl.when(left_out).then(pl.lit("total")).otherwise("step")).with_columns(
        kept=pl.col("step") == KEPT
    )
