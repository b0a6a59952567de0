"""Several processes and machines on one score folder: shards that are merged, and a Ray cluster that loses a worker."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

import trajscore as ts
from tests.faults.machines import two_nodes
from tests.helpers.paths import ROOT
from tests.helpers.warm_commands import warm_program
from trajscore.corpus import open_corpus
from trajscore.errors import MissingExtraError, TrajscoreError, UsageError
from trajscore.scores import Part
from trajscore.scoring import ray_workers
from trajscore.scoring.options import ScoreOptions

DATA, STUDENT, TEACHER = (ROOT / "data" / name for name in ("trajectories.jsonl", "models/student", "models/teacher"))
OPTIONS: dict[str, Any] = {"engine": "hf", "part_rows": 40}


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The scores as one process makes them."""
    out = tmp_path_factory.mktemp("alone") / "scores"
    ts.score(DATA, STUDENT, out, **OPTIONS)
    return out


def same(one: Path, other: Path) -> None:
    """Both folders hold the same rows in the same order, and say the same of them."""
    left, right = ts.scan(one).collect(), ts.scan(other).collect()
    assert left.equals(right)
    manifests = [json.loads((folder / "manifest.json").read_text()) for folder in (one, other)]
    for manifest in manifests:
        del manifest["environment"]
    assert manifests[0] == manifests[1]
    assert ts.verify(other).problems == []


class TestShards:
    def test_each_in_its_process_then_merged(self, alone: Path, tmp_path: Path) -> None:
        out = tmp_path / "scores"
        summaries = [ts.score(DATA, STUDENT, out, shard=f"{index}/3", **OPTIONS) for index in (2, 0)]
        assert summaries[1].rows == 200  # parts 0, 3, 6, 9 and 12
        with pytest.raises(UsageError, match=r"shards 1/3 have not begun"):
            ts.merge(out)
        with pytest.raises(UsageError, match="not merged"):
            ts.scan(out)
        assert any("not merged" in note for note in ts.verify(out).notes)
        ts.score(DATA, STUDENT, out, shard="1/3", **OPTIONS)
        assert ts.verify(out).problems == []
        merged = ts.merge(out)
        assert merged.complete
        same(alone, out)
        assert not list(out.glob("manifest-*")), "nothing of the shards is left"
        ts.merge(out)
        again = ts.score(DATA, STUDENT, out, **OPTIONS)
        assert again.resumed_rows == again.rows == 520

    def test_a_shard_continues_where_it_stopped(self, alone: Path, tmp_path: Path) -> None:
        class StoppedError(Exception):
            pass

        class StopAfter:
            def start(self, total: int | None, done: int) -> None:
                self.seen = (total, done)

            def advance(self, rows: int, tokens: int) -> None:
                self.rows = getattr(self, "rows", 0) + rows
                if self.rows > 100:
                    raise StoppedError

        out = tmp_path / "scores"
        with pytest.raises(StoppedError):
            ts.score(DATA, STUDENT, out, shard="0/2", progress=StopAfter(), **OPTIONS)
        with pytest.raises(UsageError, match="1/2 have not begun"):
            ts.merge(out)
        ts.score(DATA, STUDENT, out, shard="1/2", **OPTIONS)
        with pytest.raises(TrajscoreError, match="0/2 are not finished"):
            ts.merge(out)
        rest = ts.score(DATA, STUDENT, out, shard="0/2", **OPTIONS)
        assert 80 <= rest.resumed_rows < rest.rows == 280
        ts.merge(out)
        same(alone, out)

    def test_what_does_not_go_together(self, alone: Path, tmp_path: Path) -> None:
        out = tmp_path / "scores"
        ts.score(DATA, STUDENT, out, shard="0/2", limit=100, **OPTIONS)
        with pytest.raises(UsageError, match="begun with --shard I/2"):
            ts.score(DATA, STUDENT, out, limit=100, **OPTIONS)
        with pytest.raises(UsageError, match="begun with --shard I/2"):
            ts.score(DATA, STUDENT, out, shard="0/3", limit=100, **OPTIONS)
        ts.score(DATA, STUDENT, out, shard="1/2", limit=90, **OPTIONS)
        with pytest.raises(UsageError, match="limit: was 100, now 90"):
            ts.merge(out)
        with pytest.raises(UsageError, match="not divided into shards"):
            ts.score(DATA, STUDENT, alone, shard="0/2", **OPTIONS)
        for text in ("2/2", "x", "1/0", "-1/2", "1"):
            with pytest.raises(UsageError, match="not a shard"):
                ts.score(DATA, STUDENT, tmp_path / "none", shard=text)
        with pytest.raises(UsageError, match="no shards here"):
            ts.merge(tmp_path)

    def test_the_slurm_script_scores_and_says_how_to_merge(self, alone: Path, tmp_path: Path) -> None:
        """The script is run by bash, as Slurm would, once per task; an awkward path must survive the shell."""
        corpus = tmp_path / "it's $HOME.jsonl"
        corpus.write_bytes(DATA.read_bytes())
        command = [str(warm_program()), "slurm", "--shards", "2", "--sbatch", "time=8:00:00", "--"]
        arguments = [str(corpus), "--student", str(STUDENT), "--out", "scores", "--engine", "hf", "--part-rows", "40"]
        environment = {**os.environ, "PATH": f"{warm_program().parent}:{os.environ['PATH']}"}
        done = subprocess.run(command + arguments, capture_output=True, text=True, env=environment, check=True)
        lines = done.stdout.splitlines()
        assert {"#SBATCH --array=0-1", "#SBATCH --time=8:00:00", "#SBATCH --gpus-per-task=1"} <= set(lines)
        for task in ("0", "1"):
            subprocess.run(
                ["bash", "-c", done.stdout], cwd=tmp_path, env={**environment, "SLURM_ARRAY_TASK_ID": task}, check=True
            )
        merging = next(line for line in lines if "--wrap" in line).split("--wrap ")[1].strip("'\"")
        subprocess.run(["bash", "-c", merging], cwd=tmp_path, env=environment, check=True)
        assert ts.scan(tmp_path / "scores").collect().equals(ts.scan(alone).collect())

    def test_a_mistake_shows_before_the_script_is_submitted(self) -> None:
        def run(*arguments: str) -> subprocess.CompletedProcess[str]:
            command = [str(warm_program()), "slurm", *arguments]
            return subprocess.run(command, capture_output=True, text=True, check=False)

        assert run("--shards", "2", "--", "a.jsonl", "--student", "m", "--out", "s", "--parts", "4").returncode == 2
        assert run("--shards", "2", "--", "a.jsonl", "--student", "m").returncode == 2
        assert run("--shards", "0", "--", "a.jsonl", "--student", "m", "--out", "s").returncode == 2
        assert run("--shards", "2", "--", "a.jsonl", "--student", "m", "--out", "s", "--shard", "0/2").returncode == 2
        for flag in ("--overwrite", "--dry-run"):
            refused = run("--shards", "2", "--", "a.jsonl", "--student", "m", "--out", "s", flag)
            assert (refused.returncode, refused.stdout) == (2, "")
            assert flag in refused.stderr
        wrong = run("--shards", "2", "--sbatch", "a=b\nrm", "--", "a.jsonl", "--student", "m", "--out", "s")
        assert wrong.returncode == 2
        assert "not a directive" in wrong.stderr


class DyingWorker(ray_workers.Worker):
    """A worker that is killed after its first part, if it is the first one that comes so far."""

    def _parts(self, numbers: Sequence[int]) -> Iterator[tuple[Part, dict[str, int], int]]:
        for found in super()._parts(numbers):
            with contextlib.suppress(FileExistsError):
                (self._run.out.parent / "a worker died").touch(exist_ok=False)
                os.kill(os.getpid(), signal.SIGKILL)
            yield found


@pytest.fixture(scope="module")
def cluster() -> Iterator[str]:
    """The address of a cluster of two nodes on this machine, each of its own processes."""
    ray = pytest.importorskip("ray")
    with two_nodes() as cluster:
        yield cluster.address
        ray.shutdown()


class TestRay:
    def test_a_worker_is_killed_and_nothing_is_lost(
        self, alone: Path, cluster: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """It dies when it has written a part and not yet said so."""
        out = tmp_path / "scores"
        monkeypatch.chdir(ROOT)
        monkeypatch.setattr(ray_workers, "Worker", DyingWorker)
        summary = ts.score("data/trajectories.jsonl", "data/models/student", out, ray=cluster, **OPTIONS)
        assert (tmp_path / "a worker died").exists()
        assert summary.rows == 520
        same(alone, out)
        assert not list(out.glob("*.tmp"))

    def test_errors_of_workers_are_told_as_they_are(self, alone: Path, cluster: str, tmp_path: Path) -> None:
        """And the run goes on where it stopped, which is where one process began."""
        with pytest.raises(UsageError, match="--max-model-len 99999999"):
            ts.score(DATA, STUDENT, tmp_path / "a", ray=cluster, max_model_len=99_999_999, **OPTIONS)
        with pytest.raises(UsageError, match="9 workers are asked for"):
            ts.score(DATA, STUDENT, tmp_path / "a", ray=cluster, ray_workers=9, **OPTIONS)
        out = tmp_path / "b"
        shutil.copytree(alone, out)
        for number in (3, 5):
            (out / f"part-{number:05d}.parquet").unlink()
        (out / "part-00003.parquet" / "in the way").mkdir(parents=True)
        with pytest.raises(TrajscoreError, match=r"worker on .*cannot be written"):
            ts.score(DATA, STUDENT, out, ray=cluster, ray_workers=1, **OPTIONS)
        assert ts.read_manifest(out).rows in (440, 480), "what was finished is kept"
        shutil.rmtree(out / "part-00003.parquet")
        summary = ts.score(DATA, STUDENT, out, ray=cluster, ray_workers=1, **OPTIONS)
        assert (summary.rows, summary.resumed_rows) in {(520, 440), (520, 480)}
        same(alone, out)
        run = ray_workers.RayRun(ScoreOptions(DATA, STUDENT, out, **OPTIONS), open_corpus(DATA), out, "/nowhere")
        with pytest.raises(UsageError, match="/nowhere: not there on"):
            run.passes(tmp_path / "scratch")

    @pytest.mark.parametrize(
        "answer", [None, b"", b"HTTP/1.1 400 Bad Request\r\n\r\n"], ids=["none", "hangs up", "HTTP/1"]
    )
    def test_an_address_where_no_cluster_answers(
        self, answer: bytes | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Ray would try for two minutes, then end the process."""
        monkeypatch.setattr(ray_workers, "_ANSWER_SECONDS", 0.2)
        monkeypatch.delenv("RAY_ADDRESS", raising=False)
        with socket.create_server(("127.0.0.1", 0)) as server:
            address = f"127.0.0.1:{server.getsockname()[1]}"

            def serve() -> None:
                with contextlib.suppress(OSError):
                    while True:
                        connection, _ = server.accept()
                        kept.append(connection)
                        if answer is not None:
                            connection.sendall(answer)
                            connection.shutdown(socket.SHUT_WR)

            kept: list[socket.socket] = []
            threading.Thread(target=serve, daemon=True).start()
            for given in (address, f"ray://{address}"):
                with pytest.raises(UsageError, match=f"no cluster answers at {given}"):
                    ts.score(DATA, STUDENT, tmp_path / "a", ray=given)
            monkeypatch.setenv("RAY_ADDRESS", address)
            with pytest.raises(UsageError, match=rf"(?s)--ray auto: no cluster answers at {address}.*RAY_ADDRESS"):
                ts.score(DATA, STUDENT, tmp_path / "a", ray="auto")
            for connection in kept:
                connection.close()

    def test_an_address_of_another_cluster_than_the_connected_one(self, cluster: str, tmp_path: Path) -> None:
        import ray

        ray.init(cluster, log_to_driver=False)
        try:
            for given in ("127.0.0.1:1", "ray://127.0.0.1:1", "local"):
                with pytest.raises(
                    UsageError, match=f"{given}: this process is connected to another cluster, at {cluster}"
                ):
                    ts.score(DATA, STUDENT, tmp_path / "a", ray=given)
            for given in ("auto", cluster):
                ts.score(DATA, STUDENT, tmp_path / "a", ray=given, limit=40, **OPTIONS)
            assert ray.is_initialized(), "it is not ours to end"
        finally:
            ray.shutdown()

    def test_a_run_that_ends_early_asks_for_no_more_rows(self) -> None:
        """A row that came after Ray was shut down would start a cluster, which the next run would use."""
        asked: list[int] = []
        closed = threading.Event()

        def rows() -> Iterator[int]:
            try:
                for number in range(1_000_000):
                    asked.append(number)
                    time.sleep(0.01)
                    yield number
            finally:
                closed.set()

        with contextlib.closing(ray_workers._watched(rows(), {})) as watched:
            assert next(watched) == 0
        assert closed.is_set()
        assert len(asked) < 1_000_000

    def test_an_address_where_nothing_listens(self, tmp_path: Path) -> None:
        with socket.create_server(("127.0.0.1", 0)) as server:
            address = f"127.0.0.1:{server.getsockname()[1]}"
        with pytest.raises(UsageError, match=r"no cluster answers at .* \(.*refused\)"):
            ts.score(DATA, STUDENT, tmp_path / "a", ray=address)

    def test_options_that_do_not_go_together(self, tmp_path: Path) -> None:
        with pytest.raises(UsageError, match="--shard and --ray"):
            ts.score(DATA, STUDENT, tmp_path / "a", ray="auto", shard="0/2")

    def test_ray_is_optional(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "ray", None)
        with pytest.raises(MissingExtraError, match="Ray Data is not installed"):
            ts.score(DATA, STUDENT, tmp_path / "a", ray="auto")


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--ray"], "auto"),
        (["--ray", "--limit", "3"], "auto"),
        (["--ray", "10.0.0.1:6379"], "10.0.0.1:6379"),
        (["--ray", "ray://head:10001"], "ray://head:10001"),
        ([], None),
    ],
)
def test_ray_may_stand_alone(arguments: list[str], expected: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """`--ray` takes an address if one follows; a file that follows is the corpus."""
    from typer.testing import CliRunner

    from trajscore.cli import app

    seen: dict[str, Any] = {}

    def score(data: list[str], student: str, out: str, **options: Any) -> Any:
        seen.update(options, data=data)
        raise UsageError("seen")

    monkeypatch.setattr("trajscore.scoring.run.score", score)
    CliRunner().invoke(app, ["score", "--student", "m", "--out", "s", *arguments, "corpus.jsonl"])
    assert (seen["ray"], list(seen["data"])) == (expected, ["corpus.jsonl"])
