"""A command's parameters for typer, made from its class of options.

    @app.command()
    @takes(ScoreOptions)
    def score(options: ScoreOptions, as_json: Json = False) -> None: ...

Values that were not given stay out of the object, so that its defaults hold, and are checked where it is made.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Annotated, Any, TypeVar

import typer

from trajscore.options import Options, options_in
from trajscore.options.declaration import Declared, is_switch, sequence_in

Made = TypeVar("Made", bound=Options)


def takes(options: type[Made]) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Turns a function whose first parameter is an object of options into one that typer makes a command of.

    Args:
        options: the class; the function's other parameters are typer's as they are written.
    """

    def decorate(function: Callable[..., None]) -> Callable[..., None]:
        own = {name: each for name, each in options_in(options).items() if not each.option.python_only}
        _, *others = inspect.signature(function, eval_str=True).parameters.values()

        def command(**given: Any) -> None:
            values = {name: given.pop(name) for name in own}
            # typer's empty list is an option that was not given, as its None is.
            chosen = {name: value for name, value in values.items() if value is not None and value != []}
            function(options(**chosen), **given)

        parameters = [_parameter(each) for each in own.values()]
        parameters += [each.replace(kind=inspect.Parameter.KEYWORD_ONLY) for each in others]
        command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        command.__annotations__ = {each.name: each.annotation for each in parameters}
        command.__name__ = function.__name__
        command.__doc__ = function.__doc__
        command.options = options  # type: ignore[attr-defined]
        return command

    return decorate


def _parameter(declared: Declared) -> inspect.Parameter:
    kind = _typed(declared)
    default = inspect.Parameter.empty if declared.required else None
    return inspect.Parameter(
        declared.name,
        inspect.Parameter.KEYWORD_ONLY,
        default=default,
        annotation=Annotated[kind if declared.required else kind | None, _info(declared)],
    )


def _info(declared: Declared) -> Any:
    given = declared.option
    suggest = given.suggest or ((lambda: declared.choices) if declared.choices else None)
    shown: dict[str, Any] = {
        "metavar": (declared.metavar or None),
        "help": declared.help,
        "show_default": False,
        "hidden": given.hidden,
        "autocompletion": None
        if suggest is None
        else lambda incomplete: [each for each in suggest() if each.startswith(incomplete)],
    }
    kind = None if is_switch(declared) else _plain(sequence_in(declared.hint) or declared.hint)
    if declared.option.typed is None and kind in (int, float):
        shown["parser"] = _reader(kind)
    if given.positional:
        return typer.Argument(**shown)
    names = [given.flag or declared.flag]
    if is_switch(declared) and declared.default is True and given.flag is None:
        names = [f"{names[0]}/--no-{names[0].removeprefix('--')}"]
    return typer.Option(*names, rich_help_panel=given.panel, **shown)


def _reader(kind: type) -> Callable[[str], Any]:
    """Reads a number; what is none stays text, which the options refuse by name and value, as they do in Python."""

    def number(text: str) -> Any:
        try:
            return kind(text)
        except ValueError:
            return text

    return number


def _typed(declared: Declared) -> Any:
    """The type that typer reads: choices and paths are checked as text where the options are made."""
    if declared.option.typed is not None:
        return declared.option.typed
    if is_switch(declared):
        return bool
    element = sequence_in(declared.hint)
    if element is not None:
        return list[_plain(element)]  # type: ignore[misc]
    return _plain(declared.hint)


def _plain(hint: Any) -> type:
    members = getattr(hint, "__args__", (hint,)) if not isinstance(hint, type) else (hint,)
    return next((each for each in (int, float) if each in members), str)
