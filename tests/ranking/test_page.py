"""The page, the CSV and the profiles behind them: numbers against plain Python, hostile text, empties, several students."""

from __future__ import annotations

import base64
import csv
import hashlib
import io
import json
import re
import time
from html.parser import HTMLParser
from math import fsum
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import polars as pl
import pytest
from rich.console import Console

from tests.helpers.paths import ROOT
from tests.helpers.score_tables import random_rows, refused, trajectory, write_folder
from trajscore.display import charts
from trajscore.display.charts import Axis, axis_of
from trajscore.display.pages import TEMPLATES
from trajscore.errors import UsageError
from trajscore.metrics import METRICS, find
from trajscore.ranking import figures, profiles
from trajscore.ranking.report import report
from trajscore.ranking.terminal import report_tables

HOSTILE = (
    "</title><script>alert(1)</script><img src=//x.example/a onerror=alert(2)>\u202egnp.exe\x1b[2J & \"quoted' {{7*7}}"
)
VOID = {"meta", "img", "br", "link", "input"}


class Page(HTMLParser):
    """What a browser would see: elements with their attributes, text, and whether every element is closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.open: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, tag

    def handle_data(self, data: str) -> None:
        if not self.open or self.open[-1] not in ("style", "script"):
            self.text += data

    def count(self, tag: str) -> int:
        return sum(each == tag for each, _ in self.elements)


def page(path: Path) -> Page:
    text = path.read_text("utf-8")
    seen = Page(text)
    assert seen.open == []
    # One script, of ours, which the page's policy names by its hash.
    assert seen.count("script") == 1
    code = (TEMPLATES / "table.js").read_text().strip()
    assert f"<script>{code}</script>" in text
    assert f"script-src 'sha256-{base64.b64encode(hashlib.sha256(code.encode()).digest()).decode()}'" in text
    assert seen.count("img") == seen.count("link") == seen.count("iframe") == 0
    for _, attributes in seen.elements:
        assert not any(name.startswith("on") for name in attributes)
        assert not [
            value for name, value in attributes.items() if name in ("src", "href") and not str(value).startswith("#")
        ]
    assert not re.search(r"url\(|@import", text)
    ids = [attributes["id"] for _, attributes in seen.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    targets = {str(attributes["href"])[1:] for _, attributes in seen.elements if "href" in attributes}
    assert targets <= set(ids)
    return seen


def with_phases(rows: list[dict[str, Any]]) -> tuple[list[dict[str, Any]], pl.LazyFrame]:
    """Rows with a phase per token: the first third thinking, one marker, the rest answer."""
    for row in rows:
        tokens = row["n_tokens"]
        row["phase"] = None if tokens is None else [0] * (tokens // 3) + [1] + [2] * (tokens - tokens // 3 - 1)
    keep = (
        "id",
        "prompt_id",
        "teacher",
        "status",
        "n_tokens",
        "student_rank",
        "student_surprisal",
        "student_entropy",
        "phase",
    )
    frame = pl.LazyFrame(
        [{name: row[name] for name in keep} for row in rows],
        schema_overrides={"phase": pl.List(pl.UInt8), "student_rank": pl.List(pl.UInt32)},
        infer_schema_length=None,
    )
    return rows, frame


def _oracle(rows: list[dict[str, Any]], teacher: str, chosen: Any) -> dict[str, tuple[float | None, int]]:
    """rsr, rank and surprisal over the tokens that `chosen(index, row)` picks, as ratios of sums of means."""
    terms: dict[str, list[tuple[float, float]]] = {"rsr": [], "rank": [], "surprisal": []}
    for row in rows:
        if row["status"] != "ok" or (row["teacher"] or "(unknown)") != teacher:
            continue
        places = [index for index in range(row["n_tokens"]) if chosen(index, row)]
        if not places:
            continue
        rank = fsum(min(row["student_rank"][i], 100) for i in places) / len(places)
        surprisal = fsum(row["student_surprisal"][i] for i in places) / len(places)
        terms["rank"].append((rank, 1.0))
        terms["surprisal"].append((surprisal, 1.0))
        if surprisal > 0:
            terms["rsr"].append((rank, surprisal))
    return {
        name: (fsum(n for n, _ in pairs) / fsum(d for _, d in pairs) if pairs else None, len(pairs))
        for name, pairs in terms.items()
    }


def test_metrics_along_the_trajectory_and_by_phase_equal_plain_python() -> None:
    rows, frame = with_phases(random_rows(90, seed=2))
    made = report(frame, replicates=20).students[0]
    for teacher in ("A", "B", "(unknown)"):
        for part in range(1, 11):
            expected = _oracle(rows, teacher, lambda i, row, part=part: 10 * i // row["n_tokens"] == part - 1)
            found = {p.metric: p for p in made.positions if p.teacher == teacher and p.part == str(part)}
            for name, (value, count) in expected.items():
                assert found[name].value == (None if value is None else pytest.approx(value, rel=1e-6))
                assert found[name].rows == count
        for phase, code in (("thinking", 0), ("answer", 2)):
            expected = _oracle(rows, teacher, lambda i, row, code=code: row["phase"][i] == code)
            found = {p.metric: p for p in made.phases if p.teacher == teacher and p.part == phase}
            for name, (value, count) in expected.items():
                assert found[name].value == (None if value is None else pytest.approx(value, rel=1e-6))
                assert found[name].rows == count
    # Control: the parts differ from the whole.
    whole = {line.teacher: line.metrics["rsr"].value for line in made.ranking.lines}
    assert all(p.value != pytest.approx(whole[p.teacher]) for p in made.positions if p.metric == "rsr")


def test_what_is_held_at_once_changes_no_number(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows that are followed come batch by batch, and replicates teacher by teacher, where memory asks for it."""
    rows, _ = with_phases(random_rows(90, seed=2))
    folder = write_folder(tmp_path / "s", rows, part_rows=20)
    whole = report(folder, replicates=20).to_dict()
    monkeypatch.setattr("trajscore.metrics.measure._SEEN", 1)
    monkeypatch.setattr("trajscore.ranking.ranking._REPLICATED", 1)
    assert report(folder, replicates=20).to_dict() == whole


def test_every_token_lies_in_one_tenth() -> None:
    for tokens in (1, 2, 9, 10, 11, 57):
        frame = pl.DataFrame({"teacher": ["T"], "student_rank": [[n + 1 for n in range(tokens)]]})
        means = profiles.parts_of(frame, find(["rank"]))["rank:numerator"].to_list()
        expected: list[float | None] = []
        for tenth in range(10):
            inside = [n + 1 for n in range(tokens) if 10 * n // tokens == tenth]
            expected.append(fsum(inside) / len(inside) if inside else None)
        assert means == expected


def test_metrics_with_other_gaps_still_pair_where_both_are_defined() -> None:
    """`certain` rows have a surprisal and no rsr: the pair rests on the other rows, by hand."""
    rows = [
        trajectory(0, [1], [0.0], prompt_id="p0"),
        trajectory(1, [4], [1.0], prompt_id="p1"),
        trajectory(2, [4], [2.0], prompt_id="p2"),
        trajectory(3, [9], [3.0], prompt_id="p3"),
    ]
    made = report(pl.LazyFrame(rows, infer_schema_length=None).drop("messages"), replicates=9).students[0]
    pair = next(p for p in made.pairs if (p.left, p.right) == ("rsr", "surprisal"))
    # rsr 4, 2, 3 against surprisal 1, 2, 3: ranks 3 1 2 and 1 2 3, so 1 - 6 (4 + 1 + 1) / 24.
    assert pair.over_trajectories == pytest.approx(-0.5)


@pytest.mark.slow
def test_two_million_tokens_make_a_small_page_soon(tmp_path: Path) -> None:
    """Sizes and times are those of the promise: 5 MB, 20 s on two cores."""
    draw = np.random.default_rng(0)
    rows = []
    for number in range(2000):
        surprisals = draw.gamma(0.5, 1.3, 1000).round(4)
        ranks = np.exp(surprisals * draw.random(1000)).astype(int) + 1
        names: dict[str, Any] = {"prompt_id": f"p{number // 10}", "teacher": f"teacher-{number % 10}"}
        rows.append(trajectory(number, ranks.tolist(), surprisals.tolist(), **names))
    folder = write_folder(tmp_path / "s", rows, part_rows=500)
    start = time.process_time()
    report(folder, plan=True, out=tmp_path / "r.html", csv=tmp_path / "r.csv")
    assert time.process_time() - start < 20
    assert (tmp_path / "r.html").stat().st_size < 5e6


def test_a_row_whose_phases_do_not_match_has_no_phase() -> None:
    frame = pl.DataFrame(
        {"teacher": ["T"] * 4, "student_rank": [[1, 2], [1, 2], [1], [5]], "phase": [[0], None, [2], [7]]},
        schema_overrides={"phase": pl.List(pl.UInt8)},
    )
    found = profiles.parts_of(frame, find(["rank"])).filter(pl.col("part").is_in(["thinking", "answer"]))
    assert found["rank:numerator"].to_list() == [None, None, None, None, None, 1.0, None, None]


def test_phases_that_alternate_are_gathered() -> None:
    frame = pl.DataFrame({"teacher": ["T"] * 2, "student_rank": [[9, 2, 8, 4], [5]], "phase": [[2, 0, 2, 0], [0]]})
    found = profiles.parts_of(frame, find(["rank"])).filter(pl.col("part").is_in(["thinking", "answer"]))
    assert found["rank:numerator"].to_list() == [3.0, 8.5, 5.0, None]


def test_distributions_and_agreement_of_metrics() -> None:
    rows = [trajectory(n, [2 * n + 1] * 2, [1.0, float(n)], teacher="T", prompt_id=f"p{n}") for n in range(1, 6)]
    made = report(pl.LazyFrame(rows, infer_schema_length=None).drop("messages"), replicates=20).students[0]
    (rank,) = [each for each in made.distributions if each.metric == "rank"]
    assert rank.rows == 5
    assert rank.quantiles == pytest.approx((3.4, 5.0, 7.0, 9.0, 10.6))
    pair = next(p for p in made.pairs if (p.left, p.right) == ("surprisal", "rank"))
    assert pair.over_teachers is None
    assert pair.over_trajectories == pytest.approx(1.0)
    # Lower surprisal is better, higher length is better: what rises together disagrees.
    length = next(p for p in made.pairs if p.right == "length" and p.left == "rank")
    assert length.over_trajectories is None


@pytest.mark.parametrize(("teachers", "known"), [(3, False), (4, True)])
def test_metrics_agree_over_four_teachers_or_more(teachers: int, known: bool) -> None:
    """Three rank alike by chance too often: the page said -1.00 of them."""
    rows = [
        trajectory(n, [n % teachers + 2] * 2, [1.0, n % teachers + 1.0], teacher=f"T{n % teachers}", prompt_id=f"p{n}")
        for n in range(12)
    ]
    made = report(pl.LazyFrame(rows, infer_schema_length=None).drop("messages"), replicates=20).students[0]
    pair = next(p for p in made.pairs if (p.left, p.right) == ("surprisal", "rank"))
    assert pair.over_teachers == (pytest.approx(1.0) if known else None)
    assert pair.over_trajectories == pytest.approx(1.0)


def test_page_of_the_shipped_kind_of_corpus(tmp_path: Path) -> None:
    _, frame = with_phases(random_rows(120, seed=5, teachers=("A", "B", "C", "D")))
    made = report(frame, replicates=50, plan=True, out=tmp_path / "r.html")
    seen = page(tmp_path / "r.html")
    for line in made.students[0].ranking.lines:
        assert line.teacher in seen.text
    assert made.students[0].recommendation.sentence in seen.text
    for words in (
        "Thinking and answer",
        "rsr (1/nats)",
        "surprisal (nats)",
        "position in the trajectory (tenths",
        "How many",
    ):
        assert words in seen.text
    # Every drawing says what it shows.
    assert all(attributes.get("aria-label") for tag, attributes in seen.elements if tag == "svg")


def test_the_student_stands_as_code_and_metrics_without_values_by_name(tmp_path: Path) -> None:
    """No column, table or line of dashes for a metric that no row has, and none of the terminal's backticks."""
    rows = [
        trajectory(n, [n + 1, 3], [1.0 + n % 3, 2.0], teacher="ABCDE"[n % 5], prompt_id=f"p{n // 5}", phase=[2, 2])
        for n in range(45)
    ]
    folder = write_folder(tmp_path / "s", rows, student="a`b")
    report(folder, replicates=20, metrics=["rsr", "rank", "length", "phase_entropy"], out=tmp_path / "r.html")
    text = (tmp_path / "r.html").read_text("utf-8")
    assert "your student (<code>a`b</code>)" in text
    assert "(`" not in text
    seen = page(tmp_path / "r.html")
    assert "No trajectory has a value of phase_entropy." in seen.text
    assert "Too few different values for a correlation: length, phase_entropy." in seen.text
    assert 'class="scroll tall"' not in text
    assert text.count(">phase_entropy<") == 0
    assert text.count(">rank<") > 2, "the control: it has values, in tables and in the agreement"
    # The switch hides what follows the fifth column.
    heads = text.split('class="data sortable five"')[1].split("</thead>")[0].count("<th ")
    assert heads == 5 + 2 + 3


def test_every_axis_has_its_unit() -> None:
    from trajscore.ranking.figures import axis_label

    for metric in METRICS.values():
        assert axis_label(metric.name) == f"{metric.name} ({metric.unit or 'no unit'})"


def test_the_same_report_gives_the_same_page(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "s", random_rows(60, seed=1))
    report(folder, replicates=50, out=tmp_path / "a.html", csv=tmp_path / "a.csv")
    report(folder, replicates=50, out=tmp_path / "b.html", csv=tmp_path / "b.csv")
    assert (tmp_path / "a.html").read_bytes() == (tmp_path / "b.html").read_bytes()
    assert (tmp_path / "a.csv").read_bytes() == (tmp_path / "b.csv").read_bytes()


def test_hostile_text_is_text(tmp_path: Path) -> None:
    rows = [
        trajectory(n, [n + 1, 3], [1.0, 2.0], teacher=f"{HOSTILE}{n % 3}", prompt_id=f"{HOSTILE}{n}", status="ok")
        for n in range(30)
    ]
    rows.append(refused(99, HOSTILE, teacher=f"{HOSTILE}0"))
    folder = write_folder(tmp_path / "s", rows, student=HOSTILE)
    scores = "student,teacher,score\n" + "".join(
        f'"{HOSTILE}","{HOSTILE}{n}",{n}\n'.replace('"quoted', '""quoted') for n in range(3)
    )
    (tmp_path / "p.csv").write_text(scores)
    report(folder, replicates=20, performance=tmp_path / "p.csv", plan=True, out=tmp_path / "r.html")
    seen = page(tmp_path / "r.html")
    assert "<script>alert(1)</script><img src=//x.example/a onerror=alert(2)>" in seen.text
    assert "{{7*7}}" in seen.text
    assert "\\u202egnp.exe\\x1b[2J" in seen.text
    assert "\u202e" not in (tmp_path / "r.html").read_text("utf-8")
    assert "\x1b" not in (tmp_path / "r.html").read_text("utf-8")


def test_several_students(tmp_path: Path) -> None:
    rows = random_rows(60, seed=4)
    one = write_folder(tmp_path / "one", rows[:30], student="S1")
    rest = write_folder(tmp_path / "rest", rows[30:], student="S1")
    two = write_folder(tmp_path / "two", random_rows(60, seed=5), student="S2")
    made = report([one, two, rest], replicates=20, out=tmp_path / "r.html")
    assert [each.student for each in made.students] == ["S1", "S2"]
    assert made.students[0].ranking == report([one, rest], replicates=20).ranking
    assert set(made.values) == {"S1", "S2"}
    assert "Teachers and students" in page(tmp_path / "r.html").text


def test_one_name_for_two_models_is_refused(tmp_path: Path) -> None:
    one, two = (write_folder(tmp_path / name, random_rows(9)) for name in "ab")
    manifest = two / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"main"', '"v2"'))
    with pytest.raises(UsageError, match="revision: was 'main', now 'v2'"):
        report([one, two])


@pytest.mark.parametrize(
    "rows",
    [
        [refused(0, "too_long"), refused(1, "empty_response")],
        [trajectory(0, [1], [0.0])],
        [trajectory(n, [1], [0.0], teacher=t) for n, t in enumerate("ABC")],
        [trajectory(0, [], [], n_tokens=0)],
    ],
    ids=["refused", "one certain token", "constant", "empty"],
)
def test_pages_with_hardly_anything_to_show(rows: list[dict[str, Any]], tmp_path: Path) -> None:
    report(
        write_folder(tmp_path / "s", rows), replicates=20, plan=True, out=tmp_path / "r.html", csv=tmp_path / "r.csv"
    )
    page(tmp_path / "r.html")


def test_csv_holds_what_the_json_holds(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "s", random_rows(80, seed=3))
    (tmp_path / "p.csv").write_text("student,teacher,score\nstudent-1b,A,1\nstudent-1b,B,2\nstudent-1b,(unknown),4\n")
    made = report(folder, replicates=20, plan=True, performance=tmp_path / "p.csv", tidy=tmp_path / "r.csv")
    with (tmp_path / "r.csv").open(newline="") as handle:
        lines = list(csv.DictReader(handle))
    assert list(lines[0]) == ["section", "student", "teacher", "metric", "part", "quantity", "value"]
    named = {tuple(line[key] for key in list(line)[:-1]): line["value"] for line in lines}
    assert len(named) == len(lines), "every number has a name of its own"
    rsr = {line.teacher: line.metrics["rsr"] for line in made.students[0].ranking.lines}
    for teacher, each in rsr.items():
        assert float(named["ranking", "student-1b", teacher, "rsr", "", "lines.metrics.value"]) == each.value
        assert float(named["ranking", "student-1b", teacher, "rsr", "", "lines.metrics.high"]) == each.high
        assert float(named["values", "student-1b", teacher, "rsr", "", "values"]) == each.value
    assert float(named["performance", "student-1b", "B", "", "", "performance"]) == 2.0
    for part in made.students[0].positions:
        value = named["positions", "student-1b", part.teacher, part.metric, part.part, "value"]
        assert value == ("" if part.value is None else str(part.value))

    def scalars(value: Any) -> int:
        if isinstance(value, dict):
            return sum(scalars(each) for each in value.values())
        return sum(scalars(each) for each in value) if isinstance(value, list) else 1

    assert len(lines) <= scalars(json.loads(json.dumps(made.to_dict())))
    numbers = re.findall(r"-?\d+\.\d{9,}(?:e-?\d+)?", json.dumps(made.to_dict()))
    assert set(map(float, numbers)) <= {float(v) for v in named.values() if re.fullmatch(r"-?\d+\.\d+(e-?\d+)?", v)}


@pytest.mark.parametrize(("where", "message"), [({"out": "r.pdf"}, "--out"), ({"csv": "r.html"}, "--csv")])
def test_wrong_suffixes_write_nothing(where: dict[str, str], message: str, tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "s", random_rows(9))
    with pytest.raises(UsageError, match=message):
        report(folder, **{key: tmp_path / value for key, value in where.items()})  # type: ignore[arg-type]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["s"]


def test_a_plan_of_a_table_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--plan"):
        report(table=tmp_path / "t.csv", plan=True)


def test_published_tables_give_the_papers_correlations_on_a_page(tmp_path: Path) -> None:
    """The numbers of arXiv 2601.14249 that ship in data/published give what its Table 4 prints."""
    folder = ROOT / "data" / "published"
    made = report(table=folder / "metrics.csv", performance=folder / "scores.csv", out=tmp_path / "r.html")
    found = {(line.student, line.metric): line for line in made.correlations}
    for student, printed in zip(made.values, (0.855, 0.845, 0.918, 0.818, 0.845), strict=True):
        line = found[student, "rsr"]
        assert line.agreement == pytest.approx(printed, abs=0.035)
        assert line.spearman_interval is not None
        assert line.spearman is not None
        assert -1 <= line.spearman_interval[0] <= line.spearman <= line.spearman_interval[1] <= 1
        assert line.kendall is not None
    # The paper's averages over students, arXiv 2601.14249, Table 4, signed as methods there are: lower is better is negative.
    for metric, printed in (
        ("rsr", -0.856), ("mean_surprisal", -0.49), ("mean_rank", -0.59), ("g_norm", -0.55), ("grace", -0.59),
        ("mean_token_length", 0.53), ("verified_accuracy", 0.33), ("llm_judged_quality", 0.52), ("rule_based_quality", 0.65),
    ):  # fmt: skip
        assert found["(mean)", metric].spearman == pytest.approx(printed, abs=0.035), metric
    seen = page(tmp_path / "r.html")
    assert seen.count("svg") == 5 * 3  # of each student the three metrics that agree best
    console = Console(file=io.StringIO(), width=80)
    console.print(*report_tables(made), sep="\n")
    lines = console.file.getvalue().splitlines()  # type: ignore[attr-defined]
    assert len(lines) <= 40
    assert all(sum(line.startswith(f"{metric} ") for line in lines) == 1 for metric in made.metrics if metric != "rsr")
    assert lines[-1] == made.best_predictor
    assert made.best_predictor == "rsr predicts best here: mean 0.85 over 5 students."
    assert "QwQ-32B" in seen.text


def test_axes() -> None:
    assert axis_of([None, float("nan")], "x") is None
    constant = axis_of([2.0], "x")
    assert constant is not None
    assert constant.low < 2.0 < constant.high
    wide = axis_of([0.001, 5000.0], "x")
    assert wide is not None
    assert wide.log
    assert axis_of([-3.0, 3.0], "x") == Axis(-3.3, 3.3, "x")
    assert axis_of([-1.0, 3.0], "x", log=True) == Axis(-1.2, 3.2, "x")  # no logarithm of what is not positive


@pytest.mark.parametrize("low", [1e-6, 0.02, 0.9, 1.0, 2.6, 7.0, 95.0, 4e5])
@pytest.mark.parametrize("factor", [1.001, 1.05, 1.5, 2.0, 9.0, 30.0, 1e3, 1e7])
@pytest.mark.parametrize("log", [False, True])
def test_every_range_has_ticks(low: float, factor: float, log: bool) -> None:
    """A log axis from 2.6 to 4, the range of real models, had one tick."""
    axis = Axis(low, low * factor, "x", log)
    assert 3 <= len(axis.ticks) <= 8
    assert all(axis.low <= tick <= axis.high * (1 + 1e-9) for tick in axis.ticks)
    assert axis.ticks == sorted(set(axis.ticks))


def test_marks_bear_their_values_and_no_markup() -> None:
    rows = [{"name": HOSTILE, "value": 3.0, "low": 2.5, "high": 3.5}]
    drawn = charts.to_svg(charts.intervals(rows, Axis(2, 4, "rsr"), "what it shows"))
    root = ElementTree.fromstring(drawn)  # noqa: S314 - ours
    assert (root.get("role"), root.get("aria-label")) == ("img", "what it shows")
    titles = [element.text or "" for element in root.iter("title")]
    assert any("rsr: 3" in title and "<script>alert(1)</script>" in title for title in titles)
    assert not {element.tag for element in root.iter()} & {"script", "img", "image", "foreignObject", "a"}
    assert not any(name.startswith("on") or "href" in name for element in root.iter() for name in element.attrib)
    # Control: the values are where they belong; 3 lies in the middle between 2.5 and 3.5.
    assert "\u202e" not in drawn


def test_very_long_names_are_drawn_without_their_middle() -> None:
    rows = [{"name": f"{end}{'x' * 70_000}{end}", "value": 3.0, "low": 2.5, "high": 3.5} for end in "ab"]
    drawn = charts.to_svg(charts.intervals(rows, Axis(2, 4, "rsr"), "what it shows"))
    assert all(f"{'x' * 18}{end}" in drawn for end in "ab"), "names that differ at an end still differ"
    assert len(drawn) < 20_000


def test_pictures_of_many_teachers_have_the_axes_of_those_they_show(tmp_path: Path) -> None:
    """The 45th teacher, far off, is in the table and on no axis; names that differ at their end stay apart on a phone."""
    rows = [
        trajectory(n, [2 + n], [1.0], prompt_id="p", teacher=f"a-teacher-of-a-long-name-{n:02d}") for n in range(44)
    ]
    folder = write_folder(tmp_path / "s", [*rows, trajectory(44, [99], [0.01], prompt_id="p", teacher="far")])
    made = report(folder, metrics=["rsr", "rank", "surprisal"], replicates=9, out=tmp_path / "r.html")
    for name in ("ranking", "distribution"):
        axis = figures.plot(made, name).to_dict()["layer"][0]["encoding"]["x"]["scale"]["domain"]
        assert axis[1] < 60
    upwards = figures.plot(made, "why").to_dict()["layer"][-1]["encoding"]["y"]["scale"]["domain"]
    assert upwards[1] < 2 + figures.POINTS + 2
    text = page(tmp_path / "r.html").text
    assert "far" in text
    assert 'class="scroll tall"' in (tmp_path / "r.html").read_text("utf-8")
    assert "The picture shows the first 20 of 45" in text
    assert "interval from" not in text
    assert "% intervals." not in text
    drawn = charts.to_svg(figures.plot(made, "ranking", width=charts.NARROW))
    assert "a-teach…a-long-name-00" in drawn
    assert "a-teach…a-long-name-39" in drawn


def test_pictures_can_be_taken_along(tmp_path: Path) -> None:
    _, frame = with_phases(random_rows(60, seed=5))
    made = report(frame, replicates=20, plan=True)
    assert {"ranking", "why", "distribution", "position", "phase"} <= set(figures.available(made))
    for suffix, start in (("svg", b"<svg"), ("pdf", b"%PDF"), ("png", b"\x89PNG")):
        made.plot("why").save(tmp_path / f"why.{suffix}")
        assert (tmp_path / f"why.{suffix}").read_bytes().startswith(start)
    for chart in (made.plot("why"), made.plot("ranking").properties(width=300)):
        chart.save(tmp_path / "c.html")
        assert not re.search(
            r"<(script|link)[^>]* (src|href)=|import[ (][^;]*https:", (tmp_path / "c.html").read_text("utf-8")
        )
    with pytest.raises(UsageError, match="no plot 'wy'"):
        made.plot("wy")
    with pytest.raises(UsageError, match="no numbers for the plot 'students'"):
        made.plot("students")


def test_csv_is_the_table_of_teachers_and_figures_a_folder(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "s", random_rows(40, seed=1))
    made = report(folder, metrics=["rsr", "length"], replicates=20, csv=tmp_path / "t.csv", figures=tmp_path / "f")
    table = pl.read_csv(tmp_path / "t.csv")
    assert table["teacher"].to_list() == [line.teacher for line in made.students[0].ranking.lines]
    assert table.columns[:6] == ["student", "teacher", "probability_best", "rsr", "rsr_low", "rsr_high"]
    assert table["rsr"].to_list() == pytest.approx(
        [line.metrics["rsr"].value for line in made.students[0].ranking.lines]
    )
    names = {path.name for path in (tmp_path / "f").iterdir()}
    assert {f"{stem}.{suffix}" for stem in ("ranking-rsr", "distribution-rsr") for suffix in figures.FORMATS} <= names


def test_a_report_shows_itself(tmp_path: Path) -> None:
    rows = [trajectory(n, [n + 1, 3], [1.0, 2.0], teacher=f"{HOSTILE}{n % 30}") for n in range(300)]
    made = report(write_folder(tmp_path / "s", rows), replicates=20)
    assert made.frame.height == 30
    assert made.frame["rsr"].to_list() == [line.metrics["rsr"].value for line in made.students[0].ranking.lines]
    assert len(repr(made).splitlines()) < 6
    html = made._repr_html_()
    assert len(html.encode()) <= 20_000
    assert "<script>" not in html
    assert "&lt;/title&gt;&lt;script&gt;" in html


def test_teachers_without_common_prompts_are_ranked_in_groups(tmp_path: Path) -> None:
    draw = np.random.default_rng(1)
    rows = []
    for number in range(120):
        teacher, prompt = "abcd"[number % 4], number // 4
        hard = teacher in "cd"  # these answered other, easier prompts: their values are all better
        surprisals = draw.gamma(3, 1 + hard, 20) * (1 + 0.3 * (teacher in "bd"))
        names: dict[str, Any] = {"teacher": teacher, "prompt_id": f"{'easy' if hard else 'usual'}-{prompt}"}
        rows.append(trajectory(number, [5] * 20, surprisals.tolist(), **names))
    made = report(write_folder(tmp_path / "s", rows), replicates=100, plan=True, out=tmp_path / "r.html").students[0]
    assert made.plan is not None
    assert {each.teacher for each in made.plan.separations} | {made.plan.leader} == {"c", "d"}, "of one group"
    assert "30 prompts that all teachers of its group share" in made.recommendation.sentence
    assert made.ranking.groups == (("c", "d"), ("a", "b"))  # as many teachers: the better value first
    assert [line.teacher for line in made.ranking.lines] == ["d", "c", "b", "a"]
    best = {line.teacher: line.probability_best or 0 for line in made.ranking.lines}
    assert best["a"] + best["b"] == pytest.approx(1)
    assert best["c"] + best["d"] == pytest.approx(1)
    assert any("2 groups of teachers have no prompt in common" in note for note in made.notes)
    assert "2 groups without common prompts" in page(tmp_path / "r.html").text
    # Control: one prompt in common, and there is one group.
    rows[2]["prompt_id"] = "usual-0"
    assert report(write_folder(tmp_path / "t", rows), replicates=20).students[0].ranking.groups == (
        ("a", "b", "c", "d"),
    )
