"""What `select`, `--explain` and `list presets` print."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich.console import RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from trajscore.display.formatting import NONE, number, share
from trajscore.display.terminal import new_table, plain, plain_lines
from trajscore.selection.summary import in_words

_SHOWN_CANDIDATES = 20
_SHOWN_TEACHERS = 20
_COUNTS = frozenset({"prompt_rank", "overall_rank", "n_tokens", "draws"})
_FACTS = ("id", "teacher", "kept", "step")
_ENDS = {"last_kept": "The last kept row overall", "first_dropped": "The best row that the budget or a quota dropped"}


def selection_tables(summary: Mapping[str, Any]) -> Iterator[RenderableType]:
    """A selection: in = kept + dropped with reasons, what it did to the corpus, and every teacher's share.

    Args:
        summary: what `Selection.to_dict` gives.
    """
    steps = "".join(f"\n  {rows:,}: {in_words(step)}" for step, rows in summary["dropped"].items())
    yield plain_lines(
        f"{summary['rows_in']} rows in = {summary['rows_kept']} kept + {summary['rows_dropped']} dropped{steps}"
    )
    yield ""
    facts = summary["summary"]
    before, after = facts["before"], facts["after"]
    values = new_table("", "", "scored", "kept")
    for name in ("rows", "tokens", "prompts"):
        values.add_row(name, *(_count(each[name]) for each in (before, after)))
    values.add_row("correct", share(before["correct"]), share(after["correct"]))
    values.add_row("look like loops", *(_count(each["loops"]) for each in (before, after)))
    for name, each in summary["metrics"].items():
        values.add_row(plain(name), number(each["before"]), number(each["after"]))
    yield values
    if facts["ranked_prompts"]:
        yield Text(f"{facts['one_candidate']:,} of {facts['ranked_prompts']:,} ranked prompts have one candidate only")
    yield ""
    yield _teachers(before["teachers"], after["teachers"])
    if summary["pairs"] is not None:
        counts = ", ".join(f"{count:,} prompts with {why}" for why, count in summary["pairs"].items() if why != "pairs")
        yield Text(f"{summary['pairs']['pairs']:,} pairs; {counts}")


def _teachers(before: Mapping[str, Any], after: Mapping[str, Any]) -> Table:
    table = new_table("Kept rows by teacher", "teacher", "kept", "share", "share before")
    nothing = {"rows": 0, "share": 0.0}
    order = sorted(before, key=lambda name: (-after.get(name, nothing)["rows"], name))
    for name in order[:_SHOWN_TEACHERS]:
        own = after.get(name, nothing)
        table.add_row(plain(name), f"{own['rows']:,}", share(own["share"]), share(before[name]["share"]))
    if len(order) > _SHOWN_TEACHERS:
        rest = order[_SHOWN_TEACHERS:]
        kept, shares = (sum(after.get(name, nothing)[what] for name in rest) for what in ("rows", "share"))
        table.add_row(f"{len(rest)} more", f"{kept:,}", share(shares), share(sum(before[n]["share"] for n in rest)))
    return table


def diff_tables(found: Mapping[str, Any]) -> Iterator[RenderableType]:
    """Two selections side by side.

    Args:
        found: what `SelectionDiff.to_dict` gives.
    """
    rows = found["rows"]
    yield plain_lines(f"A: {found['a']}\nB: {found['b']}")
    yield Text(
        f"{rows['both']:,} rows in both ({share(found['overlap'])} of all rows), {rows['only_a']:,} only in A, "
        f"{rows['only_b']:,} only in B"
    )
    yield ""
    table = new_table("", "", "A", "B")
    table.add_row("rows", _count(rows["a"]), _count(rows["b"]))
    table.add_row("tokens", *(_count(found["tokens"][side]) for side in "ab"))
    table.add_row("correct", *(share(found["correct"][side]) for side in "ab"))
    for name, means in found["metrics"].items():
        table.add_row(plain(name), *(number(means[side]) for side in "ab"))
    yield table
    if None in found["tokens"].values():
        yield Text("Tokens are known where the selection was made with --metric length, too.", style="dim")
    yield ""
    teachers = new_table("Share of the rows by teacher", "teacher", "A", "B", "difference")
    order = sorted(found["teachers"].items(), key=lambda each: each[1]["a"]["share"] - each[1]["b"]["share"])
    for name, sides in order:
        ours, theirs = (sides[side]["share"] for side in "ab")
        teachers.add_row(plain(name), share(ours), share(theirs), f"{100 * (theirs - ours):+.1f}%")
    yield teachers


def _count(value: int | None) -> str:
    return NONE if value is None else f"{value:,}"


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
        presets: `name`, `command`, `flags`, `needs`, `meaning` and `source` of each.
    """
    for preset in presets:
        yield Text(f"{preset['name']}  ({preset['command']})", style="bold")
        needs = [f"needs {', '.join(preset['needs'])}"] if preset["needs"] else []
        for line in (preset["flags"], preset["meaning"], *needs, f"source: {preset['source']}"):
            yield Padding(Text(line), (0, 0, 0, 4))
