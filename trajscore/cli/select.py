"""`trajscore select`: its options and what it prints."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from trajscore.cli.app import Folders, Json, app, print_json, print_parts

if TYPE_CHECKING:
    from trajscore.workflows.select import Selection


@app.command()
def select(
    scores: Folders,
    metric: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="Metric to rank by; repeatable: all are computed and written, the first ranks. "
            "See `trajscore list metrics`. Default: rsr.",
        ),
    ] = None,
    per_prompt: Annotated[
        int | None, typer.Option(metavar="K", help="Best rows kept of each prompt. Default: all.")
    ] = None,
    top: Annotated[
        int | None,
        typer.Option(
            metavar="K", help="Best rows kept over all prompts. Excludes --fraction, --max-tokens. Default: all."
        ),
    ] = None,
    fraction: Annotated[
        float | None,
        typer.Option(
            metavar="F",
            help="Share kept of the rows that reach this last step, 0 < F <= 1, rounded down, at least one row. "
            "Default: all.",
        ),
    ] = None,
    max_tokens: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            help="Keep the longest prefix of the ranked rows with at most N scored tokens in all. Default: all.",
        ),
    ] = None,
    where: Annotated[
        str | None,
        typer.Option(
            metavar="SQL",
            help="Keep rows where this SQL condition on columns and metrics is true, for example "
            "\"rsr < 3 AND teacher = 'QwQ-32B'\". Null counts as false. Default: all.",
        ),
    ] = None,
    prefer: Annotated[
        str | None,
        typer.Option(
            metavar="correct",
            help="Drop a prompt's incorrect rows if it has a correct one (column `correct`). Default: off.",
        ),
    ] = None,
    order: Annotated[
        str | None,
        typer.Option(metavar="asc|desc", help="Rank ascending or descending. Default: the first metric's direction."),
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the draws of --metric stat; no other step draws at random.")] = 0,
    profile: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="For --metric stat (STAT-Sel: questions drawn for the student's missing skills): what `skills profile` wrote.",
        ),
    ] = None,
    skill_map: Annotated[
        Path | None, typer.Option(metavar="FILE", help="For --metric stat: what `skills label` wrote.")
    ] = None,
    per_skill: Annotated[
        int | None,
        typer.Option(
            metavar="N", help="For --metric stat: questions drawn per difficult question and missing skill. Default: 5."
        ),
    ] = None,
    answers: Annotated[
        int | None,
        typer.Option(metavar="N", help="For --metric stat: rows kept of each drawn question, best first. Default: 3."),
    ] = None,
    total: Annotated[
        int | None, typer.Option(metavar="N", help="For --metric stat: rows kept, at random. Default: all.")
    ] = None,
    weight: Annotated[
        str | None,
        typer.Option(
            metavar="draws",
            help="For --metric stat: add sample_weight, how often a row's question was drawn (mean 1). Default: off.",
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Kept rows, .parquet or .jsonl, replaced whole. Default: not written."),
    ] = None,
    decisions: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="One line per input row, kept or dropped and by which step: .jsonl, .parquet or .csv. "
            "Default: not written.",
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Keep the trajectories that suit the student best.

    Order of steps: scored, metric defined, --where, --prefer, --per-prompt, then --top, --fraction or --max-tokens.
    Ties: lower id first.
    """
    from trajscore.workflows.select import select as run
    from trajscore.workflows.select_stat import StatSettings

    selection = run(
        list(scores),
        metric or "rsr",
        per_prompt=per_prompt,
        top=top,
        fraction=fraction,
        max_tokens=max_tokens,
        where=where,
        prefer=prefer,
        order=order,
        seed=seed,
        stat=StatSettings(profile, skill_map, per_skill, answers, total, weight),
        out=out,
        decisions=decisions,
    )
    if as_json:
        files = {"out": out and str(out), "decisions": decisions and str(decisions)}
        print_json({**selection.to_dict(), **files})
        return
    _print_selection(selection, out)


def _print_selection(selection: Selection, out: Path | None) -> None:
    from trajscore.reporting.terminal import selection_tables

    print_parts(selection_tables(selection.to_dict()))
    if out is None:
        logging.getLogger("trajscore").warning("the kept rows were not written: give --out FILE")
