"""A real vLLM, on CPU, with a model of data/: nonsense in content, valid in form. Behind HTTP and in process."""

from __future__ import annotations

import importlib.util
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.paths import ROOT
from tests.helpers.vllm_server import VLLM_ENVIRONMENT, vllm_server
from tests.helpers.world_of_data import world

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vLLM is not installed"),
]

TEACHER = ROOT / "data" / "models" / "teacher"
SKILLS = ["double", "minus", "plus"]
ENVIRONMENT = {**VLLM_ENVIRONMENT, "TRAJSCORE_API_KEY": "local-key"}


def _quote_bias() -> dict[str, Any]:
    """A model of random texts never closes a string by itself: make the quotation mark likelier, and text itself random."""
    vocabulary = json.loads((TEACHER / "tokenizer.json").read_text("utf-8"))["model"]["vocab"]
    return {"logit_bias": {str(vocabulary['"']): 9.0}}


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """`vllm serve` on a free port, which takes the key and no other."""
    structured = '{"disable_any_whitespace": true, "backend": "xgrammar"}'
    with vllm_server(
        TEACHER, tmp_path_factory.mktemp("vllm"), "--api-key", "local-key", "--structured-outputs-config", structured
    ) as address:
        yield address


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    asked = world.problems(6, 5, split="test")
    rows = [
        {"prompt_id": each.id, "question": each.question, "solution": f"Answer: {each.answer}", "answer": each.answer}
        for each in asked
    ]
    (tmp_path / "questions.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "skills.json").write_text(json.dumps(SKILLS))
    answers = [
        {"question_id": each.id, "question": each.question, "response": "Answer: 3", "correct": False} for each in asked
    ]
    (tmp_path / "answers.jsonl").write_text("\n".join(map(json.dumps, answers)))
    return tmp_path


def _run(folder: Path, *arguments: str) -> dict[str, Any]:
    """A command that may leave questions without a result (exit code 3): the tiny model sometimes never ends a string."""
    done = subprocess.run(
        [sys.executable, "-m", "trajscore", "skills", *arguments, "--json"],
        cwd=folder, env={**ENVIRONMENT, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=False, timeout=600,
    )  # fmt: skip
    assert done.returncode in (0, 3), done.stderr
    summary: dict[str, Any] = json.loads(done.stdout)
    return summary


def _lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_vllm_is_as_unsure_as_transformers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Greedily the same text, on from a beginning too, and the same inference entropy of it, in both engines."""
    monkeypatch.setenv("VLLM_CPU_KVCACHE_SPACE", "1")
    from trajscore.engines import load_generator
    from trajscore.engines.generation import Sampling
    from trajscore.options.groups import EngineOptions

    chats = [[{"role": "user", "content": text}] for text in ("Start with 7. Then plus 3.", "Double 4.")]
    student, found = str(ROOT / "data" / "models" / "student"), []
    for engine in ("hf", "vllm"):
        _, generator = load_generator(engine, student, EngineOptions(dtype="float32"), None, 512)
        drawn = generator.generate(chats, [Sampling(max_tokens=12, best=20)] * 2, ["", "4 + 4 = "])
        found.append([(each.text, each.tokens, each.inference_entropy) for (each,) in drawn])
        generator.close()
    assert [each[:2] for each in found[0]] == [each[:2] for each in found[1]]
    for ours, theirs in zip(*found, strict=True):
        assert ours[2] == pytest.approx(theirs[2], abs=1e-3)


def _check_form(folder: Path, annotator: list[str]) -> None:
    """The chain from labels to new questions; every answer that counts as valid has the form that was asked for."""
    held = [*annotator, "--request", json.dumps(_quote_bias()), "--temperature", "1", "--max-tokens", "1500"]
    labelled = _run(
        folder, "label", "questions.jsonl", "--skills", "skills.json", "--out", "map.jsonl", *held, "--votes", "2"
    )
    assert sum(labelled["statuses"].values()) == 6
    assert labelled["calls"]["by_status"].get("ok", 0) >= 8, labelled
    assert labelled["calls"]["completion_tokens"] > 0
    for row in _lines(folder / "map.jsonl"):
        assert row["skills"] is None or (set(row["skills"]) <= set(SKILLS) and len(row["skills"]) <= 5)
    diagnosed = _run(folder, "diagnose", "answers.jsonl", "--skills", "skills.json", "--out", "d.jsonl", *held)
    assert diagnosed["statuses"].get("ok", 0) >= 4, diagnosed
    for row in _lines(folder / "d.jsonl"):
        if row["status"] == "ok":
            assert row["judge"] in ("correct", "incorrect")
            assert set(row["missing_skills"]) <= set(SKILLS)
    # Skills by rule, so that there are seeds: what the tiny model said of them is chance.
    rows = _lines(folder / "map.jsonl")
    for row in rows:
        row |= {"skills": re.findall("double|minus|plus", row["question"]), "status": "ok"}
    (folder / "map.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (folder / "profile.json").write_text(json.dumps({"questions": {"a": ["plus"], "b": ["minus", "plus"]}}))
    held += ["--min-agreement", "1"]
    made = _run(folder, "synthesise", "profile.json", "--skill-map", "map.jsonl", "--out", "new.jsonl", *held)
    assert made["rows"] == 3
    assert sum(made["statuses"].values()) == made["items"] == 2 * made["calls"]["by_status"]["ok"] - 2 * _solved(folder)
    assert made["items"] >= 2, made


def _solved(folder: Path) -> int:
    calls = _lines(folder / "new.jsonl.calls.jsonl")
    return sum(call["task"] == "solve" and call["status"] == "ok" for call in calls)


def test_vllm_server(url: str, folder: Path) -> None:
    _check_form(folder, ["--annotator", "tiny", "--base-url", url])
    again = _run(
        folder, "diagnose", "answers.jsonl", "--skills", "skills.json", "--out", "d.jsonl",
        "--annotator", "tiny", "--base-url", url,
        "--request", json.dumps(_quote_bias()), "--temperature", "1", "--max-tokens", "1500",
    )  # fmt: skip
    assert again["calls"]["made"] == 0


def test_vllm_server_rejects_another_key(url: str, folder: Path) -> None:
    done = subprocess.run(
        [
            sys.executable, "-m", "trajscore", "skills", "label", "questions.jsonl", "--skills", "skills.json",
            "--annotator", "tiny",
            "--base-url", url, "--out", "map.jsonl",
        ],
        cwd=folder, env={**ENVIRONMENT, "TRAJSCORE_API_KEY": "wrong-key"}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert "does not accept the key in TRAJSCORE_API_KEY" in done.stderr
    assert "wrong-key" not in done.stderr


def test_vllm_in_process(folder: Path) -> None:
    held = [
        "--annotator", str(TEACHER), "--in-process", "--max-model-len", "8192", "--request", json.dumps(_quote_bias()),
        "--temperature", "1", "--max-tokens", "1500",
    ]  # fmt: skip
    labelled = _run(folder, "label", "questions.jsonl", "--skills", "skills.json", "--out", "map.jsonl", *held)
    assert labelled["statuses"].get("ok", 0) >= 4, labelled
    for row in _lines(folder / "map.jsonl"):
        assert row["skills"] is None or set(row["skills"]) <= set(SKILLS)


def test_the_student_answers_in_vllm_as_in_transformers(folder: Path) -> None:
    """Greedy, in float32: the same texts, up to the last token."""
    arguments = ["answer", "questions.jsonl", "--student", str(TEACHER), "--temperature", "0", "--max-tokens", "128"]
    arguments += ["--dtype", "float32", "--max-model-len", "2048"]
    _run(folder, *arguments, "--engine", "vllm", "--out", "vllm.jsonl")
    _run(folder, *arguments, "--engine", "hf", "--out", "hf.jsonl")
    assert _lines(folder / "vllm.jsonl") == _lines(folder / "hf.jsonl")
    assert all(row["correct"] == [True] for row in _lines(folder / "hf.jsonl"))
