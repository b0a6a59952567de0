"""Score folders, masks, selections and tables that were damaged or never were any: every command says so, with our errors."""

from __future__ import annotations

import contextlib
import json
import logging
import shutil
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

import trajscore as ts
from tests.fuzz.inputs import ODD_VALUES, SCALARS, TEXTS, VALUES, damaged, examples, odd_tables, parquet, spelt_json
from tests.helpers.mask_files import mask_rows, write_mask
from tests.helpers.paths import MODELS
from tests.helpers.score_tables import random_rows, refused, trajectory, write_folder
from tests.ranking.test_page import Page
from trajscore.errors import TrajscoreError
from trajscore.ranking.csv_tables import read_performance, read_values
from trajscore.rendering.alignment import spoken_tokens
from trajscore.scores import MANIFEST, read_manifest
from trajscore.viewing.inspect import inspect

TOKENIZER = MODELS / "student" / "tokenizer.json"


@pytest.fixture(autouse=True)
def _quiet(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL, logger="trajscore")


@pytest.fixture(scope="module")
def scores(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_folder(tmp_path_factory.mktemp("whole") / "scores", random_rows(6, seed=3), part_rows=3)
    shutil.copy(TOKENIZER, folder)
    return folder


def _fails_well(*actions: Callable[[], Any]) -> None:
    """Each does what it should or raises an error of ours that says what was wrong."""
    for action in actions:
        try:
            action()
        except TrajscoreError as error:
            message = error.problem
        else:
            message = "no error"
        assert message


def _commands(folder: Path, out: Path) -> list[Callable[[], Any]]:
    return [
        partial(read_manifest, folder),
        partial(inspect, folder, worst=1, out=out / "page.html"),
        partial(ts.select, folder, metric="rsr", out=out / "kept.jsonl", decisions=out / "decisions.jsonl"),
        partial(ts.mask, folder, "entropy", keep=0.5, out=out / "mask.parquet"),
        partial(ts.report, folder, replicates=10, out=out / "report.html"),
    ]


@st.composite
def _manifests(draw: st.DrawFn) -> Callable[[bytes], bytes]:
    """What becomes of a manifest's bytes."""
    kind = draw(st.sampled_from(["bytes", "value", "change", "change", "change", "damage"]))
    if kind == "bytes":
        data = draw(st.binary(max_size=40))
        return lambda whole: data
    if kind == "value":
        data = spelt_json(draw(ODD_VALUES))
        return lambda whole: data
    if kind == "damage":
        seed = draw(st.integers(0, 2**32))
        length = draw(st.integers(1, 8))
        return lambda whole: whole[: seed % len(whole)] + whole[seed % len(whole) + length :]
    keys = ["schema_version", "settings", "parts", "input_columns", "rows_in", "complete", "environment", "more"]
    key, value = draw(st.sampled_from(keys)), draw(ODD_VALUES)
    of_part = draw(st.none() | st.sampled_from(["file", "rows", "tokens", "first_row", "sha256", "refused", "more"]))
    inside = draw(st.none() | st.sampled_from(["student", "others", "rendering"]))

    def changed(whole: bytes) -> bytes:
        manifest = json.loads(whole)
        if of_part:
            manifest["parts"][-1][of_part] = value
        elif inside:
            manifest["settings"][inside] = value
        else:
            manifest[key] = value
        return spelt_json(manifest)

    return changed


@examples(12)
@given(change=_manifests())
def test_manifests(change: Callable[[bytes], bytes], scores: Path, tmp_path: Path) -> None:
    folder = tmp_path / "scores"
    shutil.copytree(scores, folder, dirs_exist_ok=True)
    (folder / MANIFEST).write_bytes(change((scores / MANIFEST).read_bytes()))
    _fails_well(*_commands(folder, tmp_path))


@examples(15)
@given(data=st.data())
def test_parts(data: st.DataObject, scores: Path, tmp_path: Path) -> None:
    folder = tmp_path / "scores"
    shutil.copytree(scores, folder, dirs_exist_ok=True)
    part = folder / "part-00001.parquet"
    if data.draw(st.booleans()):
        part.write_bytes(data.draw(damaged({".parquet": part.read_bytes()}))[1])
    else:
        part.write_bytes(parquet(data.draw(odd_tables())))
    _fails_well(*_commands(folder, tmp_path))


_COLUMNS = st.sampled_from(["id", "input_ids", "labels", "loss_weight", "sample_weight", "messages"])


@examples(25)
@given(data=st.data())
def test_masks_and_selections(data: st.DataObject, scores: Path, tmp_path: Path) -> None:
    whole = tmp_path / "whole.parquet"
    write_mask(whole, mask_rows(scores, lambda row, tokens: [True] * len(tokens), soft=data.draw(st.booleans())))
    path = tmp_path / f"mask{data.draw(st.sampled_from(['.parquet', '.jsonl']))}"
    kind = data.draw(st.sampled_from(["damage", "table", "lines"]))
    if kind == "damage":
        path.write_bytes(data.draw(damaged({".parquet": whole.read_bytes()}))[1])
    elif kind == "table":
        table = pq.read_table(whole)
        odd = data.draw(odd_tables(rows=table.num_rows))
        for name in data.draw(st.lists(_COLUMNS, max_size=2)):
            place = table.schema.get_field_index(name)
            column = data.draw(st.sampled_from(odd.columns))
            field = pa.field(name, column.type)
            table = table.append_column(field, column) if place < 0 else table.set_column(place, field, column)
        about = data.draw(st.sampled_from([b"{}", b"[]", b"{", b"\xff", b'{"rendering": 1, "student": []}']))
        path.write_bytes(parquet(table.replace_schema_metadata({b"trajscore.mask": about})))
    else:
        rows = data.draw(st.lists(st.dictionaries(_COLUMNS, VALUES | SCALARS, max_size=4), max_size=3))
        path.write_bytes(b"\n".join(map(spelt_json, rows)))
    name = next(row["id"] for row in random_rows(6, seed=3) if row["status"] == "ok")
    _fails_well(
        partial(inspect, scores, name, mask=path, by="mask"),
        partial(ts.mask, scores, "entropy", keep=0.5, selected=path, out=tmp_path / "out.parquet"),
        *(partial(ts.export, path, to, tmp_path / "export") for to in ("trl", "llamafactory", "axolotl", "verl")),
    )


_CELLS = st.sampled_from(
    ["student", "teacher", "score", "rsr", "A", "B", "1", "nan", "1e999", "-", "", '"', '"a\nb"', "\ufeff", "\0"]
)
_CSV = st.one_of(
    st.binary(max_size=40).map(lambda data: b"student,teacher,score\n" + data),
    st.lists(st.lists(_CELLS | TEXTS, max_size=4).map(",".join), max_size=5).map(
        lambda lines: "\n".join(lines).encode()
    ),
    st.lists(st.tuples(TEXTS, TEXTS, _CELLS).map(",".join), max_size=4).map(
        lambda lines: "\n".join(["student,teacher,score", *lines]).encode()
    ),
)


@examples(80)
@given(data=_CSV)
def test_tables(data: bytes, tmp_path: Path) -> None:
    path = tmp_path / "table.csv"
    path.write_bytes(data)
    _fails_well(
        partial(read_performance, path),
        partial(read_values, path),
        partial(ts.report, None, table=path, performance=path, replicates=10, out=tmp_path / "report.html"),
    )


@examples(4)
@given(names=st.lists(TEXTS, min_size=4, max_size=4))
def test_pages_hold_no_element_that_came_with_the_data(names: list[str], tmp_path: Path) -> None:
    tags: list[list[Counter[Any]]] = []
    for texts in (["name"] * 4, [f"n{name}" for name in names]):
        values: dict[str, Any] = {"teacher": texts[0], "prompt_id": texts[1], "correct": True}
        rows = [trajectory(n, [1, 2], [0.5, 1.0], id=f"{texts[2]}{n}", **values) for n in range(3)]
        folder = tmp_path / f"scores{len(tags)}"
        shutil.rmtree(folder, ignore_errors=True)
        write_folder(folder, [*rows, refused(9, "too_long", status_detail=texts[3])], student=texts[3])
        shutil.copy(TOKENIZER, folder)
        inspect(folder, worst=3, out=tmp_path / "i.html")
        ts.report(folder, metrics=["rsr"], replicates=10, out=tmp_path / "r.html")
        pages = [Page((tmp_path / name).read_text("utf-8")) for name in ("i.html", "r.html")]
        tags.append([Counter((tag, *sorted(found)) for tag, found in each.elements) for each in pages])
    assert [set(each) for each in tags[1]] == [set(each) for each in tags[0]]


_TOKENS = st.fixed_dictionaries(
    {},
    optional={
        "token": TEXTS | VALUES,
        "logprob": SCALARS,
        "bytes": st.lists(st.integers(-1, 256), max_size=4) | VALUES,
    },
)


@examples(150)
@given(
    value=st.one_of(
        ODD_VALUES.map(spelt_json).map(bytes.decode),
        VALUES,
        st.lists(_TOKENS, max_size=3),
        st.fixed_dictionaries({"content": st.lists(_TOKENS, max_size=3) | VALUES}),
        st.fixed_dictionaries({"tokens": st.lists(TEXTS) | VALUES, "token_logprobs": st.lists(st.floats()) | VALUES}),
    )
)
def test_logprobs_that_came_with_the_data(value: Any) -> None:
    with contextlib.suppress(TrajscoreError):
        spoken = spoken_tokens(value)
        if spoken is not None:
            assert len(spoken.start_B) == len(spoken.logprob_B)
            assert (spoken.logprob_B <= 1e-6).all()
