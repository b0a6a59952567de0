"""A row of the corpus on its way from the reader to a part: the trajectory, its tokens, and what the models found.

It is the only thing that passes from step to step.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy.typing as npt

from trajscore.corpus import Trajectory
from trajscore.rendering.renderer import Rendered, Renderer, refused
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
    """

    trajectory: Trajectory
    rendered: Rendered
    values: dict[str, npt.NDArray[Any]] = field(default_factory=dict)
    key: bytes = b""
    copied: bool = False

    @property
    def is_ok(self) -> bool:
        """Whether it can be scored, as far as is known."""
        return self.rendered.status == OK


def render(trajectory: Trajectory, renderer: Renderer) -> Rendered:
    """Tokens of a trajectory, or why there are none."""
    if trajectory.refusal:
        return refused(trajectory.refusal, trajectory.detail)
    if trajectory.rendered_from is not None:
        return renderer.render_rendered(trajectory.text or "", trajectory.rendered_from)
    if trajectory.messages is None:
        return renderer.render_text(trajectory.text or "")
    context = {index for index, weight in trajectory.weights.items() if not weight}
    return renderer.render_messages(trajectory.messages, trajectory.tools, trajectory.chat_template_kwargs, context)
