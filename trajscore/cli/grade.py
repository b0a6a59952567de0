"""`trajscore grade` on the command line: calls `skills.commands.grade`, shows it by `skills.commands.terminal`."""

from __future__ import annotations

from trajscore.cli.app import Json, app, print_json, print_parts
from trajscore.cli.parameters import takes
from trajscore.skills.options import GradeOptions


@app.command()
@takes(GradeOptions)
def grade(options: GradeOptions, as_json: Json = False) -> None:
    """Make the column `correct`: whether each response's final answer is the reference.

    Letters of choices, numbers, expressions (math-verify) and exact texts are compared; what is not clear is undecided.
    """
    from trajscore.display.terminal import written
    from trajscore.skills.commands.grade import grade as run
    from trajscore.skills.commands.terminal import grading_lines

    found = run(**vars(options)).to_dict()
    if as_json:
        print_json({**found, "out": str(options.out)})
        return
    print_parts(grading_lines(found))
    print_parts(written(options.out))
