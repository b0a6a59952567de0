"""What runs inside vLLM's workers: a causal LM becomes a pooling model whose pooler reduces hidden states to statistics.

It is a plugin of vLLM (`vllm.general_plugins`), so that it is there in every process that vLLM
starts; it does nothing in a vLLM that trajscore did not start.
In a tensor parallel group each rank has the hidden states of all tokens and a part of the head's rows: it reduces all tokens
over those, and the ranks exchange a few numbers per token, never rows of the head.
Axes: P prompt tokens of a request, N scored tokens of this step, D hidden width, V vocabulary, C numbers per token.
"""

from __future__ import annotations

import contextlib
import json
import os
import threading
import time
import weakref
from collections import defaultdict
from collections.abc import Iterator, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from trajscore.engines.vllm_insides import (
    StepPart,
    gather_ranks,
    model_class,
    own_rank,
    pooler_base,
    pooling_model_base,
    rank_count,
    register_model,
    restoring,
    step_parts,
    wants_token_ids,
    watch_head,
)

ARCHITECTURE = "TRAJSCORE_VLLM_ARCHITECTURE"
"""Environment variable that names the architecture to score with."""

OWNER = "TRAJSCORE_VLLM_OWNER"
"""Environment variable with the id of the process in which our engine is."""

TASK = "token_classify"
"""The pooling task: one that both of vLLM's model runners know, and that never reads the prefix cache."""


ERROR = "error.txt"
"""File beside the vocabulary in which a worker leaves what went wrong in here, and would again."""


def register() -> None:
    """Entry point, in every process with vLLM: in those that our engines start, the architecture scores from now on."""
    name = os.environ.get(ARCHITECTURE)
    if name is None or int(os.environ[OWNER]) == os.getpid():
        return
    _leave_with_the_owner(int(os.environ[OWNER]))
    _replace(name)


@contextlib.contextmanager
def scoring(architecture: str) -> Iterator[None]:
    """For as long as an engine of this process starts, vLLM takes the scoring class for an architecture.

    It bears the architecture's own name: vLLM looks up by it what an architecture needs (precision of states, attention,
    graphs), and finds nothing under another. Afterwards vLLM's own class is back, for whoever else uses vLLM here.
    """
    with restoring(architecture):
        _replace(architecture)
        yield


def _replace(architecture: str) -> None:
    register_model(architecture, scoring_class(model_class(architecture)))


def scoring_class(base: type[Any]) -> type[Any]:
    """A causal LM of vLLM as a pooling model with our pooler, under its own name."""

    def __init__(self: Any, *, vllm_config: Any, prefix: str = "") -> None:  # noqa: N807
        base.__init__(self, vllm_config=vllm_config, prefix=prefix)
        self.pooler = _pooler(self, vllm_config)

    body = {"__init__": __init__, "is_pooling_model": True, "__module__": base.__module__}
    return type(base.__name__, (base, pooling_model_base()), body)


def pack(kind: str, positions_N: npt.NDArray[np.uint32], **more: Any) -> dict[str, Any]:
    """A request to the pooler, of types that survive the way into another process (arrays and tensors do not).

    Args:
        kind: a kind of `reduced_rows.reduce_rows`, or `head` to check the model's head and write it to a file if one is named.
        positions_N: index of each scored token.
        more: `parameters`, `stored` (fields of `StoredRows`), `head` (path of the other model's head), `path`.
    """
    return {
        "positions": positions_N.astype(np.uint32).tobytes(),
        "what": json.dumps({"kind": kind, **more}, sort_keys=True),
    }


def _leave_with_the_owner(owner: int) -> None:
    """Watch, in processes that vLLM starts, for the death of those that started them: SIGKILL gives them no chance to tell."""
    if owner == os.getpid():
        return
    parent = os.getppid()

    def watch() -> None:
        # The owner may be dead before we begin to watch; whoever adopts orphans is our parent then.
        while os.getppid() == parent and _lives(owner):
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _lives(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


@dataclass(frozen=True)
class _Piece:
    """Scored tokens of one request that fall into this step.

    Attributes:
        request: its number in the batch.
        rows_N: index into the step's hidden states of the state that predicts each.
        targets_N: their ids.
        first: how many scored tokens of the request earlier steps had.
    """

    request: int
    rows_N: Tensor
    targets_N: Tensor
    first: int


def _pooler(model: Any, vllm_config: Any) -> Any:
    """Our pooler for a model. Its class is made here, because its base is vLLM's."""
    from trajscore.engines.memory import out_of_memory
    from trajscore.statistics.blocks import ROW_LIMIT

    class ScoringPooler(pooler_base()):  # type: ignore[misc]
        """Reduces the hidden states of each step to one row per scored token."""

        def __init__(self) -> None:
            super().__init__()
            # A plain reference would make the model a part of its own part.
            self._model = weakref.ref(model)
            self._vocabulary = Path(vllm_config.additional_config["trajscore_vocabulary"])
            # Of the other model's head, too, each rank reads its part.
            self._other_head_bytes = int(vllm_config.additional_config["trajscore_other_head_bytes"]) // rank_count()
            ROW_LIMIT.halvings = int(vllm_config.additional_config["trajscore_halvings"])
            self._head: Any = None

        def get_supported_tasks(self) -> Set[Any]:
            return {TASK}

        def get_pooling_updates(self, task: Any) -> Any:
            return wants_token_ids()

        def forward(self, hidden_states: Tensor, pooling_metadata: Any) -> list[Tensor | None]:
            try:
                if self._head is None:
                    self._head = _find_head(self._model(), hidden_states, np.load(self._vocabulary))
                parts = step_parts(pooling_metadata)
                measuring = all(not part.params.extra_kwargs for part in parts)
                with _room(self._other_head_bytes if measuring else 0, hidden_states.device):
                    return _pool(self._head, hidden_states, parts)
            except Exception as error:  # a process that dies does not say why; memory may do better the next time
                if not out_of_memory(error):
                    (self._vocabulary.parent / ERROR).write_text(f"{type(error).__name__}: {error}")
                raise

    return ScoringPooler()


@contextlib.contextmanager
def _room(size: int, device: torch.device) -> Iterator[None]:
    """Hold as many bytes as another model's head will take: what vLLM measures is what a run needs, the rest its cache."""
    held = torch.empty(size, dtype=torch.uint8, device=device)
    yield
    del held


@torch.inference_mode()
def _pool(head: Any, hidden_TD: Tensor, parts: list[StepPart]) -> list[Tensor | None]:
    """The rows of every request that this step finishes; None for the others, whose rows so far wait in their state."""
    requests = [_unpack(part.params) for part in parts]
    groups: dict[str, list[_Piece]] = defaultdict(list)
    for piece in _pieces(parts, requests):
        groups[_together(requests[piece.request])].append(piece)
    for pieces in groups.values():
        rows_NC = _reduce(head, hidden_TD, pieces, requests)
        for piece, rows in zip(pieces, torch.split(rows_NC, [len(piece.rows_N) for piece in pieces]), strict=True):
            parts[piece.request].waiting.append(rows)
    results: list[Tensor | None] = []
    for part, request in zip(parts, requests, strict=True):
        results.append(_result(part.waiting, request) if part.is_finished else None)
        if part.is_finished:
            part.waiting.clear()
    return results


def _result(waiting: list[Tensor], request: dict[str, Any]) -> Tensor:
    """Rows of a finished request; of states that are to be written, where this worker wrote them."""
    rows_NC = torch.cat(waiting) if waiting else torch.empty(0, 1)
    return _write(rows_NC, request["parameters"]["path"]) if request["kind"] == "written" else rows_NC


def _write(states_ND: Tensor, path: str) -> Tensor:
    """Append states to this worker's file; offset, rows, width, precision and number of the worker, [1, 5]."""
    from trajscore.engines.reductions import WRITTEN_TYPES

    place = [0, *states_ND.shape, WRITTEN_TYPES.index(str(states_ND.dtype).removeprefix("torch.")), os.getpid()]
    if own_rank() == 0:
        try:
            with Path(f"{path}.{os.getpid()}").open("ab") as file:
                place[0] = file.tell()
                file.write(states_ND.contiguous().view(torch.uint8).numpy().data if states_ND.numel() else b"")
        except OSError as error:
            raise RuntimeError(
                f"hidden states cannot be written to {path}: {error.strerror or error}; free some space or give a smaller "
                "--hidden-budget"
            ) from error
    return torch.tensor([place], dtype=torch.int64)


def _unpack(params: Any) -> dict[str, Any]:
    """What a request asks for; a request without a word is vLLM's own, which measures memory."""
    given = params.extra_kwargs or pack("tokens", np.empty(0, np.uint32))
    return {**json.loads(given["what"]), "positions": np.frombuffer(given["positions"], np.uint32).astype(np.int64)}


def _together(request: dict[str, Any]) -> str:
    """Requests of one name are reduced together."""
    return json.dumps([request["kind"], request.get("parameters"), request.get("head"), request.get("path")])


def _pieces(parts: list[StepPart], requests: list[dict[str, Any]]) -> Iterator[_Piece]:
    offset = 0
    for number, (_, ids_P, start, end, *_) in enumerate(parts):
        position_N = requests[number]["positions"]
        if not len(position_N) and requests[number]["kind"] == "tokens":
            # A memory profile: as many rows as the reduction takes at once are as dear as all. vLLM's own may give fewer ids
            # than it schedules.
            position_N = np.arange(start + 1, min(end, start + 2048, len(ids_P)))
        # The token at position p is predicted by the state at p - 1, which this step has if start <= p - 1 < end.
        low, high = np.searchsorted(position_N - 1, [start, end])
        here_N = torch.from_numpy(position_N[low:high])
        if len(here_N) or requests[number]["kind"] == "head":
            yield _Piece(number, here_N - 1 - start + offset, ids_P[here_N], int(low))
        offset += end - start


def _reduce(head: Any, hidden_TD: Tensor, pieces: list[_Piece], requests: list[dict[str, Any]]) -> Tensor:
    """Rows of pieces that ask for the same, on every rank of a tensor parallel group."""
    from trajscore.engines.head_file import load_head
    from trajscore.engines.reduced_rows import reduce_rows
    from trajscore.engines.reductions import StoredRows

    asked, device = requests[pieces[0].request], hidden_TD.device
    rows_N = torch.cat([piece.rows_N for piece in pieces])
    if asked["kind"] == "head":
        if asked.get("path"):
            _write_head(head, Path(asked["path"]))
        return torch.empty(0, 1)
    if asked["kind"] in ("states", "written"):
        # They are many bytes and wait for the end of their request: not on the device, and in one worker.
        states_ND = hidden_TD[rows_N.to(device)] if own_rank() == 0 else hidden_TD.new_empty(len(rows_N), 0)
        return states_ND.cpu()
    other_NE = None
    if "stored" in asked:
        stored = [StoredRows(**requests[piece.request]["stored"]) for piece in pieces]
        found = [rows.read(piece.first, len(piece.rows_N)) for rows, piece in zip(stored, pieces, strict=True)]
        other_NE = torch.cat(found)
    return reduce_rows(
        asked["kind"],
        hidden_TD[rows_N.to(device)],
        head,
        torch.cat([piece.targets_N for piece in pieces]).to(device),
        **asked.get("parameters", {}),
        other_NE=other_NE,
        other_head=load_head(asked["head"], device, head.shard, head.entries) if asked.get("head") else None,
    )


def _write_head(head: Any, path: Path) -> None:
    """Every rank its part; when this returns, all are written.

    Raises:
        OSError, SafetensorError: this rank cannot write.
        RuntimeError: another cannot, and has left a note of it.
    """
    from trajscore.engines.head_file import part_path, save_head

    failure: Exception | None = None
    try:
        if head.shard is not None or own_rank() == 0:
            save_head(head, part_path(path, own_rank()))
    except Exception as error:  # the others wait for this rank: they must hear of it first
        failure = error
    own_1 = torch.tensor([failure is not None], device=head.weight_VD.device)
    failed = own_1 if rank_count() == 1 else gather_ranks(own_1)
    if failure is not None:
        raise failure
    if bool(failed.any()):
        raise RuntimeError(
            f"rank {int(failed.flatten().nonzero()[0])} cannot write its part of the output head to {path}."
        )


def _find_head(model: Any, hidden_TD: Tensor, vocabulary: npt.NDArray[np.int64]) -> Any:
    """The head that the model computes its logits with, seen at work, and checked against them; this rank's rows of it."""
    from trajscore.statistics import Head, VocabularyShard

    generator = torch.Generator().manual_seed(0)
    probe_ND = torch.randn(8, hidden_TD.shape[1], generator=generator).to(hidden_TD)
    seen = watch_head(model, probe_ND)
    weight_VD, bias_V = seen.weight, seen.bias
    if weight_VD is None or not weight_VD.is_floating_point():
        raise RuntimeError("trajscore needs an output head that is not quantised.")
    _refuse_lost_head(model, weight_VD)
    entries = min(seen.entries, int(vocabulary[-1]) + 1)
    shard, rows = None, slice(entries)
    if seen.ranks > 1:
        shard = VocabularyShard(own_rank(), seen.ranks, entries, gather_ranks)
        # All of them: parts are equally large, and padding is absent.
        rows = slice(shard.number * len(weight_VD), (shard.number + 1) * len(weight_VD))
    present_V = torch.zeros(max(entries, rows.stop), dtype=torch.bool)
    present_V[torch.from_numpy(vocabulary[vocabulary < entries])] = True
    absent_V = ~present_V[rows]
    head = Head(
        weight_VD=weight_VD.detach()[: len(absent_V)],
        bias_V=None if bias_V is None else bias_V.detach()[: len(absent_V)],
        scale=seen.scale,
        softcap=seen.softcap,
        absent_V=absent_V.to(weight_VD.device) if bool(absent_V.any()) else None,
        shard=shard,
    )
    if damage := head.damage():
        raise RuntimeError(damage)
    _check_head(head, probe_ND, seen.logits_NV, present_V[:entries])
    return head


def _refuse_lost_head(model: Any, weight_VD: Tensor) -> None:
    """Some models of vLLM know a tied head only, and drop the checkpoint's own without a word."""
    untied = getattr(getattr(model, "config", None), "tie_word_embeddings", None) is False
    embeddings = (weight for name, weight in model.named_parameters() if name.endswith("embed_tokens.weight"))
    if untied and any(weight.data_ptr() == weight_VD.data_ptr() for weight in embeddings):
        raise RuntimeError("vLLM uses the embedding as output head, and the checkpoint has a head of its own.")


def _check_head(head: Any, probe_ND: Tensor, own_NV: Tensor | None, present_V: Tensor) -> None:
    """Compare logits where the model's own are, on one rank or all; each rank learns the largest error."""
    ours_NV = head.gathered(head.logits(probe_ND, slice(None))).transpose(0, 1).flatten(1)[:, : head.vocabulary]
    error_1 = probe_ND.new_zeros(1, dtype=torch.float32)
    if own_NV is not None:
        ours_NV, own_NV = ours_NV[:, present_V], own_NV[:, : head.vocabulary].float()[:, present_V]
        error_1[0] = (ours_NV - own_NV).abs().max() / own_NV.abs().max().clamp_min(1.0)
    error = head.gathered(error_1).max().item()
    tolerance = 1e-3 if head.weight_VD.dtype == torch.float32 else 5e-2
    if not error <= tolerance:
        raise RuntimeError(f"the model computes its logits in a way trajscore does not know (difference {error:.2g}).")
