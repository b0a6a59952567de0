"""`export --to trl`, for real: TRL's own trainer trains the tiny student on it; labels, gradients and weights are looked at.

The chain is score -> select -> mask -> export. Losses are recomputed in float64 from the model's logits, token by token.
Axes: P tokens of a row, V vocabulary.
"""

from __future__ import annotations

import json
import math
import shutil
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from tests.helpers.mask_files import mask_rows, write_mask
from tests.helpers.paths import DATA
from tests.helpers.stopped_runs import HANGS
from trajscore import export, mask, score, select
from trajscore.cli import app
from trajscore.errors import UsageError

trl = pytest.importorskip("trl")

import datasets  # noqa: E402
import transformers  # noqa: E402
import yaml  # noqa: E402

from trajscore.integrations.trl import (  # noqa: E402
    StoredTeacherTrainer,
    WeightedCollator,
    WeightedSFTTrainer,
)

STUDENT = DATA / "models" / "student"
THINK_END = "</think>"


@pytest.fixture(scope="module", autouse=True)
def _quiet() -> None:
    datasets.disable_progress_bars()


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Scores of what a selection kept, and the selection beside them."""
    folder = tmp_path_factory.mktemp("chain")
    score(DATA / "trajectories.jsonl", STUDENT, folder / "all", limit=60)
    select([folder / "all"], "rsr", per_prompt=3, prefer="correct", out=folder / "kept.jsonl")
    score(folder / "kept.jsonl", STUDENT, folder / "scores", limit=12)
    return folder


@pytest.fixture(scope="module")
def answers(kept: Path) -> list[dict[str, Any]]:
    """What `mask --rule answers` has to give, found without it: labels on what comes after the thinking, and on the marker."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(STUDENT)
    marker, end_of_turn = (tokenizer.convert_tokens_to_ids(name) for name in (THINK_END, "<|im_end|>"))

    def after_thinking(_: dict[str, Any], ids: list[int]) -> list[bool]:
        end = ids.index(marker)
        return [place > end for place in range(len(ids))]

    rows = mask_rows(kept / "scores", after_thinking)
    for row in rows:  # of one turn each, so its end is the last
        last = len(row["input_ids"]) - 1 - row["input_ids"][::-1].index(end_of_turn)
        row["labels"][last] = end_of_turn
    return rows


@pytest.fixture(scope="module")
def weighted(kept: Path) -> list[dict[str, Any]]:
    """A soft mask: other weights at every token, most of them far below 1, and a weight per row."""
    rows = mask_rows(kept / "scores", lambda _, ids: [0.001 + 0.002 * (n % 7) for n in range(len(ids))], soft=True)
    return [row | {"sample_weight": 0.25 + 0.5 * (number % 4)} for number, row in enumerate(rows)]


def _options(folder: Path) -> dict[str, Any]:
    options: dict[str, Any] = yaml.safe_load((folder / "sft.yaml").read_text())
    assert options.pop("dataset_name") == "data"
    return options


def _recording(trainer_class: Any) -> Any:
    """The trainer, with a list of all batches that reach its loss."""

    class Recording(trainer_class):  # type: ignore[misc]
        def compute_loss(self, model: Any, inputs: dict[str, Any], *args: Any, **named: Any) -> Any:
            self.__dict__.setdefault("seen", []).append({name: value.clone() for name, value in inputs.items()})
            return super().compute_loss(model, inputs, *args, **named)

    return Recording


def _trainer(folder: Path, out: Path, trainer_class: Any = None, **options: Any) -> Any:
    rows = datasets.load_dataset(str(folder / "data"), split="train", cache_dir=str(out / "cache"))
    given = {"report_to": "none", "use_cpu": True, "bf16": False, "save_strategy": "no", "logging_steps": 1}
    args = trl.SFTConfig(str(out), **{**given, **_options(folder), **options})
    return _recording(trainer_class or trl.SFTTrainer)(str(STUDENT), args, train_dataset=rows)


def _batch_rows(batch: dict[str, Any]) -> Iterator[tuple[list[int], list[int]]]:
    for ids, labels, present in zip(batch["input_ids"], batch["labels"], batch["attention_mask"], strict=True):
        assert (labels[present == 0] == -100).all()
        yield ids[present == 1].tolist(), labels[present == 1].tolist()


def test_trl_trains_on_the_mask_token_for_token(kept: Path, answers: list[dict[str, Any]], tmp_path: Path) -> None:
    """All that reaches the loss, shuffled and padded by TRL, is the mask; and training does train."""
    mask(kept / "scores", "answers", out=tmp_path / "m.parquet")
    export(tmp_path / "m.parquet", "trl", tmp_path / "out")
    trainer = _trainer(
        tmp_path / "out", tmp_path / "run", per_device_train_batch_size=4, num_train_epochs=3, learning_rate=1e-3
    )
    before = [parameter.detach().clone() for parameter in trainer.model.parameters()]
    trainer.train()
    wanted = sorted((row["input_ids"], row["labels"]) for row in answers)
    per_epoch = len(trainer.seen) // 3
    for epoch in range(3):
        batches = trainer.seen[epoch * per_epoch : (epoch + 1) * per_epoch]
        found = [row for batch in batches for row in _batch_rows(batch)]
        assert sorted(found) == wanted
        assert found != [(row["input_ids"], row["labels"]) for row in answers], "not shuffled, so order was not tested"
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert losses[-1] < losses[0]
    after = trainer.model.parameters()
    assert any(not torch.equal(old, new) for old, new in zip(before, after, strict=True))


def test_thinking_gets_no_gradient(kept: Path, answers: list[dict[str, Any]], tmp_path: Path) -> None:
    """Exactly zero at every position that predicts a thinking token, not zero at those that predict the answer.

    The last hidden states stand for the logits, which TRL does not build: the head is applied to each by itself.
    """
    mask(kept / "scores", "answers", out=tmp_path / "m.parquet")
    export(tmp_path / "m.parquet", "trl", tmp_path / "out")
    trainer = _trainer(tmp_path / "out", tmp_path / "run", per_device_train_batch_size=3)
    hidden: list[Any] = []

    def keep(_: Any, __: Any, output: Any) -> None:
        output.retain_grad()
        hidden.append(output)

    trainer.model.model.norm.register_forward_hook(keep)
    marker = trainer.processing_class.convert_tokens_to_ids(THINK_END)
    thinking = answer = 0
    for batch in trainer.get_train_dataloader():
        hidden.clear()
        trainer.compute_loss(trainer.model, dict(batch)).backward()
        (states,) = hidden
        for ids, labels, gradient_PD in zip(batch["input_ids"], batch["labels"], states.grad, strict=True):
            end = ids.tolist().index(marker)
            assert (labels[: end + 1] == -100).all()
            # The state at p - 1 predicts the token at p.
            assert (gradient_PD[:end] == 0).all()
            thinking += end
            places = (labels != -100).nonzero()[:, 0]
            assert (gradient_PD[places - 1].abs().sum(1) > 0).all()
            answer += len(places)
    assert thinking > 100
    assert answer == sum(label != -100 for row in answers for label in row["labels"])


@cache
def _exact_model() -> Any:
    return transformers.AutoModelForCausalLM.from_pretrained(STUDENT, dtype=torch.float64)


@cache
def _nll(ids: tuple[int, ...]) -> list[float]:
    """-ln p of every token, in float64 from the logits before it; 0.0 stands at index 0 and is never used."""
    with torch.no_grad():
        logits_PV = _exact_model()(torch.tensor([ids])).logits[0].numpy()
    values = [0.0]
    for place in range(1, len(ids)):
        row_V = logits_PV[place - 1]
        top = row_V.max()
        values.append(math.log(np.exp(row_V - top).sum()) + top - row_V[ids[place]])
    return values


def _oracle(rows: list[dict[str, Any]], *, token: bool = True, sample: bool = True) -> float:
    """sum(w * nll) / sum(|w|) over the trained tokens of some rows, with the weights asked for."""
    above = below = 0.0
    for row in rows:
        nll_P = _nll(tuple(row["input_ids"]))
        for place, label in enumerate(row["labels"]):
            if label != -100:
                weight = (row["loss_weight"][place] if token else 1.0) * (row["sample_weight"] if sample else 1.0)
                above += weight * nll_P[place]
                below += abs(weight)
    return above / below


def test_weights_change_the_loss_as_by_hand(weighted: list[dict[str, Any]], tmp_path: Path) -> None:
    """A step of two accumulated batches: the logged loss is that of all its rows together, and no other weighting's."""
    rows = weighted[:6]
    export(write_mask(tmp_path / "m.parquet", rows), "trl", tmp_path / "out")
    trainer = _trainer(
        tmp_path / "out",
        tmp_path / "run",
        WeightedSFTTrainer,
        per_device_train_batch_size=3,
        gradient_accumulation_steps=2,
        max_steps=1,
        learning_rate=0.0,
    )
    trainer.train()
    assert len(trainer.seen) == 2
    exact = _oracle(rows)
    logged = next(entry["loss"] for entry in trainer.state.log_history if "loss" in entry)
    assert sum(row["loss_weight"][p] * row["sample_weight"] for row in rows for p in range(len(row["labels"]))) < 10
    assert logged == pytest.approx(exact, rel=1e-4)
    for other in (_oracle(rows, token=False, sample=False), _oracle(rows, token=False), _oracle(rows, sample=False)):
        assert abs(other - exact) > 1e-3 * exact
    for batch in list(trainer.seen):
        picked = [next(row for row in rows if row["input_ids"] == ids) for ids, _ in _batch_rows(batch)]
        loss = trainer.compute_loss(trainer.model, dict(batch)).item()
        assert loss == pytest.approx(_oracle(picked), rel=1e-4)


def test_rewards_may_be_negative(weighted: list[dict[str, Any]], tmp_path: Path) -> None:
    """Every third weight below 0: the loss over the sizes of the weights, not over their sum."""
    rows = [
        row | {"loss_weight": [-w if place % 3 == 0 else w for place, w in enumerate(row["loss_weight"])]}
        for row in weighted[:3]
    ]
    export(write_mask(tmp_path / "m.parquet", rows, signed=True), "trl", tmp_path / "out")
    trainer = _trainer(tmp_path / "out", tmp_path / "run", WeightedSFTTrainer, per_device_train_batch_size=3)
    (batch,) = trainer.get_train_dataloader()
    loss = trainer.compute_loss(trainer.model, dict(batch)).item()
    assert loss == pytest.approx(_oracle(rows), rel=1e-4)
    assert abs(loss - _oracle(weighted[:3])) > 0.1 * abs(loss)


def test_gradients_are_those_of_the_weighted_loss(weighted: list[dict[str, Any]], tmp_path: Path) -> None:
    """Against plain autograd over the full logits, in float64."""
    rows = weighted[:3]
    export(write_mask(tmp_path / "m.parquet", rows), "trl", tmp_path / "out")
    trainer = _trainer(tmp_path / "out", tmp_path / "run", WeightedSFTTrainer, per_device_train_batch_size=3)
    (batch,) = trainer.get_train_dataloader()
    trainer.model.train()
    trainer.compute_loss(trainer.model, dict(batch)).backward()
    model = transformers.AutoModelForCausalLM.from_pretrained(STUDENT, dtype=torch.float64)
    above, below = torch.zeros((), dtype=torch.float64), 0.0
    for row in rows:
        logp_PV = model(torch.tensor([row["input_ids"]])).logits[0].log_softmax(-1)
        for place, label in enumerate(row["labels"]):
            if label != -100:
                weight = row["loss_weight"][place] * row["sample_weight"]
                above = above - weight * logp_PV[place - 1, label]
                below += weight
    torch.autograd.backward(above / below)
    for ours, exact in zip(trainer.model.parameters(), model.parameters(), strict=True):
        assert torch.allclose(ours.grad.double(), exact.grad, rtol=1e-3, atol=1e-5)


def _soft(rows: list[dict[str, Any]], k: int = 5) -> list[dict[str, Any]]:
    """Rows with a teacher's best entries at their labels: random ids, the token itself among them, and random shares."""
    draw, found = np.random.default_rng(4), []
    for row in rows:
        ids, logprobs, tails = [], [], []
        for label in row["labels"]:
            others = draw.choice(np.setdiff1d(np.arange(500), [label]), k - 1, replace=False).tolist()
            shares = np.sort(draw.dirichlet(np.ones(k + 1)))[::-1]
            ids.append([label, *others] if label != -100 else [])
            logprobs.append(np.log(shares[:k]).tolist() if label != -100 else [])
            tails.append(math.log(shares[k]) if label != -100 else None)
        entries = {"teacher_topk_ids": ids, "teacher_topk_logprobs": logprobs, "teacher_log_tail": tails}
        found.append({name: value for name, value in row.items() if name != "loss_weight"} | entries)
    return found


def _taught(rows: list[dict[str, Any]], kind: str, share: float) -> float:
    """The mean over labels of a divergence of K + 1 shares, in float64, by its definition."""
    model = transformers.AutoModelForCausalLM.from_pretrained(STUDENT, dtype=torch.float64)
    losses = []
    for row in rows:
        with torch.no_grad():
            p_PV = model(torch.tensor([row["input_ids"]])).logits[0].softmax(-1).numpy()
        for place, ids in enumerate(row["teacher_topk_ids"]):
            if not ids:
                continue
            p = np.append(p_PV[place - 1][ids], 1 - p_PV[place - 1][ids].sum())
            q = np.exp(np.append(row["teacher_topk_logprobs"][place], row["teacher_log_tail"][place]))
            m = (p + q) / 2
            divergence = {
                "forward": (q * np.log(q / p)).sum(),
                "reverse": (p * np.log(p / q)).sum(),
                "js": ((p * np.log(p / m)).sum() + (q * np.log(q / m)).sum()) / 2,
            }[kind]
            losses.append((1 - share) * divergence - share * math.log(p_PV[place - 1][row["input_ids"][place]]))
    return float(np.mean(losses))


@pytest.mark.parametrize(("kind", "share"), [("forward", 0.0), ("reverse", 0.0), ("js", 0.0), ("forward", 0.25)])
def test_a_stored_teacher_is_distilled_from(
    kind: str, share: float, weighted: list[dict[str, Any]], tmp_path: Path
) -> None:
    """TRL's trainer with our loss, on what was exported, against float64; another divergence is another number."""
    rows = [{name: value for name, value in row.items() if name != "sample_weight"} for row in _soft(weighted[:3])]
    exported = export(write_mask(tmp_path / "m.parquet", rows), "trl", tmp_path / "out", check=True)
    assert exported.check is not None
    assert exported.check.passed, exported.check
    assert exported.check.reader.startswith("TRL")

    class Given(StoredTeacherTrainer):
        def __init__(self, model: Any, args: Any, **options: Any) -> None:
            super().__init__(model, args, divergence=kind, cross_entropy=share, **options)

    trainer = _trainer(tmp_path / "out", tmp_path / "run", Given, per_device_train_batch_size=3)
    (batch,) = trainer.get_train_dataloader()
    assert trainer.compute_loss(trainer.model, dict(batch)).item() == pytest.approx(
        _taught(rows, kind, share), rel=1e-4
    )
    other = _taught(rows, "reverse" if kind == "forward" else "forward", share)
    assert abs(other - _taught(rows, kind, share)) > 0.01


def test_equal_weights_give_trls_loss(answers: list[dict[str, Any]], tmp_path: Path) -> None:
    rows = [row | {"loss_weight": [0.125] * len(row["labels"]), "sample_weight": 2.0} for row in answers[:6]]
    export(write_mask(tmp_path / "m.parquet", rows), "trl", tmp_path / "out")
    losses = []
    for trainer_class in (WeightedSFTTrainer, trl.SFTTrainer):
        trainer = _trainer(
            tmp_path / "out", tmp_path / "run", trainer_class, max_steps=1, learning_rate=0.0,
            per_device_train_batch_size=2, gradient_accumulation_steps=3,
        )  # fmt: skip
        trainer.train()
        losses.append(trainer.state.log_history[0]["loss"])
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    assert losses[0] == pytest.approx(_oracle(rows), rel=1e-4)


def test_sample_weights_of_conversations(kept: Path, tmp_path: Path) -> None:
    """Text in, weights through TRL's own tokenization: the loss is that of the rows' scored tokens and end-of-turn markers."""
    lines = [json.loads(line) for line in (kept / "kept.jsonl").read_text().splitlines()][:4]
    for number, line in enumerate(lines):
        line["sample_weight"] = 0.5 + number
    path = tmp_path / "kept.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    export(path, "trl", tmp_path / "out", student=STUDENT)
    trainer = _trainer(tmp_path / "out", tmp_path / "run", WeightedSFTTrainer, per_device_train_batch_size=4)
    (batch,) = trainer.get_train_dataloader()
    rows = []
    for ids, labels in _batch_rows(batch):
        text = trainer.processing_class.decode(ids)
        (line,) = (
            each for each in lines if each["messages"][1]["content"] in text and each["messages"][0]["content"] in text
        )
        rows.append({"input_ids": ids, "labels": labels, "sample_weight": line["sample_weight"]})
    loss = trainer.compute_loss(trainer.model, dict(batch)).item()
    assert loss == pytest.approx(_oracle(rows, token=False), rel=1e-4)
    assert abs(_oracle(rows, token=False, sample=False) - loss) > 1e-3 * loss


def test_a_step_without_weight_is_zero_not_nan(weighted: list[dict[str, Any]], tmp_path: Path) -> None:
    rows = [weighted[0] | {"sample_weight": 0.0}, weighted[1]]
    export(write_mask(tmp_path / "m.parquet", rows), "trl", tmp_path / "out")
    trainer = _trainer(tmp_path / "out", tmp_path / "run", WeightedSFTTrainer, per_device_train_batch_size=1)
    losses = [trainer.compute_loss(trainer.model, dict(batch)) for batch in trainer.get_train_dataloader()]
    assert sorted(loss.item() == 0 for loss in losses) == [False, True]
    assert all(torch.isfinite(loss) for loss in losses)
    sum(losses).backward()
    assert all(parameter.grad.isfinite().all() for parameter in trainer.model.parameters())


def test_evaluation_is_weighted_too(weighted: list[dict[str, Any]], tmp_path: Path) -> None:
    rows = weighted[:3]
    export(write_mask(tmp_path / "m.parquet", rows), "trl", tmp_path / "out")
    trainer = _trainer(tmp_path / "out", tmp_path / "run", WeightedSFTTrainer, per_device_eval_batch_size=3)
    found = trainer.evaluate(trainer.train_dataset)
    assert found["eval_loss"] == pytest.approx(_oracle(rows), rel=1e-4)


def test_what_knows_no_weights_is_refused(weighted: list[dict[str, Any]], tmp_path: Path) -> None:
    export(write_mask(tmp_path / "m.parquet", weighted[:2]), "trl", tmp_path / "out")
    for option in ({"packing": True}, {"padding_free": True}, {"label_smoothing_factor": 0.1}, {"loss_type": "dft"}):
        with pytest.raises(UsageError, match="not with weights"):
            _trainer(tmp_path / "out", tmp_path / "run", WeightedSFTTrainer, **option)
    cut = {"input_ids": [1, 2], "labels": [-100, 2], "loss_weight": [0.0, 1.0, 1.0]}
    with pytest.raises(UsageError, match="max_length has cut"):
        WeightedCollator(0)([cut])


def test_padding_and_masked_tokens_weigh_nothing() -> None:
    rows = [
        {"input_ids": [1, 2, 3], "labels": [-100, 2, -100], "loss_weight": [9.0, 0.5, 9.0], "sample_weight": 4.0},
        {"input_ids": [1, 2], "labels": [-100, 2]},
    ]
    batch = WeightedCollator(0)(rows)
    assert batch["loss_weight"].tolist() == [[0.0, 2.0, 0.0], [0.0, 1.0, 0.0]]


def _student_with(template: str, folder: Path) -> Path:
    shutil.copytree(STUDENT, folder)
    (folder / "chat_template.jinja").write_text(template)
    return folder


def test_check_goes_through_trl_and_finds_another_template(kept: Path, tmp_path: Path) -> None:
    """Single turns need no generation marks. Several do, and TRL has none for a template that is nobody's: it says so."""
    marked = (STUDENT / "chat_template.jinja").read_text()
    unmarked = marked.replace("{%- generation -%}", "").replace("{%- endgeneration -%}", "")
    student = _student_with(unmarked, tmp_path / "unmarked")
    done = export(kept / "kept.jsonl", "trl", tmp_path / "one", student=student, check=True)
    assert done.check is not None
    assert (done.check.passed, done.check.rows) == (True, done.rows_written)
    assert done.check.reader.startswith("TRL 1.")
    rows = [json.loads(line) for line in (kept / "kept.jsonl").read_text().splitlines()][:3]
    for row in rows:
        row["messages"] *= 2
    (tmp_path / "two.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    arguments = ["export", str(tmp_path / "two.jsonl"), "--to", "trl", "--out", str(tmp_path / "two"), "--check"]
    good = CliRunner().invoke(app, [*arguments, "--student", str(STUDENT)])
    assert good.exit_code == 0, good.output
    assert "3 of 3 rows agree" in good.stdout
    bad = CliRunner().invoke(app, [*arguments, "--student", str(student)])
    assert bad.exit_code == 1
    assert "its loader stopped" in bad.stdout
    assert "Traceback" not in bad.output


def test_check_of_a_soft_mask(weighted: list[dict[str, Any]], tmp_path: Path) -> None:
    done = export(write_mask(tmp_path / "m.parquet", weighted), "trl", tmp_path / "out", check=True)
    assert done.check is not None
    assert done.check.passed
    assert done.check.note == ""


@pytest.mark.slow
def test_the_script_beside_the_data_runs(weighted: list[dict[str, Any]], tmp_path: Path) -> None:
    """train.py as the README of an export says, and `trl sft` with its sft.yaml."""
    export(write_mask(tmp_path / "m.parquet", weighted[:4]), "trl", tmp_path / "soft")
    hard = [{name: row[name] for name in ("id", "input_ids", "labels")} for row in weighted[:4]]
    export(write_mask(tmp_path / "h.parquet", hard), "trl", tmp_path / "hard")
    trl_command = "trl sft --config sft.yaml --model_name_or_path MODEL --output_dir OUTPUT"
    assert trl_command in (tmp_path / "hard" / "README.md").read_text()
    for folder in ("soft", "hard"):
        with (tmp_path / folder / "sft.yaml").open("a") as options:
            options.write("use_cpu: true\nbf16: false\nreport_to: none\n")
    commands = {
        "soft": [sys.executable, "train.py", str(STUDENT), "run"],
        "hard": [
            str(Path(sys.executable).parent / "trl"),
            *trl_command.replace("MODEL", str(STUDENT)).replace("OUTPUT", "run").split()[1:],
        ],
    }
    for folder, command in commands.items():
        done = subprocess.run(
            command, cwd=tmp_path / folder, capture_output=True, text=True, check=False, timeout=HANGS
        )
        assert done.returncode == 0, done.stderr[-2000:]
        assert (tmp_path / folder / "run" / "model.safetensors").is_file()


def test_a_student_of_another_tokenizer_is_noticed(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    score(DATA / "trajectories.jsonl", STUDENT, tmp_path / "scores", limit=2)
    mask(tmp_path / "scores", "all", out=tmp_path / "m.parquet")
    export(tmp_path / "m.parquet", "trl", tmp_path / "a", student=STUDENT, check=True)
    assert "another tokenizer" not in caplog.text
    export(tmp_path / "m.parquet", "trl", tmp_path / "b", student=DATA / "models" / "student-llama", check=True)
    assert "another tokenizer" in caplog.text


DATED = """{{- strftime_now('%d %B %Y') ~ ' ' ~ tone ~ '\\n' -}}{%- for m in messages -%}{{- '<|im_start|>' ~ m.role ~ '\\n' -}}
{%- if m.role == 'assistant' -%}{%- generation -%}{{- m.content ~ '<|im_end|>' -}}{%- endgeneration -%}
{%- else -%}{{- m.content ~ '<|im_end|>' -}}{%- endif -%}{{- '\\n' -}}{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}{%- endif -%}"""


def test_the_check_renders_with_the_runs_template_and_variables(tmp_path: Path) -> None:
    """A template of its own that prints today's date, variables of the run and of rows, thoughts folded."""
    question, answer = {"role": "user", "content": "one?"}, {"role": "assistant", "content": "alpha."}
    rows = [
        {"id": "a", "messages": [question, {**answer, "reasoning_content": "aleph."}, question, answer]},
        {"id": "b", "messages": [question, answer], "chat_template_kwargs": {"tone": "rude"}},
    ]
    data, template = tmp_path / "rows.jsonl", tmp_path / "dated.jinja"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    template.write_text(DATED)
    options: dict[str, Any] = {"student": STUDENT, "chat_template": str(template), "reasoning_as": "think"}
    done = export(data, "trl", tmp_path / "out", check=True, chat_template_kwargs={"tone": "kind"}, **options)
    assert done.check is not None
    assert (done.check.passed, done.check.rows) == (True, 2), done.check.differences
    # The control: a template that says something else is noticed.
    (tmp_path / "out" / "chat_template.jinja").write_text(DATED.replace("tone", "'other'"))
    from trajscore.integrations.trl import load

    found = [ids.tolist() for ids, _, _ in load(tmp_path / "out", str(STUDENT))]
    (tmp_path / "out" / "chat_template.jinja").write_text(DATED)
    assert found != [ids.tolist() for ids, _, _ in load(tmp_path / "out", str(STUDENT))]
