"""How often models are started: once each, however many groups of rows a run with a teacher has."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import trajscore as ts
from tests.helpers.paths import DATA
from trajscore.engines import load_engine
from trajscore.scoring.passes import Passes

STUDENT, TEACHER = (str(DATA / "models" / name) for name in ("student", "teacher"))


@pytest.mark.parametrize(
    ("name", "swap", "starts"),
    [
        pytest.param("hf", None, 2, id="hf"),
        pytest.param("hf", True, 43, id="hf, in turn"),  # control: both in each group, and the student before
        pytest.param("vllm", None, 2, id="vllm", marks=pytest.mark.slow),
    ],
)
def test_a_run_of_many_groups_starts_each_model_once(
    name: str, swap: bool | None, starts: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """21 equal rows, each a part, and where models take turns a group: there is room for the states of one row, not of two."""
    monkeypatch.setenv("VLLM_CPU_KVCACHE_SPACE", "1")
    started, groups, began = list[str](), list[int](), list[Any]()

    def counted(asked: str, source: Any, options: Any) -> Any:
        started.append(source.name)
        return load_engine(asked, source, options)

    run = Passes.run

    def noted(passes: Passes, rows: Any, *more: Any) -> None:
        groups.append(len(rows))
        run(passes, rows, *more)

    monkeypatch.setattr("trajscore.scoring.models.load_engine", counted)
    monkeypatch.setattr(Passes, "run", noted)
    if name == "vllm":
        from trajscore.engines.vllm_replica import Replica

        begin = Replica.begin

        def begun(replica: Replica) -> None:
            began.append(replica)
            begin(replica)

        monkeypatch.setattr(Replica, "begin", begun)
    with (DATA / "trajectories.jsonl").open() as file:
        row = json.loads(next(file))
    corpus = tmp_path / "rows.jsonl"
    corpus.write_text("".join(json.dumps({**row, "id": str(number)}) + "\n" for number in range(21)))
    # A row leaves 33 states of 384 bytes.
    settings: dict[str, Any] = {"engine": name, "part_rows": 1, "hidden_budget": 20_000 / 2**30, "swap_models": swap}
    summary = ts.score(corpus, STUDENT, tmp_path / "s", teacher=TEACHER, **settings)
    assert summary.rows == 21
    assert groups == [1] * 21
    assert sorted(set(started)) == sorted({STUDENT, TEACHER})
    assert len(started) == starts
    assert name == "hf" or len(began) == starts
