"""What a selection tells its user: the summary, reasons in words, `diff`, pairs and the card; every number worked out by
hand."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import yaml
from typer.testing import CliRunner

from tests.helpers.score_tables import refused, trajectory, write_folder
from trajscore.cli import app
from trajscore.errors import DataError, UsageError
from trajscore.scores.source import open_scores
from trajscore.selection.card import card
from trajscore.selection.decide import STEPS
from trajscore.selection.diff import diff
from trajscore.selection.pairs import find_pairs, pair_rows
from trajscore.selection.select import select
from trajscore.selection.stat_draws import STAT_STEPS
from trajscore.selection.summary import in_words


def _row(number: int, prompt: str, rsr: float, teacher: str = "T", **values: Any) -> dict[str, Any]:
    own: dict[str, Any] = {"response_compression": 2.0, "repeated_lines": 0.0, "repeated_ngrams": 0.0}
    said = {"role": "assistant", "content": f"text {number}", "tool_calls": None}
    asked = {"role": "user", "content": f"question {prompt}", "tool_calls": None}
    own["messages"] = [asked, said]
    return trajectory(number, [1, 1], [1 / rsr] * 2, prompt_id=prompt, teacher=teacher, **(own | values))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three prompts: p with a wrong loop that leads, q with two candidates, r with one; one row refused."""
    return write_folder(
        tmp_path / "scores",
        [
            _row(0, "p", 1.0, "A", correct=False, response_compression=17.6),
            _row(1, "p", 2.0, "B", correct=True),
            _row(2, "q", 2.0, "A", correct=True),
            _row(3, "q", 4.0, "B", correct=True),
            _row(4, "r", 8.0, "B", correct=None),
            refused(5, "too_long", prompt_id="r", teacher="B"),
        ],
        part_rows=2,
    )


def test_the_summary_by_hand(folder: Path) -> None:
    made = select(folder, per_prompt=1).summary
    before, after = made["before"], made["after"]
    assert (before["rows"], before["tokens"], before["prompts"], before["correct"], before["loops"]) == (
        5,
        10,
        3,
        0.75,
        1,
    )
    assert (after["rows"], after["tokens"], after["prompts"], after["correct"], after["loops"]) == (3, 6, 3, 0.5, 1)
    assert before["teachers"] == {"B": {"rows": 3, "share": 0.6}, "A": {"rows": 2, "share": 0.4}}
    assert after["teachers"] == {"A": {"rows": 2, "share": 2 / 3}, "B": {"rows": 1, "share": 1 / 3}}
    assert (made["one_candidate"], made["ranked_prompts"]) == (1, 3)
    assert any(
        '1 kept row looks like a loop (repeated text); --where "loop = 0" drops them' in n for n in made["notes"]
    )
    assert any("50 % after 75 %" in note for note in made["notes"])


def test_the_flag_that_is_named_drops_the_loops(folder: Path) -> None:
    made = select(folder, per_prompt=1, where="loop = 0")
    assert made.summary["after"]["loops"] == 0
    assert made.summary["notes"] == []
    assert made.decisions.filter("kept")["id"].to_list() == ["id-0001", "id-0002", "id-0004"]


@pytest.mark.parametrize(
    ("settings", "note"),
    [
        ({"top": 200, "per_prompt": 1}, "3 of 200: only 3 prompts"),
        ({"top": 200, "per_prompt": 2}, "5 of 200: only 3 prompts, at most 2 rows of each"),
        ({"top": 200, "where": "rsr > 3"}, "2 of 200: only 2 rows passed the steps before"),
        ({"top": 4, "quota": "teacher=1"}, "2 of 4: the quotas allow no more"),
    ],
)
def test_a_shortfall_is_said(settings: dict[str, Any], note: str, folder: Path) -> None:
    assert note in select(folder, **settings).summary["notes"]
    assert not any(" of " in note for note in select(folder, top=2).summary["notes"] if "200" in note)


def test_nothing_to_choose_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    alone = write_folder(tmp_path / "alone", [_row(number, f"p{number}", 1.0 + number) for number in range(8)])
    with caplog.at_level(logging.WARNING):
        made = select(alone, per_prompt=1)
    assert (made.rows_kept, made.summary["one_candidate"]) == (8, 8)
    assert "no prompt has two candidates" in caplog.text
    assert "--prompt-by user" in caplog.text
    assert select(alone, top=3).summary["notes"] == []  # nothing is compared within prompts


def test_every_step_has_words() -> None:
    for step in (*STEPS, *STAT_STEPS):
        assert in_words(step) != step
    assert in_words("refused:too_long") == "could not be scored (too_long)"


def test_scores_that_say_little(tmp_path: Path) -> None:
    rows = pl.LazyFrame({"id": ["a", "b"], "prompt_id": ["p", "p"], "status": ["ok", "ok"], "n_tokens": [7, 9]})
    made = select(rows, "length", per_prompt=1).summary
    assert (made["after"]["correct"], made["after"]["loops"], made["after"]["tokens"]) == (None, None, 9)
    odd = rows.with_columns(correct=pl.Series(["yes", "no"]))
    assert select(odd, "length").summary["after"]["correct"] is None


def test_what_is_printed(folder: Path, tmp_path: Path) -> None:
    out = CliRunner().invoke(
        app, ["select", str(folder), "--per-prompt", "1", "--prefer", "correct", "--out", str(tmp_path / "k.jsonl")]
    )
    assert out.exit_code == 0
    text = " ".join(out.stdout.split())
    assert "6 rows in = 3 kept + 3 dropped" in text
    assert "1: wrong, and the prompt has a correct answer" in text
    assert "correct 75.0% 100.0%" in text
    assert "2 of 3 ranked prompts have one candidate only" in text  # p has one left after --prefer


@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
def test_diff_by_hand(suffix: str, folder: Path, tmp_path: Path) -> None:
    a, b = tmp_path / f"a.{suffix}", tmp_path / f"b.{suffix}"
    select(folder, ["rsr", "length"], per_prompt=1, out=a)
    select(folder, ["rsr", "length"], per_prompt=1, prefer="correct", out=b)
    found = diff(a, b)
    assert found.rows == {"a": 3, "b": 3, "both": 2, "only_a": 1, "only_b": 1}
    assert found.overlap == 0.5
    assert found.tokens == {"a": 6, "b": 6}
    assert found.correct == {"a": 0.5, "b": 1.0}
    assert found.teachers["A"] == {"a": {"rows": 2, "share": 2 / 3}, "b": {"rows": 1, "share": 1 / 3}}
    assert found.metrics["rsr"]["a"] == pytest.approx(11 / 3)
    assert found.metrics["rsr"]["b"] == pytest.approx(4)
    out = CliRunner().invoke(app, ["diff", str(a), str(b), "--json"])
    assert json.loads(out.stdout) == json.loads(json.dumps(found.to_dict()))
    assert "2 rows in both (50.0% of all rows)" in CliRunner().invoke(app, ["diff", str(a), str(b)]).stdout
    assert found.frame.filter(pl.col("quantity") == "tokens").row(0) == ("tokens", None, 6.0, 6.0)


def test_diff_refuses_what_is_no_selection(folder: Path, tmp_path: Path) -> None:
    kept, decisions = tmp_path / "a.parquet", tmp_path / "d.parquet"
    select(folder, per_prompt=1, out=kept, decisions=decisions)
    with pytest.raises(UsageError, match="no such file"):
        diff(kept, tmp_path / "none.parquet")
    with pytest.raises(UsageError, match="holds decisions"):
        diff(kept, decisions)
    (tmp_path / "broken.jsonl").write_text("{")
    with pytest.raises(DataError, match=r"broken\.jsonl, line 1"):
        diff(kept, tmp_path / "broken.jsonl")


def test_pairs_by_hand(folder: Path) -> None:
    table = select(folder, per_prompt=1).table
    pairs, without = find_pairs(table, "rsr", 1.5)
    assert pairs.select("prompt_id", "chosen", "rejected").rows() == [("q", 2, 3)]
    assert without == {"one candidate": 1, "gap too small": 1}
    (row,) = pair_rows(open_scores(folder), pairs, "rsr")
    assert row["prompt"] == [{"role": "user", "content": "question q"}]
    assert row["chosen"] == [{"role": "assistant", "content": "text 2"}]
    assert row["rejected"] == [{"role": "assistant", "content": "text 3"}]
    assert (row["chosen_id"], row["rejected_id"]) == ("id-0002", "id-0003")
    assert row["rejected_rsr"] - row["chosen_rsr"] == pytest.approx(2)
    assert find_pairs(table, "rsr", 0)[0].height == 2
    with pytest.raises(UsageError, match="--pairs"):
        find_pairs(table, "rsr", -1)


def test_what_prefer_dropped_is_not_rejected(folder: Path) -> None:
    pairs, _ = find_pairs(select(folder, per_prompt=1, prefer="correct").table, "rsr", 0)
    assert pairs["prompt_id"].to_list() == ["q"]


def test_the_card_names_no_folder(folder: Path, tmp_path: Path) -> None:
    made = select(folder, per_prompt=1, quota="teacher=0.9")
    text = card(made.to_dict(), "/home/me/models/student", "kept.jsonl")
    assert "data_files: kept.jsonl" in text
    assert "| correct | 75.0% | 50.0% |" in text
    assert "- 1: could not be scored (too_long)" in text
    assert "Selected for the student `student`" in text
    for private in (str(tmp_path), "/home", "me/models"):
        assert private not in text


@pytest.mark.parametrize(
    "name",
    [
        "a: b.jsonl",
        "# x.jsonl",
        "[a]*.jsonl",
        "'.jsonl",
        "!x.jsonl",
        "{a}.jsonl",
        "x #y.jsonl",
        "a\nb: c.jsonl",
        "-x.jsonl",
        "a\x1b]52;c;QQ\x07\u202e\U000e0001.jsonl",
        "\U0001f642 ü.jsonl",
        '"\\.jsonl',
    ],
)
def test_a_card_can_be_read_whatever_the_file_is_called(name: str, folder: Path, tmp_path: Path) -> None:
    """As the hub reads it: YAML, and a pattern of names of files."""
    text = card(select(folder, per_prompt=1).to_dict(), "student", name)
    assert all(map(str.isprintable, text.split("\n")))
    (pattern,) = (each["data_files"] for each in yaml.safe_load(text.split("---\n")[1])["configs"])
    (tmp_path / name).touch()
    assert [each.name for each in tmp_path.glob(pattern)] == [name]


def test_pairs_and_card_are_written(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "hub" / "pairs.jsonl"
    arguments = ["select", str(folder), "--per-prompt", "1", "--pairs", "1.5", "--card", "--out", str(out)]
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 0, done.stderr
    (row,) = [json.loads(line) for line in out.read_text().splitlines()]
    assert row["chosen_id"] == "id-0002"
    text = " ".join(done.stdout.split())
    assert "1 pairs; 1 prompts with one candidate, 1 prompts with gap too small" in text
    written = "".join(done.stdout.split())
    for name in ("pairs.jsonl", "README.md"):
        assert f"written:{out.with_name(name)}" in written
    card_text = (out.parent / "README.md").read_text()
    assert "data_files: pairs.jsonl" in card_text
    assert str(tmp_path) not in card_text
    assert CliRunner().invoke(app, arguments).exit_code == 0  # its own card is replaced
    (out.parent / "README.md").write_text("mine")
    refused_card = CliRunner().invoke(app, arguments)
    assert refused_card.exit_code == 2
    assert (out.parent / "README.md").read_text() == "mine"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"pairs": 1.0}, "--pairs needs --out"),
        ({"card": True}, "--card needs --out"),
        ({"pairs": 1.0, "out": "x.parquet"}, "JSON lines"),
    ],
)
def test_pairs_and_card_need_a_file(settings: dict[str, Any], message: str, folder: Path) -> None:
    with pytest.raises(UsageError, match=message):
        select(folder, **settings)


def test_a_selections_folder_loads_as_a_dataset(folder: Path, tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    out = tmp_path / "hub" / "kept.jsonl"
    select(folder, per_prompt=1, card=True, out=out)
    loaded = datasets.load_dataset(str(out.parent), split="train", cache_dir=str(tmp_path / "cache"))
    assert loaded["id"][:] == ["id-0000", "id-0002", "id-0004"]
