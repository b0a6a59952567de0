"""Exports through the loaders of LLaMA-Factory, axolotl and verl themselves, each in its own environment (`make trainers`)."""

from __future__ import annotations

import json
import os
import random
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.mask_files import mask_rows, write_mask
from tests.helpers.paths import ROOT
from tests.helpers.stopped_runs import HANGS
from tests.trainers.build import TRAINERS, python_of
from trajscore import score

STUDENT = ROOT / "data" / "models" / "student"

pytestmark = pytest.mark.slow


def _python(trainer: str) -> str:
    python = python_of(trainer)
    if not python.is_file():
        pytest.skip(f"{trainer} is not installed in {python.parents[1]}: make trainers")
    return str(python)


def _run(trainer: str, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "HF_HUB_OFFLINE": "1",
        "AXOLOTL_DO_NOT_TRACK": "1",
        "CUDA_VISIBLE_DEVICES": "",
    }
    command = [_python(trainer), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=HANGS, env=environment)


def _export(trainer: str, file: Path, out: Path) -> dict[str, Any]:
    done = _run(
        trainer,
        "-m",
        "trajscore",
        "export",
        file,
        "--to",
        trainer,
        "--out",
        out,
        "--student",
        STUDENT,
        "--check",
        "--json",
    )
    assert done.returncode in (0, 1), done.stderr[-3000:]
    check: dict[str, Any] = json.loads(done.stdout)["check"]
    return check


@pytest.fixture(scope="module")
def scores(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("scores")
    score(ROOT / "data" / "trajectories.jsonl", STUDENT, folder, limit=40)
    return folder


def _some(_: dict[str, Any], ids: list[int]) -> list[bool]:
    draw = random.Random(len(ids))
    return [True, *(draw.random() < 0.5 for _ in ids[1:])]


@pytest.mark.parametrize("trainer", TRAINERS)
def test_a_mask_through_the_trainers_own_loader(trainer: str, scores: Path, tmp_path: Path) -> None:
    rows = mask_rows(scores, _some)
    check = _export(trainer, write_mask(tmp_path / "m.parquet", rows), tmp_path / "out")
    assert check["note"] == ""
    assert check["reader"].split()[-1][0].isdigit(), "not read by the trainer"
    assert check["differences"] == []
    assert check["agreeing"] == check["rows"] == len(rows) > 30


@pytest.mark.parametrize("trainer", TRAINERS)
def test_conversations_through_the_trainers_own_loader(trainer: str, tmp_path: Path) -> None:
    """The tokens are those that `score` scores, and the loss is on the scored ones and on what ends a turn."""
    lines = (ROOT / "data" / "trajectories.jsonl").read_text().splitlines()[:30]
    (tmp_path / "c.jsonl").write_text("\n".join(lines) + "\n")
    check = _export(trainer, tmp_path / "c.jsonl", tmp_path / "out")
    assert check["note"] == ""
    assert check["differences"] == []
    assert check["agreeing"] == check["rows"] > 25


@pytest.mark.parametrize("trainer", TRAINERS)
def test_another_text_is_noticed(trainer: str, tmp_path: Path) -> None:
    """The control: an answer changed between what is written and what is compared."""
    lines = (ROOT / "data" / "trajectories.jsonl").read_text().splitlines()[:3]
    (tmp_path / "c.jsonl").write_text("\n".join(lines) + "\n")
    (tmp_path / "d.jsonl").write_text("\n".join([*lines[:2], lines[2].replace("Answer: ", "Answer is ")]) + "\n")
    code = f"""
import numpy as np
from trajscore import export
from trajscore.exporters.table import Plan, find
from trajscore.exporters.check import check, expected_messages
from trajscore.exporters.rows import ConversationFile
from pathlib import Path
done = export("{tmp_path}/c.jsonl", "{trainer}", "{tmp_path}/out", student="{STUDENT}")
other = ConversationFile(Path("{tmp_path}/d.jsonl"), find("{trainer}"))
wanted = expected_messages(other.rows(np.ones(3, np.int64), False), "{STUDENT}")
found = check(find("{trainer}"), Path("{tmp_path}/out"), Plan("messages", done.longest), "{STUDENT}", wanted)
print("FOUND", found.rows, found.agreeing, found.differences)
"""
    done = _run(trainer, "-c", code)
    assert "FOUND 3 2 ('row 2: the tokens differ" in done.stdout, done.stdout[-500:] + done.stderr[-2000:]


def test_verls_own_loss_takes_the_weights(tmp_path: Path) -> None:
    """verl's `sft_loss` and collator on our dataset class: sum(w * nll) / sum(w), worked out in plain Python."""
    rows = [
        {
            "id": "a",
            "input_ids": [5, 6, 7],
            "labels": [-100, 6, 7],
            "loss_weight": [0.0, 0.25, 0.5],
            "sample_weight": 2.0,
        },
        {"id": "b", "input_ids": [8, 9], "labels": [-100, 9], "loss_weight": [0.0, 0.125], "sample_weight": 0.5},
    ]
    mask = write_mask(tmp_path / "m.parquet", rows)
    code = f"""
import torch
from tensordict import TensorDict
from trajscore import export
from trajscore.integrations.verl import TokenMaskSFTDataset
from verl.utils import tensordict_utils as tu
from verl.utils.dataset.dataset_utils import DatasetPadMode, SFTTensorCollator
from verl.workers.utils.losses import sft_loss
export("{mask}", "verl", "{tmp_path}/out")
data = TokenMaskSFTDataset("{tmp_path}/out/train.parquet", None, {{"max_length": 3, "pad_mode": "no_padding"}})
batch = SFTTensorCollator(DatasetPadMode.NO_PADDING)([data[0], data[1]])
total = batch["loss_mask"].values().sum().item()
# log p of the token after each position, rows one after the other; the last of a row means nothing.
log_probs = torch.nested.as_nested_tensor([torch.tensor([-1.0, -2.0, -50.0]), torch.tensor([-4.0, -60.0])], layout=torch.jagged)
settings = {{"dp_size": 1, "batch_num_tokens": total, "pad_mode": DatasetPadMode.NO_PADDING}}
fields = tu.get_tensordict({{"loss_mask": batch["loss_mask"]}}, settings)
print("LOSS", sft_loss(None, {{"log_probs": log_probs}}, fields)[0].item())
"""
    done = _run("verl", "-c", code)
    assert "LOSS" in done.stdout, done.stderr[-3000:]
    weights, nll = [0.25 * 2, 0.5 * 2, 0.125 * 0.5], [1.0, 2.0, 4.0]
    by_hand = sum(w * n for w, n in zip(weights, nll, strict=True)) / sum(weights)
    assert float(done.stdout.split("LOSS")[1]) == pytest.approx(by_hand, rel=1e-5)
