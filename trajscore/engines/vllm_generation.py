"""Text from a causal LM in vLLM, in this process."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from trajscore.engines.generation import Completion, Messages, Sampling, check_template, inference_entropy, openings
from trajscore.engines.vllm_versions import environment, importing
from trajscore.errors import EngineError, UsageError, first_line
from trajscore.options.groups import EngineOptions
from trajscore.rendering.tokenizer import load_tokenizer


class VLLMGenerator:
    """A model of vLLM; see `engines.generation.Generator`. Every draw has a seed of its own.

    Raises:
        UsageError: there is no such model, or it has no chat template.
        EngineError: vLLM cannot run it.
        MissingExtraError: vLLM is not installed.
    """

    def __init__(
        self, model: str, options: EngineOptions, revision: str | None = None, max_model_len: int | None = None
    ) -> None:
        with importing():
            import vllm
            from vllm.sampling_params import StructuredOutputsParams
        self._vllm, self._structured = vllm, StructuredOutputsParams
        self._tokenizer = load_tokenizer(model, revision=revision, trust_remote_code=options.trust_remote_code)
        check_template(model, self._tokenizer)
        self._name = model
        try:
            with environment(_own_process(options)):
                self._model = vllm.LLM(
                    model=model,
                    revision=revision,
                    dtype=options.dtype,
                    trust_remote_code=options.trust_remote_code,
                    max_model_len=max_model_len,
                    tensor_parallel_size=options.tensor_parallel_size,
                    quantization=options.quantization,
                    # Small models fill a JSON answer with blanks up to the token limit where the grammar allows any.
                    structured_outputs_config={"backend": "xgrammar", "disable_any_whitespace": True},
                    **{
                        "enforce_eager": not _has_gpu(),
                        "load_format": "safetensors",
                        **_memory(options),
                        **options.engine_args,
                    },
                )
        except Exception as error:  # vLLM raises many kinds here
            raise EngineError(f"{model}: vLLM cannot load it ({first_line(error)}).") from error

    def generate(
        self, conversations: Sequence[Messages], samplings: Sequence[Sampling], beginnings: Sequence[str] = ()
    ) -> Iterator[list[Completion]]:
        """All conversations in one call; vLLM batches them itself."""
        if not conversations:
            return
        opened = openings(self._tokenizer, conversations, beginnings)
        prompts = [
            self._vllm.TokensPrompt(
                prompt_token_ids=self._tokenizer(each.prompt, add_special_tokens=False)["input_ids"]
            )
            for each in opened
        ]
        try:
            outputs = self._model.generate(prompts, [self._parameters(each) for each in samplings], use_tqdm=False)
        except Exception as error:  # vLLM raises many kinds here
            raise EngineError(f"{self._name}: generation failed ({first_line(error)}).") from error
        for (_, said), output, sampling in zip(opened, outputs, samplings, strict=True):
            length = len(output.prompt_token_ids or ())
            yield [
                Completion(
                    said + each.text,
                    each.finish_reason != "length",
                    length,
                    len(each.token_ids),
                    inference_entropy(_best(each.logprobs or [], sampling.best)) if sampling.best else None,
                )
                for each in output.outputs
            ]

    def _parameters(self, sampling: Sampling) -> Any:
        held: Mapping[str, Any] = (
            {} if sampling.schema is None else {"structured_outputs": self._structured(json=dict(sampling.schema))}
        )
        given = {
            "n": sampling.samples,
            "temperature": sampling.temperature,
            "max_tokens": sampling.max_tokens,
            "seed": sampling.seed,
            "top_p": sampling.top_p,
            **({"logprobs": sampling.best} if sampling.best else {}),
            **held,
            **sampling.extra,
        }
        try:
            return self._vllm.SamplingParams.from_optional(**given)
        except (TypeError, ValueError) as error:
            raise UsageError(f"vLLM does not take these settings ({first_line(error)}).", f"Given: {given}.") from error

    def close(self) -> None:
        """Free the model."""
        from trajscore.engines.vllm_insides import shut_down

        shut_down(self._model.llm_engine)
        del self._model


def _best(logprobs: Sequence[Mapping[int, Any]], k: int) -> npt.NDArray[np.float64]:
    """ln p of the k best entries of each prediction, [T, K]; vLLM adds the drawn token where it is none of them."""
    best = [sorted((each.logprob for each in step.values()), reverse=True)[:k] for step in logprobs]
    return np.array(best, np.float64).reshape(len(best), -1)


def _own_process(options: EngineOptions) -> dict[str, str]:
    """One engine stays in this process: a parent that is killed would leave another one behind. The user's word stands."""
    name = "VLLM_ENABLE_V1_MULTIPROCESSING"
    return {name: "0"} if options.tensor_parallel_size == 1 and name not in os.environ else {}


def _memory(options: EngineOptions) -> dict[str, float]:
    share = options.gpu_memory_utilization
    return {} if share is None else {"gpu_memory_utilization": share}


def _has_gpu() -> bool:
    import torch

    return bool(torch.cuda.is_available())
