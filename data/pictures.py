"""Draws the pictures of README.md and the manual, from what ships: `python data/pictures.py`, a minute on two cores.

What the real student shows comes from stored records, so it needs no such student. They are SVG and load nothing. A ground
of their own keeps them readable wherever a page shows them.
"""

from __future__ import annotations

import io
import re
import sys
import tempfile
from pathlib import Path

from rich.console import Console

import trajscore as ts
from trajscore.viewing.terminal import token_parts

DATA = Path(__file__).parent
sys.path.insert(0, str(DATA.parent))
from benchmarks.evidence import pictures, tables  # noqa: E402 - found by the line above
from benchmarks.which_metric.pictures import agreement  # noqa: E402

OUT = DATA.parent / "docs" / "pictures"
CHARTS = ("ranking", "why")


def grounded(picture: str) -> str:
    """The picture on white."""
    return re.sub(r"(<svg[^>]*>)", r'\1<rect width="100%" height="100%" fill="white"/>', picture, count=1)


def tokens(scores: Path) -> str:
    """What `trajscore inspect` prints."""
    made = ts.inspect(scores, best=1, by="surprisal")
    console = Console(record=True, width=88, file=io.StringIO(), force_terminal=True, color_system="truecolor")
    for part in token_parts(made.views, made.by, numbers=False):
        console.print(part)
    picture = console.export_svg(title="trajscore inspect scores --best 1 --by surprisal")
    # Rich names a font of another server; every reader's own monospaced one will do.
    return re.sub(r"@font-face \{.*?\}\s*", "", picture, flags=re.DOTALL).replace("Fira Code", "ui-monospace")


def main() -> None:
    """Score what ships here, then draw."""
    OUT.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        scores = Path(folder) / "scores"
        ts.score(str(DATA / "trajectories.jsonl"), student=str(DATA / "models" / "student"), out=scores)
        made = ts.report(scores)
        for name in CHARTS:
            made.plot(name).save(OUT / f"{name}.svg")
            (OUT / f"{name}.svg").write_text(grounded((OUT / f"{name}.svg").read_text("utf-8")), "utf-8")
        for chart, name in ((pictures.teachers, "real.svg"), (pictures.predicted, "predicted.svg")):
            chart(tables.stored()).save(OUT / name)
            (OUT / name).write_text(grounded((OUT / name).read_text("utf-8")), "utf-8")
        (OUT / "tokens.svg").write_text(tokens(scores), "utf-8")
        (OUT / "agreement.svg").write_text(agreement(), "utf-8")


if __name__ == "__main__":
    main()
