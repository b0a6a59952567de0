"""On-policy distillation in small: rollouts of the student, the teacher's rewards, five steps of TRL, the reverse KL before and
after. The guide does the same on more prompts, as a user types it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow.parquet as pq
import pytest
import torch
import transformers

from tests.helpers.mask_files import write_mask
from tests.helpers.oracles import divergences, model_logits
from tests.helpers.paths import DATA
from tests.helpers.tiny_models import exact_model
from trajscore import export, mask, score

trl = pytest.importorskip("trl")

import datasets  # noqa: E402

from trajscore.integrations.trl import WeightedSFTTrainer  # noqa: E402

STUDENT, TEACHER = DATA / "models" / "student", DATA / "models" / "teacher"
DRAWS, LEARNT = 4, 24
WORDS = 551
"""Ids of the tokenizer; the teacher's head has more rows."""


@pytest.fixture(scope="module")
def rollouts() -> list[dict[str, Any]]:
    """Drawn by the student at temperature 1, in the layout of TRL's rollouts."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(STUDENT, padding_side="left")
    model = transformers.AutoModelForCausalLM.from_pretrained(STUDENT)
    prompts = pl.read_ndjson(DATA / "trajectories.jsonl").unique("prompt_id", maintain_order=True).head(30)
    chats = [[{"role": "user", "content": messages[0]["content"]}] for messages in prompts["messages"]]
    inputs = tokenizer.apply_chat_template(
        chats, add_generation_prompt=True, padding=True, return_dict=True, return_tensors="pt"
    )
    torch.manual_seed(0)
    drawn = model.generate(**inputs, do_sample=True, top_k=0, max_new_tokens=64, num_return_sequences=DRAWS)
    rows = []
    for number, ids in enumerate(drawn[:, inputs["input_ids"].shape[1] :].tolist()):
        end = tokenizer.eos_token_id
        asked = inputs["input_ids"][number // DRAWS][inputs["attention_mask"][number // DRAWS] == 1].tolist()
        rows.append(
            {
                "id": str(number),
                "prompt_id": prompts["prompt_id"][number // DRAWS],
                "prompt_ids": asked,
                "completion_ids": ids[: ids.index(end) + 1] if end in ids else ids,
            }
        )
    return rows


@pytest.fixture(scope="module")
def reward(rollouts: list[dict[str, Any]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The rollouts of the first prompts, scored and weighed."""
    folder = tmp_path_factory.mktemp("reward")
    pl.DataFrame(rollouts[: LEARNT * DRAWS]).write_parquet(folder / "rollouts.parquet")
    score(folder / "rollouts.parquet", STUDENT, folder / "s", teacher=TEACHER, divergence="none", engine="hf")
    mask(folder / "s", preset="on-policy", out=folder / "reward.parquet")
    return folder / "reward.parquet"


def _reverse_kl(student: Any, rows: list[dict[str, Any]]) -> float:
    """The mean of KL(student || teacher) over the tokens that the first student wrote, in float64."""
    teacher, found = exact_model(TEACHER), []
    for row in rows:
        ids = np.array([*row["prompt_ids"], *row["completion_ids"]], np.int32)
        places = slice(len(row["prompt_ids"]) - 1, len(ids) - 1)
        both = [model_logits(model, ids)[places, :WORDS] for model in (student, teacher)]
        found.append(divergences(*both).kl_student_teacher)
    return float(np.concatenate(found).mean())


def test_rewards_are_those_of_the_two_models(rollouts: list[dict[str, Any]], reward: Path) -> None:
    """One row in float64: ln p_teacher - ln p_student of every token that the student drew, its end-of-turn marker too."""
    row = next(each for each in pq.read_table(reward).to_pylist() if each["id"] == "0")
    asked, written = rollouts[0]["prompt_ids"], rollouts[0]["completion_ids"]
    assert row["input_ids"] == asked + written
    both = []
    for folder in (STUDENT, TEACHER):
        logits = model_logits(exact_model(folder), np.array(row["input_ids"], np.int32))[:, :WORDS]
        log_p = logits - np.logaddexp.reduce(logits, axis=1, keepdims=True)
        both.append([log_p[place - 1, row["input_ids"][place]] for place in range(len(asked), len(row["input_ids"]))])
    wanted = np.array(both[1]) - np.array(both[0])
    assert np.abs(np.array(row["loss_weight"][len(asked) :]) - wanted).max() < 1e-4
    assert row["labels"][len(asked) :] == written
    assert wanted.min() < 0 < wanted.max()


@pytest.mark.slow
def test_five_steps_lower_the_reverse_kl_on_held_out_prompts(
    rollouts: list[dict[str, Any]], reward: Path, tmp_path: Path
) -> None:
    """The control learns from the same tokens with the signs turned round, and must get worse."""
    held_out = rollouts[LEARNT * DRAWS :]
    rows = pq.read_table(reward).to_pylist()
    turned = [row | {"loss_weight": [-weight for weight in row["loss_weight"]]} for row in rows]
    wrong = write_mask(tmp_path / "wrong.parquet", turned, rule="opd_reward", signed=True)
    before = _reverse_kl(exact_model(STUDENT), held_out)
    after = {}
    datasets.disable_progress_bars()
    for name, path in (("right", reward), ("wrong", wrong)):
        export(path, "trl", tmp_path / name)
        data = datasets.load_dataset(str(tmp_path / name / "data"), split="train", cache_dir=str(tmp_path / "cache"))
        args = trl.SFTConfig(
            str(tmp_path / "run"), max_steps=5, per_device_train_batch_size=48, learning_rate=2e-4, bf16=False, use_cpu=True,
            lr_scheduler_type="constant", report_to="none", save_strategy="no", max_length=None,
        )  # fmt: skip
        trainer = WeightedSFTTrainer(str(STUDENT), args, train_dataset=data)
        trainer.train()
        after[name] = _reverse_kl(trainer.model.double().eval(), held_out)
    assert after["right"] < before - 0.02 < before + 0.02 < after["wrong"]
