"""The whole chain on the tiny world as a user types it: a rule-based annotator behind HTTP, the student of data/."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import transformers
from typer.testing import CliRunner

import trajscore as ts
from tests.helpers.paths import ROOT
from tests.helpers.scripted_annotator import Reply, ScriptedServer, good, rule_based, scripted, task
from tests.helpers.warm_commands import warm_program
from tests.helpers.world_of_data import problem_of, world
from trajscore.cli import app
from trajscore.errors import UsageError

STUDENT = ROOT / "data" / "models" / "student"
_REASONS = {
    "kept": ["its question was drawn"],
    "not_drawn": ["its question was not drawn for any missing skill"],
    "answers": ["of which --answers 3 keeps the best"],
    "total": ["--total left it out at random: it keeps 30 of"],
    "prefer": ["--prefer correct"],
}
CORPUS = ROOT / "data" / "trajectories.jsonl"


@pytest.fixture
def server() -> Iterator[ScriptedServer]:
    with scripted(rule_based()) as running:
        yield running


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Validation questions of one to four steps, and a catalogue by subject."""
    monkeypatch.chdir(tmp_path)
    asked = [*world.problems(12, 5, steps=(1, 2), split="test"), *world.problems(12, 5, steps=(3, 4), split="test")]
    lines = [json.dumps({"prompt_id": each.id, "question": each.question, "answer": each.answer}) for each in asked]
    (tmp_path / "validation.jsonl").write_text("\n".join(lines) + "\n")
    (tmp_path / "skills.json").write_text(json.dumps({"digits": ["double", "minus", "plus", "never needed"]}))
    return tmp_path


def _run(*arguments: str | Path, code: int = 0) -> dict[str, Any]:
    result = CliRunner().invoke(app, ["skills", *map(str, arguments), "--json"])
    assert result.exit_code == code, result.output
    summary: dict[str, Any] = json.loads(result.stdout)
    return summary


def _lines(path: str | Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path(path).read_text().splitlines()]


def test_from_answers_to_selection(folder: Path, server: ScriptedServer) -> None:
    annotator = ["--annotator", "rules", "--base-url", server.url]
    answered = _run(
        "answer", "validation.jsonl", "--student", STUDENT, "--engine", "hf", "--temperature", "0", "--max-tokens", "96",
        "--batch-size", "5", "--out", "answers.jsonl",
    )  # fmt: skip
    assert (answered["rows"], answered["items"], answered["statuses"]) == (24, 24, {"ok": 24})
    rows = _lines("answers.jsonl")
    for row in rows:
        assert row["correct"] == [world.is_correct(problem_of(row["question"]), row["responses"][0])]
    wrong = {row["question_id"]: row for row in rows if not row["correct"][0]}
    assert 5 <= len(wrong) <= 20, "the student solves short chains and not long ones"
    assert answered["details"]["accuracy"] == pytest.approx(1 - len(wrong) / 24)

    diagnosed = _run("diagnose", "answers.jsonl", "--skills", "skills.json", "--out", "diagnosis.jsonl", *annotator)
    assert diagnosed["statuses"] == {"ok": len(wrong), "not_difficult": 24 - len(wrong)}
    assert diagnosed["details"]["rule"] == "correctness"
    assert len(server.requests) == len(wrong)
    needed = {
        name: sorted({each.skill for each in problem_of(row["question"]).operations}) for name, row in wrong.items()
    }
    lacking = {row["question_id"]: row["missing_skills"] for row in _lines("diagnosis.jsonl") if row["status"] == "ok"}
    assert lacking == needed

    profile = _run("profile", "diagnosis.jsonl", "--out", "profile.json", "--chart", "profile.svg")
    expected = Counter(skill for skills in needed.values() for skill in skills)
    assert {line["skill"]: line["questions"] for line in profile["skills"]} == expected
    assert [line["questions"] for line in profile["skills"]] == sorted(expected.values(), reverse=True)
    assert f"Only {len(wrong)} questions were diagnosed" in profile["notes"][0]
    assert "<svg" in (folder / "profile.svg").read_text()

    labelled = _run("label", CORPUS, "--skills", "skills.json", "--out", "map.jsonl", *annotator)
    assert (labelled["rows"], labelled["items"], labelled["left_out"]) == (520, 40, {"repeated_question": 480})
    corpus = {row["prompt_id"]: row for row in _lines(CORPUS)}
    assert {row["question_id"] for row in _lines("map.jsonl")} == set(corpus)

    ts.score(CORPUS, student=str(STUDENT), out="scores", engine="hf")
    arguments = [
        "select",
        "scores",
        "--metric",
        "stat",
        "--metric",
        "rsr",
        "--prefer",
        "correct",
        "--profile",
        "profile.json",
    ]
    arguments += [
        "--skill-map",
        "map.jsonl",
        "--per-skill",
        "2",
        "--answers",
        "3",
        "--total",
        "30",
    ]
    result = CliRunner().invoke(
        app, [*arguments, "--seed", "3", "--out", "kept.jsonl", "--decisions", "why.jsonl", "--json"]
    )
    assert result.exit_code == 0, result.output
    summary = json.loads(result.stdout)
    assert summary["rows_in"] == 520 == summary["rows_kept"] + summary["rows_dropped"]
    assert set(summary["dropped"]) >= {"not_drawn", "answers", "prefer"}
    recorded = {"per_skill": 2, "answers": 3, "total": 30, "seed": 3}
    assert summary["options"]["stat"] == {"profile": "profile.json", "skill_map": "map.jsonl", **recorded}
    kept, why = _lines("kept.jsonl"), pl.read_ndjson("why.jsonl")
    assert len(kept) == summary["rows_kept"] == min(30, why.filter(pl.col("step").is_in(["kept", "total"])).height)
    assert np.mean([row["sample_weight"] for row in kept]) == pytest.approx(1)
    drawn = {row["prompt_id"]: row["draws"] for row in why.filter(pl.col("draws").is_not_null()).iter_rows(named=True)}
    pairs = sum(len(skills) for skills in needed.values())
    assert sum(drawn.values()) == pairs * 2
    # Among the answers of a drawn question, the best three by rsr of the correct ones.
    scored = why.filter(pl.col("step").is_in(["kept", "answers", "total"]))
    for prompt in drawn:
        own = scored.filter(prompt_id=prompt).sort("rsr", "id")
        best = own.head(3)["id"].to_list()
        assert set(own.filter(pl.col("step") != "answers")["id"]) == set(best)
    assert all(row["correct"] for row in kept)
    for step in ("kept", "not_drawn", "answers", "total", "prefer"):
        row = why.filter(step=step).row(0, named=True)
        told = CliRunner().invoke(app, [*arguments, "--seed", "3", "--explain", row["id"], "--json"])
        assert told.exit_code == 0, told.output
        explanation = json.loads(told.stdout)["explanation"]
        assert (explanation["step"], explanation["numbers"]["draws"]) == (step, row["draws"])
        assert any(part in explanation["reason"] for part in _REASONS[step]), explanation["reason"]
        shown = CliRunner().invoke(app, [*arguments, "--seed", "3", "--explain", row["id"]])
        assert shown.exit_code == 0, shown.output
        assert "draws" in shown.output
    again = CliRunner().invoke(app, [*arguments, "--seed", "3", "--out", "again.jsonl"])
    assert again.exit_code == 0
    assert (folder / "again.jsonl").read_bytes() == (folder / "kept.jsonl").read_bytes()
    other = CliRunner().invoke(app, [*arguments, "--seed", "4", "--out", "other.jsonl"])
    assert other.exit_code == 0
    assert (folder / "other.jsonl").read_bytes() != (folder / "kept.jsonl").read_bytes()


def _profile(folder: Path, missing: dict[str, list[str]]) -> None:
    rows = [
        {"question_id": name, "status": "ok", "missing_skills": skills, "agreement": None}
        for name, skills in missing.items()
    ]
    (folder / "diagnosis.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    ts.skill_profile(folder / "diagnosis.jsonl", out=folder / "profile.json")


def test_a_profile_names_known_missing_skills_in_order(folder: Path) -> None:
    """Counts by hand; intervals against an independent bootstrap."""
    missing = {f"q{i}": ["c"] * (i < 50) + ["a"] * (i < 30) + ["b"] * (i % 10 == 0) for i in range(100)}
    rows: list[dict[str, Any]] = []
    rows += [{"question_id": name, "status": "ok", "missing_skills": skills} for name, skills in missing.items()]
    rows += [{"question_id": f"x{i}", "status": "not_difficult", "missing_skills": None} for i in range(7)]
    (folder / "d.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    profile = ts.skill_profile(folder / "d.jsonl", confidence=0.9, replicates=4000)
    assert [(line.skill, line.questions) for line in profile.skills] == [("c", 50), ("a", 30), ("b", 10)]
    assert [line.share for line in profile.skills] == [0.5, 0.3, 0.1]
    assert (profile.rows, profile.diagnosed, profile.statuses) == (107, 100, {"ok": 100, "not_difficult": 7})
    assert len(profile.questions) == sum(bool(skills) for skills in missing.values())
    draws = np.random.default_rng(99).binomial(100, [0.5, 0.3, 0.1], (20_000, 3))
    for line, column in zip(profile.skills, draws.T, strict=True):
        low, high = np.quantile(column, [0.05, 0.95])
        assert line.low == pytest.approx(low, abs=1.5)
        assert line.high == pytest.approx(high, abs=1.5)
    assert profile.notes == ()


def test_profiles_of_nothing(folder: Path) -> None:
    one = [{"question_id": "q", "status": "ok", "missing_skills": ["a"]}]
    (folder / "d.jsonl").write_text(json.dumps(one[0]))
    profile = ts.skill_profile(folder / "d.jsonl")
    assert (profile.skills[0].low, profile.skills[0].high) == (None, None)
    assert "Only 1 questions" in profile.notes[0]
    (folder / "d.jsonl").write_text(json.dumps({"question_id": "q", "status": "refused", "missing_skills": None}))
    profile = ts.skill_profile(folder / "d.jsonl", chart=folder / "none.svg")
    assert (profile.skills, profile.diagnosed, profile.questions) == ((), 0, {})
    assert any("1 of 1 questions have no diagnosis" in note for note in profile.notes)


def _synthesis(folder: Path) -> None:
    _profile(folder, {"v1": ["plus"], "v2": ["plus", "minus"], "v3": ["never needed"]})
    rows = [
        {
            "question_id": f"{skill}{i}",
            "question": f"About {skill}, number {i}",
            "skills": [skill],
            "status": "ok",
            "solution": "s",
        }
        for skill in ("plus", "minus")
        for i in range(3 if skill == "plus" else 1)
    ]
    (folder / "map.jsonl").write_text("\n".join(json.dumps(row) for row in rows))


ANSWERS: dict[str, list[str | None]] = {
    "A": ["4", "4.0", "5"],
    "B": ["1", "2", "3"],
    "C": ["7", None, "7"],
    "D": [None, None, "1"],
    "E": ["0.5", r"\frac{1}{2}", "1/2"],
}
"""Answers of the three solutions of a question: A two of three agree, B none, C two beside a refusal, D refused, E all."""


def test_synthesis_keeps_what_agrees(folder: Path) -> None:
    """Every proposal's way worked by hand; the consistency filter of section 4.3."""
    _synthesis(folder)
    proposals = iter([["A", "B"], ["C", "About plus,  NUMBER 0"], ["E", "D"]])

    def script(body: dict[str, Any], earlier: int) -> Reply:
        prompt = body["messages"][0]["content"]
        if task(body) == "propose":
            return good({"questions": [{"reason": "", "draft": "", "question": text} for text in next(proposals)]})
        answer = ANSWERS[prompt.rpartition("# Exercise")[2].strip()][body["seed"]]
        return Reply(refusal="no") if answer is None else good({"solution": f"so {answer}", "answer": answer})

    with scripted(script) as server:
        outcome = ts.synthesise_questions(
            "profile.json",
            skill_map="map.jsonl",
            out="new.jsonl",
            decisions="why.jsonl",
            annotator="m",
            base_url=server.url,
            concurrency=1,
        )
        assert Counter(task(body) for body in server.requests) == {"propose": 3, "solve": 15}
        shown = [body["messages"][0]["content"] for body in server.requests if task(body) == "propose"]
        assert [prompt.count("## Example") for prompt in shown] == [3, 3, 1]
    assert (outcome.rows, outcome.items, outcome.left_out) == (4, 6, {"no_seed_question": 1})
    assert outcome.statuses == {"ok": 3, "no_agreement": 1, "copy": 1, "refused": 1}
    kept = _lines("new.jsonl")
    assert [(row["question"], row["answer"], row["agreement"]) for row in kept] == [
        ("A", "4", 2), ("A", "4", 2), ("C", "7", 2), ("C", "7", 2), ("E", "0.5", 3), ("E", "0.5", 3), ("E", "0.5", 3),
    ]  # fmt: skip
    assert [row["solution"] for row in kept][:4] == ["so 4", "so 4.0", "so 7", "so 7"]
    steps = {row["question"]: row["step"] for row in _lines("why.jsonl")}
    copied = {"About plus,  NUMBER 0": "copy"}
    assert steps == {"A": "kept", "B": "no_agreement", "C": "kept", "D": "refused", "E": "kept", **copied}
    assert len({row["id"] for row in kept}) == len(kept)
    # What was written can be scored as it is.
    assert ts.score("new.jsonl", student=str(STUDENT), out="scores", engine="hf").scored == 7


def test_synthesis_total_dry_run_and_resume(folder: Path) -> None:
    _synthesis(folder)

    def script(body: dict[str, Any], earlier: int) -> Reply:
        if task(body) == "propose":
            texts = [f"{abs(hash((body['seed'], i)))} is what?" for i in range(2)]
            return good({"questions": [{"reason": "", "draft": "", "question": text} for text in texts]})
        return good({"solution": "s", "answer": "4"})

    with scripted(script) as server:
        arguments: dict[str, Any] = {"skill_map": "map.jsonl", "out": "new.jsonl"}
        arguments |= {"annotator": "m", "base_url": server.url}
        dry = ts.synthesise_questions("profile.json", dry_run=True, **arguments)
        assert (dry.calls["to_make"], dry.details["solution_calls_at_most"]) == (3, 18)
        assert server.requests == []
        few = ts.synthesise_questions("profile.json", total=4, **arguments)
        assert (few.details["pairs_agreeing"], few.details["pairs_written"]) == (18, 4)
        assert sum(few.statuses.values()) == few.items == 6
        asked = len(server.requests)
        whole = ts.synthesise_questions("profile.json", **arguments)
        assert (whole.details["pairs_written"], whole.calls["made"]) == (18, 0)
        assert len(server.requests) == asked


def test_catalogue_by_subject(folder: Path) -> None:
    named = {"q1": ["Adding", "carrying"], "q2": ["adding"], "q3": ["area"], "q4": []}
    subjects = {"q1": "numbers", "q2": "numbers", "q3": "shapes", "q4": "shapes"}
    lines = [json.dumps({"question": name, "subject": subject}) for name, subject in subjects.items()]
    (folder / "q.jsonl").write_text("\n".join(lines))
    merging: list[str] = []

    def script(body: dict[str, Any], earlier: int) -> Reply:
        prompt = body["messages"][0]["content"]
        if task(body) == "name_skills":
            name = prompt.partition("# Exercise")[2].split()[0]
            return good({"skills": named[name]})
        merging.append(prompt)
        return good({"skills": ["adding"] if "numbers" in prompt else ["area", "area "]})

    with scripted(script) as server:
        summary = _run(
            "catalogue", "q.jsonl", "--annotator", "m", "--base-url", server.url, "--out", "made.json", "--size", "3"
        )
    assert json.loads((folder / "made.json").read_text()) == {"numbers": ["adding"], "shapes": ["area"]}
    assert any("- adding (2)\n- carrying (1)" in prompt for prompt in merging)
    assert summary["statuses"] == {"ok": 4}
    # Labels come from the subject's own list; a subject without one is counted, not guessed.
    (folder / "q.jsonl").write_text("\n".join([*lines, json.dumps({"question": "q5", "subject": "music"}), '{"x": 1}']))
    with scripted(lambda body, earlier: good({"reason": "", "skills": ["area"]})) as server:
        arguments = ["label", "q.jsonl", "--skills", "made.json", "--annotator", "m", "--base-url", server.url]
        summary = _run(*arguments, "--out", "map.jsonl", code=3)
    assert summary["statuses"] == {"invalid": 2, "ok": 2, "unknown_subject": 1}
    assert (summary["rows"], summary["items"], summary["left_out"]) == (6, 5, {"no_question": 1})


def test_student_answers_go_on_where_they_stopped(folder: Path) -> None:
    """A batch is drawn once; samples do not depend on where a run was stopped."""
    arguments: list[str | Path] = [
        "answer", "validation.jsonl", "--student", STUDENT, "--engine", "hf", "--samples", "2", "--max-tokens", "40",
        "--batch-size", "8",
    ]  # fmt: skip
    _run(*arguments, "--out", "whole.jsonl")
    cache = (folder / "whole.jsonl.calls.jsonl").read_bytes().splitlines(keepends=True)
    assert len(cache) == 24
    # As if the run had been killed while the second batch was written.
    (folder / "part.jsonl.calls.jsonl").write_bytes(b"".join(cache[:11]) + cache[11][:50])
    summary = _run(*arguments, "--out", "part.jsonl")
    assert (summary["calls"]["cached"], summary["calls"]["made"]) == (11, 13)
    assert (folder / "part.jsonl").read_bytes() == (folder / "whole.jsonl").read_bytes()
    other = _run(*arguments, "--out", "whole.jsonl", "--seed", "1", "--dry-run")
    assert other["calls"]["to_make"] == 24


def test_student_samples_are_independent_of_the_prompts_around_them(folder: Path) -> None:
    """Greedy decoding in a padded batch gives what one question alone gives."""
    greedy = ["--student", str(STUDENT), "--engine", "hf", "--temperature", "0", "--max-tokens", "64"]
    _run("answer", "validation.jsonl", *greedy, "--batch-size", "24", "--out", "wide.jsonl")
    _run(
        "answer",
        "validation.jsonl",
        *greedy,
        "--batch-size",
        "1",
        "--cache",
        "other.calls.jsonl",
        "--out",
        "narrow.jsonl",
    )
    assert _lines("wide.jsonl") == _lines("narrow.jsonl")


RULES: dict[str, list[dict[str, Any]]] = {
    "reward": [{"step_rewards": [0.9, 0.95]}, {"step_rewards": [0.7, 0.95, 0.95]}, {"step_rewards": None}],
    "consistency": [
        {"responses": ["Answer: 1", "Answer: 1.0"]},
        {"responses": ["Answer: 1", "Answer: 2"]},
        {"responses": ["1"]},
    ],
    "length": [{"responses": ["a b"]}, {"responses": ["a b c d"]}],
}


@pytest.mark.parametrize("rule", RULES)
def test_rules_of_difficulty(folder: Path, rule: str) -> None:
    rows = [{"question": f"Q{i}", "response": "r", **given} for i, given in enumerate(RULES[rule])]
    (folder / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    with scripted(lambda body, earlier: good({"reason": "", "judge": "correct", "skills": []})) as server:
        options = ["--annotator", "m", "--base-url", server.url, "--words", "3", "--max-refused", "1"]
        chosen = ["--rule", rule] if rule == "length" else []
        summary = _run("diagnose", "a.jsonl", "--skills", "skills.json", "--out", "d.jsonl", *options, *chosen)
        assert len(server.requests) == 1
    assert summary["details"]["rule"] == rule
    assert [row["difficult"] for row in _lines("d.jsonl")] == [False, True, None][: len(rows)]
    assert [row["status"] for row in _lines("d.jsonl")] == ["not_difficult", "ok", "undefined_difficulty"][: len(rows)]


def test_only_so_many_difficult_questions(folder: Path, server: ScriptedServer) -> None:
    asked = world.problems(20, 8)
    rows = [{"question": each.question, "response": "Answer: none", "correct": False} for each in asked]
    (folder / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    arguments = ["diagnose", "a.jsonl", "--skills", "skills.json", "--annotator", "m", "--base-url", server.url]
    summary = _run(*arguments, "--questions", "6", "--out", "d.jsonl")
    assert summary["statuses"] == {"ok": 6, "not_drawn": 14}
    assert len(server.requests) == 6


BAD_FILES = {
    "profile.json": ("[]", "no Missing-Skill-Profile"),
    "map.jsonl": ('{"question_id": "a"}', "no field 'question'"),
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_wrong_files(folder: Path, server: ScriptedServer, name: str) -> None:
    _synthesis(folder)
    text, said = BAD_FILES[name]
    (folder / name).write_text(text)
    with pytest.raises(UsageError, match=said):
        ts.synthesise_questions(
            "profile.json", skill_map="map.jsonl", out="new.jsonl", annotator="m", base_url=server.url
        )
    assert not (folder / "new.jsonl").exists()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--profile", "p.json"], "--profile belongs to --metric stat"),
        (["--metric", "stat"], "needs --profile and --skill-map"),
        (["--metric", "stat", "--profile", "p", "--skill-map", "m", "--top", "3"], "--top does not go with"),
        (["--metric", "stat", "--profile", "p", "--skill-map", "m", "--weight", "rank"], "--weight rank"),
        (["--metric", "stat", "--profile", "p", "--skill-map", "m"], "m: no such file"),
    ],
)
def test_mistakes_of_select(folder: Path, arguments: list[str], said: str) -> None:
    (folder / "c.jsonl").write_text('{"question": "1 plus 1?", "answer": "2"}\n')
    ts.score("c.jsonl", student=str(STUDENT), out="scores", engine="hf")
    result = CliRunner().invoke(app, ["select", "scores", *arguments, "--out", "kept.jsonl"])
    assert result.exit_code == 2
    assert said in result.stderr
    assert not (folder / "kept.jsonl").exists()


def test_hostile_text_stays_text(folder: Path) -> None:
    """Skills and questions are data: no markup, no escape sequence, no template."""
    hostile = "[bold]\x1b[2J</text><script>{{question}}"
    rows = [{"question_id": "q", "status": "ok", "missing_skills": [hostile]}]
    (folder / "d.jsonl").write_text(json.dumps(rows[0]))
    done = subprocess.run(
        [str(warm_program()), "skills", "profile", "d.jsonl", "--chart", "c.svg"],
        cwd=folder, env=os.environ, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert "\x1b" not in done.stdout
    assert "[bold]" in done.stdout
    chart = (folder / "c.svg").read_text()
    assert "<script>" not in chart
    assert "\x1b" not in chart


@pytest.mark.parametrize("rewards", [[True, 0.9], ["0.9"], 0.9])
def test_step_rewards_that_are_no_numbers_are_named(folder: Path, rewards: Any) -> None:
    (folder / "a.jsonl").write_text(json.dumps({"question": "Q", "response": "r", "step_rewards": rewards}))
    with pytest.raises(UsageError, match=r"a.jsonl, row 1: step_rewards is"):
        ts.diagnose_skills(
            folder / "a.jsonl",
            skills=folder / "skills.json",
            out=folder / "d.jsonl",
            annotator="m",
            base_url="http://localhost:1/v1",
        )


def test_pickled_weights_of_a_student_are_not_loaded(tmp_path: Path) -> None:
    """What answers questions is loaded like what is scored: safetensors only."""
    import torch

    from trajscore.engines import EngineOptions
    from trajscore.engines.hf_generation import HFGenerator

    shutil.copytree(STUDENT, tmp_path / "m")
    weights = transformers.AutoModelForCausalLM.from_pretrained(STUDENT).state_dict()
    (tmp_path / "m" / "model.safetensors").unlink()
    torch.save(weights, tmp_path / "m" / "pytorch_model.bin")
    with pytest.raises(UsageError, match="pickled ones"):
        HFGenerator(str(tmp_path / "m"), EngineOptions())
