"""`trajscore verify`: its options and what it prints."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from trajscore.cli.app import EXIT_FAILED, Json, app, print_json


@app.command()
def verify(
    folder: Annotated[
        str, typer.Argument(metavar="DIR", show_default=False, help="Folder that `trajscore score` wrote.")
    ],
    as_json: Json = False,
) -> None:
    """Check a score folder: manifest, checksums, schema, bounds of values, rows. Exit code 1 if something is wrong."""
    from trajscore.scores import verify as run

    found = run(folder)
    if as_json:
        print_json(found.to_dict())
    else:
        for problem in found.problems:
            sys.stdout.write(f"wrong: {problem}\n")
        for note in found.notes:
            sys.stdout.write(f"note: {note}\n")
        verdict = "sound" if found.sound else f"{len(found.problems):,} problems"
        sys.stdout.write(
            f"{folder}: {found.parts:,} parts, {found.rows:,} rows, {found.tokens:,} tokens read: {verdict}\n"
        )
        if not found.sound:
            sys.stdout.write(
                "Delete a damaged part and repeat the `trajscore score` command: it is scored again, the others stay.\n"
            )
    if not found.sound:
        raise typer.Exit(EXIT_FAILED)
