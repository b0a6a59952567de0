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
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trajscore.corpus import Chunk, open_corpus
from trajscore.io.outputs import check_folder, spare_inputs_of
from trajscore.io.paths import as_path, is_remote
from trajscore.options import keywords_of
from trajscore.schema import OK
from trajscore.scores import MANIFEST, Manifest, changed_settings, read_manifest, refuse_foreign
from trajscore.scoring.forecast.memory import advice, plan_memory
from trajscore.scoring.forecast.sample import Estimate, Sample
from trajscore.scoring.forecast.trial import Trial, try_rows
from trajscore.scoring.local_context import tokens_again
from trajscore.scoring.models import RoleModel
from trajscore.scoring.options import PlanOptions, ScoreOptions
from trajscore.scoring.passes import Passes
from trajscore.scoring.pipeline import ROUND_TOKENS, open_passes
from trajscore.scoring.reuse import open_older
from trajscore.scoring.rows import ScoredRow
from trajscore.scoring.run import source_options
from trajscore.scoring.settings import run_manifest

_LOG = logging.getLogger("trajscore")


@dataclass(frozen=True)
class ScorePlan:
    """What a run of `score` is going to do. Ranges are 95 % and know sampling and the spread of what was timed, no more.

    Attributes:
        out: the folder.
        rows: rows of the corpus, exact; None for a streamed data set that did not end within the sample. Totals are None then.
        exact: whether every row was rendered, so that tokens, longest and refused rows are counts.
        counted: rows that were rendered.
        done: rows that the folder holds already and that will not be scored again.
        scored: rows that can be scored.
        refused: rows that cannot, by status.
        tokens: scored tokens.
        read_tokens: tokens of the rendered conversations.
        longest: most tokens of a rendered conversation that was met; the rows with most characters were rendered.
        longest_row: its row number from 0, and its id.
        disk: bytes: `parts` that are left to write (None where nothing was timed), `hidden_states` that wait meanwhile at most,
            `free` on that disk (None for remote storage); `topk_per_token`, what of the parts `keep_topk` takes for each scored
            token (None without it); `merged_copies` of models with an adapter that lie in the folder for
            temporary files meanwhile, and what is free there, `merged_copies_free`.
        memory: bytes in memory: what runs the models (`engine`); for which `longest` trajectory; the `models`, each with role,
            name, `weights`, what it takes beside them while `running`, and `merged_copy`, bytes on disk; whether they are in
            memory `together`, or wait `asleep` in the host's for their turn; `needed` at most at any time (libraries and the
            rows on their way come on top); what was `available` on the device, and whether that `fits`.
        time: seconds: `total`, made of `survey` (reading the corpus), `startup`, `swapping` of models and `scoring`;
            `tokens_per_second` (rendered ones) and for how long they were `measured`. None where the models do not fit into
            memory or nothing can be scored.
        warnings: what will go wrong or wants a decision.
        columns: for each kind of row which columns become what, and which are not read; see `corpus.Corpus.columns`.
    """

    out: str
    rows: int | None
    exact: bool
    counted: int
    done: int
    scored: Estimate | None
    refused: dict[str, Estimate | None]
    tokens: Estimate | None
    read_tokens: Estimate | None
    longest: int
    longest_row: tuple[int, str] | None
    disk: dict[str, Any]
    memory: dict[str, Any]
    time: dict[str, Any] | None
    warnings: list[str]
    columns: list[dict[str, Any]]

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
        >>> ts.score_plan("data/trajectories.jsonl", "data/models/student", "scores").longest  # doctest: +SKIP
        187
    """
    spare_inputs_of(options)
    out, began, warnings = as_path(options.out), time.monotonic(), list[str]()
    check_folder(out)
    refuse_foreign(out, options.overwrite, options.keep_foreign)
    model = RoleModel("student", str(options.student), options)
    opening = time.monotonic()
    corpus = open_corpus(options.data, source_options(options, model))
    survey = time.monotonic() - opening
    with (
        tempfile.TemporaryDirectory(prefix="trajscore-") as temporary,
        contextlib.closing(open_passes(model, corpus, options, Path(temporary) / "hidden-states")) as passes,
    ):
        memory_for, done, older, copied = plan_memory(passes), list[slice](), None, Counter[bool]()
        if memory_for(1)["fits"]:
            manifest = run_manifest(corpus, passes)
            done = _done(out, manifest, options, warnings)
            older = open_older(options, manifest, ())
        startup = time.monotonic() - began - survey

        def render(chunk: Chunk) -> list[ScoredRow]:
            rows = passes.rows_of(chunk)
            places = older.places(rows) if older else ()
            copied.update(place is not None for row, place in zip(rows, places, strict=False) if row.is_ok)
            return rows

        sample = Sample(corpus, render, full=options.full)
        memory, trial = memory_for(sample.longest), None
        if memory["fits"]:
            seconds = 30.0 if options.calibration_seconds is None else options.calibration_seconds
            _LOG.info("timing the models for about %.0f s", seconds)
            trial = try_rows(sample.chunk, sample.kept, passes, seconds)
        left = 1 - sum(int(sample.length_R[rows].sum()) for rows in done) / int(sample.length_R.sum())
        waiting = passes.waiting_bytes(sample.kept) / len(sample.kept)
        disk = _disk(out, sample, trial, passes, left, waiting, memory)
        warnings += _warnings(sample, disk, memory, passes, waiting)
        if older is not None:
            warnings.append(
                f"--reuse {older.folder}: {copied[True]} of {copied.total()} rendered rows would be copied."
            )
        left *= 1 - copied[True] / max(copied.total(), 1)
        return ScorePlan(
            out=str(out),
            rows=sample.rows,
            exact=sample.exact,
            counted=sample.status.total(),
            done=sum(rows.stop - rows.start for rows in done),
            scored=sample.rows_with(OK),
            refused={name: sample.rows_with(name) for name, _ in sample.status.most_common() if name != OK},
            tokens=sample.scored,
            read_tokens=sample.read,
            longest=sample.longest,
            longest_row=sample.longest_row,
            disk=disk,
            memory=memory,
            time=_time(sample, trial, passes, left, waiting, survey, startup) if trial else None,
            warnings=warnings,
            columns=corpus.columns,
        )


def _done(out: Path, now: Manifest, options: ScoreOptions, warnings: list[str]) -> list[slice]:
    """Rows of finished parts of the same settings."""
    if options.overwrite or not (out / MANIFEST).is_file():
        return []
    earlier = read_manifest(out)
    if other := changed_settings(earlier, now):
        warnings.append(
            f"{out} holds scores made with other settings and will be refused ({'; '.join(other)}): choose another --out, or "
            "--overwrite."
        )
        return []
    return [slice(part.first_row, part.first_row + part.rows) for part in earlier.parts]


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
        "merged_copies_free": shutil.disk_usage(tempfile.gettempdir()).free,
    }


def _time(
    sample: Sample, trial: Trial, passes: Passes, left: float, waiting: float, survey: float, startup: float
) -> dict[str, Any]:
    scoring, total, swapping = None, None, 0.0
    if sample.read is not None and sample.rows is not None:
        scoring = sample.read.times(trial.seconds_per_token).times(Estimate.around(left))
        if passes.takes_turns:
            groups = (waiting * sample.rows / passes.budget_bytes, sample.read.value / ROUND_TOKENS)
            swapping = trial.loading * max(1, *(math.ceil(left * each) for each in groups))
        fixed = survey + startup + trial.warming + swapping
        total = Estimate(scoring.value + fixed, scoring.low + 0.9 * fixed, scoring.high + 1.1 * fixed)
    return {
        "total": total,
        "survey": survey,
        "startup": startup + trial.warming,
        "swapping": swapping,
        "scoring": scoring,
        "tokens_per_second": 1 / max(trial.seconds_per_token.value, 1e-9),
        "measured": trial.measured,
    }


def _warnings(
    sample: Sample, disk: dict[str, Any], memory: dict[str, Any], passes: Passes, waiting: float
) -> Iterator[str]:
    options, counted = passes.options, sample.status.total()
    refused = counted - sample.status[OK]
    if refused > options.max_refused * counted:
        reasons = ", ".join(f"{n} {name}" for name, n in sample.status.most_common() if name != OK)
        yield (
            f"{refused} of {counted} rows cannot be scored ({reasons}), more than --max-refused {options.max_refused:g} allows."
        )
    if (part := waiting * options.part_rows) > passes.budget_bytes:
        yield (
            f"hidden states of one part take about {part / 2**30:.3g} GiB, more than --hidden-budget "
            f"{options.hidden_budget:g}: the run will stop. Give a larger budget, or fewer --part-rows."
        )
    needed = (disk["parts"].high if disk["parts"] else 0) + disk["hidden_states"]
    if disk["free"] is not None and needed > disk["free"]:
        yield f"the run needs up to {needed / 2**30:.3g} GiB of disk, and {disk['free'] / 2**30:.3g} GiB are free."
    if not memory["fits"]:
        yield advice(memory)
    if options.shard:
        yield f"the plan is for the whole corpus; --shard {options.shard} is one share of it."
    if options.ray:
        yield "the plan is for one process on this machine; Ray's workers divide the time."
    if passes.window is not None:
        again = tokens_again(sample.kept, passes.window)
        yield f"--extra local:{passes.window} lets the student read {again:.3g} times the rows' tokens once more."
    if sample.rows is None:
        yield "a streamed data set has an unknown number of rows: there are no totals."
