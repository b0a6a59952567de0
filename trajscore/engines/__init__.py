"""The engines, which run a model over token sequences, and the generators, which let one write.

What an engine promises is in `base.py`, what a generator does in `generation.py`. `hf*.py` and `vllm*.py` run models, `hf.py`
with `pieces.py`, `shared_prefixes.py` and `rotary.py`; `reductions.py` says what is asked for, `reduced_rows.py` makes it of
hidden states, and `token_scores.py` declares it.
`checkpoint.py`, `fingerprint.py` and `footprint.py` look at a model's files and shapes, `adapters.py` and `merged_copy.py`
merge LoRA into it, `hidden_store.py` and `head_file.py` keep what another model waits for, `memory.py` is about devices. Model
libraries are imported by the engines, not here. `server.py` asks a model behind a server, whose
replies `served_replies.py` reads; it gives `ServedScores` and is no entry of `ENGINES`.

To add an engine: its file, a function here that loads it, a line in `ENGINES`, and its name in the `Literal` of `engine` in
`scoring/options.py`. One that writes text also stands in `GENERATORS`, `load_generator` and `skills/options.py`.
"""

from __future__ import annotations

import functools
import importlib.util
import logging
import os
from collections.abc import Callable

from trajscore.engines.base import Engine as Engine
from trajscore.engines.base import ModelSource as ModelSource
from trajscore.engines.base import Result as Result
from trajscore.engines.base import check_ids as check_ids
from trajscore.engines.generation import Generator
from trajscore.engines.token_scores import PairScores as PairScores
from trajscore.engines.token_scores import TokenScores as TokenScores
from trajscore.engines.token_scores import TopKScores as TopKScores
from trajscore.errors import EngineError, MissingExtraError, UsageError, did_you_mean
from trajscore.options.groups import EngineOptions as EngineOptions
from trajscore.rendering.tokenizer import require_model
from trajscore.rendering.tokens import TokenSequence as TokenSequence

_LOG = logging.getLogger("trajscore")


def _hf(model: ModelSource, options: EngineOptions) -> Engine:
    from trajscore.engines.hf import HFEngine

    return HFEngine(model, options)


def _vllm(model: ModelSource, options: EngineOptions) -> Engine:
    from trajscore.engines.vllm import VLLMEngine

    return VLLMEngine(model, options)


ENGINES: dict[str, Callable[[ModelSource, EngineOptions], Engine]] = {"vllm": _vllm, "hf": _hf}
"""Engine name -> function that loads a model into it; `auto` is the first one that is installed and can run the model."""

ENGINE_VARIABLE = "TRAJSCORE_ENGINE"
"""Environment variable that says what `auto` means."""


def default_engine() -> str:
    """What the environment says that `auto` means; `auto` where it says nothing.

    Raises:
        UsageError: it names no engine.
    """
    name = os.environ.get(ENGINE_VARIABLE) or "auto"
    if name not in ("auto", *ENGINES):
        raise UsageError(f"{ENGINE_VARIABLE}={name}: no such engine.", did_you_mean(name, ["auto", *ENGINES]))
    return name


def load_engine(name: str, model: ModelSource, options: EngineOptions) -> tuple[str, Engine]:
    """Load a model into an engine.

    Args:
        name: a name of `ENGINES`, or `auto`.
        model: the model.
        options: how to run it.

    Returns:
        The engine's name and the engine.

    Raises:
        UsageError: unknown engine, or the model does not exist.
        EngineError: the model cannot be run.
    """
    why = f"--engine {name}"
    if name == "auto" and options.dtype == "float64":
        name, why = "hf", "--dtype float64"
    elif name == "auto" and (name := default_engine()) != "auto":
        why = f"{ENGINE_VARIABLE}={name}"
    if name == "auto" and importlib.util.find_spec("vllm") is not None:
        _say(model.name, "vLLM", "it is installed")
        try:
            return "vllm", ENGINES["vllm"](model, options)
        except (EngineError, MissingExtraError) as error:
            _LOG.warning("%s So it runs with transformers.", error.problem)
            why = "vLLM cannot run it"
    elif name == "auto":
        why = "vLLM is not installed"
    chosen = "hf" if name == "auto" else name
    if chosen not in ENGINES:
        raise UsageError(f"--engine {name}: no such engine.", did_you_mean(name, ["auto", *ENGINES]))
    _say(model.name, {"vllm": "vLLM", "hf": "transformers"}.get(chosen, chosen), why)
    return chosen, ENGINES[chosen](model, options)


@functools.cache
def _say(model: str, engine: str, why: str) -> None:
    """What is loaded, once in a process: models that take turns are loaded again and again."""
    _LOG.info("loading %s with %s (%s)", model, engine, why)


GENERATORS = ("hf", "vllm")
"""What can write text."""


def load_generator(
    name: str, model: str, options: EngineOptions, revision: str | None = None, max_model_len: int | None = None
) -> tuple[str, Generator]:
    """Load a model to draw text from.

    Args:
        name: `hf`, `vllm`, or `auto` for vLLM where it is installed.
        model: hub id or folder.
        options: how it is loaded.
        revision: hub revision.
        max_model_len: longest conversation with its completion; vLLM only.

    Raises:
        UsageError: unknown name, or no such model.
        MissingExtraError: the engine is not installed.
        EngineError: the model cannot be run.
    """
    asked = default_engine() if name == "auto" else name
    chosen = asked if asked != "auto" else "vllm" if importlib.util.find_spec("vllm") else "hf"
    if chosen not in GENERATORS:
        raise UsageError(f"--engine {name}: no such engine.", did_you_mean(name, ["auto", *GENERATORS]))
    require_model(model)
    if chosen == "hf":
        from trajscore.engines.hf_generation import HFGenerator

        return chosen, HFGenerator(model, options, revision)
    from trajscore.engines.vllm_generation import VLLMGenerator

    return chosen, VLLMGenerator(model, options, revision, max_model_len)
