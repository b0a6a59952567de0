"""Adapters (LoRA and its kin): checked, fingerprinted, and merged into their base in memory.

What reads a merged model reads a whole model, so nothing else knows that there was an adapter. peft does the arithmetic; here
is made sure that it merged all of the adapter, and said in one sentence where it could not.
"""

from __future__ import annotations

import contextlib
import hashlib
import warnings
from pathlib import Path
from typing import Any

import orjson

from trajscore.engines.checkpoint import ADAPTER, quiet_loading
from trajscore.errors import MissingExtraError, UsageError, first_line

WEIGHTS = "adapter_model.safetensors"
"""Where peft keeps the weights of an adapter."""


def check_adapter(adapter: str, flag: str = "--adapter") -> None:
    """Refuse what is no adapter that can be merged, by its files alone and before anything is loaded.

    Args:
        adapter: a folder that peft wrote.
        flag: what to call it in a message.

    Raises:
        UsageError: no such folder, no adapter in it, weights that are not safetensors, or a kind that is not merged.
    """
    folder = Path(adapter)
    if not folder.is_dir():
        raise UsageError(f"{flag} {adapter}: no such folder.", f"Give the folder that holds {ADAPTER} and {WEIGHTS}.")
    try:
        settings = orjson.loads((folder / ADAPTER).read_bytes())
        kind = str(settings["peft_type"])
    except FileNotFoundError as error:
        whole = "a whole model, no adapter" if (folder / "config.json").is_file() else f"a folder without {ADAPTER}"
        raise UsageError(
            f"{flag} {adapter}: {whole}.", f"Give the folder that holds {ADAPTER} and {WEIGHTS}."
        ) from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UsageError(
            f"{flag} {adapter}: {ADAPTER} cannot be read ({first_line(error)}).", "Export the adapter again."
        ) from error
    if not (folder / WEIGHTS).is_file():
        raise UsageError(
            f"{flag} {adapter}: no {WEIGHTS}.", "Convert its weights to safetensors: other weights are not loaded."
        )
    if "PROMPT" in kind or "TUNING" in kind:
        raise UsageError(
            f"{flag} {adapter}: {kind} adds to what the model reads and cannot be merged into its weights.",
            "Adapters that change weights can be merged: LoRA and its kin.",
        )


def adapter_identity(adapter: str) -> dict[str, str]:
    """What identifies an adapter in a manifest: the folder's `name`, and `sha256` over its settings and weights."""
    digest = hashlib.sha256()
    for name in (ADAPTER, WEIGHTS):
        with (Path(adapter) / name).open("rb") as handle:
            digest.update(name.encode() + hashlib.file_digest(handle, "sha256").digest())
    return {"name": Path(adapter).resolve().name, "sha256": digest.hexdigest()}


def merge(model: Any, name: str, adapter: str) -> Any:
    """A model of transformers with an adapter merged into it, in the precision in which the model was loaded.

    Args:
        model: a causal language model, which is changed.
        name: what it is called.
        adapter: a folder that `check_adapter` let pass.

    Raises:
        MissingExtraError: peft is not installed.
        UsageError: the adapter does not belong to this model, or the model's weights are quantised.
    """
    try:
        import peft
    except ImportError as error:
        raise MissingExtraError("peft", "hf") from error

    if getattr(model.config, "quantization_config", None):
        raise UsageError(
            f"{name}: its weights are quantised, and {adapter} cannot be merged into them exactly.",
            "Give the base model in full precision.",
        )
    try:
        with quiet_loading(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            wrapped = peft.PeftModel.from_pretrained(model, adapter, torch_device=str(model.device))
            # Asked again it says which weights found no place, and which places no weight: the first time that is a warning.
            report = wrapped.load_adapter(adapter, "default", torch_device=str(model.device))
            left_over = [*report.unexpected_keys, *report.missing_keys]
            merged = None if left_over else wrapped.merge_and_unload(safe_merge=True)
    except Exception as error:  # peft raises many kinds for the same thing: the two do not belong together
        raise _other_base(name, adapter, _shortened(error)) from error
    if merged is None:
        kind = "holds weights for which the model has no place" if report.unexpected_keys else "lacks weights"
        raise _other_base(name, adapter, f"{kind}, the first is {left_over[0]}")
    return merged


def _other_base(name: str, adapter: str, reason: str) -> UsageError:
    said = ""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        said = orjson.loads((Path(adapter) / ADAPTER).read_bytes()).get("base_model_name_or_path") or ""
    return UsageError(
        f"{adapter}: cannot be merged into {name} ({reason}).",
        f"Give the base that it was trained on{f', which it calls {said}' if said else ''}.",
    )


def _shortened(error: BaseException) -> str:
    """The line of peft's or torch's message that names the weight or module."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    told = next((line for line in lines if line.startswith("size mismatch")), "")
    return (told or first_line(error))[:300].rstrip(".")
