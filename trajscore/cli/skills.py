"""`trajscore skills`: the options of its commands and what they print."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from trajscore.cli.app import EXIT_TOO_MANY_REFUSED, Commands, Json, app, print_json, print_parts
from trajscore.cli.help import Command, Group
from trajscore.cli.skills_options import (
    Annotator,
    BaseUrl,
    Cache,
    Concurrency,
    ConfigName,
    Data,
    DryRun,
    InProcess,
    Limit,
    MaxModelLen,
    MaxRefused,
    MaxRetries,
    MaxTokens,
    MessagesField,
    OutJsonl,
    PromptField,
    Prompts,
    Request,
    Seed,
    Skills,
    Split,
    Temperature,
    Timeout,
    Votes,
    annotator_options,
    source_options,
)

if TYPE_CHECKING:
    from trajscore.skills.commands.annotator import Outcome


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
def catalogue(
    data: Data,
    annotator: Annotator,
    out: Annotated[Path, typer.Option(metavar="FILE.json", help="Lists of skills by subject, replaced whole.")],
    size: Annotated[int, typer.Option(metavar="N", help="Most skills per subject.")] = 20,
    base_url: BaseUrl = None,
    in_process: InProcess = False,
    temperature: Temperature = None,
    max_tokens: MaxTokens = 2048,
    seed: Seed = 0,
    prompts: Prompts = None,
    cache: Cache = None,
    concurrency: Concurrency = 8,
    timeout: Timeout = 600.0,
    max_retries: MaxRetries = 6,
    request: Request = None,
    max_model_len: MaxModelLen = None,
    prompt_field: PromptField = None,
    messages_field: MessagesField = None,
    split: Split = "train",
    config_name: ConfigName = None,
    limit: Limit = None,
    max_refused: MaxRefused = 0.05,
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Make the closed lists of skills from a question set, one list per subject.

    A list of your own needs no such call: {"subject": ["skill", ...]} in a .json file, or a text file with one per line.
    """
    from trajscore.skills.commands.label import skill_catalogue

    outcome = skill_catalogue(
        [str(each) for each in data],
        out=out,
        annotator=annotator_options(locals()),
        size=size,
        source=source_options(locals()),
        dry_run=dry_run,
    )
    _finish(outcome, out, as_json, max_refused)


@skills.command(cls=_OldName)
def label(
    data: Data,
    skills: Skills,
    annotator: Annotator,
    out: OutJsonl,
    votes: Votes = 1,
    base_url: BaseUrl = None,
    in_process: InProcess = False,
    temperature: Temperature = None,
    max_tokens: MaxTokens = 2048,
    seed: Seed = 0,
    prompts: Prompts = None,
    cache: Cache = None,
    concurrency: Concurrency = 8,
    timeout: Timeout = 600.0,
    max_retries: MaxRetries = 6,
    request: Request = None,
    max_model_len: MaxModelLen = None,
    prompt_field: PromptField = None,
    messages_field: MessagesField = None,
    split: Split = "train",
    config_name: ConfigName = None,
    limit: Limit = None,
    max_refused: MaxRefused = 0.05,
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Label each training question with up to five skills of its subject's closed list (the Skill-Map)."""
    from trajscore.skills.commands.label import label_skills

    outcome = label_skills(
        [str(each) for each in data],
        skills=skills,
        out=out,
        annotator=annotator_options(locals()),
        votes=votes,
        source=source_options(locals()),
        dry_run=dry_run,
    )
    _finish(outcome, out, as_json, max_refused)


@skills.command(cls=_OldName)
def answer(
    data: Data,
    student: Annotated[str, typer.Option(metavar="MODEL", help="Model to be trained: hub id or folder.")],
    out: OutJsonl,
    samples: Annotated[int, typer.Option(metavar="N", help="Responses per question.")] = 1,
    temperature: Annotated[
        float | None,
        typer.Option(
            metavar="T", help="0 is greedy. Default: 0.1 with one sample, 0.7 with several.", show_default=False
        ),
    ] = None,
    max_tokens: Annotated[int, typer.Option(metavar="N", help="Longest response, in tokens.")] = 2048,
    seed: Seed = 0,
    engine: Annotated[
        str, typer.Option(metavar="auto|vllm|hf", help="What runs the student; auto: vLLM where it is installed.")
    ] = "auto",
    revision: Annotated[str | None, typer.Option(help="Hub revision. Default: main.")] = None,
    dtype: Annotated[str, typer.Option(help="Of the weights; auto: the checkpoint's, float32 on CPU.")] = "auto",
    trust_remote_code: Annotated[
        bool, typer.Option("--trust-remote-code", help="Run model code that comes with the checkpoint. Default: off.")
    ] = False,
    max_model_len: MaxModelLen = None,
    batch_size: Annotated[int, typer.Option(metavar="N", help="Questions per batch; finished ones are kept.")] = 64,
    cache: Cache = None,
    prompt_field: PromptField = None,
    messages_field: MessagesField = None,
    split: Split = "train",
    config_name: ConfigName = None,
    limit: Limit = None,
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Let the student answer validation questions; right answers (column `answer`) are compared by math-verify."""
    from trajscore.skills.commands.answer import StudentOptions, answer_questions

    chosen = StudentOptions(student, engine, revision, dtype, "auto", trust_remote_code, max_model_len, batch_size)
    outcome = answer_questions(
        [str(each) for each in data],
        student=chosen,
        out=out,
        samples=samples,
        temperature=temperature,
        max_tokens=max_tokens,
        seed=seed,
        cache=cache,
        source=source_options(locals()),
        dry_run=dry_run,
    )
    _finish(outcome, out, as_json, 1.0)


@skills.command(cls=_OldName)
def diagnose(
    answers: Annotated[Path, typer.Argument(metavar="ANSWERS", help="What `trajscore skills answer` wrote.")],
    skills: Skills,
    annotator: Annotator,
    out: OutJsonl,
    rule: Annotated[
        str,
        typer.Option(
            metavar="auto|reward|correctness|consistency|length",
            help="What makes a question difficult: step rewards (column step_rewards), wrong answers, answers that differ, or "
            "long responses; auto: the first of the first three that the rows allow.",
        ),
    ] = "auto",
    tau1: Annotated[float, typer.Option(help="reward: last or mean step at most this; 0 is off.")] = 0.85,
    tau2: Annotated[float, typer.Option(help="reward: any earlier step at most this; 0 is off.")] = 0.7,
    repeats: Annotated[int, typer.Option(metavar="N", help="consistency: the commonest answer occurs less often.")] = 2,
    words: Annotated[float, typer.Option(metavar="N", help="length: mean words of the responses at least this.")] = 800,
    questions: Annotated[
        int | None,
        typer.Option(
            metavar="N", help="Difficult questions to diagnose, drawn at random. Default: all.", show_default=False
        ),
    ] = None,
    votes: Votes = 1,
    base_url: BaseUrl = None,
    in_process: InProcess = False,
    temperature: Temperature = None,
    max_tokens: MaxTokens = 2048,
    seed: Seed = 0,
    prompts: Prompts = None,
    cache: Cache = None,
    concurrency: Concurrency = 8,
    timeout: Timeout = 600.0,
    max_retries: MaxRetries = 6,
    request: Request = None,
    max_model_len: MaxModelLen = None,
    max_refused: MaxRefused = 0.05,
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Find the difficult questions, and ask the annotator which skills the student lacks in each."""
    from trajscore.skills.commands.diagnose import diagnose_skills
    from trajscore.skills.difficulty import DifficultyBounds

    outcome = diagnose_skills(
        answers,
        skills=skills,
        out=out,
        annotator=annotator_options(locals()),
        rule=rule,
        limits=DifficultyBounds(tau1, tau2, repeats, words),
        questions=questions,
        votes=votes,
        dry_run=dry_run,
    )
    _finish(outcome, out, as_json, max_refused)


@skills.command(cls=_OldName)
def profile(
    diagnosis: Annotated[Path, typer.Argument(metavar="DIAGNOSIS", help="What `trajscore skills diagnose` wrote.")],
    out: Annotated[
        Path | None, typer.Option(metavar="FILE.json", help="The profile. Default: not written.", show_default=False)
    ] = None,
    chart: Annotated[
        Path | None, typer.Option(metavar="FILE.svg", help="A bar chart. Default: not written.", show_default=False)
    ] = None,
    confidence: Annotated[float, typer.Option(metavar="P", help="Share of the replicates inside an interval.")] = 0.9,
    replicates: Annotated[int, typer.Option(metavar="B", help="Bootstrap replicates over diagnosed questions.")] = 1000,
    seed: Annotated[int, typer.Option(help="Seed of the resampling.")] = 0,
    as_json: Json = False,
) -> None:
    """Count the skills that the student lacks, with intervals (the Missing-Skill-Profile)."""
    from trajscore.skills.commands.profile import skill_profile

    made = skill_profile(diagnosis, out=out, chart=chart, confidence=confidence, replicates=replicates, seed=seed)
    if as_json:
        print_json({**made.to_dict(), "out": out and str(out), "chart": chart and str(chart)})
        return
    from trajscore.skills.commands.terminal import profile_tables

    print_parts(profile_tables(made.to_dict()))


@skills.command(cls=_OldName)
def synthesise(
    profile: Annotated[Path, typer.Argument(metavar="PROFILE", help="What `trajscore skills profile` wrote.")],
    skill_map: Annotated[Path, typer.Option(metavar="FILE", help="What `trajscore skills label` wrote.")],
    annotator: Annotator,
    out: OutJsonl,
    decisions: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="One line per proposal, kept or why not. Default: not written.", show_default=False
        ),
    ] = None,
    seeds: Annotated[int, typer.Option(metavar="N", help="Questions of the skill that the annotator is shown.")] = 3,
    questions: Annotated[int, typer.Option(metavar="N", help="New questions per question and missing skill.")] = 2,
    solutions: Annotated[int, typer.Option(metavar="N", help="Independent solutions of each.")] = 3,
    min_agreement: Annotated[int, typer.Option(metavar="N", help="Equal answers that keep a question.")] = 2,
    total: Annotated[
        int | None, typer.Option(metavar="N", help="Pairs kept, drawn at random. Default: all.", show_default=False)
    ] = None,
    base_url: BaseUrl = None,
    in_process: InProcess = False,
    temperature: Temperature = None,
    max_tokens: MaxTokens = 2048,
    seed: Seed = 0,
    prompts: Prompts = None,
    cache: Cache = None,
    concurrency: Concurrency = 8,
    timeout: Timeout = 600.0,
    max_retries: MaxRetries = 6,
    request: Request = None,
    max_model_len: MaxModelLen = None,
    max_refused: MaxRefused = 0.05,
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Let the annotator write questions on the missing skills and keep those on whose answer its solutions agree (STAT-Syn)."""
    from trajscore.skills.commands.synthesise import SynthesisOptions, synthesise_questions

    outcome = synthesise_questions(
        profile,
        skill_map=skill_map,
        out=out,
        annotator=annotator_options(locals()),
        options=SynthesisOptions(seeds, questions, solutions, min_agreement, total),
        decisions=decisions,
        dry_run=dry_run,
    )
    _finish(outcome, out, as_json, max_refused)


def _finish(outcome: Outcome, out: Path, as_json: bool, max_refused: float) -> None:
    """Print the account; exit with 3 when too many items have no result."""
    summary: dict[str, Any] = outcome.to_dict()
    if as_json:
        print_json({**summary, "out": None if outcome.dry_run else str(out)})
    else:
        from trajscore.skills.commands.terminal import outcome_lines

        print_parts(outcome_lines(summary))
    if outcome.refused_share > max_refused:
        raise typer.Exit(EXIT_TOO_MANY_REFUSED)
