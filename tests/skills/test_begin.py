"""DASD's mixed policy: where the student's responses are cut, that a teacher goes on from there, and what comes of both."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

import trajscore as ts
from tests.helpers.paths import DATA
from trajscore.cli import app
from trajscore.errors import UsageError

STUDENT, TEACHER = str(DATA / "models" / "student"), str(DATA / "models" / "teacher")
TEXT = "one two three four five six"


def _lines(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return path


def _read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


@pytest.fixture
def questions(tmp_path: Path) -> Path:
    chats = [
        [{"role": "system", "content": "Be brief."}, {"role": "user", "content": f"What is {n}?"}] for n in range(6)
    ]
    return _lines(
        tmp_path / "questions.jsonl", [{"prompt_id": f"q{n}", "messages": chat} for n, chat in enumerate(chats)]
    )


@pytest.fixture
def answers(tmp_path: Path) -> Path:
    """Of six questions one is not answered, one finished, one without a word to cut at, and three can be cut."""
    given: list[tuple[list[str], list[bool]]] = [
        ([TEXT], [False]), ([TEXT], [True]), (["single"], [False]), (["", f"{TEXT} seven"], [False, False]), ([TEXT], [False]),
    ]  # fmt: skip
    rows = [{"question_id": f"q{n}", "responses": r, "finished": f} for n, (r, f) in enumerate(given)]
    return _lines(tmp_path / "answers.jsonl", rows)


def test_by_hand(questions: Path, answers: Path, tmp_path: Path) -> None:
    made = ts.begin_answers(questions, answers=answers, out=tmp_path / "begun.jsonl")
    assert made.rows == 6 == made.items + sum(made.left_out.values())
    assert made.left_out == {"finished": 1, "no_place_to_cut": 1, "not_answered": 1}
    rows = _read(tmp_path / "begun.jsonl")
    assert [row["prompt_id"] for row in rows] == ["q0", "q3", "q4"]
    for row in rows:
        # Words of the second half of 27 (33) characters: four, five, six (and seven); the beginning ends before one of them.
        whole = f"{TEXT} seven" if row["prompt_id"] == "q3" else TEXT
        assert whole.startswith(row["beginning"])
        assert row["beginning"].split() in [whole.split()[:n] for n in (3, 4, 5, 6)]
        assert row["beginning"].endswith(" ")
        assert row["cut_at"] == len(row["beginning"]) >= len(whole) / 2
        assert [message["role"] for message in row["messages"]] == ["system", "user"]
    whole_too = ts.begin_answers(questions, answers=answers, out=tmp_path / "w.jsonl", whole=True)
    assert whole_too.left_out == {"no_place_to_cut": 1, "not_answered": 1}


def test_draws_depend_on_seed_and_question_alone(questions: Path, answers: Path, tmp_path: Path) -> None:
    out = tmp_path / "begun.jsonl"

    def cut(data: Path, given: Path, **options: Any) -> dict[str, str]:
        ts.begin_answers(data, answers=given, out=out, **options)
        return {row["prompt_id"]: row["beginning"] for row in _read(out)}

    expected = cut(questions, answers)
    turned = _lines(tmp_path / "t.jsonl", _read(questions)[::-1]), _lines(tmp_path / "u.jsonl", _read(answers)[::-1])
    assert cut(*turned) == expected
    few = cut(_lines(tmp_path / "few.jsonl", _read(questions)[3:]), answers)
    assert few == {name: expected[name] for name in few}
    assert len({json.dumps(cut(questions, answers, seed=seed)) for seed in range(8)}) > 3
    shares = [cut(questions, answers, share=share) for share in (0.1, 0.34, 0.67, 1.0)]
    assert [len(each) for each in shares] == [1, 1, 2, 3]
    assert shares[0].items() <= shares[2].items() <= expected.items()
    made = ts.begin_answers(questions, answers=answers, out=out, share=0.67)
    assert made.left_out["not_drawn"] == 1


def test_nothing_to_cut_is_refused(questions: Path, tmp_path: Path) -> None:
    done = _lines(tmp_path / "done.jsonl", [{"question_id": "q0", "responses": [TEXT], "finished": [True]}])
    with pytest.raises(UsageError, match=r"no response to cut \(1 finished, 5 not_answered\)"):
        ts.begin_answers(questions, answers=done, out=tmp_path / "begun.jsonl")
    other = _lines(tmp_path / "other.jsonl", [{"question_id": "q0", "responses": [TEXT]}])
    with pytest.raises(UsageError, match="no field 'finished'"):
        ts.begin_answers(questions, answers=other, out=tmp_path / "begun.jsonl")
    assert not (tmp_path / "begun.jsonl").exists()


def test_the_generator_goes_on_from_a_beginning() -> None:
    """Against the model's own most probable tokens after prompt and beginning."""
    transformers = pytest.importorskip("transformers", reason="a model writes")
    from tests.helpers.oracles import model_logits
    from tests.helpers.tiny_models import exact_model
    from trajscore.engines.generation import Sampling
    from trajscore.engines.hf_generation import HFGenerator
    from trajscore.options.groups import EngineOptions

    chats = [[{"role": "user", "content": text}] for text in ("Start with 7. Then plus 3.", "Double 4.")]
    beginnings = ["", "4 + 4 = "]
    tokenizer, model = transformers.AutoTokenizer.from_pretrained(STUDENT), exact_model(Path(STUDENT))
    generator = HFGenerator(STUDENT, EngineOptions(dtype="float32", device="cpu"))
    found = list(generator.generate(chats, [Sampling(max_tokens=4)] * 2, beginnings))
    generator.close()
    for chat, beginning, (written,) in zip(chats, beginnings, found, strict=True):
        text = tokenizer.apply_chat_template(chat, add_generation_prompt=True, tokenize=False)
        ids = tokenizer(text + beginning, add_special_tokens=False)["input_ids"]
        first = len(ids)
        for _ in range(written.tokens):
            ids.append(int(model_logits(model, np.array(ids))[-1].argmax()))
        assert written.text == beginning + tokenizer.decode(ids[first:], skip_special_tokens=True)


def test_from_the_students_answers_to_rows_that_are_scored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("transformers", reason="models write")
    monkeypatch.chdir(tmp_path)
    _lines(Path("q.jsonl"), [{"question": f"Start with {n}. Then plus 3.", "answer": str(n + 3)} for n in (1, 2, 4)])

    def run(*arguments: str) -> dict[str, Any]:
        done = CliRunner().invoke(app, ["skills", *arguments, "--json"])
        assert done.exit_code == 0, done.output
        return dict(json.loads(done.stdout))

    usual = ("--engine", "hf", "--temperature", "0")
    run("answer", "q.jsonl", "--student", STUDENT, "--max-tokens", "12", "--out", "own.jsonl", *usual)
    begun = run("begin", "q.jsonl", "--answers", "own.jsonl", "--out", "begun.jsonl")
    assert begun["items"] == 3
    run("answer", "begun.jsonl", "--student", TEACHER, "--max-tokens", "40", "--out", "mixed.jsonl", *usual)
    own, beginnings, mixed = (_read(Path(f"{name}.jsonl")) for name in ("own", "begun", "mixed"))
    for student, beginning, row in zip(own, beginnings, mixed, strict=True):
        assert student["responses"][0].startswith(beginning["beginning"])
        assert row["messages"][-1]["content"].startswith(beginning["beginning"])
        assert len(row["messages"][-1]["content"]) > len(beginning["beginning"])
        assert row["prompt_id"] == student["question_id"]
        assert row["correct"] in (True, False)
    summary = ts.score("mixed.jsonl", STUDENT, "scores", engine="hf")
    assert summary.scored == 3
    frame = ts.scan("scores").collect()
    assert frame["prompt_id"].to_list() == [row["question_id"] for row in own]
