"""Every option of `trajscore skills` and `grade`: which LLM labels and where it answers, which questions, how many of each."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from trajscore.errors import UsageError
from trajscore.options import USUAL, Options, argument, option
from trajscore.options.groups import EngineOptions, IntervalOptions
from trajscore.options.values import json_object

if TYPE_CHECKING:
    from trajscore.corpus import SourceOptions
    from trajscore.skills.calls import Annotator
    from trajscore.skills.catalogue import Catalogue
    from trajscore.skills.prompt_files import Prompt

REACHED = "how it is reached, not what it answers"


class CachedOptions(Options):
    """Where finished calls are kept, for the same command to go on from."""

    def also_writes(self) -> dict[str, Path]:
        """The cache that no option names."""
        named, out = getattr(self, "cache", None), getattr(self, "out", None)
        return {"--cache": default_cache(Path(out))} if named is None and out is not None else {}


def default_cache(out: Path) -> Path:
    """The cache of the run that writes a file, where none is named."""
    return out.with_name(f"{out.name}.calls.jsonl")


class AnnotatorOptions(CachedOptions):
    """The annotator, the LLM that labels, and how it is asked."""

    annotator: str = option(
        panel="Annotator",
        metavar="MODEL",
        help="LLM that labels: its name on the server, or a hub id or folder with --in-process.",
    )
    base_url: str | None = option(
        default=None,
        panel="Annotator",
        metavar="URL",
        otherwise="OPENAI_BASE_URL",
        help="OpenAI-compatible server, up to /v1. The key is read from TRAJSCORE_API_KEY or OPENAI_API_KEY.",
        harmless=REACHED,
    )
    in_process: bool = option(
        default=False,
        panel="Annotator",
        help="Load the annotator with vLLM here, instead of a server.",
        harmless=REACHED,
    )
    temperature: float | None = option(
        default=None,
        panel="Annotator",
        metavar="T",
        otherwise="0 for one answer, 0.7 where several are compared",
        at_least=0,
        at_most=2,
        help="Of the annotator.",
    )
    max_tokens: int = option(
        default=2048, panel="Annotator", unit="tokens", at_least=1, help="Longest answer of the annotator."
    )
    seed: int = option(
        default=0,
        panel="Annotator",
        metavar="N",
        help="Seed of every draw, and of the first answer to a prompt; the i-th after it has seed + i.",
    )
    prompts: str | Path | None = option(
        default=None,
        panel="Annotator",
        metavar="DIR",
        otherwise="the package's own",
        help="Folder with NAME.md files in place of those in trajscore/skills/prompts.",
        recorded_by="prompt_version",
    )
    cache: str | Path | None = option(
        default=None,
        metavar="FILE",
        otherwise="--out with .calls.jsonl at the end",
        help="Finished calls; the same command goes on from them.",
        writes=True,
    )
    concurrency: int = option(
        default=8,
        panel="Annotator",
        metavar="N",
        at_least=1,
        help="Requests to the server at a time.",
        harmless=REACHED,
    )
    timeout: float = option(
        default=600.0,
        panel="Annotator",
        unit="seconds",
        above=0,
        help="Time limit of one whole request, from the connection to the last byte of the reply.",
        harmless=REACHED,
    )
    max_retries: int = option(
        default=6,
        panel="Annotator",
        metavar="N",
        at_least=0,
        help="Repetitions after 429, 5xx, a lost connection or a timeout, with growing pauses.",
        harmless=REACHED,
    )
    backoff: float = option(
        default=1.0,
        python_only=True,
        unit="seconds",
        at_least=0,
        help="Pause before the first repetition, doubled each time.",
        harmless=REACHED,
    )
    request: Mapping[str, Any] = option(
        default_factory=dict,
        panel="Annotator",
        metavar="JSON",
        typed=str,
        parse=json_object,
        help="Fields added to each request's body (with --in-process to vLLM's SamplingParams); null removes one, for example "
        '\'{"max_tokens": null, "max_completion_tokens": 4000}\'.',
    )
    max_model_len: int | None = option(
        default=None,
        panel="Annotator",
        unit="tokens",
        otherwise="its own",
        at_least=1,
        help="Longest context of an annotator that vLLM loads here.",
        harmless=REACHED,
    )
    engine: EngineOptions = option(
        default_factory=EngineOptions,
        python_only=True,
        help="How an annotator in this process is loaded.",
        harmless=REACHED,
    )
    client: Annotator | None = option(
        default=None,
        python_only=True,
        help="An object of yours that answers (`trajscore.skills.calls.Annotator`), in place of server and process.",
        harmless=REACHED,
    )

    def check_values(self) -> None:
        """That there is an annotator."""
        if not self.annotator:
            raise UsageError("no annotator was given.", "Name the model that answers: --annotator MODEL.")

    def server_url(self) -> str | None:
        """Where the server is; None with `in_process` or `client`.

        Raises:
            UsageError: neither or both of server and process are named, or it cannot be asked so.
        """
        from trajscore.io.asking import check_server

        if self.client is not None:
            return None
        url = self.base_url or (None if self.in_process else os.environ.get("OPENAI_BASE_URL"))
        if self.in_process and url is not None:
            raise UsageError("--base-url and --in-process exclude each other.", "Give one of them.")
        if self.in_process:
            return None
        if url is None:
            raise UsageError(
                "where the annotator answers was not said.",
                "Give --base-url URL of an OpenAI-compatible server, or --in-process to load it with vLLM here.",
            )
        check_server(url, self.concurrency, self.timeout, self.max_retries)
        return url

    @cached_property
    def prompt_texts(self) -> Mapping[str, Prompt]:
        """Every prompt by name.

        Raises:
            UsageError: a prompt of the user's folder cannot be used.
        """
        from trajscore.skills.prompt_files import FIELDS, read_prompt

        return {name: read_prompt(name, self.prompts) for name in FIELDS}

    def settings(self, samples: int) -> dict[str, Any]:
        """What a call records of this, where `samples` answers to one prompt are asked for.

        Raises:
            UsageError: several answers would be the same one.
        """
        temperature = (0.0 if samples == 1 else 0.7) if self.temperature is None else self.temperature
        if samples > 1 and temperature == 0:
            raise UsageError("--temperature 0 makes all answers the same.", "Give a temperature above 0, or ask once.")
        recorded = {
            "model": self.annotator,
            "temperature": temperature,
            "max_tokens": self.max_tokens,
            "seed": self.seed,
        }
        return {**recorded, "request": dict(self.request)} if self.request else recorded


class DryRunOptions(Options):
    """A run that only counts."""

    dry_run: bool = option(
        default=False,
        panel="Dry run",
        help="Count calls and tokens; ask and write nothing.",
        harmless="nothing is written",
    )


class AccountOptions(DryRunOptions):
    """How a run with an annotator is judged."""

    max_refused: float = option(
        default=0.05,
        metavar="SHARE",
        at_least=0,
        at_most=1,
        help="Exit code 3 when more than this share of the questions has no result.",
        harmless="only the exit code depends on it",
    )


class QuestionOptions(Options):
    """Which questions are read."""

    data: str | Path | Sequence[str | Path] = argument(
        kw_only=False,
        metavar="DATA",
        help="JSONL, JSON or Parquet files, folders, globs, or a hub data set: rows as `trajscore score` reads them, or with "
        "a `question` (`problem`, `prompt`) alone; `subject` and `answer` are used.",
    )
    prompt_field: str | None = option(
        default=None,
        panel="Data",
        metavar="COLUMN",
        otherwise="prompt_id",
        help="Column that holds the prompt's id or text.",
    )
    messages_field: str | None = option(
        default=None,
        panel="Data",
        metavar="COLUMN",
        otherwise="messages",
        help="Column that holds the messages.",
    )
    limit: int | None = option(
        default=None, panel="Data", unit="rows", otherwise="all", at_least=1, help="Read the first rows only."
    )
    split: str | None = option(
        default=None,
        panel="Data",
        metavar="NAME",
        otherwise="train, or the only one",
        help="Split of a hub data set, or of a folder with files of several.",
    )
    config_name: str | None = option(
        default=None, panel="Data", metavar="NAME", otherwise="its own", help="Configuration of a hub data set."
    )

    @property
    def source(self) -> SourceOptions:
        """How the corpus's own reading is told."""
        from trajscore.corpus import FieldNames, SourceOptions

        fields = FieldNames(prompt=self.prompt_field, messages=self.messages_field)
        return SourceOptions(fields=fields, limit=self.limit, split=self.split, config_name=self.config_name)


class ListedOptions(Options):
    """What may be said of a question."""

    skills: str | Path | Catalogue = option(
        panel="Questions",
        metavar="FILE",
        typed=str,
        help="The catalogue: {subject: [skill, ...]} in a .json file, or one skill per line.",
    )
    votes: int = option(
        default=1,
        panel="Questions",
        metavar="N",
        at_least=1,
        help="Ask each question so often; what more than half of the answers say counts.",
    )


class CatalogueOptions(QuestionOptions, AnnotatorOptions, AccountOptions):
    """Everything `skills catalogue` can be told."""

    size: int = option(default=20, panel="Questions", metavar="N", at_least=1, help="Most skills per subject.")
    out: str | Path = option(
        panel="Output", metavar="FILE.json", help="Lists of skills by subject, replaced whole.", writes=True
    )


class LabelOptions(QuestionOptions, ListedOptions, AnnotatorOptions, AccountOptions):
    """Everything `skills label` can be told."""

    out: str | Path = option(
        panel="Output", metavar="FILE.jsonl", help="One line per question, replaced whole.", writes=True
    )


class GradeOptions(QuestionOptions):
    """Everything `grade` can be told."""

    reference_field: str = option(
        panel=USUAL, metavar="COLUMN", help="Column with the right answer, or a whole solution; dots lead into it."
    )
    out: str | Path = option(
        panel=USUAL,
        metavar="FILE.jsonl",
        help="Every row with `correct` (null: undecided) and `grade`, replaced whole.",
        writes=True,
    )
    teacher_from: Literal["path"] | None = option(
        default=None,
        panel=USUAL,
        metavar="path",
        otherwise="the row's own columns",
        help="path: the name of the file or folder, where rows name no teacher.",
    )
    id_from: Literal["file"] | None = option(
        default=None,
        panel=USUAL,
        metavar="file",
        otherwise="the row's own id",
        help="file: ids begin with the file's name, for files that each count from 0.",
    )

    @property
    def source(self) -> SourceOptions:
        """How the rows are read, and named by their files."""
        return replace(super().source, teacher_from=self.teacher_from, id_from=self.id_from)


class StudentOptions(Options):
    """The student and how it draws text."""

    student: str | Path = option(panel="Models", metavar="MODEL", help="Model to be trained: hub id or folder.")
    revision: str | None = option(
        default=None, panel="Models", metavar="NAME", otherwise="its main branch", help="Hub revision of the student."
    )
    trust_remote_code: bool = option(
        default=False,
        panel="Models",
        help="Run code that comes with the model.",
        harmless="the code belongs to the model",
    )
    engine: Literal["auto", "vllm", "hf"] = option(
        default="auto", panel="Engine", help="What runs the student; auto: vLLM where it is installed."
    )
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = option(
        default="auto", panel="Engine", help="Precision of the weights; auto: the checkpoint's, float32 on CPU."
    )
    device: str = option(
        default="auto",
        panel="Engine",
        metavar="auto|cpu|cuda[:N]|mps",
        help="Where transformers runs the student.",
        harmless="where it runs",
    )
    max_model_len: int | None = option(
        default=None,
        panel="Engine",
        unit="tokens",
        otherwise="its own",
        at_least=1,
        help="Longest conversation with its answer (vLLM).",
    )
    batch_size: int = option(
        default=64,
        panel="Engine",
        unit="questions",
        at_least=1,
        help="Questions per batch; a finished batch is kept and never drawn again.",
    )


class AnswerOptions(QuestionOptions, StudentOptions, DryRunOptions, CachedOptions):
    """Everything `skills answer` can be told."""

    samples: int = option(default=1, panel="Sampling", metavar="N", at_least=1, help="Responses per question.")
    temperature: float | None = option(
        default=None,
        panel="Sampling",
        metavar="T",
        otherwise="0.1 with one sample, 0.7 with several or with --entropy",
        at_least=0,
        help="How the student draws; 0 is greedy.",
    )
    top_p: float | None = option(
        default=None,
        panel="Sampling",
        metavar="P",
        otherwise="1; 0.7 with --entropy",
        above=0,
        at_most=1,
        help="Tokens are drawn from the most probable ones that together have this probability.",
    )
    max_tokens: int | None = option(
        default=None,
        panel="Sampling",
        unit="tokens",
        otherwise="2048; 128 with --entropy",
        at_least=1,
        help="Longest response of the student.",
    )
    entropy: bool = option(
        default=False,
        panel="Sampling",
        help="Ask for brief answers, and write how unsure the student is as it begins: inference_entropy, for "
        "`trajscore skills entropy`. Responses are not compared with the right answer.",
    )
    seed: int = option(
        default=0,
        panel="Sampling",
        metavar="N",
        help="Of the draws; the same seed and batches give the same responses.",
    )
    out: str | Path = option(
        panel="Output", metavar="FILE.jsonl", help="One line per question, replaced whole.", writes=True
    )
    cache: str | Path | None = option(
        default=None,
        metavar="FILE",
        otherwise="--out with .calls.jsonl at the end",
        help="Finished batches; the same command goes on from them.",
        writes=True,
    )


class BeginOptions(QuestionOptions):
    """Everything `skills begin` can be told."""

    answers: str | Path = option(
        panel="Data",
        metavar="ANSWERS",
        help="What `trajscore skills answer DATA` wrote: the student's own responses.",
    )
    share: float = option(
        default=1.0,
        panel="Sampling",
        metavar="F",
        above=0,
        at_most=1,
        help="Share of the questions with a response to cut, rounded down, at least one, drawn by --seed.",
    )
    whole: bool = option(
        default=False,
        panel="Sampling",
        flag="--whole/--unfinished",
        otherwise="unfinished",
        help="Cut finished responses, too; the source takes those that ran out of tokens.",
    )
    seed: int = option(
        default=0, panel="Sampling", metavar="N", help="Of the draws, which depend on it and on the question alone."
    )
    out: str | Path = option(
        panel="Output", metavar="FILE.jsonl", help="One line per beginning, replaced whole.", writes=True
    )


class JoinedOptions(Options):
    """Scores to which something of their prompts is joined."""

    scores: str | Path = option(
        panel="Data", metavar="SCORES", help="Finished folder of `trajscore score`, of the corpus that was answered."
    )
    overwrite: bool = option(
        default=False, panel="Output", help="Start anew where --out holds other scores.", harmless="what is replaced"
    )

    def check_values(self) -> None:
        """That there are answers."""
        if not getattr(self, "answers", ()):
            raise UsageError("no answers were given.", "Name what `trajscore skills answer` wrote.")


class PassRateOptions(JoinedOptions):
    """Everything `skills pass-rate` can be told."""

    answers: str | Path | Sequence[str | Path] = argument(
        kw_only=False,
        metavar="ANSWERS",
        help="What `trajscore skills answer --samples N` wrote; several count together.",
    )
    out: str | Path = option(
        panel="Output",
        metavar="DIR",
        help="The scores with the columns pass_rate and pass_rate_samples; null without a verdict.",
        writes=True,
    )


class EntropyOptions(JoinedOptions):
    """Everything `skills entropy` can be told."""

    answers: str | Path | Sequence[str | Path] = argument(
        kw_only=False,
        metavar="ANSWERS",
        help="What `trajscore skills answer --entropy` wrote; of several the mean counts.",
    )
    out: str | Path = option(
        panel="Output",
        metavar="DIR",
        help="The scores with the column inference_entropy; null where the prompt was not answered.",
        writes=True,
    )


class DiagnoseOptions(ListedOptions, AnnotatorOptions, AccountOptions):
    """Everything `skills diagnose` can be told. The bounds of the rules are the published ones."""

    answers: Path | str = argument(
        kw_only=False,
        metavar="ANSWERS",
        help="What `trajscore skills answer` wrote, or rows of `question` with `response` or `responses`.",
    )
    rule: Literal["auto", "reward", "correctness", "consistency", "length"] = option(
        default="auto",
        panel="Questions",
        help="What makes a question difficult: step rewards (column step_rewards), wrong answers, answers that differ, or "
        "long responses; auto: the first of the first three that the rows allow.",
    )
    tau1: float = option(
        default=0.85,
        panel="Questions",
        metavar="R",
        at_least=0,
        at_most=1,
        help="For reward: the last or mean step is at most this; 0 is off.",
    )
    tau2: float = option(
        default=0.7,
        panel="Questions",
        metavar="R",
        at_least=0,
        at_most=1,
        help="For reward: any earlier step is at most this; 0 is off.",
    )
    repeats: int = option(
        default=2,
        panel="Questions",
        metavar="N",
        at_least=1,
        help="For consistency: the commonest answer occurs less often.",
    )
    words: float = option(
        default=800.0, panel="Questions", unit="words", above=0, help="For length: mean of the responses at least this."
    )
    questions: int | None = option(
        default=None,
        panel="Questions",
        metavar="N",
        otherwise="all",
        at_least=1,
        help="Difficult questions to diagnose, drawn at random.",
    )
    out: str | Path = option(
        panel="Output", metavar="FILE.jsonl", help="One line per question, replaced whole.", writes=True
    )


class ProfileOptions(IntervalOptions):
    """Everything `skills profile` can be told."""

    diagnosis: Path | str = argument(kw_only=False, metavar="DIAGNOSIS", help="What `trajscore skills diagnose` wrote.")
    out: str | Path | None = option(
        default=None,
        metavar="FILE.json",
        otherwise="not written",
        help="The profile, which `select --metric stat` and `skills synthesise` read.",
        writes=True,
    )
    chart: str | Path | None = option(
        default=None, metavar="FILE.svg", otherwise="not written", help="A bar chart.", writes=True
    )


class SynthesisOptions(Options):
    """How many of each; the defaults are the published numbers."""

    seeds: int = option(
        default=3,
        panel="Questions",
        metavar="N",
        at_least=1,
        help="Questions of the skill that the annotator is shown.",
    )
    questions: int = option(
        default=2, panel="Questions", metavar="N", at_least=1, help="New questions per question and missing skill."
    )
    solutions: int = option(
        default=3, panel="Questions", metavar="N", at_least=1, help="Independent solutions of each."
    )
    min_agreement: int = option(
        default=2, panel="Questions", metavar="N", at_least=1, help="Equal answers that keep a question."
    )
    total: int | None = option(
        default=None,
        panel="Questions",
        unit="pairs",
        otherwise="all",
        at_least=1,
        help="Pairs of question and solution that are kept, drawn at random.",
    )

    def check_values(self) -> None:
        """That solutions can agree so often."""
        if self.min_agreement > self.solutions:
            raise UsageError(
                f"--min-agreement {self.min_agreement} of {self.solutions} solutions cannot be reached.",
                "Ask for more --solutions, or for less agreement.",
            )


class SynthesiseOptions(SynthesisOptions, AnnotatorOptions, AccountOptions):
    """Everything `skills synthesise` can be told."""

    profile: Path | str = argument(kw_only=False, metavar="PROFILE", help="What `trajscore skills profile` wrote.")
    skill_map: Path | str = option(
        panel="Questions", metavar="FILE", help="What `trajscore skills label` wrote; seeds come from it."
    )
    out: str | Path = option(
        panel="Output",
        metavar="FILE.jsonl",
        help="One line per kept pair of question and solution, as `score` reads it, replaced whole.",
        writes=True,
    )
    decisions: str | Path | None = option(
        default=None,
        metavar="FILE",
        otherwise="not written",
        help="One line per proposal, kept or why not.",
        writes=True,
    )
