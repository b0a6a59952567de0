"""The recommendation in one sentence, no surer than the numbers, with cautions beside it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from trajscore.estimates.comparison import MIN_PROMPTS
from trajscore.ranking.ranking import Ranking, TeacherLine

Verdict = Literal["clear", "likely", "open", "none"]

LIKELY = 0.6
"""Probability from which the leader is called likely rather than the race open: three to two. A tie of two is open."""

_CORRECT_GAP = 0.1


@dataclass(frozen=True)
class Recommendation:
    """What to do, and how sure that is.

    Attributes:
        verdict: `clear`: the leader is the best with at least the chosen confidence; `likely`: with at least three to two;
            `open`: with less; `none`: nothing can be compared.
        sentence: the recommendation.
        leader: the teacher with the best value on the compared prompts; None where there is none.
        candidates: the fewest teachers that hold the best with the chosen confidence, likeliest first.
        cautions: sentences that speak against following it blindly.
    """

    verdict: Verdict
    sentence: str
    leader: str | None
    candidates: tuple[str, ...]
    cautions: tuple[str, ...]


def recommend(ranking: Ranking, student: str | None) -> Recommendation:
    """Put a ranking into words.

    The wording follows the leader's probability of being the best: at least the confidence, at least three to two, or
    less. It is about the metric on more prompts like these; it knows nothing of what training would do.
    """
    found, whom = ranking.comparison, f"your student (`{student}`)" if student else "your student"
    share = found.probability_best.get(found.leader or "")
    if ranking.unranked:
        sentence = (
            f"{ranking.options.primary} has no direction, as no source shows which end is better, so nothing is ranked: "
            "teachers stand in the order of their names."
        )
        return Recommendation("none", sentence, None, (), ())
    if found.leader is None:
        sentence = f"No teacher can be recommended: no trajectory has {_article(ranking.options.primary)}."
        return Recommendation("none", sentence, None, (), ())
    if len(found.values) == 1:
        sentence = f"{found.leader} is the only teacher, so there is nothing to compare it with."
        return Recommendation("none", sentence, found.leader, found.candidates, _cautions(ranking))
    if share is None:
        sentence = (
            f"{found.leader} has the best {ranking.options.primary}, but with fewer than {MIN_PROMPTS} prompts nothing can "
            "be said about how sure that is."
        )
        return Recommendation("none", sentence, found.leader, found.candidates, _cautions(ranking))
    verdict: Verdict = "clear" if share >= ranking.options.confidence else "likely" if share >= LIKELY else "open"
    return Recommendation(
        verdict, _sentence(verdict, ranking, share, whom), found.leader, found.candidates, _cautions(ranking)
    )


def _article(metric: str) -> str:
    return f"a value of {metric}"


def percent(share: float) -> str:
    """A share as percent, never rounded to certainty.

    >>> percent(0.782), percent(0.9999), percent(0.0001), percent(1.0)
    ('78 %', '> 99 %', '< 1 %', '100 %')
    """
    if 0 < share < 0.01:
        return "< 1 %"
    return "> 99 %" if 0.99 < share < 1 else f"{100 * share:.0f} %"


def _sentence(verdict: Verdict, ranking: Ranking, share: float, whom: str) -> str:
    found, primary = ranking.comparison, ranking.options.primary
    chance = f"{percent(share)}, from a bootstrap over {_prompts(ranking)}"
    rivals = [name for name in found.candidates if name != found.leader]
    leader = f"{found.leader}{_wrong(ranking)}"
    if verdict == "clear":
        return f"By {primary}, {leader} suits {whom} best (probability {chance})."
    among = f"{_listed(rivals)} cannot be ruled out" if rivals else "other teachers cannot be ruled out"
    if verdict == "likely":
        return f"By {primary}, {leader} probably suits {whom} best (probability {chance}); {among}."
    return (
        f"The data do not settle which teacher suits {whom} best: by {primary}, {leader} leads "
        f"(probability {chance}), but {among}."
    )


def _wrong(ranking: Ranking) -> str:
    """How often a leader is right that is wrong more often than the others; empty for one that is not."""
    leader = next(line for line in ranking.lines if line.teacher == ranking.comparison.leader)
    return f" ({percent(leader.share_correct or 0.0)} correct)" if _correctness(leader, ranking.lines) else ""


def _prompts(ranking: Ranking) -> str:
    found = ranking.comparison
    if found.basis == "shared":
        whose = "all teachers of its group" if len(ranking.groups) > 1 else "all teachers"
        return f"the {found.prompts:,} prompts that {whose} share"
    return f"{found.prompts:,} prompts, too few of which all teachers share to compare them on the same ones"


def _listed(names: Sequence[str], most: int = 4) -> str:
    shown = [*names[:most], *([f"{len(names) - most} more"] if len(names) > most else [])]
    return shown[0] if len(shown) == 1 else f"{', '.join(shown[:-1])} and {shown[-1]}"


def _cautions(ranking: Ranking) -> tuple[str, ...]:
    lines = {line.teacher: line for line in ranking.lines}
    leader = lines[str(ranking.comparison.leader)]
    cautions = [*_correctness(leader, ranking.lines)]
    if len(ranking.groups) > 1:
        cautions.append(
            f"{len(ranking.groups)} groups of teachers have no prompt in common: this is about the largest, of "
            f"{len(ranking.groups[0])} teachers."
        )
    if ranking.lines[0].teacher != leader.teacher:
        cautions.append(
            f"Over all rows of each teacher {ranking.lines[0].teacher} has the better {ranking.options.primary}; "
            f"{leader.teacher} leads on the prompts that all share."
        )
    if leader.scored < leader.rows:
        cautions.append(f"{leader.rows - leader.scored} of {leader.rows} rows of {leader.teacher} could not be scored.")
    return tuple(cautions)


def _correctness(leader: TeacherLine, lines: Sequence[TeacherLine]) -> list[str]:
    others = [line.share_correct for line in lines if line is not leader and line.share_correct is not None]
    if leader.share_correct is None or not others:
        return []
    typical = sorted(others)[len(others) // 2]
    if typical - leader.share_correct < _CORRECT_GAP:
        return []
    return [
        f"Only {percent(leader.share_correct)} of the rows of {leader.teacher} are correct, against {percent(typical)} for the "
        "median of the other teachers: filter by correctness before you trust the ranking."
    ]
