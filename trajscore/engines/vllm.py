"""The production engine: vLLM runs the model, and its workers reduce hidden states to statistics where they are.

Its conventions are the interface's own, not those of vLLM's `prompt_logprobs`: strict ranks, exact entropy, nats, the value at
position p belongs to token p. What runs in the workers is `vllm_plugin`; only a few numbers per scored token come back.
Axes: P input tokens of a sequence, N its scored tokens, C numbers per token.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import os
import tempfile
import warnings
from collections import deque
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from trajscore.engines import EngineOptions, ModelSource, Result, TokenSequence, check_ids
from trajscore.engines.reductions import Reduction
from trajscore.engines.vllm_parallel import gpu_groups, run_together
from trajscore.engines.vllm_plugin import ARCHITECTURE, ERROR, OWNER, PREFIX, TASK, pack
from trajscore.engines.vllm_versions import check_names, prepare_environment
from trajscore.errors import EngineError, MissingExtraError, UsageError
from trajscore.loading import require_model
from trajscore.statistics import Head

prepare_environment()
try:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        import vllm
        from vllm.platforms import current_platform
except ImportError as error:
    raise MissingExtraError("vllm", "vllm") from error

_LOG = logging.getLogger("trajscore")

_IN_FLIGHT = 512
"""Requests given to one engine at a time: enough to keep it busy, and a bound on what waits in memory."""

_RESTARTS = 3
"""How often an engine may die without finishing a single sequence in between."""


class VLLMEngine:
    """A model in vLLM. See `engines.Engine` for the methods' contracts.

    Args:
        model: the model and its vocabulary; padding rows of the head do not count.
        options: how to run it.

    Raises:
        UsageError: the model does not exist, or an option is one that vLLM does not know.
        EngineError: vLLM cannot run it, or this version of vLLM is not what trajscore was written for.
    """

    needs_files = True

    def __init__(self, model: ModelSource, options: EngineOptions) -> None:
        _check_options(options)
        require_model(model.name)
        check_names()
        self._name, self._source, self._options = model.name, model, options
        self._folder = tempfile.TemporaryDirectory(prefix="trajscore-")
        self._head: Head | None = None
        np.save(self._path("vocabulary.npy"), model.vocabulary)
        self._replicas: list[_Replica] = []
        try:
            arguments = _arguments(model, options, self._path("vocabulary.npy"))
            for gpus in gpu_groups(options.data_parallel_size, options.tensor_parallel_size):
                self._replicas.append(_Replica(model.name, arguments, gpus, Path(self._folder.name)))
        except BaseException:
            self.close()
            raise
        self._config = self._replicas[0].engine.model_config

    @property
    def max_model_len(self) -> int | None:
        """Positions that the model was made for, or as many as were asked for."""
        return int(self._config.max_model_len)

    @property
    def vocabulary(self) -> int:
        """Entries of the output head that count."""
        return min(int(self._config.get_vocab_size()), int(self._source.vocabulary[-1]) + 1)

    @property
    def state_bytes(self) -> int:
        """Size of one token's hidden state."""
        return int(self._config.get_hidden_size()) * int(self._config.dtype.itemsize)

    @property
    def head(self) -> Head:
        """The output head on the CPU, written by a worker and read here once."""
        if self._head is None:
            import torch

            from trajscore.engines.head_file import load_head

            path = self._path("own-head.safetensors")
            self._replicas[0].ask_head(path)
            self._head = load_head(str(path), torch.device("cpu"))
        return self._head

    def describe(self) -> dict[str, Any]:
        """Settings that can change a number."""
        return {
            "dtype": str(self._config.dtype).removeprefix("torch."),
            "head_dtype": "float32",
            "vocabulary": self.vocabulary,
            "quantization": self._config.quantization,
            "tensor_parallel_size": self._options.tensor_parallel_size,
            "engine_args": dict(self._options.engine_args),
        }

    def environment(self) -> dict[str, Any]:
        """Versions and device."""
        import torch
        import transformers

        return {
            "vllm": vllm.__version__,
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "device": f"{current_platform.device_type} ({current_platform.get_device_name()})",
        }

    def run(self, sequences: Sequence[TokenSequence], reduction: Reduction[Result]) -> Iterator[tuple[int, Result]]:
        """Run longest sequences first; vLLM batches them. Engines that die are started again with what they held."""
        check_ids(self._name, self.vocabulary, sequences)
        longest_first = sorted(range(len(sequences)), key=lambda index: -len(sequences[index].input_ids_P))
        job = _Job(deque(longest_first), sequences, reduction, self._head_path(reduction))
        yield from run_together([replica.run(job) for replica in self._replicas])

    def close(self) -> None:
        """Stop the engines, and their processes if they have any."""
        for replica in self._replicas:
            replica.close()
        self._replicas.clear()
        self._folder.cleanup()

    def _path(self, name: str) -> Path:
        return Path(self._folder.name) / name

    def _head_path(self, reduction: Reduction[Any]) -> str | None:
        """The other model's head in a file that workers can read."""
        from trajscore.engines.head_file import save_head

        if reduction.other is None or reduction.other.head is None:
            return None
        path = self._path(f"head-{id(reduction.other.head)}.safetensors")
        if not path.exists():
            save_head(reduction.other.head, path)
        return str(path)


@dataclasses.dataclass(frozen=True)
class _Job:
    """What engines share while they run: each takes the next waiting sequence."""

    waiting: deque[int]
    sequences: Sequence[TokenSequence]
    reduction: Reduction[Any]
    head: str | None

    def request(self, index: int) -> dict[str, Any]:
        """What the pooler is asked for one sequence."""
        more: dict[str, Any] = {"k": self.reduction.k}
        other = self.reduction.other
        if other is not None and other.stored is None:
            raise ValueError("vLLM's workers read another model's rows from files: they have to be stored before.")
        if other is not None and other.stored is not None:
            more |= {"stored": dataclasses.asdict(other.stored(index)), "head": self.head}
        return pack(self.reduction.kind, self.sequences[index].positions_N, **more)

    def result(self, index: int, output: Any) -> tuple[int, Any]:
        """A finished request's result, once its rows are known to be those of the sequence."""
        rows_NC, count = output.outputs.data, len(self.sequences[index].positions_N)
        if output.num_cached_tokens or len(rows_NC) != count:
            raise EngineError(
                f"vLLM returned {len(rows_NC)} rows for {count} scored tokens ({output.num_cached_tokens} tokens cached).",
                "This is not the vLLM that trajscore was written for; run `trajscore doctor`.",
            )
        return index, self.reduction.unpack(rows_NC.cpu())


class _Replica:
    """One vLLM engine on one group of GPUs, started again when it dies."""

    def __init__(self, name: str, arguments: dict[str, Any], gpus: str | None, folder: Path) -> None:
        self._name, self._arguments, self._gpus, self._folder = name, arguments, gpus, folder
        self._number = 0
        self.engine: Any = None
        self._start()

    def run(self, job: _Job) -> Iterator[tuple[int, Any]]:
        """Take sequences from a job until none is left."""
        deaths = 0
        while True:
            flying: dict[str, int] = {}
            try:
                for done in self._drive(job, flying):
                    deaths = 0
                    yield done
                return
            except EngineError:
                raise
            except Exception as error:  # vLLM dies in many ways: of memory, of a kernel, with its process
                deaths += 1
                job.waiting.extendleft(reversed(flying.values()))
                self._revive(error, deaths, job)
            finally:
                # Whoever stops in the middle leaves nothing running behind.
                if flying and self.engine is not None:
                    with contextlib.suppress(Exception):
                        self.engine.abort_request(list(flying))

    def ask_head(self, path: Path | None = None) -> None:
        """Let the worker find and check its output head, and write it to a file."""
        self._add(self._name_request(), [0, 0], pack("head", np.empty(0, np.uint32), path=str(path or "")))
        while self.engine.has_unfinished_requests():
            self.engine.step()

    def close(self) -> None:
        """Stop the engine and its processes."""
        from vllm.distributed import cleanup_dist_env_and_memory

        if self.engine is None:
            return
        own_process = not hasattr(self.engine.engine_core, "engine_core")
        with contextlib.suppress(Exception):  # one that died cannot be asked to stop
            self.engine.engine_core.shutdown()
        self.engine = None
        if not own_process:
            cleanup_dist_env_and_memory()

    def _drive(self, job: _Job, flying: dict[str, int]) -> Iterator[tuple[int, Any]]:
        while True:
            while len(flying) < _IN_FLIGHT:
                try:
                    index = job.waiting.popleft()
                except IndexError:
                    break
                name = self._name_request()
                # Known as flying before it flies: a death in between must not lose it.
                flying[name] = index
                self._add(name, job.sequences[index].input_ids_P.tolist(), job.request(index))
            if not flying:
                return
            for output in self.engine.step():
                if output.finished:
                    yield job.result(flying.pop(output.request_id), output)

    def _name_request(self) -> str:
        self._number += 1
        return str(self._number)

    def _add(self, name: str, ids: list[int], request: dict[str, Any]) -> None:
        params = vllm.PoolingParams(task=TASK, extra_kwargs=request)
        self.engine.add_request(name, vllm.TokensPrompt(prompt_token_ids=ids), params)

    def _revive(self, error: Exception, deaths: int, job: _Job) -> None:
        self._raise_our_own(error)
        reason = next(iter(str(error).splitlines()), "") or type(error).__name__
        if deaths > _RESTARTS:
            longest = max((len(job.sequences[index].input_ids_P) for index in job.waiting), default=0)
            raise EngineError(
                f"{self._name}: vLLM died {deaths} times without finishing a trajectory ({reason}); the longest waiting has "
                f"{longest} tokens.",
                "Lower --max-model-len, --max-num-batched-tokens or --gpu-memory-utilization, or try --engine hf.",
            ) from error
        self.close()
        tokens = max(64, self._arguments["max_num_batched_tokens"] // 2)
        self._arguments = {**self._arguments, "max_num_batched_tokens": tokens}
        _LOG.warning("vLLM died (%s): started again with at most %d tokens at a time", reason, tokens)
        self._start()

    def _raise_our_own(self, error: Exception) -> None:
        """What went wrong in our own code would go wrong again, and less memory would not help."""
        note = self._folder / ERROR
        if note.exists():
            raise EngineError(f"{self._name}: vLLM cannot run it ({note.read_text()}).", "Try --engine hf.") from error

    def _start(self) -> None:
        with _environment(self._gpus, self._arguments):
            try:
                self.engine = vllm.LLMEngine.from_engine_args(vllm.EngineArgs(**self._arguments))
                self.ask_head()
            except Exception as error:  # vLLM raises many kinds for the same thing: it cannot run this model here
                self.close()
                self._raise_our_own(error)
                lines = [line for line in str(error).splitlines() if line.strip()]
                reason = lines[-1] if lines else type(error).__name__
                raise EngineError(f"{self._name}: vLLM cannot run it ({reason}).", "Try --engine hf.") from error


@contextlib.contextmanager
def _environment(gpus: str | None, arguments: dict[str, Any]) -> Iterator[None]:
    """What vLLM reads from the environment while an engine starts; what the user has set stays."""
    alone = current_platform.is_cpu() and gpus is None and arguments["tensor_parallel_size"] == 1
    wanted = {} if gpus is None else {"CUDA_VISIBLE_DEVICES": gpus}
    if alone and "VLLM_ENABLE_V1_MULTIPROCESSING" not in os.environ:
        # On CPU a process of its own buys nothing, and takes 15 s to start.
        wanted["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    before = {name: os.environ.get(name) for name in wanted}
    os.environ |= wanted
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name)
            os.environ |= {} if value is None else {name: value}


def _check_options(options: EngineOptions) -> None:
    if options.device not in ("auto", current_platform.device_type):
        raise UsageError(
            f"--device {options.device}: vLLM runs on {current_platform.device_type} here.",
            "Leave --device out and choose GPUs with CUDA_VISIBLE_DEVICES, or use --engine hf.",
        )
    if options.attn_implementation is not None:
        raise UsageError(
            "--attn-implementation is an option of transformers.",
            "With vLLM: --engine-arg attention_backend=NAME.",
        )
    known = {field.name for field in dataclasses.fields(vllm.EngineArgs)}
    for name in options.engine_args:
        if name not in known or name in _OURS:
            raise UsageError(
                f"--engine-arg {name}: {'set by trajscore' if name in _OURS else 'vLLM has no such argument'}.",
                "See the fields of vllm.EngineArgs.",
            )


_OURS = (
    "model",
    "runner",
    "convert",
    "hf_overrides",
    "additional_config",
    "enable_prefix_caching",
    "skip_tokenizer_init",
)


def _arguments(model: ModelSource, options: EngineOptions, vocabulary: Path) -> dict[str, Any]:
    cpu = current_platform.is_cpu()
    config = _config(model, options)
    architecture = _architecture(model, config)
    possible = getattr(config.get_text_config(), "max_position_embeddings", None)
    asked = model.max_model_len
    os.environ[ARCHITECTURE] = architecture
    os.environ[OWNER] = str(os.getpid())
    from trajscore.engines.vllm_plugin import register

    register()
    given = {
        # More than the model was made for is refused elsewhere, in the words of the flag.
        "max_model_len": asked if asked and possible and asked <= possible else None,
        "quantization": options.quantization,
        "gpu_memory_utilization": options.gpu_memory_utilization,
    }
    return {
        "model": model.name,
        "revision": model.revision,
        "trust_remote_code": options.trust_remote_code,
        "runner": "pooling",
        "convert": "none",
        "hf_overrides": {"architectures": [PREFIX + architecture]},
        "additional_config": {"trajscore_vocabulary": str(vocabulary)},
        "skip_tokenizer_init": True,
        "enable_prefix_caching": False,
        "enable_chunked_prefill": True,
        "load_format": "safetensors",
        "disable_log_stats": True,
        "use_tqdm_on_load": False,
        "dtype": "float32" if options.dtype == "auto" and cpu else options.dtype,
        "max_num_batched_tokens": options.max_num_batched_tokens,
        "tensor_parallel_size": options.tensor_parallel_size,
        # Compiling for CPU needs a C++ compiler and gains nothing for a prefill.
        **({"enforce_eager": True} if cpu else {}),
        **{name: value for name, value in given.items() if value is not None},
        **options.engine_args,
    }


def _config(model: ModelSource, options: EngineOptions) -> Any:
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(
            model.name, revision=model.revision, trust_remote_code=options.trust_remote_code
        )
    except Exception as error:  # transformers raises many kinds for the same thing
        raise UsageError(
            f"{model.name}: its configuration cannot be read ({next(iter(str(error).splitlines()), error)}).",
            "Give a hub id or a folder with config.json and *.safetensors weights.",
        ) from error


def _architecture(model: ModelSource, config: Any) -> str:
    named = list(getattr(config, "architectures", None) or [])
    known = vllm.ModelRegistry.get_supported_archs()
    found = [name for name in named if name in known]
    if not found:
        raise EngineError(
            f"{model.name}: vLLM {vllm.__version__} does not know its architecture ({', '.join(named) or 'none is named'}).",
            "Try --engine hf.",
        )
    return str(found[0])
