"""A model behind a server that returns the log-probabilities of a prompt: vLLM's `/v1/completions`, SGLang's `/generate`.

Conventions of both are converted here. Entry i of a reply describes token i, and the first one has none. vLLM's best entries
come as a mapping in which the written token is there whether it is among them or not; SGLang's as lists from the best on. A
reply is believed only where it names the very ids that were sent.
Axes: P input tokens of one sequence, N scored tokens, K best entries.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import numpy as np
import numpy.typing as npt
import orjson

from trajscore.engines.base import ModelSource, Result
from trajscore.engines.served_replies import ReplyFile, ServedReply
from trajscore.engines.token_scores import ServedScores
from trajscore.errors import EngineError, MissingExtraError, UsageError, did_you_mean
from trajscore.io.asking import Asker
from trajscore.options.groups import ServerOptions
from trajscore.rendering.tokens import TokenSequence

try:
    from trajscore.io.http import UnusableReplyError
except ImportError as error:
    raise MissingExtraError("openai", "skills") from error
if TYPE_CHECKING:
    from trajscore.engines.reduced_rows import Tensor
    from trajscore.engines.reductions import Reduction
    from trajscore.statistics import Head

_ENTRY_BYTES = 320
"""More than one entry of one token takes in JSON, with its text and every digit."""

_SLACK_BYTES = 1 << 20
_REQUEST_BYTES = 8 << 20
"""Most that a reply should take: of several sequences no more are asked for together."""
_ENTRY_VALUES, _SLACK_VALUES = 12, 10_000
"""Commas and brackets of one entry, those of its text included, and of what stands around: each becomes an object in memory."""
_IMPOSSIBLE = -9000.0
"""vLLM writes -9999 for minus infinity."""

_ROUNDING = 1e-3
_MOST_SEQUENCES = 64
_MALFORMED = (ValueError, KeyError, IndexError, TypeError, AttributeError)


class _Request(NamedTuple):
    """Sequences that are asked for together: their numbers, and themselves."""

    indices: list[int]
    sequences: list[TokenSequence]


class ServedModel:
    """An engine that asks a server. It gives surprisals and best entries, not hidden states and not whole predictions.

    See `engines.Engine` for the methods' contracts.

    Args:
        source: the model whose tokenizer made the ids, and its vocabulary.
        options: how the server is asked.
        base_url: its URL up to `/v1`.
        name: what the server calls the model; None where it has one model, or one of the source's name.
        tokens: of the prompts of one request together.
        k: best entries to ask for; 0 for the written token alone.
        k_statistics: over how many of these the truncated statistics run.
        replies: where replies are kept, the beginning of two files' names; None keeps none.

    Raises:
        UsageError: the URL or key is not valid, or the server has no such model.
        EngineError: it does not answer, or not as an OpenAI-compatible server does.
    """

    needs_files = False
    state_bytes = 0

    def __init__(
        self,
        source: ModelSource,
        options: ServerOptions,
        base_url: str,
        *,
        name: str | None,
        tokens: int,
        k: int,
        k_statistics: int,
        replies: Path | None = None,
    ) -> None:
        self._url, self._options, self._tokens, self._k = base_url.rstrip("/"), options, tokens, k
        self._k_statistics = k_statistics
        self._known = source.vocabulary
        self._replies = replies
        self._files: list[ReplyFile] = []
        self._round = 0
        card = self._find(name, source.name)
        self.served_name: str = card["id"]
        sglang = options.server_api == "sglang" or (options.server_api == "auto" and card.get("owned_by") == "sglang")
        self._api = "sglang" if sglang else "vllm"
        limit = card.get("max_model_len")
        # Both servers want room for a token that nobody asked for.
        self._limit = limit - 1 if isinstance(limit, int) and not isinstance(limit, bool) and limit > 1 else None

    def _find(self, wanted: str | None, local: str) -> dict[str, Any]:
        """What the server says of the model."""

        def read(_: None, body: bytes) -> list[dict[str, Any]]:
            cards = orjson.loads(body)["data"]
            if not cards or not all(isinstance(card["id"], str) for card in cards):
                raise ValueError("no models")
            return list(cards)

        asker = self._asker("list of models", _SLACK_BYTES, self._url)
        ((_, outcome),) = asker.ask("/models", [None], lambda _: None, read)
        cards = {card["id"]: card for card in outcome.value or []}
        if wanted is not None and wanted not in cards:
            raise UsageError(f"{self._url} serves no model {wanted!r}.", did_you_mean(wanted, cards))
        if wanted is None and local not in cards and len(cards) > 1:
            raise UsageError(
                f"{self._url} serves {len(cards)} models and none is called {local!r}.",
                f"Say which: --served-model NAME, or --teacher-served-model; it has {', '.join(list(cards)[:10])}.",
            )
        return cards[wanted or (local if local in cards else next(iter(cards)))]

    def _asker(self, expected: str, most_bytes: int, url: str) -> Asker:
        options = self._options
        return Asker(
            url,
            expected=expected,
            most_bytes=most_bytes,
            concurrency=options.concurrency,
            timeout=options.timeout,
            max_retries=options.max_retries,
            tolerant=False,
        )

    @property
    def max_model_len(self) -> int | None:
        """Longest sequence that the server takes; None where it does not say."""
        return self._limit

    @property
    def vocabulary(self) -> int:
        """Entries up to the highest id of the tokenizer; the server's softmax runs over padding rows, too."""
        return int(self._known[-1]) + 1

    @property
    def head(self) -> Head:
        """None is there."""
        raise EngineError(f"{self._url}: a server gives no weights.")

    def describe(self) -> dict[str, Any]:
        """What the server calls the model, and how many entries it was asked for."""
        return {"served_model": self.served_name, "topk": self._k_statistics, "vocabulary": self.vocabulary}

    def environment(self) -> dict[str, Any]:
        """The kind of server."""
        return {"server": self._api}

    def begin_round(self) -> None:
        """The rows that follow come after parts that are being written: replies of the round before the last are forgotten."""
        self._round += 1
        if self._round > 2 and self._files:
            self._files[self._round % 2].clear()

    def run(self, sequences: Sequence[TokenSequence], reduction: Reduction[Result]) -> Iterator[tuple[int, Result]]:
        """Ask for what is not kept, longest sequences first, equal ones once.

        Raises:
            EngineError: the server fails after all repetitions, or gives what cannot be used; or the reduction needs more than
                a server gives.
        """
        if reduction.kind not in ("tokens", "top"):
            raise EngineError(f"{self._url}: a server gives no hidden states.", "Leave out what needs them.")
        for index, reply in self._read(sequences):
            sequence = sequences[index]
            targets_N = sequence.input_ids_P[sequence.positions_N.astype(np.int64)].astype(np.int32)
            scores = ServedScores.of(*reply, targets_N, len(self._known), self._k_statistics)
            if reduction.kind == "tokens":
                yield index, cast(Result, scores)
            else:
                yield index, cast(Result, (scores, _rows(scores, reduction.parameters["k"])))

    def _read(self, sequences: Sequence[TokenSequence]) -> Iterator[tuple[int, ServedReply]]:
        files, keys = self._open(), [self._key(each) for each in sequences]
        equal: dict[bytes, list[int]] = {}
        for index, key in enumerate(keys):
            kept = next((file.get(key) for file in files if key in file), None)
            if kept is not None:
                yield index, kept
            else:
                equal.setdefault(key, []).append(index)
        wanted = sorted(
            (indices[0] for indices in equal.values()), key=lambda index: -len(sequences[index].input_ids_P)
        )
        for index, reply in self._ask(sequences, wanted, keys):
            for same in equal[keys[index]]:
                yield same, reply

    def _open(self) -> list[ReplyFile]:
        if self._replies is not None and not self._files:
            try:
                self._files = [ReplyFile(self._replies.with_name(f"{self._replies.name}-{n}")) for n in (0, 1)]
            except OSError as error:
                raise EngineError(f"{self._replies}: cannot be read ({error.strerror or error}).") from error
        return self._files

    def _key(self, sequence: TokenSequence) -> bytes:
        """What tells replies apart: the model, the ids, what is scored of them, and how much was asked for."""
        said = f"{self.served_name}\0{self._api}\0{self._k}\0{len(sequence.input_ids_P)}\0".encode()
        ids, positions = sequence.input_ids_P.astype(np.int64), sequence.positions_N.astype(np.int64)
        return hashlib.sha256(said + ids.tobytes() + positions.tobytes()).digest()

    def _ask(
        self, sequences: Sequence[TokenSequence], wanted: list[int], keys: list[bytes]
    ) -> Iterator[tuple[int, ServedReply]]:
        """Replies as they come, each on disk as soon as it is read."""
        tokens = min(self._tokens, _REQUEST_BYTES // ((self._k + 2) * _ENTRY_BYTES))
        requests = list(_together(sequences, wanted, tokens))
        if not requests:
            return
        most = max(sum(len(each.input_ids_P) for each in request.sequences) for request in requests)
        path, url, body, read = self._wire()
        asker = self._asker("list of prompt log-probabilities", _SLACK_BYTES + most * (self._k + 2) * _ENTRY_BYTES, url)

        def kept(request: _Request, data: bytes) -> list[ServedReply]:
            self._refuse_floods(request, data)
            replies = read(request, data)
            for index, reply in zip(request.indices, replies, strict=True):
                if self._files:
                    self._files[self._round % 2].put(keys[index], reply)
            return replies

        for request, outcome in asker.ask(path, requests, body, kept):
            yield from zip(request.indices, outcome.value or [], strict=True)

    def _refuse_floods(self, request: _Request, data: bytes) -> None:
        """Refuse what would take many times its size in memory when it is read.

        Raises:
            UnusableReplyError: there are more values in it than such a reply can have.
        """
        found = sum(data.count(letter) for letter in (b",", b"[", b"{"))
        tokens = sum(len(each.input_ids_P) for each in request.sequences)
        if found > _SLACK_VALUES + tokens * (self._k + 2) * _ENTRY_VALUES:
            raise UnusableReplyError(f"{found:,} values for {tokens:,} tokens")

    def _wire(
        self,
    ) -> tuple[str, str, Callable[[_Request], dict[str, Any]], Callable[[_Request, bytes], list[ServedReply]]]:
        """Path, base URL, and how a request is written and a reply read."""
        if self._api == "sglang":
            return "/generate", self._url.removesuffix("/v1"), self._sglang_body, self._sglang
        return "/completions", self._url, self._vllm_body, self._vllm

    def _vllm_body(self, request: _Request) -> dict[str, Any]:
        return {
            "model": self.served_name,
            "prompt": [each.input_ids_P.tolist() for each in request.sequences],
            "prompt_logprobs": self._k,
            "max_tokens": 1,
            "temperature": 0,
        }

    def _vllm(self, request: _Request, body: bytes) -> list[ServedReply]:
        choices = {choice["index"]: choice["prompt_logprobs"] for choice in orjson.loads(body)["choices"]}
        return [self._row(each, choices[n], _of_vllm) for n, each in enumerate(request.sequences)]

    def _sglang_body(self, request: _Request) -> dict[str, Any]:
        return {
            "input_ids": [each.input_ids_P.tolist() for each in request.sequences],
            "return_logprob": True,
            "logprob_start_len": 0,
            "top_logprobs_num": self._k,
            "sampling_params": {"max_new_tokens": 0, "temperature": 0},
        }

    def _sglang(self, request: _Request, body: bytes) -> list[ServedReply]:
        answers = orjson.loads(body)
        answers = [answers] if isinstance(answers, dict) else answers
        if len(answers) != len(request.sequences):
            raise UnusableReplyError(f"it answers {len(answers)} of {len(request.sequences)} prompts")
        found = []
        for sequence, answer in zip(request.sequences, answers, strict=True):
            about = answer["meta_info"]
            written = about["input_token_logprobs"]
            best = about["input_top_logprobs"] if self._k else [[]] * len(written)
            if len(best) != len(written):
                raise UnusableReplyError(f"{len(best)} lists of best entries for {len(written)} tokens")
            found.append(self._row(sequence, list(zip(written, best, strict=True)), _of_sglang))
        return found

    def _row(self, sequence: TokenSequence, entries_P: Any, convert: Callable[[int, Any], _Token]) -> ServedReply:
        """The numbers of one sequence out of what a server said of each of its tokens.

        Raises:
            UnusableReplyError: it is of other ids, of too few tokens or entries, or holds no log-probabilities.
        """
        if len(entries_P) != len(sequence.input_ids_P):
            raise UnusableReplyError(f"{len(entries_P)} entries for a prompt of {len(sequence.input_ids_P)} tokens")
        k, written, ids, logprobs = self._k, list[float](), list[list[int]](), list[list[float]]()
        for place in sequence.positions_N.tolist():
            wanted = int(sequence.input_ids_P[place])
            try:
                token = convert(wanted, entries_P[place])
            except _MALFORMED:
                raise UnusableReplyError(
                    f"token {place} of a prompt: no entry of the id {wanted} that was sent"
                ) from None
            best = sorted(token.best, key=lambda entry: (-entry[1], entry[0]))[:k]
            written.append(token.logprob)
            ids.append([each for each, _ in best])
            logprobs.append([value for _, value in best])
            if len(best) < k:
                raise UnusableReplyError(f"token {place} of a prompt: {len(best)} of the {k} best entries")
        written_N, ids_NK = np.array(written, np.float64), np.array(ids, np.int64).reshape(-1, k)
        logprobs_NK = np.array(logprobs, np.float64).reshape(-1, k)
        if not ((written_N <= _ROUNDING).all() and (logprobs_NK <= _ROUNDING).all()):
            raise UnusableReplyError("a log-probability above 0, or none")
        if k and not np.isin(ids_NK, self._known).all():
            unknown = int(ids_NK[~np.isin(ids_NK, self._known)][0])
            raise UnusableReplyError(
                f"the id {unknown} is among the {k} best and the tokenizer cannot make it, as of a padded vocabulary; ask for "
                "fewer with --server-topk"
            )
        if k and (np.exp(logprobs_NK).sum(1) > 1 + _ROUNDING).any():
            raise UnusableReplyError(f"probabilities of the {k} best entries that sum to more than 1")
        return ServedReply(_log(written_N), ids_NK.astype(np.int32), _log(logprobs_NK))

    def sleep(self) -> bool:
        """Never: nothing of it is on a device here."""
        return False

    def close(self) -> None:
        """Close the files of replies."""
        for file in self._files:
            file.close()
        self._files = []

    def forget(self) -> None:
        """Delete the replies: their rows lie in parts."""
        for file in self._open():
            file.close(delete=True)
        self._files = []


class _Token(NamedTuple):
    """What a server said of one token: its log-probability, and (id, log-probability) of the best in any order."""

    logprob: float
    best: list[tuple[int, float]]


def _of_vllm(wanted: int, entry: Any) -> _Token:
    return _Token(float(entry[str(wanted)]["logprob"]), [(int(name), float(e["logprob"])) for name, e in entry.items()])


def _of_sglang(wanted: int, entry: Any) -> _Token:
    (logprob, written, *_), best = entry
    if written != wanted:
        raise ValueError("another id")
    return _Token(float(logprob), [(int(each[1]), float(each[0])) for each in best or []])


def _log(values: npt.NDArray[np.float64]) -> npt.NDArray[np.float32]:
    """Log-probabilities without rounding above 0; what stands for impossible is minus infinity."""
    return np.where(values <= _IMPOSSIBLE, -math.inf, np.minimum(values, 0.0)).astype(np.float32)


def _together(sequences: Sequence[TokenSequence], wanted: list[int], tokens: int) -> Iterator[_Request]:
    """Requests of neighbours with at most so many tokens together; a longer sequence is alone."""
    group, size = list[int](), 0
    for index in wanted:
        length = len(sequences[index].input_ids_P)
        if group and (size + length > tokens or len(group) == _MOST_SEQUENCES):
            yield _Request(group, [sequences[each] for each in group])
            group, size = [], 0
        group.append(index)
        size += length
    if group:
        yield _Request(group, [sequences[each] for each in group])


def _rows(scores: ServedScores, k: int) -> Tensor:
    """Best entries as they come out of a model for `reductions.top`."""
    import torch

    best = scores.best(k)
    columns = (best.ids_NK.astype(np.float32), best.logprobs_NK, best.log_tail_N[:, None])
    return torch.from_numpy(np.concatenate(columns, 1))
