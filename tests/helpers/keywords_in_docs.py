"""For the manual's page on Python: a function made by `keywords_of` is shown with the keywords that it takes.

The page is made by reading the source, where such a function has one parameter, its options; Python itself knows the rest.
"""

from __future__ import annotations

import importlib
import inspect
from typing import Any

import griffe


class Keywords(griffe.Extension):
    """Replaces parameters and docstring by those that the function has when it is imported."""

    def on_function(self, *, func: griffe.Function, **kwargs: Any) -> None:
        """Called for every function that is read."""
        if not any(str(each.value).startswith("keywords_of(") for each in func.decorators):
            return
        made = getattr(importlib.import_module(func.module.path), func.name)
        func.parameters = griffe.Parameters(
            *(
                griffe.Parameter(
                    each.name,
                    annotation=str(each.annotation),
                    kind=getattr(griffe.ParameterKind, each.kind.name.lower()),
                    default=None if each.default is inspect.Parameter.empty else _shown(each.default),
                )
                for each in inspect.signature(made).parameters.values()
            )
        )
        func.docstring = griffe.Docstring(inspect.getdoc(made) or "", parent=func)


def _shown(value: object) -> str:
    return repr(value) if isinstance(value, str | int | float | bool | tuple | None) else "..."
