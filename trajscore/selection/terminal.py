"""What `select`, `--explain` and `list presets` print."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich.console import RenderableType
from rich.padding import Padding
from rich.text import Text

from trajscore.display.formatting import number, share
from trajscore.display.terminal import new_table, plain, plain_lines

_SHOWN_CANDIDATES = 20
_COUNTS = frozenset({"prompt_rank", "overall_rank", "n_tokens", "draws"})
_FACTS = ("id", "teacher", "kept", "step")
_ENDS = {"last_kept": "The last kept row overall", "first_dropped": "The best row that the budget or a quota dropped"}


def selection_tables(summary: Mapping[str, Any]) -> Iterator[RenderableType]:
    """A selection's counts: in = kept + dropped by step, kept rows per teacher, metrics before and after.

    Args:
        summary: what `Selection.to_dict` gives.
    """
    dropped: Mapping[str, int] = summary["dropped"]
    steps = "".join(f"\n  {step}: {rows}" for step, rows in dropped.items())
    yield plain_lines(
        f"{summary['rows_in']} rows in = {summary['rows_kept']} kept + {summary['rows_dropped']} dropped{steps}"
    )
    yield ""
    values = new_table("Dataset values", "metric", "before", "after")
    for name, each in summary["metrics"].items():
        values.add_row(plain(name), number(each["before"]), number(each["after"]))
    yield values
    yield ""
    teachers = new_table("Kept rows by teacher", "teacher", "rows", "share")
    for teacher, rows in summary["kept_per_teacher"].items():
        teachers.add_row(plain(teacher), str(rows), share(rows / summary["rows_kept"]))
    yield teachers


def explanation_tables(told: Mapping[str, Any]) -> Iterator[RenderableType]:
    """Why a row was kept or dropped: a sentence, then the candidates of its prompt, then where the budget cut.

    Args:
        told: what `Selection.explain` gives.
    """
    yield ""
    outcome = "kept" if told["kept"] else f"dropped ({told['step']})"
    yield plain(f"{told['id']} was {outcome}: {told['reason']}.")
    yield ""
    candidates: Sequence[Mapping[str, Any]] = told["candidates"]
    shown = [line for place, line in enumerate(candidates) if place < _SHOWN_CANDIDATES or line["id"] == told["id"]]
    yield Text(f"Candidates of its prompt: {len(candidates)}", style="bold")
    for line in shown:
        yield from _candidate(line, told["id"])
    if len(shown) < len(candidates):
        yield f"... and {len(candidates) - len(shown)} more; --json has all"
    for end, line in told["cut"].items():
        yield ""
        yield Text(_ENDS[end], style="bold")
        yield from _candidate(line, told["id"])


def _candidate(line: Mapping[str, Any], explained: str) -> Iterator[RenderableType]:
    """A row's id, teacher and step, and its numbers beneath: ids are too long for a column."""
    mark = ">" if line["id"] == explained else " "
    yield plain(f"{mark} {line['id']}  ({line['teacher'] or '(unknown)'}): {line['step']}")
    numbers = [f"{name} {_value(name, value)}" for name, value in line.items() if name not in _FACTS]
    yield Padding(plain(", ".join(numbers)), (0, 0, 0, 6))


def _value(name: str, value: float | None) -> str:
    return f"{value:.0f}" if name in _COUNTS and value is not None else number(value)


def preset_list(presets: Sequence[Mapping[str, Any]]) -> Iterator[RenderableType]:
    """The presets as paragraphs: name, the flags it stands for, its meaning and its source.

    Args:
        presets: `name`, `command`, `flags`, `meaning` and `source` of each.
    """
    for preset in presets:
        yield Text(f"{preset['name']}  ({preset['command']})", style="bold")
        for line in (preset["flags"], preset["meaning"], f"source: {preset['source']}"):
            yield Padding(Text(line), (0, 0, 0, 4))
