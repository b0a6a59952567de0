"""A model's name -> its tokenizer and chat template, or a message that says why not."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from trajscore.errors import MissingExtraError, UsageError, first_line


def load_tokenizer(model: str, *, revision: str | None = None, trust_remote_code: bool = False) -> Any:
    """The fast tokenizer of a model.

    Raises:
        UsageError: the folder or hub id does not exist, or the tokenizer keeps no character offsets.
        MissingExtraError: transformers is not installed.
    """
    try:
        from transformers import AutoTokenizer
    except ImportError as error:
        raise MissingExtraError("transformers", "hf") from error
    require_model(model)
    try:
        tokenizer = AutoTokenizer.from_pretrained(model, revision=revision, trust_remote_code=trust_remote_code)
    except Exception as error:  # transformers raises many kinds for the same thing: no such tokenizer
        raise UsageError(
            f"{model}: its tokenizer cannot be loaded ({first_line(error)}).",
            "Give a hub id or a folder that AutoTokenizer can load.",
        ) from error
    if not tokenizer.is_fast:
        raise UsageError(
            f"{model}: its tokenizer keeps no character offsets, which scoring needs (not a fast tokenizer).",
            "Give a model that comes with a tokenizer.json.",
        )
    if len(tokenizer.get_vocab()) <= len(tokenizer.all_special_tokens):
        # transformers makes an empty tokenizer of a folder that has none.
        raise UsageError(
            f"{model}: its tokenizer has no vocabulary.", "Save the tokenizer beside the model (tokenizer.json)."
        )
    _keep_white_space_in_offsets(tokenizer.backend_tokenizer)
    return tokenizer


def tokenizers_alone() -> None:
    """Let transformers be imported without PyTorch, which it loads for its models: seconds and 340 MB that no tokenizer needs.

    It has no models then for the rest of the process, which has to be a command's that runs none.
    """
    if "transformers" in sys.modules or "torch" in sys.modules:
        return
    # While a module is None it is not there, and transformers looks once.
    sys.modules["torch"] = None  # type: ignore[assignment]
    try:
        from transformers.utils import is_torch_available

        is_torch_available()
    except ImportError as error:
        raise MissingExtraError("transformers", "hf") from error
    finally:
        del sys.modules["torch"]


def _keep_white_space_in_offsets(backend: Any) -> None:
    """Let offsets cover a token's white space: without it, a token's start is not where its text starts."""
    state = json.loads(backend.to_str())
    trimming = [node for node in _mappings(state.get("post_processor")) if node.get("trim_offsets")]
    if trimming:
        for node in trimming:
            node["trim_offsets"] = False
        backend.post_processor = type(backend).from_str(json.dumps(state)).post_processor


def _mappings(value: Any) -> Iterator[dict[str, Any]]:
    if isinstance(value, dict):
        yield value
        for item in value.values():
            yield from _mappings(item)
    elif isinstance(value, list):
        for item in value:
            yield from _mappings(item)


def own_template(model: str, tokenizer: Any) -> str | None:
    """A tokenizer's chat template, the default one of several; None when it has none."""
    try:
        return tokenizer.get_chat_template() if tokenizer.chat_template else None
    except ValueError as error:
        raise UsageError(
            f"{model}: none of its chat templates is the default ({first_line(error)}).",
            "Choose one: --chat-template FILE.jinja.",
        ) from error


def is_file(name: str) -> bool:
    """Whether a name is that of a file; a text far too long for one is not."""
    try:
        return Path(name).is_file()
    except OSError:  # a name too long for a file
        return False


def require_model(model: str) -> None:
    """Refuse a model name that can be neither a folder nor a hub id, before anything is loaded.

    Raises:
        UsageError: it looks like a path and there is no such folder, or the folder holds no model.
    """
    path = Path(model)
    if not model:
        raise UsageError("the model's name is empty.", "Give a hub id (organisation/name) or a folder.")
    if len(model) > 1024:
        raise UsageError(f"{model[:80]!r}...: neither a folder nor a hub id.", "A chat template is given as a file.")
    if path.is_dir():
        if (path / "adapter_config.json").is_file() and not (path / "config.json").is_file():
            raise UsageError(
                f"{model}: an adapter, not a whole model.",
                f"Give its base model, and the adapter with --adapter {model}.",
            )
        if not (path / "config.json").is_file():
            raise UsageError(
                f"{model}: a folder without config.json, so no model.", "Give the folder that holds the model's files."
            )
    elif path.exists():
        raise UsageError(f"{model}: a file, not a model.", "Give a hub id or the folder that holds the model's files.")
    elif model.count("/") > 1 or model.startswith((".", "/", "~")):
        raise UsageError(f"{model}: no such folder.", "Give a hub id (organisation/name) or an existing folder.")


def same_tokenizer(one: Any, other: Any) -> bool:
    """Whether two fast tokenizers make the same tokens of any text, judged by what they do and not by their names.

    Vocabulary, merges, normaliser, pre-tokenizer and added tokens have to be the same; padding of a model's vocabulary, the
    chat template, and what is put around a text do not matter.
    """
    states = [json.loads(tokenizer.backend_tokenizer.to_str()) for tokenizer in (one, other)]
    for key in ("model", "normalizer", "pre_tokenizer"):
        if states[0].get(key) != states[1].get(key):
            return False
    added = [{tuple(sorted(token.items())) for token in state.get("added_tokens") or []} for state in states]
    return added[0] == added[1]
