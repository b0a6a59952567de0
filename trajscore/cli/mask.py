"""`trajscore mask` on the command line: calls `masking.mask`, shows it by `masking.terminal`."""

from __future__ import annotations

import logging

from trajscore.cli.app import Json, app, print_json, print_parts
from trajscore.cli.parameters import takes
from trajscore.masking.options import MaskOptions


@app.command()
@takes(MaskOptions)
def mask(options: MaskOptions, as_json: Json = False) -> None:
    """Decide which tokens are trained on, and write them as labels.

    Each row gets input_ids and labels: the token where there is loss, -100 elsewhere, unshifted; and loss_weight if the rule
    is soft.
    """
    from trajscore.masking.mask import mask as run

    masking = run(**vars(options))
    if as_json:
        print_json({**masking.to_dict(), "out": options.out and str(options.out)})
        return
    from trajscore.display.terminal import written
    from trajscore.masking.terminal import masking_lines

    print_parts(masking_lines(masking.to_dict()))
    print_parts(written(*([options.out] if masking.stages is None else [each["out"] for each in masking.stages])))
    if options.out is None:
        logging.getLogger("trajscore").warning("the masked rows were not written: give --out FILE")
