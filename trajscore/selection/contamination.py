"""`select --exclude FILE`: prompts that share a run of words with an evaluation set, which nobody should train on.

Words are compared without case, punctuation and spacing: apostrophes and commas inside numbers vanish, everything else that is
neither letter nor digit separates, and each character of scripts without spaces is a word. A text of fewer words than the run
counts if it is the same as a whole. System prompts are left out on both sides: they are instructions, not questions.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa

from trajscore.corpus import decoded_rows, read_rows
from trajscore.errors import UsageError
from trajscore.schema import OK
from trajscore.scores.source import ScoreSource
from trajscore.selection.conversations import conversation
from trajscore.selection.kept_rows import read_kept

LEAST_WORDS = 3
"""Words that a text must have to be compared: a prompt `Hello` is no contamination."""

_WITHIN = re.compile(r"['\u2019\u02bc`]|(?<=\d)[,\u00a0\u202f](?=\d)")
_WORD = re.compile(r"[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]|[^\W_\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]+")
_INSTRUCTIONS = ("system", "developer", "system_prompt")


def words_of(text: str) -> list[str]:
    """The words of a text as they are compared.

    >>> words_of("Tom's 1,200  apples -- HOW many\\nper day?")
    ['toms', '1200', 'apples', 'how', 'many', 'per', 'day']
    """
    return _WORD.findall(_WITHIN.sub("", unicodedata.normalize("NFKC", text).casefold()))


class EvaluationSet:
    """The runs of words of evaluation sets.

    Args:
        files: data sets in any format that a corpus may have; every text of their rows counts, nested ones too.
        length: words of a run.

    Raises:
        UsageError: a file does not exist, or holds no text of at least `LEAST_WORDS` words.
        DataError: a file is broken.
    """

    def __init__(self, files: Sequence[str | Path], length: int) -> None:
        self.length = length
        self._runs: set[bytes] = set()
        self._short: set[bytes] = set()
        for file in files:
            before = len(self._runs) + len(self._short)
            for row in read_rows(file):
                for text in _texts(row):
                    words = words_of(text)
                    self._runs.update(map(_digest, self._runs_of(words)))
                    if LEAST_WORDS <= len(words) < length:
                        self._short.add(_digest(words))
            if len(self._runs) + len(self._short) == before:
                raise UsageError(
                    f"--exclude {file}: no text of at least {LEAST_WORDS} words that was not there before.",
                    "Name an evaluation set: rows with its questions.",
                )

    def shared(self, text: str) -> str | None:
        """The first run of words that a text shares with the sets; None where it shares none.

        >>> import json, tempfile, pathlib
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     file = pathlib.Path(folder) / "test.jsonl"
        ...     _ = file.write_text(json.dumps({"question": "How many apples has Tom, who had two and ate one?"}))
        ...     tests = EvaluationSet([file], 5)
        >>> tests.shared("Say: how many APPLES has tom?"), tests.shared("How many pears has Tom?")
        ('how many apples has tom', None)
        """
        words = words_of(text)
        if len(words) < self.length:
            return " ".join(words) if len(words) >= LEAST_WORDS and _digest(words) in self._short else None
        found = next((run for run in self._runs_of(words) if _digest(run) in self._runs), None)
        return None if found is None else " ".join(found)

    def _runs_of(self, words: list[str]) -> Iterator[list[str]]:
        return (words[start : start + self.length] for start in range(len(words) - self.length + 1))


def _digest(words: Sequence[str]) -> bytes:
    return blake2b(" ".join(words).encode(), digest_size=12).digest()


def _texts(value: Any) -> Iterator[str]:
    """Every text in a row of an evaluation set, without instructions."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        if value.get("role", value.get("from")) not in _INSTRUCTIONS:
            for name, each in value.items():
                if name not in _INSTRUCTIONS:
                    yield from _texts(each)
    elif isinstance(value, Sequence) and not isinstance(value, bytes):
        for each in value:
            yield from _texts(each)


@dataclass(frozen=True)
class Contamination:
    """Which prompts share words with the evaluation sets.

    Attributes:
        prompts: those that do, and the words, by `prompt_id`.
        unread: prompts without a text, such as those of rows of token ids, which were not compared.
    """

    prompts: dict[str, str]
    unread: int

    def marked(self, table: pl.DataFrame) -> pl.DataFrame:
        """The small table with `contaminated` (bool)."""
        named = pl.Series(list(self.prompts), dtype=pl.String)
        return table.with_columns(contaminated=pl.col("prompt_id").is_in(named.implode()).fill_null(False))

    def notes(self) -> list[str]:
        """Sentences about it, for the summary."""
        found = []
        if self.prompts:
            (words, times), *_ = Counter(self.prompts.values()).most_common(1)
            share = "prompt shares" if len(self.prompts) == 1 else "prompts share"
            shared = f'{len(self.prompts):,} {share} words with --exclude, {times:,} of them "{words}"'
            found.append(
                shared + ("; are these words of an instruction?" if times > max(1, len(self.prompts) // 2) else "")
            )
        if self.unread:
            found.append(f"{self.unread:,} prompts have no text that could be compared with --exclude: they were not")
        return found


def find_contamination(source: ScoreSource, table: pl.DataFrame, tests: EvaluationSet) -> Contamination:
    """Compare the prompt of every scored row, each prompt once.

    Args:
        source: the scores.
        table: the small table: `row`, `prompt_id`, `status`.
        tests: the evaluation sets.
    """
    first = table.filter(pl.col("status") == OK, pl.col("prompt_id").is_not_null()).unique("prompt_id", keep="first")
    prompts, unread = dict[str, str](), 0
    for row in _rows(source, first.select("row", "prompt_id").sort("row")):
        texts = _asked(row)
        unread += not texts
        shared = next((words for text in texts if (words := tests.shared(text))), None)
        if shared is not None:
            prompts[row["prompt_id"]] = shared
    return Contamination(prompts, unread)


def _rows(source: ScoreSource, wanted: pl.DataFrame) -> Iterator[dict[str, Any]]:
    """The corpus's columns of these rows, in order."""
    if source.paths:
        for batch in read_kept(source.paths, source.output_columns, wanted):
            yield from decoded_rows(pa.Table.from_batches([batch]))
        return
    number = "trajscore.row"
    frame = source.frame.select(source.output_columns).with_row_index(number)
    kept = frame.filter(pl.col(number).is_in(wanted["row"].implode())).drop(number)
    for frame_batch in kept.collect_batches(maintain_order=True, engine="streaming"):
        yield from frame_batch.iter_rows(named=True)


def _asked(row: Mapping[str, Any]) -> list[str]:
    """What the prompt asks: the text of every turn but the system's and the assistant's."""
    turns = [each for each in conversation(row) or () if each["role"] not in (*_INSTRUCTIONS, "assistant")]
    return [text for text in _texts([each.get("content") for each in turns]) if text.strip()]
