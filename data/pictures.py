"""Draws the pictures of README.md and the manual, from what ships here: `python data/pictures.py`, a minute on two cores.

They are SVG, follow the reader's light or dark scheme, and load nothing.
"""

from __future__ import annotations

import io
import re
import tempfile
from pathlib import Path
from typing import Any

from markupsafe import Markup, escape
from rich.console import Console

import trajscore as ts
from trajscore.display import charts
from trajscore.display.formatting import number, share
from trajscore.display.pages import TEMPLATES
from trajscore.ranking.page import axis_label, parts_chart
from trajscore.viewing.terminal import token_parts

DATA = Path(__file__).parent
OUT = DATA.parent / "docs" / "pictures"
WIDTH = 820
_FONT = 'font-family="system-ui, sans-serif" font-size="14"'


def ranking(made: Any) -> str:
    """Every teacher's RSR with its interval, its probability of being the best and its share of correct rows."""
    lines = made.ranking.lines
    ends = [
        end for line in lines for end in (line.metrics["rsr"].low, line.metrics["rsr"].value, line.metrics["rsr"].high)
    ]
    scale = charts.scale_of(ends, axis_label("rsr"))
    parts = [
        _text(8, 22, "teacher", "soft"),
        _text(690, 22, "best", "soft", "end"),
        _text(800, 22, "correct", "soft", "end"),
    ]
    top = 34
    for place, line in enumerate(lines):
        each = line.metrics["rsr"]
        y = top + 24 * place
        parts += [
            _text(8, y + 17, line.teacher),
            _nested(150, y, 440, 24, charts.interval_mark(scale, each.value, each.low, each.high)),
            _text(690, y + 17, share(line.probability_best), end="end"),
            _text(800, y + 17, share(line.share_correct), end="end"),
        ]
    bottom = top + 24 * len(lines)
    parts.append(_nested(150, bottom, 440, 38, charts.axis(scale)))
    return _picture(parts, bottom + 44, "RSR of twelve teachers with 90 % intervals, from `trajscore report`")


def why(made: Any) -> str:
    """Rank against surprisal: the two parts of RSR."""
    drawings = re.findall(r"<svg.*?</svg>", str(parts_chart(made.students[0])), re.DOTALL)
    lines = made.ranking.lines
    names = [_text(600, 40 + 22 * place, f"{place + 1}  {line.teacher}") for place, line in enumerate(lines)]
    rsr = [_text(800, 40 + 22 * p, number(line.metrics["rsr"].value, 3), "soft", "end") for p, line in enumerate(lines)]
    parts = [
        _text(8, 18, "rank (no unit), log scale", "soft"),
        _text(800, 18, "rsr (1/nats)", "soft", "end"),
        _nested(50, 30, 520, 320, drawings[0]),
        _nested(50, 350, 520, 38, drawings[1]),
        *names,
        *rsr,
    ]
    return _picture(parts, 396, "mean rank against mean surprisal of twelve teachers, from `trajscore report`")


def tokens(scores: Path) -> str:
    """What `trajscore inspect` prints."""
    made = ts.inspect(scores, best=1, by="surprisal")
    console = Console(record=True, width=88, file=io.StringIO(), force_terminal=True, color_system="truecolor")
    for part in token_parts(made.views, made.by, numbers=False):
        console.print(part)
    picture = console.export_svg(title="trajscore inspect scores --best 1 --by surprisal")
    # Rich names a font of another server; every reader's own monospaced one will do.
    return re.sub(r"@font-face \{.*?\}\s*", "", picture, flags=re.DOTALL).replace("Fira Code", "ui-monospace")


def _text(x: int, y: int, text: str, css: str = "plain", end: str = "start") -> str:
    return f'<text class="{css}" x="{x}" y="{y}" text-anchor="{end}">{escape(text)}</text>'


def _nested(x: int, y: int, width: int, height: int, drawing: Markup | str) -> str:
    return f'<svg x="{x}" y="{y}" width="{width}" height="{height}" overflow="visible">{drawing}</svg>'


def _picture(parts: list[str], height: int, title: str) -> str:
    css = (TEMPLATES / "style.css").read_text("utf-8")
    own = "svg { overflow: visible } .plain { fill: var(--text) } .soft { fill: var(--soft) } .back { fill: var(--ground) }"
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}" role="img" '
        f"{_FONT}><title>{escape(title)}</title><style><![CDATA[{css}{own}]]></style>"
        f'<rect class="back" width="100%" height="100%" rx="6"/>{"".join(parts)}</svg>\n'
    )


def main() -> None:
    """Score what ships here, then draw."""
    OUT.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        scores = Path(folder) / "scores"
        ts.score(str(DATA / "trajectories.jsonl"), student=str(DATA / "models" / "student"), out=scores)
        made = ts.report(scores)
        for name, picture in (("ranking", ranking(made)), ("why", why(made)), ("tokens", tokens(scores))):
            (OUT / f"{name}.svg").write_text(picture, "utf-8")


if __name__ == "__main__":
    main()
