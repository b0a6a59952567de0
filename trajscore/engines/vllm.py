"""The vLLM engine: vLLM runs the model, and its workers reduce hidden states to statistics where they are.

Its conventions are the interface's own, not those of vLLM's `prompt_logprobs`: strict ranks, exact entropy, nats, the value at
position p belongs to token p. What runs in the workers is `vllm_plugin`; only a few numbers per scored token come back.
Axes: P input tokens of a sequence, N its scored tokens, C numbers per token.
"""

from __future__ import annotations

import dataclasses
import logging
import os
import tempfile
from collections import deque
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError

from trajscore.engines.base import ModelSource, Result, check_ids
from trajscore.engines.checkpoint import cannot_load, check_folder, check_weights
from trajscore.engines.merged_copy import merged_copy
from trajscore.engines.reductions import Reduction
from trajscore.engines.rotary import longest_alike
from trajscore.engines.vllm_parallel import gpu_groups, run_together
from trajscore.engines.vllm_plugin import ARCHITECTURE, OWNER
from trajscore.engines.vllm_versions import check_names, importing
from trajscore.errors import EngineError, UsageError, first_line
from trajscore.options.groups import EngineOptions
from trajscore.rendering.tokenizer import require_model
from trajscore.rendering.tokens import TokenSequence
from trajscore.statistics import Head

_LOG = logging.getLogger("trajscore")

with importing():
    import vllm

    from trajscore.engines.vllm_insides import model_class, platform, takes_pictures
    from trajscore.engines.vllm_replica import Job, Replica, start


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
        check_folder(model.name)
        check_weights(model.name, model.revision, options.trust_remote_code)
        self._name, self._source, self._options = model.name, model, options
        self._folder = tempfile.TemporaryDirectory(prefix="trajscore-")
        self._head: Head | None = None
        # Kept, so that no other head gets the name of one of these.
        self._other_heads: dict[Path, Head] = {}
        np.save(self._path("vocabulary.npy"), model.vocabulary)
        self._replicas: list[Replica] = []
        self._asleep = False
        try:
            architecture, arguments = _arguments(_whole(model, options), options, self._path("vocabulary.npy"))
            self._may_sleep = bool(arguments.get("enable_sleep_mode"))
            groups = gpu_groups(options.data_parallel_size, options.tensor_parallel_size)
            for gpus in groups:
                environment = _environment(architecture, arguments, gpus, len(groups))
                self._replicas.append(
                    Replica(model.name, architecture, arguments, environment, self._path(""), alone=len(groups) == 1)
                )
            start(self._replicas)
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
        """The output head on the CPU, written by workers and read here once."""
        if self._head is None:
            from trajscore.engines.head_file import join_parts, part_path

            self._wake()
            path = self._path("own-head.safetensors")
            self._replicas[0].write_head(path)
            paths = [part_path(path, number) for number in range(self._options.tensor_parallel_size)]
            self._head = join_parts([each for each in paths if each.exists()])
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
            "device": describe_platform()[1],
        }

    def run(self, sequences: Sequence[TokenSequence], reduction: Reduction[Result]) -> Iterator[tuple[int, Result]]:
        """Run longest sequences first; vLLM batches them. Engines that die are started again with what they held."""
        check_ids(self._name, self.vocabulary, sequences)
        self._wake()
        longest_first = sorted(range(len(sequences)), key=lambda index: -len(sequences[index].input_ids_P))
        job = Job(deque(longest_first), sequences, reduction, self._head_path(reduction))
        yield from run_together([replica.run(job) for replica in self._replicas], job.stop)

    def sleep(self) -> bool:
        """Let weights wait in the host's memory, where engines were started so; caches are made anew. Not yet run on a GPU."""
        if not self._may_sleep:
            return False
        try:
            for replica in self._replicas:
                replica.engine.sleep(level=1)
        except Exception as error:  # vLLM fails in many ways: what cannot sleep is closed
            _LOG.warning("vLLM cannot let %s sleep (%s): it is loaded anew", self._name, first_line(error))
            return False
        self._asleep = True
        return True

    def _wake(self) -> None:
        if not self._asleep:
            return
        self._asleep = False
        try:
            for replica in self._replicas:
                replica.engine.wake_up()
        except Exception as error:  # vLLM fails in many ways: what does not wake is started again
            _LOG.warning("vLLM cannot wake %s (%s): it is loaded anew", self._name, first_line(error))
            for replica in self._replicas:
                replica.close()
            start(self._replicas)

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
        head = reduction.other.head
        path = self._path(f"head-{id(head)}.safetensors")
        if path not in self._other_heads:
            try:
                save_head(head, path)
            except (OSError, SafetensorError) as error:
                raise EngineError(
                    f"{path}: an output head cannot be written ({error}).", "Free some space, or set TMPDIR."
                ) from error
            self._other_heads[path] = head
        return str(path)


def describe_platform() -> tuple[str, str]:
    """vLLM's version, and the device it runs on here."""
    return vllm.__version__, f"{platform().device_type} ({platform().get_device_name()})"


def _check_options(options: EngineOptions) -> None:
    if options.device not in ("auto", platform().device_type):
        raise UsageError(
            f"--device {options.device}: vLLM runs on {platform().device_type} here.",
            "Leave --device out and choose GPUs with CUDA_VISIBLE_DEVICES, or use --engine hf.",
        )
    if options.dtype == "float64":
        raise UsageError("--dtype float64: vLLM has no such kernels.", "Use --engine hf, or float32.")
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
        if name in _UNSUPPORTED:
            raise UsageError(
                f"--engine-arg {name}: parts of a model in several places are not scored.",
                "Share a model with --tensor-parallel-size, or run several with --data-parallel-size.",
            )
        if name in _FLAGS:
            raise UsageError(f"--engine-arg {name}: there is another way to say it.", f"Use {_FLAGS[name]}.")


_OURS = (
    "model",
    "runner",
    "convert",
    "additional_config",
    "enable_prefix_caching",
    "skip_tokenizer_init",
    "language_model_only",
)
_UNSUPPORTED = ("pipeline_parallel_size", "decode_context_parallel_size", "prefill_context_parallel_size")
"""Ways to share a model in which no worker has both the final hidden states and the tokens of a request."""

_FLAGS = {
    name: f"--{name.replace('_', '-')}"
    for name in (
        "dtype",
        "trust_remote_code",
        "max_num_batched_tokens",
        "max_model_len",
        "tensor_parallel_size",
        "data_parallel_size",
        "gpu_memory_utilization",
        "quantization",
        "revision",
    )
} | {"hf_token": "the variable HF_TOKEN: the manifest records arguments"}


def _arguments(model: ModelSource, options: EngineOptions, vocabulary: Path) -> tuple[str, dict[str, Any]]:
    """The architecture that vLLM runs the model as, and fields of `vllm.EngineArgs`."""
    cpu = platform().is_cpu()
    config = _config(model, options)
    architecture = _architecture(model, config)
    possible = getattr(config.get_text_config(), "max_position_embeddings", None)
    asked = model.max_model_len
    alike, longest = longest_alike(config.get_text_config()), asked or possible
    if alike is not None and longest and longest > alike:
        raise EngineError(
            f"{model.name}: its positions depend on the length of the text, and vLLM reads short texts with those of long ones "
            f"where texts may have more than {alike} tokens.",
            f"Use --engine hf, or --max-model-len {alike} where no text is longer.",
        )
    given = {
        # More than the model was made for is refused elsewhere, in the words of the flag.
        # Asking for the head takes two.
        "max_model_len": max(2, asked) if asked and possible and asked <= possible else None,
        "quantization": options.quantization,
        "gpu_memory_utilization": _utilization(options) * model.memory_share if not cpu else None,
    }
    return architecture, {
        "model": model.name,
        "revision": model.revision,
        "trust_remote_code": options.trust_remote_code,
        "runner": "pooling",
        "convert": "none",
        "additional_config": {
            "trajscore_vocabulary": str(vocabulary),
            "trajscore_other_head_bytes": model.other_head_bytes,
            "trajscore_halvings": 0,
        },
        # Of a model that sees or hears only the text half is wanted; vLLM then needs its tokenizer, otherwise none.
        **({"language_model_only": True} if _sees(model.name, architecture) else {"skip_tokenizer_init": True}),
        "enable_prefix_caching": False,
        # Only where it is wanted: it changes how memory is given out.
        **({"enable_sleep_mode": True} if model.may_sleep else {}),
        "enable_chunked_prefill": True,
        "load_format": "safetensors",
        "disable_log_stats": True,
        "use_tqdm_on_load": False,
        "dtype": _dtype(options),
        "max_num_batched_tokens": options.max_num_batched_tokens,
        "tensor_parallel_size": options.tensor_parallel_size,
        # Compiling for CPU needs a C++ compiler and gains nothing for a prefill.
        **({"enforce_eager": True} if cpu else {}),
        **{name: value for name, value in given.items() if value is not None},
        **options.engine_args,
    }


def _dtype(options: EngineOptions) -> str:
    return "float32" if options.dtype == "auto" and platform().is_cpu() else options.dtype


def _whole(model: ModelSource, options: EngineOptions) -> ModelSource:
    """A model that vLLM can load from its files alone: where an adapter belongs to it, a copy with that merged in."""
    if model.adapter is None:
        return model
    copy = merged_copy(model.name, model.revision, model.adapter, options, _dtype(options))
    return dataclasses.replace(model, name=str(copy), revision=None, adapter=None)


def _sees(name: str, architecture: str) -> bool:
    """Whether a model takes images or sound besides text.

    Raises:
        EngineError: vLLM's code of the model cannot be imported here.
    """
    try:
        return takes_pictures(model_class(architecture))
    except Exception as error:  # code of many models, each with imports of its own
        missing = getattr(error, "name", None)
        reason = f"needs {missing}, which is not installed" if missing else f"cannot be imported ({first_line(error)})"
        raise EngineError(f"{name}: vLLM's {architecture} {reason}.", "Try --engine hf.") from error


def _environment(architecture: str, arguments: dict[str, Any], gpus: str | None, replicas: int) -> dict[str, str]:
    """What an engine and its processes read from the environment; what the user has set stays."""
    wanted = {ARCHITECTURE: architecture, OWNER: str(os.getpid())}
    if "VLLM_WORKER_MULTIPROC_METHOD" not in os.environ:
        # A forked process inherits that plugins were loaded, and never loads ours; threads of polars and of tokenizers do not
        # survive a fork either.
        wanted["VLLM_WORKER_MULTIPROC_METHOD"] = "spawn"
    if gpus is not None:
        wanted["CUDA_VISIBLE_DEVICES"] = gpus
    name = "VLLM_ENABLE_V1_MULTIPROCESSING"
    if platform().is_cpu() and replicas == arguments["tensor_parallel_size"] == 1 and name not in os.environ:
        # On CPU a process of its own buys nothing, and takes 15 s to start.
        wanted[name] = "0"
    return wanted


def _config(model: ModelSource, options: EngineOptions) -> Any:
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(
            model.name, revision=model.revision, trust_remote_code=options.trust_remote_code
        )
    except Exception as error:  # transformers raises many kinds for the same thing
        raise cannot_load(model.name, error) from error


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


def available_memory(options: EngineOptions) -> int:
    """Bytes that vLLM may take of each device: its share of a GPU, or what is free on a CPU."""
    if platform().is_cpu():
        from trajscore.engines.memory import available_memory as of_machine

        return of_machine("cpu")
    return int(_utilization(options) * platform().get_device_total_memory())


def cache_to_begin() -> int:
    """Bytes that have to be free for the cache when an engine starts on a CPU, whatever it will need of them."""
    return int(float(os.environ["VLLM_CPU_KVCACHE_SPACE"]) * 2**30) if platform().is_cpu() else 0


def engines_per_device(options: EngineOptions) -> int:
    """How many engines of one model share the memory of a device: on a CPU all that run side by side."""
    return options.data_parallel_size if platform().is_cpu() else 1


def _utilization(options: EngineOptions) -> float:
    return float(options.gpu_memory_utilization or vllm.EngineArgs.gpu_memory_utilization)
