"""A recipe's YAML -> options of its steps, or an error that names file and line.

Read is one document of plain values without anchors, aliases and tags: what a recipe needs, and nothing that can grow.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from trajscore.errors import UsageError, did_you_mean
from trajscore.io.paths import small_bytes
from trajscore.options import Options, options_in
from trajscore.options.declaration import Declared, conformed, sequence_in
from trajscore.recipes.options import INPUTS, STEPS

_MOST_BYTES = 2**20
_DEEPEST = 12


class Recipe(NamedTuple):
    """What a recipe says.

    Attributes:
        path: the file.
        steps: each step's options by name, in the order in which they run, inputs filled in.
    """

    path: Path
    steps: Mapping[str, Options]


def read_recipe(path: str | Path) -> Recipe:
    """Read and check a recipe, all of it before anything runs.

    Raises:
        UsageError: it cannot be read, an unknown step or option, or a value that is not allowed.
    """
    file = Path(path)
    root = _root(file, _text(file))
    given: dict[str, dict[str, Any]] = {}
    lines: dict[str, int] = {}
    for name, key, node in _pairs(file, root, "the recipe"):
        if name not in STEPS:
            raise _wrong(file, key, f"no step {name!r}.", did_you_mean(name, STEPS))
        given[name] = _step(file, name, node)
        lines[name] = _line(key)
    if not given:
        raise UsageError(f"{file}: no step.", f"Name at least one of {', '.join(STEPS)}.")
    steps: dict[str, Options] = {}
    for name in STEPS:
        if name in given:
            steps[name] = _options(file, lines[name], name, _with_inputs(name, given))
    return Recipe(file, steps)


def _text(file: Path) -> str:
    try:
        return small_bytes(file, _MOST_BYTES).decode("utf-8")
    except OSError as error:
        raise UsageError(
            f"{file}: cannot be read ({error.strerror or error}).", "`trajscore run --print-example` prints a recipe."
        ) from error
    except UnicodeDecodeError as error:
        raise UsageError(f"{file}: not UTF-8 ({error.reason} at byte {error.start}).") from error


def _root(file: Path, text: str) -> yaml.Node | None:
    """The document's node."""
    try:
        depth = 0
        for event in yaml.parse(text, Loader=yaml.SafeLoader):
            if getattr(event, "anchor", None) is not None:
                raise _wrong(file, event, "anchors and aliases are not read.", "Write the value where it is needed.")
            tag = getattr(event, "tag", None)
            if tag is not None and tag != "!":
                raise _wrong(file, event, f"the tag {tag!r} is not read.", "Leave it out.")
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            if depth > _DEEPEST:
                raise _wrong(file, event, f"more than {_DEEPEST} levels.", "A recipe has steps and their options.")
        root: yaml.Node | None = yaml.compose(text, Loader=yaml.SafeLoader)
        return root
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f"{file}, line {mark.line + 1}" if mark else str(file)
        reason = getattr(error, "problem", None) or str(error).splitlines()[0]
        raise UsageError(
            f"{place}: not YAML ({reason}).", "`trajscore run --print-example` prints a recipe."
        ) from error


def _line(node: Any) -> int:
    return int(node.start_mark.line) + 1


def _wrong(file: Path, node: Any, problem: str, hint: str = "") -> UsageError:
    return UsageError(f"{file}, line {_line(node)}: {problem}", hint)


def _pairs(file: Path, node: yaml.Node | None, what: str) -> Iterator[tuple[str, yaml.Node, yaml.Node]]:
    """Keys and values of a mapping, every key a text and there once."""
    if node is None or (isinstance(node, yaml.ScalarNode) and node.tag.endswith(":null")):
        return
    if not isinstance(node, yaml.MappingNode):
        raise _wrong(file, node, f"{what} is no mapping.", "Write `name: value`, one to a line.")
    seen: dict[str, int] = {}
    for key, value in node.value:
        if not isinstance(key, yaml.ScalarNode):
            raise _wrong(file, key, "a key that is no name.", "Write `name: value`.")
        name = str(key.value)
        if name in seen:
            raise _wrong(file, key, f"{name!r} stands in line {seen[name]} already.", "Keep one of them.")
        seen[name] = _line(key)
        yield name, key, value


def _step(file: Path, step: str, node: yaml.Node) -> dict[str, Any]:
    """The values of a step by the options' names."""
    known = {name: each for name, each in options_in(STEPS[step]).items() if not each.option.python_only}
    spelt = {each.flag.removeprefix("--").replace("-", "_"): name for name, each in known.items()}
    found: dict[str, Any] = {}
    for text, key, value in _pairs(file, node, step):
        name = text.replace("-", "_")
        name = name if name in known else spelt.get(name, name)
        if name not in known:
            raise _wrong(file, key, f"{step} has no option {text!r}.", did_you_mean(text, known))
        if name in found:
            raise _wrong(file, key, f"{step} has {name!r} twice.", "Keep one of them.")
        found[name] = _value(file, f"{step}, {text}", known[name], value)
    return found


def _value(file: Path, where: str, declared: Declared, node: yaml.Node) -> Any:
    for each in _nodes(node):
        if isinstance(each, yaml.MappingNode):
            list(_pairs(file, each, where))
        elif isinstance(each, yaml.ScalarNode) and any(letter == "\0" or _is_half(letter) for letter in each.value):
            raise _wrong(file, each, f"{where}: holds {each.value!r}, which is no text.")
    try:
        value = yaml.SafeLoader("").construct_object(node, deep=True)
    except (yaml.YAMLError, ValueError) as error:
        raise _wrong(file, node, f"{where}: not a value ({error}).") from error
    if value is None:
        if declared.default is None:
            return None
        raise _wrong(file, node, f"{where}: no value.", "Leave the line out for the default.")
    try:
        return declared.checked(_typed(declared, value))
    except UsageError as error:
        problem = error.problem.removeprefix(f"{declared.flag} ")
        raise _wrong(file, node, f"{where}: {problem}", error.hint) from error
    except TypeError as error:
        raise _wrong(file, node, f"{where}: {value!r} is no text, and no list of texts.") from error


def _is_half(letter: str) -> bool:
    """Whether a character is one half of a surrogate pair, which no file and no path can hold."""
    return "\ud800" <= letter <= "\udfff"


def _nodes(node: yaml.Node) -> Iterator[yaml.Node]:
    """A node and all those in it."""
    yield node
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            yield from _nodes(key)
            yield from _nodes(value)
    elif isinstance(node, yaml.SequenceNode):
        for value in node.value:
            yield from _nodes(value)


def _typed(declared: Declared, value: Any) -> Any:
    """The value, numbers that YAML takes for text (1e-3) as numbers, and what only a command line types as such."""
    if declared.option.typed is not None and not (declared.option.parse and isinstance(value, Mapping)):
        several = sequence_in(declared.option.typed) is not None
        return list(conformed(value, declared.option.typed)) if several else conformed(value, declared.option.typed)
    for kind in (int, float):
        if isinstance(value, str) and declared.holds(kind):
            try:
                return kind(value)
            except ValueError:
                continue
    return value


def _with_inputs(step: str, given: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """A step's values, with what the steps before it write where it names no input of its own."""
    values = dict(given[step])
    if step == "report" and values.get("table") is not None:
        return values
    for name, sources in INPUTS.get(step, {}).items():
        source = next((each for each in sources if given.get(each, {}).get("out") is not None), None)
        if source is not None:
            values.setdefault(name, given[source]["out"])
    return values


def _options(file: Path, line: int, step: str, values: Mapping[str, Any]) -> Options:
    where = f"{file}, line {line}, {step}"
    for name, each in options_in(STEPS[step]).items():
        if each.required and name not in values:
            steps = INPUTS.get(step, {}).get(name, ())
            more = f" There is no step {' or '.join(steps)} before it whose `out` it could be." if steps else ""
            raise UsageError(f"{where}: no {name}.{more}", f"Add `{name}: {each.metavar}`. {each.option.help}")
    written = [name for name, each in options_in(STEPS[step]).items() if each.option.writes]
    if not any(values.get(name) is not None for name in written):
        raise UsageError(f"{where}: writes nothing.", f"Add `out: {options_in(STEPS[step])['out'].metavar}`.")
    try:
        return STEPS[step](**values)
    except UsageError as error:
        raise UsageError(f"{where}: {error.problem}", error.hint) from error
