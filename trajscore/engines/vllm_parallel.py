"""Several vLLM engines side by side: which GPUs each gets, and one stream of results of all."""

from __future__ import annotations

import os
import queue
import threading
from collections.abc import Iterator, Sequence
from typing import Any

from trajscore.errors import UsageError


def gpu_groups(replicas: int, size: int) -> list[str | None]:
    """CUDA_VISIBLE_DEVICES of each of `replicas` engines of `size` GPUs; None leaves it alone.

    Raises:
        UsageError: there are fewer GPUs.
    """
    from trajscore.engines.vllm_insides import platform

    if replicas == 1 or platform().is_cpu():
        return [None] * replicas
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    visible = named.split(",") if named else [str(number) for number in range(platform().device_count())]
    if len(visible) < replicas * size:
        raise UsageError(
            f"--data-parallel-size {replicas} with --tensor-parallel-size {size}: {len(visible)} GPUs are visible.",
            f"{replicas * size} are needed.",
        )
    return [",".join(visible[number * size : (number + 1) * size]) for number in range(replicas)]


def run_together(streams: Sequence[Iterator[Any]], stop: threading.Event) -> Iterator[Any]:
    """Items of all streams as they come, each stream in a thread of its own; a single one runs in the caller's.

    An error of one stream is raised here. Then, and when the caller stops early, `stop` is set, which streams have to watch,
    and no thread is left when this returns.
    """
    if len(streams) == 1:
        yield from streams[0]
        return
    results: queue.Queue[tuple[str, Any]] = queue.Queue()

    def drain(stream: Iterator[Any]) -> None:
        try:
            for item in stream:
                results.put(("item", item))
        except BaseException as error:  # handed to the caller's thread, whatever it is
            results.put(("error", error))
        else:
            results.put(("end", None))

    threads = [threading.Thread(target=drain, args=(stream,), daemon=True) for stream in streams]
    for thread in threads:
        thread.start()
    try:
        running = len(threads)
        while running:
            try:
                # A signal may come to another thread; this one sees it only when it wakes.
                kind, value = results.get(timeout=0.2)
            except queue.Empty:
                continue
            if kind == "error":
                raise value
            if kind == "item":
                yield value
            running -= kind == "end"
    finally:
        stop.set()
        for thread in threads:
            thread.join()
