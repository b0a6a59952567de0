"""`trajscore doctor` on the command line: calls `viewing.doctor`, shows it by `viewing.doctor_terminal`."""

from __future__ import annotations

from trajscore.cli.app import Json, app, print_json, print_parts
from trajscore.cli.parameters import takes
from trajscore.viewing.options import DoctorOptions


@app.command()
@takes(DoctorOptions)
def doctor(options: DoctorOptions, as_json: Json = False) -> None:
    """Say what is installed, which engines can run here and what to install otherwise, and whether a chat template is safe.

    A template is safe to score where no text is lost on the way to the tokens: what is scored is what will be trained.
    """
    from trajscore.viewing.doctor import doctor as run
    from trajscore.viewing.doctor_terminal import diagnosis_tables

    found = run(**vars(options))
    if as_json:
        print_json(found.to_dict())
    else:
        print_parts(diagnosis_tables(found.to_dict()))
