"""Nemotron-H's Mamba layers against their recurrence, token by token in float64: time steps are bounded as the model says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers.models.nemotron_h import modeling_nemotron_h

from tests.helpers.oracles import from_logits, model_logits
from tests.helpers.tiny_models import exact_model, make_model
from trajscore.engines import EngineOptions, ModelSource, TokenSequence, load_engine
from trajscore.engines.reductions import TOKENS

SMALLEST = 1e-3
"""`time_step_min` of the model's configuration, for initial weights."""


class _Recurrence:
    """Stands for transformers' scan: the states that Mamba 2 (arXiv 2405.21060) defines, with time steps not below `least`."""

    def __init__(self, least: float) -> None:
        self.least, self.below = least, 0

    def __call__(self, x: Any, dt: Any, A: Any, B: Any, C: Any, **more: Any) -> Any:
        dt = torch.nn.functional.softplus(dt.double() + more["dt_bias"])
        self.below += int((dt < SMALLEST).sum())
        dt, heads = dt.clamp_min(self.least), x.shape[2]
        x, B, C = x.double(), *(each.double().repeat_interleave(heads // each.shape[2], 2) for each in (B, C))
        state, outputs = torch.zeros(*x.shape[:1], *x.shape[2:], B.shape[3], dtype=torch.float64), []
        for t in range(x.shape[1]):
            decay = (dt[:, t] * A.double()).exp()[..., None, None]
            state = state * decay + (dt[:, t, :, None] * x[:, t])[..., None] * B[:, t, :, None]
            outputs.append((state * C[:, t, :, None]).sum(-1) + more["D"].double()[:, None] * x[:, t])
        return (torch.stack(outputs, 1), state) if more.get("return_final_states") else torch.stack(outputs, 1)


def _oracle(folder: Path, ids: Any, least: float, monkeypatch: pytest.MonkeyPatch) -> tuple[Any, int]:
    """Surprisals of all tokens but the first, and how many time steps are below `SMALLEST`."""
    model, scan = exact_model(folder), _Recurrence(least)
    for module in model.modules():
        if hasattr(module, "mamba2_chunk_scan"):
            module.mamba2_chunk_scan = scan
    monkeypatch.setattr(modeling_nemotron_h, "mamba2_chunk_scan", scan)
    logits = model_logits(model, ids)[:-1, :500]
    monkeypatch.undo()
    return from_logits(logits, ids[1:].astype(np.int64)).surprisal, scan.below


@pytest.mark.parametrize("name", ["hf", pytest.param("vllm", marks=pytest.mark.slow)])
def test_time_steps_are_bounded_as_the_configuration_says(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make_model(tmp_path, "nemotron_h", tied=False)
    ids = np.random.default_rng(0).integers(0, 500, 200).astype(np.int32)
    exact, below = _oracle(folder, ids, 0.0, monkeypatch)
    clamped, _ = _oracle(folder, ids, SMALLEST, monkeypatch)
    assert below > 0, "this test needs time steps below the bound that is not the model's"
    assert np.abs(clamped - exact).max() > 1e-3, "control: that bound would show"
    _, engine = load_engine(name, ModelSource(str(folder), np.arange(500)), EngineOptions(dtype="float32"))
    try:
        found = dict(engine.run([TokenSequence(ids, np.arange(1, len(ids), dtype=np.uint32))], TOKENS))
    finally:
        engine.close()
    np.testing.assert_allclose(found[0].surprisal_N, exact, atol=1e-4)
