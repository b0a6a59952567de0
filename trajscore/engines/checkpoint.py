"""Whether a model's folder is one model: which files hold its weights, and that they are those its configuration asks for.

Loaders disagree about a folder that holds more than one model (an old single file beside newer shards, an adapter beside its
base), and fill in or leave out what does not fit, mostly in silence. Both engines ask here first, so that both refuse alike.
"""

from __future__ import annotations

import contextlib
import logging
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import orjson

from trajscore.errors import UsageError, first_line

_LOG = logging.getLogger("trajscore")

ONE_FILE, INDEX = "model.safetensors", "model.safetensors.index.json"
ADAPTER = "adapter_config.json"

_SPARE = re.compile(
    r"(^|\.)(v_head|value_head|reward_head|score|classifier|summary|qa_outputs|cls"  # heads of other tasks
    r"|mtp\w*|eh_proj|enorm|hnorm|shared_head"  # prediction of several tokens, used for speed only
    r"|visual|vision\w*|audio\w*|speech\w*|image\w*|video\w*|multi_modal_projector|mm_\w+|aligner|connector)(\.|$)"
)
"""Names of weights that no prediction of the next token of a text reads."""


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files that hold a model's weights, whatever reads them.

    Raises:
        UsageError: there are none, one is missing, or loaders would take different ones.
    """
    index, one = folder / INDEX, folder / ONE_FILE
    present = {path.name for path in folder.glob("*.safetensors")}
    if index.is_file():
        named = _named(index)
        if missing := sorted(named - present):
            raise UsageError(
                f"{folder}: {INDEX} names {missing[0]}, which is not there ({len(missing)} of {len(named)} files missing).",
                "Fetch or export the model again.",
            )
        if one.is_file() and ONE_FILE not in named:
            raise UsageError(
                f"{folder}: holds {ONE_FILE} beside the {len(named)} files that {INDEX} names. Some loaders read the one, some "
                "the others.",
                "Remove the older of the two.",
            )
        return [folder / name for name in sorted(named)]
    if not present:
        raise UsageError(f"{folder}: no *.safetensors weights{_instead(folder)}.", _CONVERT)
    others = sorted(name for name in present - {ONE_FILE} if not name.startswith("adapter_"))
    if others and one.is_file():
        raise UsageError(
            f"{folder}: holds {others[0]} beside {ONE_FILE}. Some loaders read both.",
            "Keep the file that holds the whole model.",
        )
    if len(others) > 1:
        raise UsageError(
            f"{folder}: {len(others)} *.safetensors files without {INDEX}, so nothing says which of them make the model.",
            "Fetch or export the model again.",
        )
    return [one if one.is_file() else folder / others[0]] if one.is_file() or others else _only_adapter(folder)


def check_folder(model: str) -> None:
    """Refuse a folder that holds more than one model, or none, before anything of it is loaded. A hub id is left alone.

    Raises:
        UsageError: no safetensors weights or several sets of them, or an adapter beside the model.
    """
    folder = Path(model)
    if folder.is_dir():
        if (folder / ADAPTER).is_file():
            raise UsageError(
                f"{model}: holds an adapter ({ADAPTER}) beside a whole model. Some loaders apply it, some do not.",
                "To score the model alone, move the adapter_* files to a folder of their own; to score it with the adapter, "
                "name that folder with --adapter besides.",
            )
        weight_files(folder)


def check_weights(model: str, revision: str | None, trust_remote_code: bool) -> None:
    """Refuse a model whose weights are not those of its configuration, by their names and shapes; no weight is read.

    Args:
        model: folder or hub id.
        revision: hub revision.
        trust_remote_code: whether the model's own code may run.

    Raises:
        UsageError: see `refuse_other_weights`, or transformers cannot make such a model.
    """
    refuse_other_weights(model, _report(model, revision, trust_remote_code))


def refuse_other_weights(model: str, report: Mapping[str, Any]) -> None:
    """Refuse a checkpoint that does not fit its model: what it lacks is made up by loaders, what is too much is left out.

    Args:
        model: its name.
        report: what transformers gives with `output_loading_info`.

    Raises:
        UsageError: it lacks weights, has some in another shape, or more of them, which means that config.json is another
            model's. Heads of other tasks and the parts that see or hear are only warned of.
    """
    surplus = _names(report["unexpected_keys"])
    spare = [name for name in surplus if _SPARE.search(name)]
    problems = {
        "lacks": _names(report["missing_keys"]),
        "has another shape for": _names(report["mismatched_keys"]),
        "holds what config.json does not ask for:": [name for name in surplus if name not in spare],
    }
    for problem, names in problems.items():
        if names:
            raise UsageError(
                f"{model}: the checkpoint {problem} {len(names)} weight{'s' * (len(names) > 1)}, the first is {names[0]}.",
                "Fetch or export the model again; config.json and *.safetensors must belong together.",
            )
    if spare:
        _LOG.warning("%s: %d weights that no prediction of text reads are left out (%s)", model, len(spare), spare[0])


def cannot_load(model: str, error: BaseException) -> UsageError:
    """The error that says why a model cannot be loaded, with the flag that would help."""
    reason = first_line(error)
    if "trust_remote_code" in str(error):
        return UsageError(
            f"{model}: comes with code of its own, which is not run unless you say so.",
            "Read that code, then add --trust-remote-code.",
        )
    if isinstance(error, ImportError) and error.name:
        return UsageError(
            f"{model}: needs the package {error.name}, which is not installed.", f"pip install {error.name}"
        )
    return UsageError(
        f"{model}: cannot be loaded as a causal language model ({reason}).",
        "Give a hub id or a folder with config.json and *.safetensors weights.",
    )


_CONVERT = "Convert them to safetensors: other weights are not loaded."


def _named(index: Path) -> set[str]:
    try:
        named = set(orjson.loads(index.read_bytes())["weight_map"].values())
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UsageError(f"{index}: cannot be read ({first_line(error)}).", "Fetch the model again.") from error
    odd = [name for name in named if not isinstance(name, str) or Path(name).name != name]
    if odd or not named:
        raise UsageError(
            f"{index}: names {odd[0]!r} as a file." if odd else f"{index}: names no file.", "Fetch the model again."
        )
    return named


def _instead(folder: Path) -> str:
    """What a folder without safetensors weights holds."""
    for suffix, kind in ((".gguf", "GGUF"), (".bin", "pickled"), (".pt", "pickled"), (".pth", "pickled")):
        if found := sorted(folder.glob(f"*{suffix}")):
            return f", but {kind} ones ({found[0].name})"
    return ""


def _only_adapter(folder: Path) -> list[Path]:
    raise UsageError(
        f"{folder}: holds only the weights of an adapter.",
        f"Give its base model, and the adapter with --adapter {folder}.",
    )


def auto_class(config: Any) -> Any:
    """What of transformers makes a model that writes text of a configuration: of some that see there is no text half alone."""
    import transformers

    if type(config) in transformers.MODEL_FOR_CAUSAL_LM_MAPPING:
        return transformers.AutoModelForCausalLM
    seeing = type(config) in transformers.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING
    return transformers.AutoModelForImageTextToText if seeing else transformers.AutoModelForCausalLM


def _report(model: str, revision: str | None, trust_remote_code: bool) -> dict[str, Any]:
    """What transformers says of the names and shapes of a checkpoint's weights; no weight is read."""
    import torch
    import transformers

    try:
        with quiet_loading():
            config = transformers.AutoConfig.from_pretrained(
                model, revision=revision, trust_remote_code=trust_remote_code
            )
            _, report = auto_class(config).from_pretrained(
                model,
                revision=revision,
                dtype=torch.float32,
                device_map="meta",
                use_safetensors=True,
                trust_remote_code=trust_remote_code,
                ignore_mismatched_sizes=True,  # so that they are named: what was made up in their place is refused
                output_loading_info=True,
            )
    except Exception as error:  # transformers raises many kinds for the same thing: this model cannot be loaded
        raise cannot_load(model, error) from error
    return dict(report)


def _names(keys: Any) -> list[str]:
    return sorted(str(key[0] if isinstance(key, tuple | list) else key) for key in keys)


@contextlib.contextmanager
def quiet_loading() -> Iterator[None]:
    """Keep the progress bars of transformers away from our one progress line, and its load report: we look ourselves."""
    from transformers.utils import logging as their_logging

    shown, level = their_logging.is_progress_bar_enabled(), their_logging.get_verbosity()
    their_logging.disable_progress_bar()
    their_logging.set_verbosity_error()
    try:
        yield
    finally:
        their_logging.set_verbosity(level)
        if shown:
            their_logging.enable_progress_bar()
