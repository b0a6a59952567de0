"""How vLLM is imported and started, and what is relied on in it beyond its documented interface."""

from __future__ import annotations

import contextlib
import functools
import importlib
import inspect
import logging
import os
import threading
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from trajscore.errors import EngineError, MissingExtraError, first_line

_LOG = logging.getLogger("trajscore")

TESTED = {"0.32.0": "conformance suite on a CPU; never on a GPU"}
"""Version of vLLM -> what was run with it."""

_ENVIRONMENT = threading.Lock()
"""The environment belongs to the whole process: processes of engines start one after the other."""


@dataclass(frozen=True)
class _Name:
    """A semi-private name of vLLM and the parameters or attributes that are used of it."""

    module: str
    name: str
    uses: tuple[str, ...]


NAMES = (
    _Name("vllm", "LLMEngine.from_engine_args", ("engine_args", "enable_multiprocessing")),
    _Name("vllm", "LLMEngine.add_request", ("request_id", "prompt", "params")),
    _Name("vllm", "LLMEngine.step", ()),
    _Name("vllm", "LLMEngine.has_unfinished_requests", ()),
    _Name("vllm", "LLMEngine.abort_request", ("request_ids", "internal")),
    _Name("vllm", "PoolingParams", ("task", "extra_kwargs")),
    _Name("vllm", "ModelRegistry.register_model", ("model_arch", "model_cls")),
    _Name("vllm.model_executor.models.interfaces_base", "VllmModelForPooling", ()),
    _Name("vllm.model_executor.layers.pooler.abstract", "Pooler.forward", ("hidden_states", "pooling_metadata")),
    _Name("vllm.model_executor.layers.pooler.common", "PoolingParamsUpdate", ("requires_token_ids",)),
    _Name("vllm.model_executor.layers.logits_processor", "LogitsProcessor.forward", ("lm_head", "embedding_bias")),
    _Name(
        "vllm.model_executor.layers.logits_processor",
        "LogitsProcessor.__init__",
        ("org_vocab_size", "scale", "soft_cap"),
    ),
    _Name("vllm.v1.pool.metadata", "PoolingMetadata.get_prompt_token_ids_cpu", ()),
    _Name("vllm.v1.pool.metadata", "PoolingMetadata", ("pooling_params", "pooling_states")),
    _Name("vllm.v1.pool.metadata", "PoolingCursor", ("seq_lens_cpu", "num_scheduled_tokens_cpu", "finished_mask")),
    _Name("vllm.v1.pool.metadata", "PoolingStates.clean", ()),
    _Name("vllm.distributed", "tensor_model_parallel_all_gather", ("input_", "dim")),
    _Name("vllm.distributed", "cleanup_dist_env_and_memory", ()),
)
"""Everything semi-private that the engine and its plugin touch."""


def prepare_environment() -> None:
    """Settings that vLLM reads from the environment when it is imported; what the user has set stays."""
    defaults = {
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_LOGGING_LEVEL": "ERROR",
        # stdout carries a command's product.
        "VLLM_LOGGING_STREAM": "ext://sys.stderr",
        "VLLM_CPU_KVCACHE_SPACE": "4",
        # Binding threads to cores and memory to nodes would bind this process too, and everything it does besides.
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    }
    for name, value in defaults.items():
        os.environ.setdefault(name, value)
    # What vLLM has to say before it has read the level above.
    logging.getLogger("vllm").addHandler(logging.NullHandler())


@contextlib.contextmanager
def importing() -> Iterator[None]:
    """Around an import of vLLM: its environment is prepared, and what goes wrong is said.

    Raises:
        MissingExtraError: vLLM is not installed.
        EngineError: it is, and it is broken.
    """
    prepare_environment()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            yield
    except Exception as error:  # an installation that does not fit its torch fails in many ways
        if isinstance(error, ModuleNotFoundError) and error.name == "vllm":
            raise MissingExtraError("vllm", "vllm") from error
        raise EngineError(
            f"vLLM is installed, but cannot be imported ({first_line(error)}).",
            "Often torch is another one than vLLM was built for, or torchvision, torchaudio or torchcodec do not fit it.",
        ) from error


@contextlib.contextmanager
def environment(wanted: Mapping[str, str]) -> Iterator[None]:
    """Variables of the environment for as long as an engine starts: vLLM and its processes read them then."""
    with _ENVIRONMENT:
        before = {name: os.environ.get(name) for name in wanted}
        os.environ |= wanted
        try:
            yield
        finally:
            for name, value in before.items():
                if value is None:
                    del os.environ[name]
                else:
                    os.environ[name] = value


def problems() -> list[str]:
    """What the installed vLLM has otherwise, a line each."""
    found = []
    for wanted in NAMES:
        try:
            thing: Any = importlib.import_module(wanted.module)
            for part in wanted.name.split("."):
                thing = getattr(thing, part)
        except (ImportError, AttributeError):
            found.append(f"{wanted.module}.{wanted.name} is gone")
            continue
        known = set(inspect.signature(thing).parameters) if wanted.uses else set()
        missing = [use for use in wanted.uses if use not in known]
        found += [f"{wanted.module}.{wanted.name} has no {use!r}" for use in missing]
    return found


@functools.cache
def _say_untested(version: str) -> None:
    if version not in TESTED:
        _LOG.warning(
            "vLLM %s: not tested with trajscore, only looked at for what it needs (tested: %s)",
            version,
            ", ".join(TESTED),
        )


def check_names() -> None:
    """Refuse a vLLM that lacks something the engine relies on.

    Raises:
        EngineError: with what is missing and which versions are known to have it.
    """
    import vllm

    _say_untested(vllm.__version__.partition("+")[0])
    lines = problems()
    if lines:
        raise EngineError(
            f"vLLM {vllm.__version__} is not one that trajscore can use:\n  " + "\n  ".join(lines),
            f"Tested: {', '.join(TESTED)}. Install one of these, or use --engine hf.",
        )
