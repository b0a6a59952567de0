"""What an exporter is, and what it is given: conversations or masked tokens.

Axis P is the tokens of one row. Labels are unshifted: the label at index p is the token at index p, or -100 where there is
no loss.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import numpy.typing as npt
import orjson
import pyarrow as pa

from trajscore.exporters.soft import TOPK_COLUMNS, SoftTargets
from trajscore.io.parquet import open_pages
from trajscore.schema import NO_LOSS

Form = Literal["messages", "tokens"]

_MARGIN = 64


@dataclass(frozen=True)
class Conversation:
    """One row of text.

    Attributes:
        id: the row's name.
        messages: turns with `role` and a string `content`.
        tools: tool definitions, None when there are none.
        weight: its sample weight, None where rows have none.
        chat_template_kwargs: what the row gives the chat template, None when nothing.
        turn_weights: index of an assistant's message -> its weight, where it is not 1; 0 is context that is not trained on.
    """

    id: str
    messages: list[dict[str, Any]]
    tools: list[Any] | None = None
    weight: float | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    turn_weights: Mapping[int, float] = field(default_factory=dict)

    @property
    def context(self) -> frozenset[int]:
        """Indices of the assistant's messages that are not trained on."""
        return frozenset(index for index, weight in self.turn_weights.items() if weight == 0)

    @property
    def trains_its_end_only(self) -> bool:
        """Whether the last message is the only one of the assistant's that is trained on."""
        own = [index for index, message in enumerate(self.messages) if message["role"] == "assistant"]
        return [index for index in own if index not in self.context] == [len(self.messages) - 1]


@dataclass(frozen=True)
class Trained:
    """What a trainer makes of one row.

    Attributes:
        input_ids_P: int64, the tokens.
        weight_P: float64, each token's weight in the loss; 0 where there is none.
        targets: a teacher's best entries at each token, None where the trainer is given none.
    """

    input_ids_P: npt.NDArray[np.int64]
    weight_P: npt.NDArray[np.float64]
    targets: SoftTargets | None = None


@dataclass(frozen=True)
class Plan:
    """What is known of all rows before the first is written.

    Attributes:
        form: conversations (`messages`) or masked tokens (`tokens`).
        longest: tokens of the longest row, or an upper bound.
        exact: whether `longest` was counted.
        token_weights: whether tokens carry weights (column `loss_weight`).
        signed: whether some of these are negative.
        sample_weights: whether rows carry weights (column `sample_weight`).
        single_turn: whether every conversation ends in the only assistant's turn that is trained on.
        context: whether some conversation has assistant's turns that are not trained on.
        message_keys: keys that messages have.
        chat_template: whether `CHAT_TEMPLATE` lies beside the data, for the trainer to use.
        topk: a teacher's best entries at each label; 0 for none.
        vocabulary: entries of the student's head that count; 0 where that is not known.
    """

    form: Form
    longest: int
    exact: bool = True
    token_weights: bool = False
    signed: bool = False
    sample_weights: bool = False
    single_turn: bool = True
    context: bool = False
    message_keys: tuple[str, ...] = ("role", "content")
    chat_template: bool = False
    topk: int = 0
    vocabulary: int = 0

    @property
    def weighted(self) -> bool:
        """Whether the loss has weights of either kind."""
        return self.token_weights or self.sample_weights

    @property
    def limit(self) -> int:
        """The maximum length to configure: exact for tokens, with room for conversations, to which templates may add some.

        >>> Plan("tokens", 130).limit, Plan("messages", 130).limit
        (130, 256)
        """
        return self.longest if self.form == "tokens" else -(-self.longest // _MARGIN) * _MARGIN + _MARGIN


CHAT_TEMPLATE = "chat_template.jinja"
"""The file in an export that holds the chat template to train with."""


class Exporter(ABC):
    """Writes what one trainer reads, without glue.

    Attributes:
        name: what users type.
        trainer: the trainer's name.
        package: its package, as `importlib.metadata` knows it.
        token_weights: whether it takes a weight per token.
        signed_weights: whether these may be negative.
        sample_weights: forms in which it takes a weight per row.
        chat_templates: whether it takes a chat template.
        meaning: one sentence: what is written.
        context: which of the assistant's turns it can leave untrained: `any` by marks, those `before` the last one where that
            is so in all rows, or `none`.
        row_variables: whether rows can give the chat template variables.
        forms: what it takes.
        soft_targets: whether it distils from a teacher's best entries: `no`, `taken` where there are some, `needed`.
    """

    name: ClassVar[str]
    trainer: ClassVar[str]
    package: ClassVar[str]
    token_weights: ClassVar[bool] = False
    signed_weights: ClassVar[bool] = False
    sample_weights: ClassVar[tuple[Form, ...]] = ()
    chat_templates: ClassVar[bool] = False
    meaning: ClassVar[str]
    context: ClassVar[Literal["any", "before", "none"]] = "none"
    row_variables: ClassVar[bool] = False
    forms: ClassVar[tuple[Form, ...]] = ("messages", "tokens")
    soft_targets: ClassVar[Literal["no", "taken", "needed"]] = "no"

    @property
    def weights_said(self) -> str:
        """Which token weights it takes, in a word or three."""
        return "yes, negative ones too" if self.signed_weights else "yes" if self.token_weights else "no"

    def unfit(self, row: Conversation) -> str:
        """Why a conversation cannot be exported so that it is trained on as it was scored; empty when it can."""
        if any(weight not in (0, 1) for weight in row.turn_weights.values()):
            return (
                f"turn_weights: {self.trainer} takes no weights of single turns but 0 and 1; mask, and export the mask"
            )
        if row.context and (self.context == "none" or (self.context == "before" and not row.trains_its_end_only)):
            return (
                f"turn_weights: {self.trainer} would train on turns of the assistant that are marked as context; mask, and "
                "export the mask"
            )
        if row.chat_template_kwargs and not self.row_variables:
            return f"chat_template_kwargs: {self.trainer} has no place for a row's own; mask, and export the mask"
        return self.refusal(row)

    def refusal(self, row: Conversation) -> str:
        """Why the trainer cannot take a conversation; empty when it can."""
        return ""

    def write_messages(self, rows: Iterator[Conversation], plan: Plan, folder: Path) -> None:
        """Write conversations, in order."""
        raise NotImplementedError(self.name)

    @abstractmethod
    def write_tokens(self, batches: Iterator[pa.RecordBatch], plan: Plan, folder: Path) -> None:
        """Write masked tokens, in order: `input_ids`, `labels`, and, as the plan says, `loss_weight`, `sample_weight` and a
        teacher's best entries.
        """

    @abstractmethod
    def settings(self, plan: Plan) -> dict[str, str]:
        """Configuration files: name -> text."""

    @abstractmethod
    def command(self, plan: Plan) -> str:
        """What to type next, in the folder. MODEL stands for the student."""

    def notes(self, plan: Plan) -> list[str]:
        """Sentences for the folder's README."""
        return []

    def read_messages(self, folder: Path) -> Iterator[dict[str, Any]]:
        """The conversations as they were written: `messages`, `tools` or None, `sample_weight` or None.

        Raises:
            ValueError: the files are not what the trainer's documentation asks for.
        """
        raise NotImplementedError(self.name)

    @abstractmethod
    def read_tokens(self, folder: Path) -> Iterator[Trained]:
        """The masked tokens as they were written, a teacher's entries at the tokens that they predict.

        Raises:
            ValueError: the files are not what the trainer's documentation asks for.
        """

    @abstractmethod
    def load(self, folder: Path, plan: Plan, student: str | None) -> Iterator[Trained]:
        """The rows through the trainer's own loader, in order.

        Args:
            folder: what was exported.
            plan: what is in it.
            student: model whose tokenizer the trainer uses; conversations need it.

        Raises:
            ImportError: the trainer is not installed.
        """


def trained(ids: Any, labels: Any, loss_weight: Any = None, sample_weight: float | None = None) -> Trained:
    """A row from its labels and weights.

    Raises:
        ValueError: lengths differ, or a label is neither its token nor -100.

    >>> trained([5, 6, 7], [-100, 6, 7], [9.0, 0.5, 1.0], 2.0).weight_P.tolist()
    [0.0, 1.0, 2.0]
    """
    ids_P, labels_P = np.asarray(ids, np.int64), np.asarray(labels, np.int64)
    on_P = labels_P != NO_LOSS
    if ids_P.shape != labels_P.shape or (ids_P[on_P] != labels_P[on_P]).any():
        raise ValueError("a label is neither its own token nor -100")
    weight_P = np.ones(len(ids_P)) if loss_weight is None else np.asarray(loss_weight, np.float64)
    return Trained(ids_P, np.where(on_P, weight_P, 0.0) * (1.0 if sample_weight is None else sample_weight))


def chat_row(row: Conversation) -> dict[str, Any]:
    """A row as JSON files hold it: `messages`, and `tools` and call arguments as JSON text, so that all rows have one type."""
    values: dict[str, Any] = {"messages": [_message(message) for message in row.messages]}
    if row.tools is not None:
        values["tools"] = _json(row.tools)
    if row.weight is not None:
        values["sample_weight"] = row.weight
    if row.chat_template_kwargs:
        values["chat_template_kwargs"] = row.chat_template_kwargs
    return values


def _message(message: Mapping[str, Any]) -> dict[str, Any]:
    if "tool_calls" not in message:
        return dict(message)
    return {**message, "tool_calls": [_call(call) for call in message["tool_calls"]]}


def _call(call: Mapping[str, Any]) -> dict[str, Any]:
    if isinstance(call.get("function"), Mapping):
        return {**call, "function": _call(call["function"])}
    arguments = call.get("arguments")
    return (
        {**call, "arguments": arguments if isinstance(arguments, str) else _json(arguments)}
        if "arguments" in call
        else {**call}
    )


def _json(value: Any) -> str:
    import json

    # The separators of Jinja's `tojson` as chat templates use it.
    return json.dumps(value, ensure_ascii=False)


def uses_tools(row: Conversation) -> bool:
    """Whether a conversation defines or calls tools."""
    return row.tools is not None or any("tool_calls" in message for message in row.messages)


def write_jsonl(rows: Iterable[Mapping[str, Any]], path: Path) -> None:
    """Write one JSON object a line."""
    with path.open("wb") as handle:
        handle.writelines(orjson.dumps(row, option=orjson.OPT_APPEND_NEWLINE) for row in rows)


def read_jsonl(path: Path) -> Iterator[dict[str, Any]]:
    """Read what `write_jsonl` wrote."""
    with path.open("rb") as handle:
        for line in handle:
            yield orjson.loads(line)


def token_schema(plan: Plan, *, attention_mask: bool = False) -> pa.Schema:
    """Columns of masked tokens."""
    ids = pa.list_(pa.int32())
    fields = [("input_ids", ids), *([("attention_mask", ids)] if attention_mask else []), ("labels", ids)]
    fields += [("loss_weight", pa.list_(pa.float32()))] if plan.token_weights else []
    fields += [("sample_weight", pa.float64())] if plan.sample_weights else []
    if plan.topk:
        kinds = (pa.list_(pa.list_(pa.int32())), pa.list_(pa.list_(pa.float32())), pa.list_(pa.float32()))
        fields += zip(TOPK_COLUMNS, kinds, strict=True)
    return pa.schema(fields)


def with_attention_mask(batch: pa.RecordBatch) -> pa.RecordBatch:
    """The batch with a list of ones beside `input_ids`: rows are not padded."""
    ids = batch["input_ids"]
    ones = pa.array(np.ones(ids.offsets[-1].as_py() - ids.offsets[0].as_py(), np.int32))
    offsets = pa.array(np.asarray(ids.offsets) - ids.offsets[0].as_py(), pa.int32())
    return batch.append_column("attention_mask", pa.ListArray.from_arrays(offsets, ones))


def exact_columns(found: Sequence[str], wanted: Sequence[str], where: Path) -> None:
    """Raise unless the columns are exactly those a trainer asks for.

    Raises:
        ValueError: they are not.
    """
    if sorted(found) != sorted(wanted):
        raise ValueError(f"{where.name}: columns {', '.join(found)}; must be {', '.join(wanted)}")


def parquet_rows(path: Path) -> Iterator[dict[str, Any]]:
    """Rows of a Parquet file, batch by batch; per-token columns as arrays."""
    with open_pages(path) as file:
        for batch in file.iter_batches(batch_size=256):
            yield from arrow_rows(batch)


def arrow_rows(batch: pa.RecordBatch) -> Iterator[dict[str, Any]]:
    """Rows of a batch of tokens; per-token columns as arrays, lists of lists as Arrow's scalars, others as they are."""
    columns = {
        name: list(column)
        if pa.types.is_list(column.type) and pa.types.is_list(column.type.value_type)
        else [value.values.to_numpy(zero_copy_only=False) for value in column]
        if pa.types.is_list(column.type)
        else column.to_pylist()
        for name, column in zip(batch.schema.names, batch.columns, strict=True)
    }
    for values in zip(*columns.values(), strict=True):
        yield dict(zip(columns, values, strict=True))
