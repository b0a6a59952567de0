"""What `mask` and `list rules` print."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from rich.console import RenderableType
from rich.padding import Padding
from rich.text import Text

from trajscore.display.formatting import number, share
from trajscore.display.terminal import plain_lines
from trajscore.masking.rules import RULES, Rule

_KINDS = {
    "share": "hard, the top --keep of each trajectory",
    "draw": "hard, --keep of each trajectory drawn",
    "tokens": "hard",
    "weights": "soft",
}


def rule_kind(rule: Rule) -> str:
    """How a rule decides, in a few words."""
    return _KINDS[rule.kind]


def reads(rule: Rule) -> tuple[str, ...]:
    """The columns that a rule reads with its default options."""
    return (*rule.columns, *(str(each.default) for each in rule.parameters if each.name == "by"))


def rule_list() -> Iterator[RenderableType]:
    """The rules as paragraphs: a line of facts each, then its meaning, options, what it reads and its source."""
    for rule in RULES.values():
        yield Text(f"{rule.name}  ({rule_kind(rule)})", style="bold")
        lines = [rule.meaning, f"reads {', '.join(reads(rule)) or 'positions'}"]
        lines += [each.sentence for each in rule.parameters] + ([f"caution: {rule.caution}"] if rule.caution else [])
        for line in (*lines, f"source: {rule.source}"):
            yield Padding(Text(line), (0, 0, 0, 4))


def masking_lines(summary: Mapping[str, Any]) -> Iterable[RenderableType]:
    """A masking's counts: rows in = masked + the others by reason, then tokens.

    Args:
        summary: what `Masking.to_dict` gives.
    """
    reasons = "".join(f"\n  {reason}: {rows}" for reason, rows in summary["dropped"].items())
    yield plain_lines(
        f"{summary['rows_in']} rows in = {summary['rows_masked']} masked + {summary['rows_dropped']} dropped{reasons}"
    )
    tokens, kept = summary["tokens"], summary["tokens_kept"]
    of_all = share(kept / tokens if tokens else None)
    yield Text(f"{kept:,} of {tokens:,} scored tokens of the masked rows have a label ({of_all})")
    if summary["weight_sum"] is not None:
        yield Text(f"mean loss weight of these: {number(summary['weight_sum'] / kept if kept else None)}")
    for column, ends in summary["ranges"].items():
        yield plain_lines(f"{column} from 0 to 1: {number(ends['low'])} to {number(ends['high'])}, over the corpus")
    for which, stage in enumerate(summary["stages"] or (), 1):
        where = f", {stage['out']}" if stage["out"] else ""
        yield plain_lines(
            f"stage {which} ({stage['value']:g}): {stage['rows']:,} rows, {stage['tokens_kept']:,} tokens with a label{where}"
        )
    for line in summary["unfinished"]:
        yield plain_lines(f"note: {line}")
