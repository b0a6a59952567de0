"""Models of text inside others that see: their numbers are those of the text half, or one sentence says why there are none."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from tests.helpers.oracles import from_logits
from tests.helpers.tiny_models import SHELLS, make_shell
from trajscore.engines import ENGINE_VARIABLE, EngineOptions, ModelSource, TokenSequence, load_engine
from trajscore.engines.footprint import Footprint
from trajscore.engines.reductions import TOKENS
from trajscore.errors import EngineError

IDS = np.random.default_rng(0).integers(0, 500, 120).astype(np.int32)
SEQUENCES = [TokenSequence(IDS[:length], np.arange(1, length, dtype=np.uint32)) for length in (120, 30, 77)]


def _source(folder: Path) -> ModelSource:
    return ModelSource(str(folder), np.arange(500))


def _surprisals(engine: Any) -> list[Any]:
    try:
        found = dict(engine.run(SEQUENCES, TOKENS))
    finally:
        engine.close()
    return [found[index].surprisal_N for index in range(len(SEQUENCES))]


def _oracle(folder: Path, name: str, dtype: torch.dtype) -> list[Any]:
    """Of the whole model as transformers reads text with it, without us."""
    model = (
        getattr(transformers, f"{SHELLS[name][0]}ForConditionalGeneration").from_pretrained(folder, dtype=dtype).eval()
    )
    found = []
    for sequence in SEQUENCES:
        ids = torch.from_numpy(sequence.input_ids_P.astype(np.int64))
        with torch.no_grad():
            logits = model(input_ids=ids[None]).logits[0, :-1, :500].double().numpy()
        found.append(from_logits(logits, ids[1:].numpy()).surprisal)
    return found


@pytest.mark.parametrize("name", SHELLS)
def test_transformers_scores_the_text_half(name: str, tmp_path: Path) -> None:
    folder = make_shell(tmp_path, name)
    _, engine = load_engine("hf", _source(folder), EngineOptions(dtype="float32", max_num_batched_tokens=100))
    exact, plain = _oracle(folder, name, torch.float64), _oracle(folder, name, torch.float32)
    for ours, truth, theirs in zip(_surprisals(engine), exact, plain, strict=True):
        # Gated linear attention is less exact in float32 than the others, with us as without us.
        np.testing.assert_allclose(ours, truth, atol=1e-4 + 2 * np.abs(theirs - truth).max())
        assert np.abs(ours[1:] - truth[:-1]).max() > 0.1, "control: the next token's"
    assert Footprint(str(folder), None, EngineOptions()).max_model_len == 512


@pytest.mark.slow
@pytest.mark.parametrize("name", SHELLS)
def test_vllm_scores_the_text_half_or_says_what_is_missing(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """On a CPU it comes without torchvision, which its code of these models imports."""
    pytest.importorskip("vllm")
    monkeypatch.setenv("VLLM_CPU_KVCACHE_SPACE", "1")
    monkeypatch.delenv(ENGINE_VARIABLE, raising=False)
    folder, options = make_shell(tmp_path, name), EngineOptions(dtype="float32")
    expected = _oracle(folder, name, torch.float64)
    if importlib.util.find_spec("torchvision") is None:
        with pytest.raises(EngineError, match=r"vLLM's \w+ needs torchvision, which is not installed\.") as caught:
            load_engine("vllm", _source(folder), options)
        assert caught.value.hint == "Try --engine hf."
        used, engine = load_engine("auto", _source(folder), options)
        assert used == "hf"
        assert "needs torchvision" in caplog.text
    else:
        _, engine = load_engine("vllm", _source(folder), options)
    for ours, truth in zip(_surprisals(engine), expected, strict=True):
        np.testing.assert_allclose(ours, truth, atol=2e-3)
