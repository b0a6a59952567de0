"""What all commands share: the app, errors and exit codes, logging, printing. It knows typer and no command.

stdout carries a command's product (tables, or with --json exactly one object); logs, warnings and errors go to stderr.
Exit codes: 0 done, 1 failed, 2 wrong usage, 3 finished with too many refused rows, 130 interrupted. Workflows are
imported inside their command, so that `--help` and `--version` are quick and no command loads what another needs.
"""

from __future__ import annotations

import errno
import logging
import os
import sys
import threading
from collections.abc import Callable, Iterable
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import orjson
import typer

from trajscore import __version__
from trajscore.cli.help import Command, Group
from trajscore.display.formatting import visible_lines
from trajscore.errors import TrajscoreError, UsageError

if TYPE_CHECKING:
    from rich.console import Console, RenderableType


EXIT_FAILED = 1
EXIT_TOO_MANY_REFUSED = 3
EXIT_INTERRUPTED = 130
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


_interrupted = threading.Event()


def interrupt(number: int, frame: FrameType | None) -> None:
    """What a signal to stop does."""
    _interrupted.set()
    raise KeyboardInterrupt


_WrongUsage: Any = typer.BadParameter.__mro__[1]
"""What typer raises for an option or a value that it does not know; it has no name of its own in typer."""


class _Commands(Group):
    """Turns what went wrong into a message and an exit code, for every command alike."""

    def invoke(self, ctx: Any) -> Any:
        try:
            try:
                return super().invoke(ctx)
            finally:
                sys.stdout.flush()
        except typer.Exit:
            raise
        except _WrongUsage as wrong:
            # Without arguments typer shows the help, by way of an error.
            if type(wrong).__name__ == "NoArgsIsHelpError":
                raise
            hint = f"See `{wrong.ctx.command_path} -h`." if wrong.ctx else ""
            _print_error(TrajscoreError(wrong.format_message(), hint))
            raise typer.Exit(UsageError.exit_code) from None
        except (KeyboardInterrupt, Exception) as error:
            # Some libraries turn an interruption into errors of their own.
            if isinstance(error, KeyboardInterrupt) or _interrupted.is_set():
                sys.stderr.write("interrupted\n")
                raise typer.Exit(EXIT_INTERRUPTED) from None
            self._fail(error)

    def _fail(self, error: Exception) -> NoReturn:
        try:
            raise error
        except TrajscoreError as known:
            _print_error(known)
            raise typer.Exit(known.exit_code) from None
        except BrokenPipeError:
            _drop_stdout()  # the reader has left (`| head`)
            raise typer.Exit(EXIT_FAILED) from None
        except OSError as full:
            if full.errno not in _NO_ROOM:
                raise
            _drop_stdout()
            _print_error(TrajscoreError(f"cannot write ({full.strerror}).", "Free some space, then run it again."))
            raise typer.Exit(EXIT_FAILED) from None


def _drop_stdout() -> None:
    """Throw away what stdout still holds, so that it is not flushed again when Python exits."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


class Commands(typer.Typer):
    """A group of commands, each of which shows its help as `trajscore.cli.help` lays it out."""

    def command(  # type: ignore[override]
        self, name: str | None = None, *, cls: type[Any] | None = None, **facts: Any
    ) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
        return super().command(name, cls=cls or Command, **facts)


app = Commands(
    cls=_Commands,
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    help="Score reasoning trajectories under the model you train, select by the scores, report on the teachers.",
)
lists = Commands(
    cls=Group, no_args_is_help=True, rich_markup_mode="rich", help="What can be named on the command line."
)
app.add_typer(lists, name="list")

Json = Annotated[
    bool,
    typer.Option(
        "--json",
        rich_help_panel="Output",
        help="Print one JSON object on stdout and nothing else. Default: off.",
    ),
]
MetricsFile = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE", help="Python file with more metrics, METRICS = [Metric(...), ...]; run. Default: none."
    ),
]


@app.callback()
def _root(
    version: Annotated[bool, typer.Option("--version", is_eager=True, help="Print the version and exit.")] = False,
) -> None:
    _log_to_stderr()
    if version:
        typer.echo(f"trajscore {__version__}")
        raise typer.Exit


# `trajscore` alone prints help; `--version` alone must reach the callback, hence no command is required.
app.info.invoke_without_command = True


def _console(stderr: bool = False) -> Console:
    from rich.console import Console

    # markup and highlighting off: text of data sets goes through here.
    return Console(stderr=stderr, markup=False, highlight=False, emoji=False, soft_wrap=False)


def print_parts(parts: Iterable[RenderableType]) -> None:
    """Print tables and lines on stdout, one after the other."""
    console = _console()
    for part in parts:
        console.print(part)


def print_json(value: dict[str, Any]) -> None:
    """Print the one object that `--json` promises on stdout."""
    sys.stdout.write(orjson.dumps(value, option=orjson.OPT_INDENT_2).decode() + "\n")
    sys.stdout.flush()


def _print_error(error: TrajscoreError) -> None:
    # Both may hold text of a data set or names of files, of which control characters could do anything to a terminal.
    sys.stderr.write(f"error: {visible_lines(error.problem)}\n")
    if error.hint:
        sys.stderr.write(f"hint: {visible_lines(error.hint)}\n")


def _log_to_stderr() -> None:
    """Log to stderr. Once only: a second command in the same process must not print each line twice."""
    from rich.logging import RichHandler

    class Handler(RichHandler):
        def render_message(self, record: logging.LogRecord, message: str) -> Any:
            return super().render_message(record, visible_lines(message))

    log = logging.getLogger("trajscore")
    for handler in [each for each in log.handlers if isinstance(each, RichHandler)]:
        log.removeHandler(handler)
    log.addHandler(Handler(console=_console(stderr=True), show_time=False, show_path=False, markup=False))
    log.setLevel(logging.INFO)
