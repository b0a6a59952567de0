"""`trajscore score --dry-run`: what a run will read, refuse, write, hold in memory and take in time, before any of it is spent.

A sample of the rows gives totals, the models' shapes give memory, a trial gives speed and sizes. Nothing is written.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import math
import shutil
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trajscore.corpus import Chunk
from trajscore.display.formatting import size
from trajscore.io.paths import is_remote
from trajscore.options import keywords_of
from trajscore.schema import OK
from trajscore.scores import goes_on_from
from trajscore.scoring.forecast.memory import plan_memory
from trajscore.scoring.forecast.sample import Estimate, Sample
from trajscore.scoring.forecast.trial import Trial, try_rows
from trajscore.scoring.local_context import tokens_again
from trajscore.scoring.options import PlanOptions
from trajscore.scoring.passes import Passes
from trajscore.scoring.pipeline import ROUND_TOKENS, open_passes, over_budget
from trajscore.scoring.reuse import open_older
from trajscore.scoring.rows import ScoredRow
from trajscore.scoring.run import open_run
from trajscore.scoring.settings import run_manifest

_LOG = logging.getLogger("trajscore")


@dataclass(frozen=True)
class ScorePlan:
    """What a run of `score` is going to do. Ranges are 95 % and know sampling and the spread of what was timed, no more.

    Attributes:
        out: the folder.
        rows: `total` (exact; None for a streamed data set that did not end within the sample, which has no totals); those that
            can be `scored`; those that are `refused`, by status; those that were `rendered` (if all were, rows and tokens are
            counts); those that the folder holds (`done`), or that `reuse` holds (`copied`), and that are not scored.
        columns: for each kind of row which columns become what, and which are not read; see `corpus.Corpus.columns`.
        tokens: those with statistics (`scored`) and those of whole conversations (`read`); of the `longest` conversation that
            was met (the rows with most characters were rendered), its `longest_row` from 0 and its `longest_id`.
        disk: bytes: `parts` that are left to write (None where nothing was timed), and what of them `keep_topk` takes for each
            scored token (`topk_per_token`); `hidden_states` that wait meanwhile at most; what is `free` (None for remote
            storage); `merged_copies` of models with an adapter, in the folder for temporary files.
        memory: the `engine`; bytes `needed` at most at any time (libraries and the rows on their way come on top) and
            `available`; whether that `fits` (if not, nothing is loaded); whether the models `take_turns`, and wait
            `asleep` in the host's memory in between; and of the `models` each one's role, name, `weights`, what it takes beside
            them while `running`, and `merged_copy`, on disk.
        time: seconds: the `total`, made of `starting` until the first rows are scored, `swapping` of models that take turns,
            and `scoring`, at so many `tokens_per_second` (read ones), for how long that was `measured`. None where the models
            do not fit into memory or nothing can be scored.
        warnings: what will go wrong or wants a decision.
    """

    out: str
    rows: dict[str, Any]
    columns: list[dict[str, Any]]
    tokens: dict[str, Any]
    disk: dict[str, Any]
    memory: dict[str, Any]
    time: dict[str, Any] | None
    warnings: list[str]

    def to_dict(self) -> dict[str, Any]:
        """As JSON for `--json`."""
        return dataclasses.asdict(self)


@keywords_of(PlanOptions)
def score_plan(options: PlanOptions) -> ScorePlan:
    """What `score` with the same arguments would do. Writes nothing, neither into `out` nor elsewhere.

    The corpus is read to its end, as in a run, so that what would stop a run stops this too. Some 2,000 rows are rendered, and
    the models run over some of them for a while.

    Raises:
        UsageError, DataError, EngineError: as `score` would.

    Example:
        >>> import trajscore as ts
        >>> ts.score_plan("data/trajectories.jsonl", "data/models/student", "scores").tokens.longest  # doctest: +SKIP
        187
    """
    began = time.monotonic()
    out, model, corpus = open_run(options)
    with (
        tempfile.TemporaryDirectory(prefix="trajscore-") as temporary,
        contextlib.closing(open_passes(model, corpus, options, Path(temporary) / "hidden-states")) as passes,
    ):
        memory_for, earlier, older = plan_memory(passes), None, None
        if memory_for(1)["fits"]:
            manifest = run_manifest(corpus, passes)
            earlier = None if options.overwrite else goes_on_from(out, manifest)
            older = open_older(options, manifest, ())
        starting = time.monotonic() - began

        def render(chunk: Chunk) -> list[ScoredRow]:
            rows = passes.rows_of(chunk)
            for row, place in zip(rows, older.places(rows) if older else (), strict=False):
                row.copied = place is not None
            return rows

        sample = Sample(corpus, render, full=options.full)
        length, number, name = sample.longest
        memory, trial = memory_for(length), None
        if memory["fits"]:
            seconds = 30.0 if options.calibration_seconds is None else options.calibration_seconds
            _LOG.info("timing the models for about %.0f s", seconds)
            trial = try_rows(sample, passes, seconds)
        done = [slice(part.first_row, part.first_row + part.rows) for part in (earlier.parts if earlier else ())]
        left = 1 - sum(int(sample.length_R[rows].sum()) for rows in done) / int(sample.length_R.sum())
        waiting = passes.waiting_bytes(sample.kept) / len(sample.kept)
        rows = {
            "total": sample.rows,
            "scored": sample.rows_with(OK),
            "refused": {
                status: sample.rows_with(status) for status, _ in sample.rendered.most_common() if status != OK
            },
            "rendered": sample.rendered.total(),
            "done": sum(rows.stop - rows.start for rows in done),
            "copied": sample.rows_with("copied"),
        }
        disk = _disk(out, sample, trial, passes, left, waiting, memory)
        return ScorePlan(
            out=str(out),
            rows=rows,
            columns=corpus.columns,
            tokens={
                "scored": sample.tokens("scored"),
                "read": sample.tokens("read"),
                "longest": length,
                "longest_row": number if length else None,
                "longest_id": name if length else None,
            },
            disk=disk,
            memory=memory,
            time=_time(sample, trial, passes, left, waiting, starting) if trial else None,
            warnings=list(_warnings(sample, disk, memory, passes, waiting)),
        )


def _disk(
    out: Path, sample: Sample, trial: Trial | None, passes: Passes, left: float, waiting: float, memory: dict[str, Any]
) -> dict[str, Any]:
    """`ScorePlan.disk`; `left` is the share of the corpus to be scored, `waiting` what a row leaves for the student, bytes."""
    parts = None
    if trial and sample.rows is not None:
        parts = trial.bytes_per_character.times(Estimate.around(left * float(sample.length_R.sum())))
    together = min(sample.rows or math.inf, math.inf if passes.takes_turns else passes.options.part_rows)
    nearest = next(folder for folder in (out, *out.absolute().parents) if is_remote(out) or folder.exists())
    return {
        "parts": parts,
        "topk_per_token": trial.topk_bytes if trial else None,
        "hidden_states": int(min(waiting * together, passes.budget_bytes)) if waiting else 0,
        "free": None if is_remote(out) else shutil.disk_usage(nearest).free,
        "merged_copies": sum(each["merged_copy"] for each in memory["models"]),
    }


def _time(sample: Sample, trial: Trial, passes: Passes, left: float, waiting: float, starting: float) -> dict[str, Any]:
    scoring, total, swapping, read = None, None, 0.0, sample.tokens("read")
    if read is not None and sample.rows is not None:
        copied = sample.rows_with("copied")
        left *= 1 - (copied.value / sample.rows if copied else 0)
        scoring = read.times(trial.seconds_per_token).times(Estimate.around(left))
        if passes.takes_turns:
            groups = (waiting * sample.rows / passes.budget_bytes, read.value / ROUND_TOKENS)
            swapping = trial.loading * max(1, *(math.ceil(left * each) for each in groups))
        fixed = starting + trial.starting + swapping
        total = Estimate(scoring.value + fixed, scoring.low + 0.9 * fixed, scoring.high + 1.1 * fixed)
    return {
        "total": total,
        "starting": starting + trial.starting,
        "swapping": swapping,
        "scoring": scoring,
        "tokens_per_second": 1 / max(trial.seconds_per_token.value, 1e-9),
        "measured": trial.measured,
    }


def _warnings(
    sample: Sample, disk: dict[str, Any], memory: dict[str, Any], passes: Passes, waiting: float
) -> Iterator[str]:
    options, rendered = passes.options, sample.rendered.total()
    refused = rendered - sample.rendered[OK]
    if refused > options.max_refused * rendered:
        yield f"{refused} of {rendered} rows cannot be scored, more than --max-refused {options.max_refused:g} allows."
    if error := over_budget(passes, options.part_rows, waiting * options.part_rows):
        yield f"{error.problem} The run will stop. {error.hint}"
    needed, free = (disk["parts"].high if disk["parts"] else 0) + disk["hidden_states"], disk["free"]
    if free is not None and needed > free:
        yield f"the run needs up to {size(needed)} of disk, and {size(free)} are free."
    temporary = tempfile.gettempdir()
    if (needed := disk["merged_copies"]) > (free := shutil.disk_usage(temporary).free):
        yield f"models with adapters merged in take {size(needed)} in {temporary}, where {size(free)} are free."
    if not memory["fits"]:
        needed, free = memory["needed"].value, memory["available"]
        yield (
            f"the models need about {size(needed)} of memory and {size(free)} are free, so nothing was timed. Try "
            "--swap-models, --dtype bfloat16, --tensor-parallel-size, or a smaller --max-num-batched-tokens or --max-model-len."
        )
    if options.shard or options.ray:
        yield "the plan is for the whole corpus and one process on this machine: --shard and --ray divide it."
    if passes.window is not None:
        again = tokens_again(sample.kept, passes.window)
        yield f"--extra local:{passes.window} lets the student read {again:.3g} times the rows' tokens once more."
