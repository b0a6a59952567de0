"""Prompt files: found, checked, filled. Only `{{field}}` is replaced, once: text of data sets goes in as it is and is never
read as a template itself.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path

from trajscore.errors import UsageError

FIELDS: dict[str, tuple[str, ...]] = {
    "name_skills": ("question", "solution"),
    "merge_skills": ("subject", "skills", "size"),
    "label": ("skills", "question", "solution"),
    "diagnose": ("skills", "question", "response"),
    "propose": ("skill", "seeds", "number"),
    "solve": ("question",),
}
"""Prompt -> the fields that its file may use."""

_NEEDED = {
    "name_skills": ("question",),
    "merge_skills": ("skills",),
    "label": ("skills", "question"),
    "diagnose": ("skills", "question", "response"),
    "propose": ("skill", "seeds"),
    "solve": ("question",),
}
_FIELD = re.compile(r"\{\{\s*(\w+)\s*\}\}")
_OWN = Path(__file__).parent / "prompts"


@dataclass(frozen=True)
class Prompt:
    """One prompt.

    Attributes:
        name: a key of `FIELDS`.
        text: the template.
        version: changes when the template's text changes.
    """

    name: str
    text: str
    version: str

    def fill(self, **values: str) -> str:
        """The template with its fields replaced, in one pass: what is put in is not searched for fields again.

        >>> Prompt("solve", "Solve: {{question}}", "").fill(question="{{question}} {x}")
        'Solve: {{question}} {x}'
        """
        return _FIELD.sub(lambda match: values[match[1]], self.text)


def read_prompt(name: str, folder: str | Path | None = None) -> Prompt:
    """A prompt from the user's folder (`NAME.md`), else the package's own.

    Raises:
        UsageError: the folder does not exist, or the file uses an unknown field or lacks a needed one.
    """
    if folder is not None and not Path(folder).is_dir():
        raise UsageError(f"--prompts {folder}: no such folder.", f"Give a folder with any of {_files()}.")
    own = None if folder is None else Path(folder) / f"{name}.md"
    path = own if own is not None and own.is_file() else _OWN / f"{name}.md"
    try:
        text = path.read_text("utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path}: cannot be read ({error}).", "Prompts are UTF-8 text.") from error
    used = set(_FIELD.findall(text))
    for field in sorted(used - set(FIELDS[name])):
        raise UsageError(f"{path}: the field {field!r} is unknown.", f"Known here: {', '.join(FIELDS[name])}.")
    for field in _NEEDED[name]:
        if field not in used:
            raise UsageError(
                f"{path}: the field {{{{{field}}}}} is missing.", "The annotator would not see it: put it in."
            )
    return Prompt(name, text, hashlib.sha256(text.encode()).hexdigest()[:12])


def _files() -> str:
    return ", ".join(f"{name}.md" for name in FIELDS)
