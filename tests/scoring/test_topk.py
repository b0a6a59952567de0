"""Most probable entries kept with the scores, and further divergences: through `score`, against float64, and their size."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import trajscore as ts
from tests.helpers.oracles import divergences, from_logits, model_logits, named_divergence, probabilities
from tests.helpers.tiny_models import exact_model
from tests.scoring.test_roles import TEACHER
from tests.scoring.test_score import CORPUS, LLAMA, STUDENT
from trajscore.engines.token_scores import TopKEntries
from trajscore.errors import UsageError
from trajscore.io.parquet import write_table
from trajscore.rendering.renderer import Renderer
from trajscore.schema import COLUMNS, extra_column, parse_extra, topk_columns
from trajscore.scoring.part_table import _lists, topk_values

IDS, LOGPROBS, TAIL = topk_columns("teacher")
RUNS: dict[str, dict[str, Any]] = {
    "exact": {"keep_topk": 5, "extra": ["tv", "kl_at:1", "jsd:0.5", "renyi:1.5", "topk_mass:4"]},
    "topk:3": {"keep_topk": 5, "divergence": "topk:3"},
    "topk:5": {"keep_topk": 3, "divergence": "topk:5"},
    "none": {"keep_topk": 5, "divergence": "none"},
    "at student": {"keep_topk": 4, "topk_at": "student"},
    "alone": {"keep_topk": 5, "teacher": ()},
}


@pytest.fixture(scope="module")
def frames(tmp_path_factory: pytest.TempPathFactory) -> dict[str, pl.DataFrame]:
    found = {}
    for name, options in RUNS.items():
        out = tmp_path_factory.mktemp("topk")
        ts.score(CORPUS, STUDENT, out, **{"teacher": TEACHER, "limit": 6, "engine": "hf", **options})
        found[name] = ts.scan(out).collect()
    return found


def _log_probabilities(model: str, row: dict[str, Any]) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Of both kinds of tokens, in the order of their positions."""
    ids, positions = np.array(row["input_ids"], np.int32), np.array(row["positions"])
    return np.asarray(np.log(probabilities(model_logits(exact_model(Path(model)), ids)[positions - 1][:, :551])))


def _check(row: dict[str, Any], role: str, log_q: np.ndarray[Any, np.dtype[np.float64]], k: int) -> None:
    ids, logprobs, tail = (np.array(row[name]) for name in topk_columns(role))
    assert ids.shape == logprobs.shape == (len(row["positions"]), k)
    expected = np.argsort(-log_q, axis=1, kind="stable")[:, :k]
    # Near ties may stand the other way round in float32.
    assert np.abs(np.take_along_axis(log_q, ids, 1) - np.take_along_axis(log_q, expected, 1)).max() < 1e-4
    assert (ids == expected).mean() > 0.95
    assert np.abs(logprobs - np.take_along_axis(log_q, ids, 1)).max() < 1e-4
    assert (np.diff(logprobs) <= 0).all()
    left = np.log1p(-np.exp(np.take_along_axis(log_q, ids, 1)).sum(1))
    sure = left > np.log(1e-9)
    assert np.abs(tail - left)[sure].max() < 1e-3
    assert (tail[~sure] < -15).all(), "summed and not subtracted from 1, it is no rounding"


def test_the_teachers_best_entries(frames: dict[str, pl.DataFrame]) -> None:
    row = frames["exact"].to_dicts()[3]
    log_q = _log_probabilities(TEACHER, row)
    _check(row, "teacher", log_q, 5)
    _check(frames["topk:5"].to_dicts()[3], "teacher", log_q, 3)
    for name in ("topk:3", "none"):
        for column in (IDS, LOGPROBS, TAIL, *topk_columns("teacher", scaffold=True)):
            assert frames[name][column].to_list() == frames["exact"][column].to_list(), (name, column)
    for each in frames["exact"].to_dicts():
        assert len(each["teacher_scaffold_topk_ids"]) == len(each["scaffold_positions"]) > 0


def test_the_teacher_at_the_students_best_entries(frames: dict[str, pl.DataFrame]) -> None:
    row = frames["at student"].to_dicts()[3]
    log_p, log_q = _log_probabilities(STUDENT, row), _log_probabilities(TEACHER, row)
    best = np.argsort(-log_p, axis=1, kind="stable")[:, :4]
    ids, logprobs = np.array(row[IDS]), np.array(row[LOGPROBS])
    assert (np.sort(ids) == np.sort(best)).mean() > 0.95
    assert np.abs(logprobs - np.take_along_axis(log_q, ids, 1)).max() < 1e-3
    assert (np.diff(logprobs) <= 0).all()
    mass = frames["exact"]["teacher_mass_on_student_top4"].to_list()[3]
    assert 1 - np.exp(np.array(row[TAIL])) == pytest.approx(mass, abs=1e-5)
    assert (np.sort(ids) != np.sort(np.argsort(-log_q, axis=1)[:, :4])).any(), "control: the teacher's are others"


def test_without_a_teacher_the_students(frames: dict[str, pl.DataFrame]) -> None:
    row = frames["alone"].to_dicts()[3]
    _check(row, "student", _log_probabilities(STUDENT, row), 5)
    assert not [name for name in row if name.startswith("teacher_")]


def test_divergences_from_what_is_stored_are_those_of_topk(frames: dict[str, pl.DataFrame]) -> None:
    """Student's float64 probabilities of the stored entries and of the rest, against the columns of `--divergence topk:5`."""
    row, found = frames["exact"].to_dicts()[3], frames["topk:5"].to_dicts()[3]
    log_p = _log_probabilities(STUDENT, row)
    kept = np.take_along_axis(log_p, np.array(row[IDS]), 1)
    log_p = np.concatenate([kept, np.log1p(-np.exp(kept).sum(1, keepdims=True))], 1)
    log_q = np.concatenate([np.array(row[LOGPROBS]), np.array(row[TAIL])[:, None]], 1)
    p, q = np.exp(log_p), np.exp(log_q)
    log_m = np.log((p + q) / 2)
    assert (p * (log_p - log_q)).sum(1) == pytest.approx(found["kl_student_teacher_topk"], abs=1e-3, rel=1e-3)
    assert (q * (log_q - log_p)).sum(1) == pytest.approx(found["kl_teacher_student_topk"], abs=1e-3, rel=1e-3)
    js = ((p * (log_p - log_m)).sum(1) + (q * (log_q - log_m)).sum(1)) / 2
    assert js == pytest.approx(found["js_topk"], abs=1e-4)
    assert np.exp(np.array(row[LOGPROBS])).sum(1) == pytest.approx(found["topk_mass"], abs=1e-5)


def test_further_divergences_in_the_same_pass(frames: dict[str, pl.DataFrame]) -> None:
    frame = frames["exact"]
    for name, same in (("kl_teacher_student_t1", "kl_teacher_student"), ("jsd_b05", "js")):
        found, expected = (frame[each].explode(empty_as_null=False).to_numpy() for each in (name, same))
        np.testing.assert_allclose(found, expected, atol=2e-6, rtol=1e-4)
    row = frame.to_dicts()[3]
    p, q = (np.exp(_log_probabilities(model, row)) for model in (STUDENT, TEACHER))
    assert row["tv"] == pytest.approx(np.abs(p - q).sum(1) / 2, abs=1e-4)
    assert row["renyi_teacher_student_a1_5"] == pytest.approx(np.log((q**1.5 / np.sqrt(p)).sum(1)) * 2, abs=1e-3)


def test_models_in_float64_are_met_to_rounding(frames: dict[str, pl.DataFrame], tmp_path: Path) -> None:
    """`--dtype float64`: all that compares two models is within 1e-5 nats of these models in float64, forward pass included."""
    extra = ["tv", "hellinger", "jsd:0.1", "jsd:0.5", "jsd:0.9", "skew_kl:0.1", "skew_rkl:0.1", "renyi:0.5", "renyi:2"]
    extra += ["kl_at:1", "kl_at:2", "standardised:2", "topk_mass:4"]
    asked: dict[str, Any] = {"teacher": TEACHER, "limit": 6, "dtype": "float64", "extra": extra, "keep_topk": 4}
    # The oracle's attention: whatever the precision, it rounds to float32 in between.
    ts.score(CORPUS, STUDENT, tmp_path / "s", topk_at="student", attn_implementation="eager", **asked)
    exact = [exact_model(Path(model)) for model in (STUDENT, TEACHER)]
    errors: dict[str, list[float]] = {"float64": [], "float32": []}
    for row, other in zip(ts.scan(tmp_path / "s").collect().to_dicts(), frames["exact"].to_dicts(), strict=True):
        ids, positions = np.array(row["input_ids"], np.int32), np.array(row["positions"])
        student, teacher = (model_logits(model, ids)[positions - 1][:, :551] for model in exact)
        expected = from_logits(student, ids[positions].astype(np.int64))
        assert row["student_surprisal"] == pytest.approx(expected.surprisal.tolist(), abs=1e-5)
        assert row["student_entropy"] == pytest.approx(expected.entropy.tolist(), abs=1e-5)
        assert row["student_rank"] == expected.rank.tolist()
        between = divergences(student, teacher)
        for name in ("kl_student_teacher", "kl_teacher_student", "js"):
            assert row[name] == pytest.approx(getattr(between, name).tolist(), abs=1e-5), name
        for spelt in extra:
            asked_for, value = parse_extra(spelt)
            right = named_divergence(student, teacher, asked_for.name, value)
            assert row[extra_column(spelt)] == pytest.approx(right.tolist(), abs=1e-5), spelt
        kept = np.take_along_axis(np.log(probabilities(teacher)), np.array(row[IDS]), 1)
        assert np.abs(np.array(row[LOGPROBS]) - kept).max() < 1e-5
        for dtype, found in (("float64", row), ("float32", other)):
            errors[dtype] += np.abs(np.array(found["student_surprisal"]) - expected.surprisal).tolist()
    assert np.mean(errors["float32"]) > 5 * np.mean(errors["float64"]), (
        "control: the forward pass in float32 is farther"
    )


@pytest.mark.parametrize(("k", "bytes_a_token"), [(16, 130), (32, 200), (128, 760)])
def test_a_token_takes_so_many_bytes(k: int, bytes_a_token: int) -> None:
    """At worst: ids drawn at random out of a vocabulary of 151,936, every digit of the log-probabilities different."""
    generator = np.random.default_rng(0)
    rendered = Renderer(STUDENT).render_text("a b c d e f g h " * 40)
    tokens = len(rendered.whole.positions_N)
    columns: dict[str, list[Any]] = {}
    for _ in range(12):
        logprobs = -np.sort(generator.exponential(6, (tokens, k)).astype(np.float32), 1)
        ids = generator.integers(0, 151_936, (tokens, k)).astype(np.int32)
        kept = TopKEntries(ids, logprobs, generator.normal(-4, 2, tokens).astype(np.float32))
        for name, values in topk_values("teacher", kept, rendered).items():
            columns.setdefault(name, []).append(values)
    stored = pa.table({name: _lists(COLUMNS[name].dtype, each) for name, each in columns.items()})
    buffer = io.BytesIO()
    write_table(stored, buffer)
    assert buffer.tell() / (12 * tokens) <= bytes_a_token
    assert pq.read_table(buffer).equals(stored)
    buffer.seek(0)
    read = pl.read_parquet(buffer)
    assert read["teacher_topk_logprobs"].to_list()[0] == columns["teacher_topk_logprobs"][0].tolist()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"topk_at": "student"}, "--topk-at has no effect without --keep-topk"),
        ({"topk_at": "student", "keep_topk": 4}, "--topk-at student: .* Add --teacher"),
        ({"extra": ["tv"]}, "--extra tv: compares the whole predictions"),
        ({"extra": ["tv"], "teacher": TEACHER, "divergence": "topk:4"}, "Leave --divergence out"),
        (
            {"extra": ["jsd:1"], "teacher": TEACHER},
            "--extra jsd:1: not a value that it takes. Allowed: jsd:X, X a number above 0",
        ),
        ({"extra": ["jsd"], "teacher": TEACHER}, "not a value that it takes"),
        ({"extra": ["renyi:1"], "teacher": TEACHER}, "other than 1"),
        ({"extra": ["hellingr"]}, "'hellingr' is not known. Did you mean hellinger"),
        ({"extra": ["tv:2"], "teacher": TEACHER}, "Allowed: tv"),
        ({"keep_topk": 600}, "--keep-topk: the vocabulary has 551 entries"),
        ({"extra": ["topk_mass:600"], "teacher": TEACHER}, "--extra topk_mass:600: the vocabulary has 551"),
        ({"keep_topk": 4, "teacher": LLAMA}, "--keep-topk: the tokenizers of .* differ"),
    ],
    ids=str,
)
def test_what_cannot_be_kept_or_computed(options: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError) as caught:
        ts.score(CORPUS, STUDENT, tmp_path / "s", limit=2, engine="hf", **options)
    assert pl.Series([f"{caught.value.problem} {caught.value.hint}"]).str.contains(message).all(), caught.value
