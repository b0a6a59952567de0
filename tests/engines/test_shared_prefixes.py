"""Prompts that several sequences begin with are read once: the same numbers as alone, and no sharing where that would fail."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.helpers.oracles import from_logits, model_logits
from tests.helpers.tiny_models import BARE_VOCABULARY, SHORT_LONGROPE, bare_model, exact_model
from trajscore.engines import EngineOptions, ModelSource, TokenSequence, hf
from trajscore.engines.footprint import Footprint
from trajscore.engines.hf import HFEngine
from trajscore.engines.reductions import STATES, TOKENS, Other, pair
from trajscore.engines.shared_prefixes import can_share, read_on, read_prefix, shared_prefixes


def _answers(prompts: list[int], answers: int) -> list[TokenSequence]:
    """Rows of every prompt, given by its length, in turns; answers are 20 to 119 tokens and scored at every second."""
    draw = np.random.default_rng(0)
    known = [draw.integers(0, BARE_VOCABULARY, length) for length in prompts]
    found = []
    for _ in range(answers):
        for prompt in known:
            whole = np.concatenate([prompt, draw.integers(0, BARE_VOCABULARY, draw.integers(20, 120))]).astype(np.int32)
            found.append(TokenSequence(whole, np.arange(len(prompt), len(whole), 2, dtype=np.uint32)))
    return found


def _run(engine: HFEngine, sequences: list[TokenSequence], reduction: Any) -> list[Any]:
    found = list(engine.run(sequences, reduction))
    assert sorted(index for index, _ in found) == list(range(len(sequences)))
    return [result for _, result in sorted(found, key=lambda each: each[0])]


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        ("Qwen3", {}),
        ("Mistral", {"sliding_window": 16}),
        ("Qwen2", {"sliding_window": 16, "use_sliding_window": True, "layer_types": ["full_attention", "sliding_attention"]}),
        ("Gemma2", {"sliding_window": 16, "head_dim": 32}),
        ("Qwen3Moe", {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 48}),
    ],
    ids=lambda value: value if isinstance(value, str) else ",".join(value),
)  # fmt: skip
def test_rows_of_one_prompt_have_the_numbers_that_they_have_alone(
    kind: str, settings: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Against the model's float64 logits: two prompts of five rows, a row without them, a prompt too short to share."""
    bare_model(kind, **settings).save_pretrained(tmp_path)
    sequences = [*_answers([70, 90], 5), *_answers([50], 1), *_answers([12], 2)]
    read: list[int] = []

    def noted(backbone: Any, ids_P: torch.Tensor) -> Any:
        read.append(len(ids_P))
        return read_prefix(backbone, ids_P)

    monkeypatch.setattr(hf, "read_prefix", noted)
    engine = HFEngine(ModelSource(str(tmp_path), np.arange(BARE_VOCABULARY)), EngineOptions(max_num_batched_tokens=256))
    found = _run(engine, sequences, TOKENS)
    assert sorted(read) == [69, 89], "this test needs prompts that are shared"
    exact = exact_model(tmp_path)
    for sequence, scores in zip(sequences, found, strict=True):
        logits = model_logits(exact, sequence.input_ids_P)[sequence.positions_N.astype(int) - 1]
        oracle = from_logits(logits, sequence.input_ids_P[sequence.positions_N].astype(np.int64))
        np.testing.assert_allclose(scores.surprisal_N, oracle.surprisal, atol=1e-4)
        np.testing.assert_allclose(scores.entropy_N, oracle.entropy, atol=1e-4)


def test_rows_of_another_model_stay_with_their_sequences(tmp_path: Path) -> None:
    """Student and teacher are one model: no divergence, wherever a row came in the batches of its prompt."""
    bare_model("Qwen3").save_pretrained(tmp_path)
    sequences = _answers([90, 100], 5)
    engine = HFEngine(ModelSource(str(tmp_path), np.arange(BARE_VOCABULARY)), EngineOptions())
    states = _run(engine, sequences, STATES)
    teacher = Other(lambda indices: torch.cat([states[index] for index in indices]), head=engine.head)
    for scores in _run(engine, sequences, pair(teacher)):
        assert np.abs(scores.kl_student_teacher_N).max() < 1e-6
    mixed = Other(lambda indices: torch.cat([states[index].flip(0) for index in indices]), head=engine.head)
    assert max(np.abs(scores.kl_student_teacher_N).max() for scores in _run(engine, sequences, pair(mixed))) > 0.01


def test_what_rows_of_one_prompt_hold_is_planned_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keys and values of the prompt, and of every row of a batch: at most what the plan says, and not far below."""
    bare_model("Qwen3").save_pretrained(tmp_path)
    held = [0]

    def noted(backbone: Any, cache: Any, ids_BP: torch.Tensor) -> torch.Tensor:
        prompt = sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)
        length = cache.get_seq_length()
        held.append(prompt + prompt * ids_BP.shape[0] * (length + ids_BP.shape[1]) // length)
        return read_on(backbone, cache, ids_BP)

    monkeypatch.setattr(hf, "read_on", noted)
    options = EngineOptions(max_num_batched_tokens=512)
    engine = HFEngine(ModelSource(str(tmp_path), np.arange(BARE_VOCABULARY)), options)
    _run(engine, _answers([350], 20), TOKENS)
    planned = Footprint(str(tmp_path), None, options).shared_bytes(512, options)
    assert 0.6 * planned < max(held) <= planned


def test_rows_for_whose_prompt_there_is_no_memory_are_read_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bare_model("Qwen3").save_pretrained(tmp_path)
    sequences = _answers([90, 100], 5)
    engine = HFEngine(ModelSource(str(tmp_path), np.arange(BARE_VOCABULARY)), EngineOptions())
    expected, calls = _run(engine, sequences, TOKENS), list[int]()

    def no_memory_later(backbone: Any, cache: Any, ids_BP: torch.Tensor) -> torch.Tensor:
        calls.append(len(ids_BP))
        if len(calls) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return read_on(backbone, cache, ids_BP)

    monkeypatch.setattr(hf, "read_on", no_memory_later)
    found = _run(engine, sequences, TOKENS)
    assert len(calls) > 1
    for one, other in zip(expected, found, strict=True):
        np.testing.assert_allclose(one.surprisal_N, other.surprisal_N, atol=1e-4)


def test_another_prefix_would_be_noticed() -> None:
    """Control: keys and values of another prompt give other states."""
    backbone, ids_2P = bare_model("Qwen3").base_model, torch.arange(200).reshape(2, 100) % BARE_VOCABULARY
    own, other = (read_on(backbone, read_prefix(backbone, ids_P[:60]), ids_2P[:1, 60:]) for ids_P in ids_2P)
    with torch.inference_mode():
        whole = backbone(input_ids=ids_2P[:1], use_cache=False).last_hidden_state[:, 60:]
    assert (own - whole).abs().max() < 1e-4
    assert (other - whole).abs().max() > 0.1


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        ("Mamba2", {"num_heads": 8, "head_dim": 16, "state_size": 16}),
        ("Phi3", {"rope_parameters": SHORT_LONGROPE, "original_max_position_embeddings": 64}),
    ],
    ids=["states of its own", "positions that depend on the length"],
)
def test_models_that_cannot_go_on_from_a_prefix_share_none(kind: str, settings: dict[str, Any]) -> None:
    assert not can_share(bare_model(kind, **settings).base_model, torch.device("cpu"))


def test_a_prefix_ends_before_the_first_state_that_predicts() -> None:
    """By hand: of 200 tokens, of which the one at 150 is the first scored, 149 are shared, as the state at 149 predicts it."""
    ids = np.arange(200, dtype=np.int32)
    scored = np.arange(150, 200, dtype=np.uint32)
    alike = [TokenSequence(ids[:length], scored[: length - 150]) for length in (160, 180, 170, 200, 151)]
    apart = TokenSequence(ids[::-1].copy(), scored)
    nothing = TokenSequence(ids, np.empty(0, np.uint32))
    (found,) = shared_prefixes([apart, *alike, nothing])
    assert (found.length, found.members) == (149, [4, 2, 3, 1, 5])
    assert shared_prefixes([apart, nothing, *alike[:4]]) == [], "447 tokens are not worth it"


def test_long_answers_to_a_short_prompt_are_read_in_full_batches() -> None:
    """40 of 400 tokens, in as many rows as one likes, are not worth batches of their own."""
    ids = np.arange(400, dtype=np.int32)
    rows = [TokenSequence(np.append(ids, number), np.arange(41, 401, dtype=np.uint32)) for number in range(40)]
    assert shared_prefixes(rows) == []
