"""What only the vLLM engine does: other processes, several of them, deaths and restarts, and models that take turns."""

from __future__ import annotations

import functools
import json
import logging
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import polars as pl
import pytest
import transformers

import trajscore as ts
from tests.helpers.paths import DATA, ROOT
from tests.helpers.stopped_runs import HANGS, score_until, until
from tests.helpers.tiny_models import make_model
from trajscore.engines import (
    ENGINE_VARIABLE,
    EngineOptions,
    ModelSource,
    TokenSequence,
    load_engine,
    vllm_insides,
    vllm_versions,
)
from trajscore.engines.reductions import TOKENS
from trajscore.errors import EngineError, UsageError

STUDENT, TEACHER = DATA / "models" / "student", DATA / "models" / "teacher"
CORPUS = DATA / "trajectories.jsonl"


def _source(folder: Path = STUDENT) -> ModelSource:
    return ModelSource(str(folder), np.arange(len(transformers.AutoTokenizer.from_pretrained(folder))))


def _sequences(count: int) -> list[TokenSequence]:
    generator = np.random.default_rng(1)
    lengths = generator.integers(2, 60, count)
    return [
        TokenSequence(generator.integers(0, 500, n).astype(np.int32), np.arange(1, n, dtype=np.uint32)) for n in lengths
    ]


def _close(one: pl.DataFrame, other: pl.DataFrame) -> None:
    """The same rows, and the same numbers but for floating-point noise."""
    assert one.columns == other.columns
    for name in one.columns:
        if one[name].dtype == pl.List(pl.List(pl.Float32)):
            ours, theirs = one[name].explode().explode().to_numpy(), other[name].explode().explode().to_numpy()
            np.testing.assert_allclose(ours, theirs, atol=2e-3, err_msg=name)
            continue
        if one[name].dtype == pl.List(pl.List(pl.Int32)):
            # Near ties.
            ours, theirs = one[name].explode().explode().to_numpy(), other[name].explode().explode().to_numpy()
            assert np.mean(ours != theirs) < 0.01, name
            continue
        if one[name].dtype != pl.List(pl.Float32):
            if not name.endswith("_rank"):
                assert one[name].equals(other[name]), name
            continue
        ours, theirs = one[name].explode().to_numpy(), other[name].explode().to_numpy()
        np.testing.assert_allclose(ours, theirs, atol=1e-4, err_msg=name)
    for name in (name for name in one.columns if name.endswith("_rank")):
        different = np.sum(one[name].explode().to_numpy() != other[name].explode().to_numpy())
        # Near ties; of one marker per row there are so few that three of them are more than the share.
        assert different <= 3 or different < 0.005 * one[name].explode().len(), name


def _command(out: Path, *options: str, **environment: str) -> subprocess.Popen[str]:
    """`trajscore score` in a session of its own, so that all its processes can be counted."""
    return subprocess.Popen(
        [sys.executable, "-m", "trajscore", "score", *_arguments(out, *options)], env={**os.environ, **environment},
        start_new_session=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def _arguments(out: Path, *options: str) -> list[str]:
    return [str(CORPUS), "--student", str(STUDENT), "--engine", "vllm", "--out", str(out), *options]


def _processes(session: int) -> list[int]:
    """Living processes of a session."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdigit() and os.getsid(int(entry.name)) == session:
                state = (entry / "stat").read_text().rpartition(")")[2].split()[0]
                found += [] if state == "Z" else [int(entry.name)]
        except (OSError, ValueError):
            continue
    return found


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> pl.DataFrame:
    """The demo corpus under transformers."""
    out = tmp_path_factory.mktemp("hf") / "scores"
    ts.score(CORPUS, STUDENT, out, engine="hf")
    return ts.scan(out).collect()


class TestNames:
    """What is used of vLLM beyond its documented interface."""

    def test_the_installed_version_has_all_of_them(self) -> None:
        assert vllm_insides.problems() == []

    def test_it_is_one_of_the_tested_versions(self) -> None:
        import vllm

        assert vllm.__version__.partition("+")[0] in vllm_versions.TESTED

    def test_a_version_that_lacks_one_is_named(self, monkeypatch: pytest.MonkeyPatch) -> None:
        names = (
            vllm_insides.Name("vllm", "LLMEngine.gone", ()),
            vllm_insides.Name("vllm", "LLMEngine.add_request", ("gone",)),
            vllm_insides.Name("vllm.nowhere", "thing", ()),
        )
        monkeypatch.setattr(vllm_insides, "NAMES", names)
        with pytest.raises(EngineError) as caught:
            vllm_versions.check_names()
        for line in ("LLMEngine.gone is gone", "LLMEngine.add_request has no 'gone'", "vllm.nowhere.thing is gone"):
            assert line in caught.value.problem
        assert next(iter(vllm_versions.TESTED)) in caught.value.hint


class TestDeaths:
    """An engine that dies is started again with what it held."""

    @pytest.fixture
    def engine(self) -> Iterator[Any]:
        _, engine = load_engine("vllm", _source(), EngineOptions(max_num_batched_tokens=256))
        yield engine
        engine.close()

    def test_it_goes_on_with_fewer_tokens(
        self, engine: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        sequences = _sequences(40)
        expected = dict(engine.run(sequences, TOKENS))
        step, calls = engine._replicas[0].engine.step, []

        def dies_once() -> Any:
            calls.append(1)
            if len(calls) == 3:
                raise RuntimeError("DefaultCPUAllocator: can't allocate memory")
            return step()

        monkeypatch.setattr(engine._replicas[0].engine, "step", dies_once)
        with caplog.at_level(logging.WARNING, "trajscore"):
            found = list(engine.run(sequences, TOKENS))
        assert sorted(index for index, _ in found) == list(range(40)), "each once, none lost"
        for index, scores in found:
            np.testing.assert_allclose(scores.surprisal_N, expected[index].surprisal_N, atol=1e-4)
        assert "can't allocate memory" in caplog.text
        assert "at most 128 tokens" in caplog.text

    def test_it_gives_up_when_nothing_gets_done(self, engine: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        from trajscore.engines.vllm_replica import Replica

        def dies(*_: Any) -> Any:
            raise RuntimeError("no memory")

        start = Replica.begin

        def start_broken(replica: Any) -> None:
            start(replica)
            replica.engine.step = dies

        monkeypatch.setattr(Replica, "begin", start_broken)
        monkeypatch.setattr("trajscore.engines.vllm_replica._RESTARTS", 1)
        engine._replicas[0].engine.step = dies
        with pytest.raises(EngineError, match=r"died 2 times .*\(no memory\); the longest waiting has \d+ tokens"):
            list(engine.run(_sequences(3), TOKENS))

    def test_rows_that_do_not_fit_are_an_error(self, engine: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        step = engine._replicas[0].engine.step

        def loses_a_row() -> Any:
            outputs = step()
            for output in outputs:
                output.outputs.data = output.outputs.data[1:]
            return outputs

        monkeypatch.setattr(engine._replicas[0].engine, "step", loses_a_row)
        with pytest.raises(EngineError, match=r"rows for \d+ scored tokens"):
            list(engine.run(_sequences(2), TOKENS))


class TestAuto:
    """`auto` is vLLM where it is installed and can run the model."""

    @pytest.fixture(autouse=True)
    def _no_default(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv(ENGINE_VARIABLE)

    def test_it_is_vllm(self) -> None:
        name, engine = load_engine("auto", _source(), EngineOptions())
        engine.close()
        assert name == "vllm"

    def test_it_falls_back_and_says_so(self, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        folder = make_model(tmp_path, "gemma2", tied=False)
        with caplog.at_level(logging.WARNING, "trajscore"):
            name, _ = load_engine("auto", _source(folder), EngineOptions())
        assert name == "hf"
        assert "vLLM cannot run it" in caplog.text
        assert "runs with transformers" in caplog.text

    def test_asked_for_by_name_it_does_not(self, tmp_path: Path) -> None:
        config = (STUDENT / "config.json").read_text().replace("Qwen3ForCausalLM", "UnheardOfForCausalLM")
        shutil.copytree(STUDENT, tmp_path / "m")
        (tmp_path / "m" / "config.json").write_text(config)
        with pytest.raises(EngineError, match="does not know its architecture \\(UnheardOf"):
            load_engine("vllm", _source(tmp_path / "m"), EngineOptions())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"device": "mps"}, "--device mps: vLLM runs on cpu here"),
        ({"attn_implementation": "sdpa"}, "--attn-implementation is an option of transformers"),
        ({"engine_args": {"no_such": 1}}, "--engine-arg no_such: vLLM has no such argument"),
        ({"engine_args": {"pipeline_parallel_size": 2}}, "parts of a model in several places are not scored"),
        ({"engine_args": {"runner": "generate"}}, "--engine-arg runner: set by trajscore"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_options_that_vllm_does_not_know(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        load_engine("vllm", _source(), EngineOptions(**options))


@pytest.mark.parametrize("name", ["tensor_parallel_size", "data_parallel_size"])
def test_transformers_refuses_what_only_vllm_does(name: str) -> None:
    with pytest.raises(UsageError, match=f"--{name.replace('_', '-')} is an option of vLLM"):
        load_engine("hf", _source(), EngineOptions(**{name: 2}))  # type: ignore[arg-type]


@pytest.mark.parametrize(("divergence", "swap"), [("exact", True), ("topk:8", None)])
def test_teacher_and_distilled_beside_the_student(
    divergence: str, swap: bool | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What one model leaves for another goes from engine to engine in files; the numbers are those of transformers.

    Where they fit into memory, each is started once, however many groups of rows there are; in turn, again and again.
    """
    from trajscore.engines.vllm_replica import Replica

    monkeypatch.setenv("VLLM_CPU_KVCACHE_SPACE", "1")
    started = list[Any]()
    begin = Replica.begin

    def counted(replica: Replica) -> None:
        started.append(replica)
        begin(replica)

    monkeypatch.setattr(Replica, "begin", counted)
    models: dict[str, Any] = {
        "teacher": [str(TEACHER)],
        "divergence": divergence,
        "limit": 60,
        "extra": ["collision", "local:1"],
        "swap_models": swap,
        "keep_topk": 4,
    }
    if divergence == "exact":  # every model is an engine that is started twice
        models["distilled"] = str(STUDENT)
        models["topk_at"] = "student"
        models["extra"] += ["tv", "jsd:0.1", "renyi:2", "kl_at:2", "standardised:2", "topk_mass:8"]
    frames = []
    for engine in ("hf", "vllm"):
        summary = ts.score(CORPUS, STUDENT, tmp_path / engine, engine=engine, part_rows=25, **models)
        assert summary.null_columns == {}
        frames.append(ts.scan(tmp_path / engine).collect())
    assert "js" in frames[0].columns or "js_topk" in frames[0].columns
    assert len(started) == 2 if swap is None else len(started) > 3
    _close(*frames)
    assert {path.name for path in (tmp_path / "vllm").iterdir() if not path.name.startswith("part")} == {
        ".lock", "manifest.json", "tokenizer.json",
    }  # fmt: skip


@pytest.mark.parametrize(("gpu", "free", "sleeps"), [(False, 2**40, False), (True, 2**40, True), (True, 2**20, False)])
def test_models_that_take_turns_sleep_on_gpus_with_room_beside_them(
    gpu: bool, free: int, sleeps: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The plan says it, and the engine is asked for it; on this CPU without a word of ours it is never so."""
    from trajscore.engines import vllm
    from trajscore.scoring.forecast.memory import plan_memory
    from trajscore.scoring.models import RoleModel
    from trajscore.scoring.options import ScoreOptions
    from trajscore.scoring.passes import Passes

    monkeypatch.setattr("trajscore.engines.memory.available_memory", lambda device: free)
    if gpu:
        monkeypatch.setattr("trajscore.engines.vllm_insides.can_sleep", lambda: True)
    for swap in (True, False):
        options = ScoreOptions(
            data=CORPUS, student=STUDENT, teacher=[str(TEACHER)], engine="vllm", swap_models=swap, out=tmp_path / "s"
        )
        passes = Passes(RoleModel("student", str(STUDENT), options), options, tmp_path / "scratch")
        assert plan_memory(passes)(100)["asleep"] is (sleeps and swap)
        _, arguments = vllm._arguments(passes.student.source, options, tmp_path / "vocabulary.npy")
        assert arguments.get("enable_sleep_mode", False) is (sleeps and swap)


@pytest.mark.slow
def test_an_engine_that_slept_gives_the_same_numbers() -> None:
    """vLLM's own calls; on a CPU they free nothing, and what they stop has to go on."""
    _, engine = load_engine("vllm", _source(), EngineOptions())
    try:
        assert not engine.sleep(), "nobody asked for it"
        expected = dict(engine.run(_sequences(5), TOKENS))
        engine._may_sleep = True  # type: ignore[attr-defined]
        assert engine.sleep()
        assert engine._replicas[0].engine.is_sleeping()  # type: ignore[attr-defined]
        found = dict(engine.run(_sequences(5), TOKENS))
        assert not engine._replicas[0].engine.is_sleeping()  # type: ignore[attr-defined]
    finally:
        engine.close()
    for index, scores in expected.items():
        np.testing.assert_allclose(scores.surprisal_N, found[index].surprisal_N, atol=1e-5)


def test_a_teacher_with_another_tokenizer(tmp_path: Path) -> None:
    models: dict[str, Any] = {"teacher": [str(DATA / "models" / "student-llama")], "align": "bytes", "limit": 30}
    frames = []
    for engine in ("hf", "vllm"):
        ts.score(CORPUS, STUDENT, tmp_path / engine, engine=engine, **models)
        frames.append(ts.scan(tmp_path / engine).collect())
    _close(*frames)


@pytest.mark.parametrize(
    "number", [pytest.param(signal.SIGTERM, marks=pytest.mark.slow), signal.SIGKILL], ids=lambda number: number.name
)
def test_a_killed_run_leaves_no_engine_and_can_be_continued(
    number: signal.Signals, reference: pl.DataFrame, tmp_path: Path
) -> None:
    """Engines in a process of their own, before and after."""
    out = tmp_path / "s"
    options = ("--part-rows", "10")
    run = score_until(3, tmp_path / "marker", *_arguments(out, *options), VLLM_ENABLE_V1_MULTIPROCESSING="1")
    assert len(_processes(run.pid)) > 1, "the engine has a process of its own"
    os.kill(run.pid, number)
    _, stderr = run.communicate(timeout=HANGS)
    assert run.returncode == (130 if number is signal.SIGTERM else -signal.SIGKILL)
    assert "Traceback" not in stderr
    assert until(lambda: not _processes(run.pid)), "an engine was left behind"
    kept = ts.read_manifest(out).rows
    assert 20 <= kept <= 30
    run = _command(out, *options, "--json", VLLM_ENABLE_V1_MULTIPROCESSING="1")
    stdout, stderr = run.communicate(timeout=HANGS)
    assert run.returncode == 0, stderr
    assert json.loads(stdout)["resumed_rows"] >= kept, "stdout carries the summary and nothing else"
    assert until(lambda: not _processes(run.pid)), "an engine was left behind"
    _close(ts.scan(out).collect(), reference)


@pytest.mark.slow
# The shipped teacher has three attention heads, which two workers cannot share.
@pytest.mark.parametrize(
    ("option", "teacher"), [("--tensor-parallel-size", STUDENT), ("--data-parallel-size", TEACHER)]
)
def test_two_workers_give_the_same_numbers(option: str, teacher: Path, reference: pl.DataFrame, tmp_path: Path) -> None:
    run = _command(tmp_path / "s", option, "2", "--teacher", str(teacher), "--limit", "100", VLLM_CPU_KVCACHE_SPACE="1")
    _, stderr = run.communicate(timeout=HANGS)
    assert run.returncode == 0, stderr
    assert until(lambda: not _processes(run.pid)), "an engine was left behind"
    ts.score(CORPUS, STUDENT, tmp_path / "hf", engine="hf", teacher=[str(teacher)], limit=100)
    _close(ts.scan(tmp_path / "s").collect(), ts.scan(tmp_path / "hf").collect())


@pytest.mark.slow
def test_ctrl_c_with_engines_side_by_side(tmp_path: Path) -> None:
    """The terminal tells every process: engines die of it too, and none is started again."""
    out = tmp_path / "s"
    arguments = _arguments(out, "--part-rows", "10", "--data-parallel-size", "2")
    run = score_until(3, tmp_path / "marker", *arguments, VLLM_CPU_KVCACHE_SPACE="1")
    os.killpg(run.pid, signal.SIGINT)
    _, stderr = run.communicate(timeout=HANGS)
    assert run.returncode == 130
    assert "started again" not in stderr
    assert until(lambda: not _processes(run.pid)), "an engine was left behind"


@pytest.mark.slow
def test_engines_start_side_by_side(monkeypatch: pytest.MonkeyPatch) -> None:
    """All have begun before the first is ready, so that many take as long as the slowest of them."""
    import vllm

    events = list[str]()
    begin = vllm.LLMEngine.from_engine_args

    @functools.wraps(begin)
    def watched(*args: Any, **more: Any) -> Any:
        events.append("begins")
        engine = begin(*args, **more)
        events.append("is ready")
        return engine

    monkeypatch.setattr(vllm.LLMEngine, "from_engine_args", watched)
    _, engine = load_engine("vllm", _source(), EngineOptions(data_parallel_size=2))
    try:
        assert events == ["begins", "begins", "is ready", "is ready"]
        found = dict(engine.run(_sequences(20), TOKENS))
        assert sorted(found) == list(range(20))
    finally:
        engine.close()


def test_a_wheel_is_checked_without_installing_it(tmp_path: Path) -> None:
    """The names of the installed vLLM are found by their syntax as they are by importing it; what is gone is said."""
    import zipfile

    import vllm

    package = Path(vllm.__file__).parent
    words: list[str | Path] = [sys.executable, ROOT / ".ci" / "vllm_wheel.py"]
    found = subprocess.run([*words, package.parent], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (found.returncode, found.stdout) == (
        0,
        f"{package.parent.name}: {len(vllm_insides.NAMES)} names, 0 problems\n",
    )
    with zipfile.ZipFile(tmp_path / "vllm-9.whl", "w") as wheel:
        for path in package.rglob("*.py"):
            text = path.read_text("utf-8")
            if path.name == "logits_processor.py":
                text = text.replace("soft_cap: ", "cap: ")
            if path.relative_to(package).as_posix() != "v1/pool/metadata.py":
                wheel.writestr(path.relative_to(package.parent).as_posix(), text)
    found = subprocess.run([*words, tmp_path / "vllm-9.whl"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert found.returncode == 1
    assert "LogitsProcessor.__init__ has no 'soft_cap'" in found.stdout
    assert found.stdout.count("vllm.v1.pool.metadata") == 5


def test_the_second_model_runner_in_chunks_gives_the_same_as_whole() -> None:
    """vLLM's runner on GPUs, of which the pooling half runs on a CPU too: our pooler over its metadata and states."""
    import torch
    import vllm
    from vllm.v1.worker.gpu.pool.pooling_runner import PoolingRunner

    from trajscore.engines.reduced_rows import reduce_rows
    from trajscore.engines.vllm_plugin import TASK, pack

    _, engine = load_engine("vllm", _source(), EngineOptions())
    try:
        inner = engine._replicas[0].engine  # type: ignore[attr-defined]
        model = inner.model_executor.driver_worker.worker.model_runner.model
        sequences = [each for each in _sequences(12) if len(each.input_ids_P) > 8][:3]
        lengths = [len(each.input_ids_P) for each in sequences]
        generator = torch.Generator().manual_seed(0)
        hidden = [torch.randn(length, model.config.hidden_size, generator=generator) for length in lengths]

        def pooled(steps: list[list[tuple[int, int, int]]]) -> dict[int, torch.Tensor]:
            """What every request gets, from steps of (request, first token, last token)."""
            runner = PoolingRunner(model, inner.vllm_config)
            for number, each in enumerate(sequences):
                asked = pack("tokens", each.positions_N, parameters={})
                params = vllm.PoolingParams(task=TASK, extra_kwargs=asked)
                runner.add_request(str(number), number, params, each.input_ids_P.tolist())
            state = SimpleNamespace(prompt_len=SimpleNamespace(np=np.array(lengths, np.int32)))
            found = dict[int, torch.Tensor]()
            for step in steps:
                counts = np.array([stop - start for _, start, stop in step], np.int32)
                batch = SimpleNamespace(
                    idx_mapping_np=np.array([number for number, _, _ in step]),
                    req_ids=[str(number) for number, _, _ in step],
                    num_reqs=len(step),
                    num_tokens=int(counts.sum()),
                    num_scheduled_tokens=counts,
                    seq_lens_cpu_upper_bound=torch.tensor([stop for _, _, stop in step], dtype=torch.int32),
                    query_start_loc=torch.tensor([0, *np.cumsum(counts)], dtype=torch.int32),
                )
                states = torch.cat([hidden[number][start:stop] for number, start, stop in step])
                rows, finished = runner.pool(states, batch, state)
                found |= {step[place][0]: rows[place] for place, done in enumerate(finished) if done}
            return found

        a, b, c = lengths
        whole = pooled([[(0, 0, a), (1, 0, b), (2, 0, c)]])
        chunked = pooled([[(0, 0, 3), (1, 0, b)], [(2, 0, 5), (0, 3, a - 1)], [(0, a - 1, a), (2, 5, c)]])
        assert sorted(whole) == sorted(chunked) == [0, 1, 2]
        for number, each in enumerate(sequences):
            predicting = hidden[number][each.positions_N.astype(np.int64) - 1]
            targets = torch.from_numpy(each.input_ids_P[each.positions_N].astype(np.int64))
            expected = reduce_rows("tokens", predicting, engine.head, targets)
            torch.testing.assert_close(whole[number], expected, atol=1e-4, rtol=1e-5)
            torch.testing.assert_close(chunked[number], expected, atol=1e-4, rtol=1e-5)
            assert not torch.allclose(whole[number], expected.roll(1, 0), atol=1e-2), "control"
    finally:
        engine.close()
