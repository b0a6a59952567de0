"""The options of `trajscore run`, and the steps that a recipe can have."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from trajscore.exporters.options import ExportOptions
from trajscore.masking.options import MaskOptions
from trajscore.options import Options, argument, option
from trajscore.progress import Progress
from trajscore.ranking.options import ReportOptions
from trajscore.scoring.options import ScoreOptions
from trajscore.selection.options import SelectOptions

STEPS: dict[str, type[Options]] = {
    "score": ScoreOptions,
    "select": SelectOptions,
    "mask": MaskOptions,
    "export": ExportOptions,
    "report": ReportOptions,
}
"""Every step in the order in which they run."""

INPUTS: dict[str, dict[str, tuple[str, ...]]] = {
    "select": {"scores": ("score",)},
    "mask": {"scores": ("score",), "selected": ("select",)},
    "export": {"file": ("mask", "select")},
    "report": {"scores": ("score",)},
}
"""Step -> option that reads -> the steps whose `out` it is unless it is given, the first that the recipe has."""

EXAMPLE = """\
# trajscore run recipe.yaml
# Each key below a step is the name of an option of that command (`trajscore score -h`, ...). Paths begin at this file.
# A step reads what the steps before it wrote; one that is finished with the same settings and inputs does not run again.

score:
  data: data/trajectories.jsonl
  student: data/models/student
  out: recipe-output/scores

select:
  metric: rsr
  per_prompt: 1
  prefer: correct
  out: recipe-output/selected.parquet

mask:
  rule: entropy
  keep: 0.5
  out: recipe-output/masked.parquet

export:
  to: trl
  out: recipe-output/trl

report:
  metrics: [rsr, surprisal, rank]
  out: recipe-output/ranking.html
"""
"""A recipe that runs in a clone of the repository."""


class RunOptions(Options):
    """Everything `run` can be told."""

    recipe: str | Path = argument(
        kw_only=False,
        metavar="RECIPE.yaml",
        help="The recipe; paths in it begin at its folder.",
        harmless="it holds options",
    )
    only: Literal["score", "select", "mask", "export", "report"] | None = option(
        default=None,
        panel="Steps",
        otherwise="all",
        help="Run this step alone; what it reads has to be there.",
        harmless="which steps run",
    )
    dry_run: bool = option(
        default=False,
        panel="Dry run",
        help="Say which steps would run and why, and write nothing.",
        harmless="nothing is written",
    )
    progress: Progress | None = option(
        default=None, python_only=True, help="Told how far scoring is.", harmless="it only watches"
    )
