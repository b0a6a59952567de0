"""Threads beside the engine: order, errors, and nothing running when the caller leaves."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest

from tests.helpers.stopped_runs import until
from trajscore.scoring.background import BackgroundWriter, prefetch


def test_prefetch_gives_the_same_items_in_order() -> None:
    assert list(prefetch(iter(range(50)))) == list(range(50))
    assert list(prefetch(iter(()))) == []


def test_prefetch_works_in_advance_but_not_far() -> None:
    made: list[int] = []

    def items() -> Iterator[int]:
        for number in range(10):
            made.append(number)
            yield number

    stream = prefetch(items())
    assert next(stream) == 0
    assert until(lambda: len(made) >= 3)
    time.sleep(0.1)  # a moment in which more might be made
    assert made == [0, 1, 2], "one waits, one is being made"
    stream.close()  # type: ignore[attr-defined]


def test_an_error_comes_in_its_place_and_the_thread_ends() -> None:
    def items() -> Iterator[int]:
        yield 1
        raise KeyError("broken row")

    before = threading.active_count()
    stream = prefetch(items())
    assert next(stream) == 1
    with pytest.raises(KeyError, match="broken row"):
        next(stream)
    assert threading.active_count() == before


def test_a_caller_that_leaves_stops_the_thread() -> None:
    before = threading.active_count()
    for number in prefetch(iter(range(1000))):
        if number == 3:
            break
    assert until(lambda: threading.active_count() == before)


def test_the_writer_keeps_the_order_and_finishes_what_was_begun() -> None:
    done: list[int] = []

    def slow(number: int) -> None:
        time.sleep(0.02)
        done.append(number)

    with BackgroundWriter() as in_background:
        for number in range(5):
            in_background(slow, number)
    assert done == [0, 1, 2, 3, 4]


def test_what_was_begun_is_finished_when_the_caller_is_interrupted() -> None:
    done: list[int] = []

    def slow() -> None:
        time.sleep(0.05)
        done.append(1)

    def interrupted() -> None:
        with BackgroundWriter() as in_background:
            in_background(slow)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert done == [1]


def test_an_error_of_the_writer_is_raised() -> None:
    def fails() -> None:
        raise OSError("disk full")

    def both() -> None:
        with BackgroundWriter() as in_background:
            in_background(fails)
            in_background(print, "never")

    with pytest.raises(OSError, match="disk full"):
        both()
    with pytest.raises(OSError, match="disk full"), BackgroundWriter() as in_background:
        in_background(fails)
