"""A trajectory -> token ids, scored positions and sentences, in the tokenizer of the model that reads it.

Axes: P input tokens, N scored tokens, S scaffold tokens.
"""

from __future__ import annotations

import datetime
import functools
import hashlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from trajscore.errors import UsageError, first_line
from trajscore.options.groups import RenderOptions
from trajscore.rendering import phases, sentences
from trajscore.rendering.alignment import NO_RESPONSE, Response
from trajscore.rendering.anchors import REASONING_KEYS
from trajscore.rendering.chat import SCORING_DATE
from trajscore.rendering.decoding import token_texts
from trajscore.rendering.literals import Restored, alternation, reveal, split_controls
from trajscore.rendering.reasoning import THINK, has_thoughts, joined_parts, reasoning_as
from trajscore.rendering.rendered_text import RenderedMarks
from trajscore.rendering.template_choice import has_trl, template_sources, training_template
from trajscore.rendering.templates import (
    AFTER,
    MARKER,
    WRITTEN_BY_MODELS,
    ChatTemplate,
    RefusedRow,
    RenderedText,
    Stretch,
    Turn,
)
from trajscore.rendering.tokenizer import load_tokenizer, same_tokenizer
from trajscore.rendering.tokens import TokenSequence
from trajscore.schema import OK


@dataclass(frozen=True)
class BareTurn:
    """What a turn's scored tokens follow when the conversation before it is left out.

    Attributes:
        header_ids: the start token, if the conversation begins with one, and the assistant's header; may be empty.
        first: index (in N) of the turn's first scored token.
    """

    header_ids: npt.NDArray[np.int32]
    first: int


@dataclass(frozen=True)
class Rendered(TokenSequence):
    """One trajectory in tokens.

    Attributes:
        input_ids_P: int32, the whole conversation.
        positions_N: uint32, index into `input_ids_P` of each scored token, ascending, never 0.
        sentence_N: uint32, index of the sentence in which each scored token starts, ascending.
        n_sentences: sentences of the scored text; all but those cut off.
        phase_N: uint8, `phases.THINKING`, `MARKER` or `ANSWER`: where each scored token starts.
        bare_turns: the scored turns, ascending, without the conversation; none for a bare text.
        response: what the assistant says, and where in it the scored tokens and sentences lie.
        scaffold_S: uint32, index into `input_ids_P` of each token that training sees of the turns besides, ascending, never 0.
        scaffold_kind_S: uint8, `templates.ADDED`, `MARKER` or `AFTER` for each of them.
        truncated: whether tokens were cut off.
        status: `ok`, or why the row cannot be scored; the arrays are empty then.
        detail: a sentence about the status.
    """

    sentence_N: npt.NDArray[np.uint32]
    n_sentences: int
    phase_N: npt.NDArray[np.uint8] = field(default_factory=lambda: np.empty(0, np.uint8))
    bare_turns: tuple[BareTurn, ...] = ()
    response: Response = NO_RESPONSE
    scaffold_S: npt.NDArray[np.uint32] = field(default_factory=lambda: np.empty(0, np.uint32))
    scaffold_kind_S: npt.NDArray[np.uint8] = field(default_factory=lambda: np.empty(0, np.uint8))
    truncated: bool = False
    status: str = OK
    detail: str = ""

    @property
    def whole(self) -> TokenSequence:
        """The tokens with all that is read of them: the scored ones and the scaffold, in one list."""
        return TokenSequence(self.input_ids_P, np.union1d(self.positions_N, self.scaffold_S).astype(np.uint32))

    @property
    def scored_M(self) -> npt.NDArray[np.bool_]:  # noqa: N802 - the axis is part of the name
        """Which tokens of `whole` are scored; the others are scaffold."""
        return np.isin(self.whole.positions_N, self.positions_N)


def refused(status: str, detail: str) -> Rendered:
    """A row that cannot be scored."""
    nothing = np.empty(0, np.uint32)
    return Rendered(np.empty(0, np.int32), nothing, nothing, 0, status=status, detail=detail)


class _Row(NamedTuple):
    """What a conversation is rendered from."""

    messages: Sequence[Mapping[str, Any]]
    tools: Sequence[Any] | None
    variables: Mapping[str, Any] | None


class Renderer:
    """Renders and tokenizes trajectories for one model.

    Args:
        model: hub id or folder with a fast tokenizer.
        options: see `RenderOptions`.
        revision: hub revision.
        trust_remote_code: run tokenizer code that comes with the model.
        today: the date that templates print, where it is to be that of a trainer; None for the one that scores have.

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
        today: datetime.date | None = None,
    ) -> None:
        self.options = options or RenderOptions()
        self._tokenizer = load_tokenizer(model, revision=revision, trust_remote_code=trust_remote_code)
        self._model = model
        self._now = SCORING_DATE if today is None else datetime.datetime(today.year, today.month, today.day)
        self.max_model_len = self.options.max_model_len
        self._controls = [str(t) for t in self._tokenizer.added_tokens_decoder.values() if t.special]
        self._pattern = alternation(self._controls)
        self._control_ids = {name: self._tokenizer.convert_tokens_to_ids(name) for name in self._controls}
        sources = template_sources(model, self._tokenizer, self.options.chat_template)
        origin = self.options.chat_template or model
        plain = self._made(sources.plain, origin)
        self._templates = (plain, plain if sources.tools == sources.plain else self._made(sources.tools, origin))
        self._can_split = self._segments_agree()

    @property
    def has_template(self) -> bool:
        """Whether conversations can be rendered at all."""
        return any(self._templates)

    @property
    def vocabulary(self) -> npt.NDArray[np.int64]:
        """Ids that the tokenizer can produce, ascending."""
        return np.array(sorted(set(self._tokenizer.get_vocab().values())), np.int64)

    def same_tokenizer(self, other: Renderer) -> bool:
        """Whether another renderer's tokenizer makes the same tokens of any text."""
        return same_tokenizer(self._tokenizer, other._tokenizer)

    @property
    def tokenizer_json(self) -> str:
        """The tokenizer as JSON, as the `tokenizers` library writes it."""
        return str(self._tokenizer.backend_tokenizer.to_str())

    @property
    def template(self) -> str:
        """The chat template of rows without tools; empty where there is none."""
        return next((each.source for each in self._templates if each), "")

    def describe(self) -> dict[str, Any]:
        """What identifies the tokenizer and the template, for the manifest."""
        template = "\0".join(dict.fromkeys(each.source for each in self._templates if each))
        return {
            "tokenizer_sha256": hashlib.sha256(self.tokenizer_json.encode()).hexdigest(),
            "chat_template_sha256": hashlib.sha256(template.encode()).hexdigest() if template else None,
            "chat_template_kwargs": dict(self.options.chat_template_kwargs),
            "sentence_rules": sentences.VERSION,
            "phase_rules": phases.VERSION,
            "turns": self.options.turns,
            "max_model_len": self.max_model_len,
            "on_overlong": self.options.on_overlong,
            "on_lost_text": self.options.on_lost_text,
            "reasoning_as": self.options.reasoning_as,
        }

    def decode(self, ids: Sequence[int]) -> str:
        """The text of some token ids."""
        return str(self._tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False))

    def spellings(self, ids: Sequence[int]) -> tuple[str, str]:
        """The text of some token ids as others may have written it: with control tokens and without, white space stripped."""
        plain = self._tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return self.decode(ids).strip(), str(plain).strip()

    def render_messages(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Any] | None = None,
        variables: Mapping[str, Any] | None = None,
        context: Collection[int] = (),
    ) -> Rendered:
        """Render a conversation. A row that cannot be scored is a result with a status, not an exception.

        Args:
            messages: the conversation, as a trainer would pass it.
            tools: definitions of tools; None and none at all may differ.
            variables: the row's `chat_template_kwargs`, which prevail over those of the options.
            context: indices of assistant's messages that are read and not scored.

        Raises:
            UsageError: the tokenizer has no chat template and none was given.
        """
        if not self.has_template:
            raise UsageError(
                f"{self._model}: the tokenizer has no chat template, so it is unknown what training would see.",
                "Give the one you train with: --chat-template FILE.jinja, or a model whose template you use.",
            )
        row = _Row(messages, tools, variables)
        try:
            if (template := self._template_for(tools)) is None:
                raise RefusedRow(
                    "template_error", "the model has no default chat template, only one for rows with tools."
                )
            text = self._rendered(template, row, self.options.reasoning_as)
            turns = [turn for turn in text.turns if turn.message not in context]
            if not turns and text.turns:
                return refused("no_assistant_turn", "every message of the assistant is marked as context.")
            if self.options.turns == "last":
                turns = [turn for turn in turns if turn.message == turns[-1].message]
            return self._tokenize(RenderedText(text.text, turns, text.literals))
        except RefusedRow as reason:
            way_out = self._way_out(row) if reason.status == "template_lost_text" else ""
            return refused(reason.status, reason.detail + way_out)
        except RecursionError:
            return refused("invalid_messages", "the messages are nested too deeply.")

    def render_text(self, text: str) -> Rendered:
        """Tokenize a bare text, all of which is scored but its first token, with the tokenizer's own start token if any."""
        try:
            encoded = self._encode(text, split_special_tokens=True, add_special_tokens=True)
        except RefusedRow as reason:
            return refused(reason.status, reason.detail)
        own = np.array(encoded["special_tokens_mask"], bool)
        spans_P2 = np.array(encoded["offset_mapping"], np.int64).reshape(-1, 2)
        spans_P2[own] = -1
        return self._finish(encoded["input_ids"], spans_P2, text, [Turn(0, len(text))])

    def rendered_marks(self) -> RenderedMarks:
        """What shows that the student's template was applied to a text already."""
        named = [value for value in self._tokenizer.special_tokens_map.values() if isinstance(value, str)]
        plain = {*named, *WRITTEN_BY_MODELS}
        openers = [opener for template in self._templates if template for opener in template.openers]
        start = tuple(name for name in (self._tokenizer.bos_token,) if name)
        return RenderedMarks(
            tuple(name for name in self._controls if name not in plain), tuple(dict.fromkeys(openers)), start
        )

    def render_rendered(self, text: str, start: int = 0) -> Rendered:
        """Tokenize a text to which the template was applied already, as training reads it.

        Every control token's name in it is that token. The tokenizer's own start token comes first where the text has none.

        Args:
            text: the rendered text.
            start: what stands before it is context, whatever it holds.

        Returns:
            The assistant's turns, found by the template's own markers; one that the text cuts off ends with it.
        """
        template = next((each for each in self._templates if each), None)
        try:
            if template is None:
                raise RefusedRow("template_error", f"{self._model} has no chat template, whose markers tell the turns.")
            found = template.read(text, start)
            bos = self._tokenizer.bos_token
            encoded = self._encode(
                text, split_special_tokens=False, add_special_tokens=not (bos and text.startswith(bos))
            )
        except RefusedRow as reason:
            return refused(reason.status, reason.detail)
        turns = found.turns[-1:] if self.options.turns == "last" else found.turns
        spans_P2 = np.array(encoded["offset_mapping"], np.int64).reshape(-1, 2)
        spans_P2[np.array(encoded.get("special_tokens_mask", []), bool).nonzero()] = -1
        return self._finish(encoded["input_ids"], spans_P2, text, turns)

    def render_ids(self, ids_P: npt.NDArray[np.int64], scored_P: npt.NDArray[np.bool_]) -> Rendered:
        """A conversation that is given in token ids, exactly as it is.

        Args:
            ids_P: the whole conversation.
            scored_P: which tokens training reads of it. Each run of them is a turn; an end-of-turn marker that ends one
                stands in the scaffold, and so does the line break after it, if that is trained on.

        Returns:
            What `render_messages` would give, sentences and phases those of the decoded text. A turn has a header where the
            text before it is what the template opens the assistant's turns with.
        """
        known_V = self._known_ids
        outside_P = (ids_P < 0) | (ids_P >= len(known_V))
        outside_P |= ~known_V[np.where(outside_P, 0, ids_P)]
        if outside_P.any():
            place = int(outside_P.argmax())
            return refused(
                "invalid_ids", f"token id {ids_P[place]}, number {place}, is none of {self._model}'s tokenizer."
            )
        texts = token_texts(self._tokenizer.backend_tokenizer, ids_P.tolist())
        spans_P2, text = _spans(texts), "".join(texts)
        runs = _runs(scored_P)[-1:] if self.options.turns == "last" else _runs(scored_P)
        turns, inside = list[Turn](), list[npt.NDArray[np.int64]]()
        kind_P = np.full(len(ids_P), -1, np.int16)
        for first, stop in runs:
            end = self._words_end(ids_P, first, stop)
            kind_P[end:stop] = AFTER
            kind_P[end : min(end + 1, stop)] = MARKER
            start = int(spans_P2[first, 0])
            turns.append(Turn(start, int(spans_P2[end - 1, 1]) if end > first else start, self._header(text, start)))
            inside.append(np.arange(first, end))
        kind_P[:1] = -1
        (places,) = np.nonzero(kind_P >= 0)
        scored = self._scored(spans_P2, text, turns, inside)
        return self._finished(ids_P.tolist(), scored, _Scaffold(places, kind_P[places].astype(np.uint8)))

    def _header(self, text: str, start: int) -> int:
        """Where the header of a turn begins that starts at an offset; that offset where no header is known."""
        openers = [opener for template in self._templates if template for opener in template.openers]
        found = [(place, place + len(opener)) for opener in openers if (place := text.rfind(opener, 0, start)) >= 0]
        # What stands between, a think tag that the prompt opens, is part of it as long as no control token is there.
        return max((place for place, end in found if not self._pattern.search(text, end, start)), default=start)

    @functools.cached_property
    def _known_ids(self) -> npt.NDArray[np.bool_]:
        known_V = np.zeros(int(self.vocabulary[-1]) + 1, bool)
        known_V[self.vocabulary] = True
        return known_V

    def _words_end(self, ids_P: npt.NDArray[np.int64], first: int, stop: int) -> int:
        """Where the words of a run of tokens end: before an end-of-turn marker that ends it, white space after that or not."""
        last, before = int(ids_P[stop - 1]), int(ids_P[stop - 2]) if stop - 2 >= first else None
        if last in self._end_markers:
            return stop - 1
        return stop - 2 if before in self._end_markers and self.decode([last]).isspace() else stop

    @functools.cached_property
    def _end_markers(self) -> frozenset[int]:
        """Tokens that end a turn of the assistant: what the template writes there, and the tokenizer's own end."""
        found = {self._tokenizer.eos_token_id} - {None}
        if self.has_template:
            reply = self.render_messages([{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}])
            found |= set(reply.input_ids_P[reply.scaffold_S[reply.scaffold_kind_S == MARKER]].tolist())
        return frozenset(found)

    def _encode(self, text: str, *, split_special_tokens: bool, add_special_tokens: bool = False) -> Any:
        try:
            return self._tokenizer(
                text,
                add_special_tokens=add_special_tokens,
                split_special_tokens=split_special_tokens,
                return_offsets_mapping=True,
                return_special_tokens_mask=add_special_tokens,
                verbose=False,
            )
        except BaseException as error:
            # A panic of the tokenizer's Rust is no Exception, and as little a reason to stop as what it raises.
            if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
                raise
            detail = f"the tokenizer gives up on a text of {len(text):,} characters: {first_line(error)}"
            raise RefusedRow("tokenizer_error", detail) from None

    def _made(self, source: str | None, origin: str) -> ChatTemplate | None:
        if source is None:
            return None
        return ChatTemplate(
            source,
            self._controls,
            {**self._tokenizer.special_tokens_map, **self.options.chat_template_kwargs},
            accept_lost_text=self.options.on_lost_text == "accept",
            origin=origin,
            now=self._now,
        )

    def _rendered(self, template: ChatTemplate, row: _Row, reasoning: str | None) -> RenderedText:
        """A conversation through a template, its parts as they are, or joined where the template takes no parts."""
        messages = row.messages if reasoning is None else reasoning_as(row.messages, reasoning)
        try:
            return template.render(messages, row.tools, row.variables)
        except RefusedRow as refusal:
            joined = joined_parts(messages) if refusal.status == "template_error" else None
            if joined is None:
                raise
            try:
                return template.render(joined, row.tools, row.variables)
            except RefusedRow as other:
                raise (refusal if other.status == "template_error" else other) from None

    def _way_out(self, row: _Row) -> str:
        """Options under which a template keeps the text that it loses without them; empty where there are none."""
        ways = []
        reasoning = self.options.reasoning_as
        if self.options.chat_template is None and (training := self._training_template):
            ways.append(("--chat-template trl", training, reasoning))
        template = self._template_for(row.tools)
        if template is not None and reasoning is None and any(has_thoughts(message) for message in row.messages):
            ways += [(f"--reasoning-as {how}", template, how) for how in (*REASONING_KEYS, THINK)]
        found = [name for name, other, how in ways if self._keeps(other, row, how)]
        return f" It is kept with {' or with '.join(found)}." if found else ""

    def _keeps(self, template: ChatTemplate, row: _Row, reasoning: str | None) -> bool:
        try:
            self._rendered(template, row, reasoning)
        except RefusedRow:
            return False
        return True

    @functools.cached_property
    def _training_template(self) -> ChatTemplate | None:
        """What the installed TRL would swap in for training; None where that is the model's own, or TRL is not there."""
        sources = training_template(self._tokenizer) if has_trl() else None
        if sources is None or sources.plain in (None, *(each and each.source for each in self._templates)):
            return None
        return self._made(sources.plain, "trl")

    def _template_for(self, tools: Sequence[Any] | None) -> ChatTemplate | None:
        return self._templates[0] if tools is None else self._templates[1]

    def _segments_agree(self) -> bool:
        """Whether tokenizing between control tokens gives what tokenizing the whole gives."""
        probe = "".join(f"{name}a b{name}\n c\n{name}" for name in self._controls)
        try:
            whole = self._encode(probe, split_special_tokens=False)["input_ids"]
            return bool(whole == self._encode_pieces(probe, {})[0])
        except RefusedRow as refusal:
            raise UsageError(
                f"{self._model}: its tokenizer cannot be used ({refusal}).", "Fetch or save the tokenizer again."
            ) from refusal

    def prompt_ids(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Any] | None = None,
        variables: Mapping[str, Any] | None = None,
    ) -> npt.NDArray[np.int32] | None:
        """What a model reads before it writes its turn, the turn's header included; None where the template refuses it."""
        try:
            template = self._template_for(tools)
            return (
                None
                if template is None
                else np.array(self._ids(template.prompt(messages, tools, variables))[0], np.int32)
            )
        except (RefusedRow, RecursionError):
            return None

    def _ids(self, rendered: RenderedText) -> tuple[list[int], list[tuple[int, int]]]:
        """Token ids of a rendered text, and their spans in it as it was before control tokens' names were hidden."""
        if not rendered.literals:
            encoded = self._encode(rendered.text, split_special_tokens=False)
            return encoded["input_ids"], encoded["offset_mapping"]
        if self._can_split:
            return self._encode_pieces(rendered.text, rendered.literals)
        name = next(iter(rendered.literals.values()))
        detail = f"the text holds {name!r}, which this tokenizer would turn into a control token."
        raise RefusedRow("control_token_text", detail)

    def _tokenize(self, rendered: RenderedText) -> Rendered:
        restored = Restored(rendered.text, rendered.literals)
        ids, spans = self._ids(rendered)
        turns = [
            Turn(
                restored.offset(turn.start),
                restored.offset(turn.end),
                None if turn.header is None else restored.offset(turn.header),
                tuple(Stretch(restored.offset(a), restored.offset(b), kind) for a, b, kind in turn.scaffold),
                turn.message,
            )
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
        scored = self._scored(spans_P2, text, turns)
        stretches = [stretch for turn in turns for stretch in turn.scaffold]
        return self._finished(ids, scored, _scaffold(spans_P2, stretches, scored.positions_N))

    def _finished(self, ids: Sequence[int], scored: _Scored, added: _Scaffold) -> Rendered:
        """What there is of a row, as far as it is not too long."""
        positions, response = scored.positions_N, scored.response
        if not len(positions):
            return refused("empty_response", "the assistant's text has no token to score.")
        limit = self.max_model_len
        truncated = limit is not None and len(ids) > limit
        n_sentences = len(response.sentence_starts)
        if limit is not None and truncated:
            if self.options.on_overlong == "refuse":
                return refused(
                    "too_long", f"{len(ids)} tokens, {limit} allowed (--max-model-len, --on-overlong truncate)."
                )
            kept = int((positions < limit).sum())
            if not kept:
                return refused("too_long", f"the first scored token is number {positions[0] + 1}, {limit} allowed.")
            positions, response = positions[:kept], response.cut(kept)
            n_sentences = int(response.sentence_N[-1]) + 1
        scaffold, kinds = added
        seen = int((scaffold < len(ids[:limit])).sum())
        return Rendered(
            input_ids_P=np.array(ids[:limit], np.int32),
            positions_N=positions.astype(np.uint32),
            sentence_N=response.sentence_N.astype(np.uint32),
            n_sentences=n_sentences,
            phase_N=scored.phase_N[: len(positions)],
            bare_turns=tuple(self._bare_turn(ids, positions, *at) for at in scored.headers if at[0] < len(positions)),
            response=response,
            scaffold_S=scaffold[:seen].astype(np.uint32),
            scaffold_kind_S=kinds[:seen],
            truncated=truncated,
        )

    def _bare_turn(self, ids: Sequence[int], positions: npt.NDArray[np.int64], first: int, header: int) -> BareTurn:
        start = ids[:1] if header and ids[0] == self._tokenizer.bos_token_id else []
        return BareTurn(np.array([*start, *ids[header : positions[first]]], np.int32), first)

    def _scored(
        self,
        spans_P2: npt.NDArray[np.int64],
        text: str,
        turns: Sequence[Turn],
        given: Sequence[npt.NDArray[np.int64]] | None = None,
    ) -> _Scored:
        """The tokens that start in a turn, or those that are given, and what they say.

        A token that takes white space before the turn and the turn's first characters counts too, as it does in training:
        it starts where the turn does.
        """
        spans, sentence_starts, turn_starts = [], [], []
        positions: list[npt.NDArray[np.int64]] = []
        phase: list[npt.NDArray[np.uint8]] = []
        headers: list[tuple[int, int]] = []
        response = ""
        starts_P, ends_P = spans_P2[:, 0].copy(), spans_P2[:, 1]
        for number, turn in enumerate(turns):
            (across,) = np.nonzero((starts_P < turn.start) & (ends_P > turn.start))
            for token in across:
                if turn.end > turn.start and text[starts_P[token] : turn.start].isspace():
                    starts_P[token] = turn.start
            (inside,) = np.nonzero((starts_P >= turn.start) & (starts_P < turn.end))
            inside = inside if given is None else given[number]
            inside = inside[inside > 0]
            begin, said = len(response), text[turn.start : turn.end]
            turn_starts.append(begin)
            if len(inside):
                if turn.header is not None:
                    headers.append((sum(map(len, positions)), int((starts_P < turn.header).sum())))
                phase.append(_phases(said, text[: turn.start], starts_P[inside] - turn.start))
                positions.append(inside)
                spans.append(np.minimum(np.stack([starts_P[inside], ends_P[inside]], 1), turn.end) + begin - turn.start)
                sentence_starts.append(np.array(sentences.sentence_starts(said), np.int64) + begin)
            response += said
        none = np.empty(0, np.int64)
        said_there = Response(
            text=response,
            turn_starts=np.array(turn_starts, np.int64),
            # Where nothing but end-of-turn markers is scored, they make one sentence.
            sentence_starts=np.concatenate([none, *sentence_starts]) if response else np.zeros(1, np.int64),
            span_N2=np.concatenate([none.reshape(0, 2), *spans]),
        )
        all_phases = np.concatenate([np.empty(0, np.uint8), *phase])
        return _Scored(np.concatenate([none, *positions]), all_phases, headers, said_there)


class _Scored(NamedTuple):
    """Scored tokens before any is cut off; `headers` has (first scored token, position of the header's first) per turn."""

    positions_N: npt.NDArray[np.int64]
    phase_N: npt.NDArray[np.uint8]
    headers: list[tuple[int, int]]
    response: Response


class _Scaffold(NamedTuple):
    positions_S: npt.NDArray[np.int64]
    kind_S: npt.NDArray[np.uint8]


def _scaffold(
    spans_P2: npt.NDArray[np.int64], stretches: Sequence[Stretch], scored: npt.NDArray[np.int64]
) -> _Scaffold:
    """The tokens that reach into a stretch and are not scored, as trainers take them; the first stretch names the kind."""
    kind_P = np.full(len(spans_P2), -1, np.int16)
    for start, end, kind in stretches:
        kind_P[(spans_P2[:, 0] < end) & (spans_P2[:, 1] > start) & (kind_P < 0)] = kind
    kind_P[scored] = -1
    kind_P[:1] = -1
    (positions,) = np.nonzero(kind_P >= 0)
    return _Scaffold(positions, kind_P[positions].astype(np.uint8))


def _runs(scored_P: npt.NDArray[np.bool_]) -> list[tuple[int, int]]:
    """First and one past the last of each run of tokens.

    >>> _runs(np.array([False, True, True, False, True]))
    [(1, 3), (4, 5)]
    """
    edges = np.flatnonzero(np.diff(np.concatenate([[False], scored_P, [False]]).astype(np.int8)))
    return [(int(first), int(stop)) for first, stop in edges.reshape(-1, 2)]


def _spans(texts: Sequence[str]) -> npt.NDArray[np.int64]:
    """Offsets at which tokens start and end in the joined text; one without a character ends where the next character does.

    >>> _spans(["a", "", "bc"]).tolist()
    [[0, 1], [1, 3], [1, 3]]
    """
    lengths_P = np.array([len(text) for text in texts], np.int64)
    ends_P = np.cumsum(lengths_P)
    # Of the tokens that share a character the last one has it, and each of them starts where it does.
    following = np.minimum.accumulate(np.where(lengths_P > 0, np.arange(len(texts)), len(texts))[::-1])[::-1]
    completed = np.concatenate([ends_P, ends_P[-1:]])[following]
    return np.stack([ends_P - lengths_P, completed], 1)


def _phases(said: str, before: str, start_N: npt.NDArray[np.int64]) -> npt.NDArray[np.uint8]:
    starts, values = phases.phase_starts(said, before)
    found: npt.NDArray[np.uint8] = np.array(values, np.uint8)[np.searchsorted(starts, start_N, side="right") - 1]
    return found
