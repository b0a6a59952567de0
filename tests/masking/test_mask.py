"""`mask` from score folders to files: accounting, order, selections, formats, metadata, part sizes, and what goes wrong."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

import trajscore as ts
from tests.helpers.score_tables import INPUT_FIELDS, random_rows, refused, trajectory, write_folder
from tests.masking.test_rules import frame
from trajscore.cli import app
from trajscore.errors import DataError, TrajscoreError, UsageError
from trajscore.masking.mask import mask
from trajscore.masking.presets import MASK_PRESETS
from trajscore.masking.rules import RULES
from trajscore.options import as_flags
from trajscore.selection.select import select

Row = dict[str, Any]
EXTRA = (
    "teacher_surprisal", "teacher_entropy", "teacher_scaffold_surprisal", "kl_student_teacher", "kl_teacher_student", "js",
    "teacher_sentence_logprob",
)  # fmt: skip
SETTINGS = {"rendering": {"turns": "all", "chat_template_sha256": "abc"}}
runner = CliRunner()


def _rows(count: int, seed: int = 0) -> list[Row]:
    """Rows with a teacher's columns."""
    rows = random_rows(count, seed)
    for row in rows:
        if row["status"] == "ok":
            entropy = row["student_entropy"]
            row["teacher_entropy"] = entropy[::-1]
            row["teacher_surprisal"] = row["student_surprisal"][::-1]
            row["teacher_scaffold_surprisal"] = row["scaffold_surprisal"]
            row["distilled_surprisal"] = row["student_surprisal"][::-1]
            row["kl_student_teacher"] = [value / 2 + index % 3 for index, value in enumerate(entropy)]
            row["kl_teacher_student"] = [value * 2 for value in row["kl_student_teacher"]]
            row["js"] = [min(0.69, value) for value in entropy]
            row["teacher_sentence_logprob"] = [-0.125 * (len(entropy) % 9)]
    return rows


def _folder(path: Path, rows: list[Row], part_rows: int = 7) -> Path:
    return write_folder(path, rows, part_rows=part_rows, extra=EXTRA, settings=SETTINGS)


def _read(path: Path) -> list[Row]:
    if path.suffix == ".parquet":
        rows: list[Row] = pq.read_table(path).to_pylist()
        return rows
    return [json.loads(line) for line in path.read_text().splitlines()]


def _settings(rule: str) -> dict[str, Any]:
    return {"keep": 0.3} if RULES[rule].takes_share else {"low": 0.25} if rule == "surprisal_band" else {}


def test_rows_in_are_masked_or_dropped_with_a_reason(tmp_path: Path) -> None:
    rows = [
        trajectory(0, [1, 1], [1.0, 2.0], [0.5, 0.25]),
        refused(1, "too_long"),
        refused(2, "too_long"),
        refused(3, "empty_response"),
        trajectory(4, [1, 1], [1.0, 2.0], [0.5, math.nan]),
        trajectory(5, [1, 1], [1.0, 2.0], None, student_entropy=None),
        trajectory(6, [1, 1], [1.0, 2.0], None, student_entropy=[1.0, None]),
        trajectory(7, [1, 1], [1.0, 2.0], None, student_entropy=[1.0]),
        trajectory(8, [1], [1.0], None, positions=[5]),
        trajectory(9, [], []),
    ]
    result = mask(_folder(tmp_path / "s", rows), "entropy", keep=0.5, out=tmp_path / "m.jsonl")
    assert result.dropped == {
        "refused:too_long": 2,
        "refused:empty_response": 1,
        "undefined:student_entropy": 4,
        "undefined:positions": 1,
        "nothing_kept": 1,
    }
    assert (result.rows_in, result.rows_masked, result.tokens, result.tokens_kept) == (10, 1, 2, 1)
    assert _read(tmp_path / "m.jsonl") == [
        {"id": "id-0000", "prompt_id": "prompt-0", "teacher": "T", "input_ids": [0, 1, 2], "labels": [-100, 1, -100]}
    ]


def test_a_teacher_that_gave_nothing_is_a_reason_and_not_an_empty_mask() -> None:
    good = {"id": "a", "prompt_id": "p", "status": "ok", "n_tokens": 2, "input_ids": [4, 5, 6], "positions": [1, 2]}
    good |= {"student_entropy": [1.0, 2.0], "teacher_entropy": [1.0, 2.0], "kl_student_teacher": [1.0, 2.0]}
    rows = [good, {**good, "id": "b", "teacher_entropy": None, "kl_student_teacher": [None, 1.0]}]
    assert mask(frame(rows), "confidence_gap").dropped == {"undefined:teacher_entropy": 1}
    assert mask(frame(rows), "soft_or", keep=1.0).dropped == {"undefined:kl_student_teacher": 1}
    assert mask(frame([good]), "surprisal_band", low=0.0).dropped == {"undefined:student_surprisal": 1}


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("suffix", [".parquet", ".jsonl"])
def test_file_frame_and_counts_agree(rule: str, suffix: str, tmp_path: Path) -> None:
    folder = _folder(tmp_path / "s", _rows(40))
    out = tmp_path / f"m{suffix}"
    written = mask(folder, rule, out=out, **_settings(rule))
    counted = mask(folder, rule, **_settings(rule))
    assert written.to_dict() == counted.to_dict()
    rows = _read(out)
    assert len(rows) == written.rows_masked > 10
    assert sum(label != -100 for row in rows for label in row["labels"]) == written.tokens_kept
    expected = written.frame.collect()
    for name in ("id", "prompt_id", "teacher", "input_ids", "labels"):
        assert [row[name] for row in rows] == expected[name].to_list()
    assert ("loss_weight" in rows[0]) == RULES[rule].soft
    if RULES[rule].soft:
        assert math.fsum(w for row in rows for w in row["loss_weight"]) == pytest.approx(written.weight_sum, abs=1e-6)


@pytest.mark.parametrize("rule", RULES)
def test_part_size_and_row_order_change_nothing(rule: str, tmp_path: Path) -> None:
    rows = _rows(40, seed=1)
    settings = _settings(rule)
    one = mask(_folder(tmp_path / "one", rows, part_rows=40), rule, **settings)
    many = mask(_folder(tmp_path / "many", rows, part_rows=3), rule, **settings)
    back = mask(_folder(tmp_path / "back", rows[::-1], part_rows=11), rule, **settings)
    assert one.frame.collect().equals(many.frame.collect())
    assert one.frame.collect().equals(back.frame.collect().reverse())
    assert one.to_dict() == many.to_dict() == back.to_dict()


def test_several_folders_are_one_corpus(tmp_path: Path) -> None:
    rows = _rows(40, seed=2)
    whole = mask(_folder(tmp_path / "whole", rows), "soft_or", keep=0.3)
    halves = [_folder(tmp_path / "a", rows[:15]), _folder(tmp_path / "b", rows[15:])]
    assert mask(halves, "soft_or", keep=0.3).frame.collect().equals(whole.frame.collect())


def test_scope_matters(tmp_path: Path) -> None:
    folder = _folder(tmp_path / "s", _rows(40, seed=3))
    corpus, own = (mask(folder, "soft_or", keep=0.3, scope=scope) for scope in ("corpus", "trajectory"))
    assert corpus.ranges.keys() == {"student_entropy", "kl_student_teacher"}
    assert own.ranges == {}
    assert not corpus.frame.collect().equals(own.frame.collect())
    assert corpus.tokens_kept == own.tokens_kept


def test_layout_and_metadata_of_the_parquet_file(tmp_path: Path) -> None:
    folder = _folder(tmp_path / "s", _rows(20))
    mask(folder, "confidence_gap", tau=2.0, out=tmp_path / "m.parquet")
    schema = pq.read_schema(tmp_path / "m.parquet")
    kinds = {field.name: str(field.type).replace("element", "item") for field in schema}
    assert kinds == {
        "id": "string",
        "prompt_id": "string",
        "teacher": "string",
        "input_ids": "list<item: int32>",
        "labels": "list<item: int32>",
        "loss_weight": "list<item: float>",
    }
    recorded = json.loads(schema.metadata[b"trajscore.mask"])
    given = recorded.pop("given")
    assert {name: value for name, value in given.items() if value is not None} == {
        "rule": "confidence_gap", "tau": 2.0, "seed": 0, "scope": "corpus", "scaffold": "marker",
        "soft_targets": False,
    }  # fmt: skip
    assert recorded == {
        "rule": "confidence_gap",
        "options": {"tau": 2.0},
        "keep": None,
        "seed": None,
        "scope": None,
        "scaffold": "marker",
        "signed": False,
        "ranges": {},
        "student": {"name": "student-1b", "revision": "main"},
        "rendering": SETTINGS["rendering"],
    }
    mask(folder, "soft_or_sample", keep=0.5, seed=3, scope="trajectory", out=tmp_path / "m.parquet")
    made = json.loads(pq.read_schema(tmp_path / "m.parquet").metadata[b"trajscore.mask"])
    assert (made["keep"], made["seed"], made["scope"]) == (0.5, 3, "trajectory")


@pytest.mark.parametrize("suffix", [".parquet", ".jsonl"])
def test_what_select_wrote(suffix: str, tmp_path: Path) -> None:
    folder = _folder(tmp_path / "s", _rows(40, seed=4))
    chosen = select(folder, "rsr", per_prompt=1, out=tmp_path / f"kept{suffix}")
    result = mask(folder, "all", selected=tmp_path / f"kept{suffix}", out=tmp_path / "m.parquet")
    kept = chosen.decisions.filter("kept")["id"].to_list()
    assert [row["id"] for row in _read(tmp_path / "m.parquet")] == kept
    scored = sum(row["status"] == "ok" for row in _rows(40, seed=4))
    assert result.dropped["not_selected"] == scored - len(kept) > 0
    assert result.rows_in == 40 == result.rows_masked + sum(result.dropped.values())


@pytest.mark.parametrize("suffix", [".parquet", ".jsonl"])
def test_order_and_weights_of_the_selection_are_kept(suffix: str, tmp_path: Path) -> None:
    rows = [trajectory(n, [1, 2], [1.0, 2.0]) for n in range(6)] + [refused(6, "too_long")]
    chosen = pl.DataFrame({"id": ["id-0004", "id-0000", "id-0006", "id-0005"], "sample_weight": [2.0, 0.0, 1.0, 0.5]})
    path = tmp_path / f"kept{suffix}"
    if suffix == ".parquet":
        chosen.write_parquet(path)
    else:
        chosen.write_ndjson(path)
    folder = _folder(tmp_path / "s", rows, part_rows=2)
    result = mask(folder, "entropy", keep=0.5, selected=path, out=tmp_path / "m.parquet")
    lines = [(row["id"], row["sample_weight"]) for row in _read(tmp_path / "m.parquet")]
    assert lines == [("id-0004", 2.0), ("id-0000", 0.0), ("id-0005", 0.5)]
    assert result.dropped == {"refused:too_long": 1, "not_selected": 3}
    assert result.frame.collect()["id"].to_list() == ["id-0004", "id-0000", "id-0005"]


def test_ranges_are_those_of_the_selected_rows(tmp_path: Path) -> None:
    rows = [trajectory(n, [1, 2], [1.0, 2.0], [0.0, float(n)]) for n in range(4)]
    for row in rows:
        row["kl_teacher_student"] = [1.0, 1.0]
    pl.DataFrame({"id": ["id-0001"]}).write_parquet(tmp_path / "kept.parquet")
    result = mask(_folder(tmp_path / "s", rows), "q3", keep=0.5, selected=tmp_path / "kept.parquet")
    assert result.ranges["student_entropy"].high == pytest.approx(0.98)


@pytest.mark.parametrize(
    ("content", "error", "message"),
    [
        ('{"id": "id-0000"}\n{"id": "id-0000"}\n', DataError, "more than once"),
        ('{"id": "id-0000"}\n{"id": "elsewhere"}\n', UsageError, "'elsewhere'"),
        ('{"id": "id-0000"}\n{"id": 5}\n', UsageError, "line 2"),
        ('{"id": "id-0000"}\n{"id\n', DataError, "line 2: not JSON"),
        ('{"id": "id-0000"}\n[]\n', UsageError, "line 2"),
        ('{"id": "id-0000", "sample_weight": -1}\n', DataError, "weight -1"),
        ('{"id": "id-0000", "sample_weight": 1}\n{"id": "id-0001"}\n', DataError, "weight None"),
        ('{"id": "id-0000", "sample_weight": "x"}\n', DataError, "sample_weight"),
    ],
)
def test_wrong_selections(content: str, error: type[TrajscoreError], message: str, tmp_path: Path) -> None:
    folder = _folder(tmp_path / "s", [trajectory(n, [1], [1.0]) for n in range(3)])
    (tmp_path / "kept.jsonl").write_text(content)
    with pytest.raises(error, match=message):
        mask(folder, "all", selected=tmp_path / "kept.jsonl", out=tmp_path / "m.parquet")
    assert not (tmp_path / "m.parquet").exists()


def test_selections_that_are_no_selection(tmp_path: Path) -> None:
    folder = _folder(tmp_path / "s", [trajectory(0, [1], [1.0])])
    pl.DataFrame({"name": ["a"]}).write_parquet(tmp_path / "a.parquet")
    pl.DataFrame({"id": [1]}).write_parquet(tmp_path / "b.parquet")
    (tmp_path / "c.parquet").write_bytes(b"PAR1")
    for name, message in (("a", "no column 'id'"), ("b", "not text"), ("c", "not readable"), ("d", "no such file")):
        with pytest.raises(TrajscoreError, match=message):
            mask(folder, "all", selected=tmp_path / f"{name}.parquet")
    with pytest.raises(UsageError, match="suffix"):
        mask(folder, "all", selected=tmp_path / "a.csv")


@pytest.mark.parametrize("suffix", [".parquet", ".jsonl"])
def test_decisions_are_no_selection(suffix: str, tmp_path: Path) -> None:
    """They have an id on every line, of dropped rows too: taken for a selection they would undo it."""
    folder = _folder(tmp_path / "s", _rows(20))
    select(folder, "surprisal", top=2, decisions=tmp_path / f"d{suffix}")
    with pytest.raises(UsageError, match="--decisions"):
        mask(folder, "all", selected=tmp_path / f"d{suffix}", out=tmp_path / "m.parquet")
    assert not (tmp_path / "m.parquet").exists()


def _with_scaffold(number: int, kinds: Sequence[int]) -> dict[str, Any]:
    """Two scored tokens, then scaffold."""
    row = trajectory(number, [1, 1], [1.0, 2.0])
    places, count = list(range(3, 3 + len(kinds))), len(kinds)
    statistics = {"scaffold_rank": [1] * count, "scaffold_surprisal": [0.5] * count, "scaffold_entropy": [0.5] * count}
    return row | statistics | {
        "input_ids": list(range(10, 14 + count)), "scaffold_positions": places, "scaffold_kind": list(kinds)
    }  # fmt: skip


@pytest.mark.parametrize(
    ("scaffold", "wanted"),
    [
        ("none", [-100, 11, 12, -100, -100, -100, -100]),
        ("marker", [-100, 11, 12, -100, 14, -100, -100]),
        ("trainer", [-100, 11, 12, 13, 14, 15, -100]),
    ],
)
def test_scaffold_gets_a_label(scaffold: Any, wanted: list[int], tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "s", [_with_scaffold(1, [0, 1, 2]), _with_scaffold(2, [])])
    found = mask(folder, "all", scaffold=scaffold).frame.collect()["labels"].to_list()
    assert found == [wanted, [-100, 11, 12, -100]]


def test_scaffold_weighs_1_under_a_soft_rule(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "s", [_with_scaffold(1, [1, 2]) | {"teacher_entropy": [0.5, 0.5]}])
    row = mask(folder, "confidence_gap").frame.collect().row(0, named=True)
    assert row["loss_weight"][3:] == [1.0, 0.0, 0.0]
    assert row["labels"][3:] == [13, -100, -100]


def test_the_marker_has_a_reward_of_its_own(tmp_path: Path) -> None:
    """Scaffold at 3 and 4, the text from 1: ln p differs by 0.5 - 2 = -1.5 at the marker, two tokens after the first."""
    more = {"teacher_surprisal": [0.5, 0.5], "teacher_scaffold_surprisal": [2.0, 9.0]}
    folder = write_folder(tmp_path / "s", [_with_scaffold(1, [1, 2]) | more])
    weights = mask(folder, preset="on-policy", decay=0.5).frame.collect()["loss_weight"].to_list()[0]
    assert weights[3:] == [-1.5 / 4, 0.0, 0.0]
    # The sampler thought the marker twice as likely.
    sampled = more | {"sampler_logprob": [-0.5, -0.5], "scaffold_sampler_logprob": [math.log(2) - 0.5, -1.0]}
    sampled_folder = write_folder(tmp_path / "i", [_with_scaffold(1, [1, 2]) | sampled])
    weights = mask(sampled_folder, preset="on-policy", decay=0.5, importance=True).frame.collect()["loss_weight"]
    assert weights.to_list()[0][3] == pytest.approx(-1.5 / 8)
    torn = _with_scaffold(1, [1, 2]) | more | {"teacher_scaffold_surprisal": [2.0]}
    found = mask(write_folder(tmp_path / "t", [torn]), "opd_reward")
    assert found.dropped == {"undefined:teacher_scaffold_surprisal": 1}
    assert mask(tmp_path / "t", "opd_reward", scaffold="none").rows_masked == 1


def test_a_teachers_entries_go_along_to_the_labels(tmp_path: Path) -> None:
    """Two scored tokens at 1 and 2, a marker at 4; entries stand at the tokens that have a label, and nowhere else."""
    entries = {
        "teacher_topk_ids": [[5, 6], [7, 8]], "teacher_topk_logprobs": [[-0.5, -math.inf], [-1.0, -2.0]],
        "teacher_log_tail": [-0.75, -math.inf], "teacher_scaffold_topk_ids": [[1, 2], [3, 4]],
        "teacher_scaffold_topk_logprobs": [[-1.0, -3.0], [-4.0, -5.0]], "teacher_scaffold_log_tail": [-0.25, -0.5],
    }  # fmt: skip
    rows = [_with_scaffold(1, [0, 1]) | entries, _with_scaffold(2, []) | dict.fromkeys(entries)]
    folder = write_folder(tmp_path / "s", rows)
    found = mask(folder, "entropy", keep=0.5, soft_targets=True, out=tmp_path / "m.parquet")
    assert found.dropped == {"undefined:teacher_topk_ids": 1}
    (row,) = _read(tmp_path / "m.parquet")
    assert row["labels"] == [-100, -100, 12, -100, 14, -100]
    assert row["teacher_topk_ids"] == [[], [], [7, 8], [], [3, 4], []]
    assert row["teacher_topk_logprobs"] == [[], [], [-1.0, -2.0], [], [-4.0, -5.0], []]
    assert row["teacher_log_tail"] == [None, None, -math.inf, None, -0.5, None]
    assert found.frame.collect()["teacher_topk_ids"].to_list() == [row["teacher_topk_ids"]]
    plain = mask(folder, "all", scaffold="none", soft_targets=True).frame.collect().row(0, named=True)
    assert plain["teacher_topk_ids"] == [[], [5, 6], [7, 8], [], [], []]
    with pytest.raises(UsageError, match="teacher_topk_ids") as error:
        mask(write_folder(tmp_path / "t", [trajectory(1, [1], [1.0])]), "all", soft_targets=True)
    assert "--keep-topk" in error.value.hint


def test_an_unknown_scaffold_names_the_nearest(tmp_path: Path) -> None:
    unknown: Any = "markers"
    with pytest.raises(UsageError, match="--scaffold"):
        mask(write_folder(tmp_path / "s", [trajectory(1, [1], [1.0])]), "all", scaffold=unknown)


@pytest.mark.parametrize("kinds", [[1], [0]])
def test_masks_without_the_end_of_turn_say_so(
    kinds: list[int], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    mask(write_folder(tmp_path / "s", [_with_scaffold(1, kinds)]), "all")
    assert ("end-of-turn markers have no label" in caplog.text) == (kinds == [0])


@pytest.mark.parametrize("name", MASK_PRESETS)
def test_a_preset_is_the_flags_that_it_says(name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    sampled = pl.when(pl.col("n_tokens") % 2 == 0).then(0.6).otherwise(1.0).alias("temperature")
    scores = ts.scan(_folder(tmp_path / "s", _rows(20))).with_columns(sampled)
    with caplog.at_level("INFO"):
        preset = mask(scores, preset=name)
    plain = mask(scores, **MASK_PRESETS[name].settings)
    assert as_flags(MASK_PRESETS[name].settings) in caplog.text
    assert preset.options == plain.options
    assert preset.stages == plain.stages
    assert preset.frame.collect().equals(plain.frame.collect())


def test_settings_beside_a_preset(tmp_path: Path) -> None:
    folder = _folder(tmp_path / "s", _rows(20))
    assert mask(folder, preset="tip-soft-or", keep=0.25, scope="trajectory").options.keep == 0.25
    wrong: tuple[tuple[dict[str, Any], str], ...] = (
        ({"preset": "tip-soft-or", "rule": "all"}, "exclude each other"),
        ({"preset": "tip-soft"}, "unknown"),
        ({"preset": "grape"}, "one of `select`"),
        ({}, "no rule"),
    )
    for given, message in wrong:
        with pytest.raises(UsageError, match=message):
            mask(folder, **given)
    with pytest.raises(UsageError, match="`select` has no --preset"):
        select(folder, preset="tip-soft-or")


def test_the_selection_is_not_overwritten(tmp_path: Path) -> None:
    folder = _folder(tmp_path / "s", _rows(20))
    select(folder, "surprisal", top=2, out=tmp_path / "kept.parquet")
    before = (tmp_path / "kept.parquet").read_bytes()
    with pytest.raises(UsageError, match="is what --selected reads"):
        mask(folder, "all", selected=tmp_path / "kept.parquet", out=tmp_path / "s" / ".." / "kept.parquet")
    assert (tmp_path / "kept.parquet").read_bytes() == before


def test_an_empty_selection_writes_an_empty_file_and_warns(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = _folder(tmp_path / "s", _rows(20))
    (tmp_path / "kept.jsonl").write_text("")
    result = mask(folder, "soft_or", keep=0.5, selected=tmp_path / "kept.jsonl", out=tmp_path / "m.parquet")
    assert result.rows_masked == 0
    assert pq.read_table(tmp_path / "m.parquet").num_rows == 0
    assert pq.read_schema(tmp_path / "m.parquet").names[-1] == "labels"
    assert "no row was masked" in caplog.text


def test_columns_that_are_missing_name_the_flag(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "s", random_rows(10))
    for rule, words in (("soft_or", "--teacher"), ("confidence_gap", "--teacher"), ("teacher_sentences", "--teacher")):
        with pytest.raises(UsageError, match="reads the column") as caught:
            mask(folder, rule, **_settings(rule), out=tmp_path / "m.parquet")
        assert words in caught.value.hint
    assert not (tmp_path / "m.parquet").exists()


def test_folders_that_do_not_go_together(tmp_path: Path) -> None:
    one = write_folder(tmp_path / "a", [trajectory(0, [1], [1.0])], settings=SETTINGS)
    row = [trajectory(1, [1], [1.0])]
    other = write_folder(tmp_path / "b", row, settings={"rendering": {"turns": "last", "chat_template_sha256": "abc"}})
    with pytest.raises(UsageError, match=r"rendering\.turns: was 'all', now 'last'"):
        mask([one, other], "all")
    with pytest.raises(UsageError, match="same student"):
        mask([one, write_folder(tmp_path / "c", row, student="x", settings=SETTINGS)], "all")
    with pytest.raises(UsageError, match="which SCORES reads"):
        mask(one, "all", out=one / "m.parquet")
    with pytest.raises(UsageError, match="suffix"):
        mask(one, "all", out=tmp_path / "m.csv")


def test_a_damaged_part_leaves_no_file(tmp_path: Path) -> None:
    folder = _folder(tmp_path / "s", _rows(30), part_rows=10)
    part = folder / "part-00001.parquet"
    whole = part.read_bytes()
    middle = len(whole) // 2
    part.write_bytes(whole[: middle - 400] + b"\0" * 800 + whole[middle + 400 :])
    (tmp_path / "m.parquet").write_text("earlier")
    with pytest.raises(DataError):
        mask(folder, "soft_or", keep=0.5, out=tmp_path / "m.parquet")
    assert (tmp_path / "m.parquet").read_text() == "earlier"
    assert [path.name for path in tmp_path.iterdir() if path.name.endswith(".tmp")] == []


def test_an_unwritable_target_is_no_traceback(tmp_path: Path) -> None:
    folder = _folder(tmp_path / "s", _rows(5))
    (tmp_path / "file").write_text("")
    with pytest.raises(TrajscoreError, match="cannot be written"):
        mask(folder, "all", out=tmp_path / "file" / "m.jsonl")


def test_columns_of_a_corpus_are_not_taken_for_ours(tmp_path: Path) -> None:
    own = [*INPUT_FIELDS, pa.field("labels", pa.string()), pa.field("order", pa.int64()), pa.field("row", pa.int64())]
    rows = [trajectory(n, [1, 2], [1.0, 2.0], labels="x", order=-n, row=7) for n in range(3)]
    result = mask(write_folder(tmp_path / "s", rows, input_fields=own), "entropy", keep=0.5)
    assert result.frame.collect()["labels"].to_list() == [[-100, -100, 2]] * 3


def test_the_public_function_is_the_one() -> None:
    assert ts.mask is mask


def _run(*arguments: str | Path) -> Any:
    return runner.invoke(app, [str(argument) for argument in arguments], prog_name="trajscore")


def test_the_command_passes_every_option_on(tmp_path: Path) -> None:
    folder = _folder(tmp_path / "s", _rows(20))
    select(folder, "length", top=4, out=tmp_path / "kept.parquet")
    calls: dict[str, dict[str, Any]] = {
        "soft_or_sample": {"keep": 0.4, "seed": 5, "scope": "trajectory"},
        "divergence": {"keep": 0.4, "by": "js", "selected": tmp_path / "kept.parquet"},
        "confidence_gap": {"tau": 3.0},
        "teacher_sentences": {"beta": 0.05},
        "surprisal_band": {"low": 0.1, "high": 3.0},
    }
    for rule, options in calls.items():
        flags = [word for name, value in options.items() for word in (f"--{name}", str(value))]
        done = _run("mask", folder, "--rule", rule, *flags, "--out", tmp_path / "m.jsonl", "--json")
        assert done.exit_code == 0, done.stderr
        expected = mask(folder, rule, **options)
        assert json.loads(done.stdout) == {**expected.to_dict(), "out": str(tmp_path / "m.jsonl")}
        assert [row["id"] for row in _read(tmp_path / "m.jsonl")] == expected.frame.collect()["id"].to_list()


def test_the_command_prints_the_accounting(tmp_path: Path) -> None:
    folder = _folder(tmp_path / "s", [*_rows(20), refused(90, "[bold]\x1b[2J")])
    done = _run("mask", folder, "--rule", "soft_or", "--keep", "0.5")
    assert done.exit_code == 0
    assert "21 rows in = " in done.stdout
    assert "refused:[bold]\\x1b[2J: 1" in done.stdout
    assert "scored tokens of the masked rows have a label" in done.stdout
    assert "over the corpus" in done.stdout
    assert "--out" in done.stderr
    done = _run("mask", folder, "--rule", "confidence_gap")
    assert "mean loss weight" in done.stdout


@pytest.mark.parametrize(
    "arguments",
    [
        ["nowhere", "--rule", "all"],
        ["SCORES"],
        ["SCORES", "--rule", "entopy"],
        ["SCORES", "--rule", "entropy"],
        ["SCORES", "--rule", "all", "--keep", "0.5"],
        ["SCORES", "--rule", "entropy", "--keep", "half"],
        ["SCORES", "--rule", "all", "--selected", "nowhere.jsonl"],
        ["SCORES", "--rule", "all", "--out", "m.txt"],
    ],
)
def test_wrong_usage_is_exit_2_with_a_message_on_stderr(tmp_path: Path, arguments: list[str]) -> None:
    folder = _folder(tmp_path / "s", _rows(5))
    done = _run("mask", *[str(folder) if word == "SCORES" else word for word in arguments])
    assert done.exit_code == 2
    assert done.stdout == ""
    assert "rror: " in done.stderr
    assert "Traceback" not in done.stderr


def test_list_rules() -> None:
    done = _run("list", "rules")
    assert done.exit_code == 0
    listed = json.loads(_run("list", "rules", "--json").stdout)["rules"]
    assert [each["name"] for each in listed] == list(RULES)
    assert set(listed[0]) == {"name", "kind", "soft", "source", "meaning", "columns", "parameters"}
    for rule in listed:
        assert f"{rule['name']}  (" in done.stdout
