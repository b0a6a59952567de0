"""Text from a causal LM: what every generator promises and checks before it writes. Each has a file of its own.

Axes: B conversations of a batch, P positions.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from trajscore.errors import UsageError
from trajscore.rendering.tokenizer import own_template

Messages = Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class Sampling:
    """How text is drawn.

    Attributes:
        temperature: 0 for greedy decoding.
        max_tokens: longest completion.
        samples: completions per conversation.
        seed: of the draws.
        schema: JSON schema that every completion must satisfy (vLLM only); None for free text.
        extra: more arguments of vLLM's SamplingParams.

    Raises:
        UsageError: a value is out of range, or several samples are asked for at temperature 0.
    """

    temperature: float = 0.0
    max_tokens: int = 2048
    samples: int = 1
    seed: int = 0
    schema: Mapping[str, Any] | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.temperature >= 0:
            raise UsageError(f"--temperature is {self.temperature}.", "Give 0 (greedy) or more.")
        for name in ("max_tokens", "samples"):
            if getattr(self, name) < 1:
                raise UsageError(f"--{name.replace('_', '-')} is {getattr(self, name)}.", "Give at least 1.")
        if self.samples > 1 and self.temperature == 0:
            raise UsageError(
                f"--samples {self.samples} at --temperature 0 would be {self.samples} times the same.",
                "Give a temperature above 0, or one sample.",
            )


@dataclass(frozen=True)
class Completion:
    """One drawn text.

    Attributes:
        text: without special tokens; a `<think>` that the chat template opened is put in front again.
        finished: False when it was cut at `max_tokens`.
        prompt_tokens: tokens of the rendered conversation.
        tokens: tokens drawn.
    """

    text: str
    finished: bool
    prompt_tokens: int
    tokens: int


class Generator(Protocol):
    """Continues conversations."""

    def generate(self, conversations: Sequence[Messages], samplings: Sequence[Sampling]) -> Iterator[list[Completion]]:
        """The completions of each conversation, in order; `samplings` has one entry per conversation.

        Raises:
            EngineError: the model failed.
        """

    def close(self) -> None:
        """Free the model."""


def opened_thought(rendered: str) -> str:
    """What a chat template wrote of the answer: some open the thinking, and the model only closes it.

    >>> opened_thought("<|im_start|>assistant\\n<think>\\n"), opened_thought("<|im_start|>assistant\\n")
    ('<think>\\n', '')
    """
    return "<think>\n" if rendered.rstrip().endswith("<think>") else ""


def check_template(model: str, tokenizer: Any) -> None:
    """Refuse a model without a chat template: its conversations have no text.

    Raises:
        UsageError: there is none.
    """
    if own_template(model, tokenizer) is None:
        raise UsageError(
            f"{model}: it has no chat template.", "Give a chat model, or save a template beside the model."
        )
