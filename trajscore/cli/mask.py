"""`trajscore mask`: its options and what it prints."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Annotated

import typer

from trajscore.cli.app import Folders, Json, app, print_json, print_parts


@app.command()
def mask(
    scores: Folders,
    rule: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Which tokens count: see `trajscore list rules`. Needed without --preset."),
    ] = None,
    preset: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="A published mask in place of --rule: the flags that it stands for are printed, yours win. "
            "See `trajscore list presets`. Default: none.",
        ),
    ] = None,
    keep: Annotated[
        float | None,
        typer.Option(
            metavar="R",
            help="Share of each trajectory's N scored tokens, 0 < R <= 1: exactly max(1, floor(R N)) are kept, among equal "
            "values the earlier ones. Needed by rules that keep a share. Default: none.",
        ),
    ] = None,
    seed: Annotated[int, typer.Option(help="For rules that draw; the draw depends on seed, id and position only.")] = 0,
    scope: Annotated[
        str,
        typer.Option(
            metavar="corpus|trajectory",
            help="For soft_or and q3: values are normalised over all rows that are masked, or within each.",
        ),
    ] = "corpus",
    by: Annotated[
        str | None,
        typer.Option(
            metavar="COLUMN",
            help="For divergence: kl_student_teacher, kl_teacher_student, js, or one of these with _topk. "
            "Default: kl_student_teacher.",
        ),
    ] = None,
    tau: Annotated[
        float | None, typer.Option(metavar="NATS", help="For confidence_gap: temperature of the gate. Default: 1.")
    ] = None,
    beta: Annotated[
        float | None,
        typer.Option(
            metavar="P",
            help="For teacher_sentences: difference of sentence probabilities above which the teacher leads. "
            "Default: 0.1.",
        ),
    ] = None,
    low: Annotated[
        float | None, typer.Option(metavar="NATS", help="For surprisal_band: smallest surprisal kept. Default: open.")
    ] = None,
    high: Annotated[
        float | None, typer.Option(metavar="NATS", help="For surprisal_band: largest surprisal kept. Default: open.")
    ] = None,
    selected: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="What `trajscore select --out` wrote (.parquet or .jsonl): only its rows, in its order, with its "
            "sample_weight. Default: all scored rows.",
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Masked rows, .parquet or .jsonl, replaced whole. .parquet also keeps how they were made. "
            "Default: not written.",
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Decide which tokens are trained on, and write them as labels.

    Each row gets input_ids and labels: the token where there is loss, -100 elsewhere, unshifted; and loss_weight if the rule
    is soft.
    """
    from trajscore.masking.mask import mask as run

    masking = run(
        list(scores),
        rule,
        preset=preset,
        keep=keep,
        seed=seed,
        scope=scope,
        by=by,
        tau=tau,
        beta=beta,
        low=low,
        high=high,
        selected=selected,
        out=out,
    )
    if as_json:
        print_json({**masking.to_dict(), "out": out and str(out)})
        return
    from trajscore.masking.terminal import masking_lines

    print_parts(masking_lines(masking.to_dict()))
    if out is None:
        logging.getLogger("trajscore").warning("the masked rows were not written: give --out FILE")
