"""`trajscore score`: its dry run, its progress line and what it prints. The options are those of `scoring.options`."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Annotated, Any

import typer

from trajscore.cli.app import EXIT_TOO_MANY_REFUSED, Json, app, print_json, print_parts, without_models
from trajscore.cli.help import Command
from trajscore.cli.parameters import takes
from trajscore.display.writer import ERR, OUT
from trajscore.errors import UsageError
from trajscore.scoring.options import PlanOptions, ScoreOptions

if TYPE_CHECKING:
    from trajscore.scoring.run import ScoreSummary

_RAY_ADDRESS = re.compile(r"auto|local|ray://.+|[^/\\]+:\d+")


class ScoreCommand(Command):
    """Lets --ray stand alone."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        filled = list(args)
        for place in [number for number, text in enumerate(args) if text == "--ray"][::-1]:
            following = args[place + 1] if place + 1 < len(args) else ""
            if not _RAY_ADDRESS.fullmatch(following):
                filled.insert(place + 1, "auto")
        return super().parse_args(ctx, filled)


DryRun = Annotated[
    bool,
    typer.Option(
        "--dry-run",
        rich_help_panel="Dry run",
        help="Say what the run would read, refuse, write and take, and write nothing. Default: off.",
    ),
]


@app.command(cls=ScoreCommand)
@takes(PlanOptions)
def score(options: PlanOptions, dry_run: DryRun = False, as_json: Json = False) -> None:
    """Add per-token rank, surprisal and entropy of a student to a corpus, exact over the whole vocabulary.

    Writes all input rows and columns, in order, with the scores beside them, as Parquet parts and a manifest. Rows that
    cannot be scored stay, with the reason in `status`. The same command again continues where it stopped.
    """
    if options.only_asks:
        without_models()
    if dry_run:
        _dry_run(options, as_json)
        return
    if options.full or options.calibration_seconds is not None:
        flag = "--full" if options.full else "--calibration-seconds"
        raise UsageError(f"{flag} has no effect without --dry-run.", "Add --dry-run, or leave it out.")
    from trajscore.progress import ProgressLine
    from trajscore.scoring.run import score as run

    with ProgressLine() as line:
        summary = run(**{**options.part(ScoreOptions), "progress": line})
    if as_json:
        print_json(summary.to_dict())
    else:
        OUT.line(summary.line)
    if summary.too_many_refused:
        _warn_too_many_refused(summary, options.max_refused)
        raise typer.Exit(EXIT_TOO_MANY_REFUSED)


def _dry_run(options: PlanOptions, as_json: bool) -> None:
    from trajscore.scoring.forecast.plan import score_plan

    plan = score_plan(**options.part(PlanOptions))
    if as_json:
        print_json(plan.to_dict())
        return
    from trajscore.scoring.forecast.terminal import plan_lines

    print_parts(plan_lines(plan.to_dict()))
    for warning in plan.warnings:
        ERR.line(f"warning: {warning}")


def _warn_too_many_refused(summary: ScoreSummary, allowed: float) -> None:
    ERR.line(
        f"warning: {sum(summary.refused.values()):,} of {summary.rows:,} rows were refused, more than --max-refused "
        f"{allowed:g} allows; the columns status and status_detail say why. The first of each kind:"
    )
    for status, detail in summary.first_refused.items():
        ERR.line(f"  {status}: {detail}")
