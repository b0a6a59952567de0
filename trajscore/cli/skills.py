"""`trajscore skills` on the command line: calls `skills.commands`, shows results by its `terminal`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from trajscore.cli.app import EXIT_TOO_MANY_REFUSED, Commands, Json, app, print_json, print_parts
from trajscore.cli.help import Command, Group
from trajscore.cli.parameters import takes
from trajscore.skills.options import (
    AnswerOptions,
    BeginOptions,
    CatalogueOptions,
    DiagnoseOptions,
    EntropyOptions,
    LabelOptions,
    PassRateOptions,
    ProfileOptions,
    SynthesiseOptions,
)

if TYPE_CHECKING:
    from trajscore.skills.commands.annotator import Outcome
    from trajscore.skills.commands.joining import Joined


class _OldName(Command):
    """`--teacher` is understood as `--annotator`, its name until teachers were only those who write rows."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        old, new = "--teacher", "--annotator"
        return super().parse_args(
            ctx, [new + word[len(old) :] if word == old or word.startswith(f"{old}=") else word for word in args]
        )


skills = Commands(
    cls=Group,
    no_args_is_help=True,
    rich_markup_mode="rich",
    help="STAT: find out which skills the student lacks, and make training data of it (arXiv 2510.10023).",
)
app.add_typer(skills, name="skills")


@skills.command(cls=_OldName)
@takes(CatalogueOptions)
def catalogue(options: CatalogueOptions, as_json: Json = False) -> None:
    """Make the closed lists of skills from a question set, one list per subject.

    A list of your own needs no such call: {"subject": ["skill", ...]} in a .json file, or a text file with one per line.
    """
    from trajscore.skills.commands.label import skill_catalogue

    _finish(skill_catalogue(**vars(options)), options.out, as_json, options.max_refused)


@skills.command(cls=_OldName)
@takes(LabelOptions)
def label(options: LabelOptions, as_json: Json = False) -> None:
    """Label each training question with up to five skills of its subject's closed list (the Skill-Map)."""
    from trajscore.skills.commands.label import label_skills

    _finish(label_skills(**vars(options)), options.out, as_json, options.max_refused)


@skills.command(cls=_OldName)
@takes(AnswerOptions)
def answer(options: AnswerOptions, as_json: Json = False) -> None:
    """Let the student answer validation questions; right answers (column `answer`) are compared by math-verify."""
    from trajscore.skills.commands.answer import answer_questions

    _finish(answer_questions(**vars(options)), options.out, as_json, 1.0)


@skills.command("pass-rate")
@takes(PassRateOptions)
def pass_rate(options: PassRateOptions, as_json: Json = False) -> None:
    """Write scores again with the student's share of right answers to each prompt, by which `select --preset paced` weighs."""
    from trajscore.skills.commands.pass_rate import pass_rates

    _say_joined(pass_rates(**vars(options)), options.out, as_json)


@skills.command(cls=_OldName)
@takes(BeginOptions)
def begin(options: BeginOptions, as_json: Json = False) -> None:
    """Cut the student's responses at a random word, for a teacher to go on from: `skills answer FILE --student TEACHER`."""
    from trajscore.skills.commands.begin import begin_answers

    _finish(begin_answers(**vars(options)), options.out, as_json, 1.0)


@skills.command(cls=_OldName)
@takes(EntropyOptions)
def entropy(options: EntropyOptions, as_json: Json = False) -> None:
    """Write scores again with how unsure the student is of each prompt (EDCO), which `select --preset edco` ranks by."""
    from trajscore.skills.commands.entropy import prompt_entropies

    _say_joined(prompt_entropies(**vars(options)), options.out, as_json)


@skills.command(cls=_OldName)
@takes(DiagnoseOptions)
def diagnose(options: DiagnoseOptions, as_json: Json = False) -> None:
    """Find the difficult questions, and ask the annotator which skills the student lacks in each."""
    from trajscore.skills.commands.diagnose import diagnose_skills

    _finish(diagnose_skills(**vars(options)), options.out, as_json, options.max_refused)


@skills.command(cls=_OldName)
@takes(ProfileOptions)
def profile(options: ProfileOptions, as_json: Json = False) -> None:
    """Count the skills that the student lacks, with intervals (the Missing-Skill-Profile)."""
    from trajscore.skills.commands.profile import skill_profile

    made = skill_profile(**vars(options))
    out, chart = options.out, options.chart
    if as_json:
        print_json({**made.to_dict(), "out": out and str(out), "chart": chart and str(chart)})
        return
    from trajscore.display.terminal import written
    from trajscore.skills.commands.terminal import profile_tables

    print_parts(profile_tables(made.to_dict()))
    print_parts(written(out, chart))


@skills.command(cls=_OldName)
@takes(SynthesiseOptions)
def synthesise(options: SynthesiseOptions, as_json: Json = False) -> None:
    """Let the annotator write questions on the missing skills and keep those on whose answer its solutions agree (STAT-Syn)."""
    from trajscore.skills.commands.synthesise import synthesise_questions

    _finish(synthesise_questions(**vars(options)), options.out, as_json, options.max_refused)


def _say_joined(made: Joined, out: str | Path, as_json: bool) -> None:
    """Print what was joined to scores."""
    if as_json:
        print_json({**made.to_dict(), "out": str(out)})
        return
    from trajscore.display.terminal import plain, written

    print_parts(plain(line) for line in made.lines())
    print_parts(written(out))


def _finish(outcome: Outcome, out: str | Path, as_json: bool, max_refused: float) -> None:
    """Print the account; exit with 3 when too many items have no result."""
    summary: dict[str, Any] = outcome.to_dict()
    if as_json:
        print_json({**summary, "out": None if outcome.dry_run else str(out)})
    else:
        from trajscore.display.terminal import written
        from trajscore.skills.commands.terminal import outcome_lines

        print_parts(outcome_lines(summary))
        print_parts(written(None if outcome.dry_run else out))
    if outcome.refused_share > max_refused:
        raise typer.Exit(EXIT_TOO_MANY_REFUSED)
