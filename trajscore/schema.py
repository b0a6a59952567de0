"""Every column that scoring adds to a corpus, once: name, Arrow type, unit, bounds and meaning.

Also the statuses that a row can have, and the columns of the file of `mask`. It is the interface between scoring and
everything after it.
Axes: P input tokens of a row, N scored tokens of a row, S sentences of a row; scaffold tokens have an axis of their own.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from math import inf, log
from typing import Any

import pyarrow as pa

SCHEMA_VERSION = 2
"""Raised whenever a stored column changes its name, type or meaning; folders of two versions are never mixed."""

OK = "ok"
"""The status of a scored row. Every other status is the reason why the row could not be scored."""

REFUSED = "refused:"
"""Before a status: the reason why a row that was not scored is neither kept nor masked nor traced."""

NO_LOSS = -100
"""The label of a token without loss, in every trainer."""

STATUSES: dict[str, str] = {
    OK: "scored",
    "empty_response": "the assistant's text has no token to score",
    "too_long": "longer than --max-model-len, and --on-overlong is refuse",
    "template_lost_text": "the chat template drops or changes text of a message, so training would not see it",
    "template_error": "the chat template refuses the conversation",
    "tokenizer_error": "the tokenizer gives up on the text",
    "no_assistant_turn": "the conversation has no message of the assistant",
    "no_assistant_span": "the assistant's turns cannot be located in the rendered text",
    "control_token_text": "the text holds the name of a control token, which this tokenizer cannot keep as text",
    "unknown_role": "a message has a role that is not system, developer, user, assistant, tool, function or ipython",
    "invalid_messages": "the messages are not a list of {role, content}",
    "invalid_tools": "the tools are not a list of definitions",
    "not_text": "a message holds an image or another part that is not text",
    "not_storable": "a value cannot be stored: half of a surrogate pair, bytes that are not UTF-8, nesting beyond 100 levels, "
    "or a number too long to be read",
    "no_known_layout": "none of the known columns is there",
    "duplicate_id": "an earlier row has the same id and the same text",
    "placeholder_prompt": "the prompt is null, empty or `-`: its text was left out of the data set",
    "rendered_text": "a chat template was applied to the text already; --rendered accept reads it as it is",
    "conflicting_text": "two places of the row hold different texts for the same thing, such as the system prompt",
    "no_trained_turn": "every turn of the assistant is marked as not trained on (weight 0, train or loss false)",
    "non_finite": "the model gave NaN or infinity for a scored token",
}
"""Every status a row can have, with what it means."""


SIGNIFICANT_BITS = 11
"""Of float16, the leading one included."""

STORAGES = ("float32", "float16")
"""Precision in which lists of floats are kept: as computed, or with float16's significant bits in the same type."""


@dataclass(frozen=True)
class Column:
    """One stored column.

    Attributes:
        name: the column's name in the Parquet files.
        dtype: its Arrow type.
        axis: what its values run over: `row`, `input token`, `scored token`, `scaffold token`, `sentence` or `chunk`.
        unit: unit of its values, empty when they have none.
        lower: smallest value allowed (inclusive), None where bounds make no sense.
        upper: largest value allowed (inclusive).
        meaning: one sentence for the column's metadata and the README.
        flag: what makes `trajscore score` write it; empty for columns that are always written.
    """

    name: str
    dtype: pa.DataType
    axis: str
    unit: str
    meaning: str
    lower: float | None = None
    upper: float | None = None
    flag: str = ""

    @property
    def field(self) -> pa.Field:
        """The Arrow field, with unit and meaning in its metadata."""
        metadata = {"unit": self.unit, "meaning": self.meaning, "axis": self.axis}
        return pa.field(self.name, self.dtype, metadata=metadata)


_UINTS = pa.list_(pa.uint32())
_FLOATS = pa.list_(pa.float32())

_ROW_COLUMNS = (
    Column("id", pa.string(), "row", "", "unique name of the trajectory; a hash of the row where the input has none"),
    Column("prompt_id", pa.string(), "row", "", "name of the prompt; a hash of all before the first assistant turn"),
    Column("teacher", pa.string(), "row", "", "who wrote the trajectory; null when unknown"),
    Column(
        "correct",
        pa.bool_(),
        "row",
        "",
        "whether the trajectory is right; null when unknown",
        flag="a column that says so",
    ),
    Column("status", pa.string(), "row", "", "ok, or the reason why the row could not be scored"),
    Column("status_detail", pa.string(), "row", "", "a sentence about the status; null for scored rows"),
    Column("truncated", pa.bool_(), "row", "", "the rendered text was cut at the maximum model length"),
    Column(
        "input_ids",
        pa.list_(pa.int32()),
        "input token",
        "",
        "the whole rendered conversation in the student's tokens",
        0,
        inf,
    ),
    Column("positions", _UINTS, "scored token", "", "index into input_ids of each scored token", 1, inf),
    Column("n_tokens", pa.uint32(), "row", "tokens", "number of scored tokens", 0, inf),
    Column(
        "messages_from",
        pa.string(),
        "row",
        "",
        "columns out of which the conversation was made; null where it is the column `messages` as it stands",
        flag="a corpus in another layout than messages",
    ),
    Column(
        "scored_messages",
        pa.string(),
        "row",
        "",
        "the conversation as it was scored, as JSON text; null where it is the column `messages` as it stands",
        flag="a corpus in another layout than messages",
    ),
    Column(
        "response_compression", pa.float32(), "row", "", "bytes of the scored text / bytes of it under zlib", 0, inf
    ),
    Column(
        "repeated_lines", pa.float32(), "row", "", "share of the scored text's non-empty lines that repeat one", 0, 1
    ),
    Column(
        "repeated_ngrams",
        pa.float32(),
        "row",
        "",
        "share of the scored text's n-grams of 20 bytes that repeat one of the same line",
        0,
        1,
    ),
)

_STATISTICS = (
    ("rank", _UINTS, "", "1 + number of vocabulary entries with a strictly larger logit, unclipped", 1, inf),
    ("surprisal", _FLOATS, "nats", "-ln p(token | prefix)", 0, inf),
    ("entropy", _FLOATS, "nats", "entropy of the whole next-token distribution, exact", 0, log(2**31)),
)
SCAFFOLD_KINDS = ("written by the template", "end-of-turn marker", "after the marker")
"""The values of the column `scaffold_kind`, by number."""

SCAFFOLD_MARKER = 1
"""The value of `scaffold_kind` at an end-of-turn marker."""

_DIVERGENCES = (
    ("kl_student_teacher", "KL(student || teacher)", inf),
    ("kl_teacher_student", "KL(teacher || student)", inf),
    ("js", "Jensen-Shannon divergence of student and teacher", log(2) + 1e-6),
)
_TOPK = "--teacher MODEL --divergence topk:K"


def _role_columns(role: str) -> list[Column]:
    flag = "" if role == "student" else f"--{role} MODEL"
    return [
        Column(f"{role}_{name}", dtype, "scored token", unit, f"{meaning}, under the {role}", low, up, flag)
        for name, dtype, unit, meaning, low, up in _STATISTICS
    ]


def _scaffold_columns(role: str) -> list[Column]:
    prefix, flag = ("", "") if role == "student" else (f"{role}_", f"--{role} MODEL")
    return [
        Column(f"{prefix}scaffold_{name}", dtype, "scaffold token", unit, f"{meaning}, under the {role}", low, up, flag)
        for name, dtype, unit, meaning, low, up in _STATISTICS
    ]


def _sentence_column(role: str, flag: str) -> Column:
    meaning = f"mean ln p over the {role}'s tokens of each sentence; null for a sentence in which none starts"
    return Column(f"{role}_sentence_logprob", _FLOATS, "sentence", "nats", meaning, -inf, 0, flag)


_STUDENT_COLUMNS = (
    *_role_columns("student"),
    Column("sentence", _UINTS, "scored token", "", "index of the sentence in which each scored token starts", 0, inf),
    Column("phase", pa.list_(pa.uint8()), "scored token", "", "0 thinking, 1 marker such as </think>, 2 answer", 0, 2),
    _sentence_column("student", ""),
    Column(
        "student_collision",
        _FLOATS,
        "scored token",
        "",
        "sum of the squared probabilities of the student's next-token distribution",
        0,
        1,
        "--extra collision",
    ),
    Column(
        "student_unconditional_surprisal",
        _FLOATS,
        "scored token",
        "nats",
        "-ln p(token | its turn before it) under the student, the conversation before the turn left out",
        0,
        inf,
        "--unconditional",
    ),
    Column(
        "scaffold_positions",
        _UINTS,
        "scaffold token",
        "",
        "index into input_ids of each token that training sees of a scored turn besides its text; no metric reads it",
        1,
        inf,
    ),
    Column(
        "scaffold_kind",
        pa.list_(pa.uint8()),
        "scaffold token",
        "",
        ", ".join(f"{number} {kind}" for number, kind in enumerate(SCAFFOLD_KINDS)),
        0,
        2,
    ),
    *_scaffold_columns("student"),
)

_OTHER_COLUMNS = (
    _sentence_column("teacher", "--teacher MODEL"),
    *_role_columns("teacher"),
    *_scaffold_columns("teacher"),
    *(
        Column(name, _FLOATS, "scored token", "nats", f"{what}, full vocabulary", 0, up, "--teacher MODEL")
        for name, what, up in _DIVERGENCES
    ),
    *(
        Column(
            f"{name}_topk",
            _FLOATS,
            "scored token",
            "nats",
            f"{what}, over the teacher's K best and one tail",
            0,
            up,
            _TOPK,
        )
        for name, what, up in _DIVERGENCES
    ),
    Column(
        "topk_mass", _FLOATS, "scored token", "", "the teacher's probability of its K best entries", 0, 1 + 1e-6, _TOPK
    ),
    Column(
        "chunk_start",
        _UINTS,
        "chunk",
        "",
        "index into positions of the first scored token of each chunk",
        0,
        inf,
        "--align bytes",
    ),
    *(
        Column(
            f"{role}_chunk_logprob",
            _FLOATS,
            "chunk",
            "nats",
            f"ln p of each chunk under the {role}",
            -inf,
            0,
            "--align bytes",
        )
        for role in ("student", "teacher")
    ),
    Column(
        "chunk_binary_ce",
        _FLOATS,
        "chunk",
        "nats",
        "binarised cross-entropy of the two models' chunk likelihoods (ALM, temperature 100)",
        0,
        inf,
        "--align bytes",
    ),
    _sentence_column("distilled", "--distilled MODEL"),
    *_role_columns("distilled"),
    *_scaffold_columns("distilled"),
)

COLUMNS: dict[str, Column] = {column.name: column for column in (*_ROW_COLUMNS, *_STUDENT_COLUMNS, *_OTHER_COLUMNS)}
"""Every column trajscore can write, by name, in the order in which it is written."""


def score_fields(extra: Iterable[str] = (), storage: str = "float32") -> list[pa.Field]:
    """Arrow fields that scoring writes, in order.

    Args:
        extra: names of columns that are written only when asked for.
        storage: one of `STORAGES`; with `float16` the metadata of rounded columns states their error as `precision`.

    >>> [field.name for field in score_fields()][:3]
    ['id', 'prompt_id', 'teacher']
    """
    wanted = set(extra)
    fields = [column.field for name, column in COLUMNS.items() if not column.flag or name in wanted]
    return [_stated(field) if storage == "float16" and field.type == _FLOATS else field for field in fields]


def _stated(field: pa.Field) -> pa.Field:
    return field.with_metadata(
        {
            **field.metadata,
            "precision": f"rounded to {SIGNIFICANT_BITS} significant bits: relative error at most 2^-{SIGNIFICANT_BITS}",
        }
    )


def file_metadata(run: dict[str, object]) -> dict[str, str]:
    """Key-value metadata of one part: where it belongs, and the position convention every reader needs."""
    return {
        "trajscore.schema_version": str(SCHEMA_VERSION),
        "trajscore.run": json.dumps(run, sort_keys=True),
        "trajscore.position_convention": "the value at index i describes the token input_ids[positions[i]], "
        "predicted from the tokens before it",
    }


MASK_METADATA = "trajscore.mask"
"""Where a Parquet file keeps how it was made."""

_MASK_FIELDS = (
    ("id", pa.string(), "name of the trajectory"),
    ("prompt_id", pa.string(), "name of the prompt"),
    ("teacher", pa.string(), "who wrote the trajectory; null when unknown"),
    ("input_ids", pa.list_(pa.int32()), "the whole rendered conversation in the student's tokens"),
    ("labels", pa.list_(pa.int32()), f"input_ids where there is loss, else {NO_LOSS}; unshifted"),
    ("loss_weight", pa.list_(pa.float32()), "weight of each label's loss, 0 where there is none"),
    ("sample_weight", pa.float64(), "weight of the trajectory"),
)


def mask_schema(columns: Collection[str], metadata: dict[str, Any]) -> pa.Schema:
    """The Arrow schema of a file of masks.

    Args:
        columns: which of the columns it holds.
        metadata: how it was made, kept as JSON.
    """
    fields = [
        pa.field(name, dtype, metadata={"meaning": meaning}) for name, dtype, meaning in _MASK_FIELDS if name in columns
    ]
    return pa.schema(fields, metadata={MASK_METADATA: json.dumps(metadata, separators=(",", ":"), ensure_ascii=False)})
