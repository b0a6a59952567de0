"""What the models of a run need in memory, by their shapes, beside what there is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from trajscore.scoring.forecast.sample import Range
from trajscore.scoring.passes import Passes
from trajscore.scoring.residency import engine_of


@dataclass(frozen=True)
class MemoryPlan:
    """Bytes in memory.

    Attributes:
        engine: what runs the models.
        longest: tokens of the longest trajectory that was planned for.
        models: role, name, weights, what the model takes beside them while it runs, and `merged_copy`, bytes on disk of a copy
            with its adapter merged in; 0 where none is made.
        together: whether all models are in memory at the same time.
        asleep: whether models that take turns wait in the host's memory, and are not loaded anew.
        needed: at most at any time; libraries and the rows on their way come on top.
        available: on the device before a model was loaded.
        fits: whether that is as much as is probably needed.
    """

    engine: str
    longest: int
    models: list[dict[str, Any]]
    together: bool
    asleep: bool
    needed: Range
    available: int
    fits: bool


class Shapes:
    """The models of a run by their shapes. What is free is looked up when it is made, before anything is loaded."""

    def __init__(self, passes: Passes) -> None:
        from trajscore.engines.footprint import footprint
        from trajscore.engines.memory import available_memory

        self._passes, self._options = passes, passes.options
        self._models = [model for model in (passes.student, *passes.others) if not model.url]
        self._shapes = [footprint(each.name, each.source.revision, self._options) for each in self._models]
        self._engine = engine_of(self._options, bool(self._models))
        if self._engine == "vllm":
            from trajscore.engines.vllm import available_memory as memory_of_vllm

            self._available = memory_of_vllm(self._options)
        else:
            self._available = available_memory(self._options.device)

    def plan(self, longest: int) -> MemoryPlan:
        """What a corpus with such a longest trajectory needs."""
        models = list[dict[str, Any]]()
        heads = [
            shape.head_bytes
            for model, shape in zip(self._models, self._shapes, strict=True)
            if model.role == "teacher" and model.shares_tokenizer and self._options.divergence != "none"
        ]
        for model, shape in zip(self._models, self._shapes, strict=True):
            other = max(heads, default=0) if model.role == "student" else 0
            running = shape.running_bytes(max(1, longest), self._options, engine=self._engine, other_head=other)
            weights = shape.weight_bytes // self._options.tensor_parallel_size
            copy = shape.weight_bytes if model.source.adapter is not None and self._engine == "vllm" else 0
            models.append(
                {"role": model.role, "name": model.name, "weights": weights, "running": running, "merged_copy": copy}
            )
        swap = self._passes.will_take_turns(self._engine == "vllm")
        largest = max(models, key=lambda each: each["weights"] + each["running"], default={"weights": 0, "running": 0})
        weights, running = largest["weights"], largest["running"]
        if not swap:
            weights = sum(each["weights"] for each in models)
            running = max((each["running"] for each in models), default=0)
        return MemoryPlan(
            engine=self._engine,
            longest=longest,
            models=models,
            together=not swap or len(models) < 2,
            asleep=swap and self._passes.will_sleep,
            # Kernels keep less alive than all shapes at once, and allocators round up.
            needed=Range(weights + running, weights + running // 3, 1.1 * weights + 2 * running),
            available=self._available,
            fits=weights + running <= self._available,
        )

    def limit_length(self) -> None:
        """The longest conversation, as loading the student would have set it."""
        own = [shape.max_model_len for shape in self._shapes] if self._models[:1] == [self._passes.student] else []
        limits = (self._options.max_model_len, *own[:1])
        self._passes.student.renderer.max_model_len = min(filter(None, limits), default=None)


def advice(plan: MemoryPlan) -> str:
    """What to change where memory does not suffice."""
    heavy = sum(each["weights"] for each in plan.models) > plan.needed.value / 2
    ways = {
        "--swap-models, which keeps one model in memory at a time": plan.together and len(plan.models) > 1,
        "--dtype bfloat16": heavy,
        "--max-num-batched-tokens or --max-model-len with fewer tokens": not heavy,
        "--tensor-parallel-size over more GPUs": plan.engine == "vllm",
    }
    return (
        f"the models need about {plan.needed.value / 2**30:.3g} GiB of memory and {plan.available / 2**30:.3g} GiB are free, "
        f"so nothing was timed. Try {', or '.join(way for way, helps in ways.items() if helps)}."
    )
