"""`trajscore export`: its options and what it prints."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from trajscore.cli.app import EXIT_FAILED, Json, app, print_json, print_parts


@app.command()
def export(
    file: Annotated[
        Path,
        typer.Argument(metavar="FILE", show_default=False, help="What `trajscore select` or `trajscore mask` wrote."),
    ],
    to: Annotated[
        str, typer.Option(metavar="trl|llamafactory|axolotl|verl", help="The trainer. See `trajscore list exporters`.")
    ],
    out: Annotated[
        Path, typer.Option(metavar="DIR", help="Folder for the export; an earlier export is replaced whole.")
    ],
    student: Annotated[
        str | None,
        typer.Option(
            metavar="MODEL",
            help="Model to be trained: counts the tokens of a selection, for the maximum length. Default: an upper bound.",
        ),
    ] = None,
    check: Annotated[
        bool,
        typer.Option(
            "--check",
            help="Read it again through the trainer's own loader, if installed, and compare token for token; exit code 1 if "
            "it differs. Default: off.",
        ),
    ] = False,
    resample: Annotated[
        bool,
        typer.Option("--resample", help="Draw rows by sample_weight instead of passing the weights on. Default: off."),
    ] = False,
    seed: Annotated[int, typer.Option(help="Seed of --resample.")] = 0,
    messages_field: Annotated[
        str | None, typer.Option(metavar="COLUMN", help="Column with the conversation. Default: messages.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Write what a trainer reads: data, configuration and the next command.

    A selection is written as conversations, a mask as tokens with labels. Weights that the trainer cannot take are refused.
    """
    from trajscore.exporters.export import export as run

    done = run(
        file, to, out, student=student, check=check, resample=resample, seed=seed, messages_field=messages_field
    )  # fmt: skip
    if as_json:
        print_json(done.to_dict())
    else:
        from trajscore.exporters.terminal import export_lines

        print_parts(export_lines(done.to_dict()))
    if done.check is not None and not done.check.passed:
        raise typer.Exit(EXIT_FAILED)
