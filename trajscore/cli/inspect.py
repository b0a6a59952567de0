"""`trajscore inspect` on the command line: calls `viewing.inspect`, shows it by `viewing.terminal`."""

from __future__ import annotations

from typing import Annotated

import typer

from trajscore.cli.app import Json, app, print_json, print_parts
from trajscore.cli.parameters import takes
from trajscore.viewing.options import InspectOptions

Numbers = Annotated[
    bool,
    typer.Option("--numbers", help="Print every scored token's numbers as a table, too. Default: off."),
]


@app.command()
@takes(InspectOptions)
def inspect(options: InspectOptions, numbers: Numbers = False, as_json: Json = False) -> None:
    """Show trajectories token by token, coloured by a statistic; prompt and unscored text in grey."""
    from trajscore.viewing.inspect import inspect as run

    made = run(**vars(options))
    if as_json:
        print_json(made.to_dict())
        return
    if options.out is None or numbers:
        from trajscore.viewing.terminal import token_parts

        print_parts(token_parts(made.views, made.by, numbers))
    from trajscore.display.terminal import written

    print_parts(written(options.out))
