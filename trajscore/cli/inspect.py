"""`trajscore inspect`: its options and what it prints."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from trajscore.cli.app import Folders, Json, app, print_json, print_parts


@app.command()
def inspect(
    scores: Folders,
    id: Annotated[
        list[str] | None, typer.Option(metavar="ID", help="Trajectory to show; repeatable.", show_default=False)
    ] = None,
    by: Annotated[
        str,
        typer.Option(
            metavar="STAT",
            help="What colours the tokens: rank, surprisal, entropy, any token or sentence column, sentence, sentence_class, "
            "phase, mask.",
        ),
    ] = "surprisal",
    worst: Annotated[
        int | None, typer.Option(metavar="N", help="The N trajectories with the worst --metric. Default: by --id.")
    ] = None,
    best: Annotated[
        int | None, typer.Option(metavar="N", help="The N trajectories with the best --metric. Default: by --id.")
    ] = None,
    metric: Annotated[
        str, typer.Option(metavar="NAME", help="What --worst and --best are by; ties: lower id first.")
    ] = "rsr",
    mask: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="A file of `trajscore mask`; its weights are then --by mask. Default: none."),
    ] = None,
    numbers: Annotated[
        bool, typer.Option("--numbers", help="Print every scored token's numbers as a table, too. Default: off.")
    ] = False,
    out: Annotated[
        Path | None,
        typer.Option(metavar="FILE.html", help="Write a page with search and numbers. Default: print in the terminal."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Show trajectories token by token, coloured by a statistic; prompt and unscored text in grey."""
    from trajscore.viewing.inspect import inspect as run

    made = run(list(scores), id or None, by=by, worst=worst, best=best, metric=metric, mask=mask, out=out)
    if as_json:
        print_json(made.to_dict())
        return
    if out is None or numbers:
        from trajscore.viewing.terminal import token_parts

        print_parts(token_parts(made.views, made.by, numbers))
