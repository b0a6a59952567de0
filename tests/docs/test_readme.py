"""The README is true: short, its commands and its Python run, it shows what they print, and its links exist."""

from __future__ import annotations

from pathlib import Path

from tests.helpers.pages import README, anchors, blocks, clone, links, run
from tests.helpers.paths import ROOT


def test_it_is_short() -> None:
    assert len(README.read_text("utf-8").splitlines()) <= 250


def test_what_it_types_runs_and_prints_what_it_shows(tmp_path: Path) -> None:
    """Blocks marked `sh` and `python`; those marked `bash` need the hub, those marked `console` install or call this test."""
    folder = clone(tmp_path)
    printed = "".join(run(language, code, folder) for language, code in blocks(README, "sh", "python"))
    assert len((folder / "selected.jsonl").read_text().splitlines()) == 40
    (table,) = (code for _, code in blocks(README, "text") if code.startswith("teacher "))
    shown = [line.split() for line in table.splitlines() if not line.startswith("...")]
    # The probability to be the best is drawn from a bootstrap, whose last digit another library version may move.
    found = [without_best(line.split()) for line in printed.splitlines()]
    missing = [line for line in shown if without_best(line) not in found]
    assert missing == [], "the teachers' table of the page is not what `report` prints"


def without_best(words: list[str]) -> list[str]:
    """A line of the table without its second column."""
    return words[:1] + words[2:]


def test_its_links_exist() -> None:
    assert links(README)
    for target, anchor in links(README):
        path = ROOT / target
        assert path.exists(), target
        assert not anchor or anchor in anchors(path), f"{target}#{anchor}"
