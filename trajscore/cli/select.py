"""`trajscore select` on the command line: calls `selection.select`, shows it by `selection.terminal`."""

from __future__ import annotations

import logging
from pathlib import Path

from trajscore.cli.app import Json, app, print_json, print_parts
from trajscore.cli.parameters import takes
from trajscore.selection.options import SelectOptions


@app.command()
@takes(SelectOptions)
def select(options: SelectOptions, as_json: Json = False) -> None:
    """Keep the trajectories that suit the student best.

    Order of steps: scored, metric defined, --where, --prefer, --per-prompt, then --top, --fraction or --max-tokens with
    every --quota. Ties: lower id first.
    """
    from trajscore.selection.select import select as run

    selection = run(**vars(options))
    out, decisions = options.out, options.decisions
    if as_json:
        files = {"out": out and str(out), "decisions": decisions and str(decisions)}
        print_json({**selection.to_dict(), **files})
        return
    from trajscore.display.terminal import written
    from trajscore.selection.card import CARD
    from trajscore.selection.terminal import explanation_tables, selection_tables

    print_parts(selection_tables(selection.to_dict()))
    card = Path(out).with_name(CARD) if options.card and out is not None else None
    print_parts(written(out, decisions, card))
    if selection.explanation is not None:
        print_parts(explanation_tables(selection.explanation))
    elif out is None:
        logging.getLogger("trajscore").warning("the kept rows were not written: give --out FILE")
