"""A script that scores a corpus as a Slurm job array, a shard per task."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence

from trajscore.errors import UsageError

_DIRECTIVE = re.compile(r"[a-z][a-z-]*(=[^\n\r]*)?")

_SCRIPT = """\
#!/bin/bash
# Submit it, and let the shards be joined once all of them are finished:
#   job=$(sbatch --parsable THIS_FILE)
#   sbatch --dependency=afterok:$job --wrap {merge}
# A task that fails or is preempted continues where it stopped when it is run again.
{directives}
# Activate the environment that has trajscore here, unless it is on the path already.

status=0
{score} --shard "$SLURM_ARRAY_TASK_ID/{shards}" || status=$?
# 3: many rows of this shard were refused. What that means for the whole corpus, the merge says.
if [ "$status" -eq 3 ]; then status=0; fi
exit "$status"
"""


def slurm_script(arguments: Sequence[str], out: str, shards: int, *, gpus: int = 1, sbatch: Sequence[str] = ()) -> str:
    """A Slurm array script.

    Args:
        arguments: what follows `trajscore score` on the command line, without `--shard`.
        out: the folder among them.
        shards: tasks of the array.
        gpus: per task; 0 for none.
        sbatch: further directives without their dashes, such as `time=8:00:00`; they replace those of the same name.

    Returns:
        The script's text.

    Raises:
        UsageError: fewer than one shard, or not a directive.

    >>> script = slurm_script(["a.jsonl", "--student", "m", "--out", "s"], "s", 2, sbatch=["time=1:00:00"])
    >>> print(next(line for line in script.splitlines() if "--array" in line))
    #SBATCH --array=0-1
    """
    if shards < 1:
        raise UsageError(f"--shards {shards}: at least 1 is needed.")
    if gpus < 0:
        raise UsageError(f"--gpus {gpus}: 0 or more is needed.")
    given = dict[str, str]()
    for text in [
        "job-name=trajscore",
        f"array=0-{shards - 1}",
        "output=trajscore-%A_%a.log",
        "open-mode=append",
        "requeue",
    ]:
        given[text.partition("=")[0]] = text
    if gpus:
        given["gpus-per-task"] = f"gpus-per-task={gpus}"
        given["ntasks"] = "ntasks=1"
    for text in sbatch:
        if not _DIRECTIVE.fullmatch(text):
            raise UsageError(
                f"--sbatch {text!r}: not a directive.", "Give NAME=VALUE without dashes, e.g. time=8:00:00."
            )
        given[text.partition("=")[0]] = text
    return _SCRIPT.format(
        merge=shlex.quote(shlex.join(["trajscore", "merge", out])),
        directives="\n".join(f"#SBATCH --{text}" for text in given.values()),
        score=shlex.join(["trajscore", "score", *arguments]),
        shards=shards,
    )
