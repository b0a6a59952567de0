"""Writes the generated parts of README.md: `python tests/helpers/generated_docs.py README.md`, or `make docs`.

A part stands between `<!-- generated: NAME -->` and `<!-- end -->`. test_readme.py fails when one is out of date.
"""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

import click
import typer.main

from tests.helpers.paths import ROOT
from trajscore.cli import app
from trajscore.exporters import EXPORTERS
from trajscore.masking.presets import MASK_PRESETS
from trajscore.masking.rules import RULES
from trajscore.masking.terminal import reads, rule_kind
from trajscore.metrics import METRICS
from trajscore.options import Preset, as_flags
from trajscore.schema import COLUMNS, STATUSES
from trajscore.selection.presets import PRESETS

_PART = re.compile(r"(<!-- generated: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)
_TREE_FOLDERS = ("trajscore", "tests", "benchmarks", "data", "notebooks")


def columns() -> str:
    """A table of every column that `score` adds."""
    lines = ["| column | type | unit | meaning |", "|---|---|---|---|"]
    for column in COLUMNS.values():
        kind = re.sub(r"\bfloat\b", "float32", str(column.dtype).replace("list<item: ", "list<"))
        asked = f" (with `{column.flag}`)" if column.flag else ""
        lines.append(
            f"| `{column.name}` | {kind} | {column.unit} | {column.meaning.replace('|', chr(92) + '|')}{asked} |"
        )
    return "\n".join(lines)


def statuses() -> str:
    """A table of every status a row can have."""
    return "\n".join(
        ["| status | meaning |", "|---|---|", *(f"| `{name}` | {text} |" for name, text in STATUSES.items())]
    )


def metrics() -> str:
    """A table of every metric."""
    lines = ["| metric | better | unit | meaning | source |", "|---|---|---|---|---|"]
    lines += [f"| `{m.name}` | {m.direction} | {m.unit} | {m.meaning} | {m.source} |" for m in METRICS.values()]
    return "\n".join(lines)


def presets() -> str:
    """A table of every preset of `select`."""
    return _presets(PRESETS.values())


def mask_presets() -> str:
    """A table of every preset of `mask`."""
    return _presets(MASK_PRESETS.values())


def _presets(table: Iterable[Preset]) -> str:
    lines = ["| preset | flags | what it does | source |", "|---|---|---|---|"]
    lines += [f"| `{p.name}` | `{as_flags(p.settings)}` | {p.meaning} | {p.source} |" for p in table]
    return "\n".join(lines)


def exporters() -> str:
    """A table of every exporter."""
    lines = ["| `--to` | trainer | written | token weights | sample weights |", "|---|---|---|---|---|"]
    for each in EXPORTERS.values():
        rows = " and ".join(each.sample_weights) or "no"
        lines.append(
            f"| `{each.name}` | {each.trainer} | {each.meaning} | {'yes' if each.token_weights else 'no'} | {rows} |"
        )
    return "\n".join(lines)


def rules() -> str:
    """A table of every rule of `mask`."""
    lines = ["| rule | what it keeps | how | reads | source |", "|---|---|---|---|---|"]
    for rule in RULES.values():
        columns = ", ".join(f"`{name}`" for name in reads(rule))
        meaning = rule.meaning.replace("|", "\\|")
        lines.append(f"| `{rule.name}` | {meaning} | {rule_kind(rule)} | {columns} | {rule.source} |")
    return "\n".join(lines)


def cli() -> str:
    """The help of every command."""
    root = typer.main.get_command(app)
    assert isinstance(root, click.Group) or hasattr(root, "commands")
    commands = [(name, *sub) for name, command in root.commands.items() for sub in ((), *_below(command))]
    return "\n\n".join(_help(words) for words in commands)


def _below(command: object) -> list[tuple[str]]:
    """Commands of a group."""
    return [(name,) for name in getattr(command, "commands", {})]


def _help(words: tuple[str, ...]) -> str:
    page = subprocess.run(
        [sys.executable, "-m", "trajscore", *words, "--help"],
        capture_output=True, text=True, check=True, env={"COLUMNS": "100", "PATH": "/usr/bin:/bin", "NO_COLOR": "1"},
    ).stdout.rstrip()  # fmt: skip
    body = "\n".join(line.rstrip() for line in page.split("\n"))
    name = " ".join(words)
    return f"<details><summary><code>trajscore {name} --help</code></summary>\n\n```text\n{body}\n```\n\n</details>"


def tree() -> str:
    """Every file with what it says it is."""
    lines = []
    for folder in _TREE_FOLDERS:
        for path in sorted((ROOT / folder).rglob("*.py"), key=lambda p: (p.parent.as_posix(), p.name)):
            docstring = ast.get_docstring(ast.parse(path.read_text("utf-8"))) or ""
            first = re.split(r"(?<=[.:])\s", " ".join(docstring.split()))[0].rstrip(".:")
            lines.append(f"{path.relative_to(ROOT).as_posix():<42} {first}")
    return "```text\n" + "\n".join(lines) + "\n```"


PARTS: dict[str, Callable[[], str]] = {
    "columns": columns,
    "statuses": statuses,
    "metrics": metrics,
    "presets": presets,
    "mask_presets": mask_presets,
    "exporters": exporters,
    "rules": rules,
    "cli": cli,
    "tree": tree,
}


def regenerate(text: str) -> str:
    """The text with every generated part made anew."""
    return _PART.sub(lambda match: f"{match[1]}{PARTS[match[2]]()}\n{match[3]}", text)


if __name__ == "__main__":
    readme = Path(sys.argv[1])
    readme.write_text(regenerate(readme.read_text("utf-8")), "utf-8")
