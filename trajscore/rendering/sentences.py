"""Text -> offsets of its sentences, by fixed rules.

Reasoning text is split at line breaks and after sentence-final punctuation followed by white space. Formulas, code and
numbers stay whole. The rules are part of every stored sentence index, so a change of them raises `VERSION`. Everything is
linear in the text up to a logarithm: the text is a stranger's.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterator

VERSION = "1"
"""Version of the splitting rules, kept in the manifest."""

# What may open or close a stretch that stays whole; a backslash takes the next character with it.
_MARK = re.compile(
    r"""
      ^[ \t]*(?P<fence>`{3,}|~{3,})
    | (?P<code>`)
    | (?P<display>\$\$)
    | (?P<dollar>\$)
    | \\(?P<bracket>[\[\]()])
    | \\(?P<edge>begin|end)\{(?P<environment>[^}\n]{1,64})\}
    | \\.
    """,
    re.VERBOSE | re.MULTILINE | re.DOTALL,
)

_BOUNDARY = re.compile(
    r"""
      \n\s*                                                                   # line break and the white space after it
    | (?<![.!?\u2026])[.!?\u2026]++["'\u2019\u201d)\]*_]*+(?P<space>\s+)                  # sentence end, closing marks
    | (?<![\u3002\uff01\uff1f])[\u3002\uff01\uff1f]++[\u2019\u201d\uff09\u300d]*+\s*              # full-width sentence end
    """,
    re.VERBOSE,
)

_NOT_SPACE = re.compile(r"\S")
_ABBREVIATION = re.compile(
    r"(?:^|[\s(\[])(?:e\.g|i\.e|cf|vs|approx|resp|Dr|Mr|Mrs|Ms|Prof|St|Fig|Eq|Eqs|Sec|Thm|Lem|Def|Prop|Ch|[A-Z])\.$"
)
_NUMBER = re.compile(r"(?:^|[\s(\[])No\.$")  # an answer, too: an abbreviation only before a number
_LIST_MARKER = re.compile(r"[\s>*#-]*(?:(?:Step|Case)\s\d{1,3}|\(?\d{1,3}|\(?[a-zA-Z]|[ivxIVX]{1,5})\)?\.")


def sentence_starts(text: str) -> list[int]:
    """Offsets at which the sentences of a text begin, ascending; the first is 0 unless the text is empty.

    A sentence runs to the start of the next one, so its trailing white space belongs to it. Leading white space of the text
    belongs to the first sentence. White space alone makes one sentence.

    Boundaries are line breaks and `.`, `!`, `?`, ellipses and their full-width forms followed by white space, except inside
    code, formulas and LaTeX environments, after common abbreviations, single capital initials and list markers, and in
    decimals (no white space follows the point).

    >>> text = "We know $x. y$ is 3.5. So, e.g. 1 < 2!\\n\\n1. Done."
    >>> starts = sentence_starts(text)
    >>> [text[a:b] for a, b in zip(starts, [*starts[1:], None])]
    ['We know $x. y$ is 3.5. ', 'So, e.g. 1 < 2!\\n\\n', '1. Done.']
    >>> sentence_starts("")
    []
    """
    if not text:
        return []
    starts = [0]
    whole = _whole_stretches(text)
    begin, end = next(whole, (len(text), len(text)))
    position = 0
    while match := _BOUNDARY.search(text, position):
        while end <= match.start() < len(text) and begin < len(text):
            begin, end = next(whole, (len(text), len(text)))
        if begin <= match.start():
            position = end
            continue
        position = match.end()
        if _ends_sentence(text, match, starts[-1]):
            starts.append(match.end())
    return starts


def _ends_sentence(text: str, match: re.Match[str], start: int) -> bool:
    if match.end() == len(text) or not _NOT_SPACE.search(text, start, match.end()):
        return False
    if match["space"] is None or "\n" in match["space"] or not match[0].startswith(". "):
        return True
    stop = match.start() + 1
    if stop - start <= 16 and _LIST_MARKER.fullmatch(text, start, stop):
        return False
    before = text[max(start, stop - 12) : stop]
    if _NUMBER.search(before):
        return not text[match.end()].isdigit()
    return not _ABBREVIATION.search(before)


def _whole_stretches(text: str) -> Iterator[tuple[int, int]]:
    """Non-overlapping stretches in which nothing is a boundary, ascending.

    Code fences, inline code, formulas and LaTeX environments. Inline code and formulas in single dollars end with their
    line, displayed formulas with their paragraph. What is never closed is ordinary text.
    """
    marks = list(_MARK.finditer(text))
    if not marks:
        return
    closers: dict[str, list[int]] = defaultdict(list)
    for index, mark in enumerate(marks):
        if kind := _closes(text, mark):
            closers[kind].append(index)
    lines = [match.start() for match in re.finditer(r"\n", text)]
    paragraphs = [match.start() for match in re.finditer(r"\n[^\S\n]*+\n", text)]
    index = 0
    while index < len(marks):
        mark = marks[index]
        kind = _opens(text, mark)
        candidates = closers.get(kind, [])
        nearest = bisect_left(candidates, index + 1)
        index += 1
        if not kind or nearest == len(candidates):
            continue
        closer = marks[candidates[nearest]]
        if kind == "dollar" and not _closes_formula(text, closer):
            continue
        begin, end = mark.start(), closer.end()
        limits = lines if kind in ("code", "dollar") else paragraphs if kind in ("display", "]", ")") else []
        limit = bisect_left(limits, begin)
        if limit == len(limits) or limits[limit] >= end:
            yield begin, end
            index = candidates[nearest] + 1


def _opens(text: str, mark: re.Match[str]) -> str:
    """The kind of closer that this mark waits for, empty when it opens nothing."""
    kind = mark.lastgroup
    if kind == "dollar":
        return "dollar" if text[mark.end() : mark.end() + 1].strip() else ""
    if kind == "bracket":
        return {"[": "]", "(": ")"}.get(mark["bracket"], "")
    if kind == "environment":
        return f"end {mark['environment']}" if mark["edge"] == "begin" else ""
    return f"fence {mark['fence']}" if kind == "fence" else kind or ""


def _closes(text: str, mark: re.Match[str]) -> str:
    """The kind of stretch that this mark can close, empty when none."""
    kind = mark.lastgroup
    if kind == "bracket":
        return mark["bracket"] if mark["bracket"] in "])" else ""
    if kind == "environment":
        return f"end {mark['environment']}" if mark["edge"] == "end" else ""
    return f"fence {mark['fence']}" if kind == "fence" else kind or ""


def _closes_formula(text: str, mark: re.Match[str]) -> bool:
    """Whether a dollar ends a formula; that of a price ("$5. She pays $6.") does not, and leaves the one before it alone."""
    glued = mark.start() > 0 and not text[mark.start() - 1].isspace()
    return glued and not text[mark.end() : mark.end() + 1].isdigit()
