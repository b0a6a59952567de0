"""The page of `inspect --out`: coloured text, a choice of statistics, and a search box.

The page loads nothing; its content security policy allows the one script by its hash, so that text of a data set could not
run even if it got into the page as markup, which it does not. Without scripts the colours and the text are there all the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import orjson
from markupsafe import Markup

from trajscore.display.formatting import visible
from trajscore.display.pages import environment, script
from trajscore.viewing.tokens import Statistic, TokenView

LEVELS = 8


def render(views: Sequence[TokenView], by: str, student: str | None) -> str:
    """The page.

    >>> view = TokenView("<i>", "p", None, "too_long", None, None, {}, (), (), {})
    >>> "<i>" in render([view], "rank", None), "&lt;i&gt;" in render([view], "rank", None)
    (False, True)
    """
    code, digest = script("tokens.js")
    names = list(dict.fromkeys(name for view in views for name in view.statistics))
    statistics = {name: next(v.statistics[name] for v in views if name in v.statistics) for name in names}
    return (
        environment()
        .get_template("tokens.html.j2")
        .render(
            views=[(view, _pieces(view, by)) for view in views],
            by=by,
            student=student,
            statistics=statistics,
            legend=_legend(statistics.get(by)),
            script=code,
            digest=digest,
            data=_json({"statistics": [_described(each) for each in statistics.values()], "views": _values(views)}),
        )
    )


def _pieces(view: TokenView, by: str) -> list[tuple[str, int | None, str]]:
    statistic = view.statistics.get(by)
    letter = "c" if statistic is not None and statistic.categories else "l"
    return [
        (shown(text, place is not None), place, "" if level is None else f"{letter}{level}")
        for text, place, level in view.pieces(by)
    ]


def shown(text: str, scored: bool) -> str:
    """A piece of text with control characters as escapes; a line break of a scored token is also a sign, to be seen.

    >>> shown("a\\n\\u202eb", scored=True)
    'a↵\\n\\\\u202eb'
    """
    lines = [visible(line) for line in text.split("\n")]
    return ("↵\n" if scored else "\n").join(lines)


def _legend(statistic: Statistic | None) -> list[tuple[str, str]]:
    if statistic is None:
        return []
    letter = "c" if statistic.categories else "l"
    return [(f"{letter}{level}", label) for level, label in enumerate(statistic.labels)]


def _described(statistic: Statistic) -> dict[str, Any]:
    return {
        "name": statistic.name,
        "unit": statistic.unit,
        "meaning": statistic.meaning,
        "thresholds": statistic.thresholds,
        "categories": statistic.categories,
        "labels": statistic.labels,
    }


def _values(views: Sequence[TokenView]) -> list[dict[str, Any]]:
    return [
        {
            "positions": view.positions,
            "values": {name: [_rounded(value) for value in each.values] for name, each in view.statistics.items()},
        }
        for view in views
    ]


def _rounded(value: float | None) -> float | None:
    """Six significant digits: what is shown has four, and a long trajectory has many."""
    return value if value is None or isinstance(value, int) else float(f"{value:.6g}")


def _json(value: Any) -> Markup:
    """JSON that cannot end the element that holds it."""
    text = orjson.dumps(value).decode()
    for letter in "<>&\u2028\u2029":
        text = text.replace(letter, f"\\u{ord(letter):04x}")
    return Markup(text)  # noqa: S704 - no letter that HTML knows is left
