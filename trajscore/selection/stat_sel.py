"""`select --metric stat`: reads the profile and the Skill-Map, and applies STAT-Sel to the ordinary decisions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import polars as pl

from trajscore.errors import UsageError
from trajscore.options import flag, options_in
from trajscore.selection.decide import DRAWS, SAMPLE_WEIGHT
from trajscore.selection.options import SelectOptions, StatSettings
from trajscore.selection.stat_draws import StatOptions, decide_stat
from trajscore.skills.commands.profile import read_profile, read_skill_map

STAT = "stat"


@dataclass(frozen=True)
class Stat:
    """STAT-Sel, ready to decide.

    Attributes:
        options: how it draws.
        missing: difficult question -> skills it lacks.
        skill_map: skill -> training questions.
    """

    options: StatOptions
    missing: Mapping[str, Sequence[str]]
    skill_map: Mapping[str, Sequence[str]]

    added = (DRAWS, SAMPLE_WEIGHT)
    """Columns that it adds to decisions and kept rows."""

    def decide(self, decided: pl.DataFrame) -> pl.DataFrame:
        """The decisions with STAT-Sel's steps, `draws`, and them as `sample_weight`, mean 1 over the kept rows."""
        stepped = decide_stat(decided, self.missing, self.skill_map, self.options)
        stepped = stepped.with_columns(pl.col(DRAWS).cast(pl.Float64))
        kept = pl.when("kept").then(DRAWS)
        return stepped.with_columns((kept / kept.mean()).alias(SAMPLE_WEIGHT))


def open_stat(settings: dict[str, Any], stat: SelectOptions) -> tuple[dict[str, Any], Stat | None]:
    """STAT-Sel, if it is among the metrics, and the other settings of the selection.

    Args:
        settings: arguments of `select` by name, without those that were not given.
        stat: what belongs to `stat`, and the seed of the draws.

    Returns:
        The settings of the ordinary steps, whose metrics rank the answers of a drawn question (`rsr` unless named).

    Raises:
        UsageError: settings of `stat` without it, or the other way round; a file or number is wrong.
        DataError: a file is no JSON.
    """
    names = list(settings.get("metric", ()))
    if STAT not in names:
        given = [flag(name) for name in options_in(StatSettings) if getattr(stat, name) is not None]
        given += ["--weight draws"] if settings.get("weight") == DRAWS else []
        if given:
            raise UsageError(f"{given[0]} belongs to --metric stat.", "Add --metric stat, or leave it out.")
        return settings, None
    if stat.profile is None or stat.skill_map is None:
        raise UsageError(
            "--metric stat needs --profile and --skill-map.",
            "Make them with `trajscore skills profile` and `trajscore skills label`.",
        )
    for name in ("per_prompt", "top", "fraction", "max_tokens", "quota"):
        if settings.get(name) is not None:
            raise UsageError(
                f"{flag(name)} does not go with --metric stat.", "Give --answers (per question) and --total."
            )
    weight = settings.get("weight")
    if weight not in (None, DRAWS):
        raise UsageError(
            f"--weight {weight} does not go with --metric stat.", "Leave it out: the draws are the weights."
        )
    numbers = {name: getattr(stat, name) for name in ("per_skill", "answers", "total")}
    options = StatOptions(seed=stat.seed, **{name: value for name, value in numbers.items() if value is not None})
    skill_map: dict[str, list[str]] = {}
    for row in read_skill_map(stat.skill_map):
        for skill in dict.fromkeys(row["skills"]):
            skill_map.setdefault(skill, []).append(str(row["question_id"]))
    drawing = Stat(options, read_profile(stat.profile), skill_map)
    ordinary = {name: value for name, value in settings.items() if name != "weight"}
    ordinary["metric"] = [name for name in names if name != STAT] or ["rsr"]
    return ordinary | {"per_prompt": options.answers}, drawing
