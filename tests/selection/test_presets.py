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
from trajscore.schema import COLUMNS
from trajscore.selection.presets import PRESETS, needs

pytest.importorskip("transformers", reason="the rows are scored first")

TEACHER = str(DATA / "models" / "teacher")
EVERY_FLAG: dict[str, Any] = {
    "teacher": TEACHER,
    "distilled": TEACHER,
    "extra": ["collision", "local:1"],
    "unconditional": True,
}
"""The flags of `score` that presets need, as keywords."""


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Rows of three prompts, and what `skills` would have written about these."""
    home = tmp_path_factory.mktemp("presets")
    rows = [json.loads(line) for line in (DATA / "trajectories.jsonl").read_text("utf-8").splitlines()]
    prompts = list(dict.fromkeys(row["prompt_id"] for row in rows))[:3]
    own = {"pass_rate": 0.25, "inference_entropy": 1.0}
    chosen = [
        {**row, **own, "temperature": 0.6 if number % 2 else 1.0}
        for number, row in enumerate(rows)
        if row["prompt_id"] in prompts
    ]
    (home / "rows.jsonl").write_text("\n".join(map(json.dumps, chosen)), "utf-8")
    labelled = [{"question_id": p, "question": p, "skills": ["add"], "status": "ok"} for p in prompts]
    (home / "map.jsonl").write_text("\n".join(map(json.dumps, labelled)), "utf-8")
    (home / "profile.json").write_text(json.dumps({"questions": {"q": ["add"]}}), "utf-8")
    return {name: home / name for name in ("rows.jsonl", "map.jsonl", "profile.json")}


@pytest.fixture(scope="module")
def scored(corpus: dict[str, Path]) -> Path:
    """The rows scored with every flag, once: models take seconds to load."""
    out = corpus["rows.jsonl"].with_name("scores")
    ts.score(corpus["rows.jsonl"], str(DATA / "models" / "student"), out, max_refused=1.0, **EVERY_FLAG)
    return out


def _with(scored: Path, needed: list[str]) -> pl.LazyFrame:
    """The scores without the columns of flags that are not named."""
    frame = ts.scan(scored)
    own = {*json.loads((scored.with_name("rows.jsonl")).read_text("utf-8").splitlines()[0])}
    return frame.select(
        name
        for name in frame.collect_schema()
        if name in own or name not in COLUMNS or COLUMNS[name].flag in ("", *needed)
    )


@pytest.mark.parametrize("name", PRESETS)
def test_presets_of_select(name: str, corpus: dict[str, Path], scored: Path) -> None:
    needed = needs(PRESETS[name])
    files: dict[str, Any] = (
        {"profile": corpus["profile.json"], "skill_map": corpus["map.jsonl"]} if "--profile" in needed else {}
    )
    made = ts.select(_with(scored, needed), preset=name, **files)
    assert made.rows_in == made.rows_kept + sum(made.dropped.values())
    assert made.rows_kept > 0
    if name == "stat":
        assert {"draws", "sample_weight"} <= set(made.frame.collect_schema())


@pytest.mark.parametrize("name", MASK_PRESETS)
def test_presets_of_mask(name: str, scored: Path, caplog: pytest.LogCaptureFixture) -> None:
    made = ts.mask(_with(scored, needs_mask(MASK_PRESETS[name])), preset=name)
    assert made.rows_in == made.rows_masked + sum(made.dropped.values())
    assert made.tokens_kept > 0
    assert made.options.definition.caution in caplog.text


@pytest.mark.parametrize("name", [*PRESETS, *MASK_PRESETS])
def test_every_need_is_one(name: str, scored: Path) -> None:
    """Without what it names, a preset is refused."""
    preset = PRESETS.get(name) or MASK_PRESETS[name]
    needed = needs(preset) if name in PRESETS else needs_mask(preset)
    if not needed:
        return
    lacking = _with(scored, []).drop("correct", "pass_rate", "inference_entropy", "temperature")
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
    assert any("1 prompt kept all its candidates" in note for note in made.summary["notes"])
