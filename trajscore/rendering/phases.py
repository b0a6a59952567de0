"""Text of an assistant turn -> where it thinks, where it answers, and the markers between.

The markers are those by which families of reasoning models set their thinking apart. The rules are part of every stored
phase, so a change of them raises `VERSION`.
"""

from __future__ import annotations

import re

VERSION = "1"
"""Version of the rules, kept in the manifest."""

THINKING, MARKER, ANSWER = 0, 1, 2
"""The values of the column `phase`."""

MARKERS: tuple[tuple[str, str], ...] = (
    ("<think>", "</think>"),  # DeepSeek-R1, Qwen3, QwQ, Phi-4-reasoning, Nemotron and most others
    ("[THINK]", "[/THINK]"),  # Magistral
    ("<seed:think>", "</seed:think>"),  # Seed-OSS
    ("<thought>", "</thought>"),  # EXAONE Deep
    ("<|START_THINKING|>", "<|END_THINKING|>"),  # Command A Reasoning
    ("<|begin_of_thought|>", "<|end_of_thought|>"),  # Sky-T1, OpenThoughts
    ("<|channel>thought", "<channel|>"),  # Gemma 4
    ("<|channel|>analysis<|message|>", "<|end|><|start|>assistant<|channel|>final<|message|>"),  # gpt-oss
    ("Here is my thought process:", "Here is my response:"),  # Granite 3.2
)
"""What opens and what closes the thinking, by family of models."""

_KIND = {marker: (family, marker == pair[0]) for family, pair in enumerate(MARKERS) for marker in pair}
_ANY = re.compile("|".join(map(re.escape, _KIND)))
_OPENINGS = tuple(opening for opening, _ in MARKERS)


def phase_starts(text: str, before: str = "") -> tuple[list[int], list[int]]:
    """Where the phases of a turn begin.

    The first marker decides which family's markers count. What follows an opening marker is thinking, what follows a closing
    one is answer. Before the first marker the turn thinks if that is a closing one, as where the template's prompt has opened
    the thinking, and answers otherwise; white space alone before an opening marker goes with the marker. Without any marker
    all is answer, or unfinished thinking where the prompt has opened it.

    Args:
        text: what the assistant writes in one turn.
        before: the rendered text that precedes it.

    Returns:
        Offsets, ascending from 0, and the phase that begins at each; of equal offsets the last counts.

    >>> phase_starts("<think>a</think>b")
    ([0, 0, 7, 8, 16], [1, 1, 0, 1, 2])
    >>> phase_starts("a</think>b"), phase_starts("a"), phase_starts("a", before="<think>\\n")
    (([0, 1, 9], [0, 1, 2]), ([0], [2]), ([0], [0]))
    """
    found = list(_ANY.finditer(text))
    opened = before.rstrip().endswith(_OPENINGS)
    if not found:
        return [0], [THINKING if opened else ANSWER]
    family, opens = _KIND[found[0][0]]
    blank = not text[: found[0].start()].strip()
    starts, phases = [0], [THINKING if opened or not opens else MARKER if blank else ANSWER]
    for marker in found:
        own, opens = _KIND[marker[0]]
        if own == family:
            starts += [marker.start(), marker.end()]
            phases += [MARKER, THINKING if opens else ANSWER]
    return starts, phases
