"""`trajscore merge`: what it prints of what `scores.merging` joins. The options are those of `scoring.options`."""

from __future__ import annotations

import typer

from trajscore.cli.app import EXIT_TOO_MANY_REFUSED, Json, app
from trajscore.cli.parameters import takes
from trajscore.display.writer import ERR, OUT
from trajscore.scoring.options import MergeOptions


@app.command()
@takes(MergeOptions)
def merge(options: MergeOptions, as_json: Json = False) -> None:
    """Join the shards of a score folder, once all are finished; the parts stay where they are."""
    from trajscore.scores import merge as run

    merged = run(options.folder)
    totals = merged.totals
    if as_json:
        OUT.json({"out": options.folder, **totals})
    else:
        OUT.line(
            f"{totals['rows']:,} rows = {totals['scored']:,} scored + {totals['refused']:,} refused, "
            f"{totals['tokens']:,} tokens in {len(merged.parts):,} parts -> {options.folder}"
        )
    if totals["refused"] > options.max_refused * totals["rows"]:
        ERR.line(f"warning: more rows were refused than --max-refused {options.max_refused:g} allows")
        raise typer.Exit(EXIT_TOO_MANY_REFUSED)
