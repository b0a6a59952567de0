"""An annotator in this process: calls answered by a generator that holds its text to a JSON schema."""

from __future__ import annotations

from collections.abc import Sequence

from trajscore.engines.generation import Completion, Generator, Sampling
from trajscore.skills.calls import Call, Done, Reply

_BATCH = 256


class InProcess:
    """A `Annotator` around a generator.

    Args:
        generator: one that knows schemas (vLLM's).
    """

    def __init__(self, generator: Generator) -> None:
        self._generator = generator

    def answer(self, calls: Sequence[Call], done: Done) -> None:
        """Answer in batches, so that what is done is kept when the run is stopped."""
        for first in range(0, len(calls), _BATCH):
            batch = calls[first : first + _BATCH]
            conversations = [[{"role": "user", "content": call.content}] for call in batch]
            replies = self._generator.generate(conversations, [_sampling(call) for call in batch])
            for call, (completion,) in zip(batch, replies, strict=True):
                done(call, _reply(completion))

    def close(self) -> None:
        """Free the model."""
        self._generator.close()


def _sampling(call: Call) -> Sampling:
    settings = call.settings
    return Sampling(
        temperature=settings["temperature"],
        max_tokens=settings["max_tokens"],
        seed=settings["seed"] + call.sample,
        schema=call.schema,
        extra=settings.get("request", {}),
    )


def _reply(completion: Completion) -> Reply:
    # A template that opens the thinking leaves its tag in front of what is JSON by construction.
    text = completion.text.removeprefix("<think>\n")
    return Reply(
        text=text,
        complete=completion.finished,
        prompt_tokens=completion.prompt_tokens,
        completion_tokens=completion.tokens,
    )
