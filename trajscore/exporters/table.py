"""The table of exporters, one file per trainer.

To add one: a file with a subclass of `Exporter`, an instance in `EXPORTERS`, its name in the metavar of `to` in `options`, and
its trainer's loader in `integrations`. The tests over the table then cover it.
"""

from __future__ import annotations

from trajscore.errors import UsageError, did_you_mean
from trajscore.exporters.axolotl import Axolotl
from trajscore.exporters.base import Conversation, Exporter, Form, Plan, Trained
from trajscore.exporters.distillkit import DistillKit
from trajscore.exporters.llamafactory import LlamaFactory
from trajscore.exporters.skyrl import SkyRL
from trajscore.exporters.trl import Trl
from trajscore.exporters.verl import Verl

__all__ = ["EXPORTERS", "Conversation", "Exporter", "Form", "Plan", "Trained", "find"]

EXPORTERS: dict[str, Exporter] = {
    each.name: each for each in (Trl(), LlamaFactory(), Axolotl(), Verl(), SkyRL(), DistillKit())
}
"""Every exporter by name."""


def find(name: str) -> Exporter:
    """The exporter of that name.

    Raises:
        UsageError: there is none.

    >>> find("trl").trainer
    'TRL'
    """
    if name not in EXPORTERS:
        raise UsageError(f"--to {name}: no such exporter.", did_you_mean(name, EXPORTERS))
    return EXPORTERS[name]
