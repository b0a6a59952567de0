"""Several models over the same rows: which model reads what, in which order, and what is made of two of them together.

It knows roles, tokenizers that agree or do not, and where hidden states wait; nothing of files of scores or of corpora.
Axes: N scored tokens of a row under the student, B tokens of the same text under another tokenizer.
"""

from __future__ import annotations

import dataclasses
import logging
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from trajscore.corpus import Trajectory
from trajscore.engines import Engine, PairScores, TokenScores, TokenSequence
from trajscore.errors import UsageError
from trajscore.rendering.alignment import (
    aligned_chunks,
    binary_cross_entropy,
    chunk_sums,
    sentence_means,
    spoken_tokens,
)
from trajscore.rendering.renderer import Rendered, Renderer, refused
from trajscore.schema import COLUMNS, OK
from trajscore.scoring.part_table import token_values
from trajscore.scoring.roles import RoleModel, TeacherTokens, WaitingRow
from trajscore.scoring.unconditional import UNCONDITIONAL, read_unconditionally

if TYPE_CHECKING:
    from trajscore.engines.hidden_store import HiddenStore
    from trajscore.engines.reductions import Other

_LOG = logging.getLogger("trajscore")
_TOKEN_STATISTICS = ("rank", "surprisal", "entropy")
_DIVERGENCES = ("kl_student_teacher", "kl_teacher_student", "js")


@dataclass(frozen=True)
class PassOptions:
    """What is made of student and other models together.

    Attributes:
        divergence: `exact`, `topk:K` or `none`; None for `exact` where the tokenizers agree.
        align: `bytes` for chunk columns where the tokenizers differ, or None.
        swap_models: keep one model in memory at a time; hidden states wait on disk meanwhile. None for what suits the engine:
            vLLM takes all the memory it is given.
        hidden_budget: bytes that waiting hidden states may take on disk.
        unconditional: let the student read each response a second time, without the conversation before it.
    """

    divergence: str | None = None
    align: str | None = None
    swap_models: bool | None = None
    hidden_budget: int = 20 * 2**30
    unconditional: bool = False

    @property
    def k(self) -> int | None:
        """K of `topk:K`."""
        kind, _, number = (self.divergence or "").partition(":")
        return int(number) if kind == "topk" else None


class Passes:
    """The student and the other models, and what is computed of them.

    Args:
        student: the student.
        others: teachers and distilled model.
        options: see `PassOptions`.
        scratch: file in which hidden states may wait.
        api_logprobs: whether rows bring a teacher's log-probabilities.

    Raises:
        UsageError: token-level divergences were asked for and the tokenizers differ.
    """

    def __init__(
        self, student: RoleModel, others: Sequence[RoleModel], options: PassOptions, scratch: Path, api_logprobs: bool
    ) -> None:
        self.student, self.others, self.options = student, list(others), options
        self._scratch, self._api_logprobs = scratch, api_logprobs
        self.unread: Counter[str] = Counter()
        self._writers: set[str | None] = set()
        self._done: Callable[[int, int], None] = _ignore
        for model in self.others:
            if model.role == "teacher" and not model.shares_tokenizer and options.divergence not in (None, "none"):
                raise UsageError(
                    f"--divergence {options.divergence}: the tokenizers of {student.name} and {model.name} differ, so "
                    "divergences of single tokens mean nothing.",
                    "Leave --divergence out for sentence columns, or add --align bytes for chunks that end at the same byte.",
                )
        if options.align and all(model.shares_tokenizer for model in self.others if model.role == "teacher"):
            _LOG.warning("--align %s: the tokenizers agree, so there are no chunk columns", options.align)
        known = len(student.source.vocabulary)
        if options.k and options.k > known:
            raise UsageError(
                f"--divergence {options.divergence}: the vocabulary has {known} entries.", "Give a smaller K."
            )

    @property
    def takes_turns(self) -> bool:
        """Whether one model is in memory at a time. Known once the student was loaded."""
        wanted = self.student.needs_files if self.options.swap_models is None else self.options.swap_models
        return wanted and bool(self.others)

    def columns(self) -> list[str]:
        """Names of the columns that the other models and the second reading add."""
        names: list[str] = ["teacher_sentence_logprob"] if self._api_logprobs else []
        names += [UNCONDITIONAL] if self.options.unconditional else []
        for model in self.others:
            names.append(f"{model.role}_sentence_logprob")
            if model.shares_tokenizer:
                names += [f"{model.role}_{statistic}" for statistic in _TOKEN_STATISTICS]
                names += self._divergence_columns() if model.role == "teacher" else []
            elif model.role == "teacher" and self.options.align:
                names += ["chunk_start", "student_chunk_logprob", "teacher_chunk_logprob", "chunk_binary_ce"]
        return [name for name in COLUMNS if name in names]

    def _divergence_columns(self) -> list[str]:
        if self.options.k:
            return [*(f"{name}_topk" for name in _DIVERGENCES), "topk_mass"]
        return [] if self.options.divergence == "none" else list(_DIVERGENCES)

    def run(self, rows: Sequence[WaitingRow], done: Callable[[int, int], None] | None = None) -> None:
        """Let every model read its rows, and fill in their values.

        Args:
            rows: any rows; refused ones are left alone.
            done: told the rows and scored tokens that the student has read since the last call.

        A row for which the student gives NaN or infinity is refused; where another model does, or cannot take the row, its
        columns are null.
        """
        from trajscore.engines.hidden_store import HiddenStore

        self._done = done or _ignore
        self._writers |= {row.trajectory.teacher for row in rows}
        if unreadable := sum(row.rendered.status != OK for row in rows):
            self._done(unreadable, 0)
        with HiddenStore(self._scratch) as store:
            plans = [self._read(model, rows, store) for model in self.others]
            self._read_student(rows, {index: plan for plan in plans if plan for index in plan.rows})
        if self.options.unconditional:
            self.unread.update(read_unconditionally(self.student.load(), rows))
        if self.takes_turns:
            self.student.release()
        if self._api_logprobs:
            for row in rows:
                self._api(row)
        for row in rows:
            if self.options.align:
                self._chunks(row)

    def waiting_bytes(self, rows: Sequence[WaitingRow]) -> int:
        """Bytes that teachers leave on disk for the student of these rows."""
        if self.options.divergence == "none":
            return 0
        teachers = [model for model in self.others if model.role == "teacher" and model.shares_tokenizer]
        return sum(
            (_entry_bytes(self.options.k) if self.options.k else model.token_bytes) * len(row.rendered.positions_N)
            for model in teachers
            if self.options.k or self._waits(model)
            for row in rows
            if model.reads(row)
        )

    def _waits(self, model: RoleModel) -> bool:
        """Whether a teacher's hidden states wait on disk and are not made as the student asks for them."""
        return self.takes_turns or model.needs_files or self.student.needs_files

    def null_columns(self) -> dict[str, int]:
        """Why a model has null columns -> rows of this run that are concerned."""
        return dict(+self.unread)

    def unnamed(self) -> list[str]:
        """Names given with `--teacher NAME=MODEL` that no row of this run bears."""
        return [model.writes for model in self.others if model.writes is not None and model.writes not in self._writers]

    def close(self) -> None:
        """Free all models."""
        for model in (self.student, *self.others):
            model.release()

    def _read(self, model: RoleModel, rows: Sequence[WaitingRow], store: HiddenStore) -> _Plan | None:
        """Let a model that is not the student read; what has to wait for the student comes back as a plan."""
        engine = model.load()
        mine = [index for index, row in enumerate(rows) if model.reads(row)]
        self.unread[f"longer than {model.name} takes"] += sum(model.is_too_long(row) for row in rows)
        plan = None
        if model.shares_tokenizer and self.student.entries and model.entries != self.student.entries:
            raise UsageError(
                f"{model.name} has {model.entries} vocabulary entries and {self.student.name} {self.student.entries}, though "
                "their tokenizers agree.",
                "One of the checkpoints lacks entries that its tokenizer makes.",
            )
        if not model.shares_tokenizer:
            self._read_other_tokens(model, [rows[index] for index in mine])
        elif model.role == "teacher" and self.options.divergence != "none":
            other = (
                self._leave_entries(model, rows, mine, store)
                if self.options.k
                else self._states(model, rows, mine, store)
            )
            plan = _Plan(mine, other)
        else:
            for index, scores in _token_scores(engine, [rows[i].sequence for i in mine]):
                self._take(rows[mine[index]], model.role, scores)
        if self.takes_turns:
            model.release()
        return plan

    def _leave_entries(
        self, model: RoleModel, rows: Sequence[WaitingRow], mine: list[int], store: HiddenStore
    ) -> Other:
        """A teacher's most probable entries, on disk."""
        from trajscore.engines.reductions import top

        for index, (scores, entries) in model.load().run([rows[i].sequence for i in mine], top(self.options.k or 0)):
            self._take(rows[mine[index]], model.role, scores)
            store.put((model.name, mine[index]), entries)
        return _stored(model.name, mine, store)

    def _states(self, model: RoleModel, rows: Sequence[WaitingRow], mine: list[int], store: HiddenStore) -> Other:
        """A teacher's hidden states with its head: on disk, or made when the student asks for them."""
        from trajscore.engines.reductions import STATES, Other, Tensor, join

        engine = model.load()
        if self._waits(model):
            for index, states in engine.run([rows[i].sequence for i in mine], STATES):
                store.put((model.name, mine[index]), states)
            return dataclasses.replace(_stored(model.name, mine, store), head=engine.head)

        def made(indices: list[int]) -> Tensor:
            found = dict(engine.run([rows[mine[index]].sequence for index in indices], STATES))
            return join([found[number] for number in range(len(indices))])

        return Other(made, head=engine.head)

    def _read_student(self, rows: Sequence[WaitingRow], plans: dict[int, _Plan]) -> None:
        engine = self.student.load()
        readable = [index for index, row in enumerate(rows) if row.rendered.status == OK]
        alone = [index for index in readable if index not in plans]
        for index, scores in _token_scores(engine, [rows[i].sequence for i in alone]):
            self._take_student(rows[alone[index]], scores)
        for plan in {id(plan): plan for plan in plans.values()}.values():
            self._read_both(engine, [rows[index] for index in plan.rows], plan.other)

    def _read_both(self, engine: Engine, rows: Sequence[WaitingRow], teacher: Other) -> None:
        """The student beside what a teacher left of the same rows."""
        from trajscore.engines.reductions import pair, top_pair

        sequences = [row.sequence for row in rows]
        if not self.options.k:
            for index, found in engine.run(sequences, pair(teacher)):
                self._take_pair(rows[index], found)
            return
        for index, (scores, truncated) in engine.run(sequences, top_pair(teacher)):
            row = rows[index]
            self._take_student(row, scores)
            values = (truncated.kl_student_teacher_N, truncated.kl_teacher_student_N, truncated.js_N, truncated.mass_N)
            if "teacher_rank" in row.values:
                row.values |= dict(zip(self._divergence_columns(), values, strict=True))

    def _read_other_tokens(self, model: RoleModel, rows: Sequence[WaitingRow]) -> None:
        """Sentence columns, and what chunks need, of a model with a tokenizer of its own."""
        rendered = [render(row.trajectory, model.renderer) for row in rows]
        usable = [number for number, other in enumerate(rendered) if other.status == OK]
        self.unread[f"{model.role} cannot read the row"] += len(rows) - len(usable)
        sequences = [TokenSequence(rendered[n].input_ids_P, rendered[n].positions_N) for n in usable]
        for index, scores in _token_scores(model.load(), sequences):
            row, other = rows[usable[index]], rendered[usable[index]]
            ours = row.rendered
            match = ours.response.match(other.response)
            if match is None or not scores.finite:
                reason = "gives NaN or infinity" if match is not None else "renders no turn alike"
                self.unread[f"{model.role} {reason}"] += 1
                continue
            inside = match.place_B >= 0
            logprob_B = -scores.surprisal_N.astype(np.float64)
            sentence_B = ours.response.sentence_at(match.place_B[inside])
            row.values[f"{model.role}_sentence_logprob"] = sentence_means(
                logprob_B[inside], sentence_B, ours.n_sentences
            )
            if model.role == "teacher" and self.options.align:
                start, end = other.response.span_N2.T
                words = inside & (end > start)
                place_B = match.place_B[words]
                row.teacher_tokens = TeacherTokens(
                    place_B, place_B + (end - start)[words], logprob_B[words], match.turns
                )

    def _take(self, row: WaitingRow, role: str, scores: TokenScores) -> None:
        """Token and sentence columns of a model that reads the student's tokens."""
        if not scores.finite:
            self.unread[f"{role} gives NaN or infinity"] += 1
            return
        row.values |= token_values(role, scores, row.rendered)

    def _take_student(self, row: WaitingRow, scores: TokenScores) -> None:
        self._done(1, len(scores.rank_N))
        if scores.finite:
            row.values |= token_values("student", scores, row.rendered)
        else:
            row.rendered = refused("non_finite", "the model gave NaN or infinity; try another --dtype.")

    def _take_pair(self, row: WaitingRow, found: PairScores) -> None:
        self._take_student(row, found.student)
        if found.student.finite:
            self._take(row, "teacher", found.teacher)
            divergences = (found.kl_student_teacher_N, found.kl_teacher_student_N, found.js_N)
            row.values |= dict(zip(_DIVERGENCES, divergences, strict=True)) if found.teacher.finite else {}

    def _api(self, row: WaitingRow) -> None:
        """Sentence column from log-probabilities that came with the row."""
        if row.rendered.status != OK:
            return
        spoken = spoken_tokens(row.api_logprobs)
        places = None if spoken is None else row.rendered.response.places_in_last_turn(spoken.text, spoken.start_B)
        if spoken is None or places is None:
            self.unread["the row's log-probabilities are missing or of another text"] += 1
            return
        inside = places >= 0
        sentence_B = row.rendered.response.sentence_at(places[inside])
        row.values["teacher_sentence_logprob"] = sentence_means(
            spoken.logprob_B[inside], sentence_B, row.rendered.n_sentences
        )

    def _chunks(self, row: WaitingRow) -> None:
        """Chunk columns, turn by turn over what both renderings have; end-of-turn markers are in no chunk."""
        teacher = row.teacher_tokens
        if teacher is None or row.rendered.status != OK:
            return
        start, end = row.rendered.response.span_N2.T
        first, ours, theirs = [], [], []
        for begin, stop in teacher.turns:
            (own,) = np.nonzero((start >= begin) & (end <= stop) & (end > start))
            (other,) = np.nonzero((teacher.start_B >= begin) & (teacher.end_B <= stop))
            chunks = aligned_chunks(start[own], end[own], teacher.start_B[other], teacher.end_B[other])
            first.append(own[chunks.first_A])
            ours.append(chunk_sums(-row.values["student_surprisal"][own], chunks.first_A, chunks.stop_A))
            theirs.append(chunk_sums(teacher.logprob_B[other], chunks.first_B, chunks.stop_B))
        student_C, teacher_C = np.concatenate(ours), np.concatenate(theirs)
        row.values |= {
            "chunk_start": np.concatenate(first).astype(np.uint32),
            "student_chunk_logprob": student_C,
            "teacher_chunk_logprob": teacher_C,
            "chunk_binary_ce": binary_cross_entropy(teacher_C, student_C),
        }


@dataclass(frozen=True)
class _Plan:
    """Rows whose student scores are made together with what a teacher left of them."""

    rows: list[int]
    other: Other


def _stored(name: str, mine: list[int], store: HiddenStore) -> Other:
    """Rows that a teacher left on disk, by the number of the sequence among those it read."""
    from trajscore.engines.reductions import Other, join

    return Other(
        lambda indices: join([store.locate((name, mine[index])).read() for index in indices]),
        lambda index: store.locate((name, mine[index])),
    )


def _entry_bytes(k: int) -> int:
    """Of the K most probable entries of one token: ids, log-probabilities and the rest, float32."""
    return 4 * (2 * k + 1)


def _ignore(rows: int, tokens: int) -> None:
    """Where nobody wants to know how far a run is."""


def render(trajectory: Trajectory, renderer: Renderer) -> Rendered:
    """Tokens of a trajectory, or why there are none."""
    if trajectory.refusal:
        return refused(trajectory.refusal, trajectory.detail)
    if trajectory.messages is None:
        return renderer.render_text(trajectory.text or "")
    return renderer.render_messages(trajectory.messages, trajectory.tools)


def _token_scores(engine: Engine, sequences: Sequence[TokenSequence]) -> Iterator[tuple[int, TokenScores]]:
    from trajscore.engines.reductions import TOKENS

    return engine.run(sequences, TOKENS)
