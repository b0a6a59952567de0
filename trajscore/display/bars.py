"""Horizontal bars with intervals, as one SVG file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

_ROW, _LEFT, _WIDTH, _TOP = 24, 300, 420, 44


@dataclass(frozen=True)
class Bar:
    """One bar.

    Attributes:
        label: its name.
        value: its length, at least 0.
        low: lower end of its interval, None without one.
        high: upper end.
    """

    label: str
    value: float
    low: float | None
    high: float | None


def bar_chart(title: str, unit: str, bars: Sequence[Bar]) -> str:
    """The chart as SVG text, bars from top to bottom in the order given.

    >>> "&lt;b&gt;" in bar_chart("t", "questions", [Bar("<b>", 1, None, None)])
    True
    """
    longest = max([1.0, *(max(bar.value, bar.high or 0) for bar in bars)])
    scale = _WIDTH / longest
    height = _TOP + _ROW * len(bars) + 12
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{_LEFT + _WIDTH + 70}" height="{height}" '
        'font-family="sans-serif" font-size="13" fill="#222">',
        '<rect width="100%" height="100%" fill="white"/>',
        f'<text x="12" y="26" font-size="16">{escape(title)} ({escape(unit)})</text>',
    ]
    for number, bar in enumerate(bars):
        lines += _bar(bar, _TOP + _ROW * number, scale)
    return "\n".join([*lines, "</svg>", ""])


def _bar(bar: Bar, top: int, scale: float) -> list[str]:
    label = bar.label if len(bar.label) <= 42 else bar.label[:41] + "\u2026"
    end = _LEFT + max(bar.value, bar.high or 0) * scale
    lines = [
        f'<text x="{_LEFT - 8}" y="{top + 15}" text-anchor="end">{escape(_printable(label))}</text>',
        f'<rect x="{_LEFT}" y="{top + 3}" width="{bar.value * scale:.1f}" height="{_ROW - 8}" fill="#4c78a8"/>',
        f'<text x="{end + 6:.1f}" y="{top + 15}">{bar.value:g}</text>',
    ]
    if bar.low is not None and bar.high is not None:
        first, last, middle = _LEFT + bar.low * scale, _LEFT + bar.high * scale, top + 3 + (_ROW - 8) / 2
        lines.append(f'<path d="M{first:.1f} {middle}H{last:.1f}" stroke="#222" stroke-width="1.5"/>')
    return lines


def _printable(text: str) -> str:
    # XML has no characters for most control codes, not even escaped.
    return "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in text)
