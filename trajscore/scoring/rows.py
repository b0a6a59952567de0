"""A row of the corpus on its way from the reader to a part: the trajectory, its tokens, and what the models found.

It is the only thing that passes from step to step.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from trajscore.corpus import Trajectory
from trajscore.corpus.trajectories import before_reply
from trajscore.rendering.renderer import Rendered, Renderer, refused
from trajscore.rendering.tokens import TokenSequence
from trajscore.schema import OK


@dataclass
class ScoredRow:
    """One row of the corpus with everything found out about it so far.

    Attributes:
        trajectory: its identity and text.
        rendered: its tokens under the student, or why there are none.
        values: list columns of `schema.COLUMNS` by name; a column that is missing will be null.
        key: what it is known by to `score --reuse`.
        copied: whether the values come from an older folder, so that no model reads it.
        teacher_reads: what a teacher with a prompt of its own reads in place of the student's tokens; None for the same.
        teacher_apart: whether a teacher cannot read it, as its own prompt leaves the response other tokens.
    """

    trajectory: Trajectory
    rendered: Rendered
    values: dict[str, npt.NDArray[Any]] = field(default_factory=dict)
    key: bytes = b""
    copied: bool = False
    teacher_reads: TokenSequence | None = None
    teacher_apart: bool = False

    @property
    def is_ok(self) -> bool:
        """Whether it can be scored, as far as is known."""
        return self.rendered.status == OK

    def read_by(self, role: str) -> TokenSequence:
        """The tokens that a model in a role reads, and those that it is asked of: the same ones for all, in one order."""
        own = self.teacher_reads if role == "teacher" else None
        return self.rendered.whole if own is None else own


def scored_row(trajectory: Trajectory, renderer: Renderer) -> ScoredRow:
    """A row in the student's tokens, with what came with its ids and how a teacher with another prompt reads it."""
    row = ScoredRow(trajectory, render(trajectory, renderer))
    if not row.is_ok:
        return row
    given = None if trajectory.tokens is None else trajectory.tokens.sampler_P
    if given is not None:
        row.values["sampler_logprob"] = given[row.rendered.positions_N]
        row.values["scaffold_sampler_logprob"] = given[row.rendered.scaffold_S]
    if trajectory.teacher_messages is not None:
        row.teacher_reads = _with_prompt(trajectory, trajectory.teacher_messages, row.rendered, renderer)
        row.teacher_apart = row.teacher_reads is None
    return row


def _with_prompt(
    trajectory: Trajectory, prompt: Sequence[Mapping[str, Any]], rendered: Rendered, renderer: Renderer
) -> TokenSequence | None:
    """The same tokens of the response behind another prompt; None where the template makes no such prompt, or other tokens."""
    whole = rendered.whole
    if trajectory.tokens is not None:
        ids = renderer.prompt_ids(prompt, trajectory.tools, trajectory.chat_template_kwargs)
        first = int(whole.positions_N[0])
        if ids is None or not len(ids):
            return None
        moved = whole.positions_N.astype(np.int64) - first + len(ids)
        return TokenSequence(np.concatenate([ids, whole.input_ids_P[first:]]), moved.astype(np.uint32))
    messages = trajectory.messages or []
    before = len(before_reply(messages))
    weights = {number + len(prompt) - before: weight for number, weight in trajectory.weights.items()}
    other = render(replace(trajectory, messages=[*map(dict, prompt), *messages[before:]], weights=weights), renderer)
    if other.status != OK or not np.array_equal(_asked_of(other.whole), _asked_of(whole)):
        return None
    return other.whole


def _asked_of(sequence: TokenSequence) -> npt.NDArray[np.int32]:
    return sequence.input_ids_P[sequence.positions_N]


def render(trajectory: Trajectory, renderer: Renderer) -> Rendered:
    """Tokens of a trajectory, or why there are none."""
    if trajectory.refusal:
        return refused(trajectory.refusal, trajectory.detail)
    if trajectory.tokens is not None:
        return renderer.render_ids(trajectory.tokens.ids_P, trajectory.tokens.scored_P)
    if trajectory.rendered_from is not None:
        return renderer.render_rendered(trajectory.text or "", trajectory.rendered_from)
    if trajectory.messages is None:
        return renderer.render_text(trajectory.text or "")
    context = {index for index, weight in trajectory.weights.items() if not weight}
    return renderer.render_messages(trajectory.messages, trajectory.tools, trajectory.chat_template_kwargs, context)


def for_other_tokens(trajectory: Trajectory, role: str) -> Trajectory:
    """A trajectory as a model with a tokenizer of its own reads it: its text, with the prompt that is meant for a teacher."""
    if trajectory.tokens is not None and trajectory.messages is None:
        detail = "token ids without text mean nothing to another tokenizer."
        return replace(trajectory, tokens=None, refusal="no_known_layout", detail=detail)
    messages, prompt = trajectory.messages, trajectory.teacher_messages
    if role == "teacher" and prompt is not None and messages is not None:
        messages = [*prompt, *messages[len(before_reply(messages)) :]]
    return replace(trajectory, tokens=None, messages=messages)


def says_something_else(row: ScoredRow, renderer: Renderer) -> bool:
    """Whether the text beside a row's token ids is another one than the ids of the response spell.

    White space at its ends does not count, nor do control tokens; of several parts (thoughts and answer, turns) each has to be
    there, in their order.
    """
    parts = row.trajectory.said_beside
    if parts is None or row.trajectory.tokens is None:
        return False
    whole = row.rendered.whole
    said = renderer.spellings(whole.input_ids_P[whole.positions_N[0] : whole.positions_N[-1] + 1].tolist())
    if len(parts) == 1:
        return parts[0].strip() not in said
    place = 0
    for part in parts:
        found = said[0].find(part.strip(), place)
        if found < 0:
            return True
        place = found + len(part.strip())
    return False
