"""A real student, SmolLM2-135M-Instruct: peaked logits, 49,152 tokens, a template with a default system message, real loops.

Skipped only where `make real-student` was not run; `make test-real` runs it first.
"""

from __future__ import annotations

import importlib.util
import json
import shutil
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
import transformers

import trajscore as ts
from benchmarks.evidence.words import answer_of, problems, solve
from tests.helpers.oracles import from_logits, model_logits, near_ties
from tests.helpers.paths import DATA, MODELS, REAL_STUDENT

pytestmark = [
    pytest.mark.slow,
    pytest.mark.real,
    pytest.mark.skipif(not (REAL_STUDENT / "model.safetensors").exists(), reason="`make real-student` was not run"),
]

STYLES = ("plain", "verbose", "looping", "notation", "wrong")
ODD = "Mia’s 7 äpfel 🍎 cost 3.50 €.\n\n\tdef f(x):  return x ** 2   # naïve\nThe answer is 9."
LOOP = "So we have to think about it again. " * 60


def _message(identity: str, teacher: str, question: str, response: str) -> dict[str, Any]:
    turns = [{"role": "user", "content": question}, {"role": "assistant", "content": response}]
    return {"id": identity, "teacher": teacher, "messages": turns}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six problems in five styles, one response of odd characters, one that loops for 500 tokens."""
    rows = [
        _message(f"{number}/{style}", style, problem.question, solve(problem, style, 0))
        for number, problem in enumerate(problems(6, "tests", "train"))
        for style in STYLES
    ]
    question = problems(1, "tests", "train")[0].question
    rows += [_message("odd", "odd", question, ODD), _message("loop", "loop", question, LOOP)]
    path = tmp_path_factory.mktemp("words") / "rows.jsonl"
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), "utf-8")
    return path


@pytest.fixture(scope="module")
def scores(corpus: Path) -> pl.DataFrame:
    """The corpus as transformers scores it in float32."""
    out = corpus.parent / "scores"
    ts.score(corpus, REAL_STUDENT, out, engine="hf", dtype="float32", max_num_batched_tokens=1024)
    return ts.scan(out).collect()


@cache
def _model(dtype: torch.dtype) -> Any:
    return transformers.AutoModelForCausalLM.from_pretrained(REAL_STUDENT, dtype=dtype).eval()


@cache
def _tokenizer() -> Any:
    return transformers.AutoTokenizer.from_pretrained(REAL_STUDENT)


def _row(scores: pl.DataFrame, identity: str) -> dict[str, Any]:
    return scores.row(by_predicate=pl.col("id") == identity, named=True)


def _script() -> Any:
    spec = importlib.util.spec_from_file_location("real_student", DATA / "real_student.py")
    assert spec is not None
    assert spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    return script


def test_the_checksum_is_that_of_the_weights_and_the_vocabulary(tmp_path: Path) -> None:
    script = _script()
    assert script.checksum(REAL_STUDENT) == script.SHA256
    # A weight or a token more in another, small model: the checksum notices either.
    shutil.copytree(MODELS / "student", tmp_path / "copy")
    before = script.checksum(tmp_path / "copy")
    weights = bytearray((tmp_path / "copy" / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (tmp_path / "copy" / "model.safetensors").write_bytes(weights)
    after = script.checksum(tmp_path / "copy")
    tokenizer = json.loads((tmp_path / "copy" / "tokenizer.json").read_text("utf-8"))
    tokenizer["model"]["vocab"]["more"] = 10_000
    (tmp_path / "copy" / "tokenizer.json").write_text(json.dumps(tokenizer), "utf-8")
    assert len({before, after, script.checksum(tmp_path / "copy")}) == 3


@pytest.mark.parametrize("identity", ["0/plain", "1/notation", "odd"])
def test_statistics_are_those_of_the_logits_in_float64(scores: pl.DataFrame, identity: str) -> None:
    row = _row(scores, identity)
    ids, positions = np.array(row["input_ids"], np.int32), np.array(row["positions"])
    logits = model_logits(_model(torch.float64), ids)[positions - 1]
    oracle = from_logits(logits, ids[positions].astype(np.int64))
    assert np.abs(np.array(row["student_surprisal"]) - oracle.surprisal).max() < 1e-3
    assert np.abs(np.array(row["student_entropy"]) - oracle.entropy).max() < 1e-3
    # Float32 of 30 layers moves logits by some 1e-4, so entries that lie nearer may change places.
    slack = [near_ties(each, target, within=1e-3) for each, target in zip(logits, ids[positions], strict=True)]
    assert (np.abs(np.array(row["student_rank"]) - oracle.rank) <= slack).all()
    # Peaked, as no toy model is: near certainty and deep surprise within one response.
    assert oracle.surprisal.min() < 0.01
    assert oracle.surprisal.max() > 4
    # Control: the neighbouring position is far from it.
    shifted = from_logits(model_logits(_model(torch.float64), ids)[positions - 2], ids[positions].astype(np.int64))
    assert np.abs(np.array(row["student_surprisal"]) - shifted.surprisal).max() > 1


def test_scored_tokens_are_the_response_and_nothing_else(scores: pl.DataFrame) -> None:
    tokenizer = _tokenizer()
    assert len(tokenizer) == 49_152
    for row in scores.iter_rows(named=True):
        rendered = tokenizer.apply_chat_template(row["messages"], tokenize=False)
        assert row["input_ids"] == tokenizer(rendered, add_special_tokens=False)["input_ids"]
        assert "You are a helpful AI assistant named SmolLM" in rendered
        text = tokenizer.decode([row["input_ids"][each] for each in row["positions"]])
        # The template joins contents as they are, and the response loses nothing, spaces at its end included.
        assert text == row["messages"][1]["content"]


def _reference_style(row: dict[str, Any]) -> float:
    """RSR as its paper defines it: one row at a time, all logits at once, log-softmax, ranks by counting."""
    ids = torch.tensor([row["input_ids"]])
    with torch.no_grad():
        logits = _model(torch.float32)(ids).logits[0].float()
    positions = torch.tensor(row["positions"], dtype=torch.long)
    before, targets = logits[positions - 1], ids[0, positions]
    surprisal = torch.nn.functional.cross_entropy(before, targets, reduction="none")
    rank = (before > before.gather(1, targets[:, None])).sum(1) + 1
    return float(rank.clamp(max=100).float().mean() / surprisal.mean())


def test_rsr_is_that_of_the_reference_style(scores: pl.DataFrame) -> None:
    rows = scores.filter(pl.col("id").str.contains("^[012]/")).with_columns(ts.metrics.rsr())
    assert rows.height == 15
    for row in rows.iter_rows(named=True):
        assert row["rsr"] == pytest.approx(_reference_style(row), rel=1e-3), row["id"]


def test_vllm_finds_what_transformers_finds(corpus: Path, scores: pl.DataFrame) -> None:
    pytest.importorskip("vllm")
    out = corpus.parent / "vllm"
    ts.score(corpus, REAL_STUDENT, out, engine="vllm", dtype="float32", max_model_len=2048)
    other = ts.scan(out).collect()
    assert other["input_ids"].to_list() == scores["input_ids"].to_list()
    for name, within in (("student_surprisal", 1e-2), ("student_entropy", 1e-2)):
        ours, theirs = (np.concatenate(each[name].to_list()) for each in (scores, other))
        assert np.abs(ours - theirs).max() < within
    ours, theirs = (np.concatenate(each["student_rank"].to_list()).astype(int) for each in (scores, other))
    assert (ours == theirs).mean() > 0.98
    assert np.abs(np.log(ours / theirs)).max() < 0.2


def test_what_loops_do_to_rsr(scores: pl.DataFrame) -> None:
    """Both ways: steps written three times lower it, a long loop makes it explode; only the second is a loop by its limits."""
    table = scores.with_columns(ts.metrics.rsr(), ts.metrics.loop(), ts.metrics.repeated_ngram_ratio())
    means = dict(table.group_by("teacher").agg(pl.col("rsr").mean()).iter_rows())
    assert means["looping"] < means["plain"]
    assert means["loop"] > 3 * max(means["plain"], means["verbose"])
    flagged = table.filter(pl.col("loop") == 1)["id"].to_list()
    assert flagged == ["loop"]
    # What tells the tripled steps apart is repetition itself.
    repeated = dict(table.group_by("teacher").agg(pl.col("repeated_ngram_ratio").max()).iter_rows())
    assert repeated["plain"] < 0.1
    assert table.filter(pl.col("teacher") == "looping")["repeated_ngram_ratio"].min() > 0.1  # type: ignore[operator]


def test_rsr_of_real_text_lies_where_published_values_do(scores: pl.DataFrame) -> None:
    """Published dataset values are 2.6 to 4.1; text in a strange notation is far above, no sound text below 1."""
    table = scores.filter(pl.col("teacher").is_in(["plain", "verbose", "wrong"])).with_columns(ts.metrics.rsr())
    assert table.select(pl.col("rsr").is_between(1.5, 8).all()).item()
    # Wrong numbers are no less plausible than right ones: nothing in the score tells them apart.
    wrong = [answer_of(row[-1]["content"]) for row in table.filter(pl.col("teacher") == "wrong")["messages"]]
    right = [answer_of(row[-1]["content"]) for row in table.filter(pl.col("teacher") == "plain")["messages"]]
    assert wrong != right
    means = dict(table.group_by("teacher").agg(pl.col("rsr").mean()).iter_rows())
    assert means["wrong"] < 1.5 * means["plain"]
