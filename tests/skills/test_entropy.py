"""EDCO's inference entropy: the formula, what the generator hands it, and how it comes to scores and selections."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

import trajscore as ts
from tests.helpers.paths import DATA
from tests.helpers.score_tables import refused, trajectory, write_folder
from trajscore.cli import app
from trajscore.engines.generation import Sampling, inference_entropy
from trajscore.errors import UsageError

STUDENT = DATA / "models" / "student"


def _plain(logprobs: list[list[float]]) -> float:
    """The definition, with a dictionary's worth of Python."""
    entropies = []
    for row in logprobs:
        weights = [math.exp(each - max(row)) for each in row]
        shares = [each / math.fsum(weights) for each in weights]
        entropies.append(-math.fsum(p * math.log2(p) for p in shares if p > 0))
    best = sorted(entropies, reverse=True)[: max(1, int(0.2 * len(entropies)))]
    return math.fsum(best) / len(best)


def test_by_hand() -> None:
    sure, coin, four = [0.0, -1e9, -1e9, -math.inf], [-7.0, -7.0, -1e9, -1e9], [-3.0] * 4
    assert inference_entropy(np.array([sure] * 5)) == 0.0
    # Of ten positions the two most uncertain count: 2 bits and 1 bit. Of nine only one.
    assert inference_entropy(np.array([sure] * 4 + [four] + [sure] * 4 + [coin])) == pytest.approx(1.5)
    assert inference_entropy(np.array([sure] * 8 + [coin])) == pytest.approx(1.0)
    assert inference_entropy(np.array([four])) == pytest.approx(2.0)
    assert inference_entropy(np.full((7, 20), -40.0)) == pytest.approx(math.log2(20))
    assert inference_entropy(np.empty((0, 20))) is None


@pytest.mark.parametrize("count", [1, 4, 5, 64, 128])
def test_equals_plain_python(count: int) -> None:
    draw = random.Random(count)
    logprobs = [
        [draw.choice([-math.inf, -40 * draw.random()]) for _ in range(19)] + [-draw.random()] for _ in range(count)
    ]
    assert inference_entropy(np.array(logprobs)) == pytest.approx(_plain(logprobs), abs=1e-9)
    rotated = logprobs[count // 2 :] + logprobs[: count // 2]
    assert inference_entropy(np.array(rotated)) == pytest.approx(_plain(logprobs), abs=1e-9)
    shifted = [[each + 5.0 for each in row[::-1]] for row in logprobs]
    assert inference_entropy(np.array(shifted)) == pytest.approx(_plain(logprobs), abs=1e-9)


def test_the_generator_hands_on_the_models_own_predictions() -> None:
    pytest.importorskip("transformers", reason="a model writes")
    import transformers

    from tests.helpers.oracles import model_logits
    from tests.helpers.tiny_models import exact_model
    from trajscore.engines.hf_generation import HFGenerator
    from trajscore.options.groups import EngineOptions

    chats = [[{"role": "user", "content": text}] for text in ("Start with 7. Then plus 3.", "Double 4.")]
    tokenizer, model = transformers.AutoTokenizer.from_pretrained(STUDENT), exact_model(STUDENT)
    generator = HFGenerator(str(STUDENT), EngineOptions(dtype="float32", device="cpu"))
    greedy = list(generator.generate(chats, [Sampling(max_tokens=6, best=20)] * 2))
    # At a temperature, with tokens left out, the predictions are still the model's own: seen at the first one.
    drawn = list(generator.generate(chats, [Sampling(temperature=0.7, top_p=0.7, max_tokens=1, best=20)] * 2))
    plain = list(generator.generate(chats, [Sampling(max_tokens=6)] * 2))
    generator.close()
    for chat, (written,), (first,), (without,) in zip(chats, greedy, drawn, plain, strict=True):
        text = tokenizer.apply_chat_template(chat, add_generation_prompt=True, tokenize=False)
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        best = []
        for _ in range(written.tokens):
            logits = model_logits(model, np.array(ids))[-1]
            best.append(sorted(logits.tolist(), reverse=True)[:20])
            ids.append(int(logits.argmax()))
        assert written.inference_entropy == pytest.approx(_plain(best), abs=1e-3)
        assert first.inference_entropy == pytest.approx(_plain(best[:1]), abs=1e-3)
        assert (without.text, without.inference_entropy) == (written.text, None)


def _lines(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return path


ANSWERS: list[dict[str, Any]] = [
    {"question_id": "prompt-0", "inference_entropy": [0.5, 1.0, None]},
    {"question_id": "prompt-1", "inference_entropy": [None]},
    {"question_id": "prompt-2", "inference_entropy": [2.0]},
    {"question_id": "elsewhere", "inference_entropy": [4.0]},
]


@pytest.fixture
def scores(tmp_path: Path) -> Path:
    """Seven rows of three prompts, of which the last one is refused, in parts of four."""
    rows = [trajectory(n, [1] * (n + 1), [1.0] * (n + 1)) for n in range(6)]
    return write_folder(tmp_path / "scores", [*rows, refused(6, "too_long")], part_rows=4)


def test_joined_by_hand_and_selected(scores: Path, tmp_path: Path) -> None:
    answers = _lines(tmp_path / "answers.jsonl", ANSWERS)
    made = ts.prompt_entropies(answers, scores=scores, out=tmp_path / "joined")
    assert made.to_dict() == {
        "rows": 7, "measured": 5, "not_answered": 2, "prompts": 3, "measured_prompts": 2, "unused_questions": 1,
    }  # fmt: skip
    rows = ts.scan(tmp_path / "joined").collect()
    assert rows["inference_entropy"].to_list() == [0.75, None, 2.0, 0.75, None, 2.0, 0.75]
    assert rows.drop("inference_entropy").equals(ts.scan(scores).collect())
    kept = ts.select(tmp_path / "joined", preset="edco")
    assert kept.decisions.filter("kept").sort("overall_rank")["prompt_id"].to_list() == ["prompt-2", "prompt-0"]
    assert kept.dropped["undefined_metric"] == 2
    with pytest.raises(UsageError, match="inference_entropy"):
        ts.select(scores, preset="edco")


def test_neither_order_nor_files_nor_parts_matter(scores: Path, tmp_path: Path) -> None:
    files = [
        _lines(tmp_path / f"{n}.jsonl", [{"question_id": "prompt-0", "inference_entropy": [each]} for each in own])
        for n, own in enumerate(([1.0, 0.25], [0.25, 1.5]))
    ]
    whole = write_folder(tmp_path / "whole", [trajectory(n, [1], [1.0]) for n in range(6)], part_rows=100)
    found = []
    for number, (given, folder) in enumerate(((files, scores), (files[::-1], scores), (files, whole))):
        ts.prompt_entropies(given, scores=folder, out=tmp_path / f"out{number}")
        found.append(ts.scan(tmp_path / f"out{number}").collect()["inference_entropy"].to_list()[:6])
    assert found == [[0.75, None, None, 0.75, None, None]] * 3


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        (ANSWERS[1:2] + ANSWERS[3:], "none of its prompts has an entropy"),
        ([{"question_id": "prompt-0", "inference_entropy": [-1.0]}], "row 1: inference_entropy is -1.0"),
        ([{"question_id": "prompt-0", "inference_entropy": "high"}], "row 1: inference_entropy is 'high'"),
        ([{"question_id": "prompt-0", "correct": [True]}], "no field 'inference_entropy'"),
    ],
)
def test_what_is_refused_writes_nothing(rows: list[dict[str, Any]], said: str, scores: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=said):
        ts.prompt_entropies(_lines(tmp_path / "a.jsonl", rows), scores=scores, out=tmp_path / "joined")
    assert not (tmp_path / "joined").exists()


def test_the_student_begins_answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("transformers", reason="a model writes")
    from trajscore.skills.commands.answer import BRIEF

    monkeypatch.chdir(tmp_path)
    asked = [{"question": f"Start with {n}. Then plus 3.", "answer": str(n + 3)} for n in (1, 2)]
    _lines(Path("questions.jsonl"), asked)
    arguments = [
        "skills",
        "answer",
        "questions.jsonl",
        "--student",
        str(STUDENT),
        "--engine",
        "hf",
        "--entropy",
        "--json",
    ]
    shown = CliRunner().invoke(app, [*arguments, "--out", "dry.jsonl", "--dry-run"])
    assert json.loads(shown.stdout)["calls"]["completion_tokens_at_most"] == 2 * 128
    arguments += ["--samples", "2", "--max-tokens", "10", "--out", "answers.jsonl"]
    for made in (2, 0):
        done = CliRunner().invoke(app, arguments)
        assert done.exit_code == 0, done.output
        assert json.loads(done.stdout)["calls"]["made"] == made
    rows = [json.loads(line) for line in Path("answers.jsonl").read_text().splitlines()]
    assert [row["question"] for row in rows] == [each["question"] for each in asked]
    assert all(BRIEF not in row["question"] and row["correct"] == [None, None] for row in rows)
    assert [row["answer"] for row in rows] == ["4", "5"]
    found = [each for row in rows for each in row["inference_entropy"]]
    assert len(set(found)) > 1
    assert all(0 < each < math.log2(20) for each in found)
