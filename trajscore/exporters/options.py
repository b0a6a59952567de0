"""Every option of `trajscore export`. Which weights a trainer takes is said by its exporter."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from trajscore.options import USUAL, Options, argument, option
from trajscore.options.values import json_object


def _trainers() -> Collection[str]:
    from trajscore.exporters.table import EXPORTERS

    return EXPORTERS


class ExportOptions(Options):
    """Everything `export` can be told."""

    file: str | Path = argument(
        kw_only=False,
        metavar="FILE",
        help="What `trajscore select` or `trajscore mask` wrote, or any corpus.",
        recorded_by="file",
    )
    to: str = option(
        kw_only=False,
        panel=USUAL,
        metavar="trl|llamafactory|axolotl|verl|skyrl|distillkit",
        suggest=_trainers,
        help="The trainer. See `trajscore list exporters`.",
        recorded_by="to",
    )
    out: str | Path = option(
        kw_only=False,
        panel=USUAL,
        metavar="DIR",
        help="Folder for the export; an earlier export is replaced whole.",
        writes=True,
    )
    keep_foreign: bool = option(
        default=False,
        panel="Output",
        help="Replace an earlier export also where other files lie in its folder, and leave those.",
        harmless="the export is the same",
    )
    student: str | Path | None = option(
        default=None,
        panel=USUAL,
        metavar="MODEL",
        otherwise="an upper bound",
        help="Model to be trained: counts the tokens of a selection, for the maximum length.",
        recorded_by="max_length",
    )
    chat_template: str | None = option(
        default=None,
        panel="Models",
        metavar="FILE|MODEL|NAME|trl",
        otherwise="the student's own",
        help="Chat template to train with, as for `score`; it is written beside the data.",
    )
    chat_template_kwargs: Mapping[str, Any] = option(
        default_factory=dict,
        panel="Models",
        metavar="JSON",
        typed=str,
        parse=json_object,
        help="Variables for the template, as for `score`; they are written into every row.",
    )
    reasoning_as: str | None = option(
        default=None,
        panel="Data",
        metavar="think|KEY",
        otherwise="as the data has them",
        help="Where thoughts go, as for `score`.",
    )
    messages_field: str | None = option(
        default=None,
        panel="Data",
        metavar="COLUMN",
        otherwise="messages",
        help="Column with the conversation.",
    )
    resample: bool = option(
        default=False,
        panel="Weights",
        help="Draw rows by sample_weight instead of passing the weights on: each comes floor or ceil of n w / sum(w) times, "
        "n rows in all.",
    )
    seed: int = option(default=0, panel="Weights", metavar="N", help="Seed of --resample.")
    check: bool = option(
        default=False,
        panel="Output",
        help="Read it again through the trainer's own loader, if installed, and compare token for token; exit code 1 if it "
        "differs.",
        harmless="it only reads",
    )
