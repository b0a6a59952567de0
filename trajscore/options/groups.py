"""Options that several commands are told alike: how a model is run, how a conversation becomes tokens, how a corpus is read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from trajscore.options.declaration import Options, argument, option
from trajscore.options.values import json_object, key_values

if TYPE_CHECKING:
    import polars as pl

    Scores = str | Path | Sequence[str | Path] | pl.LazyFrame

PLACE = "where and how fast it runs, not what it gives"
"""Why options of hardware are harmless."""


class EngineOptions(Options):
    """How a model is loaded and run. Flags keep the spelling of vLLM and transformers."""

    dtype: Literal["auto", "float32", "bfloat16", "float16", "float64"] = option(
        default="auto",
        panel="Engine",
        help="Precision of the backbone; auto: float32 on CPU, else the checkpoint's. The head is float32 always, save with "
        "float64, a slow reference that only transformers has.",
        recorded_by="student.dtype",
    )
    device: str = option(
        default="auto",
        panel="Engine",
        metavar="auto|cpu|cuda[:N]|mps|balanced",
        help="Where transformers runs the model; balanced: one model over all GPUs.",
        harmless=PLACE,
    )
    attn_implementation: str | None = option(
        default=None,
        panel="Engine",
        metavar="NAME",
        otherwise="its choice",
        help="Attention of transformers: sdpa, flash_attention_2, eager.",
        recorded_by="student.attn_implementation",
    )
    max_num_batched_tokens: int = option(
        default=8192,
        panel="Engine",
        unit="tokens",
        at_least=1,
        help="Tokens per forward pass, padding included with transformers; lowered when memory runs out.",
        harmless="longer trajectories are cut into pieces that give the same numbers",
    )
    tensor_parallel_size: int = option(
        default=1,
        panel="Engine",
        metavar="N",
        at_least=1,
        help="GPUs that share one model (vLLM).",
        recorded_by="student.tensor_parallel_size",
    )
    data_parallel_size: int = option(
        default=1,
        panel="Engine",
        metavar="N",
        at_least=1,
        help="Engines side by side, each with GPUs of its own (vLLM).",
        harmless=PLACE,
    )
    gpu_memory_utilization: float | None = option(
        default=None,
        panel="Engine",
        metavar="SHARE",
        otherwise="vLLM's own",
        above=0,
        at_most=1,
        help="Share of a GPU's memory for vLLM.",
        harmless=PLACE,
    )
    quantization: str | None = option(
        default=None,
        panel="Engine",
        metavar="NAME",
        otherwise="as the checkpoint says",
        help="How vLLM quantises the weights.",
        recorded_by="student.quantization",
    )
    engine_args: Mapping[str, Any] = option(
        default_factory=dict,
        panel="Engine",
        flag="--engine-arg",
        metavar="KEY=VALUE",
        typed=list[str],
        parse=key_values,
        help="Any other argument of vllm.EngineArgs.",
        recorded_by="student.engine_args",
    )
    trust_remote_code: bool = option(
        default=False,
        panel="Models",
        help="Run code that comes with the model.",
        harmless="the code belongs to the model, whose fingerprint is recorded",
    )


class ServerOptions(Options):
    """How a model behind a server is asked."""

    server_api: Literal["auto", "vllm", "sglang"] = option(
        default="auto",
        panel="Server",
        help="What the server speaks: vLLM's /v1/completions with prompt_logprobs, or SGLang's /generate; auto: as it says of "
        "its models.",
        harmless="both give the model's own log-probabilities",
    )
    server_topk: int = option(
        default=16,
        panel="Server",
        metavar="K",
        at_least=0,
        help="Best entries to ask for, out of which the columns ending in _topk are made; 0 for surprisals alone. vLLM allows "
        "20 unless it was started with --max-logprobs.",
        recorded_by="student.topk",
    )
    concurrency: int = option(
        default=8, panel="Server", metavar="N", at_least=1, help="Requests at a time.", harmless=PLACE
    )
    timeout: float = option(
        default=600.0,
        panel="Server",
        unit="seconds",
        above=0,
        help="For one request, to the last byte of the reply.",
        harmless=PLACE,
    )
    max_retries: int = option(
        default=6,
        panel="Server",
        metavar="N",
        at_least=0,
        help="Repetitions of a request that failed, with longer and longer pauses.",
        harmless=PLACE,
    )


class RenderOptions(Options):
    """How conversations become tokens."""

    turns: Literal["all", "last"] = option(
        default="all", panel="Rendering", help="Assistant turns to score.", recorded_by="rendering.turns"
    )
    max_model_len: int | None = option(
        default=None,
        panel="Rendering",
        unit="tokens",
        otherwise="what the student takes",
        at_least=1,
        help="Longest rendered conversation.",
        recorded_by="rendering.max_model_len",
    )
    on_overlong: Literal["refuse", "truncate"] = option(
        default="refuse",
        panel="Rendering",
        help="Refuse longer rows, or truncate them at the end and mark them.",
        recorded_by="rendering.on_overlong",
    )
    on_lost_text: Literal["refuse", "accept"] = option(
        default="refuse",
        panel="Rendering",
        help="Refuse rows of which the chat template drops text, or accept them as training would.",
        recorded_by="rendering.on_lost_text",
    )
    chat_template: str | None = option(
        default=None,
        panel="Rendering",
        metavar="FILE|MODEL|NAME|trl",
        otherwise="the student's own, as transformers chooses it",
        help="Jinja file, model whose template is used, name of one of the student's templates, or trl: what TRL trains with.",
        recorded_by="rendering.chat_template_sha256",
    )
    chat_template_kwargs: Mapping[str, Any] = option(
        default_factory=dict,
        panel="Rendering",
        metavar="JSON",
        typed=str,
        parse=json_object,
        help="Variables for the template, for example '{\"enable_thinking\": true}'.",
        recorded_by="rendering.chat_template_kwargs",
    )
    reasoning_as: str | None = option(
        default=None,
        panel="Rendering",
        metavar="think|KEY",
        otherwise="as the data has them",
        help="Where thoughts go: into <think> tags in the content, or under the key that the chat template reads.",
        recorded_by="rendering.reasoning_as",
    )


class ScoredOptions(Options):
    """Which scores a command reads."""

    scores: Scores = argument(
        kw_only=False,
        metavar="SCORES",
        typed=list[str],
        help="Folders that `trajscore score` wrote; in Python also a LazyFrame over such rows.",
        recorded_by="the manifests of these folders",
    )


class MetricsFileOptions(Options):
    """Metrics of one's own."""

    metrics_file: str | Path | None = option(
        default=None,
        panel="Metrics",
        metavar="FILE",
        help="Python file with more metrics, METRICS = [Metric(...), ...]; it is run.",
    )


class IntervalOptions(Options):
    """Intervals from a bootstrap."""

    confidence: float = option(
        default=0.9,
        panel="Intervals",
        metavar="P",
        above=0,
        below=1,
        help="Share of such intervals that hold the true value, 0 < P < 1.",
    )
    replicates: int = option(
        default=1000,
        panel="Intervals",
        metavar="B",
        at_least=1,
        help="Bootstrap replicates over prompts.",
    )
    seed: int = option(
        default=0,
        panel="Intervals",
        metavar="N",
        at_least=0,
        help="Seed of the resampling; the same seed gives the same numbers.",
    )
