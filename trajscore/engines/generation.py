"""Text from a causal LM: what every generator promises, and the one of transformers. It knows chat templates and sampling; no
question, no skill. The one of vLLM is in `vllm_generation.py`.

Axes: B conversations of a batch, P positions.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from trajscore.engines import EngineOptions, default_engine
from trajscore.errors import EngineError, UsageError, did_you_mean
from trajscore.loading import load_tokenizer, own_template, require_model

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


GENERATORS = ("hf", "vllm")


def load_generator(
    name: str, model: str, options: EngineOptions, revision: str | None = None, max_model_len: int | None = None
) -> tuple[str, Generator]:
    """Load a model to draw text from.

    Args:
        name: `hf`, `vllm`, or `auto` for vLLM where it is installed.
        model: hub id or folder.
        options: how it is loaded.
        revision: hub revision.
        max_model_len: longest conversation with its completion; vLLM only.

    Raises:
        UsageError: unknown name, or no such model.
        MissingExtraError: the engine is not installed.
        EngineError: the model cannot be run.
    """
    asked = default_engine() if name == "auto" else name
    chosen = asked if asked != "auto" else "vllm" if importlib.util.find_spec("vllm") else "hf"
    if chosen not in GENERATORS:
        raise UsageError(f"--engine {name}: no such engine.", did_you_mean(name, ["auto", *GENERATORS]))
    require_model(model)
    if chosen == "hf":
        return chosen, HFGenerator(model, options, revision)
    from trajscore.engines.vllm_generation import VLLMGenerator

    return chosen, VLLMGenerator(model, options, revision, max_model_len)


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


class HFGenerator:
    """A model of transformers in this process; see `Generator`.

    A batch is drawn from one random state that the first conversation's sampling seeds: the same batch gives the same texts.

    Raises:
        UsageError: there is no such model, it cannot be loaded, or it has no chat template.
        MissingExtraError: transformers is not installed.
    """

    def __init__(self, model: str, options: EngineOptions, revision: str | None = None) -> None:
        from trajscore.engines.hf import device_of, load_model

        self._name = model
        self._tokenizer = load_tokenizer(model, revision=revision, trust_remote_code=options.trust_remote_code)
        check_template(model, self._tokenizer)
        self._model = load_model(model, revision, options, device_of(options.device))
        self._pad = next(
            (each for each in (self._tokenizer.pad_token_id, self._tokenizer.eos_token_id) if each is not None), 0
        )

    def generate(self, conversations: Sequence[Messages], samplings: Sequence[Sampling]) -> Iterator[list[Completion]]:
        """All conversations as one batch."""
        import torch

        if any(sampling.schema is not None for sampling in samplings):
            raise UsageError("transformers cannot hold an answer to a JSON schema.", "Use vLLM or a server.")
        if not conversations:
            return
        sampling = samplings[0]
        rendered = [
            self._tokenizer.apply_chat_template(list(each), add_generation_prompt=True, tokenize=False)
            for each in conversations
        ]
        batch = self._tokenizer(
            rendered, return_tensors="pt", padding=True, padding_side="left", add_special_tokens=False
        ).to(self._model.device)
        drawn = {"do_sample": True, "temperature": sampling.temperature, "top_k": 0, "top_p": 1.0}
        torch.manual_seed(sampling.seed)
        try:
            with torch.inference_mode():
                output_BP = self._model.generate(
                    input_ids=batch["input_ids"],
                    attention_mask=batch["attention_mask"],
                    max_new_tokens=sampling.max_tokens,
                    num_return_sequences=sampling.samples,
                    pad_token_id=self._pad,
                    **(drawn if sampling.temperature > 0 else {"do_sample": False}),
                )
        except RuntimeError as error:
            raise EngineError(f"{self._name}: generation failed ({error}).", "Give a smaller --batch-size.") from error
        new_BP = output_BP[:, batch["input_ids"].shape[1] :].tolist()
        for number, text in enumerate(rendered):
            own = new_BP[number * sampling.samples : (number + 1) * sampling.samples]
            length = int(batch["attention_mask"][number].sum())
            yield [self._completion(ids, opened_thought(text), length) for ids in own]

    def _completion(self, ids: list[int], opened: str, length: int) -> Completion:
        ends = self._model.generation_config.eos_token_id
        stops = set(ends if isinstance(ends, list) else [ends]) | {self._tokenizer.eos_token_id}
        end = next((place for place, token in enumerate(ids) if token in stops), None)
        drawn = ids if end is None else ids[: end + 1]
        text = self._tokenizer.decode(drawn, skip_special_tokens=True)
        return Completion(opened + text, end is not None, length, len(drawn))

    def close(self) -> None:
        """Free the model."""
        from trajscore.engines.memory import free_memory

        del self._model
        free_memory()
