"""How a metric, a rule or an extra is named with numbers of its own: NAME[:NUMBER][,KEY=VALUE...].

`rsr:2,r_max=500` is the metric rsr with the weight 2 and with r_max 500. What differs from the defaults becomes part of its
name, `rsr[r_max=500]`, which is read back as well. What the number means is said by whoever asks for it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from trajscore.errors import UsageError, did_you_mean
from trajscore.options.declaration import Option, limits_in_words

_FORM = "NAME[:NUMBER][,KEY=VALUE...]"
_TRUTHS = {"true": True, "1": True, "false": False, "0": False}
_NAMED = re.compile(
    r"(?P<name>[^:,\[\]=]+)(?:\[(?P<inside>[^\[\]]*)\])?(?::(?P<number>[^,]*))?(?:,(?P<more>.*))?", re.DOTALL
)


@dataclass(frozen=True)
class Parameter:
    """A number, or a word, that a metric, rule or extra can be given.

    Attributes:
        name: as it is typed before the equals sign.
        default: its value unless given: a truth value takes true and false, a whole number whole numbers only, a text one of
            `choices`; None stands for what the meaning says, and takes numbers.
        meaning: one plain sentence.
        at_least: smallest value allowed.
        above: the value must be larger.
        at_most: largest value allowed.
        below: the value must be smaller.
        choices: the texts allowed.
    """

    name: str
    default: bool | int | float | str | None
    meaning: str
    at_least: float | None = None
    above: float | None = None
    at_most: float | None = None
    below: float | None = None
    choices: Collection[str] = ()

    def checked(self, of: str, value: Any) -> Any:
        """The value as it is used.

        Args:
            of: what has the parameter, such as `metric 'rsr'`.
            value: a number, or the text of one.

        Raises:
            UsageError: it is not allowed.

        >>> Parameter("r_max", 100, "ranks above it count as it", at_least=1).checked("metric 'rsr'", "500")
        500
        """
        if isinstance(self.default, str):
            if value not in self.choices:
                raise UsageError(f"{of}: {self.name} {value!r} is unknown.", did_you_mean(str(value), self.choices))
            return value
        if isinstance(self.default, bool):
            if str(value).lower() not in _TRUTHS:
                raise UsageError(f"{of}: {self.name} is {value!r}, not true or false.", self.sentence)
            return _TRUTHS[str(value).lower()]
        number = _number(value)
        kind = "a whole number" if isinstance(self.default, int) else "a number"
        if number is None or (isinstance(self.default, int) and not number.is_integer()):
            raise UsageError(f"{of}: {self.name} is {value!r}, not {kind}.", self.sentence)
        limits = Option("", at_least=self.at_least, above=self.above, at_most=self.at_most, below=self.below)
        if limits.outside(number):
            said = limits_in_words(limits) or "must be finite"
            raise UsageError(f"{of}: {self.name} is {value}: {said}.", self.sentence)
        return int(number) if isinstance(self.default, int) else number

    @property
    def sentence(self) -> str:
        """Name, meaning and default."""
        default = "" if self.default is None else f" (default {spelt_value(self.default)})"
        return f"{self.name}: {self.meaning}{default}."


@dataclass(frozen=True)
class Named:
    """What was typed.

    Attributes:
        name: before the first colon, comma or bracket.
        number: after the colon; None where there is none.
        given: parameters by name, as text.
    """

    name: str
    number: float | None = None
    given: Mapping[str, str] = field(default_factory=dict)


def parse_named(flag: str, text: str) -> Named:
    """A name with its number and parameters.

    Args:
        flag: for messages.
        text: `NAME[:NUMBER][,KEY=VALUE...]`, or a name as `named_with` makes it.

    Raises:
        UsageError: it is of another form, what follows the colon is no number, or a parameter is given twice.

    >>> parse_named("--metric", "rsr:2,r_max=500")
    Named(name='rsr', number=2.0, given={'r_max': '500'})
    >>> parse_named("--metric", "rsr[r_max=500]").given
    {'r_max': '500'}
    """
    found = _NAMED.fullmatch(text.strip())
    if found is None:
        raise UsageError(f"{flag} {text!r} cannot be read.", f"Write {_FORM}.")
    number = None if found["number"] is None else _number(found["number"])
    if found["number"] is not None and number is None:
        raise UsageError(f"{flag} {text!r}: {found['number']!r} is no number.", f"Write {_FORM}.")
    given: dict[str, str] = {}
    for pair in (*_pairs(found["inside"]), *_pairs(found["more"])):
        key, equals, value = (each.strip() for each in pair.partition("="))
        if not (key and equals and value):
            raise UsageError(f"{flag} {text!r}: {pair!r} is not of the form KEY=VALUE.", f"Write {_FORM}.")
        if key in given:
            raise UsageError(f"{flag} {text!r}: {key} is given twice.", "Give it once.")
        given[key] = value
    return Named(found["name"].strip(), number, given)


def settle(of: str, parameters: Sequence[Parameter], given: Mapping[str, Any]) -> dict[str, Any]:
    """Every parameter with its value: that given, else the default.

    Args:
        of: what has the parameters, such as `metric 'rsr'`.
        parameters: those that it has.
        given: values by name; None stands for one that was not given.

    Raises:
        UsageError: a name is unknown, or a value not allowed.
    """
    known = {each.name: each for each in parameters}
    for name, value in given.items():
        if value is not None and name not in known:
            hint = did_you_mean(name, known) if known else "It takes none."
            raise UsageError(f"{of} has no parameter {name!r}.", hint)
    return {
        name: each.default if given.get(name) is None else each.checked(of, given[name]) for name, each in known.items()
    }


def named_with(name: str, parameters: Iterable[Parameter], values: Mapping[str, Any]) -> str:
    """The name with the values that differ from the defaults.

    >>> r_max = Parameter("r_max", 100, "ranks above it count as it")
    >>> named_with("rsr", [r_max], {"r_max": 500}), named_with("rsr", [r_max], {"r_max": 100})
    ('rsr[r_max=500]', 'rsr')
    """
    other = [
        f"{each.name}={spelt_value(values[each.name])}" for each in parameters if values[each.name] != each.default
    ]
    return f"{name}[{','.join(other)}]" if other else name


def spelt_value(value: Any) -> str:
    """A parameter's value as it is typed: as few digits as say it.

    >>> spelt_value(1.0), spelt_value(0.05), spelt_value("hard"), spelt_value(False)
    ('1', '0.05', 'hard', 'false')
    """
    if isinstance(value, bool):
        return str(value).lower()
    return repr(value).removesuffix(".0") if isinstance(value, float) else str(value)


def _pairs(text: str | None) -> list[str]:
    return [] if text is None else text.split(",")


def _number(value: Any) -> float | None:
    """A finite number out of a text or a number; None where it is neither."""
    if isinstance(value, bool):
        return None
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return number if math.isfinite(number) else None
