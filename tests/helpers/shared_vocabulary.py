"""Threads in the place of processes that share a vocabulary: each has a part of a head, and they hand tensors to each other."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from trajscore.statistics import Head, VocabularyShard


class Group:
    """A number of threads that call the same function, each as one process would.

    Args:
        count: how many.

    Attributes:
        gathered: elements of every tensor that was put together out of those of all.
    """

    def __init__(self, count: int) -> None:
        self.count, self.gathered = count, list[int]()
        self._barrier, self._slots = threading.Barrier(count, timeout=60), [torch.empty(0)] * count

    def part(self, head: Head, number: int) -> Head:
        """The rows of a whole head that one of them has; what is missing to equally many is damaged: it must not count."""
        width = -(-head.entries // self.count)
        rows = slice(number * width, (number + 1) * width)
        missing = width - len(head.weight_VD[rows])
        weight_VD = torch.nn.functional.pad(head.weight_VD[rows], (0, 0, 0, missing), value=torch.nan)
        bias_V = None if head.bias_V is None else torch.nn.functional.pad(head.bias_V[rows], (0, missing))
        absent_V = None
        if missing or head.absent_V is not None:
            known_V = torch.zeros(head.entries, dtype=torch.bool) if head.absent_V is None else head.absent_V
            absent_V = torch.nn.functional.pad(known_V[rows], (0, missing), value=True)
        shard = VocabularyShard(number, self.count, head.entries, lambda tensor: self._gather(number, tensor))
        return replace(head, weight_VD=weight_VD, bias_V=bias_V, absent_V=absent_V, shard=shard)

    def _gather(self, number: int, tensor: Tensor) -> Tensor:
        self._slots[number] = tensor.clone()
        self._barrier.wait()
        together = torch.stack(self._slots)
        self.gathered.append(together.numel())
        self._barrier.wait()
        return together

    def run(self, function: Callable[..., Any], *heads: Head) -> list[Any]:
        """What every one of them gets from a function of its parts of some heads."""
        found: list[Any] = [None] * self.count

        def one(number: int) -> None:
            try:
                with torch.no_grad():
                    found[number] = function(*(self.part(head, number) for head in heads))
            except BaseException as error:
                found[number] = error
                self._barrier.abort()

        threads = [threading.Thread(target=one, args=(number,)) for number in range(self.count)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        errors = [each for each in found if isinstance(each, BaseException)]
        for error in sorted(errors, key=lambda each: isinstance(each, threading.BrokenBarrierError)):
            raise error
        return found
