"""`trajscore merge`: its options and what it prints."""

from __future__ import annotations

from typing import Annotated

import typer

from trajscore.cli.app import EXIT_TOO_MANY_REFUSED, Json, app
from trajscore.display.writer import ERR, OUT


@app.command()
def merge(
    folder: Annotated[
        str,
        typer.Argument(metavar="DIR", show_default=False, help="The --out folder of `trajscore score --shard I/N`."),
    ],
    max_refused: Annotated[
        float, typer.Option(metavar="SHARE", help="Exit code 3 when a larger share of all rows was refused.")
    ] = 0.05,
    as_json: Json = False,
) -> None:
    """Join the shards of a score folder, once all are finished; the parts stay where they are."""
    from trajscore.scores import merge as run

    merged = run(folder)
    totals = merged.totals
    if as_json:
        OUT.json({"out": folder, **totals})
    else:
        OUT.line(
            f"{totals['rows']:,} rows = {totals['scored']:,} scored + {totals['refused']:,} refused, "
            f"{totals['tokens']:,} tokens in {len(merged.parts):,} parts -> {folder}"
        )
    if totals["refused"] > max_refused * totals["rows"]:
        ERR.line(f"warning: more rows were refused than --max-refused {max_refused:g} allows")
        raise typer.Exit(EXIT_TOO_MANY_REFUSED)
