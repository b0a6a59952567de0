"""Scoring on many machines with Ray Data: each worker has its models and writes parts, this process keeps the manifest.

Workers share the paths of corpus, models and scores (a network file system, or s3:// and gs://) with this process. A worker
that dies, alone or with its machine, is replaced by Ray, which gives its parts to another one; a part that was written before
is found and kept. Where the head of the cluster dies, or Ray on this machine, the run ends with a message.
"""

from __future__ import annotations

import atexit
import contextlib
import dataclasses
import logging
import os
import platform
import queue
import socket
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson
import pyarrow as pa

from trajscore.corpus import Corpus
from trajscore.display.writer import ERR, OUT
from trajscore.errors import MissingExtraError, TrajscoreError, UsageError, first_line
from trajscore.progress import Progress
from trajscore.scores import Manifest, Part, ScoreFolder, changed_settings, write_part, written_part
from trajscore.scoring.models import RoleModel
from trajscore.scoring.options import ScoreOptions
from trajscore.scoring.passes import Passes
from trajscore.scoring.pipeline import Finished, open_passes, saying_what_is_kept, score_parts
from trajscore.scoring.reuse import OlderScores, naming, open_older
from trajscore.scoring.settings import run_manifest

_LOG = logging.getLogger("trajscore")

_ATTEMPTS = 3
"""How often parts are tried in a worker whose engine or storage fails."""

_DEATHS = 5
"""How many workers may die over the same parts: more, and it is the parts that kill them."""

_ANSWER_SECONDS = 8.0
"""How long an address may be silent."""

_LOST_SECONDS = 5.0
"""How long what Ray cannot do without may refuse every connection before the run ends."""

_LAST_ROW_SECONDS = 5.0
"""How long a run that ends early waits for the row that is being scored."""

_PARTS_AT_ONCE = 8
"""Most parts given to a worker together; it reads ahead and writes behind within them."""


@dataclass(frozen=True)
class RayRun:
    """What every worker is told.

    Attributes:
        options: every setting.
        corpus: surveyed once, by the process that started the run.
        out: the score folder.
        working_folder: of that process: relative paths begin there.
    """

    options: ScoreOptions
    corpus: Corpus
    out: Path
    working_folder: str

    def passes(self, scratch: Path) -> Passes:
        """The models, for this process.

        Raises:
            UsageError: a model, or the working folder, is not there on this machine.
        """
        try:
            os.chdir(self.working_folder)
        except OSError as error:
            raise UsageError(
                f"{self.working_folder}: not there on {platform.node()} ({error.strerror}).",
                "Start the run in a folder that all machines share.",
            ) from error
        student = RoleModel("student", str(self.options.student), self.options)
        return open_passes(student, self.corpus, self.options, scratch)


class Attempts:
    """Counts how often parts were begun, in a process that outlives the workers."""

    def __init__(self) -> None:
        self._begun: Counter[int] = Counter()

    def begin(self, number: int) -> int:
        """How often the parts that begin with this one have been begun, now included."""
        self._begun[number] += 1
        return self._begun[number]


class Worker:
    """Scores the parts that it is given; runs in a process of its own, perhaps on another machine.

    Args:
        run: a reference to the `RayRun`, in a list.
        attempts: the actor that counts them.
        expected: the manifest, whose settings this worker's must equal: another version, or other weights, would give other
            numbers.
    """

    def __init__(self, run: list[Any], attempts: Any, expected: Manifest) -> None:
        import ray

        get: Any = ray.get
        self._run: RayRun = get(run[0])
        self._attempts = attempts
        self._expected = expected
        self._folder = tempfile.TemporaryDirectory(prefix="trajscore-")
        self._passes: Passes | None = None
        self._older: OlderScores | None = None

    def __call__(self, batch: dict[str, Any]) -> Iterator[dict[str, list[bytes]]]:
        """Write some parts; one row of the result per part, or one that says what went wrong."""
        for text in batch["numbers"]:
            numbers = orjson.loads(text)
            if self._begun(numbers[0]) > _DEATHS:
                problem = f"{_DEATHS} workers died over parts {numbers[0]} to {numbers[-1]}."
                yield _row(error=[problem, "Ray's logs say why; perhaps a row needs more memory than there is.", 1])
                return
            for attempt in range(1, _ATTEMPTS + 1):
                try:
                    for part, null_columns, other_texts in self._parts(tuple(numbers)):
                        yield _row(part=dataclasses.asdict(part), null_columns=null_columns, other_texts=other_texts)
                        numbers.remove(part.first_row // self._run.options.part_rows)
                    break
                except TrajscoreError as error:
                    self._release()
                    if attempt == _ATTEMPTS or isinstance(error, UsageError):
                        yield _row(error=[f"worker on {platform.node()}: {error.problem}", error.hint, error.exit_code])
                        return

    def _begun(self, number: int) -> int:
        import ray

        get: Any = ray.get
        return int(get(self._attempts.begin.remote(number)))

    def _parts(self, numbers: Sequence[int]) -> Iterator[tuple[Part, dict[str, int], int]]:
        """Write parts, or find them written by a worker that died before it could say so."""
        size, out = self._run.options.part_rows, self._run.out
        missing = []
        for number in numbers:
            part = written_part(out, number, number * size, self._expected.run)
            if part is not None:
                yield part, {}, 0
            else:
                missing.append(number)
        if not missing:
            return
        passes = self._ready()
        written: list[Part] = []

        def write(number: int, table: pa.Table) -> None:
            written.append(write_part(out, number, number * size, table, self._expected.run))

        before, other_texts = Counter(passes.null_columns()), passes.other_texts
        score_parts(self._run.corpus.parts(size, missing), passes, write, older=self._older)
        null_columns = dict(Counter(passes.null_columns()) - before)
        other_texts = passes.other_texts - other_texts
        for part in written:
            yield part, null_columns, other_texts
            null_columns, other_texts = {}, 0

    def _ready(self) -> Passes:
        if self._passes is None:
            passes = self._run.passes(Path(self._folder.name) / "hidden-states")
            manifest = run_manifest(self._run.corpus, passes)
            lines = changed_settings(self._expected, manifest)
            if lines:
                passes.close()
                raise UsageError(
                    "differs from the worker that was asked first:\n  " + "\n  ".join(lines),
                    "Install the same versions and models on all machines.",
                )
            self._older = open_older(self._run.options, manifest, passes.made_by_models())
            self._passes = passes
        return self._passes

    def _release(self) -> None:
        if self._passes is not None:
            self._passes.close()
            self._passes = None


def _row(**values: Any) -> dict[str, list[bytes]]:
    return {"result": [orjson.dumps(values)]}


def score_on_ray(run: RayRun, progress: Progress | None) -> Finished:
    """Score a corpus on a Ray cluster.

    Args:
        run: what to score.
        progress: told how far the run is, part by part.

    Raises:
        UsageError: the cluster is too small, or what `score` raises.
        TrajscoreError: a worker failed again and again.
        MissingExtraError: Ray is not installed.
    """
    with _cluster(run.options.ray or "auto") as ray:
        resources, workers = _resources(ray, run.options)
        reference = ray.put(run)
        manifest, tokenizer, error = ray.get(ray.remote(**resources)(_describe).remote([reference]))
        if error is not None:
            raise _as_error(error)
        manifest = naming(manifest, open_older(run.options, manifest, ()))
        with ScoreFolder(run.out, manifest, run.options.overwrite, break_lock=run.options.break_lock) as folder:
            done = folder.finished_rows
            folder.keep_tokenizer(tokenizer)
            if done:
                _LOG.info("continuing after %d finished rows", done)
            if progress:
                progress.start(run.corpus.n_rows, done)
            null_columns: Counter[str] = Counter()
            other_texts = 0
            missing = list(folder.missing(run.corpus.n_rows))
            with saying_what_is_kept(folder, run.corpus.n_rows):
                for result in _results(ray, reference, missing, manifest, resources, workers):
                    if "error" in result:
                        raise _as_error(result["error"])
                    part = Part(**result["part"])
                    folder.enter(part)
                    null_columns.update(result["null_columns"])
                    other_texts += result["other_texts"]
                    if progress:
                        progress.advance(part.rows, part.tokens)
            folder.finish()
            return Finished(folder.manifest, dict(null_columns), other_texts, done)


def _describe(run: list[Any]) -> tuple[Manifest | None, str, list[Any] | None]:
    """The manifest of the run and the student's tokenizer, found on a machine that can load the models; or what is wrong."""
    import ray

    get: Any = ray.get
    try:
        with tempfile.TemporaryDirectory(prefix="trajscore-") as folder:
            whole: RayRun = get(run[0])
            with contextlib.closing(whole.passes(Path(folder) / "hidden-states")) as passes:
                return run_manifest(whole.corpus, passes), passes.student.renderer.tokenizer_json, None
    except TrajscoreError as error:
        return None, "", [error.problem, error.hint, error.exit_code]


def _as_error(said: Sequence[Any]) -> TrajscoreError:
    problem, hint, exit_code = said
    return (UsageError if exit_code == UsageError.exit_code else TrajscoreError)(problem, hint)


def _results(
    ray: Any, reference: Any, missing: Sequence[int], manifest: Manifest, resources: dict[str, Any], workers: int
) -> Iterator[dict[str, Any]]:
    if not missing:
        return
    # Beside this process, whose end is the run's end: on another machine it would die with that one.
    here = ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(
        ray.get_runtime_context().get_node_id(), soft=True
    )
    counting = ray.remote(num_cpus=0, scheduling_strategy=here, max_restarts=-1, max_task_retries=-1)
    attempts = counting(Attempts).remote()
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    at_once = min(max(len(missing) // (4 * workers), 1), _PARTS_AT_ONCE)
    tasks = [missing[first : first + at_once] for first in range(0, len(missing), at_once)]
    rows = [{"numbers": orjson.dumps(task)} for task in tasks]
    results = ray.data.from_items(rows, override_num_blocks=len(rows)).map_batches(
        Worker,
        # In a list, or Ray would hand over the value itself, once per actor call.
        fn_constructor_args=([reference], attempts, manifest),
        batch_size=1,
        batch_format="numpy",
        concurrency=min(workers, len(tasks)),
        **resources,
    )
    try:
        for row in _watched(results.iter_rows(), _processes_of(ray)):
            yield orjson.loads(row["result"])
    except ray.exceptions.RayError as error:
        raise TrajscoreError(
            f"Ray gave up: {first_line(error)}",
            "Its logs say why a worker died. Finished parts are kept: run the same command again.",
        ) from error


class _LostClusterError(TrajscoreError):
    """Ray is gone: it cannot be asked to shut down any more either."""


def _processes_of(ray: Any) -> dict[str, tuple[str, int]]:
    """What Ray cannot do without: what it is -> where it listens. Empty where a proxy (ray://) stands between."""
    if ray.util.client.ray.is_connected():
        return {}
    host, _, port = ray.get_runtime_context().gcs_address.rpartition(":")
    found = {"the head of the cluster": (host.strip("[]"), int(port))}
    for node in ray.nodes():
        if node["NodeID"] == ray.get_runtime_context().get_node_id():
            found["Ray on this machine"] = (node["NodeManagerAddress"], int(node["NodeManagerPort"]))
    return found


_END = object()


@contextlib.contextmanager
def _taken(rows: Iterable[Any]) -> Iterator[queue.SimpleQueue[Any]]:
    """Rows as another thread takes them, then the error that ended them, or `_END`.

    After the block that thread ends at the next row: what Ray Data would still ask of Ray after a shutdown starts a cluster.
    """
    came: queue.SimpleQueue[Any] = queue.SimpleQueue()
    enough = threading.Event()

    def take() -> None:
        try:
            for row in rows:
                came.put(row)
                if enough.is_set():
                    break
            came.put(_END)
        except BaseException as error:
            came.put(error)

    thread = threading.Thread(target=take, daemon=True)
    thread.start()
    try:
        yield came
    finally:
        enough.set()
        thread.join(_LAST_ROW_SECONDS)


def _watched(rows: Iterable[Any], processes: Mapping[str, tuple[str, int]]) -> Generator[Any]:
    """Rows as they come: while none comes, this looks whether Ray is still there.

    Without its head Ray says nothing for a minute, then ends this process, and nobody learns what is kept.

    Raises:
        _LostClusterError: one of the processes has refused every connection for a while.
    """
    refused_since: dict[str, float] = {}
    with _taken(rows) as came:
        while True:
            try:
                found = came.get(timeout=1.0)
            except queue.Empty:
                for name, address in processes.items():
                    if not _refuses(address):
                        refused_since.pop(name, None)
                    elif time.monotonic() - refused_since.setdefault(name, time.monotonic()) > _LOST_SECONDS:
                        raise _LostClusterError(
                            f"{name} ({address[0]}:{address[1]}) has died.",
                            "Start the cluster again and run the same command: finished parts are kept.",
                        ) from None
                continue
            if found is _END:
                return
            if isinstance(found, BaseException):
                raise found
            yield found


def _refuses(address: tuple[str, int]) -> bool:
    """Whether nobody listens there; a machine that is slow or cannot be reached may still be."""
    try:
        with socket.create_connection(address, _ANSWER_SECONDS):
            return False
    except ConnectionRefusedError:
        return True
    except OSError:
        return False


def _resources(ray: Any, options: ScoreOptions) -> tuple[dict[str, Any], int]:
    """What one worker needs, and how many workers there are.

    Raises:
        UsageError: the cluster has not that much.
    """
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    wanted = options.tensor_parallel_size * options.data_parallel_size
    gpus = [int(node.get("GPU", 0)) for node in nodes]
    if sum(gpus) and options.device != "cpu":
        possible = sum(each // wanted for each in gpus)
        if not possible or (options.ray_workers or 0) > possible:
            raise UsageError(
                f"--ray: {options.ray_workers or 1} workers of {wanted} GPUs each are asked for; the machines have {gpus}.",
                "Give fewer --ray-workers or a smaller --tensor-parallel-size.",
            )
        return {"num_gpus": wanted, "num_cpus": 1}, options.ray_workers or possible
    cpus = [int(node.get("CPU", 0)) for node in nodes]
    usable = [each for each in cpus if each]
    workers = options.ray_workers or len(usable)
    each = next((size for size in range(max(cpus), 0, -1) if sum(cpu // size for cpu in usable) >= workers), 0)
    if not each:
        raise UsageError(
            f"--ray: {workers} workers are asked for; the machines have {cpus} CPUs.", "Give fewer --ray-workers."
        )
    return {"num_cpus": each}, workers


@contextlib.contextmanager
def _cluster(address: str) -> Iterator[Any]:
    """Ray, connected to a running cluster; `auto` starts one on this machine where there is none.

    Raises:
        MissingExtraError: Ray is not installed.
        UsageError: no cluster answers at the address.
    """
    # Ray Data makes its own core warn, on stderr, of every pool of workers.
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    # A thread of Ray Data that outlives a run would start a cluster of its own.
    os.environ.setdefault("RAY_ENABLE_AUTO_CONNECT", "0")
    try:
        import ray
        import ray.data
        import ray.util.scheduling_strategies
    except ImportError as error:
        raise MissingExtraError("Ray Data", "ray") from error
    mine = not ray.is_initialized()
    if mine:
        _check_answers(address)
        try:
            ray.init(address=None if address == "auto" else address, log_to_driver=False, logging_level=logging.ERROR)
        except (ConnectionError, ValueError, RuntimeError) as error:
            raise UsageError(
                f"--ray {address}: {first_line(error)}", "Start a cluster (`ray start --head`), or give its address."
            ) from error
    elif address != "auto":
        _check_connected(ray, address)
    # What ends a run is told in a message of ours.
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)
    try:
        yield ray
    except _LostClusterError:
        mine = False
        atexit.unregister(ray.shutdown)  # it would wait for who is no more
        atexit.register(_end)
        raise
    finally:
        if mine:
            ray.shutdown()


def _end() -> None:
    """End the process as a failed one: Ray's threads, which nobody can stop without a head, crash while Python ends."""
    for terminal in (OUT, ERR):
        with contextlib.suppress(Exception):
            terminal.flush()
    os._exit(TrajscoreError.exit_code)


def _check_connected(ray: Any, address: str) -> None:
    """Whether the cluster to which this process is connected already is the one at an address.

    Raises:
        UsageError: it is another one.
    """
    connected = ray.get_runtime_context().gcs_address
    if address.startswith("ray://"):
        same = ray.util.client.ray.is_connected()
    else:
        same = address == connected or _resolved(address) == _resolved(connected)
    if not same:
        raise UsageError(
            f"--ray {address}: this process is connected to another cluster, at {connected}.",
            "Give --ray auto to use that one, or disconnect first (`ray.shutdown()`).",
        )


def _resolved(address: str) -> tuple[str, str]:
    """A host's number, where its name has one, and the port."""
    host, _, port = address.rpartition(":")
    with contextlib.suppress(OSError, UnicodeError):
        host = socket.gethostbyname(host.strip("[]"))
    return host, port


_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])
"""What a client of HTTP/2 says first, settings included; the server's settings are a frame of kind 4."""


def _check_answers(address: str) -> None:
    """Whether something that speaks gRPC answers at an address. Ray itself tries for two minutes, then ends the process.

    Raises:
        UsageError: nothing does.
    """
    found = os.environ.get("RAY_ADDRESS") or _last_started() if address == "auto" else address
    host, colon, port = (found or "").removeprefix("ray://").rpartition(":")
    if not colon or not port.isdecimal():
        return
    reason = "what answers there is not Ray"
    try:
        with socket.create_connection((host.strip("[]"), int(port)), _ANSWER_SECONDS) as connection:
            # Where it speaks TLS, more cannot be said without its certificates.
            if os.environ.get("RAY_USE_TLS", "0") != "0":
                return
            connection.sendall(_PREFACE)
            with connection.makefile("rb") as answer:
                if answer.read(4)[3:] == b"\x04":
                    return
    except (OSError, OverflowError) as error:
        reason = str(error) or type(error).__name__
    raise UsageError(
        f"--ray {address}: no cluster answers at {found} ({reason}).",
        "Start one (`ray start --head`), give its address, or --ray local for a new one on this machine."
        + (" The address is that of the last cluster started here, or RAY_ADDRESS." if address == "auto" else ""),
    )


def _last_started() -> str | None:
    """The cluster that was last started on this machine, which `auto` means where RAY_ADDRESS says nothing."""
    try:
        return Path(os.environ.get("RAY_TMPDIR", "/tmp"), "ray", "ray_current_cluster").read_text("utf-8").strip()  # noqa: S108
    except (OSError, UnicodeDecodeError):
        return None
