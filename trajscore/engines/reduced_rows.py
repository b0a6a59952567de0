"""The numbers that a reduction (`reductions`) asks for, out of hidden states: where the model runs, in an engine or its worker.

Axes: N scored tokens, D and E widths of two models, K kept entries of the vocabulary, C numbers per token.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor

from trajscore.engines.token_scores import TopKEntries
from trajscore.statistics import (
    Head,
    TokenStatistics,
    TopK,
    at_entries,
    further_divergences,
    pair_statistics,
    teacher_top,
    token_statistics,
    topk_divergences,
)

__all__ = ["Tensor", "entries", "join", "narrowed", "reduce_rows"]


@torch.no_grad()
def reduce_rows(
    kind: str,
    hidden_ND: Tensor,
    head: Head,
    targets_N: Tensor,
    *,
    k: int = 0,
    at_student: bool = False,
    further: Sequence[tuple[str, float | None]] = (),
    other_NE: Tensor | None = None,
    other_head: Head | None = None,
) -> Tensor:
    """Numbers of every scored token, [N, C], on the device of the hidden states.

    Args:
        kind: `tokens`, `states`, `pair`, `top` or `top_pair`.
        hidden_ND: states after the final norm; row n predicts target n.
        head: the model's output head.
        targets_N: int64 token ids.
        k: entries to keep: of the model's own for `top`, of the other one's for `pair`, where 0 keeps none.
        at_student: for `pair`, whether the other one's are kept at this model's best.
        further: for `pair`, divergences beside the usual ones, as `further_divergences` is asked.
        other_NE: rows of the other model.
        other_head: the other model's head.

    Returns:
        float32, ranks and ids included (exact below 2^24); hidden states in the model's precision.
    """
    if kind == "states":
        return hidden_ND
    if other_NE is not None:
        other_NE = other_NE.to(hidden_ND.device)
    if kind == "pair":
        student, teacher = (hidden_ND, head), (cast(Tensor, other_NE), cast(Head, other_head))
        found = pair_statistics(*student, *teacher, targets_N)
        divergences = (found.kl_student_teacher_N, found.kl_teacher_student_N, cast(Tensor, found.js_N))
        rows = [_columns(found.student), _columns(found.teacher), torch.stack(divergences, 1)]
        if further:
            rows.append(further_divergences(*student, *teacher, [(name, value) for name, value in further]))
        if k:
            best = teacher_top(*(student if at_student else teacher), k)
            rows.append(_rows(at_entries(*teacher, best.ids_NK) if at_student else best))
        return torch.cat(rows, 1)
    own_N4 = _columns(token_statistics(hidden_ND, head, targets_N))
    if kind == "top":
        return torch.cat([own_N4, _rows(teacher_top(hidden_ND, head, k))], 1)
    if kind == "top_pair":
        truncated = topk_divergences(hidden_ND, head, _top(cast(Tensor, other_NE)))
        columns = (truncated.kl_student_teacher_N, truncated.kl_teacher_student_N, truncated.js_N, truncated.mass_N)
        return torch.cat([own_N4, torch.stack(columns, 1)], 1)
    if kind != "tokens":
        raise ValueError(f"reduction {kind!r} is unknown.")
    return own_N4


def narrowed(rows_NE: Tensor, k: int) -> Tensor:
    """Rows that `top` made, of its first k entries alone; what the others had goes to the tail."""
    found = _top(rows_NE)
    others = torch.cat([found.logprobs_NK[:, k:], found.log_tail_N[:, None]], 1)
    return _rows(TopK(found.ids_NK[:, :k], found.logprobs_NK[:, :k], others.double().logsumexp(1).float()))


def entries(rows_NE: Tensor) -> TopKEntries:
    """Rows that `top` made, to be stored."""
    found = _top(rows_NE)
    return TopKEntries(found.ids_NK.int().numpy(), found.logprobs_NK.numpy(), found.log_tail_N.numpy())


def join(rows: Sequence[Tensor]) -> Tensor:
    """Rows of several sequences one below the other."""
    return torch.cat(list(rows))


def _columns(found: TokenStatistics) -> Tensor:
    return torch.stack([found.rank_N.float(), found.surprisal_N, found.entropy_N, found.collision_N], 1)


def _rows(top: TopK) -> Tensor:
    return torch.cat([top.ids_NK.float(), top.logprobs_NK, top.log_tail_N[:, None]], 1)


def _top(rows_NE: Tensor) -> TopK:
    k = rows_NE.shape[1] // 2
    return TopK(rows_NE[:, :k].long(), rows_NE[:, k : 2 * k], rows_NE[:, 2 * k])
