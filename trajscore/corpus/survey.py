"""Opening a corpus: a survey reads all of it once, before anything is scored.

It settles what one row cannot know: a schema for all rows, how each kind of row is read, which ids were met before, whether
the columns make sense, and that every file can be read to its end. It keeps eight bytes per row, and reads rows that hold
several trajectories, or ids that repeat, a second time. Of a streamed hub data set only the first rows are looked at.
"""

from __future__ import annotations

import hashlib
import logging
from array import array
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from math import isnan
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from trajscore.corpus import layouts
from trajscore.corpus.columns import Observed, SchemaSurvey
from trajscore.corpus.hub import HubStream, HubTable
from trajscore.corpus.identity import FieldNames, canonical_json, id_hash, value_at
from trajscore.corpus.kinds import OPEN, Kind, Kinds, may_hold_turns
from trajscore.corpus.locate import HubId, locate, split_of, teachers_by_path
from trajscore.corpus.reading import Corpus, Repeats, RowReader, SourceRows
from trajscore.corpus.recognition import CONVERSATION, NOTHING, REFERENCE, Reading, readings
from trajscore.corpus.sources import Block, RowSource, SourceOptions, naming, open_file
from trajscore.corpus.stored_names import stored_names
from trajscore.corpus.trajectories import KNOWN, parts_of
from trajscore.corpus.turns import messages_in, unread_keys
from trajscore.corpus.unplaced import refuse_unplaced
from trajscore.corpus.values import always_fits, decoded_rows
from trajscore.errors import UsageError
from trajscore.schema import IDENTITY

logger = logging.getLogger("trajscore")


_DEFAULTS = SourceOptions()


def open_corpus(data: Sequence[str | Path] | str | Path, options: SourceOptions = _DEFAULTS) -> Corpus:
    """Opens a corpus and surveys it: everything that would stop a run because of the data is found here.

    Args:
        data: files, folders, globs and hub ids, one or several.
        options: remapped columns, limit, and what hub ids need.

    Raises:
        UsageError: a path that does not exist or comes twice, options that fit no row, a corpus without rows or without any
            row that has a known layout.
        DataError: a file that is broken; it names file and line.
        MissingExtraError: a hub id without `datasets` installed.
    """
    if options.limit is not None and options.limit < 1:
        raise UsageError(f"--limit is {options.limit}; it must be at least 1.")
    found = locate(data, options.split)
    if options.streaming and any(isinstance(source, HubId) for source in found):
        if len(found) > 1:
            raise UsageError("--streaming reads a single hub data set.", "Give it alone, or leave out --streaming.")
        return _open_stream(HubStream(str(getattr(found[0], "name", "")), options), options)
    sources = [HubTable(item.name, options) if isinstance(item, HubId) else open_file(item) for item in found]
    if not any(isinstance(source, HubTable) for source in sources):
        _warn_unused(options)
        if options.split and not any(split_of(source.name) for source in sources):
            logger.warning("--split says nothing about files whose names tell no split, and is not used")
    return _Survey(options).corpus(sources)


def _warn_unused(options: SourceOptions) -> None:
    flags = {"config_name": "config-name", "streaming": "streaming", "revision": "data-revision"}
    for name, flag in flags.items():
        if getattr(options, name) != getattr(_DEFAULTS, name):
            logger.warning("--%s says nothing about local files and is not used", flag)


def _open_stream(source: HubStream, options: SourceOptions) -> Corpus:
    seen = SchemaSurvey()
    first = next(source.blocks(0, options.limit), None)
    if first is None:
        raise UsageError(f"{source.label}: the data set has no rows.", "Check --split and --config-name.")
    seen.observe(first.rows)
    schema = source.declared or seen.schema()
    reader = RowReader(options, {})
    rows = first.as_written()
    kinds = Counter(reader.kind(row) for row in rows)
    columns = dict.fromkeys(name for row in rows for name, value in row.items() if value is not None)
    found = readings(kinds, columns, options.fields)
    refuse_unplaced(found, options.fields)
    # Whether a later row has a value cannot be known; a column that is there is taken to be used.
    _check_columns(schema.names, schema.names, options.fields)
    _check_readable(found, kinds, schema.names)
    is_truth = "correct" in schema.names and pa.types.is_boolean(schema.field("correct").type)
    return Corpus(
        schema=schema,
        n_rows=None,
        rows_read=None,
        fingerprint={"sources": [source.identity()], "limit": options.limit},
        columns=_columns_of(found, kinds, seen, {}),
        parts=[SourceRows(source, options.limit)],
        reader=RowReader(options, found),
        repeats=None,
        renamed=stored_names(schema.names, _meant(found.values(), options, is_truth)),
    )


class _Survey:
    """One reading of all sources, in order, up to the limit."""

    def __init__(self, options: SourceOptions) -> None:
        self._options = options
        self._schema = SchemaSurvey()
        self._hashes = array("Q")
        self._kinds: Counter[Kind] = Counter()
        self._reader = RowReader(options, {})
        self._arrow_kinds = Kinds(options.fields.paths())
        self._grades: dict[str, set[Any]] = defaultdict(set)
        self._parsed: dict[str, Observed] = defaultdict(Observed)

    def corpus(self, sources: Sequence[RowSource]) -> Corpus:
        """Reads the sources and makes the corpus of them."""
        parts, identities = [], []
        for source in sources:
            left = None if self._options.limit is None else self._options.limit - len(self._hashes)
            if left == 0:
                break
            hashed, before = hashlib.sha256(), len(self._hashes)
            for block in source.blocks(0, left, hashed):
                with naming(source, len(self._hashes)):
                    self._take(source, block)
            rows = len(self._hashes) - before
            parts.append(SourceRows(source, rows))
            identity = source.identity()
            identities.append(
                {**identity, "rows": rows} | ({"sha256": hashed.hexdigest()} if "file" in identity else {})
            )
        rows_read = len(self._hashes)
        if rows_read == 0:
            raise UsageError(f"{', '.join(source.label for source in sources)}: no rows.", "Give a corpus with rows.")
        names = list(self._schema.observed)
        filled = [name for name in names if self._schema.has_values(name)]
        _check_columns(names, filled, self._options.fields)
        fields = self._options.fields
        found = readings(self._kinds, filled, fields)
        refuse_unplaced(found, fields)
        _check_readable(found, self._kinds, names)
        found = self._graded(found)
        again = _SecondReading(parts, RowReader(self._options, found), self._repeated_rows())
        several = any(reading.exploded or len(reading.branches) > 1 for reading in found.values())
        if several or again.wanted:
            again.read(several)
            found = {kind: again.completed(reading) for kind, reading in found.items()}
        if self._options.correct_at is None:
            self._check_lists_of_grades(found)
        ends = np.cumsum(np.frombuffer(again.counts, np.uint32), dtype=np.int64) if several else None
        reader = RowReader(self._options, found, surveyed=True)
        corpus = Corpus(
            schema=again.schema(self._schema),
            n_rows=rows_read if ends is None else int(ends[-1]),
            rows_read=rows_read,
            fingerprint={"sources": identities, "rows": rows_read},
            columns=_columns_of(found, self._kinds, self._schema, self._parsed),
            parts=parts,
            reader=reader,
            repeats=again.repeats,
            ends=ends,
            teachers=teachers_by_path([part.source.name for part in parts]) if self._options.teacher_from else None,
            renamed=stored_names(
                names, _meant(found.values(), self._options, self._says_truth()) | (IDENTITY - set(filled))
            ),
        )
        if all(reading.rank == CONVERSATION and not reading.branches for reading in found.values()):
            _refuse_prompts_alone(corpus, self._kinds, names)
        return corpus

    def _take(self, source: RowSource, block: Block) -> None:
        self._schema.observe(block.rows)
        for name, text in _messages_as_text(block.rows):
            self._parsed[name].observe(messages_in(text))
        dotted = any(path not in self._schema.observed for path in self._options.fields.paths())
        if isinstance(block.rows, pa.Table) and not dotted:
            self._kinds.update(dict(self._arrow_kinds.of(block.rows)))
            rows = self._needed(block)
        else:
            rows = block.as_written()
            self._kinds.update(map(self._reader.kind, rows))
        self._hashes.extend(id_hash(self._reader.name(row, source)) for row in rows)
        for name in self._grade_columns():
            if isinstance(block.rows, list):
                self._grades[name].update(_shown(value_at(row, name)) for row in rows)
            elif name in block.rows.column_names:
                self._grades[name].update(map(_shown, _distinct(block.rows.column(name))))
            if len(self._grades[name]) > 1000:
                self._grades[name] = set(list(self._grades[name])[:1000])

    def _says_truth(self) -> bool:
        """Whether the column `correct` holds nothing but what the one of scores does."""
        return all(value is None or value in (0, 1) for value in self._grades.get("correct", ()))

    def _grade_columns(self) -> list[str]:
        given = self._options.fields.correct
        return [given] if given else [name for name in self._schema.observed if name.lower() in layouts.CORRECT]

    def _needed(self, block: Block) -> list[dict[str, Any]]:
        """The block's rows, or only their ids where these are all there.

        Columns of which a value may not fit into Python are always read: it must not stop the run later.
        """
        if isinstance(block.rows, pa.Table):
            own = self._reader.id_columns(block.rows.column_names)
            if own and all(name in block.rows.column_names for name in own):
                doubtful = [field.name for field in block.rows.schema if not always_fits(field.type)]
                ids = decoded_rows(block.rows.select(list(dict.fromkeys([*own, *doubtful]))))
                if all(row[name] not in (None, "") for row in ids for name in own):
                    return ids
        return block.as_written()

    def _repeated_rows(self) -> npt.NDArray[np.int64]:
        """Numbers of the rows whose id another row has too."""
        hashes = np.frombuffer(self._hashes, dtype=np.uint64)
        _, inverse, counts = np.unique(hashes, return_inverse=True, return_counts=True)
        return np.flatnonzero(counts[inverse] > 1)

    def _graded(self, found: dict[Kind, Reading]) -> dict[Kind, Reading]:
        """The readings without columns whose numbers say no right and wrong."""
        if self._options.correct_at is not None:
            return found
        unclear = {
            name: bad for name, values in self._grades.items() if (bad := [v for v in values if not _is_grade(v)])
        }
        apart = any(reading.exploded for reading in found.values())
        for name, bad in unclear.items():
            if apart and bad == ["a list"]:
                continue  # whether one goes with each response is known when all rows were read again
            if self._must_be_grades(name):
                raise _no_grades(name, bad[0])
            if bad[0] != "a list":
                logger.info("column %s is not taken for `correct`: it holds %r", name, bad[0])
        numbers = {name for name, bad in unclear.items() if bad != ["a list"]}
        return {
            kind: replace(reading, correct=tuple(name for name in reading.correct if name not in numbers))
            for kind, reading in found.items()
        }

    def _must_be_grades(self, name: str) -> bool:
        return name.lower() == "correct" or name == self._options.fields.correct

    def _check_lists_of_grades(self, found: Mapping[Kind, Reading]) -> None:
        """Raises UsageError where a row's `correct` is a list that does not go with its responses."""
        apart = {name for reading in found.values() for name in reading.exploded}
        for name, values in self._grades.items():
            if "a list" in values and name not in apart and self._must_be_grades(name):
                raise _no_grades(name, "a list")


def _no_grades(name: str, value: Any) -> UsageError:
    return UsageError(
        f"The corpus has {repr(value)[:80]} in its column {name!r}; true, false, 1, 0 and null are allowed.",
        "For other numbers say from which on a trajectory is right: --correct-at 0.5; or leave the column out: "
        f"--ignore-columns {name}.",
    )


_BEFORE_LIST = frozenset("[ \n\r\t")
"""How a text may begin that is a list."""


def _messages_as_text(rows: list[dict[str, Any]] | pa.Table) -> Iterator[tuple[str, str]]:
    """Texts that may be lists of messages, with their columns."""
    if isinstance(rows, list):
        names = dict.fromkeys(name for row in rows for name in row)
        for name in [name for name in names if may_hold_turns(name.lower())]:
            for row in rows:
                value = row.get(name)
                if type(value) is str and value[:1] in _BEFORE_LIST and value.lstrip()[:1] == "[":
                    yield name, value
        return
    for name in rows.column_names:
        column = rows.column(name)
        if may_hold_turns(name.lower()) and (pa.types.is_string(column.type) or pa.types.is_large_string(column.type)):
            lists = column.filter(pc.match_substring_regex(column, r"^\s*\["))
            yield from ((name, text) for text in lists.to_pylist())


def _distinct(column: pa.ChunkedArray) -> list[Any]:
    try:
        return list(pc.unique(column).to_pylist())
    except pa.ArrowNotImplementedError:
        return list(column.slice(0, 100).to_pylist())


_PLAIN = frozenset({bool, int, float, str})


def _shown(value: Any) -> Any:
    """A value of `correct` as it is compared: lists and objects by their kind."""
    if value is None or type(value) in _PLAIN:
        return value
    return "a list" if isinstance(value, list | tuple) else "an object" if isinstance(value, Mapping) else value


def _is_grade(value: Any) -> bool:
    if isinstance(value, bool) or value is None:
        return True
    if isinstance(value, int | float):
        return value in (0, 1, -1) or (isinstance(value, float) and isnan(value))
    return isinstance(value, str) and value not in ("a list", "an object")


class _SecondReading:
    """What takes a second look: how many trajectories each row holds, and what rows under one id differ in.

    Args:
        parts: the sources.
        reader: rows -> trajectories.
        wanted: numbers of rows whose ids repeat, ascending.

    Attributes:
        counts: trajectories of each row.
        repeats: what came of the repeated ids.
    """

    def __init__(self, parts: Sequence[SourceRows], reader: RowReader, wanted: npt.NDArray[np.int64]) -> None:
        self._parts, self._reader = parts, reader
        self.wanted = set(wanted.tolist())
        self.counts = array("I")
        self.repeats = Repeats({}, {})
        self._exploded: dict[str, Observed] = {}
        self._uneven: set[str] = set()
        self._follow: set[str] = set()

    def read(self, several: bool) -> None:
        """Read all rows, or as many as it takes for those that were asked for."""
        row, held = 0, dict[str, list[tuple[int, str, str]]]()
        for part in self._parts:
            for block in part.source.blocks(0, part.rows):
                numbers = range(row, row + len(block))
                row = numbers.stop
                if not several and self.wanted.isdisjoint(numbers):
                    continue
                for number, each in zip(numbers, block.as_written(), strict=True):
                    if several:
                        self._count(each)
                    if number in self.wanted:
                        name = self._reader.name(each, part.source)
                        held.setdefault(name, []).append((number, *self._reader.held(each, name)))
        self.repeats = _told_apart(held)

    def _count(self, row: Mapping[str, Any]) -> None:
        reading = self._reader.reading(row)
        self.counts.append(sum(1 for _ in parts_of(row, reading)))
        counting = row.get(reading.exploded[0]) if reading.exploded else None
        if not isinstance(counting, list):
            return
        for name, value in row.items():
            if isinstance(value, list) and name not in self._uneven and name not in reading.used():
                if name not in reading.exploded and (
                    len(value) != len(counting) or any(isinstance(v, Mapping) for v in value)
                ):
                    self._uneven.add(name)
                    continue
                self._follow.add(name)
        for name in dict.fromkeys([*reading.exploded, *self._follow]):
            value = row.get(name)
            seen = self._exploded.setdefault(name, Observed())
            for item in value if isinstance(value, list) else [value]:
                seen.observe(item)

    def completed(self, reading: Reading) -> Reading:
        """The reading with every list that was as long as the responses in all rows."""
        if not reading.exploded:
            return reading
        return replace(
            reading, exploded=tuple(dict.fromkeys([*reading.exploded, *sorted(self._follow - self._uneven)]))
        )

    def schema(self, survey: SchemaSurvey) -> pa.Schema:
        """The schema of the rows, each with its own element of each list that was taken apart."""
        schema = survey.schema()
        for name in set(self._exploded) - self._uneven:
            place = schema.get_field_index(name)
            if place >= 0:
                schema = schema.set(place, self._exploded[name].field(name, name))
        return schema


def _told_apart(held: Mapping[str, Sequence[tuple[int, str, str]]]) -> Repeats:
    """Rows under one id: copies of an earlier one, or different trajectories, each with a number of its own."""
    first, own = dict[int, int](), dict[int, tuple[int, bool]]()
    kinds = 0
    for rows in held.values():
        texts: dict[str, int] = {}
        same_prompt = len({prompt for _, _, prompt in rows}) == 1
        different = len({text for _, text, _ in rows}) > 1
        kinds += different
        for row, text, _ in rows:
            if text in texts:
                first[row] = texts[text]
            else:
                if different:
                    own[row] = (len(texts), same_prompt)
                texts[text] = row
    if kinds:
        logger.info(
            "%s for several different rows and will be taken for the prompt's; the rows are named ID#0, ID#1, ...",
            "1 id stands" if kinds == 1 else f"{kinds} ids stand",
        )
    return Repeats(first, own)


def _columns_of(
    found: Mapping[Kind, Reading], kinds: Mapping[Kind, int], schema: SchemaSurvey, parsed: Mapping[str, Observed]
) -> list[dict[str, Any]]:
    """What `Corpus.columns` holds: readings with the numbers of rows and with text that nobody reads.

    Args:
        parsed: what texts hold that are lists of messages, by column.
    """
    known = {name for kind in kinds for name, _ in kind} | {"messages_from"}
    others = [name for name, seen in schema.observed.items() if name not in known and seen.holds_text()]
    rows: Counter[str] = Counter()
    alike: dict[str, Reading] = {}
    for kind, reading in found.items():
        said = canonical_json(reading.describe())
        rows[said] += kinds[kind]
        alike.setdefault(said, reading)
    entries = []
    for said, count in rows.most_common():
        reading = alike[said]
        entry = {"rows": count, **reading.describe()}
        entry["teacher"] = [name for name in entry.get("teacher", []) if "." not in name or _holds(schema, name)]
        if not entry["teacher"]:
            del entry["teacher"]
        read = {
            *reading.used(),
            *reading.exploded,
            *reading.teachers,
            *reading.correct,
            *"+".join(reading.id[:1]).split("+"),
            reading.prompt_id,
        }
        read |= {branch.correct for branch in reading.branches} | {reading.tools, layouts.TEMPLATE_KWARGS}
        left = [*entry.pop("not_read", []), *(name for name in others if name not in read)]
        if left:
            entry["not_read"] = left
        turns = (reading.messages, reading.history, *reading.prompt, *reading.response)
        seen = [each[name] for name in turns if name for each in (schema.observed, parsed) if name in each]
        keys = [key for each in seen for key in unread_keys(each)]
        for name in reading.exploded:
            inner = schema.observed[name].keys() if name in schema.observed else {}
            paths = {f"{name}.{key}": each for key, each in inner.items()}
            read |= {f"{name}.{key}" for key in layouts.REASONING_KEYS if name not in reading.response}
            keys += [path for path, each in paths.items() if path not in read and each.holds_text()]
        if keys:
            entry["unread_keys"] = list(dict.fromkeys(keys))
        if reading.rank == REFERENCE:
            entry["note"] = f"no generated response was found, so the reference {reading.response[0]!r} is scored"
        entries.append(entry)
    return entries


def _holds(schema: SchemaSurvey, path: str) -> bool:
    """Whether a dotted path leads to a value; a column of that very name counts too."""
    first, *keys = path.split(".")
    seen = schema.observed.get(path) or schema.observed.get(first)
    for key in keys if path not in schema.observed else []:
        seen = seen.keys().get(key) if seen else None
    return bool(seen and seen.kinds)


def _refuse_prompts_alone(corpus: Corpus, kinds: Mapping[Kind, int], names: Sequence[str]) -> None:
    """Raises UsageError where no conversation of the corpus has a turn of the assistant."""
    if not all(
        kind_type == OPEN for kind in kinds for name, kind_type in kind if name in ("messages", "conversations")
    ):
        return
    prompts = 0
    for chunk in corpus.chunks(1000):
        for each in chunk.trajectories:
            if (
                each.text is not None
                or each.tokens is not None
                or any(turn["role"] == "assistant" for turn in each.messages or [])
            ):
                return
            prompts += not each.refusal
    if not prompts:
        return
    raise _no_response("Its conversations are prompts: none has a turn of the assistant.", names)


def _no_response(what: str, names: Sequence[str]) -> UsageError:
    return UsageError(
        f"The corpus holds no response. {what} Columns found: {', '.join(names)}.",
        "Prompts alone, as in data sets for reinforcement learning, cannot be scored: score what a model answered to them. "
        "If a column does hold the response, name it: --response-field COLUMN.",
    )


def _check_readable(found: Mapping[Kind, Reading], kinds: Mapping[Kind, int], names: Sequence[str]) -> None:
    """Raises UsageError unless some kind of row has something to score."""
    if any(reading.rank > NOTHING for reading in found.values()):
        return
    prompts = dict.fromkeys(name for reading in found.values() for name in reading.prompt)
    if prompts:
        raise _no_response(f"It has prompts ({', '.join(prompts)}) and nothing that a model answered to them.", names)
    raise UsageError(
        f"No row of the corpus has a layout that trajscore knows. Columns found: {', '.join(names)}.",
        f"Known layouts: {KNOWN}. --messages-field names a column of messages under another name; --prompt-field and "
        "--response-field name a prompt and its response.",
    )


def _check_columns(names: Sequence[str], filled: Sequence[str], fields: FieldNames) -> None:
    """Raises UsageError unless the columns that flags name are there."""
    found = f"Columns found: {', '.join(names)}."
    for flag, name in fields.given().items():
        if name not in filled and name.partition(".")[0] not in filled:
            raise UsageError(f"{flag} {name}: no row has a value in that column.", found)
    for name in fields.ignored:
        if name not in names:
            raise UsageError(f"--ignore-columns {name}: the corpus has no such column.", found)


def _meant(readings: Iterable[Reading], options: SourceOptions, is_truth: bool) -> set[str]:
    """Columns of the corpus that mean what ours of the same name do, which take their place in scores."""
    fields, found = options.fields, list(readings)
    meant = {"messages_from"} | ({"id"} if fields.id in (None, "id") else set())
    meant |= {"teacher"} if fields.teacher in (None, "teacher") else set()
    meant |= {"prompt_id"} & {str(reading.prompt_id) for reading in found}
    meant |= (
        {"input_ids"} if any(reading.tokens and reading.tokens.whole == "input_ids" for reading in found) else set()
    )
    graded = any("correct" in reading.correct for reading in found) and options.correct_at is None
    return (meant | ({"correct"} if graded and is_truth else set())) - set(fields.ignored)
