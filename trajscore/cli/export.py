"""`trajscore export` on the command line: calls `exporters.export`, shows it by `exporters.terminal`."""

from __future__ import annotations

import typer

from trajscore.cli.app import EXIT_FAILED, Json, app, print_json, print_parts
from trajscore.cli.parameters import takes
from trajscore.exporters.options import ExportOptions


@app.command()
@takes(ExportOptions)
def export(options: ExportOptions, as_json: Json = False) -> None:
    """Write what a trainer reads: data, configuration and the next command.

    A selection is written as conversations, a mask as tokens with labels. Weights that the trainer cannot take are refused.
    """
    from trajscore.exporters.export import export as run

    done = run(**vars(options))
    if as_json:
        print_json(done.to_dict())
    else:
        from trajscore.exporters.terminal import export_lines

        print_parts(export_lines(done.to_dict()))
    if done.check is not None and not done.check.passed:
        raise typer.Exit(EXIT_FAILED)
