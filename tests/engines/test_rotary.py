"""Rotary positions of every kind that transformers has: a row's numbers do not depend on the rows that it is read with."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from tests.helpers.oracles import from_logits, model_logits
from tests.helpers.tiny_models import SHAPE, exact_model, make_model
from trajscore.engines import EngineOptions, ModelSource, TokenSequence, load_engine
from trajscore.engines.hf import HFEngine
from trajscore.engines.reductions import TOKENS
from trajscore.engines.rotary import length_class
from trajscore.errors import TrajscoreError

ORIGINAL, LONGEST = 64, 256
_HALF = SHAPE["head_dim"] // 2
KINDS: dict[str, dict[str, Any]] = {
    "default": {},
    "linear": {"factor": 4.0},
    "dynamic": {"factor": 4.0},
    "yarn": {"factor": 4.0, "original_max_position_embeddings": ORIGINAL},
    "longrope": {
        "short_factor": [1.0] * _HALF,
        "long_factor": [8.0] * _HALF,
        "original_max_position_embeddings": ORIGINAL,
    },
    "llama3": {
        "factor": 4.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": ORIGINAL,
    },
    "proportional": {"partial_rotary_factor": 0.5},
}
"""Name -> the settings that this kind needs."""


def test_every_kind_that_transformers_has_is_tried() -> None:
    assert KINDS.keys() == {"default", *ROPE_INIT_FUNCTIONS}


def _model(folder: Path, kind: str, made_for: int) -> Path:
    settings = {"rope_type": kind, "rope_theta": 10_000.0, **KINDS[kind]}
    return make_model(folder, "llama", tied=True, rope_parameters=settings, max_position_embeddings=made_for)


def _rows(lengths: list[int]) -> list[TokenSequence]:
    generator = np.random.default_rng(1)
    ids = [generator.integers(0, 500, length).astype(np.int32) for length in lengths]
    return [TokenSequence(each, np.arange(1, len(each), dtype=np.uint32)) for each in ids]


@pytest.mark.parametrize("kind", KINDS)
def test_a_row_is_the_same_beside_longer_ones(kind: str, tmp_path: Path) -> None:
    """Against float64, each row read by a model of its own: `dynamic` remembers the longest row that it has seen."""
    folder = _model(tmp_path, kind, ORIGINAL if kind == "dynamic" else LONGEST)
    rows = _rows([200, ORIGINAL + 1, ORIGINAL, 130, 20, 130])
    engine = HFEngine(ModelSource(str(folder), np.arange(500)), EngineOptions(dtype="float32"))
    found = dict(engine.run(rows, TOKENS))
    engine.close()
    for index, row in enumerate(rows):
        logits = model_logits(exact_model(folder), row.input_ids_P)[:-1, :500]
        expected = from_logits(logits, row.input_ids_P[1:].astype(np.int64))
        np.testing.assert_allclose(found[index].surprisal_N, expected.surprisal, atol=2e-4)


@pytest.mark.parametrize("kind", ["longrope", "dynamic"])
def test_the_control_is_sensitive_to_length(kind: str, tmp_path: Path) -> None:
    """Without classes the neighbours would show: the model does read a short row in another way beside a long one."""
    folder = _model(tmp_path, kind, ORIGINAL if kind == "dynamic" else LONGEST)
    short, long = _rows([ORIGINAL + 40 if kind == "dynamic" else ORIGINAL, 200])
    engine = HFEngine(ModelSource(str(folder), np.arange(500)), EngineOptions(dtype="float32"))
    alone = dict(engine.run([short], TOKENS))[0]
    engine._length_class = None
    beside = dict(engine.run([short, long], TOKENS))[0]
    engine.close()
    assert np.abs(alone.surprisal_N - beside.surprisal_N).max() > 1e-3


def test_layers_of_different_kinds() -> None:
    rope: dict[str, dict[str, Any]] = {
        "full_attention": {"rope_type": "longrope", "original_max_position_embeddings": 100},
        "sliding_attention": {"rope_type": "default"},
    }
    config = SimpleNamespace(max_position_embeddings=4096, rope_parameters=rope)
    of = length_class(config)
    assert of is not None
    assert [of(length) for length in (1, 100, 101, 4096)] == [0, 0, 1, 1]
    rope["full_attention"]["rope_type"] = "a kind of tomorrow"
    of = length_class(config)
    assert of is not None
    assert [of(length) for length in (1, 100, 101)] == [1, 100, 101]


@pytest.mark.parametrize(("name", "kind"), [("hf", "tomorrow"), ("vllm", "tomorrow"), ("vllm", "ntk")])
def test_a_kind_that_transformers_does_not_have_is_refused_in_one_sentence(
    name: str, kind: str, tmp_path: Path
) -> None:
    """Under vLLM too, which knows `ntk`: what depends on the length is known of transformers' kinds alone."""
    if name == "vllm":
        pytest.importorskip("vllm")
    folder = _model(tmp_path, "default", LONGEST)
    config = json.loads((folder / "config.json").read_text())
    config["rope_parameters"]["rope_type"] = kind
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(TrajscoreError, match=kind) as caught:
        load_engine(name, ModelSource(str(folder), np.arange(500)), EngineOptions(dtype="float32"))
    assert len(caught.value.problem) < 300
    assert "\n" not in caught.value.problem
