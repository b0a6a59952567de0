"""STAT-Sel inside `trajscore select`: reads the profile and the Skill-Map, and hands the ordinary decisions to the policy. It
knows files and settings; the draws are in `trajscore.policies.stat`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import polars as pl

from trajscore.errors import UsageError
from trajscore.policies.stat import StatOptions, decide_stat
from trajscore.workflows.skills_profile import read_profile, read_skill_map

STAT = "stat"
DRAWS = "draws"
SAMPLE_WEIGHT = "sample_weight"


@dataclass(frozen=True)
class StatSettings:
    """What `--metric stat` reads.

    Attributes:
        profile: what `skills profile` wrote.
        skill_map: what `skills label` wrote.
        per_skill: questions drawn per difficult question and missing skill; None for 5.
        answers: best trajectories of each drawn question; None for 3.
        total: trajectories in all; None for all.
        weight: `draws` adds `sample_weight`; None for none.
    """

    profile: str | Path | None = None
    skill_map: str | Path | None = None
    per_skill: int | None = None
    answers: int | None = None
    total: int | None = None
    weight: str | None = None


@dataclass(frozen=True)
class Stat:
    """STAT-Sel, ready to decide.

    Attributes:
        options: how it draws.
        missing: difficult question -> skills it lacks.
        skill_map: skill -> training questions.
        weighted: whether `sample_weight` is asked for.
    """

    options: StatOptions
    missing: Mapping[str, Sequence[str]]
    skill_map: Mapping[str, Sequence[str]]
    weighted: bool

    def decide(self, decided: pl.DataFrame) -> pl.DataFrame:
        """The decisions with STAT-Sel's steps, `draws`, and `sample_weight` (mean 1 over kept rows) if asked for."""
        stepped = decide_stat(decided, self.missing, self.skill_map, self.options)
        if not self.weighted:
            return stepped
        kept = pl.when("kept").then(DRAWS)
        return stepped.with_columns((kept / kept.mean()).alias(SAMPLE_WEIGHT))

    @property
    def added(self) -> tuple[str, ...]:
        """Columns that it adds to decisions and kept rows."""
        return (DRAWS, SAMPLE_WEIGHT) if self.weighted else (DRAWS,)


def open_stat(
    metrics: Sequence[str], settings: StatSettings, seed: int, others: Mapping[str, object]
) -> tuple[tuple[str, ...], Stat | None]:
    """STAT-Sel, if it is among the metrics, and the metrics that rank the answers of a drawn question (`rsr` unless named).

    Args:
        metrics: the names that were given.
        settings: what belongs to `stat`.
        seed: of the draws.
        others: settings that say the same as `answers` and `total`, by flag; each has to be None with `stat`.

    Raises:
        UsageError: settings of `stat` without it, or the other way round; a file or number is wrong.
        DataError: a file is no JSON.
    """
    given = [name for name, value in vars(settings).items() if value is not None]
    if STAT not in metrics:
        if given:
            raise UsageError(
                f"--{given[0].replace('_', '-')} belongs to --metric stat.", "Add --metric stat, or leave it out."
            )
        return tuple(metrics), None
    if settings.profile is None or settings.skill_map is None:
        raise UsageError(
            "--metric stat needs --profile and --skill-map.",
            "Make them with `trajscore skills profile` and `trajscore skills label`.",
        )
    for flag, value in others.items():
        if value is not None:
            raise UsageError(f"{flag} does not go with --metric stat.", "Give --answers (per question) and --total.")
    if settings.weight not in (None, DRAWS):
        raise UsageError(f"--weight {settings.weight}: unknown with --metric stat.", "Give --weight draws.")
    numbers = {name: getattr(settings, name) for name in ("per_skill", "answers", "total")}
    options = StatOptions(seed=seed, **{name: value for name, value in numbers.items() if value is not None})
    skill_map: dict[str, list[str]] = {}
    for row in read_skill_map(settings.skill_map):
        for skill in dict.fromkeys(row["skills"]):
            skill_map.setdefault(skill, []).append(str(row["question_id"]))
    missing = read_profile(settings.profile)
    ranking = tuple(name for name in metrics if name != STAT) or ("rsr",)
    return ranking, Stat(options, missing, skill_map, settings.weight is not None)
