"""`trajscore report`: its options and what it prints."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from trajscore.cli.app import Json, MetricsFile, app, print_json, print_parts


@app.command()
def report(
    scores: Annotated[
        list[str] | None,
        typer.Argument(metavar="SCORES", show_default=False, help="Folders that `trajscore score` wrote."),
    ] = None,
    metric: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="Metric to report; repeatable. Default: all whose columns are there."),
    ] = None,
    confidence: Annotated[
        float,
        typer.Option(metavar="P", help="Share of intervals that hold the true value, 0 < P < 1; also for --plan."),
    ] = 0.9,
    replicates: Annotated[int, typer.Option(metavar="B", help="Bootstrap replicates over prompts.")] = 1000,
    seed: Annotated[int, typer.Option(help="Seed of the resampling; the same seed gives the same numbers.")] = 0,
    performance: Annotated[
        Path | None,
        typer.Option(
            metavar="CSV",
            help="Scores after training, columns student, teacher, score (any unit): adds correlations. Default: none.",
        ),
    ] = None,
    table: Annotated[
        Path | None,
        typer.Option(
            metavar="CSV",
            help="Columns student, teacher and one per metric, in place of SCORES. Default: none.",
        ),
    ] = None,
    metrics_file: MetricsFile = None,
    plan: Annotated[
        bool,
        typer.Option("--plan", help="Also say how many trajectories settle the ranking at --confidence. Default: off."),
    ] = False,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.html", help="Write the report as one HTML page that needs no network. Default: not written."
        ),
    ] = None,
    csv: Annotated[
        Path | None,
        typer.Option(metavar="FILE.csv", help="Write every number of the report as one table. Default: not written."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Rank teachers by how well what they wrote suits the student, with intervals from a bootstrap over prompts.

    Teachers are ranked by rsr (else by the first --metric), best first; ties by name. Folders of several students give
    one ranking for each.
    """
    from trajscore.ranking.report import report as run

    result = run(
        list(scores) if scores else None,
        metrics=metric or None,
        confidence=confidence,
        replicates=replicates,
        seed=seed,
        performance=performance,
        table=table,
        metrics_file=metrics_file,
        plan=plan,
        out=out,
        csv=csv,
    )
    if as_json:
        print_json(result.to_dict())
        return
    from trajscore.ranking.terminal import report_tables

    print_parts(report_tables(result))
