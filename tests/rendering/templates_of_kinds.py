"""Chat templates of ours that do what stock ones of other families do, one kind of oddity each."""

from __future__ import annotations

KINDS: dict[str, str] = {}
