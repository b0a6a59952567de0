"""All that is touched in vLLM beyond its documented interface: the names, the check of them, and a function for each use.

What else imports vLLM takes only what its documentation names (`vllm.LLM`, `vllm.LLMEngine`, `vllm.EngineArgs`, parameters).
Axes: T tokens of a step, P prompt tokens of a request, D hidden width, V vocabulary.
"""

from __future__ import annotations

import contextlib
import importlib
import inspect
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Name:
    """A semi-private name of vLLM and the parameters or attributes that are used of it."""

    module: str
    name: str
    uses: tuple[str, ...] = ()


_LOGITS = "vllm.model_executor.layers.logits_processor"
_REGISTRY = "vllm.model_executor.models.registry"

NAMES = (
    Name("vllm", "LLMEngine.from_engine_args", ("engine_args", "enable_multiprocessing")),
    Name("vllm", "LLMEngine.add_request", ("request_id", "prompt", "params")),
    Name("vllm", "LLMEngine.step"),
    Name("vllm", "LLMEngine.has_unfinished_requests"),
    Name("vllm", "LLMEngine.abort_request", ("request_ids", "internal")),
    Name("vllm", "LLMEngine.sleep", ("level",)),
    Name("vllm", "LLMEngine.wake_up"),
    Name(
        "vllm", "EngineArgs", ("enable_sleep_mode", "additional_config", "language_model_only", "skip_tokenizer_init")
    ),
    Name("vllm", "PoolingParams", ("task", "extra_kwargs")),
    Name("vllm", "ModelRegistry.register_model", ("model_arch", "model_cls")),
    Name("vllm", "ModelRegistry.get_supported_archs"),
    Name(_REGISTRY, "_ModelRegistry", ("models",)),
    Name(_REGISTRY, "_RegisteredModel.load_model_cls"),
    Name(_REGISTRY, "_LazyRegisteredModel.load_model_cls"),
    Name("vllm.model_executor.models.interfaces", "supports_multimodal", ("model",)),
    Name("vllm.model_executor.models.interfaces_base", "VllmModelForPooling"),
    Name("vllm.model_executor.layers.pooler.abstract", "Pooler.forward", ("hidden_states", "pooling_metadata")),
    Name("vllm.model_executor.layers.pooler.common", "PoolingParamsUpdate", ("requires_token_ids",)),
    Name(_LOGITS, "LogitsProcessor.forward", ("lm_head", "embedding_bias")),
    Name(_LOGITS, "LogitsProcessor.__init__", ("org_vocab_size", "scale", "soft_cap")),
    Name("vllm.v1.pool.metadata", "PoolingMetadata.get_prompt_token_ids_cpu"),
    Name("vllm.v1.pool.metadata", "PoolingMetadata.get_pooling_cursor"),
    Name("vllm.v1.pool.metadata", "PoolingMetadata", ("pooling_params", "pooling_states")),
    Name("vllm.v1.pool.metadata", "PoolingCursor", ("seq_lens_cpu", "num_scheduled_tokens_cpu", "finished_mask")),
    Name("vllm.v1.pool.metadata", "PoolingStates.clean"),
    Name("vllm.distributed", "tensor_model_parallel_all_gather", ("input_", "dim")),
    Name("vllm.distributed", "get_tensor_model_parallel_rank"),
    Name("vllm.distributed", "get_tensor_model_parallel_world_size"),
    Name("vllm.distributed", "cleanup_dist_env_and_memory"),
    Name("vllm.platforms.interface", "Platform.is_cpu"),
    Name("vllm.platforms.interface", "Platform.get_device_name"),
    Name("vllm.platforms.interface", "Platform.get_device_total_memory"),
    Name("vllm.platforms.interface", "Platform.is_sleep_mode_available"),
)
"""Everything semi-private that is touched, here or at an object of vLLM's that others hold."""


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


def platform() -> Any:
    """What vLLM runs on here."""
    from vllm.platforms import current_platform

    return current_platform


def model_class(architecture: str) -> type[Any]:
    """vLLM's class of an architecture; imports its code, which may fail in many ways."""
    from vllm import ModelRegistry

    found: type[Any] = ModelRegistry.models[architecture].load_model_cls()
    return found


def register_model(architecture: str, model: type[Any]) -> None:
    """From now on vLLM takes this class for the architecture, in this process."""
    from vllm import ModelRegistry

    ModelRegistry.register_model(architecture, model)


@contextlib.contextmanager
def restoring(architecture: str) -> Iterator[None]:
    """Afterwards the architecture has the class that it had before."""
    from vllm import ModelRegistry

    before = ModelRegistry.models[architecture]
    try:
        yield
    finally:
        ModelRegistry.models[architecture] = before


def takes_pictures(model: type[Any]) -> bool:
    """Whether a class of vLLM's takes images or sound besides text."""
    from vllm.model_executor.models.interfaces import supports_multimodal

    return bool(supports_multimodal(model))


def pooling_model_base() -> type[Any]:
    """The base of models that pool."""
    from vllm.model_executor.models.interfaces_base import VllmModelForPooling

    found: type[Any] = VllmModelForPooling
    return found


def pooler_base() -> type[Any]:
    """The base of poolers."""
    from vllm.model_executor.layers.pooler.abstract import Pooler

    found: type[Any] = Pooler
    return found


def wants_token_ids() -> Any:
    """A pooler's wish for the ids of prompts."""
    from vllm.model_executor.layers.pooler.common import PoolingParamsUpdate

    return PoolingParamsUpdate(requires_token_ids=True)


class StepPart(NamedTuple):
    """One request's share of a step: what it asks, its ids [P], which of its tokens the step has, and what waits of it."""

    params: Any
    ids_P: Tensor
    start: int
    end: int
    waiting: list[Tensor]
    is_finished: bool


def step_parts(metadata: Any) -> list[StepPart]:
    """The requests of a step, in the order of their hidden states."""
    cursor = metadata.get_pooling_cursor()
    return [
        StepPart(params, ids_P, end - count, end, state.hidden_states_cache, finished)
        for params, ids_P, end, count, state, finished in zip(
            metadata.pooling_params,
            metadata.get_prompt_token_ids_cpu(),
            cursor.seq_lens_cpu.tolist(),
            cursor.num_scheduled_tokens_cpu.tolist(),
            metadata.pooling_states,
            cursor.get_finished_mask(),
            strict=True,
        )
    ]


def own_rank() -> int:
    """This worker's number in its tensor parallel group."""
    from vllm.distributed import get_tensor_model_parallel_rank

    return int(get_tensor_model_parallel_rank())


def rank_count() -> int:
    """Workers of the tensor parallel group."""
    from vllm.distributed import get_tensor_model_parallel_world_size

    return int(get_tensor_model_parallel_world_size())


def gather_ranks(tensor: Tensor) -> Tensor:
    """The tensors of all ranks, equally large, bit for bit, [ranks, ...]."""
    import torch
    from vllm.distributed import tensor_model_parallel_all_gather

    if not tensor.numel():
        return tensor.new_empty(rank_count(), *tensor.shape)
    # As float32, whatever they are: what vLLM shares memory with on CPUs knows a few types only.
    raw = tensor.contiguous().reshape(-1).view(torch.uint8)
    words = torch.nn.functional.pad(raw, (0, -len(raw) % 4)).view(torch.float32)
    gathered = tensor_model_parallel_all_gather(words, dim=0).view(rank_count(), -1).view(torch.uint8)
    found: Tensor = gathered[:, : len(raw)].contiguous().view(tensor.dtype).reshape(-1, *tensor.shape)
    return found


class HeadInUse(NamedTuple):
    """What a model made logits of in one call: this rank's weight (None where there is none) and bias, how many ranks share
    them, entries altogether, scale and soft cap, and all logits [N, V], None on ranks that get none."""

    weight: Any
    bias: Any
    ranks: int
    entries: int
    scale: float
    softcap: float | None
    logits_NV: Tensor | None


def watch_head(model: Any, hidden_ND: Tensor) -> HeadInUse:
    """Let a model make logits of some states, and see with which head."""
    from vllm.model_executor.layers.logits_processor import LogitsProcessor

    seen: dict[str, Any] = {}

    def look(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        names = dict(zip(("lm_head", "hidden_states", "embedding_bias"), args, strict=False)) | kwargs
        seen.update(names, scale=module.scale, softcap=module.soft_cap, entries=module.org_vocab_size)

    processors = [module for module in model.modules() if isinstance(module, LogitsProcessor)]
    hooks = [module.register_forward_pre_hook(look, with_kwargs=True) for module in processors]
    try:
        logits_NV = model.compute_logits(hidden_ND)
    finally:
        for hook in hooks:
            hook.remove()
    weight = getattr(seen.get("lm_head"), "weight", None)
    return HeadInUse(
        weight,
        seen.get("embedding_bias"),
        int(getattr(seen.get("lm_head"), "tp_size", rank_count())),
        int(seen.get("entries", 0)),
        float(seen.get("scale", 1.0)),
        seen.get("softcap"),
        logits_NV,
    )


def has_own_process(engine: Any) -> bool:
    """Whether an `LLMEngine` computes in a process of its own, and not in this one."""
    return not hasattr(engine.engine_core, "engine_core")


def shut_down(engine: Any) -> None:
    """Stop an `LLMEngine`, and what it left in this process if it computed here."""
    from vllm.distributed import cleanup_dist_env_and_memory

    own_process = has_own_process(engine)
    with contextlib.suppress(Exception):  # one that died cannot be asked to stop
        engine.engine_core.shutdown()
    if not own_process:
        cleanup_dist_env_and_memory()


def can_sleep() -> bool:
    """Whether an engine's weights can leave this device and come back; never on a CPU."""
    return bool(platform().is_sleep_mode_available())
