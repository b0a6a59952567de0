"""Every option of `trajscore report`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from trajscore.errors import UsageError
from trajscore.options import USUAL, argument, option
from trajscore.options.groups import IntervalOptions, MetricsFileOptions

if TYPE_CHECKING:
    from trajscore.options.groups import Scores


class ReportOptions(MetricsFileOptions, IntervalOptions):
    """Everything `report` can be told."""

    scores: Scores | None = argument(
        default=None,
        kw_only=False,
        metavar="SCORES",
        typed=list[str],
        otherwise="--table",
        help="Folders that `trajscore score` wrote, of one or several students; in Python also a LazyFrame of one.",
    )
    metrics: Sequence[str] | None = option(
        default=None,
        panel=USUAL,
        flag="--metric",
        metavar="NAME[,KEY=VALUE...]",
        otherwise="all whose columns are there",
        help="Metric to report; rsr ranks if it is among them, else the first that has a direction.",
    )
    performance: str | Path | None = option(
        default=None,
        panel="Data",
        metavar="CSV",
        help="Scores after training, columns student, teacher, score (any unit): adds correlations.",
    )
    table: str | Path | None = option(
        default=None,
        panel="Data",
        metavar="CSV",
        help="Columns student, teacher and one per metric, in place of SCORES.",
    )
    plan: bool = option(
        default=False,
        panel="Intervals",
        help="Also say how many trajectories settle the ranking at --confidence.",
    )
    diversity: bool = option(
        default=False,
        panel="Metrics",
        help="Also say how much the samples of one teacher for one prompt differ: n-grams, answers, near duplicates.",
    )
    items: bool = option(
        default=False,
        panel="Metrics",
        help="Also fit item response to the column correct: abilities of teachers, and prompts whose label looks wrong.",
    )
    out: str | Path | None = option(
        panel=USUAL,
        default=None,
        metavar="FILE.html",
        otherwise="not written",
        help="Write the report as one HTML page that needs no network.",
        writes=True,
    )
    csv: str | Path | None = option(
        default=None,
        metavar="FILE.csv",
        otherwise="not written",
        help="Write the table of teachers: one row per student and teacher.",
        writes=True,
    )
    tidy: str | Path | None = option(
        default=None,
        metavar="FILE.csv",
        otherwise="not written",
        help="Write every number of the report as one long table.",
        writes=True,
    )
    figures: str | Path | None = option(
        default=None,
        metavar="DIR",
        otherwise="not written",
        help="Write every picture of the report into this folder, as SVG, PDF and PNG.",
        writes=True,
    )
    keep_foreign: bool = option(
        default=False,
        panel="Output",
        help="Replace earlier pictures also where other files lie in --figures, and leave those.",
        harmless="the pictures are the same",
    )
    all_metrics: bool = option(
        default=False,
        panel="Output",
        help="Print every metric with its interval, not only the one that ranks.",
        harmless="it only tells",
    )

    def check_values(self) -> None:
        """Where the numbers come from."""
        if (self.scores is None) == (self.table is None):
            raise UsageError(
                "give either scores or --table, and not both.", "Name score folders, or a CSV with --table."
            )
        if self.diversity and self.scores is None:
            raise UsageError("--diversity needs scores: a table has no trajectories to compare.", "Name score folders.")
        if self.items and self.scores is None:
            raise UsageError(
                "--items needs scores: a table does not say which rows are correct.", "Name score folders."
            )
        if self.plan and self.scores is None:
            raise UsageError("--plan needs scores: a table has no trajectories to count.", "Name score folders.")
