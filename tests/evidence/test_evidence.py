"""The experiment's own parts: the world of words, cutting into steps, generating, training, intervals, multiplier, records."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks.evidence import design, pools, records, runs, tables
from benchmarks.evidence.estimates import crossed_mean, multiplier, multiplier_interval, student_t
from benchmarks.evidence.student import IGNORED, Row, Student, in_steps
from benchmarks.evidence.words import TEACHERS, Problem, Step, answer_of, is_correct, problems, solve, split_of
from tests.helpers.paths import MODELS


def test_a_problem_worked_by_hand() -> None:
    problem = Problem(0, 1, "apples", 7, (Step("plus", 5), Step("minus", 3)))
    assert problem.values == [7, 12, 9]
    assert problem.question.startswith("Mia has 7 apples.")
    assert problem.question.endswith("How many apples does Mia have now?")
    assert {"5", "3"} <= set(re.findall(r"\d+", problem.question))
    assert solve(problem, "plain", 0) == "Mia starts with 7 apples. 7 + 5 = 12. 12 - 3 = 9. The answer is 9."
    assert solve(problem, "looping", 0).count("12 - 3 = 9.") == 3


def test_teachers_are_right_or_wrong_as_they_are_meant_to_be() -> None:
    asked = problems(150, "tests", "train")
    right = {name: np.mean([is_correct(each, solve(each, name, 0)) for each in asked]) for name in TEACHERS}
    assert 0.25 < right.pop("wrong") < 0.5
    assert set(right.values()) == {1.0}
    assert [solve(each, "wrong", 0) for each in asked] != [solve(each, "wrong", 1) for each in asked]
    for each in asked[:40]:
        # Shuffled says the same sentences in another order, and no solution holds a number that its story does not lead to.
        assert sorted(solve(each, "shuffled", 0).split(". ")) == sorted(solve(each, "plain", 0).split(". "))
        assert solve(each, "shuffled", 0) != solve(each, "plain", 0)
        known = {str(value) for value in each.values} | {str(step.operand) for step in each.steps}
        for name in ("plain", "terse", "verbose", "looping", "notation", "paraphrasing"):
            assert set(re.findall(r"\d+", solve(each, name, 0))) <= known, name


def test_training_and_held_out_problems_share_no_computation() -> None:
    train, test = problems(200, 0, "train"), problems(design.HELD_OUT, design.HELD_OUT_SEED, "test")
    assert not {each.core for each in train} & {each.core for each in test}
    assert len({each.core for each in test}) == design.HELD_OUT
    assert {split_of(each) for each in train} == {"train"}
    # A pool is the beginning of what a longer list of its seed holds.
    assert [each.id for each in problems(60, 0, "train")] == [each.id for each in train[:60]]
    assert [each.id for each in problems(60, 1, "train")] != [each.id for each in train[:60]]


@pytest.mark.parametrize(
    ("text", "answer"),
    [("The answer is: 12.", 12), ("the answer is $-3", -3), ("so 4, then 5.", 5), ("nothing", None), ("", None)],
)
def test_answers_are_read(text: str, answer: int | None) -> None:
    assert answer_of(text) == answer


def _row(n: int) -> Row:
    return Row([1] * (n + 3), [IGNORED] * 3 + [1] * n)


def test_steps_hold_every_row_once_and_about_as_many_labels() -> None:
    rows = [_row(n) for n in np.random.default_rng(0).integers(10, 90, 60).tolist()]
    steps = in_steps(rows, 16, seed=1)
    assert sorted(map(id, (row for step in steps for row in step))) == sorted(map(id, rows))
    labels = [sum(row.n_labels for row in step) for step in steps]
    assert min(labels) > 0
    assert max(labels) - min(labels) <= 2 * 90
    assert in_steps(rows, 16, seed=2) != steps
    assert [len(step) for step in in_steps([_row(1), _row(500), _row(1)], 3, seed=0)] == [1, 1, 1]
    with pytest.raises(ValueError, match="do not fill"):
        in_steps(rows[:3], 4, seed=0)


@pytest.fixture(scope="module")
def toy() -> Student:
    return Student(MODELS / "student")


def test_generation_in_batches_is_generation_one_by_one(toy: Student) -> None:
    """Rows that end leave the batch; what is left must be as if they had been alone: transformers' own greedy search."""
    questions = [each.question for each in problems(7, "tests", "test")]
    together = toy.generate(questions, limit=24)
    for question, text in zip(questions, together, strict=True):
        ids = torch.tensor([toy.prompt_ids(question)])
        out = toy.half.generate(
            input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=24, do_sample=False, eos_token_id=toy.end
        )
        alone = toy.tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True)
        assert text == alone[: len(text)]
    assert len(set(together)) > 1
    assert toy.generate(questions, 24, 1.5, seed=1) != toy.generate(questions, 24, 1.5, seed=2)
    assert toy.generate(questions, 24, 1.5, seed=1) == toy.generate(questions, 24, 1.5, seed=1)


def test_training_lowers_the_surprisal_of_what_it_trains_on() -> None:
    student = Student(MODELS / "student")
    rows = [student.row(each.question, solve(each, "plain", 0)) for each in problems(12, "tests", "train")]
    before = student.surprisal(rows)
    ids, labels = rows[0]
    shown = student.tokenizer.decode([label for label in labels if label != IGNORED])
    assert shown == solve(problems(12, "tests", "train")[0], "plain", 0) + "<|im_end|>"
    with torch.no_grad():
        logits = student.half(input_ids=torch.tensor([ids])).logits[0].float().log_softmax(-1)
    targets = [(at, label) for at, label in enumerate(labels) if label != IGNORED]
    oracle = -np.mean([logits[at - 1, label].item() for at, label in targets])
    assert before[0] == pytest.approx(oracle, rel=1e-2)
    trained = student.train(in_steps(rows, 6, 0), rate=1e-3, say=lambda _: None)
    assert trained.steps == 6
    assert trained.labels == sum(row.n_labels for row in rows)
    assert np.mean(student.surprisal(rows)) < 0.95 * np.mean(before)


def test_students_t_is_that_of_the_tables() -> None:
    for free, value in ((1, 12.706), (2, 4.303), (4, 2.776), (30, 2.042)):
        assert student_t(0.975, free) == pytest.approx(value, abs=1e-3)
        assert student_t(0.025, free) == pytest.approx(-value, abs=1e-3)


def test_intervals_over_seeds_and_problems_hold_the_truth() -> None:
    """Simulated with effects of seeds and of problems; without the seeds' share the interval must fail far more often."""
    generator, truth, held, naive, n = np.random.default_rng(0), 0.4, 0, 0, 200
    for _ in range(n):
        chance = truth + generator.normal(0, 0.08, (4, 1)) + generator.normal(0, 0.2, (1, 80))
        values = (generator.random((4, 80)) < chance.clip(0, 1)).astype(float)
        mean = crossed_mean(values)
        assert mean.low is not None
        assert mean.high is not None
        held += mean.low <= truth <= mean.high
        half = 1.96 * values.std() / math.sqrt(values.size)
        naive += abs(values.mean() - truth) <= half
    assert held / n > 0.9
    assert naive / n < 0.8
    assert crossed_mean(values[:1]).low is None


def test_the_multiplier_is_read_inside_the_measured_curve_only() -> None:
    curve = [(600, 0.1), (1200, 0.2), (2400, 0.3), (4800, 0.4)]
    assert multiplier(0.3, curve, 2400).value == pytest.approx(1.0)
    assert multiplier(0.35, curve, 2400).value == pytest.approx(math.sqrt(2))
    assert multiplier(0.9, curve, 2400) == (2.0, "above")
    assert multiplier(0.0, curve, 2400) == (0.25, "below")
    # Where the curve falls or is level, neighbours are pooled, and every budget of the level fits: its middle is taken.
    falling = [(600, 0.1), (1200, 0.3), (2400, 0.1), (4800, 0.4)]
    assert multiplier(0.2, falling, 2400).value == pytest.approx(math.sqrt(1200 * 2400) / 2400)
    same = np.repeat([[1.0, 0.0]], 3, axis=0)
    assert multiplier_interval(same, [(600, same * 0), (4800, same)], 2400).text.startswith("2.00 [")


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Scores of a small pool under the toy student, with another toy model beside it."""
    folder = tmp_path_factory.mktemp("pool")
    rows = pools.scripted(problems(8, "tests", "train"), ("plain", "wrong", "verbose"), 0)
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pools, "FOLDER", MODELS / "student")
        return pools.score(folder / "rows.jsonl", folder / "scores", teacher=MODELS / "teacher")


def test_policies_choose_what_their_names_say_within_the_budget(pool: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(design, "BUDGET", 1000)
    arms = {arm.name: dataclasses.replace(arm, budget=1000) for arm in (*design.CORE, *design.MORE)}
    chosen = {
        name: runs.choose(arms[name], 0, pool) for name in ("random-2400", "longest", "rsr-correct", "mask-entropy")
    }
    for name, each in chosen.items():
        labels = sum(row.n_labels for row in each.rows)
        assert len(each.rows) == each.about["rows"], name
        # All rules label the end-of-turn marker, too.
        assert 700 < labels - (len(each.rows) if name != "mask-entropy" else 0) <= 1100, name
    assert chosen["longest"].about["by_teacher"] == {"verbose": chosen["longest"].about["rows"]}
    assert chosen["rsr-correct"].about["share_correct"] == 1
    assert chosen["random-2400"].about["share_correct"] < 1
    assert chosen["mask-entropy"].about["tokens"] > 1.5 * chosen["random-2400"].about["tokens"]
    assert runs.choose(arms["random-2400"], 0, pool) == chosen["random-2400"]
    assert runs.choose(arms["random-2400"], 1, pool).about["ids_sha256"] != chosen["random-2400"].about["ids_sha256"]
    by_provenance = runs.choose(arms["mask-provenance"], 0, pool)
    assert all(0 < row.n_labels <= len(row.ids) for row in by_provenance.rows)


def _record(arm: design.Arm, seed: int, solved: str) -> dict[str, Any]:
    return {
        "kind": "run", "seed": seed, "arm": arm.name, "about": arm.about, "hours": {"processor": 0.03, "clock": 0.05},
        "settings": design.settings(arm),
        "chosen": {"rows": 50, "prompts": 40, "share_correct": 0.5}, "trained": {"labels": 2400},
        "results": {"accuracy": solved.count("1") / len(solved), "solved": solved, "surprisal": {"plain": 0.5}},
    }  # fmt: skip


def test_records_are_whole_and_are_those_of_todays_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(records, "FOLDER", tmp_path)
    arm = design.CORE[0]
    assert runs.stored(arm, 3) is None
    records.write(records.path(arm.name, 3), _record(arm, 3, "10"))
    assert runs.stored(arm, 3) is not None
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["random-2400.json"]
    monkeypatch.setattr(design, "STEP", 301)
    assert runs.stored(arm, 3) is None


def test_tables_say_how_many_seeds_a_row_has(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(records, "FOLDER", tmp_path)
    arms = {arm.name: arm for arm in design.CORE}
    for seed, solved in enumerate(("1100", "1000")):
        records.write(records.path("random-2400", seed), _record(arms["random-2400"], seed, solved))
    records.write(records.path("rsr", 0), _record(arms["rsr"], 0, "1111"))
    found = tables.stored()
    rows = {row[0]: row for row in tables.core_rows(found)}
    assert rows["at random from the whole pool, 2400 tokens"][1] == "2"
    assert rows["at random from the whole pool, 2400 tokens"][6].startswith("37.5 [")
    assert rows["lowest RSR"][1] == "1"
    # Paired by seed: seed 0 alone has both.
    assert rows["lowest RSR"][7] == "+50.0 (one seed)"
    assert rows["longest"][6] == tables.NOT_YET
    assert "3 of" in tables.progress(found)
    assert tables.times(found, arms["rsr"]) == tables.NOT_YET


def test_a_whole_run_in_small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pool, selection, labels, training and measuring with the toy student; made again, the record says the same."""
    monkeypatch.setattr(records, "FOLDER", tmp_path / "records")
    monkeypatch.setattr(pools, "FOLDER", MODELS / "student")
    for module in (pools, runs):
        monkeypatch.setattr(module, "Student", lambda: Student(MODELS / "student"))
    small = {"PROMPTS": 4, "TEMPERATURES": (0.5, 1.0), "ROLLOUT_LIMIT": 8, "HELD_OUT": 6, "ANSWER_LIMIT": 16}
    for name, value in {**small, "SOLVED": 2, "STEP": 200}.items():
        monkeypatch.setattr(design, name, value)
    arm = dataclasses.replace(next(each for each in design.CORE if each.name == "rsr-correct"), budget=600)
    record = runs.run(arm, 0, tmp_path / "one")
    assert record["trained"]["steps"] == 3 * design.EPOCHS
    assert record["trained"]["last_loss"] != record["trained"]["first_loss"]
    assert record["chosen"]["share_correct"] == 1
    assert record["chosen"]["tokens"] <= 600
    assert len(record["results"]["solved"]) == 6
    assert record["results"]["surprisal"].keys() == set(design.STYLES)
    pool = records.read_one(records.path("pool", 0))
    assert pool is not None
    assert record["rows_sha256"] == pool["rows_sha256"]
    records.write(records.path(arm.name, 0), record)
    assert runs.stored(arm, 0) == record
    # From the record's samples, in another folder.
    again = runs.run(arm, 0, tmp_path / "two")
    assert {**again["results"], **again["chosen"]} == {**record["results"], **record["chosen"]}
    alone = runs.run(
        dataclasses.replace(next(each for each in design.MORE if each.teacher), budget=600), 0, tmp_path / "one"
    )
    assert alone["chosen"]["by_teacher"].keys() == {"plain"}


def test_a_pool_comes_out_of_its_record_on_any_machine() -> None:
    stored = tables.stored().pools
    assert stored
    for seed, record in stored.items():
        text = pools.lines(problems(design.PROMPTS, seed, "train"), record["rollouts"], seed)
        assert hashlib.sha256(text.encode()).hexdigest() == record["rows_sha256"]
        assert record["totals"]["rows"] == len(text.strip().split("\n"))


def test_every_stored_record_is_of_the_design_and_says_what_it_cost() -> None:
    arms = {arm.name: arm for arm in (*design.CORE, design.EVERYTHING, *design.MORE)}
    for record in records.read():
        assert record["hours"]["processor"] > 0
        assert {"torch", "transformers", "python"} <= record["versions"].keys()
        if record["kind"] == "run":
            assert record["settings"] == json.loads(json.dumps(design.settings(arms[record["arm"]]))), record["arm"]
            assert len(record["results"]["solved"]) == design.HELD_OUT
            assert record["results"]["accuracy"] == pytest.approx(
                record["results"]["solved"].count("1") / design.HELD_OUT, abs=1e-5
            )
