"""Text from a causal LM: what every generator promises and checks before it writes. Each has a file of its own.

Axes: B conversations of a batch, P positions, T drawn tokens, K most probable entries of a prediction.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from trajscore.errors import UsageError
from trajscore.rendering.tokenizer import own_template

Messages = Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class Sampling:
    """How text is drawn.

    Attributes:
        temperature: 0 for greedy decoding.
        max_tokens: longest completion.
        top_p: tokens are drawn from the most probable ones that together have this probability; 1 for all.
        best: how many of the most probable entries of each prediction `inference_entropy` is made of; 0 for no such number.
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
    top_p: float = 1.0
    best: int = 0

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
        inference_entropy: bits, of the predictions that it was drawn from; None unless asked for, and of no token.
    """

    text: str
    finished: bool
    prompt_tokens: int
    tokens: int
    inference_entropy: float | None = None


class Generator(Protocol):
    """Continues conversations."""

    def generate(
        self, conversations: Sequence[Messages], samplings: Sequence[Sampling], beginnings: Sequence[str] = ()
    ) -> Iterator[list[Completion]]:
        """The completions of each conversation, in order; `samplings` has one entry per conversation.

        Where `beginnings` are given, one per conversation, each completion goes on from its own, which stands in front of its
        text; an empty one is none.

        Raises:
            EngineError: the model failed.
        """

    def close(self) -> None:
        """Free the model."""


_TOP_SHARE = 0.2
"""Of the positions, those with the largest entropies, that count."""


def inference_entropy(logprobs_TK: npt.NDArray[np.floating[Any]]) -> float | None:
    """How unsure a model was while it wrote: the mean entropy of its fifth of most uncertain predictions.

    Args:
        logprobs_TK: of the K most probable entries of each of T predictions, up to a constant of each; they are renormalised.

    Returns:
        Bits, at most log2 K, the mean over the max(1, floor(0.2 T)) largest entropies; None where T is 0.

    Source: arXiv 2601.03725 (EDCO), the authors' code: K = 20.

    >>> inference_entropy(np.log([[0.5, 0.5], [1.0, 1e-30]])), inference_entropy(np.zeros((0, 20)))
    (1.0, None)
    """
    if not len(logprobs_TK):
        return None
    shifted_TK = logprobs_TK.astype(np.float64) - logprobs_TK.max(1, keepdims=True)
    total_T = np.exp(shifted_TK).sum(1)
    # An impossible entry, ln p of minus infinity, adds 0.
    terms_TK = np.exp(shifted_TK) * np.maximum(shifted_TK, -1e4)
    entropy_T = np.log2(total_T) - terms_TK.sum(1) / total_T / np.log(2)
    count = max(1, int(_TOP_SHARE * len(entropy_T)))
    return float(np.sort(entropy_T)[-count:].mean())


def opened_thought(rendered: str) -> str:
    """What a chat template wrote of the answer: some open the thinking, and the model only closes it.

    >>> opened_thought("<|im_start|>assistant\\n<think>\\n"), opened_thought("<|im_start|>assistant\\n")
    ('<think>\\n', '')
    """
    return "<think>\n" if rendered.rstrip().endswith("<think>") else ""


class Opening(NamedTuple):
    """What a generator goes on from: the text that the model reads, and what of it stands before a completion's own tokens."""

    prompt: str
    said: str


def opening(rendered: str, beginning: str) -> Opening:
    """A rendered conversation and the beginning of its answer; a thought that the template opened is not opened twice.

    >>> opening("<|im_start|>assistant\\n<think>\\n", "<think>\\nFirst")
    Opening(prompt='<|im_start|>assistant\\n<think>\\nFirst', said='<think>\\nFirst')
    >>> [opening(f"<|im_start|>assistant\\n{thought}", "First").said for thought in ("<think>\\n", "")]
    ['<think>\\nFirst', 'First']
    """
    opened = opened_thought(rendered)
    own = beginning.removeprefix(opened)
    return Opening(rendered + own, opened + own)


def openings(tokenizer: Any, conversations: Sequence[Messages], beginnings: Sequence[str]) -> list[Opening]:
    """The opening of every conversation, rendered by the tokenizer's template; without beginnings none has one."""
    starts = beginnings or [""] * len(conversations)
    return [
        opening(tokenizer.apply_chat_template(list(each), add_generation_prompt=True, tokenize=False), start)
        for each, start in zip(conversations, starts, strict=True)
    ]


def check_template(model: str, tokenizer: Any) -> None:
    """Refuse a model without a chat template: its conversations have no text.

    Raises:
        UsageError: there is none.
    """
    if own_template(model, tokenizer) is None:
        raise UsageError(
            f"{model}: it has no chat template.", "Give a chat model, or save a template beside the model."
        )
