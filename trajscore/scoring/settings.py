"""What the manifest records of a run: every setting and model that can change a number, and the versions it ran with.

A continued run, and every shard and worker, must record the same.
"""

from __future__ import annotations

import platform
from typing import Any

from trajscore import __version__
from trajscore.corpus import Corpus
from trajscore.scores import Manifest
from trajscore.scoring.passes import Passes


def run_manifest(corpus: Corpus, passes: Passes) -> Manifest:
    """The manifest of a run with these models and settings, without parts. Loads the models."""
    options, student = passes.options, passes.student
    settings: dict[str, Any] = {
        "trajscore": __version__,
        "input": corpus.fingerprint,
        "columns": corpus.columns,
        "rows_read": corpus.rows_read,
        "trajectories": corpus.n_rows,
        **({"renamed_columns": dict(corpus.renamed)} if corpus.renamed else {}),
        **options.recorded(),
        "student": student.describe(),
        "rendering": student.renderer.describe(),
    }
    environment = {
        "python": platform.python_version(),
        "machine": platform.platform(),
        **student.load().environment(),
    }
    if passes.others:
        settings["others"] = _others(passes)
    return Manifest(
        settings=settings,
        environment=environment,
        input_columns=[corpus.renamed.get(name, name) for name in corpus.schema.names],
        rows_in=corpus.n_rows,
    )


def _others(passes: Passes) -> list[dict[str, Any]]:
    """The other models in the order in which they read."""
    if passes.takes_turns:
        passes.student.rest()
    described = []
    # From the last to the first: where models take turns, the first is the next to run and stays.
    for model in reversed(passes.others):
        described.append(model.describe())
        if passes.takes_turns and (model is not passes.others[0] or not model.shares_tokenizer):
            model.rest()
    return described[::-1]
