"""`trajscore trace`: its options and what it prints."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from trajscore.cli.app import Folders, Json, app, print_json, print_parts


@app.command()
def trace(
    scores: Folders,
    alpha: Annotated[
        float,
        typer.Option(metavar="P", help="Probability difference up to which three models agree, 0 <= P < 1."),
    ] = 0.1,
    beta: Annotated[
        float,
        typer.Option(metavar="P", help="Probability difference above which teacher and student differ, 0 <= P < 1."),
    ] = 0.1,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="One line per sentence (.parquet, .csv or .jsonl), or a page with the coloured text (.html); replaced whole. "
            "Default: not written.",
        ),
    ] = None,
    text: Annotated[
        bool,
        typer.Option("--text/--no-text", help="Whether tables hold the sentences' text, which takes most of the time."),
    ] = True,
    show: Annotated[
        int, typer.Option(metavar="N", help="Trajectories whose text is on the page, the first ones.")
    ] = 50,
    as_json: Json = False,
) -> None:
    """Tell which model every sentence comes from, by the probabilities that models give it.

    With a distilled model in the scores: shared, teacher, student, boosted. Without: common, teacher, student.
    """
    from trajscore.viewing.trace import trace as run

    tracing = run(list(scores), alpha=alpha, beta=beta, out=out, text=text, show=show)
    if as_json:
        print_json({**tracing.to_dict(), "out": out and str(out)})
        return
    from trajscore.viewing.trace_terminal import tracing_tables

    print_parts(tracing_tables(tracing.to_dict()))
