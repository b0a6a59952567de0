"""`trace`: classes and boundaries against plain Python, profiles, texts, formats, accounting, and a page that runs nothing."""

from __future__ import annotations

import csv
import json
import math
import re
import shutil
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer
from typer.testing import CliRunner

import trajscore as ts
from tests.helpers.paths import ROOT
from tests.helpers.score_tables import float32, refused, trajectory, write_folder
from trajscore.cli import app
from trajscore.errors import DataError, TrajscoreError, UsageError
from trajscore.metrics.sentence_classes import FOUR_WAY, MEANINGS, THREE_WAY, classify
from trajscore.viewing.trace import trace

Row = dict[str, Any]
TOKENIZER = ROOT / "data" / "models" / "student" / "tokenizer.json"
HOSTILE = "<script>alert(1)</script>\"'><img src=x onerror=alert(2)> {{ 7*7 }} {% raw %} &lt; \x1b[2J \u202e"
runner = CliRunner()


def _class(s: float | None, t: float | None, d: float | None, alpha: float, beta: float, four: bool) -> str:
    if s is None or t is None or (four and d is None):
        return "undefined"
    if four:
        assert d is not None
        if abs(s - d) <= alpha and abs(t - d) <= alpha and abs(t - s) <= alpha:
            return "shared"
    if t - s > beta:
        return "teacher"
    if -(t - s) > beta:
        return "student"
    return "boosted" if four else "common"


def _classes(rows: list[tuple[Any, Any, Any]], alpha: float, beta: float, four: bool) -> list[str]:
    frame = pl.DataFrame(rows, schema=dict.fromkeys("std", pl.Float64), orient="row")
    third = pl.col("d") if four else None
    found = classify(pl.col("s"), pl.col("t"), third, alpha=alpha, beta=beta)
    classes: list[str] = frame.select(found).to_series().to_list()
    return classes


_probability = st.none() | st.sampled_from([0.0, 0.25, 0.375, 0.5, 0.625, 1.0]) | st.floats(0, 1)
_threshold = st.sampled_from([0.0, 0.1, 0.125, 0.25]) | st.floats(0, 0.99)


@settings(max_examples=200, deadline=None)
@given(
    rows=st.lists(st.tuples(_probability, _probability, _probability), min_size=1, max_size=8),
    alpha=_threshold,
    beta=_threshold,
    four=st.booleans(),
)
def test_classes_equal_plain_python(rows: list[Any], alpha: float, beta: float, four: bool) -> None:
    assert _classes(rows, alpha, beta, four) == [_class(s, t, d, alpha, beta, four) for s, t, d in rows]


def test_boundaries_four_way() -> None:
    """Differences of exactly alpha are shared, of exactly beta boosted; the order is shared, teacher, student, boosted."""
    rows = [
        (0.5, 0.625, 0.5, "shared"),
        (0.5, 0.75, 0.5, "boosted"),
        (0.5, 0.75 + 2.0**-52, 0.5, "teacher"),
        (0.75 + 2.0**-52, 0.5, 0.5, "student"),
        (0.75, 0.5, 0.5, "boosted"),
        (0.5, 0.5, 0.625, "shared"),
        (0.5, 0.5, 0.625 + 2.0**-52, "boosted"),
        (0.5, 0.5, 0.0, "boosted"),
    ]
    assert _classes([row[:3] for row in rows], 0.125, 0.25, True) == [row[3] for row in rows]
    # Shared comes first, even where teacher and student differ by more than beta.
    assert _classes([(0.5, 0.625, 0.5)], 0.125, 0.0, True) == ["shared"]


def test_boundaries_three_way() -> None:
    rows = [(0.5, 0.75, None), (0.5, 0.75 + 2.0**-52, None), (0.75 + 2.0**-52, 0.5, None), (0.5, 0.5, None)]
    assert _classes(rows, 0.0, 0.25, False) == ["common", "teacher", "student", "common"]


def test_differences_are_of_probabilities_and_not_of_their_logarithms() -> None:
    """The control: e^-9 against e^-5 is a ratio of 55 and a difference of 0.007."""
    assert _classes([(math.exp(-9), math.exp(-5), None)], 0.1, 0.1, False) == ["common"]


def test_nan_is_undefined() -> None:
    assert (
        _classes([(math.nan, 0.5, None), (0.5, math.nan, None), (None, 0.5, None)], 0.1, 0.1, False)
        == ["undefined"] * 3
    )


Logprobs = list[float | None] | None


def _trajectory(
    number: int,
    text: str,
    sentence: list[int],
    student: Logprobs,
    teacher: Logprobs,
    distilled: Logprobs = None,
    values: Row | None = None,
) -> Row:
    """A row whose first two input tokens are not scored; `sentence` goes on with its last index to the text's end."""
    ids = Tokenizer.from_file(str(TOKENIZER)).encode(text, add_special_tokens=False).ids
    sentence = sentence + [sentence[-1]] * (len(ids) - len(sentence))
    row = trajectory(number, [1] * len(ids), [1.0] * len(ids), sentence=sentence)
    roles = {"student": student, "teacher": teacher, "distilled": distilled}
    row |= {f"{role}_sentence_logprob": each for role, each in roles.items()}
    return row | {"input_ids": [1, 2, *ids], "positions": list(range(2, 2 + len(ids)))} | (values or {})


def _folder(path: Path, rows: list[Row], four: bool = False, part_rows: int = 4) -> Path:
    extra = ["teacher_sentence_logprob", *(["distilled_sentence_logprob"] if four else [])]
    folder = write_folder(path, rows, part_rows=part_rows, extra=extra)
    shutil.copy(TOKENIZER, folder / "tokenizer.json")
    return folder


def _sample(four: bool = False) -> list[Row]:
    def trained(*logprobs: float | None) -> Logprobs:
        return list(logprobs) if four else None

    first, second, third = [-1.0, None, -0.5], [-0.125, None, -2.0], trained(-0.125, -1.0, -2.0)
    wrong = {"correct": False, "teacher": "B"}
    return [
        _trajectory(0, "plus 3. Done now", [0, 0, 2], first, second, third, {"correct": True}),
        refused(1, "too_long"),
        _trajectory(2, "double 4.\nAnswer: 5", [0, 0, 0, 1], [-1.0, -1.0], [-1.0, -1.0], trained(-1.0, -0.25), wrong),
        _trajectory(3, "no teacher", [0], [-1.0], None),
        _trajectory(4, "Answer: 5", [0], [-1.0], [-0.25], trained(-0.25), {"correct": True}),
    ]


def _expected(rows: list[Row], four: bool) -> list[Row]:
    """One line per sentence, by loops."""
    tokenizer = Tokenizer.from_file(str(TOKENIZER))
    lines = []
    for row in rows:
        roles = ("student", "teacher", "distilled")[: 3 if four else 2]
        logprobs: list[Any] = [row.get(f"{role}_sentence_logprob") for role in roles]
        if row["status"] != "ok" or None in logprobs:
            continue
        for sentence in range(len(logprobs[0])):
            p = [None if each[sentence] is None else math.exp(float32([each[sentence]])[0]) for each in logprobs]
            tokens = [i for i, s in zip(row["positions"], row["sentence"], strict=True) if s == sentence]
            lines.append(
                {
                    "id": row["id"],
                    "prompt_id": row["prompt_id"],
                    "teacher": row["teacher"],
                    "correct": row["correct"],
                    "sentence": sentence,
                    "n_tokens": len(tokens),
                    "p_student": p[0],
                    "p_teacher": p[1],
                    "p_distilled": p[2] if four else None,
                    "class": _class(p[0], p[1], p[2] if four else None, 0.1, 0.1, four),
                    "text": tokenizer.decode([row["input_ids"][i] for i in tokens], skip_special_tokens=False),
                }
            )
    return lines


def _read(path: Path) -> list[Row]:
    if path.suffix == ".parquet":
        rows: list[Row] = pq.read_table(path).to_pylist()
        return rows
    if path.suffix == ".jsonl":
        return [json.loads(line) for line in path.read_text().splitlines()]
    with path.open(newline="") as handle:
        lines: list[Row] = list(csv.DictReader(handle))
    numbers = ("p_student", "p_teacher", "p_distilled")
    for line in lines:
        line |= {name: float(line[name]) if line[name] else None for name in numbers}
        line |= {name: int(line[name]) for name in ("sentence", "n_tokens")}
        line["correct"] = {"true": True, "false": False, "": None}[line["correct"]]
        # Text that a spreadsheet would run, or that begins with a control character, stands behind an apostrophe.
        line["text"] = re.sub(r"^'(?=[\x00-\x1f=+@-])", "", line["text"])
    return lines


@pytest.mark.parametrize("four", [False, True])
@pytest.mark.parametrize("suffix", [".parquet", ".csv", ".jsonl"])
def test_one_line_per_sentence(four: bool, suffix: str, tmp_path: Path) -> None:
    rows = _sample(four)
    path = tmp_path / f"t{suffix}"
    result = trace(_folder(tmp_path / "s", rows, four), out=path)
    expected = _expected(rows, four)
    found = _read(path)
    assert list(found[0]) == list(expected[0])
    for line, right in zip(found, expected, strict=True):
        for name in ("p_student", "p_teacher", "p_distilled"):
            ours, theirs = line.pop(name), right.pop(name)
            assert ours is None if theirs is None else ours == pytest.approx(theirs, rel=1e-12)
        assert line == right
    assert [line["class"] for line in found] == result.frame.collect()["class"].to_list()
    assert {line["class"] for line in found} >= {"teacher", "student", "undefined", "boosted" if four else "common"}
    assert result.counts == {
        name: sum(line["class"] == name for line in found) for name in (*result.classes, "undefined")
    }
    assert result.tokens == {
        name: sum(line["n_tokens"] for line in found if line["class"] == name)
        for name in (*result.classes, "undefined")
    }
    assert result.classes == (FOUR_WAY if four else THREE_WAY)


def test_rows_in_are_traced_or_dropped_with_a_reason(tmp_path: Path) -> None:
    rows = [*_sample(), _trajectory(5, "a", [0], [-1.0], [-1.0, -2.0]), _trajectory(6, "a", [3], [-1.0], [-1.0])]
    result = trace(_folder(tmp_path / "s", rows))
    assert result.dropped == {
        "refused:too_long": 1,
        "undefined:teacher_sentence_logprob": 2,
        "undefined:sentence": 1,
    }
    assert result.rows_in == 7 == result.rows_traced + sum(result.dropped.values())


def test_profile_by_place_and_correctness(tmp_path: Path) -> None:
    profile = trace(_folder(tmp_path / "s", _sample())).profile
    lines = profile.select("group", "sentence", "sentences", "teacher", "undefined", "share_teacher").rows()
    assert lines == [
        ("all", 0, 3, 2, 0, 2 / 3),
        ("all", 1, 2, 0, 1, 0.0),
        ("all", 2, 1, 0, 0, 0.0),
        ("correct", 0, 2, 2, 0, 1.0),
        ("correct", 1, 1, 0, 1, None),
        ("correct", 2, 1, 0, 0, 0.0),
        ("incorrect", 0, 1, 0, 0, 0.0),
        ("incorrect", 1, 1, 0, 0, 0.0),
    ]


def test_without_correctness_there_is_one_group(tmp_path: Path) -> None:
    rows = [{**row, "correct": None} for row in _sample()]
    assert trace(_folder(tmp_path / "s", rows)).profile["group"].unique().to_list() == ["all"]
    frame = ts.scan(tmp_path / "s").drop("correct", "teacher")
    result = trace(frame)
    assert result.profile["group"].unique().to_list() == ["all"]
    assert result.frame.collect()["correct"].is_null().all()
    odd = trace(ts.scan(tmp_path / "s").with_columns(correct=pl.lit("maybe")))
    assert odd.profile["group"].unique().to_list() == ["all"]
    assert "'maybe'" in odd.notes[0]


Pairs = list[tuple[float | None, float | None]]
_logprob = st.none() | st.floats(-3, 0, width=32)
_pairs = st.lists(st.tuples(_logprob, _logprob), min_size=1, max_size=5)
_responses = st.lists(st.tuples(_pairs, st.sampled_from([True, False, None])), min_size=1, max_size=6)
_LISTS: dict[str, Any] = {
    **dict.fromkeys(("positions", "sentence"), pl.List(pl.UInt32)),
    **dict.fromkeys(("student_sentence_logprob", "teacher_sentence_logprob"), pl.List(pl.Float32)),
    "correct": pl.Boolean,
}


@settings(max_examples=40, deadline=None)
@given(responses=_responses)
def test_profile_equals_plain_python(responses: list[tuple[Pairs, bool | None]]) -> None:
    rows, expected = [], Counter[tuple[str, int, str]]()
    names = {True: "correct", False: "incorrect", None: "unknown"}
    split = any(correct is not None for _, correct in responses)
    for number, (pairs, correct) in enumerate(responses):
        row: Row = {"id": str(number), "prompt_id": "p", "status": "ok", "correct": correct}
        row |= {"input_ids": [0, 1], "positions": [1], "sentence": [0]}
        row |= {
            f"{role}_sentence_logprob": [pair[i] for pair in pairs] for i, role in enumerate(("student", "teacher"))
        }
        rows.append(row)
        for sentence, pair in enumerate(pairs):
            s, t = (None if value is None else math.exp(value) for value in pair)
            for group in ("all", names[correct])[: 1 + split]:
                expected[group, sentence, _class(s, t, None, 0.1, 0.1, False)] += 1
    result = trace(pl.DataFrame(rows, schema_overrides=_LISTS).lazy())
    found = Counter[tuple[str, int, str]]()
    for line in result.profile.to_dicts():
        for name in (*THREE_WAY, "undefined"):
            found[line["group"], line["sentence"], name] += line[name]
    assert +found == expected


def test_part_size_and_row_order_change_nothing(tmp_path: Path) -> None:
    rows = _sample()
    one = trace(_folder(tmp_path / "one", rows, part_rows=9))
    many = trace(_folder(tmp_path / "many", rows, part_rows=1))
    back = trace(_folder(tmp_path / "back", rows[::-1], part_rows=2))
    assert one.to_dict() == many.to_dict() == back.to_dict()
    assert one.frame.collect().equals(many.frame.collect())
    assert one.frame.collect().equals(back.frame.collect().sort("id", "sentence"))


def test_thresholds_matter(tmp_path: Path) -> None:
    folder = _folder(tmp_path / "s", _sample(four=True), four=True)
    assert trace(folder, alpha=0.99, beta=0.0).counts["shared"] == 5
    assert trace(folder, alpha=0.0, beta=0.99).counts == {
        "shared": 1,
        "teacher": 0,
        "student": 0,
        "boosted": 4,
        "undefined": 1,
    }


class _Page(HTMLParser):
    """What a browser would make of a page: elements with attributes, and the text inside sentences."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


def test_a_page_shows_hostile_text_as_text(tmp_path: Path) -> None:
    row = _trajectory(0, HOSTILE, [0], [-1.0], [-0.5], values={"id": HOSTILE, "correct": True, "teacher": HOSTILE})
    write_folder(tmp_path / "s", [row, refused(1, HOSTILE)], extra=["teacher_sentence_logprob"])
    folder = tmp_path / "s"
    shutil.copy(TOKENIZER, folder / "tokenizer.json")
    trace(folder, out=tmp_path / "t.html")
    page = (tmp_path / "t.html").read_text()
    parsed = _Page(page)
    shown = HOSTILE.replace("\x1b", "␛")
    assert parsed.text.count(shown) == 4
    assert not {"script", "img", "link", "iframe", "object"} & {tag for tag, _ in parsed.elements}
    attributes = {name for _, attrs in parsed.elements for name in attrs}
    assert not [name for name in attributes if name.startswith("on") or name in ("src", "href")]
    assert "\x1b" not in page
    assert not re.search(r"https?://|url\(|@import", page)


def test_a_page_says_how_many_trajectories_it_shows(tmp_path: Path) -> None:
    folder = _folder(tmp_path / "s", _sample(four=True), four=True)
    trace(folder, out=tmp_path / "t.html", show=1)
    page = (tmp_path / "t.html").read_text()
    assert page.count("<article>") == 1
    assert "The first 1 of 3 traced" in page
    for name in (*FOUR_WAY, "undefined"):
        assert MEANINGS[name] in page
    assert "plus 3. Done now" in re.sub(r"<[^>]+>", "", page)
    assert 'name="viewport"' in page
    assert "prefers-color-scheme: dark" in page
    trace(folder, out=tmp_path / "t.html")
    assert "All 3 traced trajectories" in (tmp_path / "t.html").read_text()
    trace(folder, out=tmp_path / "t.html", show=0)
    assert "The first 0 of 3" in (tmp_path / "t.html").read_text()


def test_a_long_profile_is_cut_and_says_so(tmp_path: Path) -> None:
    row = _trajectory(0, "a" * 500, [0], [-1.0] * 150, [-1.0] * 150)
    trace(_folder(tmp_path / "s", [row]), out=tmp_path / "t.html")
    assert "The first 100 of 150 places are shown" in (tmp_path / "t.html").read_text()
    drawn = json.dumps(trace(tmp_path / "s").plot().to_dict())
    assert drawn.count("teacher") >= 100
    with pytest.raises(UsageError, match="no group 'correct'"):
        trace(tmp_path / "s").plot(group="correct")
    with pytest.raises(UsageError, match="no plot 'why'"):
        trace(tmp_path / "s").plot("why")
    assert "and 145 more places" in _run("trace", tmp_path / "s").stdout


def test_nothing_to_trace(tmp_path: Path) -> None:
    folder = _folder(tmp_path / "s", [refused(0, "too_long"), _trajectory(1, "a", [0], [-1.0], None)])
    for suffix in (".html", ".parquet", ".csv", ".jsonl"):
        result = trace(folder, out=tmp_path / f"t{suffix}")
        assert result.rows_traced == 0
        assert (tmp_path / f"t{suffix}").is_file()
    assert result.to_dict()["classes"]["teacher"] == {"sentences": 0, "tokens": 0, "share": None}
    assert _run("trace", folder).exit_code == 0


def test_text_can_be_left_out(tmp_path: Path) -> None:
    folder = _folder(tmp_path / "s", _sample())
    (folder / "tokenizer.json").unlink()
    assert "text" not in trace(folder, out=tmp_path / "t.parquet", text=False).frame.collect().columns
    assert "text" not in pq.read_schema(tmp_path / "t.parquet").names
    assert trace(folder).counts["teacher"] == 2
    with pytest.raises(DataError, match=r"tokenizer\.json"):
        trace(folder, out=tmp_path / "u.parquet")
    with pytest.raises(UsageError, match="page shows text"):
        trace(folder, out=tmp_path / "u.html", text=False)
    with pytest.raises(UsageError, match="no tokenizer"):
        trace(ts.scan(folder), out=tmp_path / "u.csv")
    assert not list(tmp_path.glob("u.*"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"alpha": -0.1}, "--alpha"),
        ({"beta": 1.0}, "--beta"),
        ({"beta": math.nan}, "--beta"),
        ({"show": -1}, "--show"),
        ({"out": "t.txt"}, "suffix"),
    ],
)
def test_wrong_settings(options: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        trace(_folder(tmp_path / "s", _sample()), **options)
    assert caught.value.exit_code == 2
    assert caught.value.hint


def test_what_is_missing_or_broken(tmp_path: Path) -> None:
    plain = write_folder(tmp_path / "plain", [trajectory(0, [1], [1.0])])
    with pytest.raises(UsageError, match="teacher_sentence_logprob") as caught:
        trace(plain)
    assert "--teacher" in caught.value.hint
    folder = _folder(tmp_path / "s", _sample())
    with pytest.raises(UsageError, match="which SCORES reads"):
        trace(folder, out=folder / "t.csv")
    (tmp_path / "file").write_text("")
    for suffix in (".csv", ".html"):
        with pytest.raises(TrajscoreError, match="cannot be written"):
            trace(folder, out=tmp_path / "file" / f"t{suffix}")
    (folder / "tokenizer.json").write_text("{")
    with pytest.raises(DataError, match="no tokenizer"):
        trace(folder, out=tmp_path / "t.csv")
    rows = [_trajectory(9, "a", [0], [-1.0], [-1.0])]
    rendering = {"rendering": {"tokenizer_sha256": "x"}}
    other = write_folder(tmp_path / "o", rows, extra=["teacher_sentence_logprob"], settings=rendering)
    with pytest.raises(UsageError, match="different tokenizers"):
        trace([folder, other], out=tmp_path / "t.csv")


def _run(*arguments: str | Path) -> Any:
    return runner.invoke(app, [str(argument) for argument in arguments], prog_name="trajscore")


def test_the_command_does_what_the_function_does(tmp_path: Path) -> None:
    folder = _folder(tmp_path / "s", _sample(four=True), four=True)
    flags = ["--alpha", "0.2", "--beta", "0.3", "--no-text", "--show", "2"]
    done = _run("trace", folder, *flags, "--out", tmp_path / "t.csv", "--json")
    assert done.exit_code == 0, done.stderr
    expected = trace(folder, alpha=0.2, beta=0.3, text=False)
    assert json.loads(done.stdout) == json.loads(json.dumps({**expected.to_dict(), "out": str(tmp_path / "t.csv")}))
    done = _run("trace", folder)
    assert "5 rows in = 3 traced + 2 dropped" in done.stdout
    assert "boosted" in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 80
    assert ts.trace is trace


@pytest.mark.parametrize("arguments", [["nowhere"], [], ["SCORES", "--beta", "2"], ["SCORES", "--out", "t.pdf"]])
def test_wrong_usage_is_exit_2_with_a_message_on_stderr(tmp_path: Path, arguments: list[str]) -> None:
    folder = _folder(tmp_path / "s", _sample())
    done = _run("trace", *[str(folder) if word == "SCORES" else word for word in arguments])
    assert done.exit_code == 2
    assert done.stdout == ""
    assert "rror: " in done.stderr
    assert "Traceback" not in done.stderr
