"""`trajscore score`: its options, its progress line and what it prints."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from trajscore.cli.app import EXIT_TOO_MANY_REFUSED, Json, app, print_json, print_parts
from trajscore.cli.score_arguments import (
    Dtype,
    OnLostText,
    OnOverlong,
    ScoreCommand,
    Storage,
    Turns,
    engine_args,
    json_object,
)
from trajscore.display.formatting import visible
from trajscore.errors import UsageError

if TYPE_CHECKING:
    from trajscore.scoring.run import ScoreSummary


@app.command(cls=ScoreCommand)
def score(
    data: Annotated[
        list[str],
        typer.Argument(
            metavar="DATA", show_default=False, help="JSONL, JSON or Parquet files, folders, globs, or a hub data set."
        ),
    ],
    student: Annotated[
        str, typer.Option(metavar="MODEL", show_default=False, help="The model to be trained: hub id or folder.")
    ],
    out: Annotated[
        str,
        typer.Option(
            metavar="DIR",
            show_default=False,
            help="Folder for the scores, local or s3://, gs://; a second run continues the first.",
        ),
    ],
    teacher: Annotated[
        list[str] | None,
        typer.Option(
            metavar="MODEL|NAME=MODEL",
            help="Model to compare with; NAME=MODEL, repeated, reads the rows whose `teacher` is NAME. Default: none.",
        ),
    ] = None,
    distilled: Annotated[
        str | None, typer.Option(metavar="MODEL", help="The student after training. Default: none.")
    ] = None,
    divergence: Annotated[
        str | None,
        typer.Option(
            metavar="exact|topk:K|none",
            help="Divergences of student and teacher at every token. Default: exact where the tokenizers agree.",
        ),
    ] = None,
    align: Annotated[
        str | None,
        typer.Option(
            metavar="bytes",
            help="Where the tokenizers differ: chunks that end at the same byte. Default: sentences only.",
        ),
    ] = None,
    teacher_logprobs: Annotated[
        str | None,
        typer.Option(
            metavar="COLUMN", help="Log-probabilities that came with the data, in place of --teacher. Default: none."
        ),
    ] = None,
    swap_models: Annotated[
        bool | None,
        typer.Option(
            "--swap-models/--keep-models",
            help="One model in memory at a time, or all. Default: one with vLLM, all with transformers.",
            show_default=False,
        ),
    ] = None,
    hidden_budget: Annotated[
        float,
        typer.Option(metavar="GIB", help="Disk that hidden states may take while they wait for the student, GiB."),
    ] = 20.0,
    engine: Annotated[
        str,
        typer.Option(
            metavar="auto|vllm|hf",
            help="What runs the model: vLLM or transformers; auto: vLLM if it is installed and can run it.",
        ),
    ] = "auto",
    revision: Annotated[str | None, typer.Option(help="Hub revision of the student. Default: its main branch.")] = None,
    dtype: Annotated[
        Dtype,
        typer.Option(
            help="Backbone precision; auto: float32 on CPU, else the checkpoint's. The head is float32 always."
        ),
    ] = Dtype.auto,
    device: Annotated[
        str, typer.Option(metavar="auto|cpu|cuda[:N]|mps|balanced", help="balanced: one model over all GPUs.")
    ] = "auto",
    attn_implementation: Annotated[
        str | None,
        typer.Option(help="Attention of transformers (sdpa, flash_attention_2, eager). Default: its choice."),
    ] = None,
    max_num_batched_tokens: Annotated[
        int, typer.Option(metavar="N", help="Tokens per forward pass; lowered when memory runs out.")
    ] = 8192,
    tensor_parallel_size: Annotated[int, typer.Option(metavar="N", help="GPUs that share one model (vLLM).")] = 1,
    data_parallel_size: Annotated[
        int, typer.Option(metavar="N", help="Engines side by side, each with GPUs of its own (vLLM).")
    ] = 1,
    gpu_memory_utilization: Annotated[
        float | None, typer.Option(metavar="SHARE", help="Share of a GPU's memory for vLLM. Default: vLLM's own.")
    ] = None,
    quantization: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="How vLLM quantises the weights. Default: as the checkpoint says."),
    ] = None,
    engine_arg: Annotated[
        list[str] | None,
        typer.Option(metavar="KEY=VALUE", help="Any other argument of vllm.EngineArgs; repeatable. Default: none."),
    ] = None,
    max_model_len: Annotated[
        int | None,
        typer.Option(metavar="N", help="Longest rendered conversation, tokens. Default: what the student takes."),
    ] = None,
    on_overlong: Annotated[
        OnOverlong, typer.Option(help="Refuse longer rows, or truncate them at the end and mark them.")
    ] = OnOverlong.refuse,
    on_lost_text: Annotated[
        OnLostText,
        typer.Option(help="Refuse rows of which the chat template drops text, or accept them as training would."),
    ] = OnLostText.refuse,
    turns: Annotated[Turns, typer.Option(help="Assistant turns to score.")] = Turns.all,
    chat_template: Annotated[
        str | None,
        typer.Option(
            metavar="FILE|MODEL", help="Jinja file, or model whose template is used. Default: the student's own."
        ),
    ] = None,
    chat_template_kwargs: Annotated[
        str | None, typer.Option(metavar="JSON", help="Variables for the template, e.g. '{\"enable_thinking\": true}'.")
    ] = None,
    extra: Annotated[
        list[str] | None, typer.Option(metavar="collision", help="Optional column to write; repeatable. Default: none.")
    ] = None,
    unconditional: Annotated[
        bool,
        typer.Option(
            "--unconditional",
            help="Read each response again without its prompt; the metric ifd needs it. Default: off.",
        ),
    ] = False,
    part_rows: Annotated[int, typer.Option(metavar="N", help="Rows per part; a kill loses at most one part.")] = 500,
    storage: Annotated[
        Storage,
        typer.Option(
            help="float16: statistics keep float16's 11 significant bits (error at most 0.05 %) in columns of float32; "
            "smaller files. Ranks stay exact."
        ),
    ] = Storage.float32,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Start anew, deleting the scores in DIR. Default: off.")
    ] = False,
    ray: Annotated[
        str | None,
        typer.Option(
            metavar="[ADDRESS]",
            help="Score on a Ray cluster: host:port, or alone for the one that is found or a new one here. Default: off.",
        ),
    ] = None,
    ray_workers: Annotated[
        int | None,
        typer.Option(
            metavar="N", help="Ray workers, each with its models. Default: as GPUs allow; without GPUs one per machine."
        ),
    ] = None,
    shard: Annotated[
        str | None,
        typer.Option(
            metavar="I/N",
            help="Every N-th part from part I (from 0) on, for one of N jobs on one DIR; then `trajscore merge`. Default: all.",
        ),
    ] = None,
    max_refused: Annotated[
        float, typer.Option(metavar="SHARE", help="Exit code 3 when a larger share of the rows was refused.")
    ] = 0.05,
    limit: Annotated[int | None, typer.Option(metavar="N", help="Only the first N rows. Default: all.")] = None,
    split: Annotated[str, typer.Option(help="Split of a hub data set.")] = "train",
    config_name: Annotated[str | None, typer.Option(help="Configuration of a hub data set. Default: its own.")] = None,
    data_revision: Annotated[
        str | None, typer.Option(help="Revision of a hub data set. Default: its main branch.")
    ] = None,
    streaming: Annotated[
        bool, typer.Option("--streaming", help="Read a hub data set without downloading it first. Default: off.")
    ] = False,
    id_field: Annotated[
        str | None, typer.Option(metavar="COLUMN", help="Column for id. Default: id, else a hash.")
    ] = None,
    prompt_field: Annotated[
        str | None,
        typer.Option(metavar="COLUMN", help="Column that identifies the prompt. Default: prompt_id, else a hash."),
    ] = None,
    teacher_field: Annotated[
        str | None, typer.Option(metavar="COLUMN", help="Column naming who wrote the row. Default: teacher.")
    ] = None,
    messages_field: Annotated[
        str | None, typer.Option(metavar="COLUMN", help="Column with the conversation. Default: messages.")
    ] = None,
    trust_remote_code: Annotated[
        bool, typer.Option("--trust-remote-code", help="Run code that comes with the model. Default: off.")
    ] = False,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run", help="Say what the run would read, refuse, write and take, and write nothing. Default: off."
        ),
    ] = False,
    full: Annotated[
        bool, typer.Option("--full", help="With --dry-run: render every row, not a sample. Default: off.")
    ] = False,
    calibration_seconds: Annotated[
        float | None,
        typer.Option(
            metavar="SECONDS",
            help="With --dry-run: how long to time the models. Default: about 30.",
            show_default=False,
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Add per-token rank, surprisal and entropy of a student to a corpus, exact over the whole vocabulary.

    Writes all input rows and columns, in order, with the scores beside them, as Parquet parts and a manifest. Rows that
    cannot be scored stay, with the reason in `status`. The same command again continues where it stopped.
    """
    # Named here, not passed by locals(): an option that the workflow does not know must fail in review.
    options: dict[str, Any] = {
        "teacher": teacher or [],
        "distilled": distilled,
        "divergence": divergence,
        "align": align,
        "teacher_logprobs": teacher_logprobs,
        "swap_models": swap_models,
        "hidden_budget": hidden_budget,
        "engine": engine,
        "revision": revision,
        "dtype": dtype.value,
        "device": device,
        "attn_implementation": attn_implementation,
        "max_num_batched_tokens": max_num_batched_tokens,
        "tensor_parallel_size": tensor_parallel_size,
        "data_parallel_size": data_parallel_size,
        "gpu_memory_utilization": gpu_memory_utilization,
        "quantization": quantization,
        "engine_args": engine_args(engine_arg or []),
        "max_model_len": max_model_len,
        "on_overlong": on_overlong.value,
        "on_lost_text": on_lost_text.value,
        "turns": turns.value,
        "chat_template": chat_template,
        "extra": extra or [],
        "unconditional": unconditional,
        "part_rows": part_rows,
        "storage": storage.value,
        "overwrite": overwrite,
        "ray": ray,
        "ray_workers": ray_workers,
        "shard": shard,
        "max_refused": max_refused,
        "limit": limit,
        "split": split,
        "config_name": config_name,
        "data_revision": data_revision,
        "streaming": streaming,
        "id_field": id_field,
        "prompt_field": prompt_field,
        "teacher_field": teacher_field,
        "messages_field": messages_field,
        "trust_remote_code": trust_remote_code,
    }
    options["chat_template_kwargs"] = json_object(chat_template_kwargs)
    if dry_run:
        _dry_run(list(data), student, out, full, calibration_seconds, options, as_json)
        return
    if full or calibration_seconds is not None:
        flag = "--full" if full else "--calibration-seconds"
        raise UsageError(f"{flag} says something only with --dry-run.", "Add --dry-run, or leave it out.")
    from trajscore.progress import ProgressLine
    from trajscore.scoring.run import score as run

    with ProgressLine() as line:
        summary = run(list(data), student, out, progress=line, **options)
    if as_json:
        print_json(summary.to_dict())
    else:
        _print_summary(summary)
    if summary.too_many_refused:
        _warn_too_many_refused(summary, max_refused)
        raise typer.Exit(EXIT_TOO_MANY_REFUSED)


def _dry_run(
    data: list[str], student: str, out: str, full: bool, seconds: float | None, options: dict[str, Any], as_json: bool
) -> None:
    from trajscore.scoring.forecast.plan import score_plan

    timed = {} if seconds is None else {"calibration_seconds": seconds}
    plan = score_plan(data, student, out, full=full, **timed, **options)
    if as_json:
        print_json(plan.to_dict())
        return
    from trajscore.scoring.forecast.terminal import plan_lines

    print_parts(plan_lines(plan.to_dict()))
    for warning in plan.warnings:
        sys.stderr.write(f"warning: {warning}\n")


def _print_summary(summary: ScoreSummary) -> None:
    refused = sum(summary.refused.values())
    reasons = ", ".join(f"{count:,} {status}" for status, count in summary.refused.items())
    sys.stdout.write(
        f"{summary.rows:,} rows = {summary.scored:,} scored + {refused:,} refused{f' ({reasons})' if reasons else ''}, "
        f"{summary.tokens:,} tokens, {summary.seconds:.1f} s -> {visible(summary.out)}\n"
    )


def _warn_too_many_refused(summary: ScoreSummary, allowed: float) -> None:
    sys.stderr.write(
        f"warning: {sum(summary.refused.values()):,} of {summary.rows:,} rows were refused, more than --max-refused "
        f"{allowed:g} allows; the columns status and status_detail say why. The first of each kind:\n"
    )
    for status, detail in summary.first_refused.items():
        sys.stderr.write(f"  {status}: {visible(detail)}\n")
