"""The rows of an export: a selection (text) or a mask (tokens), surveyed once and then read in order.

The survey keeps a flag and a weight per row, and why a row is unfit for training; the rows themselves are read again.
Axis R is the rows of the file.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import orjson
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from trajscore.corpus import RENDERED, Corpus, FieldNames, SourceOptions, Trajectory, layouts, open_corpus
from trajscore.errors import DataError, UsageError
from trajscore.exporters.base import Conversation, Exporter, Plan
from trajscore.exporters.soft import TOPK_COLUMNS, entries_per_token
from trajscore.io.ours import MANIFEST
from trajscore.io.parquet import open_pages
from trajscore.rendering.reasoning import reasoning_as
from trajscore.rendering.renderer import Renderer
from trajscore.schema import MASK_METADATA, NO_LOSS, OK, SELECTION_METADATA

MASK_COLUMNS = ("input_ids", "labels")
LOSS_WEIGHT, SAMPLE_WEIGHT = "loss_weight", "sample_weight"

_BATCH_ROWS = 512
# What chat templates add around a conversation: default system prompts, instructions for tools.
_TEMPLATE_TOKENS = 1024

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class LeftOut:
    """A row that was not exported.

    Attributes:
        row: its number in the file, from 0.
        id: its name.
        reason: a word.
        detail: a sentence.
    """

    row: int
    id: str
    reason: str
    detail: str


@dataclass
class Survey:
    """What one reading of the file showed.

    Attributes:
        plan: what exporters need to know.
        keep_R: whether each row is exported.
        weight_R: float64, each row's sample weight; 1 where the file has none.
        left_out: the rows that are not.
        tokens: tokens of the rows kept; 0 where they were not counted.
    """

    plan: Plan
    keep_R: npt.NDArray[np.bool_]
    weight_R: npt.NDArray[np.float64]
    left_out: list[LeftOut] = field(default_factory=list)
    tokens: int = 0

    @property
    def reasons(self) -> dict[str, int]:
        """Rows left out by reason, most frequent first."""
        return dict(Counter(each.reason for each in self.left_out).most_common())


def is_mask(path: Path) -> bool:
    """Whether a file holds masked tokens, by its columns.

    Raises:
        UsageError: it is a folder, or not a file, or a part of a score folder.
        DataError: it is not a Parquet file although its name says so.
    """
    if path.is_dir():
        scores = " of scores" if (path / MANIFEST).is_file() else ""
        raise UsageError(
            f"{path}: a folder{scores}; a file is exported.",
            "Choose rows with `trajscore select`, or tokens with `trajscore mask`, and export what it wrote.",
        )
    if path.is_file() and path.suffix == ".jsonl" and _starts_as_mask(path):
        raise UsageError(
            f"{path}: is a mask in JSON Lines, and masks are read as Parquet.",
            "Mask again with --out NAME.parquet, which also keeps how it was made.",
        )
    if path.suffix != ".parquet" or not path.is_file():
        return False
    try:
        schema = pq.read_schema(path)
        # A selection may hold columns of the corpus that bear these names.
        names = [] if SELECTION_METADATA.encode() in (schema.metadata or {}) else schema.names
    except (pa.ArrowInvalid, OSError) as error:
        raise DataError(f"{path}: not readable as Parquet ({error}).", "Write it again.") from error
    if "input_ids" in names and not {*layouts.MASKS, layouts.RESPONSE_LENGTH} & set(names):
        raise UsageError(
            f"{path}: holds tokens without labels, as parts of score folders do.",
            "Export what `trajscore select` or `trajscore mask` wrote.",
        )
    return set(MASK_COLUMNS) <= set(names)


def _starts_as_mask(path: Path) -> bool:
    with path.open("rb") as file:
        try:
            row = orjson.loads(file.readline())
        except orjson.JSONDecodeError:
            return False
    return isinstance(row, dict) and set(MASK_COLUMNS) <= set(row)


class Mask:
    """A file that `trajscore mask` wrote.

    Args:
        path: Parquet with `id`, `input_ids`, `labels`, and `loss_weight` and `sample_weight` if any.

    Attributes:
        about: what the file says of itself (rule, seed, student, rendering), {} when it says nothing.
        signed: whether it says that token weights may be negative.
        soft_targets: whether it holds a teacher's best entries.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        schema = pq.read_schema(path)
        for name in (*MASK_COLUMNS, LOSS_WEIGHT):
            if name in schema.names and not _is_list(schema.field(name).type):
                raise UsageError(
                    f"{path}: column {name!r} is {schema.field(name).type}; it must be a list.", "Mask again."
                )
        self.soft_targets = set(TOPK_COLUMNS) <= set(schema.names)
        names = ("id", *MASK_COLUMNS, LOSS_WEIGHT, SAMPLE_WEIGHT, *(TOPK_COLUMNS if self.soft_targets else ()))
        self._names = [name for name in names if name in schema.names]
        self.token_weights = LOSS_WEIGHT in schema.names
        self.sample_weights = SAMPLE_WEIGHT in schema.names
        self.about = _about(schema, path)
        self.signed = self.token_weights and self.about.get("signed") is True

    def survey(self) -> Survey:
        """Check every row and measure.

        Raises:
            UsageError: a value is not what a mask may hold; it names the row.
            DataError: the file is damaged.
        """
        keep, weights, left_out = [], [], list[LeftOut]()
        first = longest = tokens = topk = highest = 0
        for batch in self._read():
            shape = _Shape(batch, self._path, first, 0.0 if not self.signed else -np.inf)
            keep.append(shape.trained_R & shape.weighted_R)
            weights.append(_sample_weights(batch, self._path, first))
            for row in np.flatnonzero(~keep[-1]):
                reason = "no_trained_token" if not shape.trained_R[row] else "no_weight"
                left_out.append(LeftOut(first + int(row), _name(batch, row), reason, _MASK_REASONS[reason]))
            if self.soft_targets:
                where = f"{self._path}: rows {first} to {first + batch.num_rows - 1}"
                k = entries_per_token(batch, where) or topk
                if topk and k != topk:
                    raise UsageError(
                        f"{where}: {k} best entries a token, {topk} before.", "Mask folders of one K together."
                    )
                topk = k
            highest = max(highest, pc.max(batch["input_ids"].flatten()).as_py() or 0)
            lengths = shape.length_R[keep[-1]]
            longest, tokens = max(longest, int(lengths.max(initial=0))), tokens + int(lengths.sum())
            first += batch.num_rows
        plan = Plan(
            "tokens",
            longest,
            token_weights=self.token_weights,
            signed=self.signed,
            sample_weights=self.sample_weights,
            topk=topk,
            vocabulary=(self.about.get("student") or {}).get("vocabulary") or highest + 1,
        )
        return Survey(plan, _joined(keep, np.bool_), _joined(weights, np.float64), left_out, tokens)

    def batches(self, count_R: npt.NDArray[np.int64]) -> Iterator[pa.RecordBatch]:
        """Rows in order, each as often as `count_R` says."""
        first = 0
        for batch in self._read():
            counts = count_R[first : first + batch.num_rows]
            first += batch.num_rows
            if counts.any():
                yield batch.take(pa.array(np.repeat(np.arange(batch.num_rows), counts)))

    def _read(self) -> Iterator[pa.RecordBatch]:
        try:
            with open_pages(self._path) as file:
                for batch in file.iter_batches(batch_size=_BATCH_ROWS, columns=self._names):
                    yield batch.cast(_usual(batch.schema))
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError, OSError) as error:
            raise DataError(f"{self._path}: not readable ({error}).", "Mask again.") from error


def _about(schema: pa.Schema, path: Path) -> dict[str, Any]:
    try:
        about = orjson.loads((schema.metadata or {}).get(MASK_METADATA.encode(), b"{}"))
    except orjson.JSONDecodeError as error:
        about = error
    if not isinstance(about, dict) or not isinstance(about.get("rendering") or {}, dict):
        raise DataError(
            f"{path}: what it says under {MASK_METADATA!r} is not how a mask was made ({about}).", "Mask again."
        )
    return about


def _is_list(kind: pa.DataType) -> bool:
    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind))


def _usual(schema: pa.Schema) -> pa.Schema:
    """The types that `mask` writes, for frames of it that polars or others wrote with large offsets."""
    kinds = {name: pa.list_(pa.int32()) for name in MASK_COLUMNS} | {LOSS_WEIGHT: pa.list_(pa.float32())}
    targets = (pa.list_(pa.list_(pa.int32())), pa.list_(pa.list_(pa.float32())), pa.list_(pa.float32()))
    kinds |= dict(zip(TOPK_COLUMNS, targets, strict=True))
    usual = [each.with_type(kinds.get(each.name, each.type)) for each in schema]
    return pa.schema([each.with_type(pa.string()) if each.name == "id" else each for each in usual])


_MASK_REASONS = {
    "no_trained_token": "every label is -100, so the row trains nothing",
    "no_weight": "every trained token has the weight 0, so the row trains nothing",
}


class _Shape:
    """One batch of a mask, checked without a loop over tokens. Token weights below `least` are refused."""

    def __init__(self, batch: pa.RecordBatch, path: Path, first: int, least: float) -> None:
        self._batch, self._path, self._first = batch, path, first
        ids, labels = (self._values(batch, name) for name in MASK_COLUMNS)
        self.length_R = np.diff(np.asarray(batch["input_ids"].offsets))
        self._fits(batch, "labels")
        row_T = np.repeat(np.arange(batch.num_rows), self.length_R)
        on_T = labels != NO_LOSS
        self._refuse(row_T[on_T & (labels != ids)], "a label is neither the token at its place nor -100.")
        starts = (np.cumsum(self.length_R) - self.length_R)[self.length_R > 0]
        self._refuse(row_T[starts[on_T[starts]]], "the first token has a label, and nothing predicts it.")
        self.trained_R = np.bincount(row_T[on_T], minlength=batch.num_rows) > 0
        self.weighted_R = np.ones(batch.num_rows, bool)
        if LOSS_WEIGHT in batch.schema.names:
            self._fits(batch, LOSS_WEIGHT)
            weight_T = self._values(batch, LOSS_WEIGHT)
            self._refuse(
                row_T[~(np.isfinite(weight_T) & (weight_T >= least))],
                f"a loss_weight is {'' if least < 0 else 'negative, '}NaN or infinite.",
            )
            self.weighted_R = np.bincount(row_T[on_T & (weight_T != 0)], minlength=batch.num_rows) > 0

    def _values(self, batch: pa.RecordBatch, name: str) -> npt.NDArray[Any]:
        column = batch[name]
        nulls = np.flatnonzero(column.is_null().to_numpy(zero_copy_only=False))
        self._refuse(nulls, f"{name} is null.")
        values = column.flatten()
        if values.null_count:
            bad = next(row for row in range(batch.num_rows) if column[row].values.null_count)
            self._refuse(np.array([bad]), f"{name} holds a null.")
        array: npt.NDArray[Any] = values.to_numpy(zero_copy_only=False)
        return array

    def _fits(self, batch: pa.RecordBatch, name: str) -> None:
        lengths = np.diff(np.asarray(batch[name].offsets))
        self._refuse(np.flatnonzero(lengths != self.length_R), f"{name} and input_ids differ in length.")

    def _refuse(self, rows: npt.NDArray[Any], what: str) -> None:
        if len(rows):
            row = int(rows[0])
            where = f"{self._path}: row {self._first + row}, id {_name(self._batch, row)!r}"
            raise UsageError(f"{where}: {what}", "Mask again, or mend the row.")


class TokenIdsFile(Mask):
    """A file of trajectories in token ids: what `trajscore select` kept of a corpus of them, or such a corpus.

    Labels are the ids that are trained on, exactly as they were given.

    Args:
        path: the file, for messages.
        corpus: what it holds.
    """

    def __init__(self, path: Path, corpus: Corpus) -> None:
        self._path, self._corpus = path, corpus
        self.token_weights = self.signed = self.soft_targets = False
        self.sample_weights = SAMPLE_WEIGHT in corpus.schema.names
        self.about = {}

    def survey(self) -> Survey:
        """See `Mask.survey`; rows that cannot be read are left out as `score` refuses them."""
        survey = super().survey()
        refused = {
            number: trajectory
            for chunk in self._corpus.chunks(_BATCH_ROWS)
            for number, trajectory in enumerate(chunk.trajectories, chunk.first_row)
            if trajectory.tokens is None
        }
        survey.left_out = [
            LeftOut(each.row, each.id, refused[each.row].refusal or "text_only", refused[each.row].detail)
            if each.row in refused
            else each
            for each in survey.left_out
        ]
        return survey

    def _read(self) -> Iterator[pa.RecordBatch]:
        for chunk in self._corpus.chunks(_BATCH_ROWS):
            given = [each.tokens for each in chunk.trajectories]
            none = np.empty(0, np.int64)
            ids = [none if each is None else each.ids_P for each in given]
            labels = [none if each is None else np.where(each.scored_P, each.ids_P, NO_LOSS) for each in given]
            columns = {
                "id": pa.array([each.id for each in chunk.trajectories], pa.string()),
                "input_ids": pa.array(ids, pa.list_(pa.int32())),
                "labels": pa.array(labels, pa.list_(pa.int32())),
            }
            if self.sample_weights:
                columns[SAMPLE_WEIGHT] = chunk.table[SAMPLE_WEIGHT].combine_chunks()
            yield pa.RecordBatch.from_pydict(columns)


class ConversationFile:
    """A file of conversations: what `trajscore select` wrote, or any corpus.

    Args:
        path: JSONL, JSON or Parquet.
        exporter: says which rows it cannot take.
        renderer: the student's, to count tokens; None leaves a bound.
        messages_field: column of the conversation, if not `messages`.
        reasoning: where thoughts go, as `--reasoning-as` has it; None as the data has them.
        variables: variables for the chat template of every row; the row's own prevail.
    """

    token_weights = soft_targets = False

    def __init__(
        self,
        path: Path,
        exporter: Exporter,
        renderer: Renderer | None = None,
        messages_field: str | None = None,
        reasoning: str | None = None,
        variables: Mapping[str, Any] | None = None,
    ) -> None:
        self._reasoning, self._variables = reasoning, dict(variables or {})
        self._path, self._exporter, self._renderer = path, exporter, renderer
        options = SourceOptions(fields=FieldNames(messages=messages_field))
        self._corpus: Corpus = open_corpus([path], options)
        self.sample_weights = SAMPLE_WEIGHT in self._corpus.schema.names
        self.about: dict[str, Any] = {}

    @property
    def token_ids(self) -> TokenIdsFile | None:
        """The same file, where its rows are given in token ids, which win over the text beside them; else None."""
        given = any("token_ids" in each for each in self._corpus.columns)
        return TokenIdsFile(self._path, self._corpus) if given else None

    def survey(self) -> Survey:
        """Check every row and measure.

        Raises:
            UsageError: a sample weight is not a number >= 0; it names the row.
            DataError: the file is damaged.
        """
        keep, weights, left_out = list[bool](), [], list[LeftOut]()
        longest = tokens = 0
        single_turn, keys = True, dict.fromkeys(("role", "content"))
        context: list[tuple[int, str]] = []
        for chunk in self._corpus.chunks(_BATCH_ROWS):
            weights.append(_sample_weights(chunk.table, self._path, chunk.first_row))
            for number, trajectory in enumerate(chunk.trajectories, chunk.first_row):
                reason, detail, length = self._look(trajectory)
                keep.append(not reason)
                if reason or trajectory.messages is None:
                    left_out.append(LeftOut(number, trajectory.id, reason, detail))
                    continue
                longest, tokens = max(longest, length), tokens + length
                row = self._conversation(trajectory, None)
                single_turn = single_turn and row.trains_its_end_only
                if row.context:
                    context.append((number, trajectory.id))
                keys |= dict.fromkeys(key for message in trajectory.messages for key in message)
        if context and self._exporter.context == "before" and not single_turn:
            # Other rows train on several turns, and one setting holds for all.
            why = f"{self._exporter.trainer} would train on turns marked as context, as on all turns of other rows; mask them"
            for number, name in context:
                keep[number] = False
                left_out.append(LeftOut(number, name, "turn_weights", why))
            left_out.sort(key=lambda each: each.row)
            context = []
        plan = Plan(
            "messages",
            longest,
            exact=self._renderer is not None,
            sample_weights=self.sample_weights,
            single_turn=single_turn,
            context=bool(context),
            message_keys=tuple(keys),
        )
        counted = tokens if self._renderer else 0
        return Survey(plan, np.array(keep, bool), _joined(weights, np.float64), left_out, counted)

    def rows(self, count_R: npt.NDArray[np.int64], weights: bool) -> Iterator[Conversation]:
        """Conversations in order, each as often as `count_R` says, with their sample weights if asked for."""
        for chunk in self._corpus.chunks(_BATCH_ROWS):
            given = _sample_weights(chunk.table, self._path, chunk.first_row)
            for place, trajectory in enumerate(chunk.trajectories):
                row = self._conversation(trajectory, float(given[place]) if weights else None)
                for _ in range(count_R[chunk.first_row + place]):
                    yield row

    def _conversation(self, trajectory: Trajectory, weight: float | None) -> Conversation:
        messages = trajectory.messages or []
        if self._reasoning is not None:
            messages = reasoning_as(messages, self._reasoning)
        variables = {**self._variables, **(trajectory.chat_template_kwargs or {})}
        return Conversation(trajectory.id, messages, trajectory.tools, weight, variables or None, trajectory.weights)

    def _look(self, trajectory: Trajectory) -> tuple[str, str, int]:
        """(reason to leave a row out or empty, a sentence, its length in tokens)."""
        if trajectory.refusal == RENDERED:
            return RENDERED, "a chat template was applied to its text; `trajscore mask` writes its tokens.", 0
        if trajectory.refusal:
            return trajectory.refusal, trajectory.detail, 0
        if trajectory.messages is None:
            return "text_only", "a bare text is no conversation; `trajscore mask` writes its tokens.", 0
        row = self._conversation(trajectory, None)
        if refusal := self._exporter.unfit(row):
            reason, _, detail = refusal.partition(": ")
            return reason, detail, 0
        if self._renderer is None:
            text = orjson.dumps([row.messages, row.tools])
            # A token covers at least one byte in byte-level and byte-fallback tokenizers.
            return "", "", len(text) + _TEMPLATE_TOKENS
        rendered = self._renderer.render_messages(row.messages, row.tools, row.chat_template_kwargs, row.context)
        return "" if rendered.status == OK else rendered.status, rendered.detail, len(rendered.input_ids_P)


def _name(batch: pa.RecordBatch, row: Any) -> str:
    return str(batch["id"][int(row)].as_py()) if "id" in batch.schema.names else str(int(row))


def _joined(parts: list[Any], kind: Any) -> Any:
    return np.concatenate(parts) if parts else np.empty(0, kind)


def _sample_weights(table: pa.RecordBatch | pa.Table, path: Path, first: int) -> npt.NDArray[np.float64]:
    """Sample weights of some rows; ones where there is no such column.

    Raises:
        UsageError: one is null, not a number, negative, NaN or infinite.
    """
    if SAMPLE_WEIGHT not in table.schema.names:
        return np.ones(table.num_rows)
    values = table[SAMPLE_WEIGHT].to_pylist()
    for row, value in enumerate(values):
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < np.inf:
            raise UsageError(
                f"{path}: row {first + row}: sample_weight is {value!r}; it must be a number of 0 or more.",
                "Give every row a weight, or drop the column.",
            )
    return np.array(values, np.float64)
