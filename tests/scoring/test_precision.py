"""`--storage float16`: what rounding does to values, columns, metrics and files, against float32 and numpy's float16."""

from __future__ import annotations

from math import inf, isfinite
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

import trajscore as ts
from tests.helpers.paths import DATA
from trajscore.errors import UsageError
from trajscore.schema import COLUMNS, SIGNIFICANT_BITS, Column
from trajscore.scores import read_manifest
from trajscore.scoring.precision import rounded

CORPUS = DATA / "trajectories.jsonl"
STUDENT = DATA / "models" / "student"
ERROR = 2.0**-11


@given(st.lists(st.floats(2.0**-14, 65504, width=32) | st.floats(-65504, -(2.0**-14), width=32), min_size=1))
def test_agrees_with_numpy_where_float16_has_all_its_bits(values: list[float]) -> None:
    array = np.array(values, np.float32)
    assert np.array_equal(rounded(array), array.astype(np.float16).astype(np.float32))


@given(st.floats(width=32, allow_nan=False, allow_infinity=False, allow_subnormal=False))
@example(3.4028234663852886e38)
@example(1.1754943508222875e-38)
@example(-0.0)
def test_the_error_is_what_is_stated_over_the_whole_range(value: float) -> None:
    found = float(rounded(np.array([value], np.float32))[0])
    assert isfinite(found)
    # Only above float16's largest value times 2^112 can the nearest be infinity, and the one below it is taken.
    allowed = ERROR if abs(value) < 3.4e38 else 2 * ERROR
    assert abs(found - value) <= allowed * abs(value)
    assert (found == 0) == (value == 0)
    assert np.float32(found).view(np.uint32) % 2 ** (24 - SIGNIFICANT_BITS) == 0


def test_nan_and_infinity_stay() -> None:
    assert np.array_equal(
        rounded(np.array([np.nan, inf, -inf], np.float32)), np.array([np.nan, inf, -inf], np.float32), equal_nan=True
    )
    assert rounded(np.zeros(0, np.float32)).shape == (0,)


@pytest.mark.parametrize(
    "column", [c for c in COLUMNS.values() if c.dtype == pa.list_(pa.float32())], ids=lambda column: column.name
)
def test_no_value_leaves_its_column_s_bounds(column: Column) -> None:
    assert column.lower is not None
    assert column.upper is not None
    low, high = max(column.lower, -1e4), min(column.upper, 1e4)
    values = np.unique(np.linspace(low, high, 200_001).astype(np.float32))
    values = values[(values >= low) & (values <= high)]
    found = rounded(values, column.upper)
    assert found.min() >= column.lower
    assert found.max() <= column.upper
    assert (np.abs(found - values) <= ERROR * np.abs(values)).all()


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The same 200 rows stored both ways."""
    folder = tmp_path_factory.mktemp("storage")
    for storage in ("float32", "float16"):
        ts.score(CORPUS, STUDENT, folder / storage, limit=200, extra=["collision"], storage=storage)
    return folder / "float32", folder / "float16"


def test_every_list_of_floats_is_rounded_and_nothing_else(both: tuple[Path, Path]) -> None:
    exact, half = (pq.read_table(folder / "part-00000.parquet") for folder in both)
    assert half.schema.types == exact.schema.types
    for field in half.schema:
        ours = field.type == pa.list_(pa.float32())
        assert (b"precision" in (field.metadata or {})) == ours
        if not ours:
            assert half[field.name].equals(exact[field.name]), field.name
            continue
        one, two = (each[field.name].combine_chunks() for each in (exact, half))
        assert one.offsets.equals(two.offsets)
        assert one.is_null().equals(two.is_null())
        before, after = (each.values.to_numpy(zero_copy_only=False) for each in (one, two))
        known = ~np.isnan(before)
        assert np.array_equal(known, ~np.isnan(after))
        assert (np.abs(after - before)[known] <= ERROR * np.abs(before)[known]).all()
        assert not np.array_equal(after[known], before[known])
    assert half.schema.field("student_surprisal").metadata[b"precision"].endswith(b"2^-11")
    assert half.schema.field("student_surprisal").metadata[b"unit"] == b"nats"


def test_metrics_stay_within_the_bound_of_their_sums(both: tuple[Path, Path]) -> None:
    names = ["rsr", "surprisal", "rank", "entropy", "rank_entropy_ratio", "length"]
    exact, half = (ts.select(folder, names, per_prompt=1) for folder in both)
    joined = exact.decisions.join(half.decisions, on="id", suffix=":half")
    for name in names:
        # A mean of values of one sign has the error of its terms; a ratio that of its denominator, seen from below.
        error = np.abs((joined[f"{name}:half"] / joined[name] - 1).drop_nulls().to_numpy()).max()
        assert error <= (0 if name in ("rank", "length") else ERROR / (1 - ERROR))
        assert joined[name].is_null().equals(joined[f"{name}:half"].is_null())
    assert half.before["rsr"] == pytest.approx(exact.before["rsr"], rel=ERROR / (1 - ERROR))


def test_files_are_smaller_and_say_so(both: tuple[Path, Path]) -> None:
    sizes = []
    for folder in both:
        columns = pq.read_metadata(folder / "part-00000.parquet").row_group(0)
        paths = [columns.column(n) for n in range(columns.num_columns)]
        sizes.append(
            sum(c.total_compressed_size for c in paths if c.path_in_schema.startswith(("student_surpr", "student_ent")))
        )
    assert sizes[1] < 0.8 * sizes[0]
    assert read_manifest(both[0]).settings["storage"] == "float32"
    assert read_manifest(both[1]).settings["storage"] == "float16"


def test_one_folder_has_one_storage(both: tuple[Path, Path]) -> None:
    with pytest.raises(UsageError, match="storage: was 'float16', now 'float32'"):
        ts.score(CORPUS, STUDENT, both[1], limit=200, extra=["collision"])
    with pytest.raises(UsageError, match="--storage bfloat16"):
        ts.score(CORPUS, STUDENT, both[1], storage="bfloat16")  # type: ignore[arg-type]


def test_readers_need_to_know_nothing(both: tuple[Path, Path]) -> None:
    assert pl.read_parquet(both[1] / "*.parquet").schema["student_surprisal"] == pl.List(pl.Float32)
