"""What the models of a run need in memory, by their shapes, beside what there is."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from trajscore.scoring.forecast.sample import Estimate
from trajscore.scoring.passes import Passes
from trajscore.scoring.residency import Need, engine_of, needs_of


def plan_memory(passes: Passes) -> Callable[[int], dict[str, Any]]:
    """Makes `ScorePlan.memory` for a corpus with so long a trajectory; what is free is looked up at once, before any loading.

    A student whose length is not limited yet is limited as loading it would do.
    """
    from trajscore.engines import memory
    from trajscore.engines.footprint import Footprint

    options, student = passes.options, passes.student
    models = [model for model in (student, *passes.others) if not model.url]
    shapes = [Footprint(each.name, each.source.revision, options) for each in models]
    engine = engine_of(options, bool(models))
    if engine == "vllm":
        from trajscore.engines.vllm import available_memory

        available = available_memory(options)
    else:
        available = memory.available_memory(options.device)
    if models[:1] == [student]:
        limits = filter(None, (options.max_model_len, shapes[0].max_model_len))
        student.renderer.max_model_len = min(limits, default=None)

    def plan(longest: int) -> dict[str, Any]:
        needs = needs_of(models, shapes, options, engine, max(1, longest)).models
        swap = passes.will_take_turns(engine == "vllm")
        weights, running = max(needs, key=sum, default=Need(0, 0))
        if not swap:
            weights, running = sum(each.weights for each in needs), max((each.running for each in needs), default=0)
        planned = list[dict[str, Any]]()
        for each, need, shape in zip(models, needs, shapes, strict=True):
            copy = shape.weight_bytes if engine == "vllm" and each.source.adapter is not None else 0
            planned.append({"role": each.role, "name": each.name, **need._asdict(), "merged_copy": copy})
        return {
            "engine": engine,
            # Kernels keep less alive than all shapes at once, and allocators round up.
            "needed": Estimate(weights + running, weights + running // 3, 1.1 * weights + 2 * running),
            "available": available,
            "fits": weights + running <= available,
            "take_turns": swap and len(models) > 1,
            "asleep": swap and passes.will_sleep,
            "models": planned,
        }

    return plan
