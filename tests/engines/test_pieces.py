"""Long trajectories read in pieces: the same numbers as read whole, for every reduction; and read whole where that fails."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from tests.helpers.oracles import from_logits, model_logits
from tests.helpers.paths import DATA
from tests.helpers.tiny_models import BARE_VOCABULARY, SHORT_LONGROPE, bare_model, exact_model
from trajscore.engines import EngineOptions, ModelSource, TokenSequence, load_engine
from trajscore.engines.hf import HFEngine
from trajscore.engines.pieces import PAIR_BYTES, SMALLEST, hidden_pieces, piece_tokens, reads_in_pieces
from trajscore.engines.reductions import STATES, TOKENS, Other, pair, top, top_pair

STUDENT, TEACHER = DATA / "models" / "student", DATA / "models" / "teacher"
_SLIDING = {"sliding_window": 16, "use_sliding_window": True}


def _sequence(length: int, scored: int) -> TokenSequence:
    generator = np.random.default_rng(length)
    positions = np.sort(generator.choice(np.arange(1, length), scored, replace=False))
    return TokenSequence(generator.integers(0, BARE_VOCABULARY, length).astype(np.int32), positions.astype(np.uint32))


def _engine(folder: Path, batched: int, **options: Any) -> HFEngine:
    known = (
        len(transformers.AutoTokenizer.from_pretrained(folder))
        if (folder / "tokenizer.json").exists()
        else BARE_VOCABULARY
    )
    return HFEngine(
        ModelSource(str(folder), np.arange(known)), EngineOptions(max_num_batched_tokens=batched, **options)
    )


def _run(engine: Any, sequences: list[TokenSequence], reduction: Any) -> list[Any]:
    found = dict(engine.run(sequences, reduction))
    return [found[index] for index in range(len(sequences))]


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        ("Mistral", {"sliding_window": 16}),
        ("Qwen2", {**_SLIDING, "max_window_layers": 1}),
        ("Qwen2", {**_SLIDING, "layer_types": ["full_attention", "sliding_attention"]}),
        ("Phi3", {"sliding_window": 16}),
    ],
    ids=lambda value: value if isinstance(value, str) else ",".join(value),
)
def test_windows_reach_across_pieces(kind: str, settings: dict[str, Any], tmp_path: Path) -> None:
    """Against the model's float64 logits; windows of 16 tokens over pieces of 37, the last of one token."""
    bare_model(kind, **settings).save_pretrained(tmp_path)
    sequence = _sequence(37 * 5 + 1, 120)
    engine = _engine(tmp_path, 37)
    assert engine._reads_in_pieces
    (found,) = _run(engine, [sequence], TOKENS)
    logits = model_logits(exact_model(tmp_path), sequence.input_ids_P)[sequence.positions_N.astype(int) - 1]
    oracle = from_logits(logits, sequence.input_ids_P[sequence.positions_N].astype(np.int64))
    np.testing.assert_allclose(found.surprisal_N, oracle.surprisal, atol=1e-4)
    np.testing.assert_allclose(found.entropy_N, oracle.entropy, atol=1e-4)


def test_pieces_without_those_before_them_would_be_noticed() -> None:
    """Control: what pieces give alone is far from what they give together."""
    backbone = bare_model("Qwen3").base_model
    ids = torch.arange(200) % BARE_VOCABULARY
    with torch.inference_mode():
        whole = backbone(input_ids=ids[None], use_cache=False).last_hidden_state[0]
        alone = torch.cat([backbone(input_ids=part[None]).last_hidden_state[0] for part in torch.split(ids, 40)])
    together = torch.cat([hidden for _, hidden in hidden_pieces(backbone, ids, 40)])
    assert (together - whole).abs().max() < 1e-4
    assert (alone - whole).abs().max() > 0.1


def test_a_model_that_forgets_between_pieces_is_read_whole(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    model = bare_model("Mamba2", num_heads=8, head_dim=16, state_size=16)
    assert not reads_in_pieces(model.base_model, torch.device("cpu"))
    assert "long trajectories are read whole by Mamba2Model" in caplog.text


def test_positions_that_depend_on_the_whole_length_are_read_whole(tmp_path: Path) -> None:
    """Beyond its original length Phi 3 turns other positions; pieces before that would be turned as in a short text."""
    model = bare_model("Phi3", rope_parameters=SHORT_LONGROPE, original_max_position_embeddings=64)
    ids = torch.arange(200) % BARE_VOCABULARY
    with torch.inference_mode():
        whole = model.base_model(input_ids=ids[None], use_cache=False).last_hidden_state[0]
    cut = torch.cat([hidden for _, hidden in hidden_pieces(model.base_model, ids, 40)])
    assert (cut - whole).abs().max() > 0.1, "this test needs a model for which pieces are wrong"
    model.save_pretrained(tmp_path)
    engine = _engine(tmp_path, 40)
    assert not engine._reads_in_pieces
    (states,) = _run(engine, [TokenSequence(ids.numpy().astype(np.int32), np.arange(1, 200, dtype=np.uint32))], STATES)
    assert (states - whole[:-1]).abs().max() < 1e-4


def test_every_reduction_is_the_same_in_pieces() -> None:
    """Student and teacher, exact and truncated; some pieces have no scored token, short rows stay in batches."""
    late = TokenSequence(_sequence(300, 1).input_ids_P, np.array([1, 2, 170, 171, 299], np.uint32))
    sequences = [_sequence(20, 9), late, _sequence(250, 200), _sequence(30, 3)]
    found = []
    for batched in (64, 4096):
        student, teacher = _engine(STUDENT, batched), _engine(TEACHER, batched)
        states = _run(teacher, sequences, STATES)
        entries = [rows for _, rows in _run(teacher, sequences, top(5))]

        def chosen(rows: list[torch.Tensor]) -> Any:
            return lambda indices: torch.cat([rows[index] for index in indices])

        exact = _run(student, sequences, pair(Other(chosen(states), head=teacher.head)))
        truncated = [scores for _, scores in _run(student, sequences, top_pair(Other(chosen(entries))))]
        found.append((states, exact, truncated))
    for number, sequence in enumerate(sequences):
        (states, exact, truncated), (states2, exact2, truncated2) = ([part[number] for part in each] for each in found)
        assert len(exact.js_N) == len(sequence.positions_N)
        assert (states - states2).abs().max() < 1e-4
        for one, two in ((exact, exact2), (truncated, truncated2)):
            for name, values in vars(one).items():
                if isinstance(values, np.ndarray):
                    np.testing.assert_allclose(values, getattr(two, name), atol=1e-4, err_msg=name)
        np.testing.assert_allclose(exact.student.surprisal_N, exact2.student.surprisal_N, atol=1e-4)


def test_out_of_memory_with_one_row_goes_on_in_pieces(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    sequence = _sequence(2 * SMALLEST + 100, 50)
    (expected,) = _run(_engine(STUDENT, 4096), [sequence], TOKENS)
    engine = _engine(STUDENT, 4096)

    def small_machine(ids_BP: torch.Tensor) -> torch.Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(engine, "_hidden", small_machine)
    (found,) = _run(engine, [sequence], TOKENS)
    np.testing.assert_allclose(found.surprisal_N, expected.surprisal_N, atol=1e-4)
    assert f"at most {SMALLEST + 50} tokens at a time" in caplog.text


@pytest.mark.parametrize("length", [10_000, 32_768, 131_072])
def test_pieces_keep_their_pairs_within_bounds(length: int) -> None:
    for pairs in (1, 5, 12 * 32):
        piece = piece_tokens(length, 8192, pairs)
        assert SMALLEST <= piece <= 8192
        assert piece == SMALLEST or piece * length * pairs <= PAIR_BYTES


@pytest.mark.slow
def test_engines_agree_over_32768_tokens() -> None:
    """vLLM cuts prompts by itself, and our pooler puts the rows together: with pieces of 8,192 tokens as with transformers."""
    generator = np.random.default_rng(3)
    ids = generator.integers(0, 500, 32_768).astype(np.int32)
    sequence = TokenSequence(ids, np.arange(1, 32_768, dtype=np.uint32))
    known = np.arange(len(transformers.AutoTokenizer.from_pretrained(STUDENT)))
    found = []
    for name in ("hf", "vllm"):
        options = EngineOptions(dtype="float32", max_num_batched_tokens=8192)
        _, engine = load_engine(name, ModelSource(str(STUDENT), known), options)
        found += _run(engine, [sequence], TOKENS)
        engine.close()
    np.testing.assert_allclose(found[0].surprisal_N, found[1].surprisal_N, atol=2e-3)
    np.testing.assert_allclose(found[0].entropy_N, found[1].entropy_N, atol=2e-3)
    assert (found[0].rank_N == found[1].rank_N).mean() > 0.995
