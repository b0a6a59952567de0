"""`python -m benchmarks.which_metric`: every metric on the shipped world and on the real student's pool, stored beside it.

    python -m benchmarks.which_metric                      # scores data/trajectories.jsonl with every flag that metrics need
    python -m benchmarks.which_metric --pool FOLDER        # reads the scores of a pool, which `make evidence` leaves in .cache

The manual's page "Which metric should I use?" is made of what is stored, see `tables`.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import trajscore as ts
from benchmarks.evidence.records import versions, write
from benchmarks.which_metric.tables import ROOT, STORED, measured

WORLD = ROOT / "data"
EXTRAS = (
    *(
        "collision",
        "tv",
        "hellinger",
        "jsd:0.1",
        "jsd:0.5",
        "jsd:0.9",
        "skew_kl:0.1",
        "skew_rkl:0.1",
        "renyi:0.5",
        "renyi:2",
    ),
    *("kl_at:2", "standardised:2", "local:4"),
)


def main() -> None:
    """Measure, and store the record."""
    asked = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    asked.add_argument("--pool", type=Path, help="scores of the real student")
    given = asked.parse_args()
    if given.pool is not None:
        write(STORED / "real.json", {**measured(given.pool), "versions": versions()})
        return
    with tempfile.TemporaryDirectory() as folder:
        models = WORLD / "models"
        ts.score(
            WORLD / "trajectories.jsonl",
            str(models / "student"),
            folder,
            teacher=str(models / "teacher"),
            extra=EXTRAS,
            unconditional=True,
            engine="hf",
        )
        write(STORED / "world.json", {**measured(folder), "versions": versions()})


if __name__ == "__main__":
    main()
