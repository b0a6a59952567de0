"""What the commands of `trajscore skills` share: the teacher LLM with its cache, the account of rows and calls, files of JSON
lines. It knows how a teacher is reached; not what it is asked.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

import orjson

from trajscore.engines import EngineOptions
from trajscore.errors import DataError, UsageError
from trajscore.io.atomic import replacing
from trajscore.io.outputs import check_suffix
from trajscore.progress import ProgressLine
from trajscore.skills.calls import (
    FAILED,
    INVALID,
    OK,
    REFUSED,
    Answer,
    Call,
    CallCache,
    Done,
    Reply,
    Teacher,
    ask,
    count_calls,
)
from trajscore.skills.prompts import FIELDS, read_prompt
from trajscore.skills.questions import read_rows
from trajscore.skills.server import ChatServer, ServerOptions
from trajscore.skills.tasks import Asking

NOT_DIFFICULT = "not_difficult"
NOT_DRAWN = "not_drawn"
UNKNOWN_SUBJECT = "unknown_subject"
UNDEFINED = "undefined_difficulty"
_WITHOUT_RESULT = (REFUSED, INVALID, FAILED, UNKNOWN_SUBJECT, UNDEFINED)


@dataclass(frozen=True)
class TeacherOptions:
    """The teacher LLM and how it is asked.

    Attributes:
        model: its name on the server; with `in_process` a hub id or folder.
        base_url: address of an OpenAI-compatible server, up to /v1; None for the environment's OPENAI_BASE_URL.
        in_process: load the model with vLLM in this process instead of asking a server.
        temperature: None for 0 where one answer is asked for and 0.7 where several are compared.
        max_tokens: longest answer, in tokens.
        seed: seed of the answers and of every draw.
        prompts: folder with prompts in place of the package's own.
        cache: file of answered calls; None for the output's name with `.calls.jsonl` at the end.
        concurrency: requests at a time.
        timeout: seconds to wait for one reply.
        max_retries: repetitions after 429, 5xx, a lost connection or a timeout.
        backoff: seconds before the first repetition, doubled each time.
        request: fields added to every request body, a null removes a field; with `in_process` more arguments of vLLM's
            SamplingParams.
        engine: how the model in this process is loaded.
        max_model_len: of the model in this process.
        client: an object of yours that answers (`trajscore.skills.calls.Teacher`), in place of server and process.
    """

    model: str
    base_url: str | None = None
    in_process: bool = False
    temperature: float | None = None
    max_tokens: int = 2048
    seed: int = 0
    prompts: str | Path | None = None
    cache: str | Path | None = None
    concurrency: int = 8
    timeout: float = 600.0
    max_retries: int = 6
    backoff: float = 1.0
    request: Mapping[str, Any] = field(default_factory=dict)
    engine: EngineOptions = field(default_factory=EngineOptions)
    max_model_len: int | None = None
    client: Teacher | None = None

    @property
    def asking(self) -> Asking:
        """The part that can change an answer, without the request's extra fields."""
        prompts = {name: read_prompt(name, self.prompts) for name in FIELDS}
        return Asking(self.model, prompts, self.temperature, self.max_tokens, self.seed)

    def server(self) -> ServerOptions | None:
        """How the server is asked; None with `in_process` or `client`.

        Raises:
            UsageError: neither or both of server and process are named, or a value is out of range.
        """
        if self.client is not None:
            return None
        url = self.base_url or (None if self.in_process else os.environ.get("OPENAI_BASE_URL"))
        if self.in_process and url is not None:
            raise UsageError("--base-url and --in-process exclude each other.", "Give one of them.")
        if self.in_process:
            return None
        if url is None:
            raise UsageError(
                "where the teacher answers was not said.",
                "Give --base-url URL of an OpenAI-compatible server, or --in-process to load it with vLLM here.",
            )
        return ServerOptions(url, self.concurrency, self.timeout, self.max_retries, self.backoff, self.request)


@dataclass(frozen=True)
class Outcome:
    """The account of one step: rows == items + sum(left_out), items == sum(statuses).

    Attributes:
        rows: rows read.
        items: questions (or proposals) that were worked on.
        left_out: rows that brought none, by reason.
        statuses: items by what became of them.
        calls: calls of the teacher: `calls`, `cached`, `made`, by status, and tokens as the server counted them; in a dry run
            `to_make` and tokens at most.
        details: numbers of this step.
        dry_run: nothing was asked and nothing written.
    """

    rows: int
    items: int
    left_out: Mapping[str, int]
    statuses: Mapping[str, int]
    calls: Mapping[str, Any]
    details: Mapping[str, Any] = field(default_factory=dict)
    dry_run: bool = False

    def to_dict(self) -> dict[str, Any]:
        """All of it as JSON values."""
        return asdict(self)

    @property
    def refused_share(self) -> float:
        """Share of the items that have no result."""
        refused = sum(self.statuses.get(status, 0) for status in _WITHOUT_RESULT)
        return refused / self.items if self.items and not self.dry_run else 0.0


class Session:
    """The teacher and the cache of one run, opened when the block begins and closed when it ends.

    Args:
        options: the teacher.
        out: the run's output file, which gives the cache its name.
        dry_run: open an existing cache only, and no teacher.

    Raises:
        UsageError: an option is wrong, or another run uses the cache.
    """

    def __init__(self, options: TeacherOptions, out: Path, dry_run: bool) -> None:
        self._options = options
        self._server = options.server()
        self.asking = options.asking
        path = Path(options.cache) if options.cache is not None else out.with_name(f"{out.name}.calls.jsonl")
        self._cache = CallCache(path if not dry_run or path.exists() else None)
        self._stack = ExitStack()
        self._teacher: Teacher | None = None
        self._used: dict[str, Answer] = {}
        self._made = 0

    def __enter__(self) -> Session:
        self._stack.enter_context(self._cache)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def ask(self, calls: Sequence[Call]) -> list[Answer]:
        """Answers in the order of the calls."""
        calls = [self._with_request(call) for call in calls]
        pending = {call.key for call in calls if call.key not in self._cache}
        self._made += len(pending)
        if pending and self._teacher is None:
            self._teacher = self._open()
        with ProgressLine() as line:
            line.start(len(pending), 0)
            answers = ask(calls, _Shown(self._teacher, line), self._cache)
        self._used |= {call.key: answer for call, answer in zip(calls, answers, strict=True)}
        return answers

    def count(self, calls: Sequence[Call]) -> dict[str, Any]:
        """What `ask` would do."""
        count = count_calls([self._with_request(call) for call in calls], self._cache)
        return {
            "calls": count.calls,
            "cached": count.cached,
            "to_make": count.calls - count.cached,
            "prompt_tokens_estimate": count.prompt_tokens,
            "completion_tokens_at_most": count.completion_tokens,
        }

    def account(self) -> dict[str, Any]:
        """What was asked so far."""
        statuses = Counter(answer.status for answer in self._used.values())
        return {
            "calls": len(self._used),
            "cached": len(self._used) - self._made,
            "made": self._made,
            "by_status": dict(statuses),
            "prompt_tokens": _total(answer.prompt_tokens for answer in self._used.values()),
            "completion_tokens": _total(answer.completion_tokens for answer in self._used.values()),
        }

    def _with_request(self, call: Call) -> Call:
        if not self._options.request:
            return call
        settings = {**call.settings, "request": dict(self._options.request)}
        return Call(call.task, call.version, call.content, call.schema, call.sample, settings)

    def _open(self) -> Teacher:
        if self._options.client is not None:
            return self._options.client
        if self._server is not None:
            return ChatServer(self._server)
        from trajscore.engines import load_generator
        from trajscore.skills.in_process import InProcess

        options = self._options
        _, generator = load_generator("vllm", options.model, options.engine, max_model_len=options.max_model_len)
        teacher = InProcess(generator)
        self._stack.callback(teacher.close)
        return teacher


def _total(counts: Iterable[int | None]) -> int | None:
    """The sum of what was counted; None where nothing was, though there is something to count."""
    every = list(counts)
    counted = [count for count in every if count is not None]
    return sum(counted) if counted or not every else None


class _Shown:
    """A teacher whose replies move a progress line; None where the cache answers everything."""

    def __init__(self, teacher: Teacher | None, line: ProgressLine) -> None:
        self._teacher = teacher
        self._line = line

    def answer(self, calls: Sequence[Call], done: Done) -> None:
        def shown(call: Call, reply: Reply) -> None:
            done(call, reply)
            self._line.advance(1, reply.completion_tokens or 0)

        if self._teacher is not None:
            self._teacher.answer(calls, shown)


def joint_status(answers: Sequence[Answer]) -> tuple[str, str]:
    """The status of a question and a detail: ok if more than half of its calls are, else that of most of the others."""
    statuses = Counter(answer.status for answer in answers)
    if 2 * statuses[OK] > len(answers):
        return OK, ""
    bad = [answer for answer in answers if answer.status != OK]
    status = Counter(answer.status for answer in bad).most_common(1)[0][0]
    return status, next(answer.detail for answer in bad if answer.status == status)


def check_out(out: str | Path, suffix: str = ".jsonl", flag: str = "--out") -> Path:
    """The path, if it may be written; its suffix says the format.

    Raises:
        UsageError: it cannot be, or it has another suffix.
    """
    path = check_suffix(out, (suffix,), flag)
    if path.is_dir():
        raise UsageError(f"{flag} {path}: is a folder.", f"Give a file that ends in {suffix}.")
    return path


def write_lines(out: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write rows as JSON Lines under a temporary name, then rename."""
    with replacing(out) as temporary, temporary.open("wb") as handle:
        handle.writelines(orjson.dumps(row, option=orjson.OPT_APPEND_NEWLINE) for row in rows)


def read_made(path: str | Path, needed: Sequence[str], command: str) -> list[dict[str, Any]]:
    """Rows of a file that an earlier step wrote.

    Raises:
        UsageError: the file does not exist or lacks a field.
    """
    rows = list(read_rows(path))
    if not rows:
        raise UsageError(f"{path}: no rows.", f"Give what `trajscore skills {command}` wrote.")
    for number, row in enumerate(rows, 1):
        for name in needed:
            if name not in row:
                raise UsageError(
                    f"{path}, row {number}: no field {name!r}.", f"Give what `trajscore skills {command}` wrote."
                )
    return rows


def read_json(path: str | Path, what: str) -> Any:
    """What a JSON file holds.

    Raises:
        UsageError: it cannot be read.
        DataError: it is no JSON.
    """
    try:
        return orjson.loads(Path(path).read_bytes())
    except OSError as error:
        raise UsageError(f"{path}: cannot be read ({error.strerror or error}).", f"Give {what}.") from error
    except ValueError as error:
        raise DataError(f"{path}: not JSON ({error}).", f"Give {what}.") from error
