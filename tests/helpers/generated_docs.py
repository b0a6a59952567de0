"""Writes what the manual takes from the code: `python -m tests.helpers.generated_docs`, or `make docs`.

Pages of commands and of Python are written whole. In the other pages a part stands between `<!-- generated: NAME -->` and
`<!-- end -->`, in mkdocs.yml between `# generated: NAME` and `# end`. tests/docs fails when one is out of date.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import typer.main

import trajscore
from benchmarks.evidence import tables as evidence
from benchmarks.which_metric import tables as which_metric
from tests.helpers.paths import ROOT
from tests.house.test_architecture import LINES
from trajscore.cli import app
from trajscore.corpus import layouts as corpus_layouts
from trajscore.exporters.table import EXPORTERS
from trajscore.masking.presets import MASK_PRESETS, needs_mask
from trajscore.masking.rules import RULES
from trajscore.masking.terminal import reads, rule_kind
from trajscore.metrics import METRICS
from trajscore.options import Preset, as_flags
from trajscore.schema import COLUMNS, STATUSES, flags_for
from trajscore.selection.presets import PRESETS, needs

DOCS = ROOT / "docs"
_PART = re.compile(r"((?:<!--|#) generated: (\w+)(?: -->)?\n).*?( *(?:<!--|#) end(?: -->)?)", re.DOTALL)


def _table(heads: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """A Markdown table; a bar inside a cell is written as an entity, which every renderer knows, also inside code."""
    lines = [tuple(heads), *(tuple(row) for row in rows)]
    head, *body = (f"| {' | '.join(_cell(each) for each in line)} |" for line in lines)
    return "\n".join((head, "|---" * len(lines[0]) + "|", *body))


def _cell(text: str) -> str:
    parts = re.split(r"(`[^`]*`)", text.replace("\n", " "))
    return "".join(_code(each) if each.startswith("`") else _entities(each) for each in parts)


def _code(span: str) -> str:
    return f"<code>{_entities(span.strip('`'))}</code>" if "|" in span else span


def _entities(text: str) -> str:
    return text.replace("<", "&lt;").replace("|", "&#124;")


def columns() -> str:
    """Every column that `score` can add."""
    rows = []
    for column in COLUMNS.values():
        kind = re.sub(r"\bfloat\b", "float32", str(column.dtype).replace("list<item: ", "list<"))
        asked = f" (with `{column.flag}`)" if column.flag else ""
        rows.append((f"`{column.name}`", f"`{kind}`", column.unit, column.meaning + asked))
    return _table(("column", "type", "unit", "meaning"), rows)


def layouts() -> str:
    """The names of columns by role."""
    table = corpus_layouts
    prefixed = [f"TEACHER_{suffix}" for suffix in table.RESPONSE_SUFFIXES]
    roles = {
        "conversation": [name for rank in table.CONVERSATIONS for name in rank],
        "response": [*sorted(table.RESPONSES | table.THOUGHTS), *prefixed],
        "thoughts before the response": [
            *sorted(table.REASONINGS),
            *(f"TEACHER_{s}" for s in table.REASONING_SUFFIXES),
        ],
        "reference": [name for rank in table.REFERENCES for name in rank],
        "never scored": sorted(table.NEVER),
        "prompt": [*table.PROMPTS],
        "system prompt": [*table.SYSTEMS],
        "earlier turns": table.HISTORIES,
        "what a prompt of text must hold": sorted(table.BESIDE_PROMPT),
        "tools": [table.TOOLS, table.FUNCTIONS],
        "arguments of the chat template": [table.TEMPLATE_KWARGS],
        "bare text": [table.TEXT],
        "token ids of prompt and response": [*table.WHOLE_IDS],
        "token ids of the prompt": [*table.PROMPT_IDS_APART],
        "token ids of the response": [*table.COMPLETION_IDS],
        "what of them is trained on": [*table.MASKS, table.RESPONSE_LENGTH],
        "padding of token ids": [table.PADDING, table.PROMPT_PADDING],
        "the sampler's log-probabilities": [*table.SAMPLER],
        "teacher": [*table.TEACHERS, *table.TEACHER_PATHS],
        "id of the row": [" + ".join(names) for names in table.IDS],
        "id of the prompt": [*table.PROMPT_IDS],
        "correct": [*table.CORRECT],
        "role of a turn": [*table.ROLE_KEYS],
        "text of a turn": [*table.CONTENT_KEYS],
        "thoughts of a turn": [*table.REASONING_KEYS],
        "weight of a turn": [*table.WEIGHT_KEYS],
    }
    return _table(
        ("role", "columns or keys"), ((role, ", ".join(f"`{n}`" for n in names)) for role, names in roles.items())
    )


def published() -> str:
    """Data sets that need more than the names of their columns."""
    rows = []
    for each in corpus_layouts.PUBLISHED:
        facts = {
            key: value for key, value in asdict(each).items() if value and key not in ("name", "columns", "without")
        }
        known = ", ".join(f"`{name}`" for name in each.columns)
        rows.append(
            (each.name, known, ", ".join(f"{key.replace('_', ' ')}: `{value}`" for key, value in facts.items()))
        )
    return _table(("data set", "known by", "read as"), rows)


def statuses() -> str:
    """Every status that a row can have."""
    return _table(("status", "meaning"), ((f"`{name}`", text) for name, text in STATUSES.items()))


def metrics() -> str:
    """Every metric."""
    rows = (
        (f"`{m.name}`", m.direction or "none", m.kind, m.unit, m.meaning, _parameters(m), _needed(m.columns), m.source)
        for m in METRICS.values()
    )
    return _table(("metric", "better", "depends on the", "unit", "meaning", "parameters", "needs", "source"), rows)


def _parameters(named: Any) -> str:
    return " ".join(each.sentence for each in named.parameters)


def _needed(columns: Iterable[str]) -> str:
    return ", ".join(f"`{flag}`" if flag.startswith("-") else flag for flag in flags_for(columns))


def presets() -> str:
    """Every preset of `select`."""
    return _presets(PRESETS.values(), needs)


def mask_presets() -> str:
    """Every preset of `mask`."""
    return _presets(MASK_PRESETS.values(), needs_mask)


def _presets(table: Iterable[Preset], needs_of: Callable[[Preset], list[str]]) -> str:
    rows = (
        (
            f"`{p.name}`",
            f"`{as_flags(p.settings)}`",
            p.meaning,
            ", ".join(f"`{each}`" for each in needs_of(p)),
            p.source,
        )
        for p in table
    )
    return _table(("preset", "flags", "what it does", "needs", "source"), rows)


def exporters() -> str:
    """Every exporter."""
    rows = (
        (
            f"`{e.name}`",
            e.trainer,
            e.meaning,
            e.weights_said,
            " and ".join(e.sample_weights) or "no",
        )
        for e in EXPORTERS.values()
    )
    return _table(("`--to`", "trainer", "written", "token weights", "sample weights"), rows)


def rules() -> str:
    """Every rule of `mask`."""
    rows = (
        (f"`{r.name}`", r.meaning, rule_kind(r), _parameters(r), ", ".join(f"`{name}`" for name in reads(r)), r.source)
        for r in RULES.values()
    )
    return _table(("rule", "what it keeps", "how", "parameters", "reads", "source"), rows)


def metrics_of_world() -> str:
    """Every metric on the shipped world."""
    record = which_metric.stored("world")
    return f"{_table(which_metric.HEADS, which_metric.rows(record))}\n\n{which_metric.without(record)}"


def metrics_of_real() -> str:
    """Every metric under the real student."""
    record = which_metric.stored("real")
    return f"{_table(which_metric.HEADS, which_metric.rows(record))}\n\n{which_metric.without(record)}"


def metrics_alike() -> str:
    """Groups of metrics that order rows nearly alike."""
    return _table(which_metric.ALIKE_HEADS, which_metric.alike_rows())


def metrics_published() -> str:
    """Correlations of published metrics with results after training."""
    return _table(which_metric.PUBLISHED_HEADS, which_metric.published_rows())


def metric_costs() -> str:
    """What each metric takes beside the student's pass."""
    rows = []
    for flags, names in which_metric.by_cost().items():
        needed = ", ".join(f"`{each}`" for each in flags) or "nothing"
        rows.append((needed, which_metric.passes(flags), ", ".join(f"`{name}`" for name in names)))
    return _table(
        ("needs, beside `score DATA --student MODEL`", "tokens read by models, once per scored text", "metrics"), rows
    )


def evidence_verdicts() -> str:
    """What may be said of every policy, from the stored runs."""
    return _table(("policy", "against random with as many tokens"), evidence.verdict_rows(evidence.stored()))


def evidence_detectable() -> str:
    """What differences the design can see."""
    return _table(("seeds", "smallest difference, points"), evidence.detectable_rows())


def evidence_progress() -> str:
    """How much of the experiment is stored."""
    return evidence.progress(evidence.stored())


def evidence_results() -> str:
    """The table of policies."""
    return _table(evidence.CORE_HEADS, evidence.core_rows(evidence.stored()))


def evidence_teachers() -> str:
    """The table of teachers."""
    return _table(evidence.TEACHER_HEADS, evidence.teacher_rows(evidence.stored()))


def evidence_predictions() -> str:
    """The table of correlations, once there are enough teachers."""
    found = evidence.stored()
    if rows := evidence.prediction_rows(found):
        return _table(evidence.PREDICTION_HEADS, rows)
    alone = sum(name.startswith("teacher-") for name in found.runs)
    return f"Unknown as yet: {alone} teachers have a stored run of their own, and five are the least that is shown."


def rooms() -> str:
    """Every room of the package, with the first sentence of what it says about itself."""
    rows = []
    for path in sorted((ROOT / "trajscore").iterdir()):
        source = path / "__init__.py" if path.is_dir() else path
        if source.suffix != ".py" or not source.exists() or path.stem in ("__init__", "__main__"):
            continue
        docstring = " ".join((ast.get_docstring(ast.parse(source.read_text("utf-8"))) or "").split())
        name = f"`{path.name}/`" if path.is_dir() else f"`{path.name}`"
        rows.append((name, re.split(r"(?<=\.)\s(?=[A-Z])", docstring)[0]))
    return _table(("room", "what is in it"), rows)


def commands() -> str:
    """The lines of mkdocs.yml that name the pages of the commands."""
    lines = [f"          - {name}: reference/cli/{_file(name)}" for name, _ in _commands()]
    return "\n".join(["          - reference/cli/index.md", *lines])


def _commands() -> Iterator[tuple[str, Any]]:
    """Every command that does something, by what is typed after `trajscore`, with its typer object."""
    root: Any = typer.main.get_command(app)
    yield from _below("", root)


def _below(before: str, group: Any) -> Iterator[tuple[str, Any]]:
    for name, command in sorted(group.commands.items()):
        if getattr(command, "hidden", False):
            continue
        if getattr(command, "commands", None):
            yield from _below(f"{before}{name} ", command)
        else:
            yield before + name, command


def _file(name: str) -> str:
    return f"{name.replace(' ', '-')}.md"


def _command_page(name: str, command: Any) -> str:
    context = command.make_context(f"trajscore {name}", [], resilient_parsing=True)
    usage = command.get_usage(context).removeprefix("Usage: ")
    parts = [f"# trajscore {name}", _MADE, command.help or "", f"```text\n{usage}\n```"]
    panels: dict[str, list[tuple[str, str]]] = {}
    for parameter in command.params:
        record = parameter.get_help_record(context)
        if record is None or getattr(parameter, "hidden", False):
            continue
        kind = "Options" if parameter.opts[0].startswith("-") else "Arguments"
        panels.setdefault(getattr(parameter, "rich_help_panel", None) or kind, []).append(record)
    for panel, records in panels.items():
        parts += [f"## {panel}", _table(("name", "meaning"), ((f"`{n}`", _meaning(text)) for n, text in records))]
    return "\n\n".join(part.strip("\n") for part in parts if part) + "\n"


def _meaning(text: str) -> str:
    """What an option does, with its default as a sentence."""
    named = re.sub(r"\s*\[default: (.*?)\]", r" Default: `\1`.", text)
    return re.sub(r"\s*\[required\]", " **Required.**", named)


def _commands_page() -> str:
    rows = []
    for name, command in _commands():
        text = " ".join((command.help or "").split("\n\n")[0].split())
        rows.append((f"[`trajscore {name}`]({_file(name)})", text))
    codes = _table(
        ("exit code", "meaning"),
        (
            ("0", "done"),
            ("1", "failed"),
            ("2", "wrong usage: an option, a path, a file that is not what it should be; nothing was started"),
            ("3", "finished, but more rows were refused than `--max-refused` allows"),
            ("130", "interrupted; what was finished stays"),
        ),
    )
    shared = (
        "`trajscore COMMAND -h` says the same in the terminal; `trajscore --install-completion` makes the shell complete "
        "commands, options and choices. Products of a command go to stdout; logs, progress, warnings and errors go to "
        "stderr. With `--json` stdout holds one JSON object and nothing else."
    )
    parts = ("# Commands", _MADE, shared, _table(("command", "does"), rows), "## Exit codes", codes)
    return "\n\n".join(parts) + "\n"


def _python_page() -> str:
    """The public names, each with the docstring of its home, which mkdocstrings reads when the manual is built."""
    intro = (
        "`import trajscore as ts` loads nothing heavy; each name below is imported when it is first used. "
        "A command adds nothing that its function lacks. For prose and examples see [From Python](../guides/python.md)."
    )
    homes = sorted(trajscore._HOME.items(), key=lambda each: each[0].lower())
    names = [f"::: {home}.{name}" for name, home in homes]
    return "\n\n".join(["# Python", _MADE, intro, *names]) + "\n"


def architecture() -> str:
    """The drawing of the rooms: a row of boxes for each line of the import order, top to bottom."""
    width, height, gap = 860, 30, 44
    parts = []
    for number, line in enumerate(LINES):
        y = 44 + gap * number
        each = (width - 8 * (len(line) + 1)) / len(line)
        for place, room in enumerate(line):
            x = 8 + place * (each + 8)
            middle = f'x="{x + each / 2:.1f}" y="{y + 20}" text-anchor="middle"'
            parts.append(f'<rect x="{x:.1f}" y="{y}" width="{each:.1f}" height="{height}" rx="5"/>')
            parts.append(f"<text {middle}>{room}</text>")
    bottom = 44 + gap * len(LINES)
    title = "An import points down: a room may use itself and the rooms of lower lines."
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {bottom}" width="{width}" height="{bottom}" role="img" '
        f'font-family="system-ui, sans-serif" font-size="13"><title>{title}</title>'
        "<style>rect { fill: #dfe7f2; stroke: #6b7f99 } "
        "text { fill: #1b2430 } .note { fill: #6b7f99 } @media (prefers-color-scheme: dark) { rect { fill: #263446 } "
        "text { fill: #e6ebf2 } }</style>"
        f'<text class="note" x="8" y="24">{title}</text>{"".join(parts)}</svg>\n'
    )


_MADE = "<!-- Made from the code by `make docs`: change it there. -->"

PARTS: dict[str, Callable[[], str]] = {
    "columns": columns,
    "layouts": layouts,
    "published": published,
    "statuses": statuses,
    "metrics": metrics,
    "presets": presets,
    "mask_presets": mask_presets,
    "exporters": exporters,
    "rules": rules,
    "rooms": rooms,
    "commands": commands,
    "metrics_of_world": metrics_of_world,
    "metrics_of_real": metrics_of_real,
    "metrics_alike": metrics_alike,
    "metrics_published": metrics_published,
    "metric_costs": metric_costs,
    "evidence_verdicts": evidence_verdicts,
    "evidence_detectable": evidence_detectable,
    "evidence_progress": evidence_progress,
    "evidence_results": evidence_results,
    "evidence_teachers": evidence_teachers,
    "evidence_predictions": evidence_predictions,
}


def regenerate(text: str) -> str:
    """The text with every generated part made anew."""
    return _PART.sub(lambda match: f"{match[1]}{PARTS[match[2]]()}\n{match[3]}", text)


def whole_pages() -> dict[Path, str]:
    """Every page, drawing and table that has no words of its own: path -> text."""
    cli = DOCS / "reference" / "cli"
    pages = {cli / _file(name): _command_page(name, command) for name, command in _commands()}
    pages |= {cli / "index.md": _commands_page(), DOCS / "reference" / "python.md": _python_page()}
    for name in ("world", "real"):
        pages[DOCS / "guides" / f"agreement-{name}.csv"] = which_metric.matrix(which_metric.stored(name))
    return pages | {DOCS / "pictures" / "architecture.svg": architecture()}


def main() -> None:
    """Write what is out of date; remove pages of commands that are gone."""
    pages = whole_pages()
    for page in (DOCS / "reference" / "cli").glob("*.md"):
        if page not in pages:
            page.unlink()
    for path, text in pages.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, "utf-8")
    for path in (ROOT / "mkdocs.yml", *DOCS.rglob("*.md")):
        if path not in pages:
            path.write_text(regenerate(path.read_text("utf-8")), "utf-8")


if __name__ == "__main__":
    main()
