"""Very many cheap inputs: `python -m tests.fuzz --inputs 1000000` mutates rows, replies, cache lines, conditions, manifests and
recipes, hands each to what reads it, and prints how many there were. Any error but ours ends it with the input; so does a file
that is other than it was written, or gone, or new, and a control character that reaches a terminal.

What Hypothesis draws in `make fuzz` is deeper, one input at a time; this is wide.
"""

from __future__ import annotations

import argparse
import contextlib
import gzip
import io
import json
import logging
import random
import sys
import tempfile
import time
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import polars as pl

from tests.fuzz.inputs import HALF, ODD_TEXTS
from tests.helpers.paths import DATA, MODELS
from tests.helpers.score_tables import random_rows, write_folder
from trajscore.corpus import open_corpus
from trajscore.display.writer import OUT
from trajscore.errors import TrajscoreError
from trajscore.io.call_cache import CallCache
from trajscore.metrics.conditions import FUNCTIONS, parse_condition
from trajscore.options.groups import RenderOptions
from trajscore.recipes.options import EXAMPLE
from trajscore.recipes.reading import read_recipe
from trajscore.rendering.renderer import Renderer
from trajscore.schema import STATUSES
from trajscore.scores import MANIFEST, read_manifest
from trajscore.scoring.rows import render
from trajscore.skills.calls import Call, Reply, answer_problem, judge
from trajscore.skills.server import ChatServer

ODD: tuple[Any, ...] = (
    *ODD_TEXTS, None, True, False, 0, -1, 1.5, 2**31, 2**63, 2**70, -(2**64), 1e308, 5e-324, float("nan"), float("inf"),
    [], {}, [[]], [{}], {"": ""}, [None], HALF, "a" + HALF, "\x1b]52;c;eA==\x07", "=1+1", "text", ["text", "text"],
    {"role": "assistant", "content": "x"}, [{"role": "user", "content": None}, {"role": "assistant", "content": ["x"]}],
)  # fmt: skip
SHARES = {"rows": 0.25, "replies": 0.35, "cache lines": 0.29, "conditions": 0.06, "manifests": 0.04, "recipes": 0.01}
_AT_ONCE = 500
_RENDERED = 0.01

Check = Callable[[random.Random, Path, int], Iterator[str]]
"""Tries some inputs and says of each what came of it."""


def mutated(value: Any, draw: random.Random, depth: int = 0) -> Any:
    """A JSON value with something in it that does not belong there: replaced, removed, wrapped, renamed or put twice."""
    if isinstance(value, dict) and value and (depth == 0 or draw.random() < 0.8):
        key = draw.choice(list(value))
        kind = draw.random()
        if kind < 0.1:
            return {name: each for name, each in value.items() if name != key}
        if kind < 0.2:
            return {(draw.choice(NAMES) if name == key else name): each for name, each in value.items()}
        if kind < 0.3:
            return {**value, draw.choice(NAMES): draw.choice(ODD)}
        return {**value, key: mutated(value[key], draw, depth + 1)}
    if isinstance(value, list) and value and draw.random() < 0.8:
        place = draw.randrange(len(value))
        if draw.random() < 0.2:
            return value[:place] + value[place + 1 :] if draw.random() < 0.5 else [*value, value[place]]
        return [*value[:place], mutated(value[place], draw, depth + 1), *value[place + 1 :]]
    if isinstance(value, str) and draw.random() < 0.3:
        place = draw.randint(0, len(value))
        return value[:place] + draw.choice(ODD_TEXTS) + value[place:]
    return [value] if draw.random() < 0.1 else draw.choice(ODD)


NAMES = (
    *("messages", "conversations", "prompt", "response", "completion", "text", "id", "prompt_id", "teacher", "correct"),
    *(
        "problem",
        "solution",
        "answer",
        "output",
        "role",
        "content",
        "from",
        "value",
        "tools",
        "weight",
        "system",
        "history",
    ),
    *(
        "reasoning_content",
        "thinking",
        "input_ids",
        "labels",
        "chat_template_kwargs",
        "status",
        "key",
        "",
        "\x1b[2J",
        "a.b",
    ),
)


def damaged(data: bytes, draw: random.Random) -> bytes:
    """Bytes of which some were changed, cut out, or put twice."""
    place = draw.randint(0, len(data))
    length = min(draw.choice((1, 1, 2, 8, 64)), len(data) - place)
    kind = draw.random()
    if kind < 0.4:
        return data[:place] + draw.randbytes(length) + data[place + length :]
    if kind < 0.6:
        return data[:place] + data[place + length :]
    if kind < 0.8:
        return data[:place] + data[place : place + length] * draw.choice((2, 50)) + data[place + length :]
    return data[:place] + draw.choice(ODD_TEXTS).encode() + data[place:]


def _said(error: TrajscoreError) -> str:
    """That an error says something, and nothing to a terminal."""
    assert error.problem.strip()
    _shown(lambda: OUT.line(f"{error}\n{error.hint}"))
    return "refused with a message"


def _shown(show: Callable[[], None]) -> None:
    """What the one writer gives a terminal: lines, and nothing that a terminal would obey."""
    with contextlib.redirect_stdout(io.StringIO()) as screen:
        show()
    text = screen.getvalue()
    assert text.strip()
    assert text.replace("\n", "").isprintable(), ascii(text)


def _wrote(path: Path, data: bytes) -> Callable[[], None]:
    """Writes a file of the user; what it gives checks that the folder still holds that file as it was, and no new one."""
    path.write_bytes(data)
    names = {each.name for each in path.parent.iterdir()}

    def check() -> None:
        assert path.read_bytes() == data, f"{path} was changed"
        assert {each.name for each in path.parent.iterdir()} == names, f"files came or went beside {path}"

    return check


def _layouts() -> list[dict[str, Any]]:
    first = json.loads((DATA / "trajectories.jsonl").read_text("utf-8").split("\n")[0])
    question, answer = "What is 2 + 2?", "<think>\n2 + 2 is 4.\n</think>\n\n4"
    turns = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return [
        first,
        {"conversations": [{"from": "human", "value": question}, {"from": "gpt", "value": answer}], "id": 7},
        {"prompt": question, "response": answer, "correct": True},
        {"prompt": [turns[0]], "completion": [turns[1]], "teacher": "m"},
        {"problem": question, "solution": answer, "answer": "4"},
        {"instruction": "Add.", "input": "2 and 2", "output": answer},
        {"prompt": question, "generations": [answer, "4"], "correct": [1, 0]},
        {"messages": [turns[0], {"role": "assistant", "content": "4", "reasoning_content": "2 + 2"}], "tools": []},
        {"text": answer},
        {"input_ids": [1, 2, 3, 4], "labels": [-100, -100, 3, 4]},
    ]  # fmt: skip


def rows(draw: random.Random, folder: Path, count: int) -> Iterator[str]:
    """Rows of one layout in a small file: one row may refuse it whole. Some are rendered."""
    count = min(count, draw.randint(3, 12))
    layout, path = draw.choice(_LAYOUTS), folder / "rows.jsonl"
    lines = [json.dumps({**layout, "n": n} if draw.random() < 0.3 else mutated(layout, draw)) for n in range(count)]
    if draw.random() < 0.1:
        place = draw.randrange(count)
        lines[place] = damaged(lines[place].encode(), draw).decode("utf-8", "surrogateescape").replace("\n", " ")
    unchanged = _wrote(path, "\n".join(lines).encode("utf-8", "surrogateescape") + b"\n")
    try:
        corpus = open_corpus([path])
        read = 0
        for chunk in corpus.chunks(200):
            assert len(chunk.trajectories) == chunk.table.num_rows
            read += len(chunk.trajectories)
            for each in chunk.trajectories:
                assert each.refusal in ("", *STATUSES)
                if draw.random() < _RENDERED:
                    assert render(each, _renderer()).status in STATUSES
                    _shown(lambda row=each: OUT.parts([f"row: {row}"]))  # type: ignore[misc]
                    _shown(lambda row=each: OUT.json({"row": f"{row}".encode(errors="replace").decode()}))  # type: ignore[misc]
                yield "refused as a row" if each.refusal else "read"
        assert read == corpus.n_rows
    except TrajscoreError as error:
        yield from [f"in a file that was {_said(error)}"] * count
    unchanged()


_LAYOUTS = _layouts()
_RENDERERS: list[Renderer] = []


def _renderer() -> Renderer:
    if not _RENDERERS:
        _RENDERERS.append(Renderer(str(MODELS / "student"), RenderOptions(max_model_len=2048)))
    return _RENDERERS[0]


_SCHEMA = {
    "type": "object",
    "properties": {
        "reason": {"type": "string"},
        "skills": {"type": "array", "items": {"type": "string", "enum": ["a"]}},
    },
    "required": ["reason", "skills"],
}
_CALL = Call("label", "1", "prompt", _SCHEMA, 0, {"model": "m", "max_tokens": 100, "temperature": 0, "seed": 0})
_MESSAGE = {"role": "assistant", "content": '{"reason": "r", "skills": ["a"]}', "refusal": None}
_COMPLETION = {
    "choices": [{"index": 0, "message": _MESSAGE, "finish_reason": "stop"}],
    "usage": {"prompt_tokens": 7, "completion_tokens": 3},
}


def replies(draw: random.Random, folder: Path, count: int) -> Iterator[str]:
    """Bodies of status 200, some of them compressed."""
    from trajscore.io.http import _decoder, _UnusableBody

    asker = ChatServer("http://127.0.0.1:1/v1")
    for _ in range(count):
        value = mutated(_COMPLETION, draw)
        if draw.random() < 0.3:
            message = {**_MESSAGE, "content": json.dumps(mutated({"reason": "r", "skills": ["a"]}, draw))}
            value = {"choices": [{"message": message}]}
        body = json.dumps(value).encode()
        if draw.random() < 0.3:
            body = damaged(body, draw)
        if draw.random() < 0.2:
            encoding, packed = draw.choice((("gzip", gzip.compress(body, 1)), ("deflate", zlib.compress(body, 1))))
            try:
                pieces = _decoder(encoding if draw.random() < 0.9 else draw.choice(ODD_TEXTS))
                sent = damaged(packed, draw) if draw.random() < 0.5 else packed
                body = b"".join([*pieces(sent), *pieces(None)])
            except _UnusableBody:
                yield "unusable as it is encoded"
                continue
        outcome = asker._asker._read(body, asker._reply)
        answer = judge(_CALL, outcome.value or Reply(failure=outcome.failure, unusable=outcome.unusable))
        assert answer_problem({"key": "k", **vars(answer)}) == ""
        yield answer.status


def cache_lines(draw: random.Random, folder: Path, count: int) -> Iterator[str]:
    """Lines of a file of answered calls."""
    path = folder / "calls.jsonl"
    path.unlink(missing_ok=True)
    record: dict[str, Any] = {"key": "k", "task": "label", "status": "ok", "value": {"a": ["b"]}, "detail": ""}
    record |= {"prompt_tokens": 3, "completion_tokens": 4}
    lines = []
    for number in range(count):
        line = json.dumps(mutated({**record, "key": f"k{number}"}, draw)).encode()
        lines.append((damaged(line, draw) if draw.random() < 0.4 else line).replace(b"\n", b" "))
    data = b"\n".join(lines) + draw.choice((b"\n", b""))
    path.write_bytes(data)
    try:
        with CallCache(path, answer_problem) as cache:
            kept = [number for number in range(count) if f"k{number}" in cache]
            for number in kept:
                assert answer_problem(cache.get(f"k{number}")) == ""
        yield from ["kept"] * len(kept)
        yield from ["skipped"] * (count - len(kept))
        # Half a line at the end is what a kill leaves, and is cut off.
        assert path.read_bytes() == data[: data.rfind(b"\n") + 1], f"{path} was changed"
    except TrajscoreError as error:
        yield from [f"in a file that was {_said(error)}"] * count
        assert path.read_bytes() == data, f"{path} was changed"


_WORDS = (
    *(
        "rsr",
        "n_tokens",
        "teacher",
        "id",
        "1",
        "0.5",
        "-3",
        "'a'",
        "'it''s'",
        "NULL",
        "TRUE",
        "*",
        "+",
        "-",
        "/",
        "%",
        "<",
        ">=",
    ),
    *(
        "=",
        "<>",
        "AND",
        "OR",
        "NOT",
        "IN",
        "('a', 'b')",
        "BETWEEN",
        "LIKE",
        "'a%'",
        "IS",
        "(",
        ")",
        ",",
        "CASE",
        "WHEN",
        "THEN",
    ),
    *(
        "ELSE",
        "END",
        "CAST",
        "AS",
        "INT",
        "::",
        "[",
        "]",
        ".",
        "--",
        "/*",
        ";",
        "SELECT",
        "FROM",
        "read_csv('/etc/passwd')",
    ),
    *(
        "AVG(rsr)",
        "ROW_NUMBER() OVER ()",
        "EXISTS",
        "UNION",
        '"id"',
        "\0",
        "\x1b[2J",
        "\u202e",
        "INTERVAL",
        "DATE",
        "1e999",
    ),
    *sorted(FUNCTIONS),
)
_CONDITIONS = (
    "rsr < 3 AND teacher = 'a'", "n_tokens BETWEEN 10 AND 500 OR id LIKE 'a%'", "LOWER(teacher) IN ('a', 'b')",
    "CASE WHEN rsr > 1 THEN TRUE ELSE n_tokens > 2 END", "NOT (teacher IS NULL) AND ABS(rsr - 1) * 2 <= 3",
    "STRPOS(id, 'x') > 0 AND COALESCE(teacher, 'none') <> 'b'",
)  # fmt: skip
_FRAME = pl.DataFrame(
    {"id": ["a", "bx", "c"], "teacher": ["a", None, "b"], "rsr": [1.0, None, 5.0], "n_tokens": [3, 100, 7]}
)


def conditions(draw: random.Random, folder: Path, count: int) -> Iterator[str]:
    """What `--where` takes: what is accepted says of a row the same whatever other rows there are."""
    for _ in range(count):
        words = draw.choice(_CONDITIONS).split(" ")
        for _ in range(draw.choice((1, 1, 2, 4))):
            place = draw.randrange(len(words) + 1)
            words[place : place + draw.choice((0, 0, 1, 2))] = [draw.choice(_WORDS)]
        try:
            condition = parse_condition(draw.choice((" ", " ", "", "\n")).join(words))
        except TrajscoreError as error:
            yield _said(error)
            continue
        try:
            whole = _FRAME.select(x=condition)["x"].to_list()
        except (pl.exceptions.PolarsError, pl.exceptions.PanicException):
            yield "accepted, and not of these columns"
            continue
        if len(whole) == _FRAME.height:
            single = [_FRAME[row : row + 1].select(x=condition)["x"].to_list()[0] for row in range(_FRAME.height)]
            assert repr(whole) == repr(single), (condition, whole, single)
        yield "accepted"


def manifests(draw: random.Random, folder: Path, count: int) -> Iterator[str]:
    """`manifest.json` of a score folder."""
    where = folder / "scores"
    if not where.exists():
        write_folder(where, random_rows(6, seed=3), part_rows=3)
        (where / "whole").write_bytes((where / MANIFEST).read_bytes())
    whole = (where / "whole").read_bytes()
    value = json.loads(whole)
    for _ in range(count):
        made = damaged(whole, draw) if draw.random() < 0.5 else json.dumps(mutated(value, draw)).encode()
        unchanged = _wrote(where / MANIFEST, made)
        try:
            manifest = read_manifest(where)
        except TrajscoreError as error:
            yield _said(error)
            continue
        finally:
            unchanged()
        assert manifest.rows == sum(part.rows for part in manifest.parts)
        assert len(manifest.run) == 16
        json.dumps(manifest.totals)
        yield "read"


def recipes(draw: random.Random, folder: Path, count: int) -> Iterator[str]:
    """Recipes of `trajscore run`."""
    path = folder / "recipe.yaml"
    for _ in range(count):
        data = _RECIPE
        for _ in range(draw.choice((1, 1, 3))):
            data = damaged(data, draw)
        unchanged = _wrote(path, data)
        try:
            assert read_recipe(path).steps
        except TrajscoreError as error:
            yield _said(error)
            continue
        finally:
            unchanged()
        yield "read"


_RECIPE = EXAMPLE.encode()

CHECKS: dict[str, Check] = {
    "rows": rows, "replies": replies, "cache lines": cache_lines, "conditions": conditions, "manifests": manifests,
    "recipes": recipes,
}  # fmt: skip


def run(inputs: int, seed: int, folder: Path) -> Counter[tuple[str, str]]:
    """Try so many inputs of all kinds; (kind, what came of it) -> how many.

    Raises:
        AssertionError: something was lost, or said to a terminal.
        Exception: an error that is not ours; its notes name the seed.
    """
    found: Counter[tuple[str, str]] = Counter()
    here_too = folder / "of the user"
    here_too.mkdir()
    unchanged = _wrote(here_too / "notes.jsonl", b'{"text": "nobody names this file"}\n')
    for name, check in CHECKS.items():
        left = max(round(inputs * SHARES[name]), 1)
        number = 0
        while left > 0:
            here = f"{seed} {name} {number}"
            try:
                with contextlib.chdir(here_too):
                    outcomes = list(check(random.Random(here), folder, min(_AT_ONCE, left)))
                unchanged()
            except BaseException as error:
                error.add_note(f"seed {here!r}, {min(_AT_ONCE, left)} inputs")
                raise
            found.update((name, outcome) for outcome in outcomes)
            left -= len(outcomes)
            number += 1
        print(
            f"{name}: {sum(count for (kind, _), count in found.items() if kind == name):,}", file=sys.stderr, flush=True
        )
    return found


def main() -> None:
    """Try very many inputs and print the counts."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--inputs", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=None, help="another one each time by default")
    options = parser.parse_args()
    seed = random.randrange(1 << 30) if options.seed is None else options.seed
    logging.getLogger("trajscore").setLevel(logging.CRITICAL)
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="trajscore-fuzz-") as folder:
        found = run(options.inputs, seed, Path(folder))
    print(f"seed {seed}: {sum(found.values()):,} inputs, {time.monotonic() - began:.0f} s\n")
    print("| input | outcome | count |\n|---|---|---:|")
    for (kind, outcome), count in sorted(found.items()):
        print(f"| {kind} | {outcome} | {count:,} |")


if __name__ == "__main__":
    main()
