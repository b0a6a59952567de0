"""Every setting of `trajscore score`, with its default, checked before anything is loaded. It knows names and ranges only."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trajscore.engines import ENGINES, EngineOptions
from trajscore.errors import UsageError, did_you_mean
from trajscore.rendering.renderer import RenderOptions
from trajscore.schema import STORAGES


@dataclass(frozen=True)
class ScoreOptions(EngineOptions, RenderOptions):
    """Everything `score` can be told besides data, student and folder: how the model runs (`engines.EngineOptions`), how
    conversations become tokens (`rendering.RenderOptions`), and the following. Defaults are those of the command line.

    Attributes:
        engine: `auto` or a name of `engines.ENGINES`.
        revision: hub revision of the student.
        extra: optional columns to write: `collision`.
        unconditional: read each response a second time without the conversation before it.
        part_rows: rows per part.
        storage: `float32`, or `float16` for statistics rounded to float16's significant bits.
        overwrite: start anew in a folder that holds scores.
        ray: address of a Ray cluster whose workers score, `auto` for the one that is found or else one on this machine; None
            for this process alone.
        ray_workers: number of workers; None for as many as the cluster's GPUs allow, or without GPUs one per machine.
        shard: `I/N`: score only every N-th part from part I on, for one of N processes that share the folder.
        max_refused: share of refused rows above which the run counts as finished badly (exit code 3).
        limit: score only the first rows.
        split: split of a hub data set.
        config_name: configuration of a hub data set.
        data_revision: revision of a hub data set.
        streaming: do not download a hub data set first.
        id_field: column used for `id`.
        prompt_field: column that identifies the prompt.
        teacher_field: column used for `teacher`.
        messages_field: column used for `messages`.
        teacher: a model to compare with, or several `NAME=MODEL`, each reading the rows whose `teacher` is NAME.
        distilled: the student after training.
        divergence: `exact`, `topk:K` or `none`; None for `exact` where the tokenizers agree.
        align: `bytes` for chunk columns where the tokenizers differ.
        teacher_logprobs: column with log-probabilities that came with the data, in place of a teacher.
        swap_models: keep one model in memory at a time; None for what suits the engine (vLLM's models take turns).
        hidden_budget: GiB of disk that hidden states may take while models are swapped.
    """

    engine: str = "auto"
    revision: str | None = None
    extra: Sequence[str] = ()
    unconditional: bool = False
    part_rows: int = 500
    storage: str = "float32"
    overwrite: bool = False
    ray: str | None = None
    ray_workers: int | None = None
    shard: str | None = None
    max_refused: float = 0.05
    limit: int | None = None
    split: str = "train"
    config_name: str | None = None
    data_revision: str | None = None
    streaming: bool = False
    id_field: str | None = None
    prompt_field: str | None = None
    teacher_field: str | None = None
    messages_field: str | None = None
    teacher: Sequence[str] = ()
    distilled: str | None = None
    divergence: str | None = None
    align: str | None = None
    teacher_logprobs: str | None = None
    swap_models: bool | None = None
    hidden_budget: float = 20.0

    def __post_init__(self) -> None:
        # From Python a folder may be a Path, and a single teacher stand by itself.
        given: object = self.teacher
        teachers = (given,) if isinstance(given, str | Path) else self.teacher
        object.__setattr__(self, "teacher", tuple(str(name) for name in teachers))
        object.__setattr__(self, "distilled", self.distilled and str(self.distilled))
        _allow("--turns", self.turns, ("all", "last"))
        _allow("--on-overlong", self.on_overlong, ("refuse", "truncate"))
        _allow("--on-lost-text", self.on_lost_text, ("refuse", "accept"))
        _allow("--dtype", self.dtype, ("auto", "float32", "bfloat16", "float16"))
        _allow("--storage", self.storage, STORAGES)
        for name in self.extra:
            _allow("--extra", name, ("collision",))
        for name in (
            "part_rows",
            "max_num_batched_tokens",
            "max_model_len",
            "ray_workers",
            "limit",
            "tensor_parallel_size",
            "data_parallel_size",
        ):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UsageError(f"--{name.replace('_', '-')} {value}: must be at least 1.")
        _allow("--engine", self.engine, ("auto", *ENGINES))
        if self.align is not None:
            _allow("--align", self.align, ("bytes",))
        if self.divergence is not None and not re.fullmatch(r"exact|none|topk:[1-9]\d{0,5}", self.divergence):
            raise UsageError(f"--divergence {self.divergence}: not known.", "Allowed: exact, topk:K, none.")
        if self.teacher and self.teacher_logprobs:
            raise UsageError("--teacher and --teacher-logprobs exclude each other.", "Give one of them.")
        if (self.divergence or self.align) and not self.teacher:
            raise UsageError(
                "--divergence and --align compare with a teacher, and there is none.", "Add --teacher MODEL."
            )
        if self.hidden_budget <= 0:
            raise UsageError(f"--hidden-budget {self.hidden_budget:g}: must be more than 0 GiB.")
        if self.gpu_memory_utilization is not None and not 0 < self.gpu_memory_utilization <= 1:
            raise UsageError(
                f"--gpu-memory-utilization {self.gpu_memory_utilization:g}: a share above 0 and at most 1 is needed."
            )
        if not 0 <= self.max_refused <= 1:
            raise UsageError(f"--max-refused {self.max_refused}: a share between 0 and 1 is needed.")


def score_options(function: str, given: Mapping[str, Any]) -> ScoreOptions:
    """The options that a function was called with.

    Raises:
        UsageError: one that does not exist, or a value that is not allowed.
    """
    known = [option.name for option in dataclasses.fields(ScoreOptions)]
    for name in given:
        if name not in known:
            raise UsageError(f"{function}() has no option {name!r}.", did_you_mean(name, known))
    return ScoreOptions(**given)


def _allow(flag: str, value: str, allowed: Sequence[str]) -> None:
    if value not in allowed:
        raise UsageError(f"{flag} {value}: not known.", f"Allowed: {', '.join(allowed)}.")
