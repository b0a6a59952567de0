"""What may import what, and that selecting and reporting need no model library: the house rules that a machine can check."""

from __future__ import annotations

import ast
import importlib.util
import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from tests.helpers.mask_files import write_mask
from tests.helpers.paths import ROOT
from tests.helpers.score_tables import random_rows, write_folder
from tests.helpers.stopped_runs import HANGS
from tests.helpers.warm_commands import warm_program

PACKAGE = ROOT / "trajscore"
FILES = sorted(PACKAGE.rglob("*.py"))

# From the top down. A room is a package or module directly in trajscore; it imports itself and rooms of lower lines only.
LINES = (
    ("__main__",),
    ("_start",),
    ("cli", "recipes"),
    ("scoring", "selection", "masking", "ranking", "viewing", "exporters", "skills"),
    ("engines", "metrics", "scores", "corpus", "estimates", "display", "integrations"),
    ("rendering", "statistics", "io"),
    ("options", "progress"),
    ("schema",),
    ("errors", "interruptions"),
    ("_project",),
)
LINE = {room: number for number, rooms in enumerate(LINES) for room in rooms}

# (room, room of the same line) -> why the first may import the second.
NEIGHBOURS = {
    ("cli", "recipes"): "`run` is a command like the others",
    ("masking", "selection"): "a preset of `select` given to `mask` is named as such",
    ("metrics", "scores"): "the table of metrics per row is read from folders of scores",
    ("rendering", "io"): "the tokenizer that lies beside scores may be on an object store",
    ("selection", "skills"): "STAT-Sel draws by the profile that `skills profile` wrote",
}

# Library -> the only places, relative to the package, that may import it, at whatever depth in the code.
ONLY_IN = {
    "torch": ("engines/", "integrations/", "statistics/"),
    "transformers": ("engines/", "integrations/", "rendering/"),
    "vllm": ("engines/vllm",),
    "typer": ("cli/",),
    "click": (),
    "datasets": ("corpus/hub.py", "integrations/"),
    **dict.fromkeys(("llamafactory", "axolotl", "verl", "hydra"), ("integrations/",)),
    # The training template that TRL swaps in is a chat template like others: its source is asked for where templates come from.
    "trl": ("integrations/", "rendering/template_choice.py"),
    "yaml": ("integrations/", "recipes/"),
    "huggingface_hub": ("corpus/hub.py", "engines/fingerprint.py"),
    "altair": ("display/charts.py",),
    "vl_convert": ("display/charts.py",),
    "jinja2": ("display/", "rendering/limits.py", "rendering/templates.py"),
    "rich": ("cli/", "display/", *(f"{room}/" for room in LINES[LINE["scoring"]])),
    "httpx": (),
    **dict.fromkeys(("httpx2", "openai"), ("io/http.py",)),
    "upath": ("io/paths.py",),
    "ray": ("scoring/ray_workers.py",),
    "math_verify": ("skills/answers.py",),
}

HEAVY = ("torch", "transformers", "vllm", "datasets", "accelerate")


def _where(path: Path) -> str:
    return path.relative_to(PACKAGE).as_posix()


def _room(path: Path) -> str:
    """`errors` for errors.py, `corpus` for corpus/hub.py, `` for the package's own __init__.py."""
    first = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    return "" if first == "__init__" else first


@cache
def _tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text("utf-8"))


def _imports(tree: ast.AST) -> Iterator[str]:
    """Full names of what a file imports, anywhere in it: also in functions and under TYPE_CHECKING."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative imports hide what is imported"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def _ours(name: str) -> str | None:
    """The room that an import of trajscore reads from; None for other libraries and for `__version__`."""
    parts = name.split(".")
    if parts[0] != "trajscore" or name == "trajscore.__version__":
        return None
    return parts[1] if len(parts) > 1 else ""


def _violations(room: str, tree: ast.AST) -> list[str]:
    """Imports that do not point down from a room."""
    wrong = []
    for name in _imports(tree):
        other = _ours(name)
        if other is None or other == room or (room, other) in NEIGHBOURS:
            continue
        if other not in LINE or LINE[other] <= LINE[room]:
            wrong.append(name)
    return wrong


def test_every_room_has_a_line() -> None:
    """A new room is put into a line above, on purpose."""
    assert {_room(path) for path in FILES} - {""} == LINE.keys()


@pytest.mark.parametrize("path", [path for path in FILES if _room(path)], ids=_where)
def test_imports_point_down(path: Path) -> None:
    assert _violations(_room(path), _tree(path)) == []


def test_every_exception_is_in_use() -> None:
    used = {(_room(path), _ours(name)) for path in FILES for name in _imports(_tree(path))}
    assert NEIGHBOURS.keys() <= used
    assert all(LINE[room] == LINE[other] for room, other in NEIGHBOURS)


@pytest.mark.parametrize(
    "source",
    [
        "import trajscore.scoring.run",
        "from trajscore import cli",
        "def f():\n    from trajscore.cli.app import app",
        "if TYPE_CHECKING:\n    from trajscore.engines import Engine",
        "from trajscore.metrics import METRICS",
        "from trajscore import scan",
        "import trajscore",
    ],
)
def test_the_check_finds_what_it_looks_for(source: str) -> None:
    assert len(_violations("corpus", ast.parse(source))) == 1
    assert _violations("corpus", ast.parse("from trajscore import __version__\nfrom trajscore.schema import OK")) == []


def _graph() -> dict[str, set[str]]:
    """Module -> modules of ours that it imports, at whatever depth. A package is its `__init__`."""
    modules = {".".join(path.with_suffix("").relative_to(ROOT).parts).removesuffix(".__init__"): path for path in FILES}
    graph = {}
    for module, path in modules.items():
        found = {name if name in modules else name.rpartition(".")[0] for name in _imports(_tree(path))}
        # The package's own __init__ names everything, lazily; what it is imported for below is its version.
        graph[module] = (found & modules.keys()) - {module, "trajscore"}
    return graph


def _circle(graph: dict[str, set[str]]) -> set[str]:
    """Modules that are left when those that import nothing (of what is left) are taken away again and again."""
    left = {module: set(imported) for module, imported in graph.items()}
    while leaves := {module for module, imported in left.items() if not imported & left.keys()}:
        left = {module: imported for module, imported in left.items() if module not in leaves}
    return left.keys() - {module for module in left if not any(module in imported for imported in left.values())}


def test_no_circles_inside_rooms() -> None:
    graph = _graph()
    assert _circle(graph) == set()
    assert _circle({**graph, "trajscore.errors": {"trajscore.cli"}}) != set()


@pytest.mark.parametrize("path", FILES, ids=_where)
def test_libraries_stay_where_they_belong(path: Path) -> None:
    wrong = [
        name
        for name in _imports(_tree(path))
        if not _where(path).startswith(ONLY_IN.get(name.partition(".")[0], (_where(path),)))
    ]
    assert wrong == []


# What vLLM's documentation names; all else is touched in one file, which checks that it is there.
VLLM_DOCUMENTED = {
    "vllm": {
        *("LLM", "LLMEngine", "EngineArgs", "ModelRegistry", "__version__"),
        *("PoolingParams", "SamplingParams", "TokensPrompt"),
    },
    "vllm.sampling_params": {"StructuredOutputsParams"},
}


def test_insides_of_vllm_are_touched_in_one_file() -> None:
    """Imports, and attributes of the package; engines' attributes with an underscore or of an engine's core."""
    wrong = []
    for path in (path for path in FILES if path.name != "vllm_insides.py"):
        for node in ast.walk(_tree(path)):
            if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == "vllm":
                known = VLLM_DOCUMENTED.get(node.module or "", set())
                wrong += [f"{_where(path)}: {node.module}.{each.name}" for each in node.names if each.name not in known]
            elif isinstance(node, ast.Import):
                wrong += [f"{_where(path)}: {each.name}" for each in node.names if each.name.startswith("vllm.")]
            elif isinstance(node, ast.Attribute) and ast.unparse(node.value) in ("vllm", "self._vllm"):
                wrong += [f"{_where(path)}: vllm.{node.attr}"] if node.attr not in VLLM_DOCUMENTED["vllm"] else []
            elif isinstance(node, ast.Attribute) and node.attr in ("engine_core", "pooling_states", "pooling_params"):
                wrong.append(f"{_where(path)}: {ast.unparse(node)}")
    assert wrong == []


def test_nothing_is_imported_by_computed_name() -> None:
    """Such imports would escape these tests. Exceptions: the package's own table of public names, and that of vLLM's."""
    exceptions = (PACKAGE / "__init__.py", PACKAGE / "engines" / "vllm_insides.py")
    for path in FILES:
        names = {node.attr for node in ast.walk(_tree(path)) if isinstance(node, ast.Attribute)}
        names |= {node.id for node in ast.walk(_tree(path)) if isinstance(node, ast.Name)}
        if path not in exceptions:
            assert not names & {"import_module", "__import__"}, path


# Where stdout and stderr may be named, and what for.
STREAMS = {
    "display/writer.py": "the one writer",
    "_start.py": "runs before anything of ours may be imported",
    "interruptions.py": "flushes both at an interrupted end",
    "progress.py": "the progress line, which holds numbers only",
    "exporters/check.py": "what other trainers' loaders print goes to stderr",
}


@pytest.mark.parametrize("path", FILES, ids=_where)
def test_one_object_writes_to_terminals(path: Path) -> None:
    """What is written elsewhere is not made visible by construction."""
    names = {
        f"{node.value.id}.{node.attr}"
        for node in ast.walk(_tree(path))
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name)
    }
    called = {
        node.func.id for node in ast.walk(_tree(path)) if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
    }
    if _where(path) not in STREAMS:
        assert not names & {"sys.stdout", "sys.stderr", "typer.echo", "typer.secho"}
        assert not called & {"print", "Console"}


def _public(tree: ast.Module) -> Iterator[ast.FunctionDef | ast.ClassDef]:
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
            yield node


@pytest.mark.parametrize("path", FILES, ids=_where)
def test_docstrings(path: Path) -> None:
    tree = _tree(path)
    assert ast.get_docstring(tree), "a file's first lines say what it does"
    silent = [node for node in _public(tree) if not ast.get_docstring(node)]
    assert [node.name for node in silent if [ast.unparse(each) for each in node.decorator_list] != ["overload"]] == []


def test_importing_the_command_line_loads_nothing_heavy() -> None:
    code = "import sys, json, trajscore, trajscore.cli; print(json.dumps(sorted({n.partition('.')[0] for n in sys.modules})))"
    loaded = json.loads(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout)
    assert not set(loaded) & {*HEAVY, "jinja2", "tokenizers", "polars", "pyarrow", "numpy"}


def _run_blocked(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """A command in a process in which importing a model library raises, as on a laptop that lacks it."""
    command = [str(warm_program(*HEAVY)), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=HANGS)


@pytest.fixture(scope="module")
def scores(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rows = random_rows(40, seed=3)
    for row in rows:
        if row["status"] == "ok":
            row |= {"kl_student_teacher": row["student_entropy"], "teacher_sentence_logprob": [-0.5]}
    extra = ("kl_student_teacher", "teacher_sentence_logprob")
    folder = write_folder(tmp_path_factory.mktemp("laptop") / "scores", rows, extra=extra)
    shutil.copy(PACKAGE.parent / "data" / "models" / "student" / "tokenizer.json", folder)
    return folder


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["--version"],
        ["list", "metrics"],
        ["list", "exporters"],
        ["select", "--help"],
        ["score", "--help"],
        ["skills", "--help"],
        ["skills", "label", "--help"],
        [
            "select",
            "SCORES",
            "--metric",
            "rsr",
            "--where",
            "n_tokens > 1",
            "--per-prompt",
            "1",
            "--out",
            "OUT/kept.jsonl",
        ],
        ["select", "SCORES", "--metric", "surprisal", "--top", "5", "--out", "OUT/kept.parquet", "--json"],
        [
            "select",
            "SCORES",
            "--metric",
            "rsr",
            "--metric",
            "length",
            "--combine",
            "rank",
            "--quota",
            "teacher=0.9",
            "--weight",
            "softmax",
            "--out",
            "OUT/weighted.parquet",
            "--explain",
            "id-0001",
        ],
        ["list", "presets"],
        ["report", "SCORES", "--replicates", "20"],
        ["report", "SCORES", "--replicates", "20", "--json"],
        ["report", "SCORES", "--replicates", "20", "--plan", "--out", "OUT/r.html", "--csv", "OUT/r.csv"],
        ["inspect", "SCORES", "--worst", "2", "--by", "entropy"],
        ["inspect", "SCORES", "--best", "1", "--numbers", "--out", "OUT/i.html"],
        ["list", "rules"],
        ["mask", "SCORES", "--rule", "soft_or_sample", "--keep", "0.5", "--out", "OUT/masked.parquet"],
        ["mask", "SCORES", "--rule", "all", "--out", "OUT/masked.jsonl", "--json"],
        ["trace", "SCORES", "--out", "OUT/sentences.csv", "--json"],
        ["trace", "SCORES", "--out", "OUT/sentences.html"],
    ],
    ids=" ".join,
)
def test_runs_without_a_model_library(arguments: list[str], scores: Path, tmp_path: Path) -> None:
    named = [word.replace("SCORES", str(scores)).replace("OUT", str(tmp_path)) for word in arguments]
    result = _run_blocked(*named)
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip()
    for word in named:
        if word.startswith(str(tmp_path)):
            assert Path(word).stat().st_size > 0


def test_exports_without_a_model_library(tmp_path: Path) -> None:
    """Conversations and masks alike; `--check` says that the trainer is not there, and checks the format."""
    chat = {"id": "a", "messages": [{"role": "user", "content": "2+2?"}, {"role": "assistant", "content": "4"}]}
    (tmp_path / "c.jsonl").write_text(json.dumps(chat) + "\n")
    mask = write_mask(tmp_path / "m.parquet", [{"id": "a", "input_ids": [1, 2], "labels": [-100, 2]}])
    for trainer in ("trl", "llamafactory", "axolotl", "verl"):
        result = _run_blocked("export", tmp_path / "c.jsonl", "--to", trainer, "--out", tmp_path / trainer)
        assert result.returncode == 0, result.stderr
        result = _run_blocked("export", mask, "--to", trainer, "--out", tmp_path / trainer, "--check")
        assert result.returncode == 0, result.stderr
        assert "is not usable here" in result.stdout


def test_score_without_a_model_library_says_what_to_install(tmp_path: Path) -> None:
    """The control: the blocker does block, and the user is told."""
    (tmp_path / "c.jsonl").write_text('{"text": "Some text."}\n')
    student = PACKAGE.parent / "data" / "models" / "student"
    result = _run_blocked("score", tmp_path / "c.jsonl", "--student", student, "--out", tmp_path / "s")
    assert result.returncode == 2
    assert "pip install 'trajscore-toolkit[hf]'" in result.stderr
    assert "Traceback" not in result.stderr
    assert not (tmp_path / "s").exists()


def test_every_public_name_is_there() -> None:
    import trajscore

    for name in trajscore.__all__:
        assert getattr(trajscore, name) is not None
    assert importlib.util.find_spec("trajscore.__main__")
