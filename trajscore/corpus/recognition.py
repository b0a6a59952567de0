"""The columns of a kind of row -> what is read from which of them, by the table in `layouts`. It sees names and types, no text.

It is decided for whole kinds, over the whole corpus, never row by row: a row whose response is null is refused, and its
reference is not read in its place. `unplaced` asks about columns that it leaves unread and that may hold a response.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from trajscore.corpus import layouts
from trajscore.corpus.identity import FieldNames
from trajscore.corpus.kinds import ENTRIES, IDS, JSON, LIST, MANY_IDS, OPEN, TEXT, TURNS, Kind, may_hold_text
from trajscore.corpus.layouts import Published
from trajscore.corpus.token_ids import TokenColumns
from trajscore.errors import UsageError

NOTHING, BARE_TEXT, REFERENCE, RESPONSE, CONVERSATION = range(5)
"""Ranks of what is read."""

_SPOKEN = frozenset({"messages", "conversations"})


@dataclass(frozen=True)
class Branch:
    """One trajectory of a row, by its columns.

    Attributes:
        response: the column of the response; None where thoughts are all there is.
        reasoning: the column of the thoughts before it.
        teacher: who wrote it, where the columns' names say so.
        correct: the column that says whether it is right.
    """

    response: str | None
    reasoning: str | None = None
    teacher: str | None = None
    correct: str | None = None


@dataclass(frozen=True)
class Reading:
    """How rows of one kind are read: columns, by what they become.

    Attributes:
        rank: of the response.
        messages: a conversation.
        prompt: what the user says, joined by a line feed where there are two.
        system: the system prompt.
        history: turns before the prompt.
        branches: the trajectories of a row; more than one where columns are numbered or paired.
        calls: tool calls that are the response.
        chat: a whole conversation as one marked text.
        text: a bare text.
        reasoning: thoughts beside a conversation.
        exploded: lists of which each trajectory gets its own element; the first one counts them.
        id: columns that name the row, the first that is not null; several names joined by `+` together; empty for a hash.
        prompt_id: the column that names the prompt.
        prompt_by_user: whether the prompt is the user's text alone.
        teachers: paths to who wrote the row; the first that is not null.
        correct: columns that say whether it is right; the first that is not null.
        pictures: columns that may hold pictures, films or sounds of the prompt.
        beside_prompt: columns without which a prompt of text is not whole, unless it holds them.
        tools: definitions of tools.
        covered: columns out of which `trajscore select` made the messages.
        unread: columns of this kind that may hold text, and are not read.
        tokens: where token ids are read, their columns; the text beside them is compared.
        teacher_messages: the prompt that the teacher reads.
    """

    rank: int = NOTHING
    messages: str | None = None
    prompt: tuple[str, ...] = ()
    system: str | None = None
    history: str | None = None
    branches: tuple[Branch, ...] = ()
    calls: str | None = None
    chat: str | None = None
    text: str | None = None
    reasoning: str | None = None
    exploded: tuple[str, ...] = ()
    id: tuple[str, ...] = ()
    prompt_id: str | None = None
    prompt_by_user: bool = False
    teachers: tuple[str, ...] = ()
    correct: tuple[str, ...] = ()
    pictures: tuple[str, ...] = ()
    beside_prompt: tuple[str, ...] = ()
    tools: str | None = None
    covered: tuple[str, ...] = ()
    unread: tuple[str, ...] = ()
    tokens: TokenColumns | None = None
    teacher_messages: str | None = None

    @property
    def response(self) -> tuple[str, ...]:
        """Columns of responses."""
        own = tuple(branch.response for branch in self.branches if branch.response is not None)
        return own or tuple(name for name in (self.calls,) if name)

    @property
    def thoughts(self) -> tuple[str, ...]:
        """Columns of thoughts."""
        own = tuple(branch.reasoning for branch in self.branches if branch.reasoning is not None)
        return own or tuple(name for name in (self.reasoning,) if name)

    def used(self) -> list[str]:
        """Columns whose text is read."""
        single = (self.messages, self.system, self.history, self.chat, self.text, self.teacher_messages)
        ids = self.tokens.used() if self.tokens else ()
        return [*(name for name in single if name), *self.prompt, *self.response, *self.thoughts, *self.covered, *ids]

    def describe(self) -> dict[str, Any]:
        """What became what, as JSON values; nothing that is empty."""
        branches = self.branches
        by_branch = dict.fromkeys(branch.teacher for branch in branches if branch.teacher)
        graded = dict.fromkeys(branch.correct for branch in branches if branch.correct)
        tokens = self.tokens or TokenColumns()
        said: dict[str, Sequence[str] | str | None] = {
            "token_ids": tokens.ids,
            "mask": [*tokens.masks, *([tokens.length] if tokens.length else []), *tokens.padding],
            "sampler_logprob": tokens.sampler,
            "messages": self.messages or self.chat,
            "system": self.system,
            "history": self.history,
            "prompt": self.prompt,
            "reasoning": self.thoughts,
            "response": self.response,
            "text": self.text,
            "teacher_messages": self.teacher_messages,
            "exploded": self.exploded,
            "teacher": [*self.teachers, *(f"{name} (from the column's name)" for name in by_branch)],
            "correct": [*self.correct, *graded],
            "id": self.id[:1],
            "prompt_id": self.prompt_id,
            "not_read": self.unread,
        }
        lists = {name: [value] if isinstance(value, str) else list(value or ()) for name, value in said.items()}
        return {name: values for name, values in lists.items() if values}


class AmbiguousError(UsageError):
    """Two columns of one rank."""

    def __init__(self, names: Sequence[str], what: str, flag: str) -> None:
        names = sorted(names)
        super().__init__(
            f"The columns {', '.join(map(repr, names[:-1]))} and {names[-1]!r} could each be the {what}, and rows have both.",
            f"Say which: {flag} {names[0]}; or leave one out: --ignore-columns {names[-1]}.",
        )


def readings(
    kinds: Mapping[Kind, int],
    columns: Iterable[str],
    fields: FieldNames,
    lists: Mapping[Kind, Collection[str]] | None = None,
) -> dict[Kind, Reading]:
    """How each kind of row of a corpus is read.

    A kind whose columns another kind has too, and more, is read as that one where it ranks higher: what is missing is null
    there, and its references are no stand-in.

    Args:
        kinds: how many rows there are of each.
        columns: all columns of the corpus that hold any value.
        fields: columns that flags name.
        lists: columns of lists that are always as long as the list of responses, by kind.

    Raises:
        AmbiguousError: two columns of a kind could be the response, or the thoughts, the system prompt or the conversation.
    """
    every = list(columns)
    own = {kind: recognise(kind, every, fields, (lists or {}).get(kind, ())) for kind in kinds}
    found = {}
    for kind, reading in own.items():
        names = {name for name, _ in kind}
        larger = [
            other for other in kinds if names and names < {name for name, _ in other} and own[other].rank > reading.rank
        ]
        best = max(larger, key=lambda other: (own[other].rank, kinds[other]), default=None)
        found[kind] = reading if best is None else own[best]
    return found


def recognise(kind: Kind, columns: Iterable[str], fields: FieldNames, follow: Collection[str] = ()) -> Reading:
    """How rows of one kind are read.

    Raises:
        AmbiguousError: see `readings`.
    """
    return _Recogniser(kind, columns, fields, follow).reading()


class _Recogniser:
    """The table of `layouts` applied to one kind of row."""

    def __init__(self, kind: Kind, columns: Iterable[str], fields: FieldNames, follow: Collection[str]) -> None:
        self._types = {name: kinds for name, kinds in sorted(kind) if name not in fields.ignored}
        self._columns = [name for name in columns if name not in fields.ignored]
        self._fields, self._follow = fields, follow
        self._by_lower: dict[str, str] = {}
        for name in sorted(self._columns, reverse=True):
            # Of two that differ in case the one as written in the table wins.
            if name.lower() not in self._by_lower or name == name.lower():
                self._by_lower[name.lower()] = name

    def _has(self, name: str) -> str | None:
        """The column of a lower-case name, if rows of this kind have it."""
        column = self._by_lower.get(name)
        return column if column in self._types else None

    def _first(self, names: Iterable[str]) -> str | None:
        return next((column for name in names if (column := self._has(name))), None)

    def _only(self, names: Iterable[str], what: str, flag: str) -> str | None:
        found = [column for name in names if (column := self._has(name))]
        if len(found) > 1:
            raise AmbiguousError(found, what, flag)
        return found[0] if found else None

    def reading(self) -> Reading:
        """The reading, with what it leaves unread."""
        reading = self._named(self._text())
        used = (
            {name if name in self._types else name.partition(".")[0] for name in reading.used()}
            | set(reading.exploded)
            | {reading.tools}
        )
        graded = {branch.correct for branch in reading.branches}
        unread = tuple(name for name in self._types if name not in used | graded and self._holds_text(name))
        return replace(reading, unread=unread)

    def _holds_text(self, name: str) -> bool:
        """Whether a column may hold text to train on: a number called `tokens` does not."""
        return name.lower() not in layouts.TOKEN_IDS or self._types[name] in (IDS, MANY_IDS)

    def _text(self) -> Reading:
        tokens = self._tokens()
        if tokens is None:
            return self._words()
        try:
            words = self._words()
            if words.rank == NOTHING:
                words = Reading(branches=self._branches())
        except AmbiguousError:
            words = Reading()
        many = self._many_ids(tokens)
        # A text that holds several trajectories where the ids are one, or one where they are several, is not compared.
        if bool(words.exploded) != bool(many) or len(words.branches) > 1:
            words = Reading()
        exploded = tuple(dict.fromkeys([*many, *words.exploded]))
        return replace(words, rank=CONVERSATION, tokens=tokens, exploded=exploded)

    def _tokens(self) -> TokenColumns | None:
        """The columns of token ids, where rows of this kind have them and something that says which are the response's."""
        fields = self._fields
        masks = (fields.mask,) if fields.mask else tuple(self._known(layouts.MASKS))
        sampler = tuple(self._known(layouts.SAMPLER))
        whole = fields.ids if fields.ids in self._types else None if fields.ids else self._ids(layouts.WHOLE_IDS)
        length = self._by_lower.get(layouts.RESPONSE_LENGTH)
        if whole is not None and (masks or length):
            padding = tuple(self._known([layouts.PADDING]))
            return TokenColumns(whole=whole, length=length, masks=masks, padding=padding, sampler=sampler)
        prompt, completion = (self._ids(names) for names in (layouts.PROMPT_IDS_APART, layouts.COMPLETION_IDS))
        if fields.ids or prompt is None or completion is None:
            return None
        padding = tuple(self._known([layouts.PADDING, layouts.PROMPT_PADDING]))
        return TokenColumns(prompt=prompt, completion=completion, masks=masks, padding=padding, sampler=sampler)

    def _ids(self, names: Iterable[str]) -> str | None:
        kinds = (IDS, MANY_IDS)
        return next((column for name in names if (column := self._has(name)) and self._types[column] in kinds), None)

    def _many_ids(self, tokens: TokenColumns) -> tuple[str, ...]:
        """Columns that hold a list for every response, first the ids that count them; none where a row has one response."""
        counting = tokens.whole or tokens.completion
        if counting is None or self._types[counting] != MANY_IDS:
            return ()
        shared = set[str]()
        if tokens.prompt and self._types[tokens.prompt] == IDS:
            shared = {tokens.prompt, *self._known([layouts.PROMPT_PADDING])}
        given = [name for name in (self._fields.correct,) if name in self._columns]
        named = [self._by_lower[name] for name in layouts.FOLLOWERS if name in self._by_lower]
        own = [name for name in tokens.used() if name not in shared]
        return tuple(dict.fromkeys([counting, *own, *named, *(name for name in given if name), *self._follow]))

    def _words(self) -> Reading:
        """How the text is read."""
        published = next((each for each in layouts.PUBLISHED if self._is(each)), None)
        if published and not (self._fields.messages or self._fields.response):
            return self._published(published)
        if messages := self._conversation():
            return self._beside(messages)
        branches = self._branches()
        if not branches and (answer := self._has(layouts.ANSWER)) and (thoughts := self._reasoning()):
            branches = (Branch(answer, thoughts),)
        rank = RESPONSE if branches else NOTHING
        prompt = self._prompt()
        if not branches and (reference := self._first(name for names in layouts.REFERENCES for name in names)):
            reasoning = self._reasoning()
            # Messages with a reference and no thoughts are prompts of reinforcement learning.
            is_task = any(self._types[name] in (TURNS, OPEN) for name in prompt) and reasoning is None
            if prompt and not is_task:
                readable = self._types[reference] in (TEXT, TURNS, OPEN)
                branches, rank = (Branch(reference, reasoning),), REFERENCE if readable else NOTHING
        if branches and prompt:
            return self._answered(branches, rank, prompt)
        # A text beside its speaker is one turn of a conversation whose others are other rows.
        is_turn = any(key in self._by_lower for key in ("role", "speaker"))
        if (text := self._has(layouts.TEXT)) and not is_turn:
            return Reading(rank=BARE_TEXT, text=text)
        return Reading(prompt=prompt)

    def _is(self, published: Published) -> bool:
        if any(self._has(name) for name in published.without):
            return False
        for wanted in published.columns:
            name, _, kind = wanted.partition(":")
            column = self._has(name) if may_hold_text(name) else self._by_lower.get(name)
            if column is None or (kind == "list" and self._types[column] not in (LIST, TURNS, OPEN)):
                return False
            if kind == "text" and self._types[column] not in (TEXT, JSON):
                return False
        return not self._by_lower.get("messages_from")

    def _published(self, published: Published) -> Reading:
        if published.messages:
            return self._beside(str(self._has(published.messages)))
        if published.chat:
            return Reading(rank=CONVERSATION, chat=self._has(published.chat), system=self._system())
        prompt = (str(self._has(published.prompt or "")),)
        if published.calls:
            return Reading(rank=RESPONSE, prompt=prompt, calls=self._has(published.calls), system=self._system())
        return self._answered((Branch(str(self._has(published.response or ""))),), RESPONSE, prompt)

    def _conversation(self) -> str | None:
        if self._fields.messages:
            return self._fields.messages if self._fields.messages in self._types else None
        if self._fields.response:
            return None
        if self._by_lower.get("messages_from") and (ours := self._has("messages")):
            return ours
        for rank in layouts.CONVERSATIONS:
            # A `trajectory` or `steps` may be any text; `messages` that are none are refused.
            names = [
                name
                for name in rank
                if name in _SPOKEN or self._types.get(self._has(name) or "") in (TURNS, OPEN, JSON)
            ]
            if found := self._only(names, "conversation", "--messages-field"):
                return found
        return None

    def _beside(self, messages: str) -> Reading:
        """A conversation with what stands beside it."""
        if self._by_lower.get("messages_from") and messages == "messages":
            covered = tuple(name for name in self._types if name != messages)
            return Reading(rank=CONVERSATION, messages=messages, covered=covered)
        branches: tuple[Branch, ...] = ()
        reasoning = None
        if self._types.get(messages) == OPEN:
            branches = self._branches()
            thoughts = self._reasoning()
            if (
                not branches
                and thoughts
                and (answer := self._first(name for names in layouts.REFERENCES for name in names))
            ):
                branches = (Branch(answer, thoughts),)
        if not branches:
            reasoning = self._reasoning(layouts.REASONINGS)
        exploded = self._exploded(branches)
        return Reading(
            rank=CONVERSATION,
            messages=messages,
            system=self._system(),
            branches=branches,
            reasoning=reasoning,
            exploded=exploded,
        )

    def _answered(self, branches: tuple[Branch, ...], rank: int, prompt: tuple[str, ...]) -> Reading:
        return Reading(
            rank=rank,
            prompt=prompt,
            system=self._system(),
            history=self._only(layouts.HISTORIES, "history", "--ignore-columns"),
            branches=branches,
            exploded=self._exploded(branches),
        )

    def _exploded(self, branches: tuple[Branch, ...]) -> tuple[str, ...]:
        """The lists that are taken apart.

        Raises:
            UsageError: the list holds the steps of one completion, as in TRL's data for process rewards.
        """
        steps = next((b.response for b in branches if str(b.response).lower() == "completions"), None)
        if steps and self._types.get(steps) == LIST and "labels" in self._by_lower and not self._fields.response:
            raise UsageError(
                f"The column {steps!r} beside {self._by_lower['labels']!r} holds the steps of one completion, not several.",
                f"Join the steps in one column; or, if they are several completions: --response-field {steps}.",
            )
        given = [name for branch in branches for name in (branch.response, branch.reasoning) if name is not None]
        counting = [name for name in given if self._types.get(name) == LIST]
        counting += [root for name in given if self._types.get(root := name.partition(".")[0], "").startswith(ENTRIES)]
        if not counting:
            return ()
        named = [self._by_lower[name] for name in layouts.FOLLOWERS if name in self._by_lower]
        given = [self._fields.correct] if self._fields.correct else []
        return tuple(
            dict.fromkeys([*counting, *named, *(name for name in given if name in self._columns), *self._follow])
        )

    def _system(self) -> str | None:
        if self._fields.system:
            return self._fields.system
        return self._only(layouts.SYSTEMS, "system prompt", "--system-field")

    def _prompt(self) -> tuple[str, ...]:
        found = self._first(layouts.PROMPTS)
        given = self._fields.prompt
        if given and given in self._types and (found is None or self._fields.response):
            return (given,)
        if found is None:
            context = self._has(layouts.CONTEXT)
            return (context,) if context and self._types[context] in (TURNS, OPEN) else ()
        joined = None
        if found.lower() == "instruction":
            context = self._has(layouts.CONTEXT)
            joined = self._has("input") or (context if context and self._types[context] == TEXT else None)
        return (found, joined) if joined else (found,)

    def _reasoning(self, names: Collection[str] = layouts.REASONINGS | layouts.THOUGHTS) -> str | None:
        if self._fields.reasoning:
            return self._fields.reasoning
        text = [name for name in sorted(names) if self._types.get(self._has(name) or "") in (TEXT, LIST, JSON)]
        return self._only(text, "reasoning", "--reasoning-field")

    def _branches(self) -> tuple[Branch, ...]:
        """The generated responses."""
        if self._fields.response:
            return (Branch(self._fields.response, self._reasoning()),)
        readable = (TEXT, LIST, TURNS, OPEN)
        plain, numbered = list[str](), dict[str, list[tuple[int, str]]]()
        prefixed = dict[str, dict[str, str]]()
        for name, kind in self._types.items():
            base, number = layouts.numbered(name.lower())
            if kind.startswith(ENTRIES) and base in layouts.RESPONSES:
                plain.append(f"{name}.{kind.removeprefix(ENTRIES)}")
            if kind not in readable or (number is not None and base in layouts.REASONINGS | layouts.THOUGHTS):
                continue
            if number is not None:
                numbered.setdefault(base, []).append((number, name))
            elif base in layouts.RESPONSES:
                plain.append(name)
            elif parts := layouts.prefixed(base):
                prefixed.setdefault(parts[0], {})[parts[1]] = name
        choices: list[tuple[Branch, ...]] = [(Branch(name, self._reasoning()),) for name in plain]
        for base, members in numbered.items():
            parts = layouts.prefixed(base)
            before = {number: name for number, name in self._numbered_thoughts() if self._types[name] == TEXT}
            choices.append(
                tuple(
                    Branch(name, before.get(number), teacher=parts[0] if parts else None)
                    for number, name in sorted(members)
                )
            )
        paired = [branch for prefix, own in prefixed.items() if (branch := self._by_teacher(prefix, own))]
        alike = len({(branch.reasoning is None, branch.correct is None) for branch in paired}) == 1
        if len(paired) > 1 and alike and (paired[0].reasoning or paired[0].correct):
            choices.append(tuple(sorted(paired, key=lambda branch: str(branch.teacher))))
        else:
            choices += [(branch,) for branch in paired]
        if len(choices) > 1:
            raise AmbiguousError([str(choice[0].response) for choice in choices], "response", "--response-field")
        if choices:
            return choices[0]
        thoughts = self._first(sorted(layouts.THOUGHTS))
        return (Branch(None, thoughts),) if thoughts and self._types[thoughts] in (TEXT, LIST) else ()

    def _numbered_thoughts(self) -> Iterator[tuple[int, str]]:
        """Columns of thoughts with a number, for the responses with the same one."""
        for name in self._types:
            match = layouts.NUMBERED.fullmatch(name.lower())
            if match and match[1] in layouts.REASONINGS | layouts.THOUGHTS:
                yield int(match[2]), name

    def _by_teacher(self, prefix: str, own: Mapping[str, str]) -> Branch | None:
        """The columns of one prefix as a trajectory; None where they are none."""
        reasoning = next((own[suffix] for suffix in layouts.REASONING_SUFFIXES if suffix in own), None)
        response = next((own[suffix] for suffix in layouts.RESPONSE_SUFFIXES if suffix in own), None)
        is_family = prefix.startswith(layouts.FAMILIES)
        is_reference = response is not None and response.lower().endswith(("_solution", "_answer"))
        if response is None or (reasoning is None and (is_reference or not is_family)):
            return None
        grades = (self._by_lower.get(f"{prefix}_{word}") for word in ("correct", "grade"))
        return Branch(response, reasoning, prefix, next((name for name in grades if name), None))

    def _named(self, reading: Reading) -> Reading:
        """The reading with id, prompt id, teacher and correctness: names of the whole corpus, not of the kind."""
        fields = self._fields
        published = next((each for each in layouts.PUBLISHED if self._is(each)), None)
        together = (tuple(self._by_lower.get(name) for name in names) for names in layouts.IDS)
        ids = (fields.id,) if fields.id else tuple("+".join(names) for names in together if None not in names)  # type: ignore[arg-type]
        prompt = fields.prompt if fields.prompt and fields.prompt not in reading.prompt else None
        prompts = [published.prompt_id] if published and published.prompt_id else []
        prompt_ids = [prompt] if prompt else self._known([*prompts, *layouts.PROMPT_IDS])
        entries = [name for name in reading.exploded if self._types.get(name, "").startswith(ENTRIES)]
        own = [f"{name}.{key}" for name in entries for key in layouts.ENTRY_TEACHERS]
        teachers = (fields.teacher,) if fields.teacher else (*own, *self._known(layouts.TEACHERS), *self._paths())
        grades = [published.correct] if published and published.correct else []
        correct = (fields.correct,) if fields.correct else tuple(self._known([*layouts.CORRECT, *grades]))
        if any(branch.correct for branch in reading.branches):
            correct = (fields.correct,) if fields.correct else ()
        return replace(
            reading,
            id=ids,
            prompt_id=None if fields.prompt_by == "user" else next(iter(prompt_ids), None),
            prompt_by_user=fields.prompt_by == "user",
            teachers=teachers,
            correct=correct,
            beside_prompt=tuple(
                name
                for name in self._columns
                if reading.prompt and name.lower() in layouts.BESIDE_PROMPT and name not in reading.prompt
            ),
            tools=self._by_lower.get(layouts.TOOLS) or self._functions(reading),
            pictures=tuple(name for name in self._columns if layouts.PICTURES.fullmatch(name.lower())),
            teacher_messages=fields.teacher_messages,
        )

    def _functions(self, reading: Reading) -> str | None:
        """The column of functions, where a conversation has no tools."""
        name = self._has(layouts.FUNCTIONS)
        return name if name and reading.messages and self._types[name] in (LIST, TURNS) else None

    def _known(self, names: Iterable[str | None]) -> list[str]:
        return [self._by_lower[name] for name in names if name is not None and name in self._by_lower]

    def _paths(self) -> Iterator[str]:
        for path in layouts.TEACHER_PATHS:
            if path.partition(".")[0] in self._by_lower:
                yield path
