"""How the help of a command looks: options in panels, each with its value and a sentence, whole at any width."""

from __future__ import annotations

import inspect
import textwrap
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from typer.core import TyperArgument, TyperCommand, TyperGroup

from trajscore.display.writer import OUT

if TYPE_CHECKING:
    from rich.console import Console

_LEFT = 28
"""Columns for an option and its value; the sentence of a longer one begins below it."""

_LAST = "Other"


class Command(TyperCommand):
    """A command whose help is ours."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        print_help(self, ctx)


class Group(TyperGroup):
    """Commands whose help is ours."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        print_help(self, ctx)


def print_help(command: Any, ctx: Any) -> None:
    """Print the help of a command or of a group of them."""
    console = OUT.console()
    console.print(f"\n {ctx.get_usage()}\n", soft_wrap=True)
    for paragraph in inspect.cleandoc(command.help or "").split("\n\n"):
        for line in textwrap.wrap(paragraph, console.width - 2):
            console.print(f" {line}", soft_wrap=True)
        console.print()
    panels: dict[str, list[tuple[str, str]]] = {}
    for param in command.get_params(ctx):
        if not getattr(param, "hidden", False):
            panels.setdefault(_panel_of(param), []).append((_spelling(param), _sentence(param)))
    panels |= {_LAST: panels.pop(_LAST)} if _LAST in panels else {}
    for title, lines in panels.items():
        _print_panel(console, title, lines)
    if isinstance(command, TyperGroup):
        found = [command.get_command(ctx, name) for name in command.list_commands(ctx)]
        shown = [(str(each.name), _first_sentence(each)) for each in found if each is not None and not each.hidden]
        _print_panel(console, "Commands", shown, max(len(name) for name, _ in shown) + 2)


def _panel_of(param: Any) -> str:
    if isinstance(param, TyperArgument):
        return "Arguments"
    return getattr(param, "rich_help_panel", None) or _LAST


def _spelling(param: Any) -> str:
    if isinstance(param, TyperArgument):
        return str(param.metavar or param.name)
    names = [*param.opts, *(f"/ {name}" for name in param.secondary_opts)]
    return " ".join([", ".join(param.opts), *names[len(param.opts) :], *([param.metavar] if param.metavar else [])])


def _sentence(param: Any) -> str:
    return f"{param.help or ''}{' Required.' if param.required else ''}"


def _first_sentence(command: Any) -> str:
    return " ".join(inspect.cleandoc(command.help or "").split("\n\n", maxsplit=1)[0].split())


def _print_panel(console: Console, title: str, lines: Iterable[tuple[str, str]], left: int = _LEFT) -> None:
    from rich.panel import Panel
    from rich.text import Text

    body = Text()
    for name, sentence in lines:
        first, *rest = _laid_out(name, sentence, left, console.width - 4)
        body.append(first[: len(name)], style="bold cyan").append(first[len(name) :] + "\n")
        for line in rest:
            body.append(f"{line}\n")
    body.rstrip()
    console.print(Panel(body, title=title, title_align="left", border_style="dim"))


def _laid_out(name: str, sentence: str, left: int, width: int) -> Sequence[str]:
    """The lines of one option.

    >>> _laid_out("--top K", "Best rows kept over all prompts.", 10, 30)
    ['--top K   Best rows kept over', '          all prompts.']
    """
    beside = len(name) < left
    indent = " " * left
    lines = textwrap.wrap(
        sentence,
        max(width, left + 20),
        initial_indent=name.ljust(left) if beside else indent,
        subsequent_indent=indent,
        break_long_words=False,
        break_on_hyphens=False,
    )
    return (lines or [name]) if beside else [name, *lines]
