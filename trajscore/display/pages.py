"""What all HTML pages share: templates that escape everything, and their filters."""

from __future__ import annotations

import base64
import hashlib
from pathlib import Path

import jinja2
from markupsafe import Markup

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


def script(name: str) -> tuple[Markup, str]:
    """A script of ours for a page that allows no other, and the hash by which its content security policy knows it."""
    code = (TEMPLATES / name).read_text("utf-8").strip()
    digest = base64.b64encode(hashlib.sha256(code.encode()).digest()).decode()
    return Markup(code), digest  # noqa: S704 - a file of ours


def signed(value: float | None) -> str:
    """A correlation: two digits and its sign.

    >>> signed(0.5), signed(None)
    ('+0.50', '-')
    """
    return NONE if value is None else f"{value:+.2f}"
