"""The README as a package index shows it, made when the package is built: there, links and pictures need whole addresses."""

from __future__ import annotations

import re
import runpy
from pathlib import Path
from typing import Any

from hatchling.metadata.plugin.interface import MetadataHookInterface

# A picture or a link whose target is a file of the repository: not https:, not mailto:, not a place on the same page.
_PICTURE = re.compile(r"!\[([^]]*)\]\((?![a-z]+:|#)([^)]+)\)")
_LINK = re.compile(r"(?<!!)\[([^]]+)\]\((?![a-z]+:|#)([^)]+)\)")


def readme_for_index(text: str, url: str | None, tag: str) -> str:
    """The README with whole addresses, those of a tag; without a URL, pictures are their captions and links their words."""
    if url is None:
        return _LINK.sub(r"\1", _PICTURE.sub(r"*\1*", text))
    return _LINK.sub(rf"[\1]({url}/blob/{tag}/\2)", _PICTURE.sub(rf"![\1]({url}/raw/{tag}/\2)", text))


class ProjectMetadata(MetadataHookInterface):
    """Fields of the package's metadata that depend on the one constant for the project's URL."""

    def update(self, metadata: dict[str, Any]) -> None:
        """Set `readme` and, where there is a URL, `urls`."""
        root = Path(self.root)
        url = runpy.run_path(str(root / "trajscore" / "_project.py"))["URL"]
        text = readme_for_index((root / "README.md").read_text("utf-8"), url, f"v{metadata['version']}")
        metadata["readme"] = {"content-type": "text/markdown", "text": text}
        metadata["urls"] = (
            {"Repository": url, "Issues": f"{url}/issues", "Changelog": f"{url}/blob/main/CHANGELOG.md"} if url else {}
        )
