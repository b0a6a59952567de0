"""`trajscore diff`: two selections side by side."""

from __future__ import annotations

from typing import Annotated

import typer

from trajscore.cli.app import Json, app, print_json, print_parts


@app.command()
def diff(
    a: Annotated[str, typer.Argument(metavar="A", help="A file that `trajscore select --out` wrote.")],
    b: Annotated[str, typer.Argument(metavar="B", help="Another one.")],
    as_json: Json = False,
) -> None:
    """Compare two selections: rows in common, tokens, share correct, teachers and metrics."""
    from trajscore.selection.diff import diff as run
    from trajscore.selection.terminal import diff_tables

    found = run(a, b)
    if as_json:
        print_json(found.to_dict())
        return
    print_parts(diff_tables(found.to_dict()))
