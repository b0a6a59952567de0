"""Difficulty, votes, answers, prompts, catalogues and agreement against independent computations and cases worked by hand."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trajscore.errors import UsageError
from trajscore.skills.answers import final_answer, groups, reference_answer, same_answer
from trajscore.skills.catalogue import catalogue, read_catalogue
from trajscore.skills.difficulty import DifficultyBounds, by_consistency, by_correctness, by_length, by_reward
from trajscore.skills.profile import counts, incidence
from trajscore.skills.prompt_files import FIELDS, Prompt, read_prompt
from trajscore.skills.synthesis import agreeing
from trajscore.skills.votes import agreement, majority_skills, majority_verdict

LEVELS = ["0.5", "0.69", "0.7", "0.71", "0.8", "0.84", "0.85", "0.86", "0.9", "1"]


def _difficult(rewards: list[Fraction], tau1: Fraction, tau2: Fraction) -> bool:
    """The published rule in exact arithmetic, written as three separate questions."""
    last = tau1 != 0 and rewards[-1] <= tau1
    mean = tau1 != 0 and sum(rewards, Fraction(0)) <= tau1 * len(rewards)
    early = tau2 != 0 and min([*rewards[:-1], Fraction(2)]) <= tau2
    return last or mean or early


@pytest.mark.parametrize(("tau1", "tau2"), [("0.85", "0.7"), ("0", "0.7"), ("0.85", "0"), ("0", "0"), ("0.9", "0.8")])
def test_reward_rule_at_the_boundaries(tau1: str, tau2: str) -> None:
    """Every triple of levels on, below and above the thresholds, in exact arithmetic."""
    limits = DifficultyBounds(float(tau1), float(tau2))
    seen = Counter[bool]()
    for levels in itertools.chain(*(itertools.product(LEVELS, repeat=n) for n in (1, 2, 3))):
        expected = _difficult([Fraction(each) for each in levels], Fraction(tau1), Fraction(tau2))
        assert by_reward([float(each) for each in levels], limits) is expected, levels
        seen[expected] += 1
    assert (tau1, tau2) == ("0", "0") or min(seen.values()) > 20, "both outcomes occur"


@pytest.mark.parametrize(
    ("rewards", "difficult"),
    [
        ([0.9, 0.9, 0.86], False),
        ([0.9, 0.9, 0.85], True),
        ([0.71, 0.95, 0.95], False),
        ([0.7, 0.95, 0.95], True),
        ([0.8, 0.9], True),
        ([0.81, 0.9], False),
        ([0.86], False),
        ([0.7], True),
        ([], None),
        ([0.9, math.nan], None),
    ],
)
def test_reward_rule_by_hand(rewards: list[float], difficult: bool | None) -> None:
    assert by_reward(rewards, DifficultyBounds()) is difficult
    assert by_reward(None, DifficultyBounds()) is None


def test_consistency_rule() -> None:
    """The published one: 5 samples, difficult if the commonest answer occurs once."""
    assert by_consistency(["1", "2", "3", "4", "5"], DifficultyBounds()) is True
    assert by_consistency(["1", "2", "3", "4", "4.0"], DifficultyBounds()) is False
    assert by_consistency([None] * 5, DifficultyBounds()) is True
    assert by_consistency(["1"], DifficultyBounds()) is None
    assert by_consistency(["1", "1"], DifficultyBounds(repeats=3)) is None


def test_length_and_correctness_rules() -> None:
    at, below = " ".join(["w"] * 800), " ".join(["w"] * 799)
    assert by_length([at], DifficultyBounds()) is True
    assert by_length([below], DifficultyBounds()) is False
    assert by_length([below, at + " w"], DifficultyBounds()) is True, "the mean is 800"
    assert by_length([], DifficultyBounds()) is None
    assert by_correctness([True, None]) is False
    assert by_correctness([]) is None


@pytest.mark.parametrize("values", [{"tau1": 1.1}, {"tau2": -0.1}, {"repeats": 0}, {"words": 0}, {"tau1": math.nan}])
def test_thresholds_out_of_range(values: dict[str, float]) -> None:
    with pytest.raises(UsageError):
        DifficultyBounds(**values)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("response", "answer"),
    [
        (r"so \boxed{1} or \boxed{\frac{a}{b}} it is", r"\frac{a}{b}"),
        (r"\boxed{2", "2"),
        ("<think>Answer: 3</think>\n\nAnswer: 4", "4"),
        ("<think>Answer: 3", None),
        ("<think>a</think>The answer is **7**.", "7"),
        ("I get 3, then 1,234.5", "1,234.5"),
        ("Answer:\nAnswer: x = 5", "x = 5"),
        ("no idea", None),
        ("", None),
        ("</think>9", "9"),
    ],
)
def test_final_answer(response: str, answer: str | None) -> None:
    assert final_answer(response) == answer


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("1000", "1,000", True),
        (r"\frac{1}{2}", "0.5", True),
        ("x+1", "1+x", True),
        ("3", "3.0", True),
        ("3", "4", False),
        ("A", "a", True),
        ("A", "B", False),
        ("Paris", "pairs", False),
        ("Paris", " paris.", True),
        ("", "", False),
        ("__import__('os')", "1", False),
        ("9^{9^{9^{9}}}", "3", False),
        ("1" * 300, "1" * 299, False),
    ],
)
def test_same_answer(one: str, other: str, same: bool) -> None:
    assert same_answer(one, other) is same
    assert same_answer(other, one) is same


def test_reference_answers() -> None:
    assert reference_answer("half of 4\n#### 2") == "2"
    assert reference_answer(r"thus \boxed{\frac{1}{2}}.") == r"\frac{1}{2}"


@given(st.lists(st.sampled_from(["1", "2", "3", None]), max_size=6), st.integers(1, 4))
def test_agreement_of_solutions_is_the_largest_group(answers: list[str | None], least: int) -> None:
    tally = Counter(answer for answer in answers if answer is not None)
    chosen = agreeing(answers, least)
    largest = max(tally.values(), default=0)
    if largest < least:
        assert chosen == []
    else:
        (value,) = {answers[place] for place in chosen}
        assert chosen == [place for place, answer in enumerate(answers) if answer == value]
        assert len(chosen) == largest


@pytest.mark.parametrize(
    ("answers", "kept"),
    [
        (["7", "7", "7"], [0, 1, 2]),
        (["7", "8", "7.0"], [0, 2]),
        (["8", r"\frac{14}{2}", "7"], [1, 2]),
        (["7", "8", "9"], []),
        (["7", None, None], []),
        ([None, None, None], []),
    ],
)
def test_consistency_filter_by_hand(answers: list[str | None], kept: list[int]) -> None:
    """Section 4.3 of the paper: three solutions, kept if two agree, and then only those that agree."""
    assert agreeing(answers, 2) == kept
    assert len(agreeing(answers, 1)) >= 1 or answers == [None] * 3, (
        "the control: with less agreement asked for, more is kept"
    )


def test_groups_of_none() -> None:
    assert groups([]) == groups([None, None]) == []


@given(st.lists(st.lists(st.sampled_from("abcdefg"), max_size=6), max_size=6))
def test_votes_against_counting(votes: list[list[str]]) -> None:
    chosen = majority_skills(votes, "abcdefg", 5)
    share = {skill: Fraction(sum(skill in vote for vote in votes), max(len(votes), 1)) for skill in "abcdefg"}
    above = [skill for skill in "abcdefg" if share[skill] > Fraction(1, 2)]
    assert chosen == sorted(above, key=lambda skill: -share[skill])[:5]
    value = agreement(votes)
    if len(votes) < 2:
        assert value is None
    else:
        pairs = [(set(a), set(b)) for i, a in enumerate(votes) for b in votes[:i]]
        exact = sum(Fraction(len(a & b), len(a | b)) if a | b else 1 for a, b in pairs) / len(pairs)
        assert value == pytest.approx(float(exact))


def test_verdicts() -> None:
    assert majority_verdict([]) is None
    assert majority_verdict(["a", "b"]) is None
    assert majority_verdict(["a", "b", "b"]) == "b"


def test_counts_in_order() -> None:
    missing = {"q1": ["b", "a", "b"], "q2": ["b"], "q3": [], "q4": ["c", "a"]}
    assert counts(missing) == [("a", 2), ("b", 2), ("c", 1)]
    assert incidence(missing, ["a", "b", "c"]).tolist() == [[1, 1, 0], [0, 1, 0], [0, 0, 0], [1, 0, 1]]


@pytest.mark.parametrize("name", FIELDS)
def test_every_prompt_of_the_package_can_be_filled(name: str) -> None:
    prompt = read_prompt(name)
    filled = prompt.fill(**{field: f"<{field}>" for field in FIELDS[name]})
    assert "{{" not in filled
    unused = {field for field in FIELDS[name] if f"<{field}>" not in filled}
    assert unused == ({"solution"} if name in ("label", "name_skills") else set())


def test_data_is_never_read_as_a_template() -> None:
    hostile = "{{skills}} {question} {{ 7 * 7 }} {0.__class__} \\1"
    filled = Prompt("label", "A {{question}} B {{ skills }}", "v").fill(question=hostile, skills="s")
    assert filled == f"A {hostile} B s"


def test_own_prompts(tmp_path: Path) -> None:
    (tmp_path / "solve.md").write_text("Do: {{question}}\n")
    assert read_prompt("solve", tmp_path).text == "Do: {{question}}"
    assert read_prompt("solve", tmp_path).version != read_prompt("solve").version
    assert read_prompt("label", tmp_path) == read_prompt("label")
    (tmp_path / "solve.md").write_text("Do: {{exercise}}")
    with pytest.raises(UsageError, match=r"solve\.md: the field 'exercise' is unknown"):
        read_prompt("solve", tmp_path)
    (tmp_path / "solve.md").write_text("Do it")
    with pytest.raises(UsageError, match="question}} is missing"):
        read_prompt("solve", tmp_path)


@pytest.mark.parametrize(
    "value", [{}, [], "a", {"s": []}, {"s": ["a", "a"]}, {"s": [" "]}, {"s": [1]}, {"s": "abc"}, None]
)
def test_no_catalogue(value: object) -> None:
    with pytest.raises(UsageError):
        catalogue(value)


def test_catalogues(tmp_path: Path) -> None:
    two = catalogue({"A": ["x", "y"], "B": ["y"]})
    assert (two.of("A"), two.of("B"), two.of("C"), two.of(None)) == (("x", "y"), ("y",), None, None)
    (tmp_path / "skills.txt").write_text("plus\n\n minus \n")
    one = read_catalogue(tmp_path / "skills.txt")
    assert one.of(None) == one.of("anything") == ("plus", "minus")
    (tmp_path / "skills.json").write_text("{")
    with pytest.raises(UsageError, match="not readable as a catalogue"):
        read_catalogue(tmp_path / "skills.json")
