"""`trajscore score --dry-run`: what a run will read, refuse, write, hold in memory and take in time, before any of it is spent.

It joins sample, footprints and calibration into one plan, and writes nothing.
"""

from __future__ import annotations

import dataclasses
import logging
import math
import shutil
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trajscore.corpus import Chunk, Corpus, open_corpus
from trajscore.io.outputs import check_folder
from trajscore.io.paths import as_path, is_remote
from trajscore.options import keywords_of
from trajscore.schema import OK
from trajscore.scores import MANIFEST, Manifest, changed_settings, read_manifest
from trajscore.scoring.forecast.memory import MemoryPlan, ModelMemory, Models
from trajscore.scoring.forecast.sample import Estimate, RowFacts, Sample, take_sample
from trajscore.scoring.models import RoleModel
from trajscore.scoring.options import PlanOptions, ScoreOptions
from trajscore.scoring.passes import Passes
from trajscore.scoring.pipeline import ROUND_TOKENS, open_passes
from trajscore.scoring.rows import ScoredRow, render
from trajscore.scoring.run import source_options
from trajscore.scoring.settings import run_manifest

if TYPE_CHECKING:
    from trajscore.scoring.forecast.calibration import Calibration

_LOG = logging.getLogger("trajscore")


@dataclass(frozen=True)
class DiskPlan:
    """Bytes on the disk of the folder.

    Attributes:
        parts: of what is left to write; None where nothing was calibrated, or the rows are unknown.
        hidden_states: most that waits for the student meanwhile.
        free: on that disk now; None for remote storage.
    """

    parts: Estimate | None
    hidden_states: int
    free: int | None


@dataclass(frozen=True)
class TimePlan:
    """Seconds that the run will take on this machine as it is now.

    Attributes:
        total: from start to end; None where the rows are unknown.
        survey: reading the corpus once, measured: a streamed one is not.
        startup: loading libraries and models, and the first batch, measured.
        swapping: loading models again where they take turns.
        scoring: rendering, running and writing what is left.
        tokens_per_second: rendered tokens.
        rounds: timed rounds; one alone is taken to be off by half.
        rows_per_round: rows of each.
        measured: seconds of these rounds.
    """

    total: Estimate | None
    survey: float
    startup: float
    swapping: float
    scoring: Estimate | None
    tokens_per_second: float
    rounds: int
    rows_per_round: int
    measured: float


@dataclass(frozen=True)
class ScorePlan:
    """What a run of `score` is going to do. Intervals are 95 % and know sampling and the spread of the timing, no more.

    Attributes:
        out: the folder.
        rows: rows of the corpus, exact; None for a streamed data set that did not end within the sample.
        exact: whether every row was rendered, so that tokens, longest and refused rows are counts.
        counted: rows that were rendered.
        done: rows that the folder holds already and that will not be scored again.
        scored: rows that can be scored.
        refused: rows that cannot, by status.
        tokens: scored tokens.
        read_tokens: tokens of the rendered conversations.
        longest: most tokens of a rendered conversation; a lower bound unless exact.
        longest_row: its row number from 0, and its id.
        disk: bytes on disk.
        memory: bytes in memory, model by model.
        time: seconds; None where the models do not fit into memory or nothing can be scored.
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
    disk: DiskPlan
    memory: MemoryPlan
    time: TimePlan | None
    warnings: list[str]
    columns: list[dict[str, Any]]

    def to_dict(self) -> dict[str, Any]:
        """As JSON for `--json`."""
        return dataclasses.asdict(self)


@keywords_of(PlanOptions)
def score_plan(options: PlanOptions) -> ScorePlan:
    """What `score` with the same arguments would do. Writes nothing, neither into `out` nor elsewhere.

    The corpus is read once to its end, as in a run, so that what would stop a run stops this too. Then a sample of 2,000
    rows is rendered, and the models run over parts of it for some time.

    Raises:
        UsageError, DataError, EngineError: as `score` would.

    Example:
        >>> import trajscore as ts
        >>> ts.score_plan("data/trajectories.jsonl", "data/models/student", "scores").longest  # doctest: +SKIP
        187
    """
    seconds = 30.0 if options.calibration_seconds is None else options.calibration_seconds
    with tempfile.TemporaryDirectory(prefix="trajscore-") as temporary:
        return _Planner(options, Path(temporary)).plan(options.full, seconds)


class _Planner:
    """One plan in the making."""

    def __init__(self, options: ScoreOptions, temporary: Path) -> None:
        self._out, self._options = as_path(options.out), options
        check_folder(self._out)
        self._began = time.monotonic()
        self._warnings: list[str] = []
        role = RoleModel("student", str(options.student), options)
        began = time.monotonic()
        self._corpus: Corpus = open_corpus(options.data, source_options(options))
        self._survey = time.monotonic() - began
        _LOG.info("the corpus was read in %.1f s", self._survey)
        self._passes: Passes = open_passes(role, self._corpus, options, temporary / "hidden-states")
        self._models = Models(self._passes, options)

    def plan(self, full: bool, seconds: float) -> ScorePlan:
        """Load, sample, calibrate."""
        try:
            self._models.weigh()
            if self._models.fit:
                done = self._done(run_manifest(self._corpus, self._passes))
            else:
                done = 0
                self._models.limit_without_loading()
            began = time.monotonic()
            startup = began - self._began - self._survey
            sample = take_sample(self._corpus, self._count, full=full)
            _LOG.info("%d rows were rendered in %.1f s", sample.counted, time.monotonic() - began)
            memory = self._models.plan(sample.longest)
            timed = None
            if memory.fits and any(sample.kept.read):
                timed = self._calibrate(sample, seconds)
                memory = self._models.measured(memory, timed.longest)
            return self._result(sample, done, startup, timed, memory)
        finally:
            self._passes.close()

    def _count(self, chunk: Chunk) -> list[RowFacts]:
        facts = []
        for trajectory in chunk.trajectories:
            row = ScoredRow(trajectory, render(trajectory, self._passes.student.renderer))
            read, scored = len(row.rendered.input_ids_P), len(row.rendered.positions_N)
            waiting = self._passes.waiting_bytes([row])
            facts.append(RowFacts(read, scored, row.rendered.status, self._models.work(row), waiting))
        return facts

    def _calibrate(self, sample: Sample, seconds: float) -> Calibration:
        from trajscore.scoring.forecast.calibration import Calibrator

        _LOG.info("timing the models for about %.0f s", seconds)
        return Calibrator(self._passes, sample.kept, self._models.work).run(seconds)

    def _done(self, now: Manifest) -> int:
        """Rows in finished parts of the same settings."""
        if self._options.overwrite or not (self._out / MANIFEST).is_file():
            return 0
        earlier = read_manifest(self._out)
        other = changed_settings(earlier, now)
        if other:
            self._warnings.append(
                f"{self._out} holds scores made with other settings and will be refused ({'; '.join(other)}): choose another "
                "--out, or --overwrite."
            )
            return 0
        return earlier.rows

    def _result(
        self, sample: Sample, done: int, startup: float, timed: Calibration | None, memory: MemoryPlan
    ) -> ScorePlan:
        disk = self._disk(sample, done, timed)
        self._warn(sample, disk, memory)
        return ScorePlan(
            out=str(self._out),
            rows=sample.rows,
            exact=sample.exact,
            counted=sample.counted,
            done=done,
            scored=_rows(OK, sample),
            refused={name: _rows(name, sample) for name, _ in sample.status.most_common() if name != OK},
            tokens=sample.total("scored"),
            read_tokens=sample.total("read"),
            longest=sample.longest,
            longest_row=sample.longest_row,
            disk=disk,
            memory=memory,
            time=None if timed is None else self._time(sample, done, startup, timed),
            warnings=self._warnings,
            columns=self._corpus.columns,
        )

    def _disk(self, sample: Sample, done: int, timed: Calibration | None) -> DiskPlan:
        read, waiting = sample.total("read"), sample.total("waiting")
        parts = None
        if timed is not None and read is not None and sample.rows is not None:
            frames = timed.part_bytes * math.ceil((sample.rows - done) / self._options.part_rows)
            rows = read.times(timed.token_bytes * sample.share_from(done, "read"))
            parts = Estimate(rows.value + frames, rows.low + frames, rows.high + frames)
        part = sample.mean("waiting") * self._options.part_rows
        if self._passes.takes_turns:
            hidden = min(self._passes.budget_bytes, waiting.value if waiting else math.inf)
        else:
            hidden = min(part, waiting.value if waiting else math.inf)
        if part > self._passes.budget_bytes:
            self._warnings.append(
                f"hidden states of one part take about {part / 2**30:.3g} GiB, more than --hidden-budget "
                f"{self._options.hidden_budget:g}: the run will stop. Give a larger budget, or fewer --part-rows."
            )
        return DiskPlan(parts, int(hidden), _free(self._out))

    def _time(self, sample: Sample, done: int, startup: float, timed: Calibration) -> TimePlan:
        work = sample.total("work")
        scoring = total = None
        swapping = 0.0
        if work is not None:
            left = work.times(sample.share_from(done, "work"))
            rate = timed.seconds_per_work
            scoring = Estimate.around(left.value * rate.value, math.hypot(left.relative, rate.relative))
            swapping = timed.loading * self._rounds_of_loading(sample, done)
            fixed = self._survey + startup + timed.warming + swapping
            total = Estimate(scoring.value + fixed, scoring.low + fixed, scoring.high + fixed)
        return TimePlan(
            total=total,
            survey=self._survey,
            startup=startup + timed.warming,
            swapping=swapping,
            scoring=scoring,
            tokens_per_second=timed.tokens / max(timed.seconds, 1e-9),
            rounds=timed.rounds,
            rows_per_round=timed.rows,
            measured=timed.seconds,
        )

    def _rounds_of_loading(self, sample: Sample, done: int) -> int:
        """How often models take turns."""
        read, waiting = sample.total("read"), sample.total("waiting")
        if not self._passes.takes_turns or read is None or waiting is None:
            return 0
        left = sample.share_from(done, "read")
        by_disk = waiting.value * left / self._passes.budget_bytes
        return max(1, math.ceil(by_disk), math.ceil(read.value * left / ROUND_TOKENS))

    def _warn(self, sample: Sample, disk: DiskPlan, memory: MemoryPlan) -> None:
        refused = sample.counted - sample.status[OK]
        if refused > self._options.max_refused * sample.counted:
            reasons = ", ".join(f"{n} {name}" for name, n in sample.status.most_common() if name != OK)
            self._warnings.append(
                f"{refused} of {sample.counted} rows cannot be scored ({reasons}), more than --max-refused "
                f"{self._options.max_refused:g} allows."
            )
        needed = (disk.parts.high if disk.parts else 0) + disk.hidden_states
        if disk.free is not None and needed > disk.free:
            self._warnings.append(
                f"the run needs up to {needed / 2**30:.3g} GiB of disk, and {disk.free / 2**30:.3g} GiB are free."
            )
        self._warnings += memory.warnings
        if self._options.shard:
            self._warnings.append(
                f"the plan is for the whole corpus; --shard {self._options.shard} is one share of it."
            )
        if self._options.ray:
            self._warnings.append("the plan is for one process on this machine; Ray's workers divide the time.")
        if sample.rows is None:
            self._warnings.append("a streamed data set has an unknown number of rows: there are no totals.")


def _rows(status: str, sample: Sample) -> Estimate | None:
    """Rows of the corpus with a status, the interval being that of rows drawn one by one."""
    if sample.rows is None:
        return None
    if sample.exact:
        exact = sample.status[status]
        return Estimate(exact, exact, exact)
    # Wilson's interval, which does not claim that what was not met does not exist.
    n, z2, share = sample.counted, 1.96**2, sample.share(status)
    middle, half = share + z2 / 2 / n, 1.96 * math.sqrt(share * (1 - share) / n + z2 / 4 / n**2)
    low, high = ((middle + sign * half) / (1 + z2 / n) for sign in (-1, 1))
    return Estimate(share * sample.rows, max(0.0, low) * sample.rows, high * sample.rows)


def _free(out: Path) -> int | None:
    """Bytes that are free where a folder is or will be."""
    if is_remote(out):
        return None
    nearest = next(folder for folder in (out, *out.absolute().parents) if folder.exists())
    return shutil.disk_usage(nearest).free


__all__ = ["DiskPlan", "MemoryPlan", "ModelMemory", "ScorePlan", "TimePlan", "score_plan"]
