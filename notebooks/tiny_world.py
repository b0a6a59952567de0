"""What the notebooks need of the tiny world of data/: a pool of trajectories, fine-tuning and accuracy.

Training takes what `trajscore mask` writes, `input_ids` and `labels`. Scoring and choosing rows is what the notebooks show.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from random import Random
from typing import Any

import polars as pl
import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "data"))

from make import trajectory  # noqa: E402
from training import greedy_texts  # noqa: E402
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast  # noqa: E402
from transformers.utils.logging import disable_progress_bar  # noqa: E402
from world import TEACHERS, Problem, is_correct, problems, solve  # noqa: E402

STUDENT = ROOT / "data" / "models" / "student"
TEACHER = ROOT / "data" / "models" / "teacher"
disable_progress_bar()


def write_pool(path: Path, prompts: int, folds: int) -> None:
    """Write trajectories as in data/: its twelve teachers, once each, on `prompts` training problems in each of the `folds`."""
    chosen = problems(prompts * folds, 1, steps=(3, 4), split="train")
    with path.open("w") as file:
        for number, problem in enumerate(chosen):
            for name in TEACHERS:
                row = trajectory(problem, name, 0, solve(problem, name, Random(f"pool {problem.id} {name}")))
                file.write(json.dumps({**row, "fold": number % folds}) + "\n")


def load(folder: Path) -> tuple[Any, Any]:
    """A model in float32 and its tokenizer."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    return model, PreTrainedTokenizerFast.from_pretrained(folder)


def finetune(folder: Path, rows: Sequence[dict[str, Any]], seed: int, epochs: int, rate: float, size: int = 8) -> Any:
    """The model after supervised fine-tuning on rows with `input_ids` and `labels`, -100 where there is no loss."""
    torch.manual_seed(seed)
    model, tokenizer = load(folder)
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, betas=(0.9, 0.95), weight_decay=0.01)
    order, pad = Random(seed), torch.nn.utils.rnn.pad_sequence
    for _ in range(epochs):
        shuffled = order.sample(rows, len(rows))
        for first in range(0, len(shuffled), size):
            part = shuffled[first : first + size]
            ids = pad([torch.tensor(row["input_ids"]) for row in part], True, int(tokenizer.pad_token_id))
            labels = pad([torch.tensor(row["labels"]) for row in part], True, -100)
            loss = model(input_ids=ids, labels=labels, use_cache=False).loss
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
    model.eval()
    return model


def accuracy(model: Any, folder: Path, chosen: Sequence[Problem]) -> float:
    """The share of problems that a model solves with greedy decoding."""
    texts = texts_of(model, chosen, folder)
    return sum(is_correct(problem, text) for problem, text in zip(chosen, texts, strict=True)) / len(chosen)


def texts_of(model: Any, chosen: Sequence[Problem], folder: Path = STUDENT) -> list[str]:
    """What a model answers with greedy decoding, with the tokenizer of `folder`."""
    return greedy_texts(model, PreTrainedTokenizerFast.from_pretrained(folder), chosen)


def held_out(n: int) -> list[Problem]:
    """Problems of three and four steps that stand in no training data."""
    return problems(n, 0, steps=(3, 4), split="test")


def train_and_test(masked: Path, seed: int) -> float:
    """Accuracy on held-out problems after training the student on a file of `trajscore mask`, in one thread."""
    torch.set_num_threads(1)
    rows = pl.read_parquet(masked, columns=["input_ids", "labels"]).to_dicts()
    return accuracy(finetune(STUDENT, rows, seed, epochs=5, rate=1e-3), STUDENT, held_out(150))
