"""`trajscore slurm`: what it prints. The options are those of `scoring.options`."""

from __future__ import annotations

from typing import Any

import typer

from trajscore.cli.app import app
from trajscore.cli.parameters import takes
from trajscore.display.writer import OUT
from trajscore.errors import UsageError
from trajscore.scoring.options import SlurmOptions


@app.command(context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False})
@takes(SlurmOptions)
def slurm(options: SlurmOptions) -> None:
    """Print a Slurm array script that scores a corpus in shards.

    Example: trajscore slurm --shards 16 --sbatch time=8:00:00 -- data/*.parquet --student M --out scores > score.sh
    """
    from trajscore.scoring.slurm import slurm_script

    given = _parsed(list(options.arguments))
    if given["shard"] or given["ray"] is not None:
        raise UsageError("slurm: --shard and --ray are not for a script of shards.", "Leave them out.")
    if given["overwrite"] or given["dry_run"]:
        flag = "--overwrite" if given["overwrite"] else "--dry-run"
        raise UsageError(
            f"slurm: {flag} is not for a script of shards, whose tasks continue where they stopped when they run again.",
            "Choose a new --out, or delete the old one first."
            if given["overwrite"]
            else "Run `trajscore score` with it.",
        )
    used = (given["tensor_parallel_size"] or 1) * (given["data_parallel_size"] or 1)
    script = slurm_script(
        options.arguments,
        given["out"],
        options.shards,
        gpus=used if options.gpus is None else options.gpus,
        sbatch=options.sbatch,
    )
    if not all(line.isprintable() for line in script.split("\n")):
        raise UsageError(
            "slurm: a path or an option holds a control character, which no script can be printed with.", "Rename it."
        )
    OUT.line(script.removesuffix("\n"))


def _parsed(arguments: list[str]) -> dict[str, Any]:
    """The options of `trajscore score`, read as that command will read them, so that a mistake shows now."""
    command: Any = typer.main.get_command(app)
    score = command.commands["score"]
    with score.make_context("trajscore score", list(arguments)) as context:
        return dict(context.params)
