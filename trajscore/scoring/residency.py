"""Whether the models of a run are in memory side by side: by their shapes, and by what there is.

Models that take turns are loaded anew for every group of rows that fits on disk, and with several teachers or little disk the
loading takes longer than the reading. So they stay where they fit, each with its share of the device.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from trajscore.engines import default_engine
from trajscore.errors import TrajscoreError
from trajscore.scoring.models import RoleModel
from trajscore.scoring.options import ScoreOptions

if TYPE_CHECKING:
    from trajscore.engines.footprint import Footprint

_LONG = 32_768
"""Tokens of the longest trajectory, where neither the options nor the model say it."""


class Need(NamedTuple):
    """Bytes of a model's weights on each device, and of what it holds beside them while it runs."""

    weights: int
    running: int


class Needs(NamedTuple):
    """The largest teacher's head, bytes, which the student's is reduced beside; and what each model needs."""

    head_bytes: int
    models: list[Need]


class Residency(NamedTuple):
    """Whether all models fit side by side, what share of the memory each gets then, the largest teacher's head, bytes, and
    whether models that take turns can wait in the host's memory."""

    fits: bool
    shares: list[float]
    head_bytes: int
    can_sleep: bool


def engine_of(options: ScoreOptions, here: bool = True) -> str:
    """What will run the models that no server runs, unless it turns out that vLLM cannot.

    Args:
        options: every setting.
        here: whether there are such models.
    """
    asked = "auto" if options.engine == "server" and here else options.engine
    if asked == "auto" and options.dtype == "float64":
        return "hf"
    name = default_engine() if asked == "auto" else asked
    return name if name != "auto" else "vllm" if importlib.util.find_spec("vllm") else "hf"


def residency(models: Sequence[RoleModel], options: ScoreOptions) -> Residency | None:
    """How models of vLLM share a device; None where another engine runs them, or nothing is known of them.

    Args:
        models: those that no server runs, student first; nothing of them is loaded.
        options: every setting.
    """
    if len(models) < 2 or engine_of(options) != "vllm":
        return None
    try:
        from trajscore.engines.footprint import Footprint
        from trajscore.engines.memory import available_memory as memory_of
        from trajscore.engines.vllm import available_memory, cache_to_begin, engines_per_device
        from trajscore.engines.vllm_insides import can_sleep

        shapes = [Footprint(each.name, each.source.revision, options) for each in models]
        available, engines = available_memory(options), engines_per_device(options)
    except TrajscoreError:  # said in its own words when the models are loaded
        return None
    longest = min(filter(None, (options.max_model_len, shapes[0].max_model_len)), default=_LONG)
    head, needs = needs_of(models, shapes, options, "vllm", longest)
    needed = [engines * (each.weights + each.running) for each in needs]
    total = sum(needed)
    asleep = options.data_parallel_size * sum(shape.weight_bytes for shape in shapes)
    return Residency(
        fits=total + cache_to_begin() <= 0.9 * available,
        shares=[each / total for each in needed],
        head_bytes=head,
        # Half of what is free: weights wait in pages that cannot be swapped out.
        can_sleep=can_sleep() and asleep <= 0.5 * memory_of("cpu"),
    )


def needs_of(
    models: Sequence[RoleModel], shapes: Sequence[Footprint], options: ScoreOptions, engine: str, longest: int
) -> Needs:
    """What models take of each device, one by one, for trajectories of so many tokens; `shapes` are theirs."""
    both = list(zip(models, shapes, strict=True))
    teachers = [shape for each, shape in both if each.role == "teacher" and each.shares_tokenizer]
    head = max((each.head_bytes for each in teachers), default=0) if options.divergence != "none" else 0
    needs = [
        Need(
            shape.weight_bytes // options.tensor_parallel_size,
            shape.running_bytes(longest, options, engine=engine, other_head=head if each.role == "student" else 0),
        )
        for each, shape in both
    ]
    return Needs(head, needs)
