"""The reduction against a float64 oracle: unequal, flat, peaked, tied and masked logits, and wrong formulas that must fail."""

from __future__ import annotations

import logging
import subprocess
import sys
from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from tests.helpers.oracles import Oracle, from_logits
from trajscore.statistics import (
    Head,
    TokenStatistics,
    pair_statistics,
    pairs,
    teacher_top,
    token_statistics,
    tokens,
    topk_divergences,
)
from trajscore.statistics.blocks import (
    Fused,
    block_pure,
    blocks,
    padded,
    reduce_block,
    reduce_block_pure,
    target_logits,
)

ROWS, WIDTH, VOCABULARY = 13, 24, 301


def _case(scale: float, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(ROWS, WIDTH, generator=generator)
    weight = torch.randn(VOCABULARY, WIDTH, generator=generator) * scale
    targets = torch.randint(0, VOCABULARY, (ROWS,), generator=generator)
    return hidden, weight, targets


def _oracle(hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor, **head: float) -> Oracle:
    logits = (hidden.double() @ weight.double().T).numpy() * head.get("scale", 1.0)
    if cap := head.get("softcap"):
        logits = cap * np.tanh(logits / cap)
    return from_logits(logits, targets.numpy())


def _errors(found: TokenStatistics, oracle: Oracle) -> dict[str, float]:
    return {
        "rank": float(np.abs(found.rank_N.numpy() - oracle.rank).max()),
        "surprisal": float(np.abs(found.surprisal_N.numpy() - oracle.surprisal).max()),
        "entropy": float(np.abs(found.entropy_N.numpy() - oracle.entropy).max()),
        "collision": float(np.abs(found.collision_N.numpy() - oracle.collision).max()),
    }


@pytest.mark.parametrize(("scale", "tolerance"), [(0.0, 1e-6), (0.01, 1e-5), (0.5, 1e-5), (20.0, 1e-4)])
@pytest.mark.parametrize("block", [1, 7, 64, 301, 4096])
def test_agrees_with_the_oracle_whatever_the_block(scale: float, tolerance: float, block: int) -> None:
    hidden, weight, targets = _case(scale)
    errors = _errors(
        token_statistics(hidden, Head(weight), targets, block=block, rows=5), _oracle(hidden, weight, targets)
    )
    assert errors["rank"] == 0
    assert max(errors["surprisal"], errors["entropy"], errors["collision"]) < tolerance, errors


@pytest.mark.parametrize("head", [{"scale": 0.3}, {"softcap": 2.0}, {"scale": 3.0, "softcap": 5.0}])
def test_scaled_and_capped_logits(head: dict[str, float]) -> None:
    hidden, weight, targets = _case(0.5)
    found = token_statistics(hidden, Head(weight, **head), targets, block=50)  # type: ignore[arg-type]
    assert max(_errors(found, _oracle(hidden, weight, targets, **head)).values()) < 1e-5


def test_bias_is_added() -> None:
    hidden, weight, targets = _case(0.2)
    bias = torch.linspace(-2, 2, VOCABULARY)
    logits = (hidden.double() @ weight.double().T + bias.double()).numpy()
    found = token_statistics(hidden, Head(weight, bias_V=bias), targets, block=50)
    assert max(_errors(found, from_logits(logits, targets.numpy())).values()) < 1e-5


def test_a_uniform_prediction_by_hand() -> None:
    found = token_statistics(torch.zeros(1, 3), Head(torch.ones(8, 3)), torch.tensor([5]))
    assert found.rank_N.item() == 1
    assert found.surprisal_N.item() == pytest.approx(np.log(8), abs=1e-6)
    assert found.entropy_N.item() == pytest.approx(np.log(8), abs=1e-6)
    assert found.collision_N.item() == pytest.approx(1 / 8, abs=1e-7)


def test_two_entries_by_hand() -> None:
    # Logits 0 and ln 3: probabilities 1/4 and 3/4.
    head = Head(torch.tensor([[0.0], [float(np.log(3))]]))
    found = token_statistics(torch.ones(1, 1), head, torch.tensor([0]))
    assert found.rank_N.item() == 2
    assert found.surprisal_N.item() == pytest.approx(np.log(4), abs=1e-6)
    assert found.entropy_N.item() == pytest.approx(0.25 * np.log(4) + 0.75 * np.log(4 / 3), abs=1e-6)
    assert found.collision_N.item() == pytest.approx(10 / 16, abs=1e-6)


@pytest.mark.parametrize("rows", [1, 5, 40, 200])
@pytest.mark.parametrize("width", [24, 64, 257])
def test_exact_ties_share_the_best_rank(rows: int, width: int) -> None:
    """Equal rows of the head, far apart in the vocabulary, give equal logits: neither counts for the other."""
    generator = torch.Generator().manual_seed(rows * width)
    half = torch.randn(150, width, generator=generator)
    weight = torch.cat([half, half])
    hidden = torch.randn(rows, width, generator=generator)
    targets = torch.randint(0, 300, (rows,), generator=generator)
    found = token_statistics(hidden, Head(weight), targets, block=64, rows=64)
    logits = hidden.double() @ half.double().T
    single = from_logits(logits.numpy(), (targets % 150).numpy())
    assert ((found.rank_N.numpy() - 1) % 2 == 0).all()
    assert (found.rank_N.numpy() == 2 * (single.rank - 1) + 1).all()


def test_ties_with_one_distinct_target() -> None:
    """The product with a single gathered column would be a matrix-vector product, summed in another order."""
    generator = torch.Generator().manual_seed(0)
    half = torch.randn(2000, 257, generator=generator)
    hidden = torch.randn(300, 257, generator=generator)
    targets = torch.full((300,), 17)
    found = token_statistics(hidden, Head(torch.cat([half, half])), targets)
    assert (found.rank_N % 2 == 1).all()


def test_a_wrong_guess_of_the_targets_logits_is_repaired(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a device that adds up gathered columns in another order, the blocks' own values count."""
    hidden, weight, targets = _case(0.5)
    weight = torch.cat([weight, weight])
    right = token_statistics(hidden, Head(weight), targets, block=50)
    guess = target_logits
    monkeypatch.setattr(tokens, "target_logits", lambda *arguments: guess(*arguments) - 1e-4)
    found = token_statistics(hidden, Head(weight), targets, block=50)
    assert torch.equal(found.rank_N, right.rank_N)
    assert torch.equal(found.surprisal_N, right.surprisal_N)


@pytest.mark.parametrize(("vocabulary", "block"), [(1, 5), (10, 5), (11, 5), (301, 300), (4, 4)])
def test_blocks_cover_the_vocabulary_once_in_one_shape(vocabulary: int, block: int) -> None:
    spans = list(blocks(vocabulary, block))
    assert [index for ids, skip in spans for index in range(ids.start + skip, ids.stop)] == list(range(vocabulary))
    assert len({ids.stop - ids.start for ids, _ in spans}) == 1


def test_padding_rows_and_absent_ids_do_not_count() -> None:
    hidden, weight, targets = _case(0.5)
    targets = targets % 250
    absent = torch.zeros(260, dtype=torch.bool)
    absent[[251, 255]] = True
    found = token_statistics(hidden, Head(weight[:260], absent_V=absent), targets, block=50)
    kept = [index for index in range(260) if not absent[index]]
    logits = (hidden.double() @ weight.double().T).numpy()[:, kept]
    assert max(_errors(found, from_logits(logits, targets.numpy())).values()) < 1e-5


def test_minus_infinity_is_never_nan() -> None:
    hidden, weight, targets = _case(0.5)
    bias = torch.zeros(VOCABULARY)
    bias[::3] = -torch.inf
    logits = (hidden.double() @ weight.double().T + bias.double()).numpy()
    found = token_statistics(hidden, Head(weight, bias_V=bias), targets, block=50)
    possible = np.isfinite(bias[targets].numpy())
    oracle = from_logits(logits, targets.numpy())
    assert np.abs(found.surprisal_N.numpy()[possible] - oracle.surprisal[possible]).max() < 1e-5
    assert np.isinf(found.surprisal_N.numpy()[~possible]).all()
    assert np.abs(found.entropy_N.numpy() - oracle.entropy).max() < 1e-5
    assert (found.rank_N.numpy() == oracle.rank).all()


@pytest.mark.parametrize("scale", [0.1, 1.0, 7.0])
def test_minus_infinity_stays_it_under_a_scale(scale: float) -> None:
    head = Head(torch.eye(3), torch.tensor([0.0, -torch.inf, 0.0]), scale=scale)
    found = token_statistics(torch.zeros(2, 3), head, torch.tensor([1, 0]))
    assert found.surprisal_N.tolist() == [torch.inf, pytest.approx(np.log(2), abs=1e-6)]
    assert found.rank_N.tolist() == [3, 1]


def test_nan_hidden_states_do_not_look_like_numbers() -> None:
    hidden, weight, targets = _case(0.5)
    hidden[2, 3] = torch.nan
    found = token_statistics(hidden, Head(weight), targets)
    assert found.surprisal_N[2].isnan()
    assert found.entropy_N[2].isnan()
    assert found.collision_N[2].isnan()
    assert found.rank_N[2] == 0, "rank 1 would look like a prediction that was right"
    assert found.surprisal_N[[0, 1, 3]].isfinite().all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_weights_and_states_are_reduced_in_float32(dtype: torch.dtype) -> None:
    hidden, weight, targets = _case(0.5)
    hidden, weight = hidden.to(dtype), weight.to(dtype)
    errors = _errors(token_statistics(hidden, Head(weight), targets), _oracle(hidden, weight, targets))
    assert errors["rank"] == 0
    assert max(errors.values()) < 1e-5


def test_empty_and_wrong_shapes() -> None:
    hidden, weight, targets = _case(0.5)
    assert token_statistics(hidden[:0], Head(weight), targets[:0]).rank_N.shape == (0,)
    with pytest.raises(ValueError, match="do not fit"):
        token_statistics(hidden, Head(weight), targets[:3])
    with pytest.raises(ValueError, match="outside the vocabulary"):
        token_statistics(hidden, Head(weight), targets + VOCABULARY)


def test_wrong_formulas_would_be_noticed() -> None:
    """Controls: what the other tests accept, common mistakes do not pass."""
    hidden, weight, targets = _case(0.5)
    oracle = _oracle(hidden, weight, targets)
    logits = hidden @ weight.T
    own = logits.gather(1, targets[:, None])
    at_least = (logits >= own).sum(1).numpy()
    assert (at_least == oracle.rank).all(), "without ties both rules agree; the tie test tells them apart"
    bits = (-logits.log_softmax(1).gather(1, targets[:, None])[:, 0] / np.log(2)).numpy()
    assert np.abs(bits - oracle.surprisal).max() > 0.1
    top = logits.softmax(1).topk(50).values
    truncated = -(top / top.sum(1, keepdim=True)).mul((top / top.sum(1, keepdim=True)).log()).sum(1).numpy()
    assert np.abs(truncated - oracle.entropy).max() > 0.1
    tied = torch.zeros(1, 4)
    counted_with_ties = (tied @ torch.ones(9, 4).T >= 0).sum()
    assert token_statistics(tied, Head(torch.ones(9, 4)), torch.tensor([4])).rank_N.item() != counted_with_ties


def test_the_fused_expression_equals_the_passes() -> None:
    """What CUDA compiles is run here uncompiled, against what the CPU runs."""
    hidden, weight, targets = _case(2.0)
    logits = hidden @ weight.T
    own = logits.gather(1, targets[:, None])[:, 0]
    sums_5N = torch.empty(5, ROWS)
    shifted, weights = logits.clone(), torch.empty_like(logits)
    reduce_block(shifted, own, weights, sums_5N.unbind())
    sums_5N[2] = (shifted * weights).sum(1)
    expected = reduce_block_pure(logits, own)
    assert torch.allclose(sums_5N, expected, rtol=1e-5, atol=1e-5)
    traced = torch.compile(reduce_block_pure, backend="eager", fullgraph=True)
    assert torch.equal(traced(logits, own), expected)


class TestInKernels:
    """The way of CUDA, run on the CPU with a compiler that only traces: the numbers, and how often it is asked."""

    @pytest.fixture
    def compiled(self, monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
        """How often each reduction was compiled, by the name of its function."""
        torch._dynamo.reset()
        counted = Counter[str]()

        def fused(function: Any) -> Fused:
            def backend(graph: Any, _: Any) -> Any:
                counted[function.__name__] += 1
                return graph.forward

            return Fused(function, backend)

        monkeypatch.setattr(tokens, "fused", fused(block_pure))
        for name in ("_fused_sums", "_fused_js"):
            monkeypatch.setattr(pairs, name, fused(getattr(pairs, name)._eager))
        return counted

    @pytest.mark.parametrize(("vocabulary", "absent"), [(301, False), (257, True)])
    def test_equal_the_passes_and_are_compiled_twice_at_most(
        self, vocabulary: int, absent: bool, compiled: Counter[str]
    ) -> None:
        generator = torch.Generator().manual_seed(1)
        weight, theirs = torch.randn(2, vocabulary, WIDTH, generator=generator)
        missing = torch.rand(vocabulary, generator=generator) < 0.2 if absent else None
        head, other = Head(weight, absent_V=missing), Head(theirs, absent_V=missing)
        for rows in (1, 3, 64, 65, 200, 130):
            hidden = torch.randn(2, rows, WIDTH, generator=generator)
            targets = torch.randint(0, vocabulary, (rows,), generator=generator)
            plain = pair_statistics(hidden[0], head, hidden[1], other, targets, block=64)
            single = tokens.reduce_in_kernels(padded(hidden[0]), head, padded(targets), 64, vars(tokens)["fused"])
            both = pairs._in_kernels((head, other), 64, (hidden[0], hidden[1], targets), True)
            for one in (TokenStatistics(*(each[:rows] for each in vars(single).values())), both.student):
                assert torch.equal(one.rank_N, plain.student.rank_N)
                assert torch.allclose(one.surprisal_N, plain.student.surprisal_N, atol=1e-5)
                assert torch.allclose(one.entropy_N, plain.student.entropy_N, atol=1e-5)
                assert torch.allclose(one.collision_N, plain.student.collision_N, atol=1e-5)
            assert torch.equal(both.teacher.rank_N, plain.teacher.rank_N)
            for name in ("kl_student_teacher_N", "kl_teacher_student_N", "js_N"):
                assert torch.allclose(getattr(both, name), getattr(plain, name), atol=1e-5), name
        assert set(compiled) == {"block_pure", "_sums_pure", "_js_pure"}
        assert max(compiled.values()) <= 2

    def test_rows_as_they_come_would_be_compiled_more_often(self) -> None:
        """Control: one row and an odd last block are variants of their own."""
        torch._dynamo.reset()
        counted = list[str]()

        def backend(graph: Any, _: Any) -> Any:
            counted.append("again")
            return graph.forward

        reduce = torch.compile(reduce_block_pure, fullgraph=True, backend=backend)
        for rows in (1, 3, 64):
            for block in (torch.randn(rows, 64), torch.randn(rows, 64)[:, 19:]):
                reduce(block, block[:, 0])
        assert len(counted) > 2

    def test_more_variants_than_the_limit_are_said(
        self, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        torch._dynamo.reset()
        monkeypatch.setattr(torch._dynamo.config, "recompile_limit", 1)
        fused = Fused(reduce_block_pure, "eager")
        for rows in (2, 3, 4):
            block = torch.randn(rows, 8)
            assert torch.allclose(fused(block, block[:, 0]), reduce_block_pure(block, block[:, 0]))
        assert "runs eagerly and slower" in caplog.text


def test_without_a_compiler_the_fused_expression_runs_eagerly(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def no_compiler(*_: Any, **__: Any) -> Any:
        raise RuntimeError("Cannot find a working triton installation\nand more")

    monkeypatch.setattr(torch, "compile", no_compiler)
    fused = Fused(reduce_block_pure)
    logits = torch.randn(3, 7)
    with caplog.at_level(logging.INFO, logger="trajscore"):
        results = [fused(logits, logits[:, 0]) for _ in range(3)]
    assert torch.equal(results[2], reduce_block_pure(logits, logits[:, 0]))
    assert len(caplog.records) == 1
    assert "triton installation)" in caplog.text
    with pytest.raises(RuntimeError, match="size of tensor"):
        fused(logits, logits[0])


class _Largest(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Records the largest number of elements of any tensor made, other than in the storage of given ones."""

    def __init__(self, *given: torch.Tensor) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._given = {tensor.untyped_storage().data_ptr() for tensor in given}
        self.elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for made in result if isinstance(result, tuple | list) else [result]:
            if isinstance(made, torch.Tensor) and made.untyped_storage().data_ptr() not in self._given:
                self.elements = max(self.elements, made.untyped_storage().nbytes() // made.element_size())
        return result


def test_tokens_x_vocabulary_never_exists() -> None:
    rows, vocabulary, block = 100, 5000, 64
    hidden, head = torch.randn(rows, 8), Head(torch.randn(vocabulary, 8))
    targets = torch.randint(0, vocabulary, (rows,))
    largest = _Largest(hidden, head.weight_VD, targets)
    with largest:
        token_statistics(hidden, head, targets, block=block)
        pair_statistics(hidden, head, hidden, head, targets, block=block)
        topk_divergences(hidden, head, teacher_top(hidden, head, 10, block=block), block=block)
    assert rows * block <= largest.elements <= 12 * rows * max(block, -(-vocabulary // block))
    assert largest.elements < rows * vocabulary / 4
    with largest:
        (hidden @ head.weight_VD.T).log_softmax(1)
    assert largest.elements == rows * vocabulary, "control: whole logits are noticed"


_PEAK = """
import torch
from trajscore.statistics import Head, pair_statistics, token_statistics
torch.set_num_threads(1)
def memory(name):
    # Not ru_maxrss: that of a new process starts at what its parent had.
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith(name)) / 1024
def tokens(hidden, weight, targets):
    return token_statistics(hidden, Head(weight), targets)
def pair(hidden, weight, targets):
    return pair_statistics(hidden, Head(weight), hidden, Head(weight), targets)
def whole(hidden, weight, targets):
    return (hidden @ weight.T).log_softmax(1)
hidden, weight, targets = torch.ones(512, 64), torch.empty(151_936, 64).fill_(0.5), torch.arange(512) * 290
for run in (tokens, pair, whole):
    run(hidden[:8], weight[:256], targets[:8] // 290)
    open("/proc/self/clear_refs", "w").write("5")  # the peak begins anew at what there is now
    before = memory("VmRSS:")
    run(hidden, weight, targets)
    print(memory("VmHWM:") - before)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads the peak from /proc")
def test_extra_memory_for_512_rows_of_a_large_vocabulary() -> None:
    """Growth of the peak memory of a fresh process, after a warm-up."""
    done = subprocess.run([sys.executable, "-c", _PEAK], check=True, capture_output=True, text=True)
    tokens, pair, whole = map(float, done.stdout.split())
    assert tokens < 64
    assert pair < 64
    assert whole > 256, "control: whole logits take 297 MiB at least"
