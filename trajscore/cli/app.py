"""What all commands share: the app, errors and exit codes, logging, printing.

stdout carries a command's product (tables, or with --json exactly one object); logs, warnings and errors go to stderr.
Exit codes: 0 done, 1 failed, 2 wrong usage, 3 finished with too many refused rows, 130 interrupted. Workflows are
imported inside their command, so that `--help` and `--version` are quick and no command loads what another needs.
"""

from __future__ import annotations

import errno
import os
import sys
import warnings
from collections.abc import Callable
from typing import Annotated, Any, NoReturn

import typer

from trajscore import __version__, interruptions
from trajscore.cli.help import Command, Group
from trajscore.display.writer import ERR, OUT, guarded_streams
from trajscore.errors import TrajscoreError, UsageError

EXIT_FAILED = 1
EXIT_TOO_MANY_REFUSED = 3
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


_WrongUsage: Any = typer.BadParameter.__mro__[1]
"""What typer raises for an option or a value that it does not know; it has no name of its own in typer."""


class _Commands(Group):
    """Turns what went wrong into a message and an exit code, for every command alike."""

    def main(self, *args: Any, **kwargs: Any) -> Any:
        with guarded_streams():
            return super().main(*args, **kwargs)

    def invoke(self, ctx: Any) -> Any:
        try:
            interruptions.command_runs()
            try:
                return super().invoke(ctx)
            finally:
                OUT.flush()
                interruptions.command_has_ended()
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
            if isinstance(error, KeyboardInterrupt) or interruptions.interrupted():
                ERR.line("interrupted")
                raise typer.Exit(interruptions.EXIT_INTERRUPTED) from None
            self._fail(error)

    def _fail(self, error: Exception) -> NoReturn:
        try:
            raise error
        except TrajscoreError as known:
            _print_error(known)
            raise typer.Exit(known.exit_code) from None
        except BrokenPipeError:
            OUT.discard()  # the reader has left (`| head`)
            raise typer.Exit(EXIT_FAILED) from None
        except OSError as system:
            if system.errno in _NO_ROOM:
                OUT.discard()
                _print_error(
                    TrajscoreError(f"cannot write ({system.strerror}).", "Free some space, then run it again.")
                )
            elif isinstance(system.filename, str) and system.strerror:
                # No bug, but a file that nobody foresaw: a name too long, a folder in its place, a disk that fails.
                _print_error(
                    TrajscoreError(f"{system.filename}: {system.strerror}.", "Check the path and its permissions.")
                )
            else:
                raise
            raise typer.Exit(EXIT_FAILED) from None


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


@app.callback()
def _root(
    version: Annotated[bool, typer.Option("--version", is_eager=True, help="Print the version and exit.")] = False,
) -> None:
    ERR.log_here("trajscore")
    _quiet_libraries()
    if version:
        OUT.line(f"trajscore {__version__}")
        raise typer.Exit


def _quiet_libraries() -> None:
    """Keep warnings of libraries, meant for who calls them, from the terminal; PYTHONWARNINGS=default brings them back."""
    if not sys.warnoptions:
        warnings.simplefilter("ignore")
        os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
        # Torch reads it when it is imported; vLLM's start on a CPU warns through it.
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")


# `trajscore` alone prints help; `--version` alone must reach the callback, hence no command is required.
app.info.invoke_without_command = True


def without_models() -> None:
    """Spare this command the libraries of models, of which it needs the tokenizers alone."""
    if interruptions.is_command():
        from trajscore.rendering.tokenizer import tokenizers_alone

        tokenizers_alone()


print_parts = OUT.parts
print_json = OUT.json


def _print_error(error: TrajscoreError) -> None:
    ERR.line(f"error: {error.problem}")
    if error.hint:
        ERR.line(f"hint: {error.hint}")
