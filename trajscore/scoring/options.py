"""Every option of `trajscore score` and its dry run, `merge`, `verify` and `slurm`, with limits and contradictions.

Those that other commands share (how a model is run, how a conversation is rendered) are in `options.groups`; the flag
`--dry-run` itself is in `cli.score`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from trajscore.errors import UsageError
from trajscore.options import USUAL, Options, argument, option
from trajscore.options.groups import PLACE, EngineOptions, RenderOptions, ServerOptions
from trajscore.progress import Progress

PARTS = "which rows are computed when and where; each row's numbers are the same"


def _adapter(help: str, recorded_by: str) -> str | Path | None:
    """An option for the adapter of one of the models."""
    return option(default=None, panel="Models", metavar="DIR", otherwise="none", help=help, recorded_by=recorded_by)


def _served_model(role: str, recorded_by: str) -> str | None:
    """An option for the name under which a server knows one of the models."""
    return option(
        default=None,
        panel="Server",
        metavar="NAME",
        otherwise=f"its only one, or of the {role}'s name",
        help=f"What the server calls the {role}.",
        recorded_by=recorded_by,
    )


class ScoreOptions(EngineOptions, RenderOptions, ServerOptions):
    """Everything `score` can be told: how the model runs or is asked, how conversations become tokens, and the following."""

    data: str | Path | Sequence[str | Path] = argument(
        kw_only=False,
        metavar="DATA",
        help="JSONL, JSON or Parquet files, folders, globs, or a hub data set.",
        recorded_by="input",
    )
    student: str | Path = option(
        kw_only=False,
        panel=USUAL,
        metavar="MODEL",
        help="The model to be trained: hub id or folder with safetensors weights.",
        recorded_by="student.weights_sha256",
    )
    out: str | Path = option(
        kw_only=False,
        panel=USUAL,
        metavar="DIR",
        help="Folder for the scores, local or s3://, gs://; a second run continues the first.",
        writes=True,
    )
    teacher: str | Path | Sequence[str | Path] = option(
        default=(),
        panel="Models",
        metavar="MODEL|NAME=MODEL",
        otherwise="none",
        help="Model to compare with; NAME=MODEL, repeated, reads the rows whose `teacher` is NAME.",
        recorded_by="others",
    )
    distilled: str | Path | None = option(
        default=None, panel="Models", metavar="MODEL", help="The student after training.", recorded_by="others"
    )
    adapter: str | Path | None = _adapter(
        "Adapter (LoRA and its kin, a folder that peft wrote) to merge into the student.", "student.adapter"
    )
    teacher_adapter: str | Path | None = _adapter("Adapter to merge into the teacher.", "others")
    distilled_adapter: str | Path | None = _adapter(
        "Adapter to merge into --distilled: what training the student with LoRA gives.", "others"
    )
    revision: str | None = option(
        default=None,
        panel="Models",
        metavar="NAME",
        otherwise="its main branch",
        help="Hub revision of the student.",
        recorded_by="student.revision",
    )
    engine: Literal["auto", "vllm", "hf", "server"] = option(
        default="auto",
        panel="Engine",
        help="What runs the model: vLLM or transformers (hf); auto: vLLM if it is installed and can run it; server: the "
        "student is asked at --base-url.",
        recorded_by="student.engine",
    )
    base_url: str | None = option(
        default=None,
        panel="Server",
        metavar="URL",
        help="For --engine server: where the student answers, up to /v1. --student then names its tokenizer. The key is in "
        "TRAJSCORE_API_KEY or OPENAI_API_KEY.",
        recorded_by="student.served_model",
    )
    served_model: str | None = _served_model("student", "student.served_model")
    teacher_base_url: str | None = option(
        default=None,
        panel="Server",
        metavar="URL",
        otherwise="the teacher is loaded here",
        help="Where the teacher answers, up to /v1, whatever runs the student. --teacher then names its tokenizer.",
        recorded_by="others",
    )
    teacher_served_model: str | None = _served_model("teacher", "others")
    divergence: str | None = option(
        default=None,
        panel="Statistics",
        metavar="exact|topk:K|none",
        otherwise="exact where the tokenizers agree",
        help="Divergences of student and teacher at every token.",
    )
    align: Literal["bytes"] | None = option(
        default=None,
        panel="Statistics",
        metavar="bytes",
        otherwise="sentences only",
        help="Where the tokenizers differ: chunks that end at the same byte.",
    )
    teacher_logprobs: str | None = option(
        default=None,
        panel="Data",
        metavar="COLUMN",
        help="Log-probabilities that came with the data, in place of --teacher.",
    )
    extra: Sequence[str] = option(
        default=(),
        panel="Statistics",
        metavar="NAME[:VALUE]",
        otherwise="none",
        help="A further column, repeated for several: collision, local:K; with a teacher also tv, hellinger, jsd:B, skew_kl:A, "
        "skew_rkl:A, renyi:A, kl_at:T, standardised:T, topk_mass:K.",
    )
    keep_topk: int | None = option(
        default=None,
        panel="Statistics",
        metavar="K",
        otherwise="none",
        at_least=1,
        help="Keep the teacher's K best entries of each token with their log-probabilities; without a teacher the student's.",
    )
    topk_at: Literal["teacher", "student"] = option(
        default="teacher",
        panel="Statistics",
        help="Whose K best entries --keep-topk keeps the teacher's log-probabilities of.",
    )
    unconditional: bool = option(
        default=False,
        panel="Statistics",
        help="Read each response again without its prompt; the metric ifd needs it.",
    )
    storage: Literal["float32", "float16"] = option(
        default="float32",
        panel="Statistics",
        help="float16: statistics keep float16's 11 significant bits (error at most 0.05 %) in columns of float32; "
        "smaller files. Ranks stay exact.",
    )
    limit: int | None = option(
        default=None, panel=USUAL, unit="rows", otherwise="all", at_least=1, help="Read the first rows only."
    )
    split: str | None = option(
        default=None,
        panel="Data",
        metavar="NAME",
        otherwise="train, or the only one",
        help="Split of a hub data set, or of a folder with files of several.",
        recorded_by="input",
    )
    config_name: str | None = option(
        default=None,
        panel="Data",
        metavar="NAME",
        otherwise="its own",
        help="Configuration of a hub data set.",
        recorded_by="input",
    )
    data_revision: str | None = option(
        default=None,
        panel="Data",
        metavar="NAME",
        otherwise="its main branch",
        help="Revision of a hub data set.",
        recorded_by="input",
    )
    streaming: bool = option(
        default=False,
        panel="Data",
        help="Read a hub data set without downloading it first.",
        recorded_by="input",
    )
    id_field: str | None = option(
        default=None,
        panel="Data",
        metavar="COLUMN",
        otherwise="id, else a hash",
        help="Column for id.",
        recorded_as="fields.id",
    )
    prompt_field: str | None = option(
        default=None,
        panel="Data",
        metavar="COLUMN",
        otherwise="prompt_id, else a hash",
        help="Column that identifies the prompt.",
        recorded_as="fields.prompt",
    )
    teacher_field: str | None = option(
        default=None,
        panel="Data",
        metavar="COLUMN",
        otherwise="teacher",
        help="Column naming who wrote the row.",
        recorded_as="fields.teacher",
    )
    messages_field: str | None = option(
        default=None,
        panel="Data",
        metavar="COLUMN",
        otherwise="messages",
        help="Column with the conversation.",
        recorded_as="fields.messages",
    )
    response_field: str | None = option(
        default=None,
        panel="Data",
        metavar="COLUMN",
        otherwise="found by its name",
        help="Column with the response; a list holds one trajectory an element.",
        recorded_as="fields.response",
    )
    reasoning_field: str | None = option(
        default=None,
        panel="Data",
        metavar="COLUMN",
        otherwise="found by its name",
        help="Column with the thoughts before the response.",
        recorded_as="fields.reasoning",
    )
    system_field: str | None = option(
        default=None,
        panel="Data",
        metavar="COLUMN",
        otherwise="system or system_prompt",
        help="Column with the system prompt.",
        recorded_as="fields.system",
    )
    correct_field: str | None = option(
        default=None,
        panel="Data",
        metavar="COLUMN",
        otherwise="correct, or another that is known",
        help="Column that says whether a trajectory is right: true/false, 1/0, yes/no.",
        recorded_as="fields.correct",
    )
    ids_field: str | None = option(
        default=None,
        panel="Data",
        metavar="COLUMN",
        otherwise="input_ids or tokens, if a mask is there",
        help="Column with the token ids of prompt and response.",
        recorded_as="fields.ids",
    )
    mask_field: str | None = option(
        default=None,
        panel="Data",
        metavar="COLUMN",
        otherwise="labels, loss_mask, ..., by their names",
        help="Column that says which token ids are trained on.",
        recorded_as="fields.mask",
    )
    teacher_messages_field: str | None = option(
        default=None,
        panel="Data",
        metavar="COLUMN",
        otherwise="the row's own",
        help="Column with the prompt, messages or a text, that the teacher reads before the same response.",
        recorded_as="fields.teacher_messages",
    )
    strict_text: bool = option(
        default=False,
        panel="Data",
        help="Refuse a row of token ids whose text says something else, instead of counting it.",
    )
    correct_at: float | None = option(
        default=None,
        panel="Data",
        metavar="T",
        otherwise="only 0 and 1 say so",
        help="Numbers from T on mean that a trajectory is right.",
    )
    ignore_columns: str | None = option(
        default=None,
        panel="Data",
        metavar="A,B",
        otherwise="none",
        help="Columns to read nothing from, on purpose.",
    )
    teacher_from: Literal["path"] | None = option(
        default=None,
        panel=USUAL,
        metavar="path",
        otherwise="the row's own columns",
        help="path: the name of the file or folder, where rows name no teacher.",
    )
    id_from: Literal["file"] | None = option(
        default=None,
        panel=USUAL,
        metavar="file",
        otherwise="the row's own id",
        help="file: ids begin with the file's name, for files that each count from 0.",
    )
    prompt_by: Literal["all", "user"] = option(
        default="all",
        panel="Data",
        help="What tells prompts apart: all turns before the response, or the user's text alone, without the system prompt.",
    )
    rendered: Literal["refuse", "accept"] = option(
        default="refuse",
        panel="Data",
        help="Refuse `text` and `prompt` to which a chat template was applied already, or read them as they are: names of "
        "control tokens are those tokens, and the assistant's turns are found by the student's own markers.",
    )
    swap_models: bool | None = option(
        default=None,
        panel="Engine",
        flag="--swap-models/--keep-models",
        otherwise="all with transformers, and with vLLM where they fit",
        help="One model in memory at a time, or all.",
        harmless=PLACE,
    )
    hidden_budget: float = option(
        default=20.0,
        panel="Engine",
        unit="GiB",
        above=0,
        help="Disk that hidden states may take while they wait for the student.",
        harmless=PLACE,
    )
    part_rows: int = option(default=500, unit="rows", at_least=1, help="Rows per part; a kill loses at most one part.")
    overwrite: bool = option(default=False, help="Start anew, deleting the scores in DIR.", harmless=PARTS)
    keep_foreign: bool = option(
        default=False,
        help="Begin in DIR also where it holds files of others, and leave those.",
        harmless=PARTS,
    )
    reuse: str | Path | None = option(
        default=None,
        metavar="DIR",
        otherwise="none",
        help="Older scores: rows that the models would read alike are copied, not scored.",
        harmless="what is copied has the numbers that scoring would give",
    )
    break_lock: bool = option(
        default=False,
        help="Take DIR from a process that died with its machine and left its lock.",
        harmless=PARTS,
    )
    max_refused: float = option(
        default=0.05,
        metavar="SHARE",
        at_least=0,
        at_most=1,
        help="Exit code 3 when a larger share of the rows was refused.",
        harmless="only the exit code depends on it",
    )
    shard: str | None = option(
        default=None,
        panel="Cluster",
        metavar="I/N",
        otherwise="all",
        help="Every N-th part from part I (from 0) on, for one of N jobs on one DIR; then `trajscore merge`.",
        harmless=PARTS,
    )
    ray: str | None = option(
        default=None,
        panel="Cluster",
        metavar="[ADDRESS]",
        otherwise="off",
        help="Score on a Ray cluster: host:port, or alone for the one that is found or a new one here.",
        harmless=PARTS,
    )
    ray_workers: int | None = option(
        default=None,
        panel="Cluster",
        metavar="N",
        otherwise="as GPUs allow; without GPUs one per machine",
        at_least=1,
        help="Ray workers, each with its models.",
        harmless=PARTS,
    )
    progress: Progress | None = option(
        default=None, python_only=True, help="Told how far the run is.", harmless="it only watches"
    )

    def check_values(self) -> None:
        """Contradictions between values."""
        if self.divergence is not None and not re.fullmatch(r"exact|none|topk:[1-9]\d{0,5}", self.divergence):
            raise UsageError(f"--divergence {self.divergence}: not known.", "Allowed: exact, topk:K, none.")
        if self.teachers and self.teacher_logprobs:
            raise UsageError("--teacher and --teacher-logprobs exclude each other.", "Give one of them.")
        self._check_extras()
        self._check_servers()
        if (self.divergence or self.align) and not self.teachers:
            raise UsageError(
                "--divergence and --align compare with a teacher, and there is none.", "Add --teacher MODEL."
            )
        if self.teacher_adapter and len(self.teachers) != 1:
            raise UsageError(
                f"--teacher-adapter belongs to one teacher, and there are {len(self.teachers)}.",
                "Give the one with --teacher; of several, merge the adapter into a folder of its own.",
            )
        if self.distilled_adapter and not self.distilled:
            raise UsageError("--distilled-adapter belongs to a model.", "Give its base with --distilled.")
        if self.shard and self.ray:
            raise UsageError(
                "--shard and --ray cannot be used together.", "Ray divides the parts among its workers itself."
            )

    def _check_extras(self) -> None:
        from trajscore.schema import extra_column, parse_extra  # loads pyarrow, which help does not need

        found: dict[str, str] = {}
        for text in self.extra:
            first = found.setdefault(extra_column(text), text)
            if parse_extra(first) != parse_extra(text):
                raise UsageError(
                    f"--extra {first} and --extra {text} have one column, {extra_column(text)}.",
                    "Give one of them; a second folder takes the other.",
                )
            if parse_extra(text)[0].two_models and (not self.teachers or self.divergence not in (None, "exact")):
                raise UsageError(
                    f"--extra {text}: compares the whole predictions of student and teacher.",
                    "Add --teacher MODEL." if not self.teachers else "Leave --divergence out.",
                )
        if self.topk_at == "student" and self.keep_topk is None:
            raise UsageError("--topk-at has no effect without --keep-topk.", "Add --keep-topk K.")
        if self.topk_at == "student" and (not self.teachers or self.divergence not in (None, "exact")):
            raise UsageError(
                "--topk-at student: the teacher's log-probabilities at the student's entries need both whole predictions.",
                "Add --teacher MODEL." if not self.teachers else "Leave --divergence out.",
            )

    def _check_servers(self) -> None:
        """What a server cannot give, and what says nothing without one."""
        from trajscore.schema import parse_extra  # as above

        served = self.engine == "server"
        if served and self.base_url is None:
            raise UsageError("--engine server needs the server's URL.", "Add --base-url http://HOST:PORT/v1.")
        if self.base_url is not None and not served:
            raise UsageError("--base-url has no effect without --engine server.", "Add --engine server.")
        if self.teacher_base_url is not None and len(self.teachers) != 1:
            raise UsageError(
                f"--teacher-base-url: {len(self.teachers)} teachers are given.",
                "Give one, by the name of its tokenizer.",
            )
        for flag, adapter, url in (
            ("--adapter", self.adapter, self.base_url),
            ("--teacher-adapter", self.teacher_adapter, self.teacher_base_url),
        ):
            if adapter is not None and url is not None:
                raise UsageError(f"{flag}: {url} serves what it serves.", "Start the server with the adapter.")
        for flag, name, url in (
            ("--served-model", self.served_model, self.base_url),
            ("--teacher-served-model", self.teacher_served_model, self.teacher_base_url),
        ):
            if name is not None and url is None:
                raise UsageError(f"{flag} has no effect without its server's URL.", "Leave it out.")
        if self.ray and (served or self.teacher_base_url):
            raise UsageError("--ray and a server cannot be used together.", "--concurrency says how much it is asked.")
        if self.teacher_base_url and self.divergence == "exact":
            raise UsageError(
                "--divergence exact: a server gives no whole predictions of the teacher.", "Use --divergence topk:K."
            )
        if served and self.divergence not in (None, "none"):
            raise UsageError(
                f"--divergence {self.divergence}: a server gives only the student's best entries, not its probabilities of the "
                "teacher's.",
                "Leave it out, or run the student here.",
            )
        for text in self.extra:
            extra, _ = parse_extra(text)
            if (served and extra.name != "local") or (self.teacher_base_url and extra.two_models):
                raise UsageError(f"--extra {text}: a server gives no whole predictions.", "Leave it out.")
        if self.topk_at == "student" and (served or self.teacher_base_url):
            raise UsageError(
                "--topk-at student: a server gives no probabilities of chosen entries.",
                "Leave it out, or run both here.",
            )

    @property
    def only_asks(self) -> bool:
        """Whether every model is behind a server, so that this process needs none of their libraries but for tokenizers."""
        served = self.engine == "server" and bool(self.teacher_base_url or not self.teachers)
        return served and self.distilled is None and not self.trust_remote_code

    @property
    def teachers(self) -> tuple[str, ...]:
        """Each --teacher as it was given."""
        return tuple(map(str, [self.teacher] if isinstance(self.teacher, str | Path) else self.teacher))


class PlanOptions(ScoreOptions):
    """What `score_plan`, the dry run of `score`, can be told besides."""

    full: bool = option(
        default=False,
        panel="Dry run",
        help="Render every row, not a sample; totals become exact.",
        harmless="a dry run writes nothing",
    )
    calibration_seconds: float | None = option(
        default=None,
        panel="Dry run",
        unit="seconds",
        otherwise="about 30",
        above=0,
        help="How long to time the models.",
        harmless="a dry run writes nothing",
    )


class MergeOptions(Options):
    """Everything `merge` can be told."""

    folder: str = argument(
        metavar="DIR", help="The --out folder of `trajscore score --shard I/N`.", harmless="its parts stay as they are"
    )
    max_refused: float = option(
        default=0.05,
        metavar="SHARE",
        at_least=0,
        at_most=1,
        help="Exit code 3 when a larger share of all rows was refused.",
        harmless="only the exit code depends on it",
    )


class VerifyOptions(Options):
    """Everything `verify` can be told."""

    folder: str = argument(metavar="DIR", help="Folder that `trajscore score` wrote.", harmless="it is only read")


class SlurmOptions(Options):
    """Everything `slurm` can be told."""

    arguments: Sequence[str] = argument(
        metavar="-- DATA... --student M --out DIR",
        help="What follows `trajscore score`, after two dashes.",
        harmless="the tasks record it",
    )
    shards: int = option(
        panel="Cluster", metavar="N", at_least=1, help="Tasks of the array, a shard each.", harmless=PARTS
    )
    gpus: int | None = option(
        default=None,
        panel="Cluster",
        metavar="N",
        otherwise="--tensor-parallel-size times --data-parallel-size",
        at_least=0,
        help="GPUs per task.",
        harmless=PLACE,
    )
    sbatch: Sequence[str] = option(
        default=(),
        panel="Cluster",
        metavar="NAME=VALUE",
        help="A further directive, such as time=8:00:00.",
        harmless=PLACE,
    )
