"""How files that this package wrote are recognised, of whatever schema version, without reading them whole."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import orjson
import pyarrow as pa
import pyarrow.parquet as pq

from trajscore.io.paths import for_arrow

MANIFEST = "manifest.json"
"""Name of the file that says what a score folder holds."""


def score_manifest(folder: Path) -> dict[str, Any] | None:
    """What the manifest of a score folder says, unchecked; None where the folder holds no scores."""
    return as_manifest(folder / MANIFEST)


def as_manifest(path: Path) -> dict[str, Any] | None:
    """What a file says, if it is the manifest of scores (of the whole folder or of one shard)."""
    try:
        raw = orjson.loads(path.read_bytes()) if path.is_file() else None
    except (OSError, ValueError):
        return None
    return raw if isinstance(raw, dict) and {"schema_version", "settings", "parts"} <= raw.keys() else None


def is_part(path: Path) -> bool:
    """Whether a Parquet file is a part of scores."""
    try:
        with for_arrow(path) as source:
            return b"trajscore.schema_version" in (pq.read_schema(source).metadata or {})
    except (pa.ArrowException, OSError):
        return False
