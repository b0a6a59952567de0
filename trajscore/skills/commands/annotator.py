"""What the commands of `trajscore skills` share, and `grade` in part: the annotator with its cache, the account of rows and
calls, files of JSON lines.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

import orjson

from trajscore.corpus import read_rows
from trajscore.errors import DataError, UsageError
from trajscore.io.atomic import replacing
from trajscore.io.call_cache import CallCache
from trajscore.io.outputs import check_suffix
from trajscore.io.paths import small_bytes
from trajscore.progress import ProgressLine
from trajscore.skills.calls import (
    FAILED,
    INVALID,
    OK,
    REFUSED,
    Annotator,
    Answer,
    Answers,
    Call,
    Done,
    Reply,
    answer_problem,
    ask,
    count_calls,
    open_calls,
)
from trajscore.skills.options import AnnotatorOptions, default_cache
from trajscore.skills.server import ChatServer

NOT_DIFFICULT = "not_difficult"
NOT_DRAWN = "not_drawn"
UNKNOWN_SUBJECT = "unknown_subject"
UNDEFINED = "undefined_difficulty"
_WITHOUT_RESULT = (REFUSED, INVALID, FAILED, UNKNOWN_SUBJECT, UNDEFINED)


@dataclass(frozen=True)
class Outcome:
    """The account of one step: rows == items + sum(left_out), items == sum(statuses).

    Attributes:
        rows: rows read.
        items: questions (or proposals) that were worked on.
        left_out: rows that brought none, by reason.
        statuses: items by what became of them.
        calls: calls of the annotator: `calls`, `cached`, `made`, by status, and tokens as the server counted them; in a dry run
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
        """Share of the items that have no result; all, where no call was answered, of which items would have come."""
        asked = self.calls.get("by_status", {})
        if not self.items and asked and OK not in asked:
            return 1.0
        refused = sum(self.statuses.get(status, 0) for status in _WITHOUT_RESULT)
        return refused / self.items if self.items and not self.dry_run else 0.0


class Session:
    """The annotator and the cache of one run, opened when the block begins and closed when it ends.

    Args:
        options: the annotator.
        out: the run's output file, which gives the cache its name.
        dry_run: only read a cache that is there, and open no annotator.

    Raises:
        UsageError: an option is wrong, or another run uses the cache.
    """

    def __init__(self, options: AnnotatorOptions, out: Path, dry_run: bool) -> None:
        self.options = options
        self._url = options.server_url()
        path = Path(options.cache) if options.cache is not None else default_cache(out)
        self._cache = CallCache(path, answer_problem, write=not dry_run)
        self._stack = ExitStack()
        self._annotator: Annotator | None = None
        self._used: dict[str, None] = {}
        self._made = 0

    def __enter__(self) -> Session:
        self._stack.enter_context(self._cache)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def ask(self, calls: Sequence[Call]) -> Answers:
        """Answers in the order of the calls."""
        pending = open_calls(calls, self._cache)
        self._made += len(pending)
        if pending and self._annotator is None:
            self._annotator = self._open()
        with ProgressLine() as line:
            line.start(len(pending), 0)
            answers = ask(calls, _Shown(self._annotator, line), self._cache)
        self._used |= dict.fromkeys(call.key for call in calls)
        return answers

    def count(self, calls: Sequence[Call]) -> dict[str, int]:
        """What `ask` would do."""
        return count_calls(calls, self._cache)

    def account(self) -> dict[str, Any]:
        """What was asked so far; to be called before the block ends."""
        statuses = Counter[str]()
        prompt, completion = list[int | None](), list[int | None]()
        for answer in Answers(self._cache, list(self._used)):
            statuses[answer.status] += 1
            prompt.append(answer.prompt_tokens)
            completion.append(answer.completion_tokens)
        return {
            "calls": len(self._used),
            "cached": len(self._used) - self._made,
            "made": self._made,
            "by_status": dict(statuses),
            "prompt_tokens": _total(prompt),
            "completion_tokens": _total(completion),
        }

    def _open(self) -> Annotator:
        options = self.options
        if options.client is not None:
            return options.client
        if self._url is not None:
            return ChatServer(
                self._url,
                concurrency=options.concurrency,
                timeout=options.timeout,
                max_retries=options.max_retries,
                backoff=options.backoff,
                request=options.request,
            )
        from trajscore.engines import load_generator
        from trajscore.skills.in_process import InProcess

        _, generator = load_generator("vllm", options.annotator, options.engine, max_model_len=options.max_model_len)
        annotator = InProcess(generator)
        self._stack.callback(annotator.close)
        return annotator


def _total(counts: Iterable[int | None]) -> int | None:
    """The sum of what was counted; None where nothing was, though there is something to count."""
    every = list(counts)
    counted = [count for count in every if count is not None]
    return sum(counted) if counted or not every else None


class _Shown:
    """An annotator whose replies move a progress line; None where the cache answers everything."""

    def __init__(self, annotator: Annotator | None, line: ProgressLine) -> None:
        self._annotator = annotator
        self._line = line

    def answer(self, calls: Sequence[Call], done: Done) -> None:
        def shown(call: Call, reply: Reply) -> None:
            done(call, reply)
            self._line.advance(1, reply.completion_tokens or 0)

        if self._annotator is not None:
            self._annotator.answer(calls, shown)


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
        return orjson.loads(small_bytes(Path(path)))
    except OSError as error:
        raise UsageError(f"{path}: cannot be read ({error.strerror or error}).", f"Give {what}.") from error
    except ValueError as error:
        raise DataError(f"{path}: not JSON ({error}).", f"Give {what}.") from error
