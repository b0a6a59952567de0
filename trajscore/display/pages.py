"""What all HTML pages share: templates that escape everything, and their filters."""

from __future__ import annotations

from pathlib import Path

import jinja2

from trajscore import __version__
from trajscore.display.formatting import NONE, number, share, visible

TEMPLATES = Path(__file__).parent / "templates"


def environment() -> jinja2.Environment:
    """Templates that escape everything, with the filters that all pages share."""
    made = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters |= {"number": number, "share": share, "visible": visible, "signed": signed}
    made.globals |= {"version": __version__, "NONE": NONE}
    return made


def signed(value: float | None) -> str:
    """A correlation: two digits and its sign.

    >>> signed(0.5), signed(None)
    ('+0.50', '-')
    """
    return NONE if value is None else f"{value:+.2f}"
