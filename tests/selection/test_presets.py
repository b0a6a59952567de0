"""Every preset of `select` and `mask` on what `score` writes with the flags that its line in the manual names."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import polars as pl
import pytest

import trajscore as ts
from tests.helpers.paths import DATA
from trajscore.errors import UsageError
from trajscore.masking.presets import MASK_PRESETS, needs_mask
from trajscore.selection.presets import PRESETS, needs

TEACHER = str(DATA / "models" / "teacher")
OPTIONS: dict[str, dict[str, Any]] = {
    "--teacher MODEL": {"teacher": TEACHER},
    "--distilled MODEL": {"distilled": TEACHER},
    "--extra collision": {"extra": "collision"},
    "--unconditional": {"unconditional": True},
}
"""The flags of `score` that presets need, as keywords."""

Folders = dict[frozenset[str], Path]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Rows of three prompts, and what `skills` would have written about these."""
    home = tmp_path_factory.mktemp("presets")
    rows = [json.loads(line) for line in (DATA / "trajectories.jsonl").read_text("utf-8").splitlines()]
    prompts = list(dict.fromkeys(row["prompt_id"] for row in rows))[:3]
    chosen = [{**row, "pass_rate": 0.25} for row in rows if row["prompt_id"] in prompts]
    (home / "rows.jsonl").write_text("\n".join(map(json.dumps, chosen)), "utf-8")
    labelled = [{"question_id": p, "question": p, "skills": ["add"], "status": "ok"} for p in prompts]
    (home / "map.jsonl").write_text("\n".join(map(json.dumps, labelled)), "utf-8")
    (home / "profile.json").write_text(json.dumps({"questions": {"q": ["add"]}}), "utf-8")
    return {name: home / name for name in ("rows.jsonl", "map.jsonl", "profile.json")}


@pytest.fixture(scope="module")
def folders() -> Folders:
    return {}


def _scored(needed: list[str], corpus: dict[str, Path], folders: Folders) -> Path:
    """Scores with the flags that are needed; presets that need the same share them."""
    flags = frozenset(flag for flag in needed if flag in OPTIONS)
    if flags not in folders:
        out = corpus["rows.jsonl"].with_name(f"scores-{len(folders)}")
        options = {key: value for flag in flags for key, value in OPTIONS[flag].items()}
        ts.score(corpus["rows.jsonl"], str(DATA / "models" / "student"), out, max_refused=1.0, **options)
        folders[flags] = out
    return folders[flags]


@pytest.mark.parametrize("name", PRESETS)
def test_presets_of_select(name: str, corpus: dict[str, Path], folders: Folders) -> None:
    needed = needs(PRESETS[name])
    files: dict[str, Any] = (
        {"profile": corpus["profile.json"], "skill_map": corpus["map.jsonl"]} if "--profile" in needed else {}
    )
    scores = _scored(needed, corpus, folders)
    made = ts.select(scores, preset=name, **files)
    assert made.rows_in == made.rows_kept + sum(made.dropped.values())
    assert made.rows_kept > 0
    if name == "stat":
        assert {"draws", "sample_weight"} <= set(made.frame.collect_schema())


@pytest.mark.parametrize("name", MASK_PRESETS)
def test_presets_of_mask(
    name: str, corpus: dict[str, Path], folders: Folders, caplog: pytest.LogCaptureFixture
) -> None:
    made = ts.mask(_scored(needs_mask(MASK_PRESETS[name]), corpus, folders), preset=name)
    assert made.rows_in == made.rows_masked + sum(made.dropped.values())
    assert made.tokens_kept > 0
    assert made.options.definition.caution in caplog.text


@pytest.mark.parametrize("name", [*PRESETS, *MASK_PRESETS])
def test_every_need_is_one(name: str, corpus: dict[str, Path], folders: Folders) -> None:
    """Without the first flag that it names, a preset is refused."""
    preset = PRESETS.get(name) or MASK_PRESETS[name]
    needed = needs(preset) if name in PRESETS else needs_mask(preset)
    if not needed:
        return
    lacking = ts.scan(_scored([], corpus, folders)).drop("correct", "pass_rate")
    with pytest.raises(UsageError):
        ts.select(lacking, preset=name) if name in PRESETS else ts.mask(lacking, preset=name)


def test_lark_weighs_uniformly_where_nothing_was_cut() -> None:
    """Three candidates, all kept, and four of which one is cut: excesses 3, 2 and 1 over it."""
    rows: dict[str, Any] = {"id": list("abcdefg"), "prompt_id": list("pppqqqq"), "status": ["ok"] * 7}
    frame = pl.LazyFrame(rows | {"n_tokens": [3, 2, 1, 4, 3, 2, 1]})
    made = ts.select(frame, "length", per_prompt=3, weight="lark")
    weights = dict(made.frame.select("id", "sample_weight").collect().iter_rows())
    assert [weights[name] for name in "abc"] == pytest.approx([1.0, 1.0, 1.0])
    assert [weights[name] for name in "def"] == pytest.approx([1.5, 1.0, 0.5])
    assert any("1 prompts kept all their candidates" in note for note in made.summary["notes"])
