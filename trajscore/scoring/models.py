"""The models of a run, student, teachers and distilled student: what each is, whether it is in memory, which rows it reads.

`teacher` here is always a role, a model that reads rows; who wrote a row is its author.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trajscore.engines import Engine, ModelSource, load_engine
from trajscore.engines.adapters import adapter_identity, check_adapter
from trajscore.engines.fingerprint import model_identity
from trajscore.errors import UsageError
from trajscore.rendering.renderer import Renderer
from trajscore.scoring.options import ScoreOptions
from trajscore.scoring.rows import ScoredRow

if TYPE_CHECKING:
    from trajscore.engines.server import ServedModel


class RoleModel:
    """A model in a role: its tokenizer is loaded when it is made, its weights when they are needed.

    Args:
        role: `student`, `teacher` or `distilled`.
        name: hub id or folder.
        options: every setting.
        author: it reads only the rows whose `teacher` column holds this; None for all rows.
        student: the student's renderer, None for the student itself.

    Attributes:
        renderer: makes its tokens.
        shares_tokenizer: whether its tokenizer makes the same tokens as the student's.
        source: the model and its vocabulary.
        engine_name: what runs it; `auto` until it was loaded.
        state_bytes: size of the hidden state of one token, once the model was loaded.
        vocabulary: entries of its head that count, once the model was loaded.
        needs_files: whether its engine reads other models' rows from files, once the model was loaded.
        load_seconds: time that loading it took so far, each time counted.
        url: the server that is asked, None for a model that is loaded here.
        topk: best entries that the server is asked for; set before it is asked, as are the next two.
        topk_statistics: over how many of them the truncated statistics run.
        replies: where the server's replies are kept, None for nowhere.
    """

    def __init__(
        self,
        role: str,
        name: str,
        options: ScoreOptions,
        *,
        author: str | None = None,
        student: Renderer | None = None,
    ) -> None:
        self.role, self.name, self.author = role, name, author
        served = {"student": options.base_url, "teacher": options.teacher_base_url}
        self.url = served.get(role)
        self.engine_name: str = "server" if self.url else "auto" if options.engine == "server" else options.engine
        self.topk = self.topk_statistics = options.server_topk
        self.replies: Path | None = None
        self.state_bytes = self.vocabulary = 0
        self.needs_files = False
        self.load_seconds = 0.0
        self._options = options
        self._engine: Engine | None = None
        self._served: ServedModel | None = None
        adapter, flag = _adapter(role, options)
        if adapter is not None:
            check_adapter(adapter, flag)
        revision = options.revision if student is None else None
        # A template that was given is the student's; a model with a tokenizer of its own brings its own.
        # It reads all that it is given or nothing: a text cut elsewhere would not compare.
        rendering = (
            options if student is None else dataclasses.replace(options, chat_template=None, on_overlong="refuse")
        )
        self.renderer = Renderer(name, rendering, revision=revision, trust_remote_code=options.trust_remote_code)
        self.shares_tokenizer = student is None or student.same_tokenizer(self.renderer)
        self.source = ModelSource(
            name,
            (student or self.renderer).vocabulary if self.shares_tokenizer else self.renderer.vocabulary,
            revision,
            adapter,
            # The limit that was asked for is in the student's tokens.
            options.max_model_len if self.shares_tokenizer else None,
        )

    def load(self) -> Engine:
        """The engine, loaded if it is not in memory.

        Raises:
            UsageError: the model cannot be loaded, or the student is made for fewer tokens than asked for.
        """
        if self._engine is None:
            began = time.monotonic()
            self._engine = self._ask_server() if self.url else self._load_here()
            self.load_seconds += time.monotonic() - began
            self.state_bytes, self.vocabulary = self._engine.state_bytes, self._engine.vocabulary
            self.needs_files = self._engine.needs_files
            self._limit_length(self._engine.max_model_len)
        return self._engine

    def _load_here(self) -> Engine:
        self.engine_name, engine = load_engine(self.engine_name, self.source, self._options)
        return engine

    def _ask_server(self) -> Engine:
        from trajscore.engines.server import ServedModel

        options, own = self._options, self.role == "student"
        self._served = ServedModel(
            self.source,
            options,
            self.url or "",
            name=options.served_model if own else options.teacher_served_model,
            tokens=options.max_num_batched_tokens,
            k=self.topk,
            k_statistics=self.topk_statistics,
            replies=self.replies,
        )
        return self._served

    def _limit_length(self, possible: int | None) -> None:
        asked = self._options.max_model_len
        if self.role == "student" and asked and possible and asked > possible:
            raise UsageError(
                f"--max-model-len {asked}: {self.name} was made for {possible} tokens.", f"Give at most {possible}."
            )
        # The limit that was asked for is in the student's tokens.
        limits = (asked, possible) if self.shares_tokenizer else (possible,)
        self.renderer.max_model_len = min(filter(None, limits), default=None)

    def begin_round(self) -> None:
        """Further rows follow; see `engines.server.ServedModel.begin_round`."""
        if self._served is not None:
            self._served.begin_round()

    def forget_replies(self) -> None:
        """All rows lie in parts: the server's replies are needed no more."""
        if self._served is not None:
            self._served.forget()

    def will_share(self, share: float) -> None:
        """Before it is loaded: of what its engine may take of a device, it gets this share."""
        self.source = dataclasses.replace(self.source, memory_share=share)

    def will_read_beside(self, head_bytes: int) -> None:
        """Before it is loaded: another model's output head of this size is read beside it."""
        self.source = dataclasses.replace(self.source, other_head_bytes=head_bytes)

    def will_sleep(self) -> None:
        """Before it is loaded: where models take turns, its weights may wait in the host's memory."""
        self.source = dataclasses.replace(self.source, may_sleep=True)

    def rest(self) -> None:
        """Leave the device to another model: asleep where its engine can, else freed and loaded again when needed."""
        if self._engine is not None and not self._engine.sleep():
            self.release()

    def release(self) -> None:
        """Free the model's memory; it is loaded again when needed."""
        if self._engine is not None:
            self._engine.close()
            self._engine = self._served = None

    def describe(self) -> dict[str, Any]:
        """What identifies the model and can change its numbers, for the manifest. Loads it."""
        adapter = self.source.adapter
        folder = not self.url and Path(self.name).is_dir()
        with ThreadPoolExecutor(1) as pool:
            # Reading a model's files for their checksum takes as long as loading it; a hub model's may only come with loading.
            early = pool.submit(model_identity, self.name, None) if folder else None
            settings = self.load().describe()
        if self.url:
            identity: dict[str, Any] = {"name": Path(self.name).name}
        else:
            identity = early.result() if early else model_identity(self.name, self.source.revision)
        described = {
            **identity,
            "adapter": None if adapter is None else adapter_identity(adapter),
            **settings,
            "engine": self.engine_name,
        }
        if not self.shares_tokenizer:
            described["rendering"] = self.renderer.describe()
        return described if self.author is None else {"author": self.author, **described}

    def reads(self, row: ScoredRow) -> bool:
        """Whether a row is for this model: it can be scored, has the right author, and is not too long."""
        return self._is_meant(row) and not self.is_too_long(row)

    def is_too_long(self, row: ScoredRow) -> bool:
        """Whether a row is for this model but longer than it takes; with a tokenizer of its own that shows on rendering."""
        limit = self.renderer.max_model_len
        long = limit is not None and len(row.read_by(self.role).input_ids_P) > limit
        return long and self.shares_tokenizer and self._is_meant(row)

    def _is_meant(self, row: ScoredRow) -> bool:
        apart = self.role == "teacher" and row.teacher_apart
        return row.is_ok and not apart and self.author in (None, row.trajectory.teacher)


def other_models(options: ScoreOptions, student: Renderer) -> list[RoleModel]:
    """Teachers in the order given, then the distilled student.

    Raises:
        UsageError: several teachers that are not told apart, or a model that is not there.
    """
    teachers = _by_author(options.teachers)
    others = [RoleModel("teacher", name, options, author=author, student=student) for author, name in teachers]
    if options.distilled:
        others.append(RoleModel("distilled", str(options.distilled), options, student=student))
    return others


def _adapter(role: str, options: ScoreOptions) -> tuple[str | None, str]:
    """The adapter of the model in a role, if any, and the flag that names it."""
    option = "adapter" if role == "student" else f"{role}_adapter"
    given = getattr(options, option)
    return None if given is None else str(given), f"--{option.replace('_', '-')}"


def _by_author(given: Sequence[str]) -> list[tuple[str | None, str]]:
    """(author or None for all rows, model) of each --teacher."""
    if len(given) == 1 and ("=" not in given[0] or Path(given[0]).is_dir()):
        return [(None, given[0])]
    pairs = [tuple(text.split("=", 1)) for text in given]
    names = [pair[0] for pair in pairs]
    if any(len(pair) != 2 or not all(pair) for pair in pairs) or len(set(names)) != len(names):
        raise UsageError(
            f"--teacher {' '.join(given)}: several teachers are told apart by the rows they wrote.",
            "Give one model for all rows, or NAME=MODEL for each different value of the row's `teacher`.",
        )
    return [(pair[0], pair[1]) for pair in pairs]
