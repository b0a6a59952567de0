"""What vLLM sets up for a model of ours is what it sets up without us: the resolved configurations differ where we say so only.

The platform's own corrections are off: a CPU forces much that a GPU does not, and would hide what was lost.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.helpers.tiny_models import configuration
from trajscore.engines import EngineOptions, ModelSource

pytest.importorskip("vllm", reason="vLLM is not installed")

# Prefix of a field -> why ours differs.
OURS = {
    "additional_config.trajscore_halvings": "how often memory ran out",
    "additional_config.trajscore_other_head_bytes": "what the memory profile leaves to the teacher's head",
    "additional_config.trajscore_vocabulary": "where the pooler finds the ids that count",
    "instance_id": "new for every configuration",
    "model_config.convert": "no head of vLLM's is put on",
    "model_config.pooler_config": "the model is a pooling model",
    "model_config.runner": "the model is a pooling model",
    "parallel_config.disable_nccl_for_dp_synchronization": "follows async_scheduling",
    "scheduler_config.async_scheduling": "vLLM knows it for generation only",
    "scheduler_config.runner_type": "the model is a pooling model",
}
QUICK = ("qwen3", "gpt_oss", "nemotron_h")
MODELS = [
    *QUICK,
    *(
        pytest.param(name, marks=pytest.mark.slow)
        for name in (
            "qwen3_next",
            "gemma3",
            "gemma4",
            "granite_hybrid",
            "deepseek_v3",
            "llama4",
            "phi4",
            "mistral",
            "lfm2",
        )
    ),
]


@pytest.fixture(autouse=True)
def _no_platform(monkeypatch: pytest.MonkeyPatch) -> None:
    from vllm.platforms import current_platform

    monkeypatch.setattr(type(current_platform), "check_and_update_config", classmethod(lambda cls, config: None))


def _resolved(arguments: Mapping[str, Any]) -> Any:
    import vllm

    return vllm.EngineArgs(**arguments).create_engine_config()


def _arguments(folder: Path, name: str) -> tuple[str, dict[str, Any]]:
    from trajscore.engines.vllm import _arguments as arguments_of

    configuration(name, 551).save_pretrained(folder)
    options = EngineOptions(dtype="bfloat16")
    return arguments_of(ModelSource(str(folder), np.arange(551)), options, folder / "vocabulary.npy")


def _without_us(arguments: Mapping[str, Any]) -> dict[str, Any]:
    ours = ("runner", "convert", "additional_config")
    return {name: value for name, value in arguments.items() if name not in ours}


def _plain(value: Any) -> Any:
    """A configuration as dictionaries, lists and texts."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {each.name: _plain(getattr(value, each.name, None)) for each in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): _plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    if hasattr(value, "to_dict"):
        return value.to_dict()
    return type(value).__name__ if " at 0x" in repr(value) else repr(value)


def _differences(one: Any, other: Any, path: str = "") -> Iterator[str]:
    if isinstance(one, dict) and isinstance(other, dict):
        for key in one.keys() | other.keys():
            yield from _differences(one.get(key), other.get(key), f"{path}.{key}" if path else key)
    elif one != other:
        yield path


@pytest.mark.parametrize("name", MODELS)
def test_nothing_but_what_we_ask_for_differs(name: str, tmp_path: Path) -> None:
    from trajscore.engines.vllm_plugin import scoring

    architecture, arguments = _arguments(tmp_path, name)
    with scoring(architecture):
        ours = _resolved(arguments)
    theirs = _resolved(_without_us(arguments))
    assert ours.model_config.architecture == architecture
    found = set(_differences(_plain(ours), _plain(theirs)))
    assert {path for path in found if not path.startswith(tuple(OURS))} == set()


def test_vllms_own_class_is_back_afterwards() -> None:
    from vllm import ModelRegistry

    from trajscore.engines.vllm_plugin import scoring

    before = ModelRegistry.models["Qwen3ForCausalLM"]
    with contextlib.suppress(RuntimeError), scoring("Qwen3ForCausalLM"):
        inside = ModelRegistry.models["Qwen3ForCausalLM"]
        raise RuntimeError("as when an engine cannot start")
    assert inside is not before
    assert ModelRegistry.models["Qwen3ForCausalLM"] is before


def test_the_control_another_name_loses_what_the_architecture_needs(tmp_path: Path) -> None:
    """Nemotron-H keeps its states in float32 under its own name; under one of ours vLLM would take the model's bfloat16."""
    from vllm import ModelRegistry

    from trajscore.engines.vllm_plugin import scoring_class

    architecture, arguments = _arguments(tmp_path, "nemotron_h")
    base = ModelRegistry.models[architecture].load_model_cls()
    ModelRegistry.register_model("OfOurs", scoring_class(base))
    try:
        renamed = _resolved({**arguments, "hf_overrides": {"architectures": ["OfOurs"]}})
    finally:
        del ModelRegistry.models["OfOurs"]
    theirs = _resolved(_without_us(arguments))
    found = set(_differences(_plain(renamed), _plain(theirs)))
    assert any("mamba_ssm_cache_dtype" in path for path in found)
