"""`trajscore verify`: what it prints of what `scores.verifying` finds. The options are those of `scoring.options`."""

from __future__ import annotations

import typer

from trajscore.cli.app import EXIT_FAILED, Json, app
from trajscore.cli.parameters import takes
from trajscore.display.writer import OUT
from trajscore.scoring.options import VerifyOptions


@app.command()
@takes(VerifyOptions)
def verify(options: VerifyOptions, as_json: Json = False) -> None:
    """Check a score folder: manifest, checksums, schema, bounds of values, rows. Exit code 1 if something is wrong."""
    from trajscore.scores import verify as run

    found = run(options.folder)
    if as_json:
        OUT.json(found.to_dict())
    else:
        for problem in found.problems:
            OUT.line(f"wrong: {problem}")
        for note in found.notes:
            OUT.line(f"note: {note}")
        verdict = "sound" if found.sound else f"{len(found.problems):,} problems"
        OUT.line(
            f"{options.folder}: {found.parts:,} parts, {found.rows:,} rows, {found.tokens:,} tokens read: {verdict}"
        )
        if not found.sound:
            OUT.line(
                "Delete a damaged part and repeat the `trajscore score` command: it is scored again, the others stay."
            )
    if not found.sound:
        raise typer.Exit(EXIT_FAILED)
