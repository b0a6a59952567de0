"""Options that several commands of `trajscore skills` share, each once."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import orjson
import typer

from trajscore.errors import UsageError

if TYPE_CHECKING:
    from trajscore.corpus import SourceOptions
    from trajscore.skills.annotator_options import AnnotatorOptions

Data = Annotated[
    list[str],
    typer.Argument(
        metavar="DATA",
        show_default=False,
        help="JSONL, JSON or Parquet files, folders, globs, or a hub data set: rows as "
        "`trajscore score` reads them, or with a `question` (`problem`, `prompt`) alone; `subject` and `answer` are used.",
    ),
]
Annotator = Annotated[
    str,
    typer.Option(
        "--annotator",
        metavar="MODEL",
        help="LLM that labels: its name on the server, or a hub id or folder with --in-process.",
    ),
]
OutJsonl = Annotated[Path, typer.Option(metavar="FILE.jsonl", help="One line per question, replaced whole.")]
Skills = Annotated[
    Path,
    typer.Option(
        "--skills",
        metavar="FILE",
        help="The catalogue: {subject: [skill, ...]} in a .json file, or one skill per line.",
    ),
]
Votes = Annotated[
    int,
    typer.Option(metavar="N", help="Ask each question so often; what more than half of the answers say counts."),
]
BaseUrl = Annotated[
    str | None,
    typer.Option(
        metavar="URL",
        show_default=False,
        help="OpenAI-compatible server, up to /v1. Default: OPENAI_BASE_URL. The key is read from TRAJSCORE_API_KEY or "
        "OPENAI_API_KEY.",
    ),
]
InProcess = Annotated[
    bool, typer.Option("--in-process", help="Load the annotator with vLLM here, instead of a server. Default: off.")
]
Temperature = Annotated[
    float | None,
    typer.Option(
        metavar="T",
        show_default=False,
        help="Of the annotator. Default: 0 for one answer, 0.7 where several are compared.",
    ),
]
MaxTokens = Annotated[int, typer.Option(metavar="N", help="Longest answer of the annotator, in tokens.")]
Seed = Annotated[int, typer.Option(help="Seed of answers and draws.")]
Prompts = Annotated[
    Path | None,
    typer.Option(
        metavar="DIR",
        show_default=False,
        help="Folder with NAME.md files in place of the package's prompts (trajscore/skills/prompts). Default: those.",
    ),
]
Cache = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        show_default=False,
        help="Finished calls; the same command goes on from them. Default: --out with .calls.jsonl at the end.",
    ),
]
Concurrency = Annotated[int, typer.Option(metavar="N", help="Requests to the server at a time.")]
Timeout = Annotated[
    float,
    typer.Option(metavar="SECONDS", help="Time limit of one whole request with its reply."),
]
MaxRetries = Annotated[
    int,
    typer.Option(metavar="N", help="Repetitions after 429, 5xx, a lost connection or a timeout, with growing pauses."),
]
Request = Annotated[
    str | None,
    typer.Option(
        metavar="JSON",
        show_default=False,
        help="Fields added to each request's body (with --in-process to vLLM's SamplingParams); null removes one, for example "
        '\'{"max_tokens": null, "max_completion_tokens": 4000}\'. Default: none.',
    ),
]
MaxModelLen = Annotated[
    int | None,
    typer.Option(
        metavar="N", show_default=False, help="Longest context of a model that vLLM loads here. Default: its own."
    ),
]
PromptField = Annotated[
    str | None, typer.Option(show_default=False, help="Column that holds the prompt's id or text. Default: prompt_id.")
]
MessagesField = Annotated[
    str | None, typer.Option(show_default=False, help="Column that holds the messages. Default: messages.")
]
Split = Annotated[str, typer.Option(help="Split of a hub data set.")]
ConfigName = Annotated[str | None, typer.Option(show_default=False, help="Configuration of a hub data set.")]
Limit = Annotated[
    int | None, typer.Option(metavar="N", show_default=False, help="Read only the first N rows. Default: all.")
]
MaxRefused = Annotated[
    float, typer.Option(metavar="F", help="Exit with 3 when more than this share of the questions has no result.")
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Count calls and tokens; ask and write nothing. Default: off.")]


def annotator_options(given: Mapping[str, Any]) -> AnnotatorOptions:
    """The annotator's options out of a command's parameters.

    Raises:
        UsageError: --request is no JSON object.
    """
    from trajscore.skills.annotator_options import AnnotatorOptions

    names = (
        "base_url", "in_process", "temperature", "max_tokens", "seed", "prompts", "cache", "concurrency", "timeout",
        "max_retries", "max_model_len",
    )  # fmt: skip
    return AnnotatorOptions(
        model=given["annotator"], request=_request(given["request"]), **{name: given[name] for name in names}
    )


def source_options(given: Mapping[str, Any]) -> SourceOptions:
    """How the data is read, out of a command's parameters."""
    from trajscore.corpus import FieldNames, SourceOptions

    fields = FieldNames(prompt=given["prompt_field"], messages=given["messages_field"])
    return SourceOptions(fields=fields, limit=given["limit"], split=given["split"], config_name=given["config_name"])


def _request(text: str | None) -> dict[str, Any]:
    if text is None:
        return {}
    try:
        value = orjson.loads(text)
    except ValueError as error:
        raise UsageError(
            f"--request {text!r}: not JSON ({error}).", 'Give an object such as {"top_p": 0.9}.'
        ) from error
    if not isinstance(value, dict):
        raise UsageError(f"--request {text!r}: no JSON object.", 'Give one such as {"top_p": 0.9}.')
    return value
