"""`trajscore doctor`: its options and what it prints."""

from __future__ import annotations

from typing import Annotated

import typer

from trajscore.cli.app import Json, app, print_json, print_parts


@app.command("doctor")
def doctor(
    student: Annotated[
        str | None,
        typer.Option(metavar="MODEL", help="Also say what its chat template does to conversations. Default: none."),
    ] = None,
    chat_template: Annotated[
        str | None,
        typer.Option(metavar="FILE|MODEL", help="Template in place of the student's own. Default: its own."),
    ] = None,
    trust_remote_code: Annotated[
        bool, typer.Option("--trust-remote-code", help="Run code that comes with the model. Default: off.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Say what is installed, which engines can run here and what to install otherwise, and whether a chat template is safe.

    A template is safe to score where no text is lost on the way to the tokens: what is scored is what will be trained.
    """
    from trajscore.viewing.doctor import doctor as run
    from trajscore.viewing.doctor_terminal import diagnosis_tables

    found = run(student, chat_template=chat_template, trust_remote_code=trust_remote_code)
    if as_json:
        print_json(found.to_dict())
    else:
        print_parts(diagnosis_tables(found.to_dict()))
