"""`trajscore report` on the command line: calls `ranking.report`, shows it by `ranking.terminal`."""

from __future__ import annotations

from trajscore.cli.app import Json, app, print_json, print_parts
from trajscore.cli.parameters import takes
from trajscore.ranking.options import ReportOptions


@app.command()
@takes(ReportOptions)
def report(options: ReportOptions, as_json: Json = False) -> None:
    """Rank teachers by how well what they wrote suits the student, with intervals from a bootstrap over prompts.

    Teachers are ranked by rsr (else by the first --metric), best first; ties by name. Folders of several students give
    one ranking for each.
    """
    from trajscore.ranking.report import report as run

    result = run(**vars(options))
    if as_json:
        print_json(result.to_dict())
        return
    from trajscore.display.terminal import written
    from trajscore.ranking.terminal import report_tables

    print_parts(report_tables(result, options.all_metrics))
    print_parts(written(options.out, options.csv, options.tidy, options.figures))
