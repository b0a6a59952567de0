"""The cache of answered calls: what is in it is on disk, whatever a server sends."""

from __future__ import annotations

import tracemalloc
from pathlib import Path
from typing import Any

import pytest

from trajscore.io.call_cache import CallCache

RECORDS, CHARACTERS = 500, 20_000


def _record(number: int) -> dict[str, Any]:
    return {"key": f"{number:064d}", "text": f"é{number} " + "x" * CHARACTERS}


@pytest.mark.parametrize("kept", [True, False])
@pytest.mark.parametrize("named", [True, False])
def test_memory_does_not_grow_with_what_was_answered(kept: bool, named: bool, tmp_path: Path) -> None:
    path = tmp_path / "calls.jsonl" if named else None
    with CallCache(path, lambda _: "") as cache:
        tracemalloc.start()
        for number in range(RECORDS):
            cache.add([_record(number)], keep=kept)
        held, _ = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert held < RECORDS * CHARACTERS / 20
        assert [cache.get(_record(number)["key"]) for number in range(RECORDS)] == list(map(_record, range(RECORDS)))
    with CallCache(path, lambda _: "") as again:
        assert sum(_record(number)["key"] in again for number in range(RECORDS)) == (RECORDS if named and kept else 0)
        if named and kept:
            again.add([{"key": "more", "text": "é"}])
            assert (again.get("more")["text"], again.get(_record(7)["key"])) == ("é", _record(7))
