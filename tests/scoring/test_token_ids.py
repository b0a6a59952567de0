"""Rows of token ids: scored exactly as they are, against float64 on those very ids, with what stands beside them."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import transformers

import trajscore as ts
from tests.helpers.oracles import divergences, from_logits, model_logits
from tests.helpers.tiny_models import exact_model
from tests.scoring.test_roles import TEACHER
from tests.scoring.test_score import CORPUS, STUDENT
from trajscore.corpus import open_corpus
from trajscore.rendering.renderer import Renderer
from trajscore.scoring.rows import render

Row = dict[str, Any]
PROMPT = 6


def _random_rows(count: int) -> list[Row]:
    """Ids drawn at random, with masks that have holes, and the sampler's log-probabilities of the completion."""
    generator, rows = np.random.default_rng(18), []
    # No marker that ends a turn: it would be scaffold where it ends a run.
    tokenizer = transformers.AutoTokenizer.from_pretrained(STUDENT)
    known = np.setdiff1d(np.arange(len(tokenizer)), tokenizer.all_special_ids)
    for number in range(count):
        completion = int(generator.integers(3, 24))
        ids = generator.choice(known, PROMPT + completion)
        mask = (generator.random(completion) < 0.8).astype(int)
        mask[0] = 1
        rows.append(
            {
                "id": f"r{number}",
                "input_ids": ids.tolist(),
                "response_mask": mask.tolist(),
                "rollout_log_probs": (-generator.exponential(1.0, completion)).tolist(),
            }
        )
    return rows


def _write(path: Path, rows: list[Row]) -> Path:
    pl.DataFrame(rows, infer_schema_length=None).write_parquet(path)
    return path


OPTIONS: dict[str, Any] = {
    "teacher": TEACHER,
    "keep_topk": 5,
    "extra": ["tv", "jsd:0.1", "skew_kl:0.1", "renyi:2", "kl_at:2", "standardised:2", "topk_mass:16"],
    "engine": "hf",
    "max_refused": 1.0,
}


@pytest.fixture(scope="module")
def given() -> list[Row]:
    return _random_rows(24)


@pytest.fixture(scope="module")
def folder(given: list[Row], tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("ids")
    ts.score(_write(out / "rows.parquet", given), STUDENT, out / "s", **OPTIONS)
    return out / "s"


def _check(rows: list[Row], frame: pl.DataFrame, models: list[Any]) -> None:
    for row, found in zip(rows, frame.iter_rows(named=True), strict=True):
        ids, start = np.array(row["input_ids"], np.int32), len(row["input_ids"]) - len(row["response_mask"])
        positions = start + np.flatnonzero(row["response_mask"])
        assert found["input_ids"] == row["input_ids"]
        assert found["positions"] == positions.tolist()
        sampled = np.array(row["rollout_log_probs"])[positions - start]
        assert found["sampler_logprob"] == pytest.approx(sampled.tolist(), rel=1e-6)
        student, teacher = (model_logits(model, ids)[positions - 1][:, :551] for model in models)
        targets = ids[positions].astype(np.int64)
        for role, logits in (("student", student), ("teacher", teacher)):
            oracle = from_logits(logits, targets)
            assert found[f"{role}_surprisal"] == pytest.approx(oracle.surprisal.tolist(), abs=1e-4)
            assert found[f"{role}_entropy"] == pytest.approx(oracle.entropy.tolist(), abs=1e-4)
        expected = divergences(student, teacher)
        assert found["kl_teacher_student"] == pytest.approx(expected.kl_teacher_student.tolist(), abs=1e-4, rel=1e-5)


def test_numbers_are_those_of_the_very_ids(given: list[Row], folder: Path) -> None:
    tokenizer = transformers.AutoTokenizer.from_pretrained(STUDENT)
    again = [tokenizer(tokenizer.decode(row["input_ids"]), add_special_tokens=False)["input_ids"] for row in given]
    assert sum(ids != row["input_ids"] for ids, row in zip(again, given, strict=True)) > len(given) / 2, (
        "the ids are not what the tokenizer makes of the text"
    )
    _check(given, ts.scan(folder).collect(), [exact_model(Path(path)) for path in (STUDENT, TEACHER)])


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["hf", "vllm"])
def test_two_hundred_rows(engine: str, tmp_path: Path) -> None:
    rows = _random_rows(200)
    ts.score(_write(tmp_path / "rows.parquet", rows), STUDENT, tmp_path / "s", **{**OPTIONS, "engine": engine})
    _check(rows, ts.scan(tmp_path / "s").collect(), [exact_model(Path(path)) for path in (STUDENT, TEACHER)])


def test_a_row_is_read_as_its_text_would_be() -> None:
    """Ids and mask of what the template renders give the same scored tokens, sentences, phases, scaffold and turns."""
    renderer = Renderer(STUDENT)
    chunk = next(iter(open_corpus(CORPUS).chunks(60)))
    several = [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "One. Two \U0001f642 three.\n\nFour"},
        {"role": "user", "content": "b"},
        {"role": "assistant", "content": "<think>\nfive é</think>Six."},
    ]
    rendered = [render(each, renderer) for each in chunk.trajectories] + [renderer.render_messages(several)]
    for text in rendered:
        trained = np.zeros(len(text.input_ids_P), bool)
        trained[text.whole.positions_N] = True
        ids = renderer.render_ids(text.input_ids_P.astype(np.int64), trained)
        assert ids.status == text.status
        assert ids.response.text == text.response.text
        for name in ("positions_N", "sentence_N", "phase_N", "scaffold_S", "scaffold_kind_S"):
            assert getattr(ids, name).tolist() == getattr(text, name).tolist(), name
        turns = [[(turn.first, turn.header_ids.tolist()) for turn in each.bare_turns] for each in (ids, text)]
        assert turns[0] == turns[1]
        assert ids.n_sentences == text.n_sentences


def test_ids_outside_the_vocabulary_and_rows_without_loss(tmp_path: Path) -> None:
    rows = [
        {"input_ids": [5, 6, 551, 7], "loss_mask": [0, 0, 1, 1]},
        {"input_ids": [5, 6, 7, 8], "loss_mask": [0, 0, 0, 0]},
        {"input_ids": [5, 6, 7, 8], "loss_mask": [0, 0, 0, 1]},
    ]
    summary = ts.score(_write(tmp_path / "r.parquet", rows), STUDENT, tmp_path / "s", engine="hf", max_refused=1.0)
    assert summary.refused == {"invalid_ids": 1, "empty_response": 1}
    assert "token id 551, number 2" in summary.first_refused["invalid_ids"]


def test_text_that_says_something_else_is_counted_marked_or_refused(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tokenizer = transformers.AutoTokenizer.from_pretrained(STUDENT)
    ids = tokenizer("Answer: 6<|im_end|>", add_special_tokens=False)["input_ids"]
    texts = ["Answer: 6", " Answer: 6<|im_end|>\n", "Answer: 7"]
    rows = [
        {"id": str(number), "prompt_ids": [5, 6], "completion_ids": ids, "response": text}
        for number, text in enumerate(texts)
    ]
    path = _write(tmp_path / "r.parquet", rows)
    with caplog.at_level(logging.WARNING, "trajscore"):
        summary = ts.score(path, STUDENT, tmp_path / "s", engine="hf")
    assert (summary.scored, summary.other_texts) == (3, 1)
    assert "1 rows have text that is not what their token ids say" in caplog.text
    frame = ts.scan(tmp_path / "s").collect()
    assert frame["status_detail"].is_not_null().to_list() == [False, False, True]
    assert "'Answer: 6'" in frame["status_detail"][2]
    # The marker that ends the completion is no text of the turn's own, here as in rows of text.
    assert frame["scaffold_kind"].to_list() == [[1]] * 3
    summary = ts.score(path, STUDENT, tmp_path / "t", engine="hf", strict_text=True, max_refused=1.0)
    assert summary.refused == {"text_mismatch": 1}


def test_a_teacher_may_read_another_prompt(tmp_path: Path) -> None:
    """Its columns are those of the same response tokens behind its own prompt; the student's are what they were."""
    turns = [{"role": "user", "content": "2+2?"}, {"role": "assistant", "content": "It is 4."}]
    hint = [{"role": "user", "content": "2+2? The answer is 4."}]
    renderer = Renderer(STUDENT)
    own, other = renderer.render_messages(turns), renderer.render_messages([*hint, turns[1]])
    trained = np.isin(np.arange(len(own.input_ids_P)), own.whole.positions_N).astype(int).tolist()
    text: Row = {"messages": turns, "seen": hint}
    ids: Row = {"input_ids": own.input_ids_P.tolist(), "loss_mask": trained, "seen": hint}
    exact = exact_model(Path(TEACHER))
    logits = model_logits(exact, other.input_ids_P)[other.positions_N.astype(int) - 1][:, :551]
    expected = from_logits(logits, other.input_ids_P[other.positions_N].astype(np.int64))
    for name, row in (("text", text), ("ids", ids)):
        ways: dict[str, Row] = {"there": {}, "turns": {"swap_models": True}, "alone": {"divergence": "none"}}
        for way, more in ways.items() if name == "ids" else [("there", ways["there"])]:
            out = tmp_path / name / way
            path = _write(tmp_path / f"{name}.parquet", [row])
            asked: dict[str, Any] = {"teacher": TEACHER, "teacher_messages_field": "seen", "engine": "hf", **more}
            ts.score(path, STUDENT, out, **asked)
            (found,) = ts.scan(out).collect().to_dicts()
            assert found["input_ids"] == own.input_ids_P.tolist()
            assert found["teacher_surprisal"] == pytest.approx(expected.surprisal.tolist(), abs=1e-4)
            assert len(found["teacher_scaffold_rank"]) == len(found["scaffold_positions"]) > 0
    apart = model_logits(exact, own.input_ids_P)[own.positions_N.astype(int) - 1][:, :551]
    control = from_logits(apart, own.input_ids_P[own.positions_N].astype(np.int64))
    assert np.abs(control.surprisal - expected.surprisal).max() > 0.1, "control: the prompt matters"


def test_select_mask_and_export_keep_the_ids(given: list[Row], folder: Path, tmp_path: Path) -> None:
    known = {row["id"]: row for row in given}
    ts.select(folder, metric="rsr", top=6, out=tmp_path / "best.parquet")
    chosen = pl.read_parquet(tmp_path / "best.parquet")
    assert [known[row["id"]]["input_ids"] == row["input_ids"] for row in chosen.to_dicts()] == [True] * 6
    ts.mask(folder, rule="entropy", keep=1.0, out=tmp_path / "mask.parquet")
    for row in pl.read_parquet(tmp_path / "mask.parquet").to_dicts():
        assert row["input_ids"] == known[row["id"]]["input_ids"]
    exported = ts.export(tmp_path / "best.parquet", "trl", tmp_path / "trl", check=True)
    assert (exported.form, exported.rows_exported) == ("tokens", 6)
    assert exported.check is not None
    assert exported.check.passed
    for row, written in zip(
        chosen.to_dicts(), pl.read_parquet(tmp_path / "trl" / "data" / "train.parquet").to_dicts(), strict=True
    ):
        start = len(row["input_ids"]) - len(row["response_mask"])
        labels = [-100] * start + [
            token if on else -100 for token, on in zip(row["input_ids"][start:], row["response_mask"], strict=True)
        ]
        assert written == {"input_ids": row["input_ids"], "labels": labels}
