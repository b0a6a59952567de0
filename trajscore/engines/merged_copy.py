"""A model with its adapter merged in, as a folder for engines that load a model from files alone."""

from __future__ import annotations

import functools
import shutil
import tempfile
from pathlib import Path

import torch
import transformers

from trajscore.engines.checkpoint import quiet_loading
from trajscore.engines.fingerprint import folder_of
from trajscore.engines.hf import load_model
from trajscore.errors import EngineError
from trajscore.options.groups import EngineOptions


def merged_copy(name: str, revision: str | None, adapter: str, options: EngineOptions, dtype: str) -> Path:
    """A folder with the merged model, written once in this process and deleted when it ends.

    Args:
        name: the base, hub id or folder.
        revision: hub revision of the base.
        adapter: a folder that `check_adapter` let pass.
        options: how models are loaded.
        dtype: precision of the copy; `auto` for the checkpoint's.

    Raises:
        UsageError: see `merge`, or the base cannot be loaded.
        EngineError: there is no room for the copy.
    """
    return Path(_copy(name, revision, adapter, options.trust_remote_code, dtype).name)


@functools.cache
def _copy(
    name: str, revision: str | None, adapter: str, trust_remote_code: bool, dtype: str
) -> tempfile.TemporaryDirectory[str]:
    """Models that take turns are loaded again and again: their copy stays meanwhile."""
    if dtype == "auto":
        dtype = _own_dtype(name, revision, trust_remote_code)
    options = EngineOptions(dtype=dtype, device="cpu", trust_remote_code=trust_remote_code)  # type: ignore[arg-type]
    model = load_model(name, revision, options, torch.device("cpu"), adapter)
    output = model.get_output_embeddings()
    if output is not None and output.weight is not model.get_input_embeddings().weight:
        # An adapter may give a head of its own to a model that had none.
        model.config.get_text_config().tie_word_embeddings = model.config.tie_word_embeddings = False
    folder = tempfile.TemporaryDirectory(prefix="trajscore-merged-")
    needed = sum(each.numel() * each.element_size() for each in model.parameters())
    free = shutil.disk_usage(folder.name).free
    if needed > free:
        raise EngineError(
            f"{name}: a copy with {adapter} merged in takes {needed / 2**30:.3g} GiB in {tempfile.gettempdir()}, where "
            f"{free / 2**30:.3g} GiB are free.",
            "Free some space, set TMPDIR, or use --engine hf, which merges in memory.",
        )
    try:
        with quiet_loading():
            model.save_pretrained(folder.name)
            for file in _small_files(name, revision):
                shutil.copy(file, folder.name)
    except OSError as error:
        raise EngineError(
            f"{folder.name}: the merged model cannot be written ({error.strerror or error}).",
            "Free some space, set TMPDIR, or use --engine hf, which merges in memory.",
        ) from error
    return folder


def _own_dtype(name: str, revision: str | None, trust_remote_code: bool) -> str:
    config = transformers.AutoConfig.from_pretrained(name, revision=revision, trust_remote_code=trust_remote_code)
    return str(getattr(config.get_text_config(), "dtype", None) or "float32").removeprefix("torch.")


def _small_files(name: str, revision: str | None) -> list[Path]:
    """What lies beside a model's weights and configuration: its tokenizer, its processor, its code."""
    made = {"config.json", "generation_config.json", "model.safetensors.index.json"}
    kept = (".json", ".jinja", ".txt", ".model", ".py")
    return [path for path in folder_of(name, revision).iterdir() if path.suffix in kept and path.name not in made]
