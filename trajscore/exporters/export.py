"""`trajscore export`: a selection or a mask -> a folder that a trainer reads without glue.

It joins rows, exporters and the check; formats are the exporters'.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import date, datetime
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from trajscore import __version__
from trajscore.display.formatting import visible
from trajscore.errors import UsageError
from trajscore.exporters.base import CHAT_TEMPLATE, write_jsonl
from trajscore.exporters.check import (
    Check,
    check,
    check_messages,
    check_tokens,
    expected_messages,
    expected_tokens,
)
from trajscore.exporters.options import ExportOptions
from trajscore.exporters.rows import ConversationFile, LeftOut, Mask, Survey, is_mask
from trajscore.exporters.table import EXPORTERS, Exporter, find
from trajscore.io.atomic import files_in, new_folder
from trajscore.io.outputs import check_folder, spare_inputs_of, writing
from trajscore.io.paths import local_path
from trajscore.io.recorded_folder import RecordedFolder
from trajscore.options import keywords_of
from trajscore.options.groups import RenderOptions
from trajscore.rendering.renderer import Renderer

RECORD = "export.json"

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Exported:
    """What was written, and what became of the rest.

    Attributes:
        to: the exporter's name.
        out: the folder.
        form: `messages` or `tokens`.
        rows_in: rows of the file; `rows_in == rows_exported + sum(left_out.values())`.
        rows_exported: rows of the file that are in the export at least once.
        rows_written: rows of the export; other than `rows_exported` only with `resample`.
        left_out: rows left out, by reason.
        longest: tokens of the longest row, or an upper bound.
        exact: whether `longest` was counted.
        max_length: the maximum length in the configuration.
        token_weights: whether tokens carry weights.
        sample_weights: whether rows carry weights.
        files: names of the files.
        command: what to type next, in the folder.
        check: what came of reading it again, None when not asked for.
    """

    to: str
    out: str
    form: str
    rows_in: int
    rows_exported: int
    rows_written: int
    left_out: dict[str, int]
    longest: int
    exact: bool
    max_length: int
    token_weights: bool
    sample_weights: bool
    files: tuple[str, ...]
    command: str
    check: Check | None = None

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        values = {name: getattr(self, name) for name in self.__dataclass_fields__}
        return {**values, "files": list(self.files), "check": self.check and self.check.to_dict()}


@keywords_of(ExportOptions)
def export(options: ExportOptions) -> Exported:
    """Write what a trainer reads: data, configuration and the next command.

    Returns:
        The accounting: rows in = exported + left out.

    Raises:
        UsageError: a wrong option or file, or weights that the trainer cannot take. Nothing was written.
        DataError: the file is damaged.
        TrajscoreError: the folder cannot be written.
    """
    spare_inputs_of(options)
    student, check, resample = options.student, options.check, options.resample
    path, folder, exporter = Path(options.file), local_path(options.out, "--out"), find(options.to)
    check_folder(folder)
    whole = RecordedFolder(folder, RECORD, "trajscore export", "--out", options.keep_foreign)
    masked = is_mask(path)
    source: Mask | ConversationFile
    renderer = None if masked else _renderer(options)
    if masked:
        source = Mask(path)
    else:
        source = ConversationFile(
            path, exporter, renderer, options.messages_field, options.reasoning_as, options.chat_template_kwargs
        )
        if (given := source.token_ids) is not None:
            source, renderer, masked = given, None, True
    _check_options(masked, check, student, options.messages_field)
    _check_template(options, exporter, masked)
    if masked and check and student is not None:
        _compare_tokenizers(source.about, str(student))
    _refuse_form(source, exporter, path)
    _refuse_weights(source, exporter, path, resample)
    survey = source.survey()
    survey.plan = replace(survey.plan, chat_template=options.chat_template is not None)
    count_R = _counts(survey, path, resample, options.seed)
    if resample:
        survey.plan = replace(survey.plan, sample_weights=False)
    with writing(folder), new_folder(folder) as temporary:
        _write(source, survey, exporter, count_R, temporary)
        if survey.plan.chat_template and renderer is not None:
            (temporary / CHAT_TEMPLATE).write_text(renderer.template, "utf-8")
        summary = _summary(survey, exporter, folder, count_R)
        (temporary / "README.md").write_text(_readme(summary, exporter, survey, path), "utf-8")
        summary = replace(summary, files=tuple(sorted([*files_in(temporary), RECORD])))
        about = {"file": path.name, "about": source.about, **options.recorded()}
        whole.put(temporary, {**about, **summary.to_dict(), "out": folder.name})
    if check:
        today = datetime.now().date()
        summary = replace(
            summary,
            check=_checked(source, survey, exporter, count_R, folder, _located(student), _renderer(options, today)),
        )
    return summary


def _renderer(options: ExportOptions, today: date | None = None) -> Renderer | None:
    """The student's rendering as the trainer is told to do it; on this day where it is to be compared with the trainer's."""
    if options.student is None:
        return None
    rendering = RenderOptions(
        on_lost_text="accept",
        chat_template=options.chat_template,
        chat_template_kwargs=options.chat_template_kwargs,
    )
    return Renderer(str(options.student), rendering, today=today)


def _check_template(options: ExportOptions, exporter: Exporter, masked: bool) -> None:
    given = [
        flag
        for flag, value in (
            ("--chat-template", options.chat_template),
            ("--chat-template-kwargs", options.chat_template_kwargs),
            ("--reasoning-as", options.reasoning_as),
        )
        if value
    ]
    if masked and given:
        raise UsageError(f"{given[0]} has no effect on a mask: its tokens are fixed.", "Give it to `trajscore score`.")
    fits = exporter.chat_templates or given[:1] == ["--reasoning-as"]
    fits = fits or (exporter.row_variables and options.chat_template is None)
    if given and not fits:
        raise UsageError(
            f"{given[0]}: {exporter.trainer} takes no chat template from an export.",
            "Set it in the trainer's own configuration, or export a mask, whose tokens are fixed.",
        )
    if options.chat_template is not None and options.student is None:
        raise UsageError("--chat-template needs the model whose template it stands for.", "Add --student MODEL.")


def _compare_tokenizers(about: Mapping[str, Any], student: str) -> None:
    """Warn where the tokens of a mask may not be those of the model to be trained."""
    scored = (about.get("rendering") or {}).get("tokenizer_sha256")
    if scored is not None and scored != Renderer(student).describe()["tokenizer_sha256"]:
        _log.warning(
            "the mask's tokens were made by another tokenizer file than %s has: they may not be its tokens", student
        )


def _check_options(masked: bool, check: bool, student: object, messages_field: str | None) -> None:
    if check and not masked and student is None:
        raise UsageError(
            "--check compares conversations with the student's rendering, and no student was given.",
            "Add --student MODEL.",
        )
    if masked and messages_field is not None:
        raise UsageError("--messages-field: a mask holds tokens, no messages.", "Leave it out.")


def _refuse_form(source: Mask | ConversationFile, exporter: Exporter, path: Path) -> None:
    """Conversations where only tokens are taken, and soft targets that are missing or of no use."""
    if isinstance(source, ConversationFile) and "messages" not in exporter.forms:
        raise UsageError(
            f"{path}: holds conversations, and {exporter.trainer} is given tokens.",
            "Mask the scores of these rows, with `trajscore mask --rule all` for all scored tokens, and export that.",
        )
    if source.soft_targets and exporter.soft_targets == "no":
        able = " or ".join(f"--to {each.name}" for each in EXPORTERS.values() if each.soft_targets != "no")
        raise UsageError(
            f"{path}: holds a teacher's best entries, and {exporter.trainer} distils from none.",
            f"Export {able}, or mask without --soft-targets.",
        )
    if exporter.soft_targets == "needed" and not source.soft_targets:
        raise UsageError(
            f"{path}: holds no entries of a teacher, from which {exporter.trainer} distils.",
            "Score with --teacher MODEL --keep-topk K, and mask with --soft-targets.",
        )


def _refuse_weights(source: Mask | ConversationFile, exporter: Exporter, path: Path, resample: bool) -> None:
    """Weights are never dropped without a word."""
    if source.token_weights and not exporter.token_weights:
        able = " or ".join(f"--to {each.name}" for each in EXPORTERS.values() if each.token_weights)
        raise UsageError(
            f"{path}: has token weights (loss_weight), and {exporter.trainer} takes none.",
            f"Export {able}, or mask with a rule that keeps or drops tokens (no loss_weight).",
        )
    if isinstance(source, Mask) and source.signed and not exporter.signed_weights:
        able = " or ".join(f"--to {each.name}" for each in EXPORTERS.values() if each.signed_weights)
        raise UsageError(
            f"{path}: its token weights may be negative (rule {source.about.get('rule')}), and {exporter.trainer} takes "
            "none below 0.",
            f"Export {able}, or mask with --unsigned, which makes them 0.",
        )
    if resample and not source.sample_weights:
        raise UsageError(
            f"--resample draws rows by sample_weight, a column that {path} lacks.", "Leave out --resample."
        )
    form = "tokens" if isinstance(source, Mask) else "messages"
    if source.sample_weights and not resample and form not in exporter.sample_weights:
        able = " or ".join(f"--to {each.name}" for each in EXPORTERS.values() if form in each.sample_weights)
        raise UsageError(
            f"{path}: has sample weights (sample_weight), and {exporter.trainer} takes none with {form}.",
            f"Draw rows by weight with --resample, or export {able}, or select without weights.",
        )


def _counts(survey: Survey, path: Path, resample: bool, seed: int) -> npt.NDArray[np.int64]:
    """How often each row is written; rows that a draw passed over are entered as left out."""
    keep_R = survey.keep_R
    if not keep_R.any():
        reasons = ", ".join(f"{reason}: {rows}" for reason, rows in survey.reasons.items()) or "the file has no rows"
        detail = survey.left_out[0].detail if survey.left_out else ""
        raise UsageError(f"{path}: no row can be exported ({reasons}).", detail)
    if not resample:
        return keep_R.astype(np.int64)
    weight_R = np.where(keep_R, survey.weight_R, 0.0)
    if not weight_R.sum() > 0:
        raise UsageError(f"{path}: every sample_weight is 0, so no row can be drawn.", "Leave out --resample.")
    count_R = systematic_counts(weight_R, int(keep_R.sum()), seed)
    for row in np.flatnonzero(keep_R & (count_R == 0)):
        survey.left_out.append(LeftOut(int(row), "", "not_drawn", f"sample_weight {survey.weight_R[row]:g}"))
    return count_R


def systematic_counts(weight_R: npt.NDArray[np.float64], draws: int, seed: int) -> npt.NDArray[np.int64]:
    """How often each row comes in a systematic resample: floor or ceil of `draws * w / sum(w)`, that many in expectation.

    Args:
        weight_R: weights, >= 0, not all 0.
        draws: rows to draw; the counts sum to it.
        seed: of the one random number.

    >>> systematic_counts(np.array([1.0, 0.0, 3.0]), 4, 0).tolist()
    [1, 0, 3]
    """
    # On a grid of steps of 1 with one random offset, each row gets the grid points in its share of the line.
    ends_R = np.cumsum(weight_R) / weight_R.sum() * draws
    ends_R[np.flatnonzero(weight_R)[-1] :] = draws
    offset = np.random.default_rng(seed).random()
    return np.diff(np.ceil(ends_R - offset).astype(np.int64), prepend=0)


def _write(
    source: Mask | ConversationFile, survey: Survey, exporter: Exporter, count_R: npt.NDArray[np.int64], folder: Path
) -> None:
    if isinstance(source, Mask):
        exporter.write_tokens(source.batches(count_R), survey.plan, folder)
    else:
        exporter.write_messages(source.rows(count_R, survey.plan.sample_weights), survey.plan, folder)
    for name, text in exporter.settings(survey.plan).items():
        (folder / name).write_text(text, "utf-8")
    if survey.left_out:
        rows = sorted(survey.left_out, key=lambda each: each.row)
        write_jsonl((vars(each) for each in rows), folder / "left_out.jsonl")


def _summary(survey: Survey, exporter: Exporter, folder: Path, count_R: npt.NDArray[np.int64]) -> Exported:
    plan, exported = survey.plan, int((count_R > 0).sum())
    if len(count_R) != exported + len(survey.left_out):
        raise RuntimeError(
            f"{len(count_R)} rows in, {exported} exported, {len(survey.left_out)} left out: rows went missing"
        )
    return Exported(
        to=exporter.name,
        out=str(folder),
        form=plan.form,
        rows_in=len(count_R),
        rows_exported=exported,
        rows_written=int(count_R.sum()),
        left_out=survey.reasons,
        longest=plan.longest,
        exact=plan.exact,
        max_length=plan.limit,
        token_weights=plan.token_weights,
        sample_weights=plan.sample_weights,
        files=(),
        command=exporter.command(plan),
    )


def _readme(summary: Exported, exporter: Exporter, survey: Survey, path: Path) -> str:
    longest = f"{summary.longest} tokens" if summary.exact else f"unknown, at most {summary.longest} tokens"
    lines = [
        f"# {summary.rows_written} rows for {exporter.trainer}",
        "",
        f"Written by `trajscore export` {__version__} from `{visible(path.name)}`: {summary.rows_in} rows in, "
        f"{summary.rows_exported} exported, {summary.rows_in - summary.rows_exported} left out"
        + (" (`left_out.jsonl`)." if summary.left_out else "."),
        f"Longest row: {longest}; the configuration allows {summary.max_length}.",
        "",
        "In this folder, with MODEL for the model you train:",
        "",
        "```",
        summary.command,
        "```",
    ]
    for note in exporter.notes(survey.plan):
        lines += ["", note]
    return "\n".join(lines) + "\n"


def _checked(
    source: Mask | ConversationFile,
    survey: Survey,
    exporter: Exporter,
    count_R: npt.NDArray[np.int64],
    folder: Path,
    student: str | None,
    renderer: Renderer | None,
) -> Check:
    """First the files as they lie, then through the trainer."""
    plan = survey.plan

    def rows() -> Iterator[Any]:
        return source.batches(count_R) if isinstance(source, Mask) else source.rows(count_R, plan.sample_weights)

    if isinstance(source, Mask):
        written = check_tokens(exporter, folder, expected_tokens(rows(), plan.sample_weights))
    else:
        written = check_messages(exporter, folder, rows())
    if not written.passed:
        return written
    try:
        wanted = (
            expected_tokens(rows(), plan.sample_weights)
            if isinstance(source, Mask) or renderer is None
            else expected_messages(rows(), renderer)
        )
        return check(exporter, folder, plan, student, wanted)
    except ImportError as error:
        note = f"{exporter.trainer} is not usable here ({error}), so only the format was checked, field by field."
        return replace(written, note=note)


def _located(student: str | Path | None) -> str | None:
    """The student by a name that holds in every folder: loaders run in that of the export."""
    return None if student is None else str(Path(student).resolve() if Path(student).is_dir() else student)
