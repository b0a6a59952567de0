"""The column `messages` of a selection: the conversations that were scored, where the corpus had them in another layout.

Scores keep such a conversation as JSON text (`scored_messages`). In a selection it stands as `messages`, typed, so that
trainers read it; a column of that name that the corpus had stays as `messages_original`, and `messages_from` says what it was
made of.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import orjson
import pyarrow as pa

from trajscore.corpus import trajectory_from_row
from trajscore.corpus.columns import Observed
from trajscore.corpus.values import decoded_rows, table_from_rows

MESSAGES, SCORED, ORIGINAL = "messages", "scored_messages", "messages_original"


class ScoredConversations:
    """Puts the conversations that were scored into the column `messages`.

    Args:
        batches: all kept rows, columns `messages` and `scored_messages`: the type must hold all of them.
    """

    def __init__(self, batches: Iterable[pa.RecordBatch]) -> None:
        seen, self._made = Observed(), False
        for batch in batches:
            for value in _conversations(batch):
                seen.observe(value)
            self._made = self._made or (SCORED in batch.schema.names and batch[SCORED].null_count < batch.num_rows)
        self._field = seen.field(MESSAGES, MESSAGES)

    def schema(self, schema: pa.Schema) -> pa.Schema:
        """The schema of rows with this schema, afterwards."""
        return pa.schema([field for field, _ in self._fields(schema)], metadata=schema.metadata)

    def batch(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        """The rows with their conversations."""
        columns, fields = [], []
        for field, source in self._fields(batch.schema):
            fields.append(field)
            if source is not None:
                columns.append(batch[source])
                continue
            rows = [{MESSAGES: value} for value in _conversations(batch)]
            columns.append(table_from_rows(rows, pa.schema([self._field])).column(0).combine_chunks())
        return pa.RecordBatch.from_arrays(columns, schema=pa.schema(fields, metadata=batch.schema.metadata))

    def _fields(self, schema: pa.Schema) -> list[tuple[pa.Field, str | None]]:
        """Each field of the output with the input column it is copied from; None for the conversations."""
        fields: list[tuple[pa.Field, str | None]] = []
        for field in schema:
            if field.name == SCORED:
                if self._made:
                    fields.append((self._field, None))
            elif field.name == MESSAGES and self._made and SCORED in schema.names:
                fields.append((field.with_name(ORIGINAL), MESSAGES))
            else:
                fields.append((field, field.name))
        return fields


def conversation(row: Mapping[str, Any]) -> list[dict[str, Any]] | None:
    """The conversation of one row, None where it is none: as it was scored, else as the row itself reads."""
    if row.get(SCORED) is not None:
        scored: list[dict[str, Any]] = orjson.loads(row[SCORED])
        return scored
    return trajectory_from_row({name: value for name, value in row.items() if value is not None}).messages


def _conversations(batch: pa.RecordBatch) -> list[Any]:
    """The conversation of each row: as it was scored, else the column `messages`."""
    scored = batch[SCORED].to_pylist() if SCORED in batch.schema.names else [None] * batch.num_rows
    own: list[Any] = [None] * batch.num_rows
    if MESSAGES in batch.schema.names and any(value is None for value in scored):
        own = [row[MESSAGES] for row in decoded_rows(pa.Table.from_batches([batch]).select([MESSAGES]))]
    return [own[i] if text is None else orjson.loads(text) for i, text in enumerate(scored)]
