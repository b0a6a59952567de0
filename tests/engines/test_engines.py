"""One conformance suite over all engines: against the model's own float64 logits, and invariance to how rows are batched.

What only vLLM does is in test_vllm.py.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from tests.helpers.oracles import divergences, from_logits, model_logits, named_divergence, near_ties, probabilities
from tests.helpers.paths import DATA
from tests.helpers.tiny_models import ARCHITECTURES, MIXED, exact_model, make_model
from trajscore.engines import ENGINES, Engine, EngineOptions, ModelSource, TokenScores, TokenSequence, load_engine
from trajscore.engines.hidden_store import HiddenStore
from trajscore.engines.reduced_rows import entries
from trajscore.engines.reductions import STATES, TOKENS, Other, pair, top
from trajscore.engines.token_scores import TopKEntries
from trajscore.errors import EngineError, UsageError
from trajscore.statistics import Head


def _sequences(vocabulary: int, lengths: tuple[int, ...] = (2, 90, 17, 5, 40)) -> list[TokenSequence]:
    generator = np.random.default_rng(0)
    sequences = []
    for length in lengths:
        ids = generator.integers(0, vocabulary, length).astype(np.int32)
        positions = np.sort(generator.choice(np.arange(1, length), size=max(1, length // 2), replace=False))
        sequences.append(TokenSequence(ids, positions.astype(np.uint32)))
    return sequences


_exact = lru_cache(maxsize=1)(exact_model)


@cache
def _tokenizer_ids(folder: Path) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    return np.arange(len(transformers.AutoTokenizer.from_pretrained(folder)), dtype=np.int64)


def _score(engine: Engine, sequences: list[TokenSequence]) -> list[TokenScores]:
    found = dict(engine.run(sequences, TOKENS))
    assert sorted(found) == list(range(len(sequences))), "every sequence once"
    return [found[index] for index in range(len(sequences))]


# The real Gemma 2 and Cohere models are tied, and vLLM knows no other.
UNKNOWN = {("vllm", "gemma2", False), ("vllm", "cohere", False)}
# Each architecture with the head that its models have; Qwen3 has both. The other heads are slow: an engine is started for each.
USUAL = {("qwen3", True), ("qwen3", False), ("llama", False), ("granite", False)}
USUAL |= {("gemma2", True), ("gemma3", True), ("cohere", True)} | {(name, False) for name in MIXED}
CASES = [
    pytest.param((engine, *model), id=str((engine, *model)), marks=() if model in USUAL else pytest.mark.slow)
    for model in [
        *((name, tied) for name in ARCHITECTURES for tied in (True, False)),
        *((name, False) for name in MIXED),
    ]
    for engine in ENGINES
    if (engine, *model) not in UNKNOWN
]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, bool], Path]:
    """Makes a model that all engines then run. A tied head has the embedding's rows, so padding rows exist in both cases."""
    return cache(lambda name, tied: make_model(tmp_path_factory.mktemp("model"), name, tied=tied, padding=25))


@pytest.fixture(scope="module", params=CASES)
def case(request: pytest.FixtureRequest, models: Callable[[str, bool], Path]) -> Iterator[tuple[Engine, Path]]:
    """One model in one engine, and its folder; vLLM cuts a conversation into pieces of 64 tokens."""
    name, *model = request.param
    folder = models(*model)
    options = EngineOptions(dtype="float32", max_num_batched_tokens=64)
    _, engine = load_engine(name, ModelSource(str(folder), _tokenizer_ids(folder)), options)
    yield engine, folder
    engine.close()


@pytest.mark.parametrize("unknown", sorted(UNKNOWN), ids=str)
def test_what_an_engine_cannot_run_is_refused(unknown: tuple[str, str, bool], tmp_path: Path) -> None:
    name, architecture, tied = unknown
    folder = make_model(tmp_path, architecture, tied=tied)
    with pytest.raises(EngineError, match="vLLM"):
        load_engine(name, ModelSource(str(folder), _tokenizer_ids(folder)), EngineOptions())


def _oracle(folder: Path, sequence: TokenSequence, shift: int = 0) -> tuple[Any, Any]:
    """Float64 logits of the scored tokens over the tokenizer's ids, and their statistics."""
    model = _exact(folder)
    rows = sequence.positions_N.astype(int) - 1 + shift
    logits = model_logits(model, sequence.input_ids_P)[rows][:, : len(_tokenizer_ids(folder))]
    return logits, from_logits(logits, sequence.input_ids_P[sequence.positions_N].astype(np.int64))


def test_agrees_with_the_models_own_float64_logits(case: tuple[Engine, Path]) -> None:
    engine, folder = case
    sequences = _sequences(len(_tokenizer_ids(folder)))
    for sequence, scores in zip(sequences, _score(engine, sequences), strict=True):
        logits, oracle = _oracle(folder, sequence)
        assert np.abs(scores.surprisal_N - oracle.surprisal).max() < 1e-4
        assert np.abs(scores.entropy_N - oracle.entropy).max() < 1e-4
        assert np.abs(scores.collision_N - oracle.collision).max() < 1e-5
        targets = sequence.input_ids_P[sequence.positions_N].astype(np.int64)
        slack = [near_ties(row, target) for row, target in zip(logits, targets, strict=True)]
        assert (np.abs(scores.rank_N.astype(int) - oracle.rank) <= slack).all()
        assert scores.rank_N.dtype == np.uint32
        assert scores.surprisal_N.dtype == np.float32


def test_an_off_by_one_would_be_noticed(case: tuple[Engine, Path]) -> None:
    """Control: the statistics of the neighbouring position differ by far more than the tolerance."""
    engine, folder = case
    sequence = _sequences(len(_tokenizer_ids(folder)), (60,))[0]
    _, oracle = _oracle(folder, sequence, shift=1)
    assert np.abs(_score(engine, [sequence])[0].surprisal_N - oracle.surprisal).max() > 0.1


def test_hidden_states_and_head_give_the_logits(case: tuple[Engine, Path]) -> None:
    """What another engine reads of this one; head and states are those of the padded model, cut to the vocabulary."""
    engine, folder = case
    sequence = _sequences(len(_tokenizer_ids(folder)), (50,))[0]
    ((_, states),) = engine.run([sequence], STATES)
    logits, _ = _oracle(folder, sequence)
    ours = engine.head.logits(states, slice(0, engine.head.vocabulary)).double().numpy()
    assert np.abs(ours - logits).max() < 1e-4 * max(1.0, np.abs(logits).max())
    assert engine.vocabulary == engine.head.vocabulary == logits.shape[1]
    assert engine.state_bytes == states.shape[1] * 4


FURTHER: list[tuple[str, float | None]] = [
    *(("tv", None), ("hellinger", None), ("jsd", 0.1), ("jsd", 0.5), ("jsd", 0.9), ("skew_kl", 0.1), ("skew_rkl", 0.1)),
    *(("renyi", 0.5), ("renyi", 2.0), ("kl_at", 1.0), ("kl_at", 2.0), ("standardised", 2.0), ("topk_mass", 16.0)),
]


@pytest.mark.parametrize("at_student", [False, True])
def test_what_is_ours_is_within_rounding_of_the_models_own_logits(
    case: tuple[Engine, Path], at_student: bool, tmp_path: Path
) -> None:
    """All statistics against float64 ones of the very float32 logits that the engine's states give: 1e-5 nats for what the
    reduction adds, made where the engine makes it. The other model's states are these of the rows before, so that the two
    predict different tokens."""
    engine, folder = case
    sequence = _sequences(len(_tokenizer_ids(folder)), (120,))[0]
    targets_N = sequence.input_ids_P[sequence.positions_N].astype(np.int64)
    head = engine.head
    ((_, states_ND),) = engine.run([sequence], STATES)
    with HiddenStore(tmp_path / "states") as store:
        store.put(0, states_ND.roll(1, 0))
        teacher = Other(lambda _: store.locate(0).read(), store.locate, head)
        ((_, found),) = engine.run([sequence], pair(teacher, 5, at_student=at_student, further=FURTHER))
    z_NV = head.logits(states_ND, slice(0, head.vocabulary)).double().numpy()
    y_NV = np.roll(z_NV, 1, 0)
    for scores, logits_NV in ((found.student, z_NV), (found.teacher, y_NV)):
        oracle = from_logits(logits_NV, targets_N)
        assert np.abs(scores.surprisal_N - oracle.surprisal).max() < 1e-5
        assert np.abs(scores.entropy_N - oracle.entropy).max() < 1e-5
    _check_entries(found.kept, y_NV, z_NV if at_student else y_NV)
    ((_, (_, rows_NE)),) = engine.run([sequence], top(5))
    _check_entries(entries(rows_NE), z_NV, z_NV)
    expected = divergences(z_NV, y_NV)
    assert expected.kl_teacher_student.max() > 0.1, "they do differ"
    for name in ("kl_student_teacher", "kl_teacher_student", "js"):
        assert np.abs(getattr(found, f"{name}_N") - getattr(expected, name)).max() < 1e-5, name
    for each, values_N in zip(FURTHER, found.further, strict=True):
        assert np.abs(values_N - named_divergence(z_NV, y_NV, *each)).max() < 1e-5, each
        if each[0] in ("skew_kl", "kl_at"):
            assert np.abs(values_N - named_divergence(y_NV, z_NV, *each)).max() > 1e-4, "control: the other direction"


def _check_entries(kept: TopKEntries | None, logits_NV: Any, best_of_NV: Any) -> None:
    """Five entries of a model, at the best ones of that model or another."""
    assert kept is not None
    p_NV = probabilities(logits_NV)
    best_NK = np.argsort(-best_of_NV, axis=1, kind="stable")[:, :5]
    assert (np.sort(kept.ids_NK) == np.sort(best_NK)).mean() > 0.98
    assert (np.diff(kept.logprobs_NK) <= 0).all()
    kept_NK = np.take_along_axis(p_NV, kept.ids_NK.astype(np.int64), 1)
    assert np.abs(kept.logprobs_NK - np.log(kept_NK)).max() < 1e-5
    assert np.abs(kept.log_tail_N - np.log1p(-kept_NK.sum(1)))[kept_NK.sum(1) < 0.9].max(initial=0) < 1e-5


def test_the_float32_forward_pass_is_as_near_float64_as_the_plain_one(case: tuple[Engine, Path]) -> None:
    """What remains is not ours: the model in float32 under transformers is as far from itself in float64."""
    engine, folder = case
    sequence = _sequences(len(_tokenizer_ids(folder)), (120,))[0]
    _, oracle = _oracle(folder, sequence)
    plain = copy.deepcopy(_exact(folder)).float()
    rows, targets = sequence.positions_N.astype(int) - 1, sequence.input_ids_P[sequence.positions_N].astype(np.int64)
    with torch.no_grad():
        logits = plain(input_ids=torch.tensor(sequence.input_ids_P[None]).long()).logits[0].double().numpy()[rows]
    theirs = np.abs(from_logits(logits[:, : engine.vocabulary], targets).surprisal - oracle.surprisal)
    ours = np.abs(_score(engine, [sequence])[0].surprisal_N - oracle.surprisal)
    assert theirs.max() > 0
    assert ours.mean() <= 1.5 * theirs.mean() + 1e-7


def test_the_longest_sequence_fits(case: tuple[Engine, Path]) -> None:
    """A conversation of exactly as many tokens as the model takes, its last token scored."""
    engine, folder = case
    assert engine.max_model_len == 512
    ids = np.random.default_rng(3).integers(0, 500, 512).astype(np.int32)
    sequence = TokenSequence(ids, np.array([1, 511], np.uint32))
    _, oracle = _oracle(folder, sequence)
    assert np.abs(_score(engine, [sequence])[0].surprisal_N - oracle.surprisal).max() < 1e-4


@pytest.mark.parametrize("engine_name", ENGINES)
def test_batches_do_not_matter(engine_name: str) -> None:
    folder = DATA / "models" / "student"
    source = ModelSource(str(folder), _tokenizer_ids(folder))
    sequences = _sequences(len(source.vocabulary), (2, 90, 17, 5, 40, 40, 33, 64, 3))
    found = []
    for budget in (100, 10_000):
        _, engine = load_engine(engine_name, source, EngineOptions(dtype="float32", max_num_batched_tokens=budget))
        found.append(_score(engine, sequences))
        if budget == 100:
            found.append([_score(engine, [sequence])[0] for sequence in sequences])
        engine.close()
    for other in found[1:]:
        for one, two in zip(found[0], other, strict=True):
            assert np.abs(one.surprisal_N - two.surprisal_N).max() < 1e-4
            assert np.abs(one.entropy_N - two.entropy_N).max() < 1e-4
            assert (one.rank_N == two.rank_N).mean() > 0.97


@pytest.mark.parametrize("engine_name", ENGINES)
def test_a_tokenizer_of_another_model_is_noticed(engine_name: str) -> None:
    folder = DATA / "models" / "student"
    _, engine = load_engine(engine_name, ModelSource(str(folder), _tokenizer_ids(folder)), EngineOptions())
    try:
        with pytest.raises(EngineError, match="token id 999"):
            _score(engine, [TokenSequence(np.array([1, 999], np.int32), np.array([1], np.uint32))])
    finally:
        engine.close()


def test_float64_is_for_transformers() -> None:
    folder = DATA / "models" / "student"
    source, options = ModelSource(str(folder), _tokenizer_ids(folder)), EngineOptions(dtype="float64")
    name, engine = load_engine("auto", source, options)
    assert (name, engine.describe()["dtype"], engine.describe()["head_dtype"]) == ("hf", "float64", "float64")


def test_float64_is_not_for_vllm() -> None:
    pytest.importorskip("vllm")
    folder = DATA / "models" / "student"
    with pytest.raises(UsageError, match="--dtype float64: vLLM"):
        load_engine("vllm", ModelSource(str(folder), _tokenizer_ids(folder)), EngineOptions(dtype="float64"))


@pytest.mark.parametrize("engine_name", ENGINES)
def test_pickled_weights_are_not_loaded(engine_name: str, tmp_path: Path) -> None:
    folder = make_model(tmp_path, "llama", tied=True)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder)
    (folder / "model.safetensors").unlink()
    torch.save(model.state_dict(), folder / "pytorch_model.bin")
    with pytest.raises(UsageError, match="pickled ones"):
        load_engine(engine_name, ModelSource(str(folder), _tokenizer_ids(folder)), EngineOptions())


def test_unknown_engine_names_the_known_ones() -> None:
    with pytest.raises(UsageError, match="no such engine") as caught:
        load_engine("vlmm", ModelSource("x", np.arange(3)), EngineOptions())
    assert caught.value.exit_code == 2


class TestHF:
    """What only the transformers engine does."""

    @pytest.fixture(autouse=True)
    def _rows_of_the_reduction(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """What a test's lack of memory changes for the process."""
        from trajscore.statistics.blocks import ROW_LIMIT

        monkeypatch.setattr(ROW_LIMIT, "halvings", 0)

    def _engine(self, folder: Path = DATA / "models" / "student", **options: object) -> Engine:
        from trajscore.engines.hf import HFEngine

        return HFEngine(ModelSource(str(folder), _tokenizer_ids(folder)), EngineOptions(**options))  # type: ignore[arg-type]

    def test_out_of_memory_halves_the_batch_and_goes_on(
        self, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        engine = self._engine()
        sequences = _sequences(500, (64,) * 8)
        expected = _score(engine, sequences)
        whole = engine._hidden  # type: ignore[attr-defined]

        def small_machine(ids_BP: torch.Tensor) -> torch.Tensor:
            if ids_BP.numel() > 3 * 64:
                raise torch.OutOfMemoryError("CUDA out of memory.")
            result: torch.Tensor = whole(ids_BP)
            return result

        monkeypatch.setattr(engine, "_hidden", small_machine)
        found = _score(engine, sequences)
        for one, other in zip(expected, found, strict=True):
            np.testing.assert_allclose(one.surprisal_N, other.surprisal_N, atol=1e-4)
        assert "out of memory" in caplog.text

    def test_out_of_memory_in_the_reduction_halves_its_rows(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """They are as many whatever the batch: halving that alone would end in an error."""
        from trajscore.statistics import blocks

        engine = self._engine()
        sequences = _sequences(500, (400,))
        expected = _score(engine, sequences)
        monkeypatch.setattr(blocks, "ROW_LIMIT", limit := blocks.RowLimit())
        monkeypatch.setattr("trajscore.engines.hf.ROW_LIMIT", limit)
        whole = Head.logits

        def small_machine(head: Head, hidden: torch.Tensor, *given: Any, **more: Any) -> torch.Tensor:
            if len(hidden) > 80:
                raise torch.OutOfMemoryError("CUDA out of memory.")
            return whole(head, hidden, *given, **more)

        monkeypatch.setattr(Head, "logits", small_machine)
        found = _score(engine, sequences)
        np.testing.assert_allclose(found[0].surprisal_N, expected[0].surprisal_N, atol=1e-4)
        assert blocks.sizes(torch.zeros(1, 1), None, None)[1] <= 80

    def test_out_of_memory_with_one_row_says_what_to_do(self, monkeypatch: pytest.MonkeyPatch) -> None:
        engine = self._engine()

        def no_memory(_: torch.Tensor) -> torch.Tensor:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 99 bytes.")

        monkeypatch.setattr(engine, "_hidden", no_memory)
        with pytest.raises(EngineError, match="single trajectory of 17 tokens") as caught:
            _score(engine, _sequences(500, (17,)))
        assert "--max-model-len" in caught.value.hint

    def test_an_unknown_way_to_make_logits_is_refused(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        folder = make_model(tmp_path, "granite", tied=True)
        config = json.loads((folder / "config.json").read_text())
        monkeypatch.setattr("trajscore.engines.hf._scale", lambda config: 1.0)
        assert config["logits_scaling"] == 4.0
        with pytest.raises(EngineError, match="computes its logits in a way"):
            self._engine(folder)

    def test_half_precision_is_as_good_as_the_plain_computation(self) -> None:
        engine = self._engine(dtype="bfloat16")
        sequence = _sequences(500, (200,))[0]
        scores = _score(engine, [sequence])[0]
        folder = DATA / "models" / "student"
        plain = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).eval()
        exact = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64).eval()
        rows, targets = (
            sequence.positions_N.astype(int) - 1,
            sequence.input_ids_P[sequence.positions_N].astype(np.int64),
        )
        with torch.no_grad():
            bf16 = plain(input_ids=torch.tensor(sequence.input_ids_P[None]).long()).logits[0].double().numpy()[rows]
        truth = from_logits(model_logits(exact, sequence.input_ids_P)[rows], targets).surprisal
        ours, theirs = np.abs(scores.surprisal_N - truth), np.abs(from_logits(bf16, targets).surprisal - truth)
        assert ours.mean() <= theirs.mean() * 1.05
