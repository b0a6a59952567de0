"""Thoughts and parts of messages in other places: folded into the content, under another key, or parts joined to one text.

Templates read thoughts under one name at most, and not all take parts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from trajscore.rendering.anchors import REASONING_KEYS, untagged

THINK = "think"
"""The value of `--reasoning-as` that folds thoughts into the content."""


def reasoning_as(messages: Sequence[Mapping[str, Any]], how: str) -> list[dict[str, Any]]:
    """The conversation with each reply's thoughts where they are wanted.

    Args:
        messages: the conversation; thoughts are under one of `REASONING_KEYS` or in parts of type `thinking`.
        how: `think` for `<think>` tags at the head of the content, else the key that holds them.

    >>> reasoning_as([{"role": "assistant", "content": "4", "reasoning_content": "2 + 2"}], "think")
    [{'role': 'assistant', 'content': '<think>\\n2 + 2\\n</think>\\n\\n4'}]
    >>> reasoning_as([{"role": "assistant", "content": "4", "reasoning_content": "2 + 2"}], "thinking")
    [{'role': 'assistant', 'content': '4', 'thinking': '2 + 2'}]
    """
    return [_moved(message, how) if message.get("role") == "assistant" else dict(message) for message in messages]


def _moved(message: Mapping[str, Any], how: str) -> dict[str, Any]:
    content = message.get("content")
    parts = content if isinstance(content, list | tuple) else []
    given = [message[key] for key in REASONING_KEYS if isinstance(message.get(key), str)]
    given += [part["thinking"] for part in parts if _is_part(part, "thinking")]
    thoughts = "\n\n".join(dict.fromkeys(each for each in given if each.strip()))
    moved = {key: value for key, value in message.items() if key not in REASONING_KEYS}
    if parts:
        moved["content"] = content = [part for part in parts if not _is_part(part, "thinking")]
    if not thoughts:
        return moved
    if how != THINK:
        return {**moved, how: thoughts}
    folded = f"<think>\n{thoughts}\n</think>\n\n"
    if isinstance(content, list):
        return {**moved, "content": [{"type": "text", "text": folded}, *content]}
    content = content or ""
    # Some data hold the thoughts in both places.
    there = "</think>" in content and thoughts.strip() in [each.strip() for each in untagged(content)]
    return {**moved, "content": content if there else folded + content}


def has_thoughts(message: Mapping[str, Any]) -> bool:
    """Whether a message holds thoughts apart from its content."""
    content = message.get("content")
    parts = content if isinstance(content, list | tuple) else []
    return any(isinstance(message.get(key), str) and message[key].strip() for key in REASONING_KEYS) or any(
        _is_part(part, "thinking") for part in parts
    )


def joined_parts(messages: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]] | None:
    """The conversation with lists of parts as texts, thoughts among them as `reasoning_content`.

    Returns:
        None where no content is a list, or a part is neither text nor thoughts.

    >>> joined_parts([{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}])
    [{'role': 'user', 'content': 'ab'}]
    """
    lists = [message["content"] for message in messages if isinstance(message.get("content"), list | tuple)]
    if not lists or not all(_is_part(p, "text") or _is_part(p, "thinking") for parts in lists for p in parts):
        return None
    return [_joined(message) for message in messages]


def _joined(message: Mapping[str, Any]) -> dict[str, Any]:
    parts = message.get("content")
    if not isinstance(parts, list | tuple):
        return dict(message)
    thoughts = "\n\n".join(part["thinking"] for part in parts if _is_part(part, "thinking"))
    joined = {**message, "content": "".join(part["text"] for part in parts if _is_part(part, "text"))}
    return {**joined, "reasoning_content": thoughts} if thoughts else joined


def _is_part(part: Any, kind: str) -> bool:
    return isinstance(part, Mapping) and isinstance(part.get(kind), str) and part.get("type", kind) == kind
