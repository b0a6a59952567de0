"""What fails around engines: broken installations, full disks, interrupted threads, dead owners. No model runs here."""

from __future__ import annotations

import os
import resource
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.helpers.paths import DATA
from tests.helpers.stopped_runs import HANGS
from tests.helpers.tiny_models import make_model
from trajscore.engines import ENGINE_VARIABLE, EngineOptions, ModelSource, default_engine, load_engine
from trajscore.engines.hidden_store import HiddenStore
from trajscore.engines.memory import out_of_memory
from trajscore.errors import EngineError, TrajscoreError, UsageError

STUDENT = DATA / "models" / "student"


@pytest.mark.parametrize(("value", "meant"), [("hf", "hf"), ("", "auto"), ("auto", "auto")])
def test_the_variable_says_what_auto_means(value: str, meant: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(ENGINE_VARIABLE, value)
    assert default_engine() == meant


def test_an_unknown_engine_in_the_variable_is_named_as_such(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(ENGINE_VARIABLE, "vlm")
    with pytest.raises(UsageError, match=f"{ENGINE_VARIABLE}=vlm: no such engine.\nDid you mean vllm"):
        load_engine("auto", ModelSource("x", np.arange(3)), EngineOptions())


@pytest.mark.parametrize(
    ("content", "said", "absent"),
    [
        (
            "raise RuntimeError('operator torchvision::nms does not exist')",
            "installed, but cannot be imported",
            "is not",
        ),
        ("import no_such_part_of_vllm", "cannot be imported (No module named 'no_such_part", "is not installed"),
    ],
)
def test_a_broken_vllm_is_not_called_missing(content: str, said: str, absent: str, tmp_path: Path) -> None:
    """With `auto` the run goes on with transformers; the doctor says what is wrong. Neither ends in a traceback."""
    (tmp_path / "vllm").mkdir()
    (tmp_path / "vllm" / "__init__.py").write_text(content)
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path}:{os.environ.get('PYTHONPATH', '')}", ENGINE_VARIABLE: ""}
    code = (
        "import json; from trajscore.viewing.doctor import doctor; found = doctor()\n"
        "print(found.auto, found.engines[0].ready, found.engines[0].detail)\n"
        "import numpy as np; from trajscore.engines import *\n"
        f"print(load_engine('auto', ModelSource({str(STUDENT)!r}, np.arange(100)), EngineOptions())[0])\n"
    )
    run = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=HANGS, check=False
    )
    assert run.returncode == 0, run.stderr
    first, second = run.stdout.splitlines()
    assert first.startswith("hf False vLLM is installed")
    assert said in first
    assert absent not in first
    assert second == "hf"


class TestRunTogether:
    """Streams in threads."""

    @staticmethod
    def _stream(stop: threading.Event, items: int, error: Exception | None = None) -> Iterator[int]:
        yield from range(items)
        if error:
            raise error
        stop.wait(30)

    def _threads(self) -> int:
        return threading.active_count()

    def test_an_error_ends_all(self) -> None:
        from trajscore.engines.vllm_parallel import run_together

        stop, before = threading.Event(), self._threads()
        streams = [self._stream(stop, 3), self._stream(stop, 2, ValueError("broken"))]
        with pytest.raises(ValueError, match="broken"):
            list(run_together(streams, stop))
        assert stop.is_set()
        assert self._threads() == before, "a stream still runs"

    def test_whoever_stops_early_leaves_nothing_running(self) -> None:
        from trajscore.engines.vllm_parallel import run_together

        stop, before = threading.Event(), self._threads()
        together = run_together([self._stream(stop, 3), self._stream(stop, 3)], stop)
        next(together)
        together.close()  # type: ignore[attr-defined]
        assert self._threads() == before, "a stream still runs"

    def test_all_items_come_once(self) -> None:
        from trajscore.engines.vllm_parallel import run_together

        assert sorted(run_together([iter(range(50)), iter(range(50, 120))], threading.Event())) == list(range(120))


def test_engines_side_by_side_never_share_a_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """What vLLM keeps in globals would mix their requests; the user's variable does not change that."""
    import vllm

    from trajscore.engines.vllm import VLLMEngine

    started = []

    def refuse(engine_args: object, enable_multiprocessing: bool) -> None:
        started.append((enable_multiprocessing, os.environ.get("VLLM_ENABLE_V1_MULTIPROCESSING")))
        raise RuntimeError("far enough")

    monkeypatch.delenv("VLLM_ENABLE_V1_MULTIPROCESSING", raising=False)
    monkeypatch.setattr(vllm.LLMEngine, "from_engine_args", refuse)
    for options in (EngineOptions(), EngineOptions(data_parallel_size=2)):
        with pytest.raises(TrajscoreError, match="far enough"):
            VLLMEngine(ModelSource(str(STUDENT), np.arange(100)), options)
    assert started == [(False, "0"), (True, None)]
    assert not [name for name in os.environ if name.startswith("TRAJSCORE_VLLM")], "later processes are not ours"


def test_positions_of_long_texts_for_short_ones_are_refused(tmp_path: Path) -> None:
    """vLLM decides by its own limit, not by the text, so a short text would get other numbers than alone with transformers."""
    rope = {
        "rope_type": "longrope", "rope_theta": 10_000.0, "short_factor": [1.0] * 16, "long_factor": [4.0] * 16,
        "original_max_position_embeddings": 64,
    }  # fmt: skip
    folder = make_model(
        tmp_path, "phi4", tied=False, rope_parameters=rope, original_max_position_embeddings=64, pad_token_id=0
    )
    with pytest.raises(EngineError, match="more than 64 tokens") as caught:
        load_engine("vllm", ModelSource(str(folder), np.arange(100)), EngineOptions())
    assert "--max-model-len 64" in caught.value.hint


@pytest.mark.parametrize(
    ("name", "instead"), [("dtype", "--dtype"), ("data_parallel_size", "--data-p"), ("hf_token", "HF_TO")]
)
def test_an_argument_with_a_flag_of_its_own(name: str, instead: str) -> None:
    with pytest.raises(UsageError, match=f"--engine-arg {name}: there is another way") as caught:
        load_engine("vllm", ModelSource(str(STUDENT), np.arange(100)), EngineOptions(engine_args={name: "x"}))
    assert instead in caught.value.hint


def _store(folder: Path) -> None:
    with HiddenStore(folder / "hidden-states") as store:
        for number in range(100):
            store.put(number, torch.zeros(30, 7))


def test_a_full_disk_for_hidden_states(tmp_path: Path) -> None:
    """Closing the file fails as well; the message is that of the write, and no file is left."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, before[1]))
    try:
        with pytest.raises(TrajscoreError, match="hidden states cannot be written"):
            _store(tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (torch.OutOfMemoryError("x"), True),
        (MemoryError(), True),
        (
            RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
            True,
        ),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED"), True),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
    ],
)
def test_which_errors_mean_that_memory_ran_out(error: Exception, expected: bool) -> None:
    assert out_of_memory(error) is expected


@pytest.mark.parametrize("dead", [True, False])
def test_a_worker_whose_owner_is_dead_when_it_begins(dead: bool) -> None:
    """Killed while an engine starts: whoever adopted the worker is its parent then, and lives."""
    owner = subprocess.Popen([sys.executable, "-c", "pass" if dead else "import time; time.sleep(60)"])
    if dead:
        owner.wait()
    code = (
        "import time; from trajscore.engines.vllm_plugin import _leave_with_the_owner as leave\n"
        f"leave({owner.pid}); time.sleep(4)"
    )
    try:
        run = subprocess.run([sys.executable, "-c", code], timeout=HANGS, check=False)
        assert run.returncode == (1 if dead else 0)
    finally:
        owner.kill()
        owner.wait()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_one_damaged_entry_of_the_head_is_found_when_the_model_is_loaded(value: float, tmp_path: Path) -> None:
    """Every row would be refused, one by one, to the end of the corpus."""
    model = tmp_path / "model"
    shutil.copytree(STUDENT, model)
    weights = load_file(model / "model.safetensors")
    (name,) = [name for name in weights if "embed_tokens" in name]
    weights[name][7, 3] = value
    save_file(weights, model / "model.safetensors", {"format": "pt"})
    with pytest.raises(EngineError, match=r"NaN or infinity in one entry \(token id 7\)"):
        load_engine("hf", ModelSource(str(model), np.arange(weights[name].shape[0])), EngineOptions())
