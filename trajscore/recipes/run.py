"""The steps of a recipe, one after the other: what is finished is skipped, and the first that ends badly ends the run."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, Literal, NamedTuple

from trajscore.errors import TrajscoreError, UsageError
from trajscore.io.outputs import spare_inputs_of_steps
from trajscore.options import Options, keywords_of, options_in
from trajscore.recipes.finished import fingerprint, is_finished, outputs_of, record_of, remember
from trajscore.recipes.options import INPUTS, RunOptions
from trajscore.recipes.reading import read_recipe

_LOG = logging.getLogger("trajscore")

Status = Literal["ran", "skipped", "failed", "not run", "would run", "would be skipped"]


@dataclass(frozen=True)
class StepRun:
    """What became of one step.

    Attributes:
        step: its name.
        status: `ran`, `skipped` (finished before with the same settings and inputs), `failed` (it ran, and what it found is
            not to be built upon), `not run` (a step before it failed); in a dry run `would run` or `would be skipped`.
        reason: why, in words.
        outputs: the files and folders that it writes.
        result: what the step's function returned, as JSON values; None where it did not run.
    """

    step: str
    status: Status
    reason: str
    outputs: tuple[str, ...]
    result: dict[str, Any] | None = None


@dataclass(frozen=True)
class RecipeRun:
    """What became of a recipe.

    Attributes:
        recipe: the file.
        steps: its steps in order.
    """

    recipe: str
    steps: tuple[StepRun, ...]

    @property
    def too_many_refused(self) -> bool:
        """Whether scoring refused more rows than `max_refused` allows, which ended the run."""
        return any(each.step == "score" and each.status == "failed" for each in self.steps)

    @property
    def failed(self) -> bool:
        """Whether a step failed."""
        return any(each.status == "failed" for each in self.steps)

    def to_dict(self) -> dict[str, Any]:
        """As JSON for `--json`."""
        return asdict(self)


@keywords_of(RunOptions)
def run_recipe(options: RunOptions) -> RecipeRun:
    """Run the steps of a recipe, in the order score, select, mask, export, report.

    The whole recipe is checked before the first step. While it runs, the working folder is that of the recipe, so that paths
    begin there. A step that ended well is remembered beside its output, in `NAME.recipe.json`.

    Returns:
        What became of each step.

    Raises:
        UsageError: the recipe is wrong, or a step's settings are.
        DataError, EngineError: as the step's own command.
    """
    recipe = read_recipe(options.recipe)
    if options.only is not None and options.only not in recipe.steps:
        raise UsageError(
            f"--only {options.only}: {options.recipe} has no such step.", f"It has {', '.join(recipe.steps)}."
        )
    done: list[StepRun] = []
    with contextlib.chdir(recipe.path.resolve().parent):
        records = {f"the record of {name}": str(record_of(step)) for name, step in recipe.steps.items()}
        spare_inputs_of_steps(recipe.steps, {"the run": recipe.path.name, **records})
        for name, step in recipe.steps.items():
            if options.only in (None, name):
                done.append(_step(name, step, done, options))
                if done[-1].result is not None:
                    _LOG.info("%s: %s (%s)", name, done[-1].status, done[-1].reason)
    return RecipeRun(str(options.recipe), tuple(done))


def _step(name: str, step: Options, before: list[StepRun], options: RunOptions) -> StepRun:
    outputs = tuple(outputs_of(step))
    failed = next((each.step for each in before if each.status == "failed"), None)
    if failed is not None:
        return StepRun(name, "not run", f"{failed} failed", outputs)
    changing = _changing_inputs(name, step, before)
    finished = not changing and is_finished(step)
    same = "finished before with the same settings and inputs"
    if options.dry_run:
        reason = (
            f"{' and '.join(changing)} would run before it"
            if changing
            else "not finished with these settings and inputs"
        )
        return StepRun(name, *(("would be skipped", same) if finished else ("would run", reason)), outputs)
    if finished:
        return StepRun(name, "skipped", same, outputs)
    mark = fingerprint(step)
    try:
        result, problem = _RUN[name](step, options)
    except TrajscoreError as error:
        error.problem = f"{name}: {error.problem}"
        raise
    if problem:
        return StepRun(name, "failed", problem, outputs, result)
    remember(step, mark)
    return StepRun(name, "ran", f"-> {', '.join(outputs)}", outputs, result)


def _changing_inputs(name: str, step: Options, before: list[StepRun]) -> list[str]:
    """Steps that would run before, in a dry run, and whose output this one reads."""
    read = {str(getattr(step, each)) for each in INPUTS.get(name, {}) if each in options_in(type(step))}
    return [each.step for each in before if each.status == "would run" and read & set(each.outputs)]


class Returned(NamedTuple):
    """What a step returned as JSON values, and why it failed; empty where it did not."""

    result: dict[str, Any]
    failure: str = ""


def _score(step: Any, options: RunOptions) -> Returned:
    from trajscore.scoring.run import score

    summary = score(**{**vars(step), "progress": options.progress})
    refused = f"more rows were refused than max_refused {step.max_refused:g} allows"
    return Returned(summary.to_dict(), refused if summary.too_many_refused else "")


def _select(step: Any, options: RunOptions) -> Returned:
    from trajscore.selection.select import select

    return Returned(select(**vars(step)).to_dict())


def _mask(step: Any, options: RunOptions) -> Returned:
    from trajscore.masking.mask import mask

    return Returned(mask(**vars(step)).to_dict())


def _export(step: Any, options: RunOptions) -> Returned:
    from trajscore.exporters.export import export

    done = export(**vars(step))
    wrong = done.check is not None and not done.check.passed
    return Returned(done.to_dict(), "the trainer reads something else than was written" if wrong else "")


def _report(step: Any, options: RunOptions) -> Returned:
    from trajscore.ranking.report import report

    return Returned(report(**vars(step)).to_dict())


_RUN: dict[str, Callable[[Any, RunOptions], Returned]] = {
    "score": _score,
    "select": _select,
    "mask": _mask,
    "export": _export,
    "report": _report,
}
