"""`trajscore trace` on the command line: calls `viewing.trace`, shows it by `viewing.trace_terminal`."""

from __future__ import annotations

from trajscore.cli.app import Json, app, print_json, print_parts
from trajscore.cli.parameters import takes
from trajscore.viewing.options import TraceOptions


@app.command()
@takes(TraceOptions)
def trace(options: TraceOptions, as_json: Json = False) -> None:
    """Tell which model every sentence comes from, by the probabilities that models give it.

    With a distilled model in the scores: shared, teacher, student, boosted. Without: common, teacher, student.
    """
    from trajscore.viewing.trace import trace as run

    tracing = run(**vars(options))
    if as_json:
        print_json({**tracing.to_dict(), "out": options.out and str(options.out)})
        return
    from trajscore.display.terminal import written
    from trajscore.viewing.trace_terminal import tracing_tables

    print_parts(tracing_tables(tracing.to_dict()))
    print_parts(written(options.out))
