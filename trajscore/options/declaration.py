"""How an option is declared: one field of one class says name, type, default, unit, help, limits and how it is recorded.

    class SplitOptions(Options):
        data: Sequence[str] = argument(metavar="DATA", help="Files to split.")
        rows: int = option(default=500, unit="rows", at_least=1, panel="Output", help="Rows per part.")

    @keywords_of(SplitOptions)
    def split(options: SplitOptions) -> list[Path]: ...

`split("a.jsonl", rows=7)` is then completed and typed in an editor, and refuses what does not exist, has another type or is
out of range in the words of the command line (`trajscore.cli.parameters` reads the same fields) and of recipes.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import math
import operator
import os
import sys
import types
import typing
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import MISSING, dataclass
from pathlib import Path
from typing import Any, Literal, ParamSpec, Self, TypedDict, TypeVar, Union, Unpack, dataclass_transform, overload

from trajscore.errors import UsageError, did_you_mean
from trajscore.options.spelling import flag as spelt

P = ParamSpec("P")
T = TypeVar("T")
Made = TypeVar("Made")
Returned = TypeVar("Returned")

_FACTS = "trajscore.option"
_BEYOND = 2**63
"""The first whole number that JSON and Arrow have no room for."""

USUAL = "Most used"
"""The first heading: what it takes from raw rows to a file that is trained on stands there."""

PANELS = (
    USUAL,
    "Models",
    "Data",
    "Metrics",
    "Trajectories",
    "Weights",
    "Questions",
    "Tokens",
    "Steps",
    "Rendering",
    "Statistics",
    "Annotator",
    "Sampling",
    "Engine",
    "Server",
    "Cluster",
    "Intervals",
    "Output",
    "Dry run",
)
"""Headings under which a command's help lists its options, in this order."""


class UnknownOptionError(UsageError, TypeError):
    """A keyword that a function does not have."""


@dataclass(frozen=True)
class Option:
    """What a field says of itself beside its name, type and default.

    Attributes:
        help: one plain sentence, without the default and without what the metavar says.
        panel: heading under which it stands in the help, one of `PANELS`.
        unit: of the value, in the plural: rows, GiB, nats.
        metavar: what stands for the value in the help; made of choices, unit or type unless given.
        flag: how it is spelt on the command line, if not by its name; `--on/--off` where both are wanted.
        otherwise: what holds where the value is None, in words.
        positional: it stands without a flag on the command line.
        typed: type of the value on the command line, where it is not that of the field, which is then not checked.
        parse: called with flag and value before the type is checked; also with values that it made itself.
        at_least: smallest value allowed.
        above: the value must be larger.
        at_most: largest value allowed.
        below: the value must be smaller.
        suggest: values for completion in a shell.
        python_only: no flag and no key of a recipe.
        hidden: not in the help.
        writes: it names a file or folder that is written.
        harmless: why it changes no number that is written. Without it and `writes`, the value is recorded beside the results.
        recorded_as: its dotted name there, if not its own.
        recorded_by: dotted name of what records it in another form (a model's fingerprint for its name, say).
    """

    help: str
    panel: str = "Output"
    unit: str = ""
    metavar: str | None = None
    flag: str | None = None
    otherwise: str | None = None
    positional: bool = False
    typed: Any = None
    parse: Callable[[str, Any], Any] | None = None
    at_least: float | None = None
    above: float | None = None
    at_most: float | None = None
    below: float | None = None
    suggest: Callable[[], Collection[str]] | None = None
    python_only: bool = False
    hidden: bool = False
    writes: bool = False
    harmless: str = ""
    recorded_as: str = ""
    recorded_by: str = ""

    @property
    def changes_numbers(self) -> bool:
        """Whether it is recorded beside the results: by itself, or by something else."""
        return not (self.harmless or self.writes)

    def outside(self, value: float) -> bool:
        """Whether a number is not finite or beyond the limits."""
        return (
            not math.isfinite(value)
            or (self.at_least is not None and value < self.at_least)
            or (self.above is not None and value <= self.above)
            or (self.at_most is not None and value > self.at_most)
            or (self.below is not None and value >= self.below)
        )


class _Facts(TypedDict, total=False):
    """The attributes of `Option`, as keywords of `option` and `argument`."""

    panel: str
    unit: str
    metavar: str
    flag: str
    otherwise: str
    typed: Any
    parse: Callable[[str, Any], Any]
    at_least: float
    above: float
    at_most: float
    below: float
    suggest: Callable[[], Collection[str]]
    python_only: bool
    hidden: bool
    writes: bool
    harmless: str
    recorded_as: str
    recorded_by: str


@overload
def option(*, default: T, help: str, kw_only: bool = True, **facts: Unpack[_Facts]) -> T: ...
@overload
def option(*, default_factory: Callable[[], T], help: str, kw_only: bool = True, **facts: Unpack[_Facts]) -> T: ...
@overload
def option(*, help: str, kw_only: bool = True, **facts: Unpack[_Facts]) -> Any: ...
def option(
    *,
    default: Any = MISSING,
    default_factory: Any = MISSING,
    help: str,
    kw_only: bool = True,
    **facts: Unpack[_Facts],
) -> Any:
    """A field that the command line spells as `--name`.

    Args:
        default: its default; without one it has to be given.
        default_factory: makes the default, where that is mutable.
        help: see `Option`.
        kw_only: False lets it stand without its name in Python.
        **facts: see `Option`.
    """
    return _field(Option(help=help, **facts), default, default_factory, kw_only)


@overload
def argument(*, default: T, help: str, kw_only: bool = True, **facts: Unpack[_Facts]) -> T: ...
@overload
def argument(*, help: str, kw_only: bool = True, **facts: Unpack[_Facts]) -> Any: ...
def argument(*, default: Any = MISSING, help: str, kw_only: bool = True, **facts: Unpack[_Facts]) -> Any:
    """A field that stands without a flag on the command line; see `option`."""
    return _field(Option(help=help, positional=True, **facts), default, MISSING, kw_only)


def _field(facts: Option, default: Any, default_factory: Any, kw_only: bool) -> Any:
    if facts.panel not in PANELS:
        raise ValueError(f"{facts.panel!r} is no panel")
    return dataclasses.field(
        default=default, default_factory=default_factory, kw_only=kw_only, metadata={_FACTS: facts}
    )


@dataclass_transform(frozen_default=True, kw_only_default=True, field_specifiers=(option, argument))
class Options:
    """Base of a command's options, or of a group that several commands share. Subclasses become frozen dataclasses.

    Values are checked when an object is made: types, choices and limits by the declarations, then whatever the methods
    `check_values` of the class and its bases say of values together. One value stands for a sequence of one, a path for text.

    Raises:
        UsageError: a value is not allowed; the message names the flag.
    """

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        dataclass(frozen=True, kw_only=True)(cls)

    def __post_init__(self) -> None:
        for name, declared in options_in(type(self)).items():
            object.__setattr__(self, name, declared.checked(getattr(self, name)))
        for each in reversed(type(self).__mro__):
            if issubclass(each, Options) and "check_values" in vars(each):
                each.check_values(self)

    def check_values(self) -> None:
        """What a class has to say of values together; bases need not be called."""

    def also_writes(self) -> dict[str, Path]:
        """Files that are written without being named, by the flag that would name them or makes them."""
        return {}

    def part(self, options: type[Options]) -> dict[str, Any]:
        """The values that another class of options, a base of this one as a rule, has too: keywords of its function."""
        return {name: getattr(self, name) for name in options_in(options)}

    def recorded(self) -> dict[str, Any]:
        """Every value that can change a number, as JSON values, under the names by which it is recorded."""
        found: dict[str, Any] = {}
        for name, declared in options_in(type(self)).items():
            if not declared.option.changes_numbers or declared.option.recorded_by:
                continue
            *folders, last = (declared.option.recorded_as or name).split(".")
            place = functools.reduce(lambda inner, folder: inner.setdefault(folder, {}), folders, found)
            place[last] = as_json(getattr(self, name))
        return found

    def replaced(self, **changes: Any) -> Self:
        """A copy with other values, which are checked again."""
        itself: Any = self
        made: Self = dataclasses.replace(itself, **changes)
        return made


def as_json(value: Any) -> Any:
    """A value of an option as JSON: paths as text, tuples as lists, whole numbers beyond 64 bits as text."""
    if isinstance(value, Mapping):
        return {str(key): as_json(each) for key, each in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [as_json(each) for each in value]
    beyond = isinstance(value, int) and abs(value) >= _BEYOND
    return str(value) if beyond or isinstance(value, os.PathLike) else value


@dataclass(frozen=True)
class Declared:
    """A field as it was declared.

    Attributes:
        name: in Python and recipes.
        option: what it says of itself.
        annotation: its type as it is written.
        hint: its type; None where `option.typed` stands in for it or there is no command line to check it for.
        default: its default, `dataclasses.MISSING` where it has to be given.
        positional: whether it may stand without its name in Python.
    """

    name: str
    option: Option
    annotation: str
    hint: Any
    default: Any
    positional: bool

    @property
    def required(self) -> bool:
        """Whether it has to be given."""
        return self.default is MISSING

    @property
    def flag(self) -> str:
        """As messages name it: the flag, or the metavar of what has none."""
        if self.option.positional:
            return self.metavar
        return (self.option.flag or spelt(self.name)).partition("/")[0]

    @property
    def choices(self) -> tuple[str, ...]:
        """The values allowed, where they can be counted."""
        return choices_of(self.hint)

    def holds(self, kind: type) -> bool:
        """Whether values may be of a type, alone or in a union."""
        return _holds(self.hint, kind)

    @property
    def repeatable(self) -> bool:
        """Whether several values may be given."""
        return sequence_in(self.option.typed or self.hint) is not None

    @property
    def metavar(self) -> str:
        """What stands for the value in the help; empty for what is on or off."""
        given = self.option
        if given.metavar is not None or is_switch(self):
            return given.metavar or ""
        if self.choices:
            return "|".join(self.choices)
        return given.unit.upper().replace(" ", "-") or ("N" if _holds(self.hint, int) else "TEXT")

    @property
    def default_text(self) -> str:
        """The default in words, with its unit; empty where there is none."""
        if self.required:
            return ""
        if self.default is None or (self.option.otherwise is not None and not self.default):
            return self.option.otherwise or "none"
        if isinstance(self.default, bool):
            return "on" if self.default else "off"
        if isinstance(self.default, list | tuple | Mapping):
            return ", ".join(map(str, self.default)) or "none"
        number = f"{self.default:g}" if isinstance(self.default, float) else str(self.default)
        return f"{number} {self.option.unit}".rstrip()

    @property
    def help(self) -> str:
        """The sentence, with unit and default."""
        unit = self.option.unit
        shown = unit and (unit in self.default_text or self.metavar.lower() == unit.lower().replace(" ", "-"))
        parts = [self.option.help]
        parts += [f"In {unit}."] if unit and not shown else []
        parts += ["Repeatable."] if self.repeatable and not self.option.positional else []
        parts += [f"Default: {self.default_text}."] if self.default_text else []
        return " ".join(parts)

    def checked(self, value: Any) -> Any:
        """The value as it is used.

        Raises:
            UsageError: it is not allowed.
        """
        if value is None and self.default is None:
            return None
        if self.option.parse is not None:
            value = self.option.parse(self.flag, value)
        if self.hint is not None:
            try:
                value = conformed(value, self.hint)
            except WrongTypeError as error:
                raise self._wrong_type(error.value) from None
        self._check_limits(value)
        return value

    def _wrong_type(self, value: Any) -> UsageError:
        shown = value if isinstance(value, str) else repr(value)
        if self.choices:
            return UsageError(f"{self.flag} {shown}: not known.", f"Allowed: {', '.join(self.choices)}.")
        return UsageError(f"{self.flag} {shown}: {in_words(self.hint)} is needed.", self.help)

    def _check_limits(self, value: Any) -> None:
        limits = self.option
        if isinstance(value, bool) or not isinstance(value, int | float):
            return
        if isinstance(value, int) and abs(value) >= _BEYOND:
            raise UsageError(f"{self.flag} {value}: must fit into 64 bits.", self.help)
        if limits.outside(value):
            allowed = limits_in_words(limits, "GiB" if limits.unit == "GiB" else "") or "a finite number is needed"
            raise UsageError(f"{self.flag} {value}: {allowed}.", self.help)


def limits_in_words(limits: Option, unit: str = "") -> str:
    """What a number must be; empty where nothing limits it."""
    if limits.at_least is not None and limits.at_most is not None:
        return f"must be between {limits.at_least:g} and {limits.at_most:g}"
    words = (
        ("at least", limits.at_least),
        ("above", limits.above),
        ("at most", limits.at_most),
        ("below", limits.below),
    )
    said = " and ".join(f"{word} {limit:g}{unit and ' ' + unit}" for word, limit in words if limit is not None)
    return said and f"must be {said}"


def options_in(options: type[Options]) -> Mapping[str, Declared]:
    """The options of a class by name: in the order of the help, panel by panel, what has to be given first, and a class's own
    before those of its bases.
    """
    found = _KNOWN.get(options)
    if found is None:
        found = _KNOWN[options] = _options_in(options)
    return found


_KNOWN: dict[Any, Mapping[str, Declared]] = {}


def _options_in(options: type[Options]) -> Mapping[str, Declared]:
    rank = {name: number for number, name in enumerate(_own_first(options))}
    found = [_declared(options, field) for field in dataclasses.fields(options)]  # type: ignore[arg-type]
    found.sort(
        key=lambda each: (
            not each.option.positional,
            PANELS.index(each.option.panel),
            not each.required,
            rank[each.name],
        )
    )
    return types.MappingProxyType({each.name: each for each in found})


def _own_first(options: type) -> Iterator[str]:
    for each in options.__mro__:
        yield from inspect.get_annotations(each)


def _declared(options: type[Options], field: dataclasses.Field[Any]) -> Declared:
    facts = field.metadata[_FACTS]
    home = next(each for each in options.__mro__ if field.name in inspect.get_annotations(each))
    annotation = inspect.get_annotations(home)[field.name]
    hint = None
    if facts.typed is None and not facts.python_only:
        holder = types.SimpleNamespace(__annotations__={"it": annotation})
        hint = typing.get_type_hints(holder, vars(sys.modules[home.__module__]))["it"]
    default = field.default_factory() if field.default_factory is not MISSING else field.default
    return Declared(field.name, facts, str(annotation), hint, default, not field.kw_only)


def is_switch(declared: Declared) -> bool:
    """Whether an option is on or off and takes no value."""
    return _holds(declared.option.typed or declared.hint, bool)


def _members(hint: Any) -> tuple[Any, ...]:
    """The types of a union, None not among them; the one type of what is none."""
    if typing.get_origin(hint) in (Union, types.UnionType):
        return tuple(each for each in typing.get_args(hint) if each is not type(None))
    return (hint,)


def _holds(hint: Any, kind: type) -> bool:
    return kind in _members(hint)


def sequence_in(hint: Any) -> Any:
    """The type of the elements of a sequence among the types of a union; None where there is none."""
    for each in _members(hint):
        if typing.get_origin(each) in (Sequence, list, tuple):
            return typing.get_args(each)[0]
    return None


def choices_of(hint: Any) -> tuple[str, ...]:
    """The values of a `Literal`, alone, in a union or in a sequence."""
    for each in _members(hint):
        if typing.get_origin(each) is Literal:
            return tuple(typing.get_args(each))
        if typing.get_origin(each) in (Sequence, list, tuple):
            return choices_of(typing.get_args(each)[0])
    return ()


def in_words(hint: Any) -> str:
    """A type as a sentence names it.

    >>> in_words(int | None), in_words(Sequence[str])
    ('a whole number', 'text, or a list of it,')
    """
    names = {int: "a whole number", float: "a number", str: "text", bool: "true or false", Path: "a path"}
    inner = sequence_in(hint)
    if inner is not None:
        return f"{in_words(inner)}, or a list of it,"
    words = [names.get(each, "an object") for each in _members(hint)]
    return " or ".join(dict.fromkeys(words))


class WrongTypeError(TypeError):
    """A value of another type than declared; of a list, the element."""

    def __init__(self, value: Any) -> None:
        super().__init__()
        self.value = value


def conformed(value: Any, hint: Any) -> Any:
    """A value as its type has it: one value for a sequence of one, a path's text, a whole number of any library.

    Of a union, the first type that takes it: `str | Path` leaves a text as it is (it may be a URL), `Path | str` makes a path.

    Raises:
        WrongTypeError: it is of another type.

    >>> conformed("a", Sequence[str]), conformed(Path("x"), str), conformed(2, float)
    (('a',), 'x', 2.0)
    """
    origin = typing.get_origin(hint)
    if hint is Any:
        return value
    if origin in (Union, types.UnionType):
        return _conformed_to_one(value, typing.get_args(hint))
    if origin is Literal:
        return _one_of(value, typing.get_args(hint))
    if origin in (Sequence, list, tuple):
        element = typing.get_args(hint)[0]
        several = isinstance(value, Iterable) and not isinstance(value, str | bytes | Mapping)
        return tuple(conformed(each, element) for each in (value if several else (value,)))
    if origin is not None:
        return _instance(value, origin)
    return _plain(value, hint)


def _conformed_to_one(value: Any, hints: Iterable[Any]) -> Any:
    wrong = value
    for hint in hints:
        try:
            return conformed(value, hint)
        except WrongTypeError as error:
            wrong = error.value
    raise WrongTypeError(wrong)


def _one_of(value: Any, allowed: Collection[Any]) -> Any:
    if not isinstance(value, str | int) or value not in allowed:
        raise WrongTypeError(value)
    return value


def _instance(value: Any, kind: Any) -> Any:
    if not isinstance(value, kind):
        raise WrongTypeError(value)
    return value


def _plain(value: Any, hint: Any) -> Any:
    if hint in (int, float):
        if isinstance(value, str | bytes | bool):
            raise WrongTypeError(value)
        try:
            return operator.index(value) if hint is int else float(value)
        except (TypeError, ValueError):
            raise WrongTypeError(value) from None
    if hint is str and isinstance(value, os.PathLike):
        return os.fspath(value)
    if hint is Path and isinstance(value, str | os.PathLike):
        return Path(value)
    return _instance(value, hint)


def keywords_of(options: Callable[P, Made]) -> Callable[[Callable[[Made], Returned]], Callable[P, Returned]]:
    """Gives a function of an options object the class's constructor as its own signature, for editors, mypy and notebooks.

    The docstring gets an `Args` section out of the fields' help.

    Args:
        options: the class.

    Returns:
        A decorator. The decorated function raises `UsageError` for a name that the class lacks, with the nearest one.
    """

    def decorate(function: Callable[[Made], Returned]) -> Callable[P, Returned]:
        made: Any = options
        name = function.__name__
        signature = _signature(made, function)

        @functools.wraps(function)
        def call(*args: P.args, **kwargs: P.kwargs) -> Returned:
            for keyword in kwargs:
                if keyword not in signature.parameters:
                    raise UnknownOptionError(
                        f"{name}() has no option {keyword!r}.", did_you_mean(keyword, signature.parameters)
                    )
            try:
                bound = signature.bind(*args, **kwargs)
            except TypeError as error:
                raise UnknownOptionError(f"{name}(): {error}.", f"See help(trajscore.{name}).") from None
            return function(made(**bound.arguments))

        call.__signature__ = signature  # type: ignore[attr-defined]
        call.__annotations__ = {each.name: each.annotation for each in signature.parameters.values()}
        call.__doc__ = _documented(inspect.getdoc(function) or "", made)
        return call

    return decorate


def _signature(options: type[Options], function: Callable[..., Any]) -> inspect.Signature:
    order = [field.name for field in dataclasses.fields(options)]  # type: ignore[arg-type]
    declared = sorted(options_in(options).values(), key=lambda each: order.index(each.name))
    parameters = [
        inspect.Parameter(
            each.name,
            inspect.Parameter.POSITIONAL_OR_KEYWORD if each.positional else inspect.Parameter.KEYWORD_ONLY,
            default=inspect.Parameter.empty if each.required else each.default,
            annotation=each.annotation,
        )
        for each in declared
    ]
    parameters.sort(key=lambda each: each.kind)
    returned = function.__annotations__.get("return", inspect.Signature.empty)
    return inspect.Signature(parameters, return_annotation=returned)


def _documented(docstring: str, options: type[Options]) -> str:
    lines = ["Args:", *(f"    {each.name}: {each.help}" for each in options_in(options).values())]
    for section in ("Returns:", "Yields:", "Raises:", "Example:", "Source:", ">>> "):
        before, found, after = docstring.partition(f"\n\n{section}")
        if found:
            return "\n".join([before, "", *lines]) + found + after
    return "\n".join([docstring, "", *lines])


@dataclass(frozen=True)
class Described:
    """One line of a reference page.

    Attributes:
        flag: as typed, or the metavar of what stands without a flag.
        metavar: what stands for the value; empty for what is on or off.
        name: in Python and recipes.
        type: in Python, as it is written.
        default: in words, with its unit; empty where the option has to be given.
        required: whether it has to be given.
        unit: of the value.
        help: one sentence, without default and unit.
        panel: heading.
        choices: values allowed, where they can be counted.
        repeatable: whether several values may be given.
        python_only: whether it has no flag.
        recorded: whether it can change a number and is therefore written beside the results.
    """

    flag: str
    metavar: str
    name: str
    type: str
    default: str
    required: bool
    unit: str
    help: str
    panel: str
    choices: tuple[str, ...]
    repeatable: bool
    python_only: bool
    recorded: bool


def describe(options: type[Options]) -> list[Described]:
    """The options of a class as a reference page lists them, in the order of the help; hidden ones are left out."""
    return [
        Described(
            flag="" if each.option.python_only else (each.option.flag or each.flag),
            metavar=each.metavar,
            name=each.name,
            type=each.annotation,
            default=each.default_text,
            required=each.required,
            unit=each.option.unit,
            help=each.option.help,
            panel=each.option.panel,
            choices=each.choices,
            repeatable=each.repeatable,
            python_only=each.option.python_only,
            recorded=each.option.changes_numbers,
        )
        for each in options_in(options).values()
        if not each.option.hidden
    ]
