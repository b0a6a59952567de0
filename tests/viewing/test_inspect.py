"""`inspect`: every number at its own token, in Python, in the terminal and on the page; hostile text; every error."""

from __future__ import annotations

import json
import math
import re
import shutil
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pytest
from tokenizers import Tokenizer
from typer.testing import CliRunner

from tests.helpers.paths import MODELS
from tests.helpers.score_tables import INPUT_FIELDS, refused, trajectory, write_folder
from tests.ranking.test_page import Page
from trajscore.cli import app
from trajscore.errors import DataError, UsageError
from trajscore.viewing.inspect import inspect
from trajscore.viewing.tokens import Statistic, TokenView, statistics_of

TOKENIZER = MODELS / "student" / "tokenizer.json"
HOSTILE = "</script><script>alert(1)</script><b onclick=x>\u202egnp\x1b[2J\u2028[red]{{7*7}}&amp;"


def _row(number: int, prompt: str, answer: str, **values: Any) -> dict[str, Any]:
    """A row whose tokens are those of two texts; the prompt is not scored, and neither is the last token."""
    tokenizer = Tokenizer.from_file(str(TOKENIZER))
    before, after = (tokenizer.encode(text, add_special_tokens=False).ids for text in (prompt, answer))
    scored = range(len(before), len(before) + len(after) - 1)
    tokens = len(scored)
    row = trajectory(number, [n + 1 for n in range(tokens)], [0.25 * n for n in range(tokens)], **values)
    half = tokens // 2
    return row | {
        "input_ids": before + after,
        "positions": list(scored),
        "sentence": [0] * half + [1] * (tokens - half),
        "student_sentence_logprob": [math.log(0.5), math.log(0.2)],
        **values,
    }


@pytest.fixture
def scores(tmp_path: Path) -> Path:
    rows = [
        _row(0, "Take 2.", "2 + 3 = 5.\nAnswer: 5", id="easy", correct=True),
        _row(1, "Take 4.", "4 + 4 = 8. Answer: 8 or so", id="long", student_surprisal=None),
        _row(2, HOSTILE, HOSTILE, id=HOSTILE, teacher=HOSTILE, prompt_id=HOSTILE),
        refused(3, "too_long", id="refused"),
    ]
    rows[1]["student_surprisal"] = [9.0] * rows[1]["n_tokens"]
    folder = write_folder(tmp_path / "scores", rows)
    shutil.copy(TOKENIZER, folder)
    return folder


def _run(*arguments: object) -> Any:
    return CliRunner(env={"COLUMNS": "100", "NO_COLOR": "1"}).invoke(app, [str(each) for each in arguments])


def test_every_value_belongs_to_its_token(scores: Path) -> None:
    (view,) = inspect(scores, "easy").views
    assert "".join(view.texts) == "Take 2.2 + 3 = 5.\nAnswer: 5"
    unscored = "".join(text for place, text in enumerate(view.texts) if place not in view.positions)
    assert unscored.startswith("Take 2.")
    assert "".join(view.texts[place] for place in view.positions) == "2 + 3 = 5.\nAnswer: 5"[: -len(view.texts[-1])]
    pieces = view.pieces("student_rank")
    assert pieces[0] == ("Take 2.", None, None)
    assert [number for _, number, _ in pieces if number is not None] == list(range(len(view.positions)))
    for text, number, level in pieces:
        if number is not None:
            assert text == view.texts[view.positions[number]]
            # Ranks are 1, 2, 3, ...; thresholds 2 3 6 11 31 101 1001.
            assert level == sum(number + 1 >= each for each in (2, 3, 6, 11, 31, 101, 1001))
    assert "".join(text for text, _, _ in pieces) == "".join(view.texts)


def test_columns_of_the_corpus_are_not_read(tmp_path: Path) -> None:
    fields = [*INPUT_FIELDS, pa.field("day", pa.date32())]  # 10^8 days are more years than Python knows
    folder = write_folder(tmp_path / "s", [_row(0, "Take 2.", "2", id="a", day=10**8)], input_fields=fields)
    shutil.copy(TOKENIZER, folder)
    assert inspect(folder, "a").views[0].id == "a"


def test_sentence_statistics_and_classes_by_hand() -> None:
    row = {
        "status": "ok",
        "student_rank": [1, 1, 1, 1],
        "sentence": [0, 0, 1, 2],
        "student_sentence_logprob": [math.log(0.5), math.log(0.2), math.log(0.55)],
        "teacher_sentence_logprob": [math.log(0.55), math.log(0.6), None],
    }
    found = statistics_of(row)
    assert found["teacher_sentence_logprob"].values == (math.log(0.55), math.log(0.55), math.log(0.6), None)
    # 0.05 apart: common; 0.4 for the teacher; undefined.
    assert found["sentence_class"].values == (0, 0, 1, None)
    swapped = row | {
        "student_sentence_logprob": row["teacher_sentence_logprob"],
        "teacher_sentence_logprob": row["student_sentence_logprob"],
    }
    assert statistics_of(swapped)["sentence_class"].values == (0, 0, 2, None)
    assert statistics_of({**row, "status": "too_long"}) == {}


def test_levels() -> None:
    surprisal = Statistic("s", "nats", "", (), (0.1, 0.5, 1.0, 2.0, 4.0, 7.0, 10.0))
    assert [surprisal.level(value) for value in (0.0, 0.1, 3.9, -4.0, 99.0)] == [0, 1, 4, 5, 7]
    assert [surprisal.level(value) for value in (None, float("nan"), float("inf"))] == [None] * 3
    assert len(surprisal.labels) == 8


def test_refused_rows_say_why(scores: Path) -> None:
    (view,) = inspect(scores, "refused").views
    assert (view.texts, view.positions, view.statistics) == ((), (), {})
    shown = _run("inspect", scores, "--id", "refused")
    assert shown.exit_code == 0, shown.stderr
    assert "refused: too_long" in shown.stdout


def test_worst_and_best_follow_the_metrics_direction(scores: Path) -> None:
    def rsr(view: TokenView) -> float:
        return view.metrics["rsr"] or 0.0

    best, worst = inspect(scores, best=2).views, inspect(scores, worst=9).views
    assert rsr(best[0]) <= rsr(best[1])
    assert [view.id for view in worst][::-1][:2] == [view.id for view in best]
    assert len(worst) == 3
    by_length = inspect(scores, best=1, metric="length").views
    assert by_length[0].id == HOSTILE


def test_ties_go_to_the_lower_id(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "s", [_row(n, "Take 1.", "1 + 1 = 2. ", id=name) for n, name in enumerate("cab")])
    shutil.copy(TOKENIZER, folder)
    assert [view.id for view in inspect(folder, best=2).views] == ["a", "b"]
    assert [view.id for view in inspect(folder, worst=2).views] == ["a", "b"]


def test_terminal_shows_hostile_text_as_text(scores: Path) -> None:
    shown = _run("inspect", scores, "--id", HOSTILE, "--numbers")
    assert shown.exit_code == 0, shown.stderr
    joined = shown.stdout.replace("\n", "")
    assert "\\u202egnp\\x1b[2J\\u2028[red]{{7*7}}&amp;" in joined
    assert not {"\u202e", "\x1b", "\u2028"} & set(shown.stdout)


def _page(path: Path) -> tuple[Page, str]:
    text = path.read_text("utf-8")
    # The two scripts are read by a browser as raw text; HTMLParser does the same.
    seen = Page(text)
    assert seen.open == []
    assert seen.count("script") == 2
    assert not any(name.startswith("on") for _, attributes in seen.elements for name in attributes)
    assert not any(name in ("src", "href") for _, attributes in seen.elements for name in attributes)
    return seen, text


def test_page_shows_hostile_text_as_text_and_every_number(scores: Path, tmp_path: Path) -> None:
    made = inspect(scores, ["easy", HOSTILE, "refused"], by="rank", out=tmp_path / "i.html")
    seen, text = _page(tmp_path / "i.html")
    assert "\u202e" not in text
    assert "\x1b" not in text
    assert "<script>alert(1)</script><b onclick=x>\\u202egnp" in seen.text
    (data,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', text, re.DOTALL)
    values = json.loads(data)["views"]
    for view, stored in zip(made.views, values, strict=True):
        assert stored["positions"] == list(view.positions)
        for name, statistic in view.statistics.items():
            assert stored["values"][name] == pytest.approx(statistic.values, rel=1e-5)
    spans = [attributes for tag, attributes in seen.elements if tag == "span" and "data-i" in attributes]
    assert len(spans) == sum(len(view.positions) for view in made.views)
    levels = [int(str(each["class"])[-1]) for each in spans[: len(made.views[0].positions)]]
    assert levels == [level for _, number, level in made.views[0].pieces("student_rank") if number is not None]


def test_the_pages_policy_allows_its_own_script_only(scores: Path, tmp_path: Path) -> None:
    import base64
    import hashlib

    inspect(scores, "easy", out=tmp_path / "i.html")
    text = (tmp_path / "i.html").read_text("utf-8")
    (script,) = re.findall(r"<script>(.*?)</script>", text, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in text
    assert "default-src 'none'" in text


def test_masks_colour_tokens(scores: Path, tmp_path: Path) -> None:
    row = pl.read_parquet(scores / "part-00000.parquet").filter(pl.col("id") == "easy").row(0, named=True)
    labels = [-100] * len(row["input_ids"])
    labels[row["positions"][1]] = row["input_ids"][row["positions"][1]]
    lines = pl.DataFrame({"id": ["easy"], "input_ids": [row["input_ids"]], "labels": [labels]})
    lines.write_parquet(tmp_path / "m.parquet")
    (view,) = inspect(scores, "easy", by="mask", mask=tmp_path / "m.parquet").views
    assert view.statistics["mask"].values == (0.0, 1.0, *[0.0] * (len(view.positions) - 2))
    soft = lines.with_columns(loss_weight=pl.Series([[0.5] * len(labels)]))
    soft.write_ndjson(tmp_path / "m.jsonl")
    (view,) = inspect(scores, "easy", by="mask", mask=tmp_path / "m.jsonl").views
    assert set(view.statistics["mask"].values) == {0.5}
    for wrong, message in (
        (lines.with_columns(id=pl.lit("other")), "holds no mask"),
        (lines.with_columns(input_ids=pl.Series([[1, 2]])), "other tokens"),
    ):
        wrong.write_parquet(tmp_path / "m.parquet")
        with pytest.raises(UsageError, match=message):
            inspect(scores, "easy", mask=tmp_path / "m.parquet")
    (tmp_path / "m.parquet").write_text("no")
    with pytest.raises(DataError, match="cannot be read"):
        inspect(scores, "easy", mask=tmp_path / "m.parquet")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "one of --id, --worst and --best"),
        ({"id": "easy", "best": 1}, "one of --id"),
        ({"id": "esay"}, "Did you mean easy"),
        ({"id": "qqqqqqqqqqqq"}, "There are 4 others"),
        ({"worst": 0}, "at least 1"),
        ({"id": "easy", "by": "surprise"}, "--by surprise"),
        ({"id": "easy", "by": "kl_student_teacher"}, "no such statistic"),
        ({"best": 1, "metric": "rrs"}, "rsr"),
        ({"id": "easy", "out": "x.txt"}, "--out"),
    ],
)
def test_wrong_usage(scores: Path, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        inspect(scores, **settings)
    assert caught.value.exit_code == 2


def test_without_tokenizer_it_says_what_to_do(scores: Path) -> None:
    (scores / "tokenizer.json").unlink()
    done = _run("inspect", scores, "--id", "easy")
    assert done.exit_code == 1
    assert "Score the corpus again" in done.stderr
    assert "Traceback" not in done.stderr


def test_command_gives_what_the_function_gives(scores: Path, tmp_path: Path) -> None:
    done = _run(
        "inspect", scores, "--id", "easy", "--id", "long", "--by", "entropy", "--out", tmp_path / "i.html", "--json"
    )
    assert done.exit_code == 0, done.stderr
    made = inspect(scores, ["easy", "long"], by="entropy")
    assert json.loads(done.stdout) == json.loads(json.dumps(made.to_dict()))
    assert (tmp_path / "i.html").stat().st_size > 0
    shown = _run("inspect", scores, "--id", "easy", "--by", "rank")
    assert "student_rank" in shown.stdout
    assert "≥ 1001" in shown.stdout
    assert "2 + 3 = 5." in shown.stdout
