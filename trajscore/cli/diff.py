"""`trajscore diff` on the command line: calls `selection.diff`, shows it by `selection.terminal`."""

from __future__ import annotations

from trajscore.cli.app import Json, app, print_json, print_parts
from trajscore.cli.parameters import takes
from trajscore.selection.options import DiffOptions


@app.command()
@takes(DiffOptions)
def diff(options: DiffOptions, as_json: Json = False) -> None:
    """Compare two selections: rows in common, tokens, share correct, teachers and metrics."""
    from trajscore.selection.diff import diff as run
    from trajscore.selection.terminal import diff_tables

    found = run(**vars(options))
    if as_json:
        print_json(found.to_dict())
        return
    print_parts(diff_tables(found.to_dict()))
