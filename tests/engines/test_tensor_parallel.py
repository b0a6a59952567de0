"""Two workers of vLLM that share each model: every statistic is that of one worker, and no rows of a head pass between them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from tests.helpers.paths import DATA
from tests.helpers.tiny_models import make_model
from trajscore.engines import EngineOptions, ModelSource, TokenSequence, load_engine
from trajscore.engines.head_file import join_parts, load_head, part_path, save_head
from trajscore.engines.reductions import STATES, TOKENS, Other, Reduction, StoredRows, pair, top, top_pair, written
from trajscore.statistics import Head, VocabularyShard

STUDENT = DATA / "models" / "student"
FURTHER = [("tv", None), ("jsd", 0.1), ("renyi", 2.0), ("kl_at", 2.0), ("standardised", 2.0), ("topk_mass", 8.0)]


@pytest.mark.parametrize("count", [2, 4, 5])
def test_heads_go_through_files_part_by_part(count: int, tmp_path: Path) -> None:
    """Of 9 entries; as 5 parts of 2 the last has one, as 4 of 4 the last has none. One part has absent entries."""
    absent = torch.zeros(9, dtype=torch.bool)
    absent[1] = True
    whole = Head(torch.randn(9, 3), bias_V=torch.randn(9), scale=0.5, softcap=3.0, absent_V=absent)
    width = 4 if count == 4 else -(-9 // count)
    save_head(whole, tmp_path / "whole")
    parts = []
    for number in range(count):
        shard = VocabularyShard(number, count, 9, torch.clone)
        part = load_head(str(tmp_path / "whole"), torch.device("cpu"), shard, width)
        assert (part.entries, part.vocabulary, part.first) == (width, 9, number * width)
        there = whole.weight_VD[part.first : part.first + width]
        assert torch.equal(part.weight_VD[: len(there)], there)
        assert part.absent_V is not None
        assert bool(part.absent_V[len(there) :].all())
        parts.append(part_path(tmp_path / "own", number))
        save_head(part, parts[-1])
    again = join_parts(parts)
    for name in ("weight_VD", "bias_V", "absent_V"):
        assert torch.equal(getattr(again, name), getattr(whole, name)), name
    assert (again.scale, again.softcap) == (0.5, 3.0)


@pytest.mark.slow
def test_two_workers_have_the_numbers_of_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A student with a head of its own and a teacher with a tied one that is capped; both with padding rows, which differ."""
    monkeypatch.setenv("VLLM_CPU_KVCACHE_SPACE", "1")
    folders = (
        make_model(tmp_path / "s", "qwen3", tied=False, padding=25),
        make_model(tmp_path / "t", "gemma3", tied=True),
    )
    ids = np.arange(len(transformers.AutoTokenizer.from_pretrained(STUDENT)))
    draw = np.random.default_rng(2)
    rows = [draw.integers(0, len(ids), length).astype(np.int32) for length in (2, 150, 33, 70)]
    sequences = [TokenSequence(each, np.arange(1, len(each), dtype=np.uint32)) for each in rows]

    def everything(workers: int) -> tuple[list[dict[str, Any]], list[int]]:
        options = EngineOptions(
            dtype="float32",
            max_num_batched_tokens=64,
            tensor_parallel_size=workers,
            engine_args={"worker_extension_cls": "tests.helpers.gather_spy.GatherSpy"} if workers > 1 else {},
        )
        found, sizes = list[dict[str, Any]](), list[int]()
        student, teacher = (load_engine("vllm", ModelSource(str(each), ids), options)[1] for each in folders)
        try:
            states = dict(teacher.run(sequences, written(tmp_path / f"states{workers}")))
            best = dict(teacher.run(sequences, top(8)))
            stored = [_stored(tmp_path / f"top{workers}-{index}", best[index][1]) for index in range(len(sequences))]
            exact = Other(lambda _: torch.empty(0), stored=lambda index: states[index], head=teacher.head)
            truncated = Other(lambda _: torch.empty(0), stored=lambda index: stored[index])
            reductions: dict[str, Reduction[Any]] = {
                "tokens": TOKENS,
                "pair": pair(exact, 8, further=FURTHER),
                "at the student's best": pair(exact, 8, at_student=True),
                "top": top(8),
                "top_pair": top_pair(truncated),
                "states": STATES,
            }
            for name, reduction in reductions.items():
                rows = dict(student.run(sequences, reduction))
                found += [{"of": f"{name} {index}", **_numbers(rows[index])} for index in range(len(sequences))]
            found.append(
                {"of": "head", "weight": student.head.weight_VD.numpy(), "other": teacher.head.weight_VD.numpy()}
            )
            for engine in (student, teacher) if workers > 1 else ():
                of_ranks = engine._replicas[0].engine.collective_rpc("gathered_sizes")  # type: ignore[attr-defined]
                assert len(of_ranks) == workers
                sizes += [size for each in of_ranks for size in each]
        finally:
            student.close()
            teacher.close()
        return found, sizes

    (one, _), (two, sizes) = everything(1), everything(2)
    for ours, theirs in zip(two, one, strict=True):
        assert ours.keys() == theirs.keys()
        for name in ours.keys() - {"of"}:
            what = f"{ours['of']}: {name}"
            if name.endswith(("rank_N", "ids_NK")):
                assert np.mean(ours[name] != theirs[name]) < 0.01, what  # near ties
            else:
                np.testing.assert_allclose(ours[name], theirs[name], atol=1e-4, rtol=1e-4, err_msg=what)
    assert len(sizes) > 100, "the spy saw what they exchange"
    assert max(sizes) < len(ids) * 64 / 4, "never as much as a head"


def _stored(path: Path, rows_NE: torch.Tensor) -> StoredRows:
    rows_NE.numpy().tofile(path)
    return StoredRows(str(path), 0, tuple(rows_NE.shape), "float32")


def _numbers(found: Any) -> dict[str, Any]:
    """Every array of a result, by its name."""
    if isinstance(found, torch.Tensor):
        return {"rows": found.numpy()}
    if isinstance(found, np.ndarray):
        return {"": found}
    pairs = enumerate(found) if isinstance(found, tuple | list) else vars(found).items()
    return {
        f"{name}.{inner}": value for name, each in pairs if each is not None for inner, value in _numbers(each).items()
    }
