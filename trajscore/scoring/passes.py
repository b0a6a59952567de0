"""Several models over the same rows: which model reads what, in which order, and what is made of two of them together.

Models with the student's tokens read first and leave what the student needs of them; then the student; then models with tokens
of their own, whose numbers are set beside the student's sentence by sentence.
Axes: N scored tokens of a row under the student, B tokens of the same text under another tokenizer.
"""

from __future__ import annotations

import dataclasses
import logging
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from trajscore.corpus import Chunk
from trajscore.engines import Engine, PairScores, TokenScores
from trajscore.engines.token_scores import ServedScores, TopKEntries, at
from trajscore.errors import UsageError
from trajscore.rendering.alignment import (
    Ints,
    Match,
    aligned_chunks,
    chunk_sums,
    sentence_means,
    spoken_tokens,
)
from trajscore.rendering.renderer import Rendered, refused
from trajscore.schema import (
    COLUMNS,
    EXTRAS,
    NOT_SERVED,
    OK,
    extra_column,
    parse_extra,
    score_fields,
    served_columns,
    topk_columns,
)
from trajscore.scoring.local_context import read_locally
from trajscore.scoring.models import RoleModel, other_models
from trajscore.scoring.options import ScoreOptions
from trajscore.scoring.part_table import RENDERED, served_values, token_values, topk_values
from trajscore.scoring.residency import residency
from trajscore.scoring.reuse import row_key
from trajscore.scoring.rows import ScoredRow, for_other_tokens, render, says_something_else, scored_row
from trajscore.scoring.unconditional import UNCONDITIONAL, read_unconditionally

if TYPE_CHECKING:
    from trajscore.engines.hidden_store import HiddenStore
    from trajscore.engines.reduced_rows import Tensor
    from trajscore.engines.reductions import Other

_LOG = logging.getLogger("trajscore")
_TOKEN_STATISTICS = ("rank", "surprisal", "entropy")
_DIVERGENCES = ("kl_student_teacher", "kl_teacher_student", "js")


class Passes:
    """The student and the other models, and what is computed of them.

    Args:
        student: the student.
        options: every setting.
        scratch: file in which hidden states may wait.
        replies: where replies of servers are kept, the beginning of files' names; None keeps none.

    Attributes:
        student: the student.
        others: teachers and distilled student, in the order in which they read.
        budget_bytes: bytes that waiting hidden states may take on disk.
        window: how many sentences before it the student reads each sentence after once more; None where it does not.
        other_texts: rows rendered so far whose text is another one than their token ids.

    Raises:
        UsageError: an option or model that does not fit, such as divergences of tokens where the tokenizers differ.
    """

    def __init__(self, student: RoleModel, options: ScoreOptions, scratch: Path, replies: Path | None = None) -> None:
        self.student, self.options = student, options
        # Those with tokens of their own come last, after the student: their chunks need its numbers.
        self.others = sorted(other_models(options, student.renderer), key=lambda model: not model.shares_tokenizer)
        self.budget_bytes = int(options.hidden_budget * 2**30)
        self.k = self._divergence_k()
        asked = [parse_extra(text) for text in dict.fromkeys(options.extra)]
        self._further = [(extra.name, value) for extra, value in asked if extra.two_models]
        self.window = next((int(value or 0) for extra, value in asked if extra.name == "local"), None)
        self._scratch = scratch
        self._unread: Counter[str] = Counter()
        self._authors: set[str | None] = set()
        self.other_texts = 0
        self._done: Callable[[int, int], None] = _ignore
        self._check()
        self._residency = residency(self._here(), options)
        self._share_memory()
        for model in (student, *self.others):
            model.topk_statistics = self.k if self.k and model.role == "teacher" else options.server_topk
            kept = options.keep_topk if options.keep_topk and model.role == self._kept_of else 0
            model.topk = max(model.topk_statistics, kept)
            model.replies = replies and replies.with_name(f"{replies.name}-{model.role}")

    def _divergence_k(self) -> int | None:
        """Over how many of a teacher's best entries divergences run; None where they are exact or not wanted."""
        kind, _, number = (self.options.divergence or "").partition(":")
        if kind:
            return int(number) if kind == "topk" else None
        served = any(model.url and model.shares_tokenizer for model in self.others)
        return (self.options.server_topk or None) if served and not self.student.url else None

    @property
    def _no_divergence(self) -> bool:
        """Whether no divergences of single tokens are computed: on purpose, or because a server gives too little for them."""
        served = any(model.url for model in self.others)
        return self.options.divergence == "none" or bool(self.student.url) or (served and not self.k)

    def _check(self) -> None:
        divergence, align, student = self.options.divergence, self.options.align, self.student
        for model in self.others:
            if model.role == "teacher" and not model.shares_tokenizer and divergence not in (None, "none"):
                raise UsageError(
                    f"--divergence {divergence}: the tokenizers of {student.name} and {model.name} differ, so "
                    "divergences of single tokens mean nothing.",
                    "Leave --divergence out for sentence columns, or add --align bytes for chunks that end at the same byte.",
                )
        if (
            self._no_divergence
            and divergence is None
            and any(model.role == "teacher" and model.shares_tokenizer for model in self.others)
        ):
            _LOG.warning("no divergences of single tokens: a server does not give what they take")
        if align and all(model.shares_tokenizer for model in self.others if model.role == "teacher"):
            _LOG.warning("--align %s: the tokenizers agree, so there are no chunk columns", align)
        alike = any(model.shares_tokenizer for model in self.others if model.role == "teacher")
        if self.options.teachers and not alike and (self.options.keep_topk or self._further):
            asked = "--keep-topk" if self.options.keep_topk else f"--extra {self._further[0][0]}"
            raise UsageError(
                f"{asked}: the tokenizers of {student.name} and its teacher differ, so their predictions cannot be compared.",
                "Give a teacher with the student's tokenizer.",
            )
        known = len(student.source.vocabulary)
        masses = [value for name, value in self._further if name == "topk_mass"]
        for asked, k in (
            (f"--divergence {divergence}", self.k),
            ("--keep-topk", self.options.keep_topk),
            *((f"--extra topk_mass:{value:g}", value) for value in masses if value is not None),
        ):
            if k and k > known:
                raise UsageError(f"{asked}: the vocabulary has {known} entries.", "Give a smaller K.")

    @property
    def takes_turns(self) -> bool:
        """Whether one model is in memory at a time. Known once the student was loaded."""
        return self.will_take_turns(self.student.needs_files)

    def will_take_turns(self, in_vllm: bool) -> bool:
        """Whether one model will be in memory at a time, if vLLM runs the models or if transformers does."""
        wanted = self.options.swap_models
        if wanted is None:
            # What transformers runs may share the memory in pieces; each model of vLLM takes what it is given at once.
            wanted = in_vllm and not (self._residency is not None and self._residency.fits)
        return wanted and bool(self.others)

    @property
    def will_sleep(self) -> bool:
        """Whether models of vLLM that take turns wait in the host's memory, and are not loaded anew."""
        return self._residency is not None and self._residency.can_sleep and self.will_take_turns(True)

    def _here(self) -> list[RoleModel]:
        """The models that are run here and not by a server, student first."""
        return [model for model in (self.student, *self.others) if not model.url]

    def _share_memory(self) -> None:
        """Give every model its share of the device, if they are in memory side by side."""
        if self._residency is None:
            return
        self.student.will_read_beside(self._residency.head_bytes)
        if self.will_sleep:
            for model in self._here():
                model.will_sleep()
        if not self.will_take_turns(True):
            for model, share in zip(self._here(), self._residency.shares, strict=True):
                model.will_share(share)

    def columns(self) -> list[str]:
        """Names of the columns that are not always written, in the order of `schema.COLUMNS`."""
        names = [extra_column(text) for text in self.options.extra]
        names += self.topk_columns
        names += ["teacher_sentence_logprob"] if self.options.teacher_logprobs else []
        names += [UNCONDITIONAL] if self.options.unconditional else []
        for model in self.others:
            names.append(f"{model.role}_sentence_logprob")
            if model.shares_tokenizer:
                names += [
                    f"{model.role}_{part}{each}"
                    for part in ("", "scaffold_")
                    for each in _TOKEN_STATISTICS
                    if not model.url or each == "surprisal"
                ]
                names += self._divergence_columns() if model.role == "teacher" else []
            elif model.role == "teacher" and self.options.align:
                names += ["chunk_start", "student_chunk_logprob", "teacher_chunk_logprob"]
        for model in (self.student, *self.others):
            if model.url and model.shares_tokenizer and model.topk_statistics:
                names += served_columns(model.role, self._mass_of(model.role))
        listed = [name for name in COLUMNS if name in names]
        return [*listed, *(name for name in dict.fromkeys(names) if name not in listed)]

    def absent(self) -> Collection[str]:
        """Names of columns that are written otherwise, and that this student cannot give."""
        return NOT_SERVED if self.student.url else ()

    def _mass_of(self, role: str) -> str:
        """The column of the mass that a served role's best entries have."""
        both = role == "student" and any(model.url and model.shares_tokenizer for model in self.others)
        return "student_topk_mass" if both else "topk_mass"

    @property
    def topk_columns(self) -> list[str]:
        """Names of the columns of the most probable entries that are kept."""
        if not self.options.keep_topk:
            return []
        return [name for scaffold in (False, True) for name in topk_columns(self._kept_of, scaffold=scaffold)]

    @property
    def _kept_of(self) -> str:
        """Whose most probable entries are kept."""
        return "teacher" if self.options.teachers else "student"

    def made_by_models(self) -> list[str]:
        """Names of the list columns that models fill, and not the row itself, in the order of `schema.COLUMNS`."""
        given = ["sampler_logprob", "scaffold_sampler_logprob"]
        given += ["teacher_sentence_logprob"] if self.options.teacher_logprobs else []
        other = {*RENDERED, *given, *self.absent()}
        fields = score_fields(self.columns())
        return [each.name for each in fields if pa.types.is_list(each.type) and each.name not in other]

    def _divergence_columns(self) -> list[str]:
        if self.k:
            return [*(f"{name}_topk" for name in _DIVERGENCES), "topk_mass"]
        return [] if self._no_divergence else list(_DIVERGENCES)

    def rows_of(self, chunk: Chunk) -> list[ScoredRow]:
        """Rows in the student's tokens, with the log-probabilities that came with them."""
        rows = [scored_row(each, self.student.renderer) for each in chunk.trajectories]
        for row in rows:
            if row.is_ok and says_something_else(row, self.student.renderer):
                self.other_texts += 1
                said = (
                    f"the token ids say {row.rendered.response.said[:60]!r}, and the text beside them something else."
                )
                if self.options.strict_text:
                    row.rendered = refused("text_mismatch", said)
                else:
                    row.rendered = dataclasses.replace(row.rendered, detail=said)
        if self.options.teachers:
            self._unread["the teacher's own prompt leaves the response other tokens, or none"] += sum(
                row.teacher_apart for row in rows
            )
        by_author = any(model.author is not None for model in self.others)
        for row in rows:
            row.key = row_key(row, conversation=bool(self.others), author=by_author)
        self._authors |= {each.teacher for each in chunk.trajectories}
        if self.options.teacher_logprobs:
            for row, value in zip(rows, chunk.table[self.options.teacher_logprobs].to_pylist(), strict=True):
                self._take_given(row, value)
        return rows

    def run(self, rows: Sequence[ScoredRow], done: Callable[[int, int], None] | None = None) -> None:
        """Let every model read its rows, and fill in their values.

        Args:
            rows: any rows; refused ones are left alone.
            done: told the rows and scored tokens that the student has read since the last call.

        A row for which the student gives NaN or infinity is refused; where another model does, or cannot take the row, its
        columns are null.
        """
        from trajscore.engines.hidden_store import HiddenStore

        self._done = done or _ignore
        for model in (self.student, *self.others):
            model.begin_round()
        if unreadable := sum(not row.is_ok for row in rows):
            self._done(unreadable, 0)
        with HiddenStore(self._scratch) as store:
            left: dict[int, Other] = {}
            for model in self.others:
                if model.shares_tokenizer:
                    left |= self._read_same_tokens(model, rows, store)
            self._read_student(rows, left)
        for model in self.others:
            if not model.shares_tokenizer:
                self._read_other_tokens(model, rows)

    def waiting_bytes(self, rows: Sequence[ScoredRow]) -> int:
        """Bytes that teachers leave on disk for the student of these rows."""
        if self._no_divergence:
            return 0
        teachers = [model for model in self.others if model.role == "teacher" and model.shares_tokenizer]
        return sum(
            (_entry_bytes(max(self.k, self.options.keep_topk or 0)) if self.k else model.state_bytes)
            * len(row.rendered.whole.positions_N)
            for model in teachers
            if self.k or self._waits(model)
            for row in rows
            if model.reads(row)
        )

    def _waits(self, model: RoleModel) -> bool:
        """Whether a teacher's hidden states wait on disk and are not made as the student asks for them."""
        return self.takes_turns or model.needs_files or self.student.needs_files

    def null_columns(self) -> dict[str, int]:
        """Why a model has null columns -> rows of this run that are concerned."""
        return dict(+self._unread)

    def authors_not_met(self) -> list[str]:
        """Names given with `--teacher NAME=MODEL` that no row of this run bears."""
        return [each.author for each in self.others if each.author is not None and each.author not in self._authors]

    def forget_replies(self) -> None:
        """All rows lie in parts: what servers said of them is needed no more."""
        for model in (self.student, *self.others):
            model.forget_replies()

    def close(self) -> None:
        """Free all models."""
        for model in (self.student, *self.others):
            model.release()

    def _release(self, model: RoleModel) -> None:
        """A model has read its rows: where models take turns, the next one needs the memory."""
        if self.takes_turns and not model.url:
            model.rest()

    def _read_same_tokens(self, model: RoleModel, rows: Sequence[ScoredRow], store: HiddenStore) -> dict[int, Other]:
        """Let another model with the student's tokens read; number of a row -> what waits there for the student."""
        engine = model.load()
        mine = [index for index, row in enumerate(rows) if model.reads(row)]
        self._unread[f"longer than {model.name} takes"] += sum(model.is_too_long(row) for row in rows)
        if self.student.vocabulary and model.vocabulary != self.student.vocabulary:
            raise UsageError(
                f"{model.name} has {model.vocabulary} vocabulary entries and {self.student.name} {self.student.vocabulary}, "
                "though their tokenizers agree.",
                "One of the checkpoints lacks entries that its tokenizer makes.",
            )
        other = None
        if model.role != "teacher":
            for row, scores in _token_scores(engine, model.role, [rows[index] for index in mine]):
                self._take(row, model.role, scores)
        elif self._no_divergence:
            self._read_alone(engine, model.role, [rows[index] for index in mine])
        elif self.k:
            other = self._leave_entries(model, rows, mine, store)
        else:
            other = self._states(model, rows, mine, store)
        self._release(model)
        return {} if other is None else dict.fromkeys(mine, other)

    def _leave_entries(self, model: RoleModel, rows: Sequence[ScoredRow], mine: list[int], store: HiddenStore) -> Other:
        """A teacher's most probable entries, on disk."""
        from trajscore.engines.reduced_rows import entries, narrowed
        from trajscore.engines.reductions import top

        k, kept = self.k or 0, self.options.keep_topk or 0
        for index, (scores, best) in model.load().run([rows[i].read_by(model.role) for i in mine], top(max(k, kept))):
            row = rows[mine[index]]
            self._take(row, model.role, scores)
            if kept:
                self._take_kept(row, model.role, entries(narrowed(best, kept)))
            store.put((model.name, mine[index]), narrowed(best, k))
        return _stored(model.name, mine, store)

    def _states(self, model: RoleModel, rows: Sequence[ScoredRow], mine: list[int], store: HiddenStore) -> Other:
        """A teacher's hidden states with its head: on disk, or made when the student asks for them."""
        from trajscore.engines.reduced_rows import join
        from trajscore.engines.reductions import STATES, Other, written

        engine = model.load()
        if engine.needs_files:
            for index, place in engine.run([rows[i].read_by(model.role) for i in mine], written(store.beginning)):
                store.adopt((model.name, mine[index]), place)
            return dataclasses.replace(_stored(model.name, mine, store), head=engine.head)
        if self._waits(model):
            for index, states in engine.run([rows[i].read_by(model.role) for i in mine], STATES):
                store.put((model.name, mine[index]), states)
            return dataclasses.replace(_stored(model.name, mine, store), head=engine.head)

        def made(indices: list[int]) -> Tensor:
            found = dict(engine.run([rows[mine[index]].read_by(model.role) for index in indices], STATES))
            return join([found[number] for number in range(len(indices))])

        return Other(made, head=engine.head)

    def _read_student(self, rows: Sequence[ScoredRow], left: dict[int, Other]) -> None:
        """The student: alone, or beside what a teacher left of the same row."""
        engine = self.student.load()
        alone = [row for index, row in enumerate(rows) if row.is_ok and index not in left]
        self._read_alone(engine, "student", alone)
        for other in {id(each): each for each in left.values()}.values():
            self._read_both(engine, [rows[index] for index, each in left.items() if each is other], other)
        if self.options.unconditional:
            self._unread.update(read_unconditionally(engine, rows))
        if self.window is not None:
            self._unread.update(read_locally(engine, rows, self.window))
        self._release(self.student)

    def _read_alone(self, engine: Engine, role: str, rows: Sequence[ScoredRow]) -> None:
        """A model by itself, its most probable entries too if they are to be kept."""
        from trajscore.engines.reductions import top

        take = self._take_student if role == "student" else lambda row, scores: self._take(row, role, scores)
        if not self.options.keep_topk or self._kept_of != role:
            for row, scores in _token_scores(engine, role, rows):
                take(row, scores)
            return
        from trajscore.engines.reduced_rows import entries

        for index, (scores, best) in engine.run([row.read_by(role) for row in rows], top(self.options.keep_topk)):
            take(rows[index], scores)
            self._take_kept(rows[index], role, entries(best))

    def _read_both(self, engine: Engine, rows: Sequence[ScoredRow], teacher: Other) -> None:
        from trajscore.engines.reductions import pair, top_pair

        sequences = [row.rendered.whole for row in rows]
        if not self.k:
            at_student = self.options.topk_at == "student"
            both = pair(teacher, self.options.keep_topk or 0, at_student=at_student, further=self._further)
            for index, found in engine.run(sequences, both):
                self._take_pair(rows[index], found)
            return
        for index, (scores, whole) in engine.run(sequences, top_pair(teacher)):
            row = rows[index]
            truncated = at(whole, row.rendered.scored_M)
            self._take_student(row, scores)
            values = (truncated.kl_student_teacher_N, truncated.kl_teacher_student_N, truncated.js_N, truncated.mass_N)
            if "teacher_surprisal" in row.values:
                row.values |= dict(zip(self._divergence_columns(), values, strict=True))

    def _read_other_tokens(self, model: RoleModel, rows: Sequence[ScoredRow]) -> None:
        """Sentence and chunk columns of a model with a tokenizer of its own."""
        from trajscore.engines.reductions import TOKENS

        engine = model.load()
        mine = [row for row in rows if model.reads(row)]
        found = [render(for_other_tokens(row.trajectory, model.role), model.renderer) for row in mine]
        pairs = [(row, theirs) for row, theirs in zip(mine, found, strict=True) if theirs.status == OK]
        self._unread[f"{model.role} cannot read the row"] += len(mine) - len(pairs)
        for index, scores in engine.run([theirs for _, theirs in pairs], TOKENS):
            row, theirs = pairs[index]
            match = row.rendered.response.match(theirs.response)
            if match is None or not scores.finite:
                reason = "gives NaN or infinity" if match is not None else "renders no turn alike"
                self._unread[f"{model.role} {reason}"] += 1
                continue
            logprob_B = -scores.surprisal_N.astype(np.float64)
            self._take_sentences(row, model.role, match.place_B, logprob_B)
            if model.role == "teacher" and self.options.align:
                row.values |= _chunk_values(row, theirs, match, logprob_B)
        self._release(model)

    def _take(self, row: ScoredRow, role: str, scores: TokenScores | ServedScores) -> None:
        """Token and sentence columns of a model that reads the student's tokens."""
        if not scores.finite:
            self._unread[f"{role} gives NaN or infinity"] += 1
            return
        row.values |= self._values(role, scores, row.rendered)

    def _values(self, role: str, scores: TokenScores | ServedScores, rendered: Rendered) -> dict[str, Any]:
        if isinstance(scores, ServedScores):
            return served_values(role, scores, rendered, self._mass_of(role))
        return token_values(role, scores, rendered)

    def _take_student(self, row: ScoredRow, scores: TokenScores | ServedScores) -> None:
        self._done(1, len(row.rendered.positions_N))
        if scores.finite:
            row.values |= self._values("student", scores, row.rendered)
        else:
            row.rendered = refused("non_finite", "the model gave NaN or infinity; try another --dtype.")

    def _take_kept(self, row: ScoredRow, role: str, kept: TopKEntries) -> None:
        """Columns of a role's most probable entries, where the role has numbers for the row at all."""
        if f"{role}_surprisal" in row.values:
            row.values |= topk_values(role, kept, row.rendered)

    def _take_pair(self, row: ScoredRow, found: PairScores) -> None:
        self._take_student(row, found.student)
        if not found.student.finite:
            return
        self._take(row, "teacher", found.teacher)
        if not found.teacher.finite:
            return
        scored_M = row.rendered.scored_M
        names = [*_DIVERGENCES, *(EXTRAS[name].named(value) for name, value in self._further)]
        divergences = (found.kl_student_teacher_N, found.kl_teacher_student_N, found.js_N, *found.further)
        row.values |= {name: each[scored_M] for name, each in zip(names, divergences, strict=True)}
        if found.kept is not None:
            self._take_kept(row, "teacher", found.kept)

    def _take_given(self, row: ScoredRow, value: Any) -> None:
        """Sentence column from log-probabilities that came with the row."""
        if not row.is_ok:
            return
        spoken = spoken_tokens(value)
        places = None if spoken is None else row.rendered.response.places_in_last_turn(spoken.text, spoken.start_B)
        if spoken is None or places is None:
            self._unread["the row's log-probabilities are missing or of another text"] += 1
            return
        self._take_sentences(row, "teacher", places, spoken.logprob_B)

    def _take_sentences(self, row: ScoredRow, role: str, place_B: Ints, logprob_B: npt.NDArray[np.float64]) -> None:
        """The sentence column of other tokens; those at place -1 are of a text that is not in common."""
        inside = place_B >= 0
        sentence_B = row.rendered.response.sentence_at(place_B[inside])
        means = sentence_means(logprob_B[inside], sentence_B, row.rendered.n_sentences)
        row.values[f"{role}_sentence_logprob"] = means


def _chunk_values(row: ScoredRow, theirs: Rendered, match: Match, logprob_B: npt.NDArray[np.float64]) -> dict[str, Any]:
    """Chunk columns, turn by turn over what both renderings have; end-of-turn markers are in no chunk."""
    start_N, end_N = row.rendered.response.span_N2.T
    their_start_B, their_end_B = theirs.response.span_N2.T
    words_B = (match.place_B >= 0) & (their_end_B > their_start_B)
    start_B = match.place_B[words_B]
    end_B, logprob_B = start_B + (their_end_B - their_start_B)[words_B], logprob_B[words_B]
    first, student, teacher = [], [], []
    for begin, stop in match.turns:
        (own,) = np.nonzero((start_N >= begin) & (end_N <= stop) & (end_N > start_N))
        (other,) = np.nonzero((start_B >= begin) & (end_B <= stop))
        chunks = aligned_chunks(start_N[own], end_N[own], start_B[other], end_B[other])
        first.append(own[chunks.first_A])
        student.append(chunk_sums(-row.values["student_surprisal"][own], chunks.first_A, chunks.stop_A))
        teacher.append(chunk_sums(logprob_B[other], chunks.first_B, chunks.stop_B))
    student_C, teacher_C = np.concatenate(student), np.concatenate(teacher)
    return {
        "chunk_start": np.concatenate(first).astype(np.uint32),
        "student_chunk_logprob": student_C,
        "teacher_chunk_logprob": teacher_C,
    }


def _stored(name: str, mine: list[int], store: HiddenStore) -> Other:
    """Rows that a teacher left on disk, by the number of the sequence among those it read."""
    from trajscore.engines.reduced_rows import join
    from trajscore.engines.reductions import Other

    return Other(
        lambda indices: join([store.locate((name, mine[index])).read() for index in indices]),
        lambda index: store.locate((name, mine[index])),
    )


def _entry_bytes(k: int) -> int:
    """Of the K most probable entries of one token: ids, log-probabilities and the rest, float32."""
    return 4 * (2 * k + 1)


def _ignore(rows: int, tokens: int) -> None:
    """Where nobody wants to know how far a run is."""


def _token_scores(engine: Engine, role: str, rows: Sequence[ScoredRow]) -> Iterator[tuple[ScoredRow, TokenScores]]:
    """Each row with its statistics, in the order in which they are done."""
    from trajscore.engines.reductions import TOKENS

    return ((rows[index], scores) for index, scores in engine.run([row.read_by(role) for row in rows], TOKENS))
