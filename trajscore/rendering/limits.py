"""Bounds on what one rendering of a chat template may do: rounds of its loops, and size of the texts it makes.

A template comes from a stranger and runs in this process. What it does is counted by code that is compiled into it, not by a
clock, so that a row's status does not depend on how fast the machine is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sized
from typing import Any

STEPS = 500_000
"""Rounds of loops and calls of macros in one rendering: a few seconds, and far more than a conversation needs."""

CHARACTERS = 2**26
"""Longest text, and longest list, that a template may make."""

TOTAL_CHARACTERS = 2**32
"""All texts together that it makes on the way: some seconds of copying."""


class TemplateLimitError(Exception):
    """A template went beyond the bounds."""


class Limits:
    """Counts what a compiled template does, from `start` on.

    Args:
        compiled: a template whose sandboxed environment is nobody else's; what it does is replaced by what the source says.
        source: the template's source.

    Raises:
        jinja2.TemplateSyntaxError: the source is not valid Jinja.
    """

    def __init__(self, compiled: Any, source: str) -> None:
        from jinja2 import nodes

        self.start()
        environment = compiled.environment
        environment.trajscore_step = self._step
        environment.globals.pop("lipsum", None)
        environment.intercepted_binops = frozenset({"+", "*", "**"})
        environment.call_binop = self._operator(environment.call_binop)
        environment.concat = self._bounded("".join)
        tree = environment.parse(source)
        for node in list(tree.find_all((nodes.For, nodes.Macro))):
            step = nodes.Call(nodes.EnvironmentAttribute("trajscore_step"), [], [], None, None)
            node.body.insert(0, nodes.ExprStmt(step).set_lineno(node.lineno))
        again = environment.template_class.from_code(environment, environment.compile(tree), compiled.globals)
        compiled.root_render_func, compiled.blocks = again.root_render_func, again.blocks
        # What `~`, macros and blocks of the template call to put texts together.
        names = again.root_render_func.__globals__
        names |= {"str_join": self._bounded(names["str_join"]), "concat": environment.concat}

    def start(self) -> None:
        """Begin to count anew: another rendering."""
        self._steps = self._characters = 0

    def _step(self) -> None:
        self._steps += 1
        if self._steps > STEPS:
            raise TemplateLimitError(f"its loops go round more than {STEPS:,} times.")

    def _make(self, length: int) -> None:
        """A text or list of some length is going to be made."""
        self._characters += length
        if length > CHARACTERS or self._characters > TOTAL_CHARACTERS:
            raise TemplateLimitError(f"it makes a text of more than {CHARACTERS:,} characters, or too many long ones.")

    def _bounded(self, join: Callable[[Iterable[Any]], str]) -> Callable[[Iterable[Any]], str]:
        def bounded(pieces: Iterable[Any]) -> str:
            held, length = [], 0
            for piece in pieces:
                held.append(piece)
                length += len(piece) if isinstance(piece, str) else 1
                if length > CHARACTERS:
                    break
            self._make(length)
            return join(held)

        return bounded

    def _operator(self, compute: Callable[..., Any]) -> Callable[..., Any]:
        def bounded(context: Any, operator: str, left: Any, right: Any) -> Any:
            sizes = [len(each) if isinstance(each, Sized) else None for each in (left, right)]
            if operator == "+" and None not in sizes:
                self._make(sum(size or 0 for size in sizes))
            if operator == "*" and sizes != [None, None]:
                counts = [
                    each if isinstance(each, int) else size or 0
                    for each, size in zip((left, right), sizes, strict=True)
                ]
                self._make(max(0, counts[0] * counts[1]))
            if operator != "+" and isinstance(left, int) and isinstance(right, int):
                bits = left.bit_length() * right if operator == "**" else left.bit_length() + right.bit_length()
                # Multiplying numbers takes longer than copying texts.
                self._make(max(0, bits) << 10)
            return compute(context, operator, left, right)

        return bounded
