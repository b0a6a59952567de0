"""Bounds on what one rendering of a chat template may do: rounds of its loops, and size of the texts that it makes or searches.

They grow with the conversation, so that a short one cannot cost what only a long one needs. A template comes from a stranger
and runs in this process. What it does is counted by code that is compiled into it, not by a clock, so that a row's status does
not depend on how fast the machine is.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sized
from typing import Any

import jinja2.visitor
from jinja2 import nodes

STEPS, FREE_STEPS, STEPS_PER_CHARACTER = 500_000, 50_000, 20
"""Rounds of loops and calls of macros in one rendering, at most and by the size of the conversation: a second or two."""

CHARACTERS, FREE_CHARACTERS, LONGER = 2**26, 2**22, 64
"""Longest text, at most, and how much longer than the conversation a template may make one."""

WORK, FREE_WORK, WORK_PER_CHARACTER = 2**31, 2**27, 2**10
"""All that is copied, compared and written, in characters; what is held at a time is not more."""


NODES = 500_000
"""Most lists, mappings and values in one value that is written: a list that holds itself twice, forty times over, has 2^40."""

_ELEMENT, _PLACE = 1024, 16
"""Characters that could be copied while a filter looks at one element of a list, and while a list gets one place more."""

_QUICK = frozenset({
    "trim", "upper", "lower", "capitalize", "length", "count", "replace", "string", "safe", "default", "d", "first", "last",
    "escape", "e", "forceescape", "truncate", "center", "reverse", "int", "float",
})  # fmt: skip
"""Filters that take as long over a text as copying it."""

_SLOW, _SPLITS = 64, 16
"""How many times as long others take, and methods and filters that make many texts of one."""

_EQUALITIES = frozenset({"eq", "ne", "lt", "lteq", "gt", "gteq"})

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
        self.start(0)
        environment = compiled.environment
        environment.trajscore_step, environment.trajscore_made = self._step, self._copied
        environment.trajscore_compared = self._compared
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
        tree = _Watched().visit(tree)
        again = environment.template_class.from_code(environment, environment.compile(tree), compiled.globals)
        compiled.root_render_func, compiled.blocks = again.root_render_func, again.blocks
        # What `~`, macros and blocks of the template call to put texts together.
        names = again.root_render_func.__globals__
        names |= {"str_join": self._bounded(names["str_join"]), "concat": environment.concat}

    def start(self, size: int) -> None:
        """Begin to count anew: another rendering, of a conversation of so many characters."""
        self._steps = self._work_done = 0
        self._most_steps = min(STEPS, FREE_STEPS + STEPS_PER_CHARACTER * size)
        self._longest = min(CHARACTERS, FREE_CHARACTERS + LONGER * size)
        self._most_work = min(WORK, FREE_WORK + WORK_PER_CHARACTER * size)

    def _step(self) -> None:
        self._steps += 1
        if self._steps > self._most_steps:
            raise TemplateLimitError(f"its loops go round more than {self._most_steps:,} times.")

    def _make(self, length: int) -> None:
        """A text or list of some length is going to be made."""
        self._work(min(length, self._longest))
        if length > self._longest:
            raise TemplateLimitError(f"it makes a text of more than {self._longest:,} characters.")

    def _copied(self, value: Any) -> Any:
        """A part of a text or list, which is a copy."""
        if isinstance(value, str | list | tuple):
            self._work(len(value) * (1 if isinstance(value, str) else _PLACE))
        return value

    def _compared(self, value: Any) -> Any:
        """What is going to be compared with something as long, or searched."""
        if isinstance(value, str):
            self._work(len(value))
        elif isinstance(value, list | tuple | Mapping | set | frozenset):
            self._work(self._size(value) * _PLACE)
        return value

    def _bounded(self, join: Callable[[Iterable[Any]], str]) -> Callable[[Iterable[Any]], str]:
        def bounded(pieces: Iterable[Any]) -> str:
            held, length = [], 0
            for piece in pieces:
                held.append(piece)
                length += len(piece) if isinstance(piece, str) else self._size(piece)
                if length > self._longest:
                    break
            self._make(length)
            return join(held)

        return bounded

    def _operator(self, compute: Callable[..., Any]) -> Callable[..., Any]:
        def bounded(context: Any, operator: str, left: Any, right: Any) -> Any:
            sizes = [
                len(each) * (_PLACE if isinstance(each, list | tuple) else 1) if isinstance(each, Sized) else None
                for each in (left, right)
            ]
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
            if isinstance(owner, str | bytes):
                self._work(len(owner) * (_SPLITS if "split" in function.__name__ else 1))
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
            if own and isinstance(own[0], str):
                self._work(len(own[0]) * (1 if name in _QUICK else _SLOW))
            if name == "tojson" and own:
                self._work(self._size(own[0]) * _SPLITS)
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
            if length > self._longest:
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
            self._work(len(value))
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
        self._work_done += characters
        if self._work_done > self._most_work:
            raise TemplateLimitError("it does too much with long lists and texts.")


class _Watched(jinja2.visitor.NodeTransformer):
    """Puts a count around what Jinja does with values by itself: parts of them, and comparisons."""

    def visit_Getitem(self, node: nodes.Getitem) -> nodes.Node:  # noqa: N802 - Jinja asks for this name
        """A slice is a copy."""
        self.generic_visit(node)
        return _counted("trajscore_made", node) if isinstance(node.arg, nodes.Slice) else node

    def visit_Compare(self, node: nodes.Compare) -> nodes.Node:  # noqa: N802 - Jinja asks for this name
        """Beside a constant nothing takes long but looking for something in a value."""
        self.generic_visit(node)
        operands = [node.expr, *(each.expr for each in node.ops)]
        for before, each in zip(operands, node.ops, strict=False):
            beside = (before, each.expr) if each.op in _EQUALITIES else (each.expr,)
            if not any(isinstance(one, nodes.Const) for one in beside):
                each.expr = _counted("trajscore_compared", each.expr)
        return node

    def visit_Test(self, node: nodes.Test) -> nodes.Node:  # noqa: N802 - Jinja asks for this name
        """`is in`, `is eq` and their like compare with what they are given."""
        self.generic_visit(node)
        node.args = [
            each if isinstance(each, nodes.Literal) else _counted("trajscore_compared", each) for each in node.args
        ]
        return node


def _counted(by: str, node: nodes.Expr) -> nodes.Expr:
    return nodes.Call(nodes.EnvironmentAttribute(by), [node], [], None, None, lineno=node.lineno)
