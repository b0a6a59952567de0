"""One vLLM engine and what it is fed: requests go in, rows are checked as they come out, and one that dies is started again.

How a model becomes one that scores is `vllm_plugin`'s matter.
Axes: N scored tokens of a sequence, C numbers per token.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import multiprocessing
import threading
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import numpy as np
import pydantic
import vllm

from trajscore.engines.reductions import Reduction
from trajscore.engines.vllm_insides import shut_down
from trajscore.engines.vllm_plugin import ERROR, TASK, pack, scoring
from trajscore.engines.vllm_versions import environment
from trajscore.errors import EngineError, first_line
from trajscore.rendering.tokens import TokenSequence

_LOG = logging.getLogger("trajscore")

_IN_FLIGHT = 512
"""Requests given to one engine at a time: enough to keep it busy, and a bound on what waits in memory."""

_RESTARTS = 3
"""How often an engine may die without finishing a single sequence in between."""


@dataclasses.dataclass(frozen=True)
class Job:
    """What engines share while they run: each takes the next waiting sequence."""

    waiting: deque[int]
    sequences: Sequence[TokenSequence]
    reduction: Reduction[Any]
    head: str | None
    stop: threading.Event = dataclasses.field(default_factory=threading.Event)

    def request(self, index: int) -> dict[str, Any]:
        """What the pooler is asked for one sequence."""
        more: dict[str, Any] = {"parameters": dict(self.reduction.parameters)}
        other = self.reduction.other
        if other is not None and other.stored is None:
            raise ValueError("vLLM's workers read another model's rows from files: they have to be stored before.")
        if other is not None and other.stored is not None:
            more |= {"stored": dataclasses.asdict(other.stored(index)), "head": self.head}
        return pack(self.reduction.kind, self.sequences[index].positions_N, **more)

    def result(self, index: int, output: Any) -> tuple[int, Any]:
        """A finished request's result, once its rows are known to be those of the sequence."""
        rows_NC, count = output.outputs.data, len(self.sequences[index].positions_N)
        found = int(rows_NC[0, 1]) if self.reduction.kind == "written" else len(rows_NC)
        if output.num_cached_tokens or found != count:
            raise EngineError(
                f"vLLM returned {found} rows for {count} scored tokens ({output.num_cached_tokens} tokens cached).",
                "This is not the vLLM that trajscore was written for; run `trajscore doctor`.",
            )
        return index, self.reduction.unpack(rows_NC.cpu())


class Replica:
    """One vLLM engine on one group of GPUs, which `start` starts, and which is started again when it dies.

    Args:
        name: the model, for messages.
        architecture: what vLLM runs it as.
        arguments: fields of `vllm.EngineArgs`.
        environment: what vLLM and its processes read from the environment while it starts.
        folder: where workers leave a note of what went wrong.
        alone: False when others run beside it. Then it has its own process: engines of one process share what vLLM keeps in
            globals, and would compute with each other's requests.
    """

    def __init__(
        self,
        name: str,
        architecture: str,
        arguments: dict[str, Any],
        environment: Mapping[str, str],
        folder: Path,
        *,
        alone: bool,
    ) -> None:
        self._name, self._architecture = name, architecture
        self._arguments, self._environment = arguments, environment
        self._folder, self._alone = folder, alone
        self._number = 0
        self.engine: Any = None

    def run(self, job: Job) -> Iterator[tuple[int, Any]]:
        """Take sequences from a job until none is left or it is stopped."""
        deaths = 0
        while True:
            flying: dict[str, int] = {}
            try:
                for done in self._drive(job, flying):
                    deaths = 0
                    yield done
                return
            except EngineError:
                raise
            except Exception as error:  # vLLM dies in many ways: of memory, of a kernel, with its process
                deaths += 1
                job.waiting.extendleft(reversed(flying.values()))
                # An interrupt ends engines and us: wait for ours, which may come second.
                if job.stop.wait(1):
                    return
                self._revive(error, deaths, job)
            finally:
                # Whoever stops in the middle leaves nothing running behind.
                if flying and self.engine is not None:
                    with contextlib.suppress(Exception):
                        self.engine.abort_request(list(flying))

    def write_head(self, path: Path) -> None:
        """Let the worker write its output head to a file.

        Raises:
            EngineError: it cannot.
        """
        try:
            self._ask_head(path)
        except Exception as error:  # vLLM dies in many ways
            self._raise_our_own(error, f"its output head cannot be written to {path}")
            raise EngineError(f"{self._name}: vLLM died ({_reason(error)}).", "Try --engine hf.") from error

    def _ask_head(self, path: Path | None = None) -> None:
        """Let the worker find and check its output head, and write it if a file is named."""
        self._add(self._name_request(), [0, 0], pack("head", np.empty(0, np.uint32), path=str(path or "")))
        while self.engine.has_unfinished_requests():
            self.engine.step()

    def close(self) -> None:
        """Stop the engine and its processes."""
        engine, self.engine = self.engine, None
        if engine is not None:
            shut_down(engine)

    def _drive(self, job: Job, flying: dict[str, int]) -> Iterator[tuple[int, Any]]:
        while not job.stop.is_set():
            while len(flying) < _IN_FLIGHT:
                try:
                    index = job.waiting.popleft()
                except IndexError:
                    break
                name = self._name_request()
                # Known as flying before it flies: a death in between must not lose it.
                flying[name] = index
                self._add(name, job.sequences[index].input_ids_P.tolist(), job.request(index))
            if not flying:
                return
            for output in self.engine.step():
                if output.finished:
                    yield job.result(flying.pop(output.request_id), output)

    def _name_request(self) -> str:
        self._number += 1
        return str(self._number)

    def _add(self, name: str, ids: list[int], request: dict[str, Any]) -> None:
        params = vllm.PoolingParams(task=TASK, extra_kwargs=request)
        self.engine.add_request(name, vllm.TokensPrompt(prompt_token_ids=ids), params)

    def _revive(self, error: Exception, deaths: int, job: Job) -> None:
        self._raise_our_own(error)
        reason = first_line(error)
        if deaths > _RESTARTS:
            longest = max((len(job.sequences[index].input_ids_P) for index in job.waiting), default=0)
            raise EngineError(
                f"{self._name}: vLLM died {deaths} times without finishing a trajectory ({reason}); the longest waiting has "
                f"{longest} tokens.",
                "Lower --max-model-len, --max-num-batched-tokens or --gpu-memory-utilization, or try --engine hf.",
            ) from error
        self.close()
        before = self._arguments["max_num_batched_tokens"]
        tokens = min(before, max(64, before // 2))
        more = self._arguments["additional_config"]
        more = {**more, "trajscore_halvings": more["trajscore_halvings"] + 1}
        self._arguments = {**self._arguments, "max_num_batched_tokens": tokens, "additional_config": more}
        _LOG.warning("vLLM died (%s): started again with at most %d tokens at a time", reason, tokens)
        start([self])

    def _raise_our_own(self, error: Exception, what: str = "vLLM cannot run it") -> None:
        """What went wrong in our own code would go wrong again, and less memory would not help."""
        note = self._folder / ERROR
        if note.exists():
            raise EngineError(f"{self._name}: {what} ({note.read_text()}).", "Try --engine hf.") from error

    @contextlib.contextmanager
    def preparing(self) -> Iterator[None]:
        """What vLLM has to find in this process while the engine, or the process that it gets, begins."""
        with environment(self._environment), scoring(self._architecture):
            yield

    def begin(self) -> None:
        """Start the engine, and find and check its output head.

        Raises:
            EngineError: vLLM cannot run the model.
        """
        try:
            self.engine = vllm.LLMEngine.from_engine_args(
                vllm.EngineArgs(**self._arguments), enable_multiprocessing=not self._alone
            )
            self._ask_head()
        except Exception as error:  # vLLM raises many kinds for the same thing: it cannot run this model here
            self.close()
            self._raise_our_own(error)
            raise EngineError(f"{self._name}: vLLM cannot run it ({_reason(error)}).", "Try --engine hf.") from error
        except BaseException:
            self.close()
            raise


def start(replicas: Sequence[Replica]) -> None:
    """Start engines side by side: each begins as soon as the process of the one before is on its way.

    A process inherits the environment that this one has when it is started, and only until then one has to wait for the other;
    what takes long, importing and loading and warming up, all do together.

    Raises:
        EngineError: of the first that vLLM cannot run; the others are stopped.
    """
    if len(replicas) == 1:
        with replicas[0].preparing():
            replicas[0].begin()
        return
    before = set(multiprocessing.active_children())
    with ThreadPoolExecutor(len(replicas)) as pool:
        begun: list[Future[None]] = []
        try:
            for replica in replicas:
                known = set(multiprocessing.active_children())
                with replica.preparing():
                    begun.append(pool.submit(replica.begin))
                    while not (begun[-1].done() or set(multiprocessing.active_children()) - known):
                        time.sleep(0.02)
                if begun[-1].done():
                    begun[-1].result()
            for future in as_completed(begun):
                future.result()
        except BaseException:
            # Whoever still waits for a process learns that it is gone.
            for process in set(multiprocessing.active_children()) - before:
                process.terminate()
            raise


def _reason(error: Exception) -> str:
    """What an error of vLLM says in the end; errors of settings name the setting in the lines before, and a web page last."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if isinstance(error, pydantic.ValidationError):
        return ": ".join(lines[1:3])
    return lines[-1] if lines else type(error).__name__
