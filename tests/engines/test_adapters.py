"""Adapters: merged, a model gives the numbers of a folder that was merged by hand; what does not belong together is refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
import torch
import transformers

import trajscore as ts
from tests.helpers.paths import DATA, MODELS
from tests.helpers.tiny_models import make_model
from trajscore.corpus import open_corpus
from trajscore.engines import ENGINES, EngineOptions, ModelSource, TokenSequence, load_engine
from trajscore.engines.adapters import WEIGHTS, adapter_identity
from trajscore.engines.checkpoint import ADAPTER
from trajscore.engines.reductions import TOKENS
from trajscore.errors import UsageError
from trajscore.scoring.forecast.memory import plan_memory
from trajscore.scoring.models import RoleModel
from trajscore.scoring.options import ScoreOptions
from trajscore.scoring.pipeline import open_passes


def _save_adapter(base: Path, folder: Path, **settings: Any) -> Path:
    """A LoRA with random weights in both factors."""
    torch.manual_seed(1)
    model = transformers.AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    wanted = {"r": 4, "target_modules": ["q_proj", "down_proj"], "init_lora_weights": False, **settings}
    peft.get_peft_model(model, peft.LoraConfig(task_type="CAUSAL_LM", **wanted)).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("base"), "llama", tied=False)


@pytest.fixture(scope="module")
def adapter(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _save_adapter(base, tmp_path_factory.mktemp("adapter"))


@pytest.fixture(scope="module")
def by_hand(base: Path, adapter: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a user would make: base plus scaled product of the two factors, written as a whole model."""
    from safetensors.torch import load_file, save_file

    folder = Path(shutil.copytree(base, tmp_path_factory.mktemp("merged") / "model"))
    weights, factors = load_file(base / "model.safetensors"), load_file(adapter / WEIGHTS)
    settings = json.loads((adapter / ADAPTER).read_text())
    names = [name for name in factors if ".lora_A." in name]
    assert len(names) == 4
    for name in names:
        change = factors[name.replace("lora_A", "lora_B")] @ factors[name] * (settings["lora_alpha"] / settings["r"])
        weights[name.removeprefix("base_model.model.").replace(".lora_A", "")] += change
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    return folder


def _surprisals(engine: str, folder: Path, adapter: Path | None = None) -> np.ndarray[Any, Any]:
    ids = np.random.default_rng(0).integers(0, 500, 60).astype(np.int32)
    source = ModelSource(str(folder), np.arange(500), adapter=None if adapter is None else str(adapter))
    _, loaded = load_engine(engine, source, EngineOptions())
    try:
        ((_, scores),) = loaded.run([TokenSequence(ids, np.arange(1, 60, dtype=np.uint32))], TOKENS)
        return scores.surprisal_N
    finally:
        loaded.close()


@pytest.mark.parametrize("engine", ENGINES)
def test_equals_a_folder_merged_by_hand(engine: str, base: Path, adapter: Path, by_hand: Path) -> None:
    merged = _surprisals(engine, base, adapter)
    np.testing.assert_allclose(merged, _surprisals("hf", by_hand), atol=1e-4)
    assert np.abs(merged - _surprisals("hf", base)).max() > 0.1, "control: the adapter changes the numbers"


@pytest.mark.parametrize("engine", ["hf", pytest.param("vllm", marks=pytest.mark.slow)])
def test_a_head_of_its_own_in_a_tied_model(engine: str, tmp_path: Path) -> None:
    """The adapter's head replaces the embedding's rows as head, and nothing else."""
    tied = make_model(tmp_path / "base", "llama", tied=True)
    adapter = _save_adapter(tied, tmp_path / "adapter", modules_to_save=["lm_head"])
    from safetensors.torch import load_file, save_file

    weights = load_file(adapter / WEIGHTS)
    (name,) = (name for name in weights if name.endswith("lm_head.weight"))
    weights[name] = torch.randn(weights[name].shape, generator=torch.Generator().manual_seed(3)) * 0.3
    save_file(weights, adapter / WEIGHTS)
    model = transformers.AutoModelForCausalLM.from_pretrained(tied, dtype=torch.float64)
    merged = peft.PeftModel.from_pretrained(model, adapter).merge_and_unload()
    ids = torch.from_numpy(np.random.default_rng(0).integers(0, 500, 60))
    with torch.inference_mode():
        logits = merged(input_ids=ids[None]).logits[0, :, :500]
    oracle = -logits.log_softmax(-1)[:-1].gather(1, ids[1:, None])[:, 0].numpy()
    np.testing.assert_allclose(_surprisals(engine, tied, adapter), oracle, atol=1e-4)


def _kind(folder: Path, kind: str) -> None:
    settings = json.loads((folder / ADAPTER).read_text())
    (folder / ADAPTER).write_text(json.dumps({**settings, "peft_type": kind}))


BROKEN: dict[str, tuple[Callable[[Path], object], str]] = {
    "no folder": (shutil.rmtree, "no such folder"),
    "no settings": (lambda folder: (folder / ADAPTER).unlink(), "a folder without adapter_config.json"),
    "settings that are no JSON": (lambda folder: (folder / ADAPTER).write_text("{"), "cannot be read"),
    "settings without a kind": (lambda folder: (folder / ADAPTER).write_text("{}"), "cannot be read"),
    "pickled weights": (lambda folder: (folder / WEIGHTS).rename(folder / "adapter_model.bin"), "no adapter_model.saf"),
    "prompts": (lambda folder: _kind(folder, "PREFIX_TUNING"), "cannot be merged into its weights"),
}


@pytest.mark.parametrize("what", BROKEN)
def test_what_is_no_adapter_is_refused_before_anything_is_loaded(what: str, adapter: Path, tmp_path: Path) -> None:
    damage, words = BROKEN[what]
    damage(broken := Path(shutil.copytree(adapter, tmp_path / "adapter")))
    with pytest.raises(UsageError, match=rf"--adapter {broken}: .*{words}"):
        ts.score(DATA / "trajectories.jsonl", MODELS / "student", tmp_path / "out", adapter=broken)


OTHER_BASES: dict[str, tuple[str, dict[str, Any]]] = {
    "another width": ("llama", {"intermediate_size": 128}),
    "fewer layers": ("llama", {"num_hidden_layers": 1}),
    "more layers": ("llama", {"num_hidden_layers": 3}),
    "other names": ("granite_hybrid", {}),
}


@pytest.mark.parametrize("what", OTHER_BASES)
def test_another_base_is_refused(what: str, adapter: Path, tmp_path: Path) -> None:
    architecture, settings = OTHER_BASES[what]
    other = make_model(tmp_path / "other", architecture, tied=False, **settings)
    with pytest.raises(UsageError, match=r"cannot be merged into .*other") as caught:
        _surprisals("hf", other, adapter)
    assert len(caught.value.problem.splitlines()) == 1
    assert "which it calls" in caught.value.hint


def test_a_whole_model_is_no_adapter(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="a whole model, no adapter"):
        ts.score(
            DATA / "trajectories.jsonl", MODELS / "student", tmp_path / "out", distilled=MODELS / "student",
            distilled_adapter=MODELS / "student",
        )  # fmt: skip


@pytest.mark.parametrize("options", [{"teacher_adapter": "a"}, {"distilled_adapter": "a"}], ids=str)
def test_an_adapter_belongs_to_a_model(options: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="belongs to"):
        ts.score(DATA / "trajectories.jsonl", MODELS / "student", tmp_path / "out", **options)


def test_an_adapter_given_as_a_model_names_the_flag(adapter: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=f"--adapter {adapter}"):
        ts.score(DATA / "trajectories.jsonl", adapter, tmp_path / "out")


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("corpus") / "c.jsonl"
    path.write_text("".join((DATA / "trajectories.jsonl").read_text().splitlines(keepends=True)[:3]))
    return path


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _save_adapter(MODELS / "student", tmp_path_factory.mktemp("trained"))


def test_the_manifest_knows_the_adapter(corpus: Path, trained: Path, tmp_path: Path) -> None:
    given: dict[str, Any] = {"student": MODELS / "student", "engine": "hf", "distilled": MODELS / "student"}
    ts.score(corpus, out=tmp_path / "s", adapter=trained, **given)
    settings = ts.read_manifest(tmp_path / "s").settings
    assert settings["student"]["adapter"] == adapter_identity(str(trained))
    assert settings["others"][0]["adapter"] is None
    frame = ts.scan(tmp_path / "s").collect()
    changed = (frame["student_surprisal"].explode() - frame["distilled_surprisal"].explode()).abs()
    assert changed.to_numpy().max() > 0.1, "control: the base itself, as the distilled student"
    for other in (None, _save_adapter(MODELS / "student", tmp_path / "other", r=2)):
        with pytest.raises(UsageError, match="adapter"):
            ts.score(corpus, out=tmp_path / "s", adapter=other, **given)


@pytest.mark.parametrize("engine", ENGINES)
def test_the_dry_run_states_the_size_of_the_copy(engine: Any, corpus: Path, trained: Path, tmp_path: Path) -> None:
    options = ScoreOptions(
        data=corpus, student=MODELS / "student", out=tmp_path / "s", engine=engine, adapter=trained,
        teacher=MODELS / "teacher",
    )  # fmt: skip
    student = RoleModel("student", str(options.student), options)
    passes = open_passes(student, open_corpus(corpus), options, tmp_path / "states")
    weights = transformers.AutoModelForCausalLM.from_pretrained(MODELS / "student").num_parameters() * 4
    assert [each["merged_copy"] for each in plan_memory(passes)(100)["models"]] == [weights * (engine == "vllm"), 0]
