"""What vLLM's workers put together out of the tensors of all ranks; `worker_extension_cls` of an engine that a test starts."""

from __future__ import annotations

import os
from typing import Any

from trajscore.engines.vllm_plugin import ARCHITECTURE

_SIZES = list[int]()


def _watch(name: str) -> None:
    from vllm.distributed.parallel_state import GroupCoordinator

    whole = getattr(GroupCoordinator, name)

    def watched(self: Any, tensor: Any, *args: Any, **more: Any) -> Any:
        _SIZES.append(tensor.numel() * self.world_size)
        return whole(self, tensor, *args, **more)

    setattr(GroupCoordinator, name, watched)


# In workers alone, which import this before they make their model.
for _name in ("all_gather", "all_gatherv", "gather", "broadcast") if ARCHITECTURE in os.environ else ():
    _watch(_name)


class GatherSpy:
    """Methods that a worker gets beside its own."""

    def gathered_sizes(self) -> list[int]:
        """Elements of everything that was gathered in this worker so far."""
        return _SIZES
