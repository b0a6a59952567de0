"""A row's token ids, its masks and its sampler's log-probabilities -> which tokens are scored, exactly as they were given.

It reads values and checks that they fit one another; which columns hold them was settled by `recognition`, and whether an id is
one of the tokenizer's is for whoever has the tokenizer.
Axes: P tokens of the whole sequence, C of its completion.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from trajscore.corpus import layouts
from trajscore.corpus.identity import value_at
from trajscore.schema import NO_LOSS

INVALID_IDS = "invalid_ids"
MASK_MISMATCH = "mask_mismatch"

_LARGEST = 2**31 - 1
_ROUNDING = 0.1
"""How far above 0 a log-probability may be that a sampler made of logits in half precision."""
_IDS_COLUMNS = ", ".join([*layouts.WHOLE_IDS, *layouts.COMPLETION_IDS])


class MisfitError(Exception):
    """Why a row's ids cannot be scored. It is caught where the row is read.

    Attributes:
        status: of `schema.STATUSES`.
        detail: a sentence.
    """

    def __init__(self, status: str, detail: str) -> None:
        self.status, self.detail = status, detail
        super().__init__(detail)


@dataclass(frozen=True)
class TokenColumns:
    """Which columns hold a trajectory in tokens.

    Attributes:
        whole: ids of prompt and response in one list; None where these are apart.
        prompt: ids of the prompt, where they are apart.
        completion: ids of the response, where they are apart.
        length: how many of the last ids are the response.
        masks: what says which tokens are trained on.
        padding: attention masks, 0 where a list was filled up: of the whole sequence, or of the prompt where it is apart.
        sampler: log-probabilities that the sampler gave; the first that is not null.
    """

    whole: str | None = None
    prompt: str | None = None
    completion: str | None = None
    length: str | None = None
    masks: tuple[str, ...] = ()
    padding: tuple[str, ...] = ()
    sampler: tuple[str, ...] = ()

    @property
    def ids(self) -> tuple[str, ...]:
        """Columns of ids."""
        return tuple(name for name in (self.whole, self.prompt, self.completion) if name)

    def used(self) -> tuple[str, ...]:
        """All columns."""
        more = (self.length, *self.masks, *self.padding, *self.sampler)
        return (*self.ids, *(name for name in more if name))


@dataclass(frozen=True, eq=False)
class GivenTokens:
    """A trajectory in tokens, as it was given.

    Attributes:
        ids_P: int64.
        scored_P: which are trained on; never the first, which nothing predicts.
        sampler_P: float32, ln p under what sampled them, NaN where none was given; None where the row has none.
    """

    ids_P: npt.NDArray[np.int64]
    scored_P: npt.NDArray[np.bool_]
    sampler_P: npt.NDArray[np.float32] | None = None

    @property
    def before(self) -> list[int]:
        """The ids before the first that is scored."""
        first = int(self.scored_P.argmax()) if self.scored_P.any() else len(self.ids_P)
        return [int(number) for number in self.ids_P[:first]]


def given_tokens(row: Mapping[str, Any], columns: TokenColumns) -> GivenTokens:
    """What a row's columns hold.

    Raises:
        MisfitError: a value is none of its kind, or lists that belong together differ in length or contradict each other.

    >>> row = {"prompt_ids": [5, 6], "completion_ids": [7, 8], "completion_mask": [1, 0]}
    >>> found = given_tokens(row, TokenColumns(prompt="prompt_ids", completion="completion_ids", masks=("completion_mask",)))
    >>> found.ids_P.tolist(), found.scored_P.tolist()
    ([5, 6, 7, 8], [False, False, True, False])
    """
    if columns.whole is not None:
        ids_P = _ids(row, columns.whole)
        response = _length(row, columns.length, len(ids_P))
    else:
        completion = _ids(row, str(columns.completion))
        ids_P = np.concatenate([_ids(row, str(columns.prompt)), completion])
        response = len(completion)
    scored_P = np.ones(len(ids_P), bool)
    if response is not None:
        scored_P[: len(ids_P) - response] = False
    masks = {name: _mask(row, name, ids_P, response) for name in columns.masks if value_at(row, name) is not None}
    if not masks and response is None:
        missing = ", ".join([*columns.masks, *(name for name in (columns.length,) if name)])
        raise MisfitError(
            MASK_MISMATCH, f"nothing beside {columns.whole} says what is trained on: {missing} is null here."
        )
    for mask_P in _combined(masks):
        scored_P &= mask_P
    sampler = next((name for name in columns.sampler if value_at(row, name) is not None), None)
    sampler_P = None if sampler is None else _logprobs(row, sampler, len(ids_P), response, scored_P)
    kept = slice(0, len(ids_P))
    prompt = len(ids_P) - response if columns.prompt and response is not None else None
    for name in columns.padding:
        there = _unpadded(row, name, len(ids_P), prompt)
        if scored_P[: there.start].any() or scored_P[there.stop :].any():
            raise MisfitError(MASK_MISMATCH, f"a token is to be trained on where {name} is 0.")
        kept = slice(max(kept.start, there.start), min(kept.stop, there.stop))
    ids_P, scored_P = ids_P[kept], scored_P[kept].copy()
    scored_P[:1] = False
    return GivenTokens(ids_P, scored_P, None if sampler_P is None else sampler_P[kept])


def _numbers(value: Any, name: str, status: str) -> npt.NDArray[Any]:
    numbers = None
    if isinstance(value, list | tuple) and not any(isinstance(each, str | list | dict) for each in value):
        try:
            numbers = np.array([np.nan if each is None else each for each in value], np.float64)
        except (TypeError, ValueError, OverflowError):
            numbers = None
    if numbers is None and isinstance(value, list | tuple) and any(isinstance(each, list | tuple) for each in value):
        raise MisfitError(
            status,
            f"{name} holds {len(value)} lists, and one is meant. Several responses of a row are read where ids, masks and "
            f"log-probabilities hold a list for each of them, and the ids of responses are called one of {_IDS_COLUMNS}.",
        )
    if numbers is None:
        raise MisfitError(status, f"{name} is no list of numbers.")
    return numbers


def _ids(row: Mapping[str, Any], name: str) -> npt.NDArray[np.int64]:
    value = value_at(row, name)
    if value is None:
        raise MisfitError(INVALID_IDS, f"{name} is null here, and rows of this kind are read from it.")
    numbers = _numbers(value, name, INVALID_IDS)
    with np.errstate(invalid="ignore"):
        bad = ~((numbers >= 0) & (numbers <= _LARGEST) & (numbers == np.floor(numbers)))
    if bad.any():
        place = int(bad.argmax())
        raise MisfitError(INVALID_IDS, f"{name}[{place}] is {value[place]!r}, which is no token id.")
    return numbers.astype(np.int64)


def _length(row: Mapping[str, Any], name: str | None, tokens: int) -> int | None:
    value = None if name is None else value_at(row, name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or value != int(value) or not 0 <= value <= tokens:
        raise MisfitError(
            MASK_MISMATCH, f"{name} is {value!r}; of {tokens} tokens it must be a number from 0 to {tokens}."
        )
    return int(value)


def _mask(
    row: Mapping[str, Any], name: str, ids_P: npt.NDArray[np.int64], response: int | None
) -> npt.NDArray[np.bool_]:
    """Which of all tokens a mask or labels of the sequence or of its completion name."""
    given = _numbers(value_at(row, name), name, MASK_MISMATCH)
    numbers = _placed(given, name, len(ids_P), response, np.nan)
    there = ~np.isnan(numbers)
    if name.rpartition(".")[2].lower() in layouts.LABELS:
        on_P = there & (numbers != NO_LOSS)
        if (wrong := on_P & (numbers != ids_P)).any():
            place = int(wrong.argmax())
            moved = np.array_equal(numbers[:-1][on_P[:-1]], ids_P[1:][on_P[:-1]])
            said = "; the labels are those of the next token" if moved else ""
            raise MisfitError(
                MASK_MISMATCH,
                f"{name} has {numbers[place]:g} where the token is {ids_P[place]}: labels are ids or -100{said}.",
            )
        return np.asarray(on_P)
    if response is None and 0 < len(given) < len(ids_P) and given[0] == 0:
        # The mask of a whole sequence that was cut begins so, and would name other tokens.
        raise MisfitError(
            MASK_MISMATCH,
            f"{name} has {len(given)} values for {len(ids_P)} tokens and begins with 0: a shorter mask is the completion's, "
            f"which begins with a token that is trained on.",
        )
    if (wrong := there & (numbers != 0) & (numbers != 1)).any():
        raise MisfitError(MASK_MISMATCH, f"{name} holds {numbers[int(wrong.argmax())]:g}; a mask holds 0 and 1.")
    return np.asarray(numbers == 1)


def _placed(
    values: npt.NDArray[np.float64], name: str, tokens: int, response: int | None, missing: float
) -> npt.NDArray[np.float64]:
    """Values of the sequence; those of its completion alone stand at its end."""
    if len(values) == tokens:
        return values
    if len(values) < tokens and response in (None, len(values)):
        return np.concatenate([np.full(tokens - len(values), missing), values])
    lengths = f"{tokens} tokens" if response is None else f"{tokens} tokens, {response} of them of the response"
    said = "" if len(values) else " A row of several responses needs as many lists of it as it has responses."
    raise MisfitError(MASK_MISMATCH, f"{name} has {len(values)} values for {lengths}.{said}")


def _combined(masks: Mapping[str, npt.NDArray[np.bool_]]) -> list[npt.NDArray[np.bool_]]:
    """One mask. Those of TRL hold together, as TRL has it; of others, each has to say the same."""
    together = [name for name in masks if name.rpartition(".")[2].lower() in layouts.TOGETHER]
    alone = [name for name in masks if name not in together]
    found = {name: masks[name] for name in alone}
    if together:
        found[" and ".join(together)] = np.logical_and.reduce([masks[name] for name in together])
    named = list(found.items())
    for name, mask_P in named[1:]:
        # Of the first token, which nothing predicts, masks may say what they like.
        if not np.array_equal(named[0][1][1:], mask_P[1:]):
            said = f"{named[0][0]} and {name} name different tokens"
            raise MisfitError(MASK_MISMATCH, f"{said}; say which holds: --mask-field.")
    return [mask_P for _, mask_P in named[:1]]


def _logprobs(
    row: Mapping[str, Any], name: str, tokens: int, response: int | None, scored_P: npt.NDArray[np.bool_]
) -> npt.NDArray[np.float32]:
    """The sampler's values at the tokens that they belong to, by their number: that of all tokens or all but the first, of
    the response, or of those that are trained on."""
    without = f"--ignore-columns {name} scores without them"
    try:
        numbers = _numbers(value_at(row, name), name, MASK_MISMATCH)
    except MisfitError as error:
        raise MisfitError(error.status, f"{error.detail} {without}.") from error
    trained, begins = int(scored_P.sum()), int(scored_P.argmax()) if scored_P.any() else tokens
    known = (tokens, response) if response is not None else (tokens, tokens - 1, tokens - begins)
    if len(numbers) not in known and len(numbers) == trained:
        whole = np.full(tokens, np.nan)
        whole[scored_P] = numbers
    elif len(numbers) in known or response is not None:
        whole = _placed(numbers, name, tokens, response, np.nan)
    else:
        said = f"{name} has {len(numbers)} values for {tokens} tokens, {trained} of them trained on"
        raise MisfitError(MASK_MISMATCH, f"{said}; {without}.")
    with np.errstate(invalid="ignore"):
        wrong = scored_P & (whole > _ROUNDING)
    if wrong.any():
        said = f"{name} has {whole[wrong][0]:g} for a token, and a log-probability is at most 0"
        raise MisfitError(MASK_MISMATCH, f"{said}; {without}.")
    return whole.astype(np.float32)


def _unpadded(row: Mapping[str, Any], name: str, tokens: int, prompt: int | None) -> slice:
    """The tokens that are no padding, which stands before or after them."""
    value = value_at(row, name)
    if value is None:
        return slice(0, tokens)
    numbers = _numbers(value, name, MASK_MISMATCH)
    if len(numbers) == prompt:
        numbers = np.concatenate([numbers, np.ones(tokens - prompt)])
    if len(numbers) != tokens:
        apart = "" if prompt is None else f", {prompt} of them of the prompt"
        raise MisfitError(MASK_MISMATCH, f"{name} has {len(numbers)} values for {tokens} tokens{apart}.")
    (there,) = np.nonzero(numbers)
    if not len(there):
        raise MisfitError(MASK_MISMATCH, f"{name} is 0 for every token.")
    kept = slice(int(there[0]), int(there[-1]) + 1)
    if kept.stop - kept.start != len(there):
        raise MisfitError(MASK_MISMATCH, f"{name} is 0 between tokens where it is not.")
    return kept
