"""Text written by a model with transformers, a batch at a time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from trajscore.engines.generation import Completion, Messages, Sampling, check_template, inference_entropy, openings
from trajscore.errors import EngineError, UsageError
from trajscore.options.groups import EngineOptions
from trajscore.rendering.tokenizer import load_tokenizer

if TYPE_CHECKING:
    from torch import Tensor


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

    def generate(
        self, conversations: Sequence[Messages], samplings: Sequence[Sampling], beginnings: Sequence[str] = ()
    ) -> Iterator[list[Completion]]:
        """All conversations as one batch."""
        import torch

        if any(sampling.schema is not None for sampling in samplings):
            raise UsageError("transformers cannot hold an answer to a JSON schema.", "Use vLLM or a server.")
        if not conversations:
            return
        sampling = samplings[0]
        opened = openings(self._tokenizer, conversations, beginnings)
        batch = self._tokenizer(
            [each.prompt for each in opened],
            return_tensors="pt",
            padding=True,
            padding_side="left",
            add_special_tokens=False,
        ).to(self._model.device)
        drawn = {"do_sample": True, "temperature": sampling.temperature, "top_k": 0, "top_p": sampling.top_p}
        watch = _BestEntries(sampling.best)
        torch.manual_seed(sampling.seed)
        try:
            with torch.inference_mode():
                output_BP = self._model.generate(
                    input_ids=batch["input_ids"],
                    attention_mask=batch["attention_mask"],
                    max_new_tokens=sampling.max_tokens,
                    num_return_sequences=sampling.samples,
                    pad_token_id=self._pad,
                    logits_processor=[watch] if sampling.best else None,
                    **(drawn if sampling.temperature > 0 else {"do_sample": False}),
                )
        except RuntimeError as error:
            raise EngineError(f"{self._name}: generation failed ({error}).", "Give a smaller --batch-size.") from error
        new_BP = output_BP[:, batch["input_ids"].shape[1] :].tolist()
        for number, (_, said) in enumerate(opened):
            own = range(number * sampling.samples, (number + 1) * sampling.samples)
            length = int(batch["attention_mask"][number].sum())
            yield [self._completion(new_BP[each], said, length, watch.of(each)) for each in own]

    def _completion(
        self, ids: list[int], said: str, length: int, best_TK: npt.NDArray[np.float32] | None
    ) -> Completion:
        ends = self._model.generation_config.eos_token_id
        stops = set(ends if isinstance(ends, list) else [ends]) | {self._tokenizer.eos_token_id}
        end = next((place for place, token in enumerate(ids) if token in stops), None)
        drawn = ids if end is None else ids[: end + 1]
        text = self._tokenizer.decode(drawn, skip_special_tokens=True)
        entropy = None if best_TK is None else inference_entropy(best_TK[: len(drawn)])
        return Completion(said + text, end is not None, length, len(drawn), entropy)

    def close(self) -> None:
        """Free the model."""
        from trajscore.engines.memory import free_memory

        del self._model
        free_memory()


class _BestEntries:
    """Sees every prediction of `generate` before temperature and top_p, and keeps the logits of its best entries.

    Args:
        k: how many; 0 keeps none.
    """

    def __init__(self, k: int) -> None:
        self._k, self._steps = k, list[Any]()

    def __call__(self, input_ids: Tensor, scores_BV: Tensor) -> Tensor:
        """As a logits processor of transformers, which changes nothing."""
        self._steps.append(scores_BV.float().topk(min(self._k, scores_BV.shape[1])).values.cpu())
        return scores_BV

    def of(self, number: int) -> npt.NDArray[np.float32] | None:
        """The best logits of one sequence, [T, K]; None where none are kept."""
        return np.stack([step[number].numpy() for step in self._steps]) if self._steps else None
