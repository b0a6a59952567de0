"""`trajscore run` on the command line: calls `recipes.run`, says what each step did."""

from __future__ import annotations

from typing import Annotated

import typer

from trajscore.cli.app import EXIT_FAILED, EXIT_TOO_MANY_REFUSED, Json, app, print_json, without_models
from trajscore.cli.parameters import takes
from trajscore.display.writer import OUT
from trajscore.recipes.options import EXAMPLE, RunOptions
from trajscore.scoring.options import ScoreOptions


def _print_example(wanted: bool) -> None:
    if wanted:
        OUT.line(EXAMPLE.removesuffix("\n"))
        raise typer.Exit


PrintExample = Annotated[
    bool,
    typer.Option(
        "--print-example",
        is_eager=True,
        callback=_print_example,
        rich_help_panel="Output",
        help="Print a recipe that runs in a clone of the repository, and exit. Default: off.",
    ),
]


@app.command()
@takes(RunOptions)
def run(options: RunOptions, print_example: PrintExample = False, as_json: Json = False) -> None:
    """Run score, select, mask, export and report from one file.

    Keys are the options' names; each step reads what those before it wrote. A step that is finished with the same settings
    and inputs is skipped.
    """
    from trajscore.progress import ProgressLine
    from trajscore.recipes.reading import read_recipe
    from trajscore.recipes.run import run_recipe

    steps = read_recipe(options.recipe).steps
    scoring, exporting = steps.get("score"), steps.get("export")
    # A check loads what was exported as its trainer does, with models.
    if isinstance(scoring, ScoreOptions) and scoring.only_asks and not getattr(exporting, "check", False):
        without_models()
    with ProgressLine() as line:
        done = run_recipe(options.recipe, only=options.only, dry_run=options.dry_run, progress=line)
    if as_json:
        print_json(done.to_dict())
    else:
        for step in done.steps:
            OUT.line(f"{step.step:<7} {step.status}: {step.reason}")
    if done.failed:
        raise typer.Exit(EXIT_TOO_MANY_REFUSED if done.too_many_refused else EXIT_FAILED)
