"""Errors that users meet: how each one's message is put together, and which exit code it means.

A message says where, what came, what was allowed and what to do. Anything that is not a `TrajscoreError` is a bug of ours.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable

from trajscore._project import install_command


class TrajscoreError(Exception):
    """Base of every error a user can cause or meet.

    Args:
        problem: what was wrong, with the file, row and value where they are known.
        hint: what to do about it, as a sentence; empty when the problem says it all.
    """

    exit_code = 1

    def __init__(self, problem: str, hint: str = "") -> None:
        self.problem = problem
        self.hint = hint
        super().__init__(f"{problem}\n{hint}" if hint else problem)


class UsageError(TrajscoreError):
    """The command line, a setting or a path is wrong: nothing was started, nothing was written."""

    exit_code = 2


class DataError(TrajscoreError):
    """A file cannot be read as what it claims to be (broken JSON, not UTF-8, a damaged part)."""


class EngineError(TrajscoreError):
    """A model could not be loaded or run."""


class MissingExtraError(UsageError):
    """An optional dependency is not installed."""

    def __init__(self, what: str, extra: str) -> None:
        super().__init__(f"{what} is not installed.", f"Install it with: {install_command(extra)}")


def first_line(error: BaseException) -> str:
    """What another library's error says, in one line; its kind where it says nothing.

    >>> first_line(ValueError("no such file\\n  at line 3")), first_line(KeyError())
    ('no such file', 'KeyError')
    """
    return next(iter(str(error).splitlines()), "") or type(error).__name__


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """The hint for an unknown name: the nearest known ones, or all of them.

    >>> did_you_mean("rrs", ["rsr", "surprisal"])
    'Did you mean rsr?'
    >>> did_you_mean("perplexity", ["rsr", "rank"])
    'Known: rank, rsr.'
    """
    names = sorted(known)
    near = difflib.get_close_matches(name, names, n=3, cutoff=0.6)
    return f"Did you mean {' or '.join(near)}?" if near else f"Known: {', '.join(names)}."


def nearest_values(value: str, known: Iterable[str]) -> str:
    """The hint for a text that no row holds: near ones, or a few examples. Quoted, because data may hold anything.

    >>> nearest_values("QwQ-32", ["QwQ-32B", "R1"])
    "Did you mean 'QwQ-32B'?"
    >>> nearest_values("x", ["QwQ-32B", "R1"])
    "There are, for example, 'QwQ-32B', 'R1'."
    """
    texts = list(known)
    near = difflib.get_close_matches(value, texts, n=3, cutoff=0.6)
    if near:
        return f"Did you mean {' or '.join(map(repr, near))}?"
    return f"There are, for example, {', '.join(map(repr, texts[:3]))}." if texts else "There are none."
