"""Bounds on what one rendering of a chat template may do: rounds of its loops, and size of the texts it makes.

A template comes from a stranger and runs in this process. What it does is counted by code that is compiled into it, not by a
clock, so that a row's status does not depend on how fast the machine is.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sized
from typing import Any

STEPS = 500_000
"""Rounds of loops and calls of macros in one rendering: a few seconds, and far more than a conversation needs."""

CHARACTERS = 2**26
"""Longest text, and longest list, that a template may make."""

WRITTEN = 2**28
"""All that it writes, also into its own macros and blocks, which hold it until they end."""

TOTAL_CHARACTERS = 2**32
"""All texts together that it makes on the way: some seconds of copying."""


NODES = 500_000
"""Most lists, mappings and values in one value that is written: a list that holds itself twice, forty times over, has 2^40."""

_ELEMENT = 1024
"""Characters that could be copied while a filter looks at one element of a list."""

_PADS = frozenset({"center", "ljust", "rjust", "zfill", "to_bytes", "batch", "slice"})
_FORMATS = frozenset({"format", "format_map"})
_PER_CHARACTER = frozenset({"indent", "expandtabs", "wordwrap", "tojson", "translate"})
_WRITES_ALL = frozenset({"string", "pprint", "xmlattr", "urlencode"})
_LARGEST_PRECISION = 1000


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
        environment.intercepted_binops = frozenset({"+", "*", "**", "%"})
        environment.call_binop = self._operator(environment.call_binop)
        environment.call = self._method(environment.call)
        environment.filters = {name: self._filter(name, each) for name, each in environment.filters.items()}
        environment.finalize = self._written
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
        self._steps = self._characters = self._out = 0

    def _step(self) -> None:
        self._steps += 1
        if self._steps > STEPS:
            raise TemplateLimitError(f"its loops go round more than {STEPS:,} times.")

    def _make(self, length: int) -> None:
        """A text or list of some length is going to be made."""
        self._work(min(length, CHARACTERS))
        if length > CHARACTERS:
            raise TemplateLimitError(f"it makes a text of more than {CHARACTERS:,} characters.")

    def _bounded(self, join: Callable[[Iterable[Any]], str]) -> Callable[[Iterable[Any]], str]:
        def bounded(pieces: Iterable[Any]) -> str:
            held, length = [], 0
            for piece in pieces:
                held.append(piece)
                length += len(piece) if isinstance(piece, str) else self._size(piece)
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
            if operator == "%" and isinstance(left, str):
                self._make(self._of_call("format", [left, *(right if isinstance(right, tuple) else [right])]))
            if operator == "*" and sizes != [None, None]:
                counts = [
                    each if isinstance(each, int) else size or 0
                    for each, size in zip((left, right), sizes, strict=True)
                ]
                self._make(max(0, counts[0] * counts[1]))
            if operator in ("*", "**") and isinstance(left, int) and isinstance(right, int):
                bits = left.bit_length() * right if operator == "**" else left.bit_length() + right.bit_length()
                # Multiplying numbers takes longer than copying texts.
                self._make(max(0, bits) << 10)
            return compute(context, operator, left, right)

        return bounded

    def _method(self, call: Callable[..., Any]) -> Callable[..., Any]:
        """Calls in a template, of which methods of texts and numbers may make much of little."""

        def bounded(context: Any, function: Any, *arguments: Any, **named: Any) -> Any:
            # Jinja's sandbox puts a function of its own around `format`.
            owner = getattr(getattr(function, "__wrapped__", function), "__self__", None)
            if isinstance(owner, str | bytes | int):
                self._make(self._of_call(function.__name__, [owner, *arguments, *named.values()]))
            return call(context, function, *arguments, **named)

        return bounded

    def _filter(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        first = 1 if hasattr(function, "jinja_pass_arg") else 0

        @functools.wraps(function)
        def bounded(*arguments: Any, **named: Any) -> Any:
            passed, own = arguments[:first], list(arguments[first:])
            is_lazy = bool(own) and isinstance(own[0], Iterator)
            if is_lazy:
                own[0] = self._held(own[0])
            if own and isinstance(own[0], list | tuple | dict):
                self._work(len(own[0]) * _ELEMENT)
            self._make(self._of_call(name, [*own, *named.values()]))
            if is_lazy:
                # `tojson`, for one, takes lists alone.
                own[0] = (each for each in own[0])
            return function(*passed, *own, **named)

        return bounded

    def _held(self, values: Iterator[Any]) -> list[Any]:
        """What a filter makes lazily, as far as it may be held."""
        held, length = [], 0
        for each in values:
            held.append(each)
            length += len(each) if isinstance(each, str) else 1
            if length > CHARACTERS:
                break
        self._make(length)
        return held

    def _of_call(self, name: str, arguments: list[Any]) -> int:
        """A bound on the length of what a method or filter makes of its arguments, the first of which it belongs to."""
        whole, others = (arguments[0], arguments[1:]) if arguments else ("", [])
        largest = max([1, *(abs(each) for each in others if isinstance(each, int))])
        if name in _PADS:
            return largest
        if name == "round":
            return largest << 20 if largest > _LARGEST_PRECISION else 0
        if name in _FORMATS:
            text = str(whole)
            widths = [int(digits[:20]) for digits in re.findall(r"\d+", text)]
            most = max([largest, *widths, *(self._size(each) for each in others)])
            return len(text) + (text.count("{") + text.count("%")) * most
        if name == "replace" and len(others) > 1:
            old, new = (len(str(each)) for each in others[:2])
            return self._size(whole) + (self._size(whole) + 1) // max(old, 1) * new if new > old else 0
        if name == "join" and others:
            pieces, between = (
                (others[0], whole) if isinstance(whole, str) and not isinstance(others[0], str) else arguments[:2]
            )
            return self._size(pieces) + len(pieces) * len(str(between)) if isinstance(pieces, Sized) else 0
        if name == "sum":
            return self._size(whole) * len(whole) if any(isinstance(each, list | tuple) for each in others) else 0
        if name in _PER_CHARACTER:
            tables = [len(str(text)) for each in others if isinstance(each, Mapping) for text in each.values()]
            given = [self._size(each) for each in others if isinstance(each, str | tuple | list)]
            return (self._size(whole) + 1) * max([largest, *given, *tables])
        return self._size(whole) if name in (*_WRITES_ALL, "join") else 0

    def _written(self, value: Any) -> Any:
        """What a template writes: where it is no text, its text is made of all that it holds."""
        if isinstance(value, list | tuple | Mapping | set | frozenset):
            self._make(self._size(value))
        elif isinstance(value, str):
            self._out += len(value)
            if self._out > WRITTEN:
                raise TemplateLimitError(f"it writes more than {WRITTEN:,} characters.")
        return value

    def _size(self, value: Any) -> int:
        """Characters of the texts that a value holds, and one for every other thing, however often it holds the same."""
        total, nodes, left = 0, 0, [value]
        while left:
            each = left.pop()
            nodes += 1
            if nodes > NODES:
                raise TemplateLimitError(f"it writes a value of more than {NODES:,} parts.")
            if isinstance(each, str | bytes):
                total += len(each)
                continue
            total += 1
            if isinstance(each, Mapping):
                left.extend(each.keys())
                left.extend(each.values())
            elif isinstance(each, list | tuple | set | frozenset):
                left.extend(each)
        return total

    def _work(self, characters: int) -> None:
        """What takes as long as to copy so many characters."""
        self._characters += characters
        if self._characters > TOTAL_CHARACTERS:
            raise TemplateLimitError("it does too much with long lists and texts.")
