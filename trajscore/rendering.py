"""A trajectory -> token ids, scored positions and sentences, in the tokenizer of the model that reads it.

It knows tokenizers and chat templates; nothing of model weights or files of scores.
Axes: P input tokens, N scored tokens.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from trajscore import sentences
from trajscore.errors import MissingExtraError, UsageError
from trajscore.literals import Restored, alternation, reveal, split_controls
from trajscore.schema import OK
from trajscore.templates import ChatTemplate, RefusedRow, RenderedText, Turn


@dataclass(frozen=True)
class RenderOptions:
    """How conversations become tokens.

    Attributes:
        turns: score `all` assistant turns, or only the `last`.
        include_end_of_turn: score the end-of-turn marker too.
        max_model_len: longest rendered conversation, in tokens; None for no limit.
        on_overlong: `refuse` longer ones, or `truncate` them at the right end and mark them.
        on_lost_text: `refuse` rows of which the template drops text, or `accept` them as training would.
        chat_template: a file with a Jinja template, or a model whose template is used; None for the tokenizer's own.
        chat_template_kwargs: variables for the template (`enable_thinking`, ...).
    """

    turns: Literal["all", "last"] = "all"
    include_end_of_turn: bool = False
    max_model_len: int | None = None
    on_overlong: Literal["refuse", "truncate"] = "refuse"
    on_lost_text: Literal["refuse", "accept"] = "refuse"
    chat_template: str | None = None
    chat_template_kwargs: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Rendered:
    """One trajectory in tokens.

    Attributes:
        input_ids_P: int32, the whole conversation.
        positions_N: uint32, index into `input_ids_P` of each scored token, ascending, never 0.
        sentence_N: uint32, index of the sentence in which each scored token starts, ascending.
        n_sentences: sentences of the scored text; all but those cut off.
        truncated: whether tokens were cut off.
        status: `ok`, or why the row cannot be scored; the arrays are empty then.
        detail: a sentence about the status.
    """

    input_ids_P: npt.NDArray[np.int32]
    positions_N: npt.NDArray[np.uint32]
    sentence_N: npt.NDArray[np.uint32]
    n_sentences: int
    truncated: bool = False
    status: str = OK
    detail: str = ""


def refused(status: str, detail: str) -> Rendered:
    """A row that cannot be scored."""
    nothing = np.empty(0, np.uint32)
    return Rendered(np.empty(0, np.int32), nothing, nothing, 0, status=status, detail=detail)


class Renderer:
    """Renders and tokenizes trajectories for one model.

    Args:
        model: hub id or folder with a fast tokenizer.
        options: see `RenderOptions`.
        revision: hub revision.
        trust_remote_code: run tokenizer code that comes with the model.

    Attributes:
        max_model_len: longest rendered conversation, from the options; may be lowered to what the model takes.

    Raises:
        UsageError: the model or its tokenizer does not exist, the tokenizer is not a fast one, or the template is broken.
    """

    def __init__(
        self,
        model: str,
        options: RenderOptions | None = None,
        *,
        revision: str | None = None,
        trust_remote_code: bool = False,
    ) -> None:
        self.options = options or RenderOptions()
        self._tokenizer = load_tokenizer(model, revision=revision, trust_remote_code=trust_remote_code)
        self._model = model
        self.max_model_len = self.options.max_model_len
        self._controls = [str(t) for t in self._tokenizer.added_tokens_decoder.values() if t.special]
        self._pattern = alternation(self._controls)
        self._control_ids = {name: self._tokenizer.convert_tokens_to_ids(name) for name in self._controls}
        source = self._template_source()
        variables = {**self._tokenizer.special_tokens_map, **self.options.chat_template_kwargs}
        self._template = (
            None
            if source is None
            else ChatTemplate(source, self._controls, variables, self.options.on_lost_text == "accept")
        )
        self._can_split = self._segments_agree()

    @property
    def vocabulary(self) -> npt.NDArray[np.int64]:
        """Ids that the tokenizer can produce, ascending."""
        return np.array(sorted(set(self._tokenizer.get_vocab().values())), np.int64)

    def describe(self) -> dict[str, Any]:
        """What identifies the tokenizer and the template, for the manifest."""
        vocabulary = self._tokenizer.backend_tokenizer.to_str()
        template = self._template.source if self._template else ""
        return {
            "tokenizer_sha256": hashlib.sha256(vocabulary.encode()).hexdigest(),
            "chat_template_sha256": hashlib.sha256(template.encode()).hexdigest() if template else None,
            "chat_template_kwargs": dict(self.options.chat_template_kwargs),
            "sentence_rules": sentences.VERSION,
            "turns": self.options.turns,
            "include_end_of_turn": self.options.include_end_of_turn,
            "max_model_len": self.max_model_len,
            "on_overlong": self.options.on_overlong,
            "on_lost_text": self.options.on_lost_text,
        }

    def decode(self, ids: Sequence[int]) -> str:
        """The text of some token ids."""
        return str(self._tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False))

    def render_messages(self, messages: Sequence[Mapping[str, Any]], tools: Sequence[Any] | None = None) -> Rendered:
        """Render a conversation. A row that cannot be scored is a result with a status, not an exception.

        Raises:
            UsageError: the tokenizer has no chat template and none was given.
        """
        if self._template is None:
            raise UsageError(
                f"{self._model}: the tokenizer has no chat template, so it is unknown what training would see.",
                "Give the one you train with: --chat-template FILE.jinja, or a model whose template you use.",
            )
        try:
            text = self._template.render(messages, tools)
            if self.options.turns == "last":
                text = RenderedText(text.text, text.turns[-1:], text.literals)
            return self._tokenize(text)
        except RefusedRow as reason:
            return refused(reason.status, reason.detail)
        except RecursionError:
            return refused("invalid_messages", "the messages are nested too deeply.")

    def render_text(self, text: str) -> Rendered:
        """Tokenize a bare text, all of which is scored but its first token, with the tokenizer's own start token if any."""
        encoded = self._encode(text, split_special_tokens=True, add_special_tokens=True)
        own = np.array(encoded["special_tokens_mask"], bool)
        spans_P2 = np.array(encoded["offset_mapping"], np.int64).reshape(-1, 2)
        spans_P2[own] = -1
        return self._finish(encoded["input_ids"], spans_P2, text, [Turn(0, len(text), len(text))])

    def _encode(self, text: str, *, split_special_tokens: bool, add_special_tokens: bool = False) -> Any:
        return self._tokenizer(
            text,
            add_special_tokens=add_special_tokens,
            split_special_tokens=split_special_tokens,
            return_offsets_mapping=True,
            return_special_tokens_mask=add_special_tokens,
            verbose=False,
        )

    def _template_source(self) -> str | None:
        given = self.options.chat_template
        if given is None:
            return _own_template(self._model, self._tokenizer)
        if not _is_file(given):
            source = _own_template(given, load_tokenizer(given))
            if source is None:
                raise UsageError(
                    f"--chat-template {given}: that model has no chat template.", "Give a file or another."
                )
            return source
        try:
            return Path(given).read_text("utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise UsageError(f"--chat-template {given}: cannot be read as text ({error}).") from error

    def _segments_agree(self) -> bool:
        """Whether tokenizing between control tokens gives what tokenizing the whole gives."""
        probe = "".join(f"{name}a b{name}\n c\n{name}" for name in self._controls)
        whole = self._encode(probe, split_special_tokens=False)["input_ids"]
        return bool(whole == self._encode_pieces(probe, {})[0])

    def _tokenize(self, rendered: RenderedText) -> Rendered:
        restored = Restored(rendered.text, rendered.literals)
        if not rendered.literals:
            encoded = self._encode(rendered.text, split_special_tokens=False)
            ids, spans = encoded["input_ids"], encoded["offset_mapping"]
        elif self._can_split:
            ids, spans = self._encode_pieces(rendered.text, rendered.literals)
        else:
            name = next(iter(rendered.literals.values()))
            detail = f"the text holds {name!r}, which this tokenizer would turn into a control token."
            return refused("control_token_text", detail)
        turns = [
            Turn(restored.offset(turn.start), restored.offset(turn.end), restored.offset(turn.marker_end))
            for turn in rendered.turns
        ]
        return self._finish(ids, np.array(spans, np.int64).reshape(-1, 2), restored.text, turns)

    def _encode_pieces(self, text: str, literals: Mapping[str, str]) -> tuple[list[int], list[tuple[int, int]]]:
        """Token ids and their spans in the restored text; control tokens only where the template put them."""
        ids: list[int] = []
        spans: list[tuple[int, int]] = []
        offset = 0
        for piece, is_control in split_controls(text, self._pattern):
            restored = reveal(piece, literals)
            if is_control:
                ids.append(self._control_ids[piece])
                spans.append((offset, offset + len(piece)))
            else:
                encoded = self._encode(restored, split_special_tokens=True)
                ids += encoded["input_ids"]
                spans += [(offset + start, offset + end) for start, end in encoded["offset_mapping"]]
            offset += len(restored)
        return ids, spans

    def _finish(
        self, ids: Sequence[int], spans_P2: npt.NDArray[np.int64], text: str, turns: Sequence[Turn]
    ) -> Rendered:
        positions, sentence, n_sentences = self._scored(spans_P2, text, turns)
        if not len(positions):
            return refused("empty_response", "the assistant's text has no token to score.")
        limit = self.max_model_len
        truncated = False
        if limit is not None and len(ids) > limit:
            truncated = True
            if self.options.on_overlong == "refuse":
                return refused(
                    "too_long", f"{len(ids)} tokens, {limit} allowed (--max-model-len, --on-overlong truncate)."
                )
            kept = positions < limit
            if not kept.any():
                return refused("too_long", f"the first scored token is number {positions[0] + 1}, {limit} allowed.")
            positions, sentence = positions[kept], sentence[kept]
            n_sentences = int(sentence[-1]) + 1
        return Rendered(
            input_ids_P=np.array(ids[:limit], np.int32),
            positions_N=positions.astype(np.uint32),
            sentence_N=sentence.astype(np.uint32),
            n_sentences=n_sentences,
            truncated=truncated,
        )

    def _scored(
        self, spans_P2: npt.NDArray[np.int64], text: str, turns: Sequence[Turn]
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], int]:
        """Positions of the tokens that start in a turn, their sentences, and the number of sentences.

        A token that takes white space before the turn and the turn's first characters counts too, as it does in training:
        it starts where the turn does.
        """
        positions, sentence, n_sentences = [], [], 0
        starts_P = spans_P2[:, 0].copy()
        for turn in turns:
            end = turn.marker_end if self.options.include_end_of_turn else turn.end
            (across,) = np.nonzero((starts_P < turn.start) & (spans_P2[:, 1] > turn.start))
            for token in across:
                if turn.end > turn.start and text[starts_P[token] : turn.start].isspace():
                    starts_P[token] = turn.start
            (inside,) = np.nonzero((starts_P >= turn.start) & (starts_P < end))
            inside = inside[inside > 0]
            begins = np.array(sentences.sentence_starts(text[turn.start : turn.end]) or [0], np.int64) + turn.start
            positions.append(inside)
            sentence.append(np.searchsorted(begins, starts_P[inside], side="right") - 1 + n_sentences)
            n_sentences += len(begins) if len(inside) else 0
        none = np.empty(0, np.int64)
        return np.concatenate([none, *positions]), np.concatenate([none, *sentence]), n_sentences


def load_tokenizer(model: str, *, revision: str | None = None, trust_remote_code: bool = False) -> Any:
    """The fast tokenizer of a model.

    Raises:
        UsageError: the folder or hub id does not exist, or the tokenizer keeps no character offsets.
        MissingExtraError: transformers is not installed.
    """
    try:
        from transformers import AutoTokenizer
    except ImportError as error:
        raise MissingExtraError("transformers", "hf") from error
    require_model(model)
    try:
        tokenizer = AutoTokenizer.from_pretrained(model, revision=revision, trust_remote_code=trust_remote_code)
    except Exception as error:  # transformers raises many kinds for the same thing: no such tokenizer
        raise UsageError(
            f"{model}: its tokenizer cannot be loaded ({_first_line(error)}).",
            "Give a hub id or a folder that AutoTokenizer can load.",
        ) from error
    if not tokenizer.is_fast:
        raise UsageError(
            f"{model}: its tokenizer keeps no character offsets, which scoring needs (not a fast tokenizer).",
            "Give a model that comes with a tokenizer.json.",
        )
    _keep_white_space_in_offsets(tokenizer.backend_tokenizer)
    return tokenizer


def _keep_white_space_in_offsets(backend: Any) -> None:
    """Let offsets cover a token's white space: without it, a token's start is not where its text starts."""
    state = json.loads(backend.to_str())
    trimming = [node for node in _mappings(state.get("post_processor")) if node.get("trim_offsets")]
    if trimming:
        for node in trimming:
            node["trim_offsets"] = False
        backend.post_processor = type(backend).from_str(json.dumps(state)).post_processor


def _mappings(value: Any) -> Iterator[dict[str, Any]]:
    if isinstance(value, dict):
        yield value
        for item in value.values():
            yield from _mappings(item)
    elif isinstance(value, list):
        for item in value:
            yield from _mappings(item)


def _own_template(model: str, tokenizer: Any) -> str | None:
    """A tokenizer's chat template, the default one of several; None when it has none."""
    try:
        return tokenizer.get_chat_template() if tokenizer.chat_template else None
    except ValueError as error:
        raise UsageError(
            f"{model}: none of its chat templates is the default ({_first_line(error)}).",
            "Choose one: --chat-template FILE.jinja.",
        ) from error


def _is_file(name: str) -> bool:
    try:
        return Path(name).is_file()
    except OSError:  # a name too long for a file
        return False


def require_model(model: str) -> None:
    """Refuse a model name that can be neither a folder nor a hub id, before anything is loaded.

    Raises:
        UsageError: it looks like a path and there is no such folder, or the folder holds no model.
    """
    path = Path(model)
    if len(model) > 1024:
        raise UsageError(f"{model[:80]!r}...: neither a folder nor a hub id.", "A chat template is given as a file.")
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise UsageError(
                f"{model}: a folder without config.json, so no model.", "Give the folder that holds the model's files."
            )
    elif path.exists():
        raise UsageError(f"{model}: a file, not a model.", "Give a hub id or the folder that holds the model's files.")
    elif model.count("/") != 1 or model.startswith((".", "/", "~")):
        raise UsageError(f"{model}: no such folder.", "Give a hub id (organisation/name) or an existing folder.")


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)


def chat_template_kwargs(text: str | None) -> dict[str, Any]:
    """Parse `--chat-template-kwargs`.

    Raises:
        UsageError: not a JSON object.
    """
    if not text:
        return {}
    try:
        value = json.loads(text)
    except ValueError as error:
        raise UsageError(
            f"--chat-template-kwargs {text}: not JSON ({error}).", "Example: '{\"enable_thinking\": true}'."
        ) from error
    if not isinstance(value, dict):
        raise UsageError(f"--chat-template-kwargs {text}: a {type(value).__name__}, an object is needed.")
    return value
