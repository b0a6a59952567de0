"""`select --card`: a dataset card beside the file, as hubs show it: what was kept, how, and the numbers that speak for it.

Paths, hosts and keys stay out of it: a card is published.
"""

from __future__ import annotations

import glob
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from trajscore import __version__
from trajscore.display.formatting import number, share, visible
from trajscore.selection.options import CARD
from trajscore.selection.summary import in_words

__all__ = ["CARD", "card", "is_foreign", "published_name"]

_MARK = "- trajscore"

_PATHLIKE = re.compile(r"^(?:[~./]|[A-Za-z]:[\\/]|[a-z0-9]+://)|[\\]|/.*/")


def published_name(name: str | None) -> str:
    """A model's or file's name without folders and hosts; `OWNER/MODEL` of a hub stays.

    >>> published_name("Qwen/Qwen3-8B"), published_name("/home/me/models/student"), published_name(None)
    ('Qwen/Qwen3-8B', 'student', 'unknown')
    """
    if not name:
        return "unknown"
    return visible(re.split(r"[\\/]", name.rstrip("/\\"))[-1] if _PATHLIKE.search(name) else name)


def is_foreign(path: Path) -> bool:
    """Whether a file is there that is no card of ours."""
    return path.exists() and not (path.is_file() and _MARK in path.read_text("utf-8", "replace")[:400].splitlines())


def card(selection: Mapping[str, Any], student: str | None, file: str) -> str:
    """The card as Markdown with the front matter that hubs read.

    Args:
        selection: what `Selection.to_dict` gives.
        student: the student's name.
        file: name of the file beside it.
    """
    facts = selection["summary"]
    before, after = facts["before"], facts["after"]
    options = selection["options"]
    settings = [f"`{name}`: {_plain(value)}" for name, value in options.items() if value not in (None, (), [], "")]
    lines = [
        "---",
        "configs:",
        "- config_name: default",
        f"  data_files: {_yaml(glob.escape(file))}",
        "tags:",
        _MARK,
        "- reasoning",
        "---",
        "",
        f"# Selected for the student `{published_name(student)}`",
        "",
        f"{selection['rows_kept']:,} of {selection['rows_in']:,} trajectories, chosen by trajscore {__version__} under the "
        f"student `{published_name(student)}`.",
        "",
        "| | scored | kept |",
        "|---|---:|---:|",
        f"| rows | {before['rows']:,} | {after['rows']:,} |",
        f"| tokens | {_count(before['tokens'])} | {_count(after['tokens'])} |",
        f"| prompts | {before['prompts']:,} | {after['prompts']:,} |",
        f"| correct | {share(before['correct'])} | {share(after['correct'])} |",
        f"| look like loops | {_count(before['loops'])} | {_count(after['loops'])} |",
        *(
            f"| {name} | {number(each['before'])} | {number(each['after'])} |"
            for name, each in selection["metrics"].items()
        ),
        "",
        "Dropped:",
        "",
        *(f"- {rows:,}: {in_words(step)}" for step, rows in selection["dropped"].items()),
        "",
        "| teacher | rows | share |",
        "|---|---:|---:|",
        *(f"| {_cell(name)} | {each['rows']:,} | {share(each['share'])} |" for name, each in after["teachers"].items()),
        "",
        "Settings: " + "; ".join(settings) + ".",
        "",
        *(f"Note: {note}." for note in facts["notes"]),
        "",
        "A selection by a metric is no proof that training on it is better: compare it with a random one of the same size.",
        "",
    ]
    return "\n".join(lines)


def _count(value: int | None) -> str:
    return "-" if value is None else f"{value:,}"


def _yaml(text: str) -> str:
    r"""A text as YAML reads it back, whatever a file may be called.

    >>> print(_yaml("kept.parquet"), _yaml("a: b.jsonl"), _yaml("#1\u202e.jsonl"))
    kept.parquet "a: b.jsonl" "#1\U0000202e.jsonl"
    """
    if re.fullmatch(r"[A-Za-z0-9_][\w.-]*", text, re.ASCII):
        return text
    quoted = json.dumps(text, ensure_ascii=False)
    return "".join(letter if letter.isprintable() else f"\\U{ord(letter):08x}" for letter in quoted)


def _cell(name: str) -> str:
    return visible(name).replace("|", "\\|")


def _plain(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_plain(each)}" for key, each in value.items() if each is not None)
    if isinstance(value, list | tuple):
        return ", ".join(_plain(each) for each in value)
    return published_name(value) if isinstance(value, str) and _PATHLIKE.search(value) else visible(str(value))
