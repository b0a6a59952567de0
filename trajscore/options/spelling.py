"""How settings are spelt and named, whatever the command: a flag of a keyword, a preset of settings under a paper's name."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


def flag(name: str) -> str:
    """How a setting is spelt on the command line.

    >>> flag("max_tokens")
    '--max-tokens'
    """
    return f"--{name.replace('_', '-')}"


def as_flags(settings: Mapping[str, Any]) -> str:
    """Settings as they are typed on the command line.

    >>> as_flags({"metric": ("rsr",), "per_prompt": 1, "where": "rsr < 3"})
    "--metric rsr --per-prompt 1 --where 'rsr < 3'"
    """
    pairs = [
        (flag(name), each)
        for name, value in settings.items()
        for each in (value if isinstance(value, list | tuple) else [value])
    ]
    return " ".join(f"{option} {shlex.quote(str(each))}" for option, each in pairs)


@dataclass(frozen=True)
class Preset:
    """A published selection or mask.

    Attributes:
        name: what users type.
        settings: arguments of `select`, or of `mask`, that it stands for.
        source: arXiv id and place.
        meaning: one sentence, with what the source leaves open.
    """

    name: str
    source: str
    meaning: str
    settings: Mapping[str, Any] = field(default_factory=dict)
