"""Folders that are not one model: refused by both engines with the same words, before anything is scored."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from tests.helpers.paths import MODELS
from trajscore.engines import ENGINES, EngineOptions, ModelSource, load_engine
from trajscore.engines.checkpoint import ADAPTER, INDEX, ONE_FILE, weight_files
from trajscore.engines.fingerprint import model_identity
from trajscore.errors import UsageError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return Path(shutil.copytree(MODELS / "student", tmp_path / "student"))


def _weights(folder: Path) -> dict[str, np.ndarray]:
    return dict(load_file(folder / ONE_FILE))


def _split(folder: Path) -> None:
    """Two shards with an index, in place of the one file."""
    weights = _weights(folder)
    names = sorted(weights)
    halves = {"model-00001-of-00002.safetensors": names[::2], "model-00002-of-00002.safetensors": names[1::2]}
    for file, chosen in halves.items():
        save_file({name: weights[name] for name in chosen}, folder / file, {"format": "pt"})
    index = {"metadata": {}, "weight_map": {name: file for file, chosen in halves.items() for name in chosen}}
    (folder / INDEX).write_text(json.dumps(index))
    (folder / ONE_FILE).unlink()


def _stale_beside_shards(folder: Path) -> None:
    one = (folder / ONE_FILE).read_bytes()
    _split(folder)
    (folder / ONE_FILE).write_bytes(one)


def _shard_missing(folder: Path) -> None:
    _split(folder)
    (folder / "model-00002-of-00002.safetensors").unlink()


def _shards_without_index(folder: Path) -> None:
    _split(folder)
    (folder / INDEX).unlink()


def _two_models(folder: Path) -> None:
    shutil.copy(folder / ONE_FILE, folder / "consolidated.safetensors")


def _adapter_beside(folder: Path) -> None:
    (folder / ADAPTER).write_text("{}")


def _set_layers(folder: Path, more: int) -> None:
    config = json.loads((folder / "config.json").read_text())
    config["num_hidden_layers"] += more
    config["layer_types"] = ["full_attention"] * config["num_hidden_layers"]
    (folder / "config.json").write_text(json.dumps(config))


def _other_width(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    config["intermediate_size"] *= 2
    (folder / "config.json").write_text(json.dumps(config))


def _only(folder: Path, name: str) -> None:
    (folder / ONE_FILE).unlink()
    (folder / name).write_bytes(b"")


def _broken_index(folder: Path) -> None:
    _split(folder)
    (folder / INDEX).write_text('{"weight_map": {"a": "../../other.safetensors"}}')


BROKEN: dict[str, tuple[Callable[[Path], None], str]] = {
    "an older file beside shards": (_stale_beside_shards, "beside the 2 files that"),
    "a missing shard": (_shard_missing, r"model-00002-of-00002.safetensors, which is not there"),
    "shards without an index": (_shards_without_index, "nothing says which of them make the model"),
    "two sets of weights": (_two_models, "consolidated.safetensors beside model.safetensors"),
    "an adapter beside its base": (_adapter_beside, "--adapter"),
    "more layers than config.json": (lambda folder: _set_layers(folder, -1), "what config.json does not ask for"),
    "fewer layers than config.json": (lambda folder: _set_layers(folder, 1), "lacks"),
    "another width than config.json": (_other_width, "another shape"),
    "pickled weights": (lambda folder: _only(folder, "pytorch_model.bin"), "pickled ones"),
    "a GGUF file": (lambda folder: _only(folder, "model.gguf"), "GGUF ones"),
    "only an adapter's weights": (lambda folder: _only(folder, "adapter_model.safetensors"), "weights of an adapter"),
    "an index that leaves the folder": (_broken_index, "as a file"),
}


@pytest.mark.parametrize("engine", [*ENGINES, "auto"])
@pytest.mark.parametrize("what", BROKEN)
def test_every_engine_refuses(what: str, engine: str, folder: Path) -> None:
    """A UsageError, so that `auto` does not fall back to an engine that reads other weights."""
    damage, words = BROKEN[what]
    damage(folder)
    with pytest.raises(UsageError, match=words):
        load_engine(engine, ModelSource(str(folder), np.arange(551)), EngineOptions())


def test_shards_are_read_as_the_one_file_was(folder: Path) -> None:
    before = load_engine("hf", ModelSource(str(folder), np.arange(551)), EngineOptions())[1].head.weight_VD
    _split(folder)
    assert [path.name for path in weight_files(folder)] == [
        "model-00001-of-00002.safetensors",
        "model-00002-of-00002.safetensors",
    ]
    after = load_engine("hf", ModelSource(str(folder), np.arange(551)), EngineOptions())[1].head.weight_VD
    assert bool((before == after).all())


def test_a_head_of_another_task_only_warns(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    weights = _weights(folder) | {"v_head.summary.weight": np.ones((1, 64), np.float16)}
    save_file(weights, folder / ONE_FILE, {"format": "pt"})
    load_engine("hf", ModelSource(str(folder), np.arange(551)), EngineOptions())
    assert "v_head.summary.weight" in caplog.text


def test_the_fingerprint_is_of_the_weights_that_are_read(folder: Path) -> None:
    before = model_identity(str(folder))
    (folder / "training_args.bin").write_bytes(b"other")
    assert model_identity(str(folder)) == before
    _split(folder)
    assert model_identity(str(folder)) != before
