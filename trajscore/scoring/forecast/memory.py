"""What the models of a run need in memory, beside what there is, and what to change where that is too little.

It knows roles and footprints; nothing of rows but their lengths.
"""

from __future__ import annotations

import dataclasses
import importlib.util
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from trajscore.engines import default_engine
from trajscore.schema import OK
from trajscore.scoring.models import RoleModel
from trajscore.scoring.options import ScoreOptions
from trajscore.scoring.passes import Passes
from trajscore.scoring.rows import ScoredRow

if TYPE_CHECKING:
    from trajscore.engines.memory import PeakMemory


@dataclass(frozen=True)
class ModelMemory:
    """Bytes that one model is expected to need. Attributes as in `engines.footprint.MemoryNeed`.

    Attributes:
        role: of the model.
        name: hub id or folder.
        weights: bytes.
        cache: bytes.
        activations: bytes.
        head: bytes.
    """

    role: str
    name: str
    weights: int
    cache: int
    activations: int
    head: int

    @property
    def running(self) -> int:
        """What it needs beside its weights while it runs."""
        return self.cache + self.activations + self.head


@dataclass(frozen=True)
class MemoryPlan:
    """Bytes in memory.

    Attributes:
        engine: what runs the models.
        longest: tokens of the longest trajectory that was planned for.
        models: what each model needs.
        together: whether all models are in memory at the same time.
        needed: at most at any time, by the shapes of the models; what libraries and the corpus take is not in it.
        available: on the device, before a model was loaded; None where that is not known.
        fits: whether it is enough.
        measured: most that the calibration used beyond what was in use before a model was loaded; None where not measured.
        measured_longest: most tokens of a row in the calibration.
        measured_needed: what was expected for that row.
        warnings: what to change.
    """

    engine: str
    longest: int
    models: list[ModelMemory]
    together: bool
    needed: int
    available: int | None
    fits: bool
    measured: int | None = None
    measured_longest: int | None = None
    measured_needed: int | None = None
    warnings: list[str] = field(default_factory=list)


class Models:
    """The models of a run by their shapes.

    Args:
        passes: student and others, not yet loaded.
        options: of the run.
    """

    def __init__(self, passes: Passes, options: ScoreOptions) -> None:
        from trajscore.engines.footprint import footprint

        self._passes, self._options = passes, options
        self._roles: list[RoleModel] = [passes.student, *passes.others]
        self._shapes = [footprint(model.name, model.source.revision, options) for model in self._roles]
        self._available: int | None = None
        self._peak: PeakMemory | None = None
        self.fit = True

    @property
    def _engine(self) -> str:
        """What runs the models, or will."""
        name = self._passes.student.engine_name
        name = default_engine() if name == "auto" else name
        if name == "auto":
            return "vllm" if importlib.util.find_spec("vllm") else "hf"
        return name

    @property
    def _together(self) -> bool:
        swap = self._options.swap_models
        return len(self._roles) == 1 or not (self._engine == "vllm" if swap is None else swap)

    def weigh(self) -> None:
        """Look at what there is, before anything is loaded."""
        from trajscore.engines.memory import PeakMemory, available_memory

        if self._engine == "hf":
            self._available = available_memory(self._options.device)
            self._peak = PeakMemory()
        else:
            from trajscore.engines.vllm import available_memory as memory_of_vllm

            self._available = memory_of_vllm(self._options)
        self.fit = self.plan(1).fits

    def limit_without_loading(self) -> None:
        """The longest conversation, as loading the student would have set it."""
        renderer = self._passes.student.renderer
        limits = (renderer.options.max_model_len, self._shapes[0].max_model_len)
        renderer.max_model_len = min((limit for limit in limits if limit), default=None)

    def plan(self, longest: int) -> MemoryPlan:
        """What a corpus with such a longest trajectory needs."""
        models = self._needs(longest)
        needed = self._at_once(models)
        fits = self._available is None or needed <= self._available
        return MemoryPlan(
            engine=self._engine,
            longest=longest,
            models=models,
            together=self._together,
            needed=needed,
            available=self._available,
            fits=fits,
            warnings=[] if fits else [self._advice(models, needed)],
        )

    def measured(self, plan: MemoryPlan, longest: int) -> MemoryPlan:
        """A plan beside what the calibration used, whose longest row had so many tokens."""
        if self._peak is None:
            return plan
        return dataclasses.replace(
            plan,
            measured=self._peak.bytes(),
            measured_longest=longest,
            measured_needed=self._at_once(self._needs(longest)),
        )

    def work(self, row: ScoredRow) -> float:
        """Operations that a row costs over all models; a teacher with other tokens is taken to read as many."""
        if row.rendered.status != OK:
            return 0.0
        read, scored = len(row.rendered.input_ids_P), len(row.rendered.positions_N)
        # The divergences of a pair make both products a second time.
        products = 2 if self._pairs and not self._passes.k else 1
        found = self._shapes[0].work(read, scored, products=products)
        if self._options.unconditional:
            found += self._shapes[0].work(scored, scored)
        for model, shape in zip(self._passes.others, self._shapes[1:], strict=True):
            if model.author in (None, row.trajectory.teacher):
                found += shape.work(read, scored, products=products if model.role == "teacher" else 1)
        return found

    @property
    def _pairs(self) -> bool:
        """Whether two models' heads are reduced together."""
        shared = any(model.role == "teacher" and model.shares_tokenizer for model in self._passes.others)
        return shared and self._passes.options.divergence != "none"

    def _needs(self, longest: int) -> list[ModelMemory]:
        found = []
        for model, shape in zip(self._roles, self._shapes, strict=True):
            pair = model.role == "student" and self._pairs
            need = shape.memory(max(1, longest), self._options, engine=self._engine, pair=pair)
            found.append(ModelMemory(model.role, model.name, **dataclasses.asdict(need)))
        return found

    def _at_once(self, models: list[ModelMemory]) -> int:
        if self._together:
            return sum(model.weights for model in models) + max(model.running for model in models)
        return max(model.weights + model.running for model in models)

    def _advice(self, models: list[ModelMemory], needed: int) -> str:
        """What to change, the dearest first."""
        weights = sum(model.weights for model in models) if self._together else max(model.weights for model in models)
        ways: dict[str, Any] = {
            "--swap-models, which keeps one model in memory at a time": self._together and len(models) > 1,
            "--dtype bfloat16": weights > needed / 2 and self._options.dtype in ("auto", "float32"),
            "--max-num-batched-tokens with fewer tokens": max(model.activations for model in models) > needed / 4,
            "--max-model-len with fewer tokens": max(model.cache for model in models) > needed / 4,
            "--tensor-parallel-size over more GPUs": self._engine == "vllm",
        }
        allowed = ", or ".join(way for way, helps in ways.items() if helps) or "a smaller model"
        free = (self._available or 0) / 2**30
        return (
            f"the models need about {needed / 2**30:.3g} GiB of memory and {free:.3g} GiB are free, so nothing was timed. "
            f"Try {allowed}."
        )
