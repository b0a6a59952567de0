"""The transformers engine: a causal LM, its backbone run on length-sorted batches, its head reduced in blocks.

Its conventions are the interface's own: strict ranks, nats, the value at position p belongs to token p. Batches are padded on
the right and need no mask: in a causal model nothing reads what follows it. What is longer than a batch is read in pieces, and
on a CPU a prompt that several sequences begin with is read once.
Axes: B sequences of a batch, P positions, D hidden width, N scored tokens, V vocabulary.
"""

from __future__ import annotations

import functools
import logging
import platform
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from trajscore.engines.adapters import merge
from trajscore.engines.base import ModelSource, Result, check_ids
from trajscore.engines.checkpoint import auto_class, cannot_load, check_folder, quiet_loading, refuse_other_weights
from trajscore.engines.memory import free_memory, out_of_memory
from trajscore.engines.pieces import SMALLEST, hidden_pieces, pair_bytes, piece_tokens, reads_in_pieces
from trajscore.engines.reduced_rows import reduce_rows
from trajscore.engines.reductions import Reduction
from trajscore.engines.rotary import forget_lengths, length_class
from trajscore.engines.shared_prefixes import Prefix, can_share, read_on, read_prefix, shared_prefixes
from trajscore.errors import EngineError, MissingExtraError, UsageError
from trajscore.options.groups import EngineOptions
from trajscore.rendering.tokenizer import require_model
from trajscore.rendering.tokens import TokenSequence
from trajscore.statistics import Head
from trajscore.statistics.blocks import ROW_LIMIT
from trajscore.statistics.head import prepare

try:
    import torch
    import transformers
except ImportError as error:
    raise MissingExtraError("transformers", "hf") from error

_LOG = logging.getLogger("trajscore")

CPU_TOKENS = 1024
"""Tokens of a batch on a CPU: activations of more leave the caches. With 8,192 a model of 30 layers takes 1.35 x the time."""


class HFEngine:
    """A model of transformers in this process. See `engines.Engine` for the methods' contracts.

    Args:
        model: the model and its vocabulary; padding rows of the head do not count.
        options: how to run it.

    Raises:
        UsageError: the model does not exist or has no safetensors weights.
        EngineError: its logits are computed in a way that the head's reduction does not know.
    """

    needs_files = False

    def __init__(self, model: ModelSource, options: EngineOptions) -> None:
        _check_options(options)
        self._name = model.name
        self._budget = options.max_num_batched_tokens
        self._device = device_of(options.device)
        self._model = load_model(model.name, model.revision, options, self._device, model.adapter)
        self._config = self._model.config.get_text_config()
        self._length_class = length_class(self._config)
        self._head = _head(self._model, self._config, model.vocabulary)
        if damage := self._head.damage():
            raise EngineError(
                f"{self._name}: {damage}",
                "Its weights are damaged, or overflow in this --dtype: load them again, or try another --dtype.",
            )
        self._check_head()

    @property
    def max_model_len(self) -> int | None:
        """Positions that the model was made for."""
        limit = getattr(self._config, "max_position_embeddings", None)
        return int(limit) if limit else None

    def describe(self) -> dict[str, Any]:
        """Settings that can change a number."""
        return {
            "dtype": str(self._model.dtype).removeprefix("torch."),
            "head_dtype": "float64" if self._model.dtype == torch.float64 else "float32",
            "vocabulary": self._head.vocabulary,
            "attn_implementation": getattr(self._config, "_attn_implementation", None),
        }

    def environment(self) -> dict[str, Any]:
        """Versions and device."""
        device = torch.cuda.get_device_name(self._device) if self._device.type == "cuda" else platform.machine()
        return {
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "device": f"{self._device.type} ({device})",
        }

    @property
    def vocabulary(self) -> int:
        """Entries of the output head that count."""
        return self._head.vocabulary

    @property
    def state_bytes(self) -> int:
        """Size of one token's hidden state."""
        return int(self._head.weight_VD.shape[1]) * int(self._model.dtype.itemsize)

    @property
    def head(self) -> Head:
        """The output head, cut to the vocabulary."""
        return self._head

    def run(self, sequences: Sequence[TokenSequence], reduction: Reduction[Result]) -> Iterator[tuple[int, Result]]:
        """Run longest sequences first, in batches of at most `max_num_batched_tokens` tokens; longer ones piece by piece."""
        rows = self._model.get_input_embeddings().weight.shape[0]
        check_ids(self._name, min(rows, self.vocabulary), sequences)
        done = set[int]()
        for index, result in self._run_shared(sequences, reduction):
            done.add(index)
            yield index, result
        left = [index for index in range(len(sequences)) if index not in done]
        waiting = sorted(left, key=lambda index: -len(sequences[index].input_ids_P))
        while waiting:
            longest = len(sequences[waiting[0]].input_ids_P)
            batch = self._alike(waiting[: max(1, self._together // longest)], sequences)
            try:
                if longest > self._budget and self._reads_in_pieces:
                    results = [self._run_in_pieces(sequences[batch[0]], batch[0], reduction)]
                else:
                    results = self._run_batch(sequences, batch, reduction)
            except (RuntimeError, MemoryError) as error:
                if not out_of_memory(error):
                    raise EngineError(f"{self._name}: the model failed ({error}).") from error
                self._halve_budget(len(batch), longest)
                continue
            yield from zip(batch, results, strict=True)
            waiting = waiting[len(batch) :]

    @property
    def _together(self) -> int:
        """Tokens of a batch."""
        return min(self._budget, CPU_TOKENS) if self._device.type == "cpu" else self._budget

    def _run_shared(
        self, sequences: Sequence[TokenSequence], reduction: Reduction[Result]
    ) -> Iterator[tuple[int, Result]]:
        """Those of the sequences that begin alike, where that saves work; what memory ran out for is left to others."""
        # On a GPU nobody has measured whether the mask that this needs costs more than the prompts.
        found = shared_prefixes(sequences) if self._device.type == "cpu" else []
        for prefix in found if found and self._can_share else ():
            first = sequences[prefix.members[0]].input_ids_P
            if len(first) > self._together:
                continue
            waiting, cache = prefix.members, None
            while waiting:
                longest = len(sequences[waiting[0]].input_ids_P)
                # Every row gets its copy of the prefix's keys and values, which take memory.
                count = min(self._together // (longest - prefix.length), 2 * self._together // longest)
                try:
                    if cache is None:
                        ids_P = torch.from_numpy(first[: prefix.length].astype(np.int64)).to(self._device)
                        cache = read_prefix(self._model.base_model, ids_P)
                    results = self._run_batch(sequences, waiting[:count], reduction, prefix, cache)
                except (RuntimeError, MemoryError) as error:
                    if not out_of_memory(error):
                        raise EngineError(f"{self._name}: the model failed ({error}).") from error
                    free_memory()
                    break
                yield from zip(waiting[:count], results, strict=True)
                waiting = waiting[count:]

    def _alike(self, batch: list[int], sequences: Sequence[TokenSequence]) -> list[int]:
        """As many of the sequences, from the first on, as may share a batch without changing one another's values."""
        if self._length_class is None:
            return batch
        forget_lengths(self._model.base_model)
        kinds = [self._length_class(len(sequences[index].input_ids_P)) for index in batch]
        return batch[: next((place for place, kind in enumerate(kinds) if kind != kinds[0]), len(batch))]

    def sleep(self) -> bool:
        """Never: loading a model of transformers anew takes little more than moving it."""
        return False

    def close(self) -> None:
        """Free the model."""
        del self._model, self._head
        free_memory()

    @torch.inference_mode()
    def _run_batch(
        self,
        sequences: Sequence[TokenSequence],
        indices: list[int],
        reduction: Reduction[Result],
        prefix: Prefix | None = None,
        cache: Any = None,
    ) -> list[Result]:
        """Results of a batch, of which what follows a prefix is read, if one is given with its keys and values."""
        batch, start = [sequences[index] for index in indices], prefix.length if prefix else 0
        ids_BP = np.zeros((len(batch), max(len(s.input_ids_P) for s in batch) - start), np.int64)
        for row, sequence in enumerate(batch):
            ids_BP[row, : len(sequence.input_ids_P) - start] = sequence.input_ids_P[start:]
        ids = torch.from_numpy(ids_BP).to(self._device)
        hidden_BPD = self._hidden(ids) if cache is None else read_on(self._model.base_model, cache, ids)
        counts = [len(sequence.positions_N) for sequence in batch]
        row_N = torch.from_numpy(np.repeat(np.arange(len(batch)), counts)).to(hidden_BPD.device)
        position_N = torch.from_numpy(np.concatenate([s.positions_N for s in batch]).astype(np.int64)).to(row_N.device)
        # The token at position p is predicted by the hidden state at p - 1.
        hidden_ND = hidden_BPD[row_N, position_N - 1 - start]
        del hidden_BPD
        targets_N = torch.from_numpy(np.concatenate([s.input_ids_P[s.positions_N] for s in batch]).astype(np.int64))
        other_NE = reduction.other.rows(indices) if reduction.other else None
        rows_NC = self._reduce(reduction, hidden_ND, targets_N, other_NE)
        return [reduction.unpack(rows) for rows in torch.split(rows_NC, counts)]

    @torch.inference_mode()
    def _run_in_pieces(self, sequence: TokenSequence, index: int, reduction: Reduction[Result]) -> Result:
        """One long sequence: the states of each piece are reduced before the next one is read."""
        length = len(sequence.input_ids_P)
        pairs = pair_bytes(self._config._attn_implementation, self._config.num_attention_heads)
        piece = piece_tokens(length, self._budget, pairs)
        ids_P = torch.from_numpy(sequence.input_ids_P.astype(np.int64))
        predicting_N = sequence.positions_N.astype(np.int64) - 1
        other_NE = reduction.other.rows([index]) if reduction.other else None
        found = []
        for start, hidden_PD in hidden_pieces(self._model.base_model, ids_P.to(self._device), piece):
            low, high = np.searchsorted(predicting_N, [start, start + len(hidden_PD)])
            if low == high:
                continue
            here_N = torch.from_numpy(predicting_N[low:high])
            theirs_NE = None if other_NE is None else other_NE[low:high]
            hidden_ND = hidden_PD[here_N.to(hidden_PD.device) - start]
            found.append(self._reduce(reduction, hidden_ND, ids_P[here_N + 1], theirs_NE))
        return reduction.unpack(torch.cat(found))

    def _reduce(
        self, reduction: Reduction[Any], hidden_ND: torch.Tensor, targets_N: torch.Tensor, other_NE: torch.Tensor | None
    ) -> torch.Tensor:
        hidden_ND = hidden_ND.to(self._head.weight_VD.device)
        rows_NC = reduce_rows(
            reduction.kind,
            hidden_ND,
            self._head,
            targets_N.to(hidden_ND.device),
            **reduction.parameters,
            other_NE=other_NE,
            other_head=reduction.other.head if reduction.other else None,
        )
        # Hidden states stay where another model may read them; a few numbers per token do not.
        return rows_NC if reduction.kind == "states" else rows_NC.cpu()

    @functools.cached_property
    def _reads_in_pieces(self) -> bool:
        return reads_in_pieces(self._model.base_model, self._device)

    @functools.cached_property
    def _can_share(self) -> bool:
        return can_share(self._model.base_model, self._device)

    def _hidden(self, ids_BP: torch.Tensor) -> torch.Tensor:
        """Hidden states after the final norm, [B, P, D]."""
        output = self._model.base_model(input_ids=ids_BP.to(self._device), use_cache=False, return_dict=True)
        hidden_BPD: torch.Tensor = output.last_hidden_state
        return hidden_BPD

    @torch.inference_mode()
    def _check_head(self) -> None:
        """Compare our logits with the model's own on a few tokens: an architecture may scale or cap them in its own way."""
        count = min(16, self._head.vocabulary)
        ids_BP = torch.linspace(0, self._head.vocabulary - 1, count).long()[None]
        own_PV = self._model(input_ids=ids_BP.to(self._device), use_cache=False).logits[0].float()
        hidden_PD = prepare(self._hidden(ids_BP)[0].to(self._head.weight_VD.device), self._head)
        present = slice(0, self._head.vocabulary)
        ours_PV = self._head.logits(hidden_PD, present)
        own_PV = own_PV[:, present].to(ours_PV.device)
        # Rows with NaN are refused one by one; here they say nothing of the architecture.
        known_PV = own_PV.isfinite()
        if self._head.absent_V is not None:
            known_PV &= ~self._head.absent_V
        if not known_PV.any():
            raise EngineError(
                f"{self._name}: gives NaN or infinity for every token.",
                "Its weights are damaged, or overflow in this --dtype: load them again, or try another --dtype.",
            )
        ours_N, own_N = ours_PV[known_PV], own_PV[known_PV]
        tolerance = 1e-3 if self._model.dtype.itemsize >= 4 else 5e-2
        error = ((ours_N - own_N).abs().max() / own_N.abs().max().clamp_min(1.0)).item()
        if not error <= tolerance:
            raise EngineError(
                f"{self._name}: {type(self._model).__name__} computes its logits in a way trajscore does not know "
                f"(relative difference {error:.2g}).",
                "Please report the architecture.",
            )

    def _halve_budget(self, rows: int, longest: int) -> None:
        free_memory()
        # What ran out may have been the reduction, whose rows do not depend on the batch.
        fewer_rows = ROW_LIMIT.halve()
        half = min(self._budget, longest) // 2
        if rows == 1 and half >= SMALLEST and self._reads_in_pieces:
            self._budget = half
        elif rows == 1 and not fewer_rows:
            raise EngineError(
                f"{self._name}: out of memory with a single trajectory of {longest} tokens.",
                "Lower --max-model-len, or use a device with more memory.",
            )
        elif rows > 1:
            self._budget = max(longest, rows * longest // 2)
        _LOG.warning("out of memory: going on with at most %d tokens at a time", self._budget)


def _check_options(options: EngineOptions) -> None:
    given = EngineOptions()
    for name in ("tensor_parallel_size", "data_parallel_size", "gpu_memory_utilization", "quantization", "engine_args"):
        if getattr(options, name) != getattr(given, name):
            flag = f"--{name.replace('_', '-')}".removesuffix("s")
            raise UsageError(f"{flag} is an option of vLLM, and this model runs with transformers.", "Leave it out.")


def device_of(name: str) -> torch.device:
    """The device that `--device` means here.

    Raises:
        UsageError: there is no such device here.
    """
    if name in ("auto", "balanced"):
        if torch.cuda.is_available():
            return torch.device("cuda", 0)
        return torch.device("mps" if name == "auto" and torch.backends.mps.is_available() else "cpu")
    allowed = "Allowed: auto, cpu, cuda, cuda:N, mps, balanced."
    # torch knows many more devices, some of which (meta) hold no numbers at all.
    if name.partition(":")[0] not in ("cpu", "cuda", "mps"):
        raise UsageError(f"--device {name}: not known.", allowed)
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise UsageError(f"--device {name}: not usable here ({str(error).splitlines()[0]}).", allowed) from error
    return device


def load_model(
    name: str, revision: str | None, options: EngineOptions, device: torch.device, adapter: str | None = None
) -> Any:
    """A causal LM on a device: safetensors only, whole, with the attention it was made for, and with its adapter.

    Raises:
        UsageError: it does not exist, cannot be loaded, its checkpoint lacks weights, or the adapter is not its own.
    """
    require_model(name)
    check_folder(name)
    dtype = "float32" if options.dtype == "auto" and device.type == "cpu" else options.dtype
    if dtype == "float64" and device.type == "mps":
        raise UsageError("--dtype float64: Apple's GPUs have no such numbers.", "Add --device cpu.")
    # Fused products of experts know no float64.
    plain = {"experts_implementation": "eager"} if dtype == "float64" else {}
    placement = {"device_map": "balanced"} if options.device == "balanced" and device.type == "cuda" else {}
    try:
        with quiet_loading():
            config = transformers.AutoConfig.from_pretrained(
                name, revision=revision, trust_remote_code=options.trust_remote_code
            )
            model, loaded = auto_class(config).from_pretrained(
                name,
                revision=revision,
                dtype=dtype if dtype == "auto" else getattr(torch, dtype),
                use_safetensors=True,
                trust_remote_code=options.trust_remote_code,
                attn_implementation=_attention(name, config, options),
                ignore_mismatched_sizes=True,  # so that they are named: what was made up in their place is refused
                output_loading_info=True,
                **plain,
                **placement,
            )
    except UsageError:
        raise
    except Exception as error:  # transformers raises many kinds for the same thing: this model cannot be loaded
        failure = cannot_load(name, error)
        if options.attn_implementation is not None:
            failure.hint += f" Or the reason is --attn-implementation {options.attn_implementation}: leave it out."
        raise failure from error
    refuse_other_weights(name, loaded)
    _keep_time_steps(model)
    model = model if placement else model.to(device)
    return (model if adapter is None else merge(model, name, adapter)).eval()


def _keep_time_steps(model: Any) -> None:
    """Let Nemotron-H's Mamba layers bound their time steps as their configuration says.

    transformers (up to 5.19 at least) bounds them from below by `time_step_min`, which is meant for drawing initial weights;
    the published model and vLLM take the configuration's `time_step_limit` (huggingface/transformers pull request 48989).
    """
    for module in model.modules():
        limit = getattr(getattr(module, "config", None), "time_step_limit", None)
        if type(module).__name__ == "NemotronHMamba2Mixer" and limit is not None:
            module.time_step_limit = tuple(map(float, limit))


def _attention(name: str, config: Any, options: EngineOptions) -> str | None:
    """The attention to ask for. The default of transformers, sdpa, silently leaves out the soft cap of Gemma 2's attention.

    Raises:
        UsageError: sdpa was asked for where it gives other numbers than the model's.
    """
    capped = getattr(config.get_text_config(), "attn_logit_softcapping", None) is not None
    if capped and options.attn_implementation == "sdpa":
        raise UsageError(
            f"--attn-implementation sdpa: leaves out the soft cap of {name}'s attention.",
            "Allowed here: eager, flash_attention_2.",
        )
    return "eager" if capped and options.attn_implementation is None else options.attn_implementation


def _head(model: Any, config: Any, vocabulary: npt.NDArray[np.int64]) -> Head:
    output = model.get_output_embeddings()
    if output is None or model.base_model is model:
        raise EngineError(f"{type(model).__name__}: no separate backbone and output head.")
    rows = min(output.weight.shape[0], int(vocabulary[-1]) + 1)
    present = torch.zeros(rows, dtype=torch.bool)
    present[torch.from_numpy(vocabulary[vocabulary < rows])] = True
    bias = getattr(output, "bias", None)
    return Head(
        weight_VD=output.weight.detach()[:rows],
        bias_V=None if bias is None else bias.detach()[:rows],
        scale=_scale(config),
        softcap=getattr(config, "final_logit_softcapping", None),
        absent_V=None if bool(present.all()) else (~present).to(output.weight.device),
    )


def _scale(config: Any) -> float:
    """Factor on the logits: Cohere and Falcon-H1 multiply by it, Granite divides."""
    factor = getattr(config, "logit_scale", None) or getattr(config, "lm_head_multiplier", None) or 1.0
    return float(factor) / float(getattr(config, "logits_scaling", None) or 1.0)
