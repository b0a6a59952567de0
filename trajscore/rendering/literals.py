"""Names of control tokens in data -> placeholder characters and back, so that no data can pose as a control token."""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import groupby
from typing import Any, NamedTuple

_FIRST_PLACEHOLDER = 0xF0000  # planes 15 and 16: private use


class Escaped(NamedTuple):
    """A value without control tokens' names.

    Attributes:
        value: the same nested value, with a private-use character that the data does not use in place of each name.
        literals: placeholder character -> the name it stands for.
    """

    value: Any
    literals: dict[str, str]


def hide(value: Any, names: re.Pattern[str]) -> Escaped:
    """Put placeholders in place of every match in every string of a nested value, keys of mappings among them.

    Raises:
        ValueError: the value uses so many private-use characters that none is left for a placeholder.
    """
    found = {name for string in strings(value) for name in names.findall(string)}
    if not found:
        return Escaped(value, {})
    taken = {character for string in strings(value) for character in string if ord(character) >= _FIRST_PLACEHOLDER}
    free = (chr(code) for code in range(_FIRST_PLACEHOLDER, 0x110000) if chr(code) not in taken)
    placeholders = dict(zip(sorted(found), free, strict=False))
    if len(placeholders) < len(found):
        raise ValueError("the text uses every private-use character, so none can stand for a control token's name")
    replaced = _map_strings(value, lambda string: names.sub(lambda match: placeholders[match[0]], string))
    return Escaped(replaced, {character: name for name, character in placeholders.items()})


def reveal(text: str, literals: Mapping[str, str]) -> str:
    """The text with names back in place of placeholders.

    >>> reveal("a*b", {"*": "</s>"})
    'a</s>b'
    """
    return text.translate({ord(character): name for character, name in literals.items()}) if literals else text


class Restored:
    """A text with names back in place of placeholders, and where its characters went.

    Args:
        text: a text with placeholders.
        literals: placeholder character -> the name it stands for.

    Attributes:
        text: the restored text.
    """

    def __init__(self, text: str, literals: Mapping[str, str]) -> None:
        self.text = reveal(text, literals)
        self._places = [match.start() for match in alternation(literals).finditer(text)] if literals else []
        growth = 0
        self._growth = [0]
        for place in self._places:
            growth += len(literals[text[place]]) - 1
            self._growth.append(growth)

    def offset(self, offset: int) -> int:
        """Where an offset of the text with placeholders lies in the restored one."""
        return offset + self._growth[bisect_left(self._places, offset)]


def alternation(names: Iterable[str]) -> re.Pattern[str]:
    """A pattern that matches any of the names, the longest where several begin alike; of no names, one that never matches.

    Tokenizers have thousands of such names, so it is a tree of prefixes and not a list of words.

    >>> alternation(["<a>", "<a>b", "c"]).findall("<a>bc<a>")
    ['<a>b', 'c', '<a>']
    """
    known = sorted({name for name in names if name})
    return re.compile(_tree(known) if known else r"(?!)")


def _tree(names: list[str]) -> str:
    first, last = names[0], names[-1]  # sorted, so these two differ the earliest
    shared = next((i for i, pair in enumerate(zip(first, last, strict=False)) if pair[0] != pair[1]), len(first))
    prefix = first[:shared]
    rests = [name[len(prefix) :] for name in names]
    branches = [_tree(list(group)) for _, group in groupby([rest for rest in rests if rest], key=lambda rest: rest[0])]
    if not branches:
        return re.escape(prefix)
    return f"{re.escape(prefix)}(?:{'|'.join(branches)}){'?' if '' in rests else ''}"


def split_controls(text: str, control_tokens: re.Pattern[str]) -> Iterator[tuple[str, bool]]:
    """Pieces of a text in order, each with whether it is a control token's name; empty pieces are left out.

    >>> list(split_controls("a</s>", alternation(["</s>"])))
    [('a', False), ('</s>', True)]
    """
    position = 0
    for match in control_tokens.finditer(text):
        if match.start() > position:
            yield text[position : match.start()], False
        yield match[0], True
        position = match.end()
    if position < len(text):
        yield text[position:], False


def strings(value: Any) -> Iterator[str]:
    """Every string in a nested value, keys of mappings among them."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from strings(key)
            yield from strings(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from strings(item)


def _map_strings(value: Any, change: Callable[[str], str]) -> Any:
    if isinstance(value, str):
        return change(value)
    if isinstance(value, Mapping):
        return {_map_strings(key, change): _map_strings(item, change) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_map_strings(item, change) for item in value]
    return value
