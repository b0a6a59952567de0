"""Which chat template a row gets: the tokenizer's own, one by name, a file, or TRL's for training.

Of several of its own, it is the one that transformers would choose.
"""

from __future__ import annotations

import functools
import importlib.util
from pathlib import Path
from typing import Any, NamedTuple

from trajscore.errors import MissingExtraError, UsageError
from trajscore.rendering.tokenizer import is_file, load_tokenizer

TRL = "trl"
"""The value of `--chat-template` that takes the template which the installed TRL swaps in for training."""

_DEFAULT, _TOOL_USE = "default", "tool_use"


class Sources(NamedTuple):
    """Jinja templates.

    Attributes:
        plain: for rows without tools; None where there is none.
        tools: for rows with tools; None where there is none.
    """

    plain: str | None
    tools: str | None


def template_sources(model: str, tokenizer: Any, given: str | None) -> Sources:
    """The templates that a model's rows are rendered with.

    Args:
        model: its name, for messages.
        tokenizer: its tokenizer.
        given: the value of `--chat-template`: None, `trl`, the name of one of the tokenizer's templates, a file, or a model.

    Raises:
        UsageError: there is no such template, or several without a default.
        MissingExtraError: TRL is asked for and not installed.
    """
    own = tokenizer.chat_template
    if given is None:
        return _own(model, own)
    if given == TRL:
        source = training_template(tokenizer)
        if source is None:
            raise UsageError(
                f"--chat-template trl: the installed TRL has no training template for that of {model}, and its own has no "
                "generation marks.",
                "Train and score with the model's own, or give a template with {% generation %} marks.",
            )
        return source
    if isinstance(own, dict) and given in own:
        return Sources(own[given], own[given])
    if is_file(given):
        try:
            source_text = Path(given).read_text("utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise UsageError(f"--chat-template {given}: cannot be read as text ({error}).") from error
        return Sources(source_text, source_text)
    try:
        found = _own(given, load_tokenizer(given).chat_template)
    except UsageError as error:
        names = f"; {model} has templates named {', '.join(own)}" if isinstance(own, dict) else ""
        raise UsageError(
            f"--chat-template {given}: neither a file nor a model whose template could be used{names}.", error.problem
        ) from error
    if found == Sources(None, None):
        raise UsageError(f"--chat-template {given}: that model has no chat template.", "Give a file or another.")
    return found


def training_template(tokenizer: Any) -> Sources | None:
    """The templates that the installed TRL trains on assistant's turns with: its own for known ones, else those with marks.

    Returns:
        None where TRL would refuse to train on the assistant's turns alone.

    Raises:
        MissingExtraError: TRL is not installed.
    """
    if importlib.util.find_spec("trl") is None:
        raise MissingExtraError("trl", "trl")
    from trl.chat_template_utils import get_training_chat_template, has_generation_markers

    own = tokenizer.chat_template
    if not own:
        return None
    if has_generation_markers(own):
        return _own("the model", own)
    try:
        source = get_training_chat_template(tokenizer)
    except (ValueError, KeyError):
        return None
    return _own("the model", own) if source is None else Sources(source, source)


@functools.cache
def has_trl() -> bool:
    """Whether TRL is installed."""
    return importlib.util.find_spec("trl") is not None


def _own(model: str, own: str | dict[str, str] | None) -> Sources:
    """The choice that transformers makes: `tool_use` where tools are given, else the default one."""
    if not isinstance(own, dict):
        return Sources(own or None, own or None)
    found = Sources(own.get(_DEFAULT), own.get(_TOOL_USE) or own.get(_DEFAULT))
    if own and found == Sources(None, None):
        raise UsageError(
            f"{model}: none of its chat templates is the default (there are {', '.join(sorted(own))}).",
            f"Choose one: --chat-template {min(own)}.",
        )
    return found
