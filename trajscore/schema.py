"""Every column that scoring adds to a corpus, once: name, Arrow type, unit, bounds and meaning.

Also the statuses that a row can have, and the columns of the file of `mask`. It is the interface between scoring and
everything after it.
Axes: P input tokens of a row, N scored tokens of a row, S sentences of a row; scaffold tokens have an axis of their own.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from math import inf, isclose, log
from typing import Any

import pyarrow as pa

from trajscore.errors import UsageError, did_you_mean

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
    "incomplete_prompt": "columns beside the prompt, such as `context` or `options`, hold text that belongs to it",
    "rendered_text": "a chat template was applied to the text already; --rendered accept reads it as it is",
    "conflicting_text": "two places of the row hold different texts for the same thing, such as the system prompt",
    "no_trained_turn": "every turn of the assistant is marked as not trained on (weight 0, train or loss false)",
    "non_finite": "the model gave NaN or infinity for a scored token",
    "invalid_ids": "the token ids are no list of whole numbers, or one is none that the tokenizer makes",
    "mask_mismatch": "a mask, labels or log-probabilities do not fit the token ids that they belong to",
    "text_mismatch": "the text beside the token ids is another one, and --strict-text was given",
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
        impossible: whether minus infinity is a value: ln of a probability that may be 0.
    """

    name: str
    dtype: pa.DataType
    axis: str
    unit: str
    meaning: str
    lower: float | None = None
    upper: float | None = None
    flag: str = ""
    impossible: bool = False

    @property
    def nested(self) -> bool:
        """Whether it has a list of values, not one, at each place of its axis."""
        return bool(pa.types.is_list(self.dtype) and pa.types.is_list(self.dtype.value_type))

    @property
    def field(self) -> pa.Field:
        """The Arrow field, with unit and meaning in its metadata."""
        metadata = {"unit": self.unit, "meaning": self.meaning, "axis": self.axis}
        return pa.field(self.name, self.dtype, metadata=metadata)


_UINTS = pa.list_(pa.uint32())
_FLOATS = pa.list_(pa.float32())
_ID_LISTS = pa.list_(pa.list_(pa.int32()))
_FLOAT_LISTS = pa.list_(pa.list_(pa.float32()))


@dataclass(frozen=True)
class Extra:
    """A statistic that is computed when `--extra NAME` or `--extra NAME:VALUE` asks for it.

    Attributes:
        name: as it is typed before the colon.
        column: name of its column, `{}` where the value stands.
        unit: of the column.
        upper: largest value it can have.
        meaning: of the column, `{}` where the value stands.
        above, below: the value lies between them; None where it takes none.
        whole: whether the value is a whole number.
        usual: values that the tables list; any other that is allowed has a column too.
        two_models: whether it compares student and teacher.
        axis: what the column's values run over.
        lower: smallest value that the column can have.
    """

    name: str
    column: str
    unit: str
    upper: float
    meaning: str
    above: float | None = None
    below: float | None = None
    whole: bool = False
    usual: tuple[float, ...] = ()
    two_models: bool = True
    axis: str = "scored token"
    lower: float = 0

    def spelt(self, value: float | None) -> str:
        """As it is typed."""
        return self.name if value is None else f"{self.name}:{value:g}"

    def named(self, value: float | None) -> str:
        """The name of its column.

        >>> EXTRAS["jsd"].named(0.1), EXTRAS["kl_at"].named(2), EXTRAS["kl_at"].named(1.5)
        ('jsd_b01', 'kl_teacher_student_t2', 'kl_teacher_student_t1_5')
        """
        return self.column if value is None else self.column.format(_digits(value))

    def with_value(self, value: float | None) -> Column:
        """Its column; without a value where all values share one."""
        spelt = f"{self.name}:K" if value is None and self.above is not None else self.spelt(value)
        flag = f"{'--teacher MODEL ' if self.two_models else ''}--extra {spelt}"
        meaning = self.meaning if value is None else self.meaning.format(f"{value:g}")
        return Column(self.named(value), _FLOATS, self.axis, self.unit, meaning, self.lower, self.upper, flag)

    def allows(self, value: float | None) -> bool:
        """Whether it can be computed with this value."""
        if value is None or self.above is None or self.below is None:
            return value is None and self.above is None
        fits = self.above < value < self.below and (not self.whole or value == int(value))
        # Names of columns hold few digits, and Renyi's divergence of order 1 is the Kullback-Leibler divergence.
        return (
            fits and isclose(value, float(f"{value:.4g}"), rel_tol=1e-12) and not (self.name == "renyi" and value == 1)
        )

    @property
    def limits(self) -> str:
        """What can be typed."""
        if self.above is None or self.below is None:
            return self.name
        kind = "a whole number" if self.whole else "a number"
        other = " other than 1" if self.name == "renyi" else ""
        return f"{self.name}:X, X {kind} above {self.above:g} and below {self.below:g}{other}"


_BOUND = log(2) + 1e-6
EXTRAS: dict[str, Extra] = {
    each.name: each
    for each in (
        Extra("tv", "tv", "", 1 + 1e-6, "total variation of student and teacher: half the sum of |p - q|"),
        Extra(
            "hellinger",
            "hellinger",
            "",
            1 + 1e-6,
            "squared Hellinger distance of student and teacher: 1 - sum sqrt(p q)",
        ),
        Extra(
            "jsd",
            "jsd_b{}",
            "nats",
            _BOUND,
            "generalised Jensen-Shannon divergence b KL(teacher || m) + (1 - b) KL(student || m) with m = b teacher + "
            "(1 - b) student, b = {}: GKD's beta, the teacher's weight",
            0,
            1,
            usual=(0.1, 0.5, 0.9),
        ),
        Extra(
            "skew_kl",
            "skew_kl_a{}",
            "nats",
            inf,
            "KL(teacher || a teacher + (1 - a) student), a = {}",
            0,
            1,
            usual=(0.1,),
        ),
        Extra(
            "skew_rkl",
            "skew_rkl_a{}",
            "nats",
            inf,
            "KL(student || a student + (1 - a) teacher), a = {}",
            0,
            1,
            usual=(0.1,),
        ),
        Extra(
            "renyi",
            "renyi_teacher_student_a{}",
            "nats",
            inf,
            "Renyi divergence of order {} of the teacher relative to the student: ln(sum q^a p^(1 - a)) / (a - 1)",
            0,
            100,
            usual=(0.5, 2),
        ),
        Extra(
            "kl_at",
            "kl_teacher_student_t{}",
            "nats",
            inf,
            "KL(teacher || student) of logits divided by T = {}, times T^2",
            0,
            1000,
            usual=(2,),
        ),
        Extra(
            "standardised",
            "kl_standardised_t{}",
            "nats",
            inf,
            "KL(teacher || student) of logits standardised over the vocabulary and divided by T = {}, times T^2",
            0,
            1000,
            usual=(2,),
        ),
        Extra(
            "topk_mass",
            "teacher_mass_on_student_top{}",
            "",
            1 + 1e-6,
            "the teacher's probability of the student's {} most probable entries",
            0,
            1_000_000,
            whole=True,
            usual=(16,),
        ),
        Extra(
            "collision",
            "student_collision",
            "",
            1,
            "sum of the squared probabilities of the student's next-token distribution",
            two_models=False,
        ),
        Extra(
            "local",
            "student_local_sentence_logprob",
            "nats",
            0,
            "mean ln p over the student's tokens of each sentence, read after the prompt and the K sentences before it alone; "
            "null for one in which none starts",
            0,
            10_000,
            whole=True,
            two_models=False,
            axis="sentence",
            lower=-inf,
        ),
    )
}
"""Every statistic that can be asked for by name."""


def parse_extra(text: str) -> tuple[Extra, float | None]:
    """What `--extra` was given.

    Raises:
        UsageError: it is no known name, or a value that is not allowed.

    >>> extra, value = parse_extra("jsd:0.1")
    >>> extra.name, value
    ('jsd', 0.1)
    """
    name, colon, number = text.partition(":")
    extra = EXTRAS.get(name)
    if extra is None:
        raise UsageError(f"--extra {text}: {name!r} is not known.", did_you_mean(name, EXTRAS))
    try:
        value = float(number) if colon else None
    except ValueError:
        value = inf
    if not extra.allows(value):
        raise UsageError(f"--extra {text}: not a value that it takes.", f"Allowed: {extra.limits}.")
    return extra, value


def extra_column(text: str) -> str:
    """The name of the column that `--extra` writes. Raises as `parse_extra`.

    >>> extra_column("jsd:0.1"), extra_column("collision")
    ('jsd_b01', 'student_collision')
    """
    extra, value = parse_extra(text)
    return extra.named(value)


def _digits(value: float) -> str:
    """A number as names of columns have it: 01 for 0.1, 2 for 2, 1_5 for 1.5."""
    text = f"{value:g}"
    return f"0{text[2:]}" if text.startswith("0.") else text.replace(".", "_")


def _number(digits: str) -> float:
    return float(f"0.{digits[1:]}" if digits.startswith("0") else digits.replace("_", "."))


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
    Column(
        "status_detail",
        pa.string(),
        "row",
        "",
        "a sentence about the status; of a scored row only that its token ids and its text differ, else null",
    ),
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
    Column("response_words", pa.uint32(), "row", "", "words of the scored text, as white space separates them", 0, inf),
    Column("verification_words", pa.uint32(), "row", "", "how often `check` and `verify` stand in it", 0, inf),
    Column("exploration_words", pa.uint32(), "row", "", "how often `perhaps` and `might` stand in it", 0, inf),
    Column("conclusion_words", pa.uint32(), "row", "", "how often `therefore` and `since` stand in it", 0, inf),
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


def topk_columns(role: str, *, scaffold: bool = False) -> tuple[str, str, str]:
    """Names of the columns of a role's most probable entries: their ids, their log-probabilities, and ln of what is left.

    >>> topk_columns("teacher"), topk_columns("student", scaffold=True)[0]
    (('teacher_topk_ids', 'teacher_topk_logprobs', 'teacher_log_tail'), 'scaffold_topk_ids')
    """
    prefix = f"{role}_" if not scaffold else "scaffold_" if role == "student" else f"{role}_scaffold_"
    return f"{prefix}topk_ids", f"{prefix}topk_logprobs", f"{prefix}log_tail"


def _topk_columns(role: str) -> list[Column]:
    what = f"the {role}'s K most probable entries" + (", or the student's K" if role == "teacher" else "")
    flag = "--keep-topk K" if role == "student" else f"--{role} MODEL --keep-topk K"
    found = []
    for axis in ("scored token", "scaffold token"):
        ids, logprobs, tail = topk_columns(role, scaffold=axis == "scaffold token")
        found += [
            Column(
                ids,
                _ID_LISTS,
                axis,
                "",
                f"ids of {what}, from the most probable on, ties by the lower id",
                0,
                inf,
                flag,
            ),
            Column(
                logprobs,
                _FLOAT_LISTS,
                axis,
                "nats",
                f"ln p of these entries under the {role}, over the whole vocabulary, descending",
                -inf,
                0,
                flag,
                impossible=True,
            ),
            Column(
                tail,
                _FLOATS,
                axis,
                "nats",
                f"ln of the {role}'s probability of all other entries, minus infinity where there is none",
                -inf,
                0,
                flag,
                impossible=True,
            ),
        ]
    return found


NOT_SERVED = ("student_rank", "student_entropy", "scaffold_rank", "scaffold_entropy")
"""Columns that are always written but where the student is behind a server."""


def served_columns(role: str, mass: str = "topk_mass") -> tuple[str, str, str]:
    """Names of what the best entries of a served model say of its predictions: rank, entropy, and their mass, whose name is
    given.
    """
    return f"{role}_rank_topk", f"{role}_entropy_topk", mass


def _served_columns(role: str) -> list[Column]:
    flag = "--engine server" if role == "student" else f"--{role}-base-url URL"
    rank, entropy, _ = served_columns(role)
    return [
        Column(
            rank,
            _UINTS,
            "scored token",
            "",
            f"rank under the {role} where it is at most K, else K + 1, from the K best entries that its server gave",
            1,
            inf,
            flag,
        ),
        Column(
            entropy,
            _FLOATS,
            "scored token",
            "nats",
            f"entropy of the {role}'s prediction over its K best entries and one tail: a lower bound",
            0,
            log(2**31),
            flag,
        ),
    ]


def _sentence_column(role: str, flag: str) -> Column:
    meaning = f"mean ln p over the {role}'s tokens of each sentence; null for a sentence in which none starts"
    return Column(f"{role}_sentence_logprob", _FLOATS, "sentence", "nats", meaning, -inf, 0, flag)


_STUDENT_COLUMNS = (
    *_role_columns("student"),
    Column("sentence", _UINTS, "scored token", "", "index of the sentence in which each scored token starts", 0, inf),
    Column("phase", pa.list_(pa.uint8()), "scored token", "", "0 thinking, 1 marker such as </think>, 2 answer", 0, 2),
    _sentence_column("student", ""),
    EXTRAS["local"].with_value(None),
    EXTRAS["collision"].with_value(None),
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
    *_served_columns("student"),
    Column(
        "student_topk_mass",
        _FLOATS,
        "scored token",
        "",
        "the student's probability of its K best entries, where topk_mass is that of a teacher behind a server",
        0,
        1 + 1e-6,
        "--engine server with --teacher-base-url URL",
    ),
    *_topk_columns("student"),
    *(
        Column(
            f"{prefix}sampler_logprob",
            _FLOATS,
            axis,
            "nats",
            "ln p that came with the row, of what sampled it, as it was given",
            -inf,
            inf,
            "a column of the sampler's log-probabilities",
            impossible=True,
        )
        for prefix, axis in (("", "scored token"), ("scaffold_", "scaffold token"))
    ),
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
    *_served_columns("teacher"),
    Column(
        "topk_mass",
        _FLOATS,
        "scored token",
        "",
        "probability of the K best entries from which the columns ending in _topk are made, under the model whose best they "
        "are: the teacher's, or the student's where that alone is behind a server",
        0,
        1 + 1e-6,
        f"{_TOPK}, --engine server or --teacher-base-url URL",
    ),
    *_topk_columns("teacher"),
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
    _sentence_column("distilled", "--distilled MODEL"),
    *_role_columns("distilled"),
    *_scaffold_columns("distilled"),
)


class Columns(Mapping[str, Column]):
    """Every column by name: all that have a name of their own, in the order in which they are written, and those of extras with
    their usual values; looked up, also those with any other value.

    >>> "jsd_b03" in COLUMNS, COLUMNS["jsd_b03"].flag, "jsd_b3" in COLUMNS
    (True, '--teacher MODEL --extra jsd:0.3', False)
    """

    def __init__(self, columns: Iterable[Column]) -> None:
        self._listed = {column.name: column for column in columns}
        self._patterns = [
            (re.compile(re.escape(each.column).replace(r"\{\}", r"(\d+(?:_\d+)?)")), each)
            for each in EXTRAS.values()
            if "{}" in each.column
        ]

    def __getitem__(self, name: str) -> Column:
        if name in self._listed:
            return self._listed[name]
        for pattern, extra in self._patterns:
            match = pattern.fullmatch(name) if isinstance(name, str) else None
            if match and extra.allows(_number(match[1])) and extra.named(_number(match[1])) == name:
                return extra.with_value(_number(match[1]))
        raise KeyError(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._listed)

    def __len__(self) -> int:
        return len(self._listed)


COLUMNS = Columns(
    (
        *_ROW_COLUMNS,
        *_STUDENT_COLUMNS,
        *_OTHER_COLUMNS,
        *(each.with_value(value) for each in EXTRAS.values() if each.two_models for value in each.usual or (None,)),
    )
)
"""Every column trajscore can write, by name, in the order in which it is written."""


IDENTITY = frozenset({"id", "prompt_id", "teacher", "correct", "messages_from", "scored_messages"})
"""Columns of ours that a selection holds too: what was found out about a row as it was read."""


def flags_for(columns: Iterable[str]) -> list[str]:
    """The flags of `score` that write these columns, each once; those of the corpus's own columns as `a column NAME`.

    >>> flags_for(["student_rank", "student_collision", "step_rewards"])
    ['--extra collision', 'a column step_rewards']
    """
    own = {name: f"a column {name}" for name in columns if name not in COLUMNS or name == "correct"}
    return list(dict.fromkeys(flag for name in columns if (flag := own.get(name) or COLUMNS[name].flag)))


def score_fields(extra: Iterable[str] = (), storage: str = "float32") -> list[pa.Field]:
    """Arrow fields that scoring writes, in order.

    Args:
        extra: names of columns that are written only when asked for.
        storage: one of `STORAGES`; with `float16` the metadata of rounded columns states their error as `precision`.

    >>> [field.name for field in score_fields()][:3]
    ['id', 'prompt_id', 'teacher']
    """
    wanted = dict.fromkeys(extra)
    listed = [name for name, column in COLUMNS.items() if not column.flag or name in wanted]
    fields = [COLUMNS[name].field for name in (*listed, *(name for name in wanted if name not in listed))]
    return [
        _stated(field) if storage == "float16" and field.type in (_FLOATS, _FLOAT_LISTS) else field for field in fields
    ]


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


SELECTION_METADATA = "trajscore.selection"
"""Where a Parquet file of selected rows keeps what decided."""

MASK_METADATA = "trajscore.mask"
"""Where a Parquet file keeps how it was made."""

_MASK_FIELDS = (
    ("id", pa.string(), "name of the trajectory"),
    ("prompt_id", pa.string(), "name of the prompt"),
    ("teacher", pa.string(), "who wrote the trajectory; null when unknown"),
    ("input_ids", pa.list_(pa.int32()), "the whole rendered conversation in the student's tokens"),
    ("labels", pa.list_(pa.int32()), f"input_ids where there is loss, else {NO_LOSS}; unshifted"),
    ("loss_weight", pa.list_(pa.float32()), "weight of each label's loss, 0 where there is none"),
    (
        "teacher_topk_ids",
        _ID_LISTS,
        "ids of the teacher's best entries at each label, from the best on; empty elsewhere",
    ),
    ("teacher_topk_logprobs", _FLOAT_LISTS, "ln p of these entries under the teacher, over the whole vocabulary"),
    ("teacher_log_tail", _FLOATS, "ln of the teacher's probability of all other entries; null where there is no label"),
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
