"""Does a vLLM that is not installed have the names that the engine relies on? Read out of a wheel, or a folder, by its syntax.

    python .ci/vllm_wheel.py vllm-0.33.0-cp38-abi3-manylinux_2_31_x86_64.whl     # or: python .ci/vllm_wheel.py --newest

What is checked is `vllm_insides.NAMES`, as at the start of an engine; nothing of vLLM is run. Exit code 1 where a name is gone
or has lost a parameter or field.
"""

from __future__ import annotations

import ast
import functools
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

from trajscore.engines.vllm_insides import NAMES


class Sources:
    """The Python files of a wheel or of a folder that holds the package `vllm`."""

    def __init__(self, path: Path) -> None:
        self._folder = path if path.is_dir() else None
        self._wheel = None if path.is_dir() else zipfile.ZipFile(path)

    @functools.cache  # noqa: B019 - one object for the whole run
    def tree(self, module: str) -> ast.Module | None:
        """A module's syntax; None where there is no such module."""
        for name in (f"{module.replace('.', '/')}.py", f"{module.replace('.', '/')}/__init__.py"):
            try:
                if self._folder is not None:
                    return ast.parse((self._folder / name).read_text("utf-8"))
                if self._wheel is not None:
                    return ast.parse(self._wheel.read(name))
            except (OSError, KeyError):
                continue
        return None

    def is_package(self, module: str) -> bool:
        """Whether a module is a folder."""
        name = f"{module.replace('.', '/')}/__init__.py"
        if self._folder is not None:
            return (self._folder / name).is_file()
        return self._wheel is not None and name in self._wheel.NameToInfo

    def find(
        self, module: str, name: str, seen: frozenset[tuple[str, str]] = frozenset()
    ) -> tuple[str, ast.AST] | None:
        """Where a class or function is defined that a module has under a name: followed through imports and aliases."""
        tree = self.tree(module)
        if tree is None or (module, name) in seen:
            return None
        seen |= {(module, name)}
        for node in ast.walk(tree):
            if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and node.name == name:
                return module, node
        for other, found in self._leads(tree, module, name):
            if result := self.find(other, found, seen):
                return result
        return None

    def _leads(self, tree: ast.Module, module: str, name: str) -> Iterator[tuple[str, str]]:
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom):
                yield from (
                    (self._absolute(node, module), name if alias.name == "*" else alias.name)
                    for alias in node.names
                    if alias.name == "*" or (alias.asname or alias.name) == name
                )
            elif isinstance(node, ast.Assign) and isinstance(node.value, ast.Name | ast.Call):
                # Another name of it, or an object of a class.
                made = node.value.func if isinstance(node.value, ast.Call) else node.value
                targets = [target.id for target in node.targets if isinstance(target, ast.Name)]
                if name in targets and isinstance(made, ast.Name):
                    yield module, made.id
            elif isinstance(node, ast.Dict):
                # vLLM's table of what its package loads when asked: {"LLMEngine": ".engine.llm_engine:LLMEngine"}.
                for key, value in zip(node.keys, node.values, strict=True):
                    if isinstance(key, ast.Constant) and key.value == name and isinstance(value, ast.Constant):
                        where, _, what = str(value.value).partition(":")
                        if what:
                            yield f"{module}{where}" if where.startswith(".") else where, what

    def _absolute(self, node: ast.ImportFrom, module: str) -> str:
        if not node.level:
            return node.module or ""
        parts = module.split(".")
        parts = parts[: len(parts) - node.level + self.is_package(module)]
        return ".".join([*parts, *([node.module] if node.module else [])])

    def member(self, module: str, node: ast.AST, name: str) -> tuple[str, ast.AST] | None:
        """A method of a class, or of a class that it is made from."""
        if not isinstance(node, ast.ClassDef):
            return None
        for each in node.body:
            if isinstance(each, ast.FunctionDef | ast.AsyncFunctionDef) and each.name == name:
                return module, each
        for base in node.bases:
            at = self.find(module, base.id) if isinstance(base, ast.Name) else None
            if at and (result := self.member(*at, name)):
                return result
        return None

    def uses(self, module: str, node: ast.AST) -> set[str]:
        """Parameters of a function, or what a class is made from: parameters of its __init__, else fields, its bases' too."""
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            given = node.args
            return {each.arg for each in (*given.posonlyargs, *given.args, *given.kwonlyargs)}
        if not isinstance(node, ast.ClassDef):
            return set()
        if made := self.member(module, node, "__init__"):
            return self.uses(*made)
        fields = {
            each.target.id
            for each in node.body
            if isinstance(each, ast.AnnAssign) and isinstance(each.target, ast.Name)
        }
        for base in node.bases:
            at = self.find(module, base.id) if isinstance(base, ast.Name) else None
            fields |= self.uses(*at) if at else set()
        return fields


def problems(sources: Sources) -> list[str]:
    """What a vLLM lacks, a line each."""
    found = []
    for wanted in NAMES:
        first, *rest = wanted.name.split(".")
        at = sources.find(wanted.module, first)
        for part in rest:
            at = at and sources.member(*at, part)
        if at is None:
            found.append(f"{wanted.module}.{wanted.name} is gone")
            continue
        known = sources.uses(*at) if wanted.uses else set()
        found += [f"{wanted.module}.{wanted.name} has no {use!r}" for use in wanted.uses if use not in known]
    return found


def main() -> None:
    """Check the wheel or folder that is named, or the newest release."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(sys.argv[1])
        if sys.argv[1] == "--newest":
            words = [
                "-m",
                "pip",
                "download",
                "--quiet",
                "--no-deps",
                "--only-binary",
                ":all:",
                "--dest",
                folder,
                "vllm",
            ]
            subprocess.run([sys.executable, *words], check=True)  # noqa: S603 - our own words
            (path,) = Path(folder).glob("vllm-*.whl")
        lines = problems(Sources(path))
        sys.stdout.write("\n".join([f"{path.name}: {len(NAMES)} names, {len(lines)} problems", *lines, ""]))
    sys.exit(bool(lines))


if __name__ == "__main__":
    main()
