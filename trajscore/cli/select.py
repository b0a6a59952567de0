"""`trajscore select`: its options and what it prints."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from trajscore.cli.app import Folders, Json, MetricsFile, app, print_json, print_parts

if TYPE_CHECKING:
    from trajscore.selection.select import Selection


@app.command()
def select(
    scores: Folders,
    metric: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME[:WEIGHT]",
            help="Metric to rank by; repeatable: all are computed and written, the first ranks, or all do with "
            "--combine. See `trajscore list metrics`. Default: rsr.",
        ),
    ] = None,
    preset: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="A published selection: the flags that it stands for are printed, yours win. "
            "See `trajscore list presets`. Default: none.",
        ),
    ] = None,
    combine: Annotated[
        str | None,
        typer.Option(
            metavar="rank|zscore",
            help="Rank by the weighted mean of the metrics' standings: share of the rows that are worse, or standard "
            "deviations better than the mean. A negative weight turns a metric around. Default: off.",
        ),
    ] = None,
    combine_within: Annotated[
        str | None,
        typer.Option(metavar="corpus|prompt", help="The rows that --combine compares. Default: corpus."),
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
    quota: Annotated[
        list[str] | None,
        typer.Option(
            metavar="COLUMN[:VALUE]=LIMIT",
            help="At most this share (0.3) of the kept rows, or this number (200) of them, may have the same value in a "
            "column, or this one value; repeatable, all hold. For example teacher=0.3 or teacher:QwQ-32B=200. "
            "Default: none.",
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
        typer.Option(
            metavar="asc|desc|random",
            help="Rank ascending or descending, or at random by --seed. Default: the first metric's direction.",
        ),
    ] = None,
    weight: Annotated[
        str | None,
        typer.Option(
            metavar="softmax|rank|lark|paced|draws",
            help="Write sample_weight, mean 1 over the kept rows: softmax of the ranking value, linear in the rank, "
            "LARK's, p(1-p) of a pass rate, or the draws of --metric stat. Default: not written.",
        ),
    ] = None,
    weight_within: Annotated[
        str | None,
        typer.Option(metavar="corpus|prompt", help="The kept rows that softmax and rank compare. Default: corpus."),
    ] = None,
    temperature: Annotated[
        float | None,
        typer.Option(metavar="T", help="Of --weight softmax, in the unit of the ranking value. Default: 1."),
    ] = None,
    weight_column: Annotated[
        str | None,
        typer.Option(metavar="COLUMN", help="Pass rates of the student for --weight paced. Default: pass_rate."),
    ] = None,
    seed: Annotated[int, typer.Option(help="Of --order random, a draw per id, and of the draws of --metric stat.")] = 0,
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
    explain: Annotated[
        str | None,
        typer.Option(
            metavar="ID",
            help="Say why this row was kept or dropped, beside the candidates that it competed with. Default: none.",
        ),
    ] = None,
    metrics_file: MetricsFile = None,
    as_json: Json = False,
) -> None:
    """Keep the trajectories that suit the student best.

    Order of steps: scored, metric defined, --where, --prefer, --per-prompt, then --top, --fraction or --max-tokens with
    every --quota. Ties: lower id first.
    """
    from trajscore.selection.select import select as run
    from trajscore.selection.stat_sel import StatSettings

    selection = run(
        list(scores),
        metric or None,
        preset=preset,
        combine=combine,
        combine_within=combine_within,
        per_prompt=per_prompt,
        top=top,
        fraction=fraction,
        max_tokens=max_tokens,
        quota=quota,
        where=where,
        prefer=prefer,
        order=order,
        weight=weight,
        weight_within=weight_within,
        temperature=temperature,
        weight_column=weight_column,
        seed=seed,
        stat=StatSettings(profile, skill_map, per_skill, answers, total),
        out=out,
        decisions=decisions,
        explain=explain,
        metrics_file=metrics_file,
    )
    if as_json:
        files = {"out": out and str(out), "decisions": decisions and str(decisions)}
        print_json({**selection.to_dict(), **files})
        return
    _print_selection(selection, out)


def _print_selection(selection: Selection, out: Path | None) -> None:
    from trajscore.selection.terminal import explanation_tables, selection_tables

    print_parts(selection_tables(selection.to_dict()))
    if selection.explanation is not None:
        print_parts(explanation_tables(selection.explanation))
    elif out is None:
        logging.getLogger("trajscore").warning("the kept rows were not written: give --out FILE")
