"""Builds an environment per trainer beside the repository's own: `make trainers`, `python -m tests.trainers.build NAME`.

The trainers' requirements exclude each other, and name GPU packages that their loaders do not need; hence exact lists without
dependencies, NAME.txt, of what the loaders import on a CPU. `test_export_trainers.py` runs in the environments that are there.
"""

from __future__ import annotations

import subprocess
import sys
import venv
from pathlib import Path

HERE = Path(__file__).parent
ENVIRONMENTS = HERE.parents[1] / ".trainers"
TRAINERS = ("llamafactory", "axolotl", "verl")
TORCH = "torch==2.13.0"


def python_of(name: str) -> Path:
    """The interpreter of a trainer's environment, whether it is there or not."""
    return ENVIRONMENTS / name / "bin" / "python"


def build(name: str) -> None:
    """Make the environment of one trainer."""
    venv.create(ENVIRONMENTS / name, with_pip=True)
    pip = [str(python_of(name)), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, TORCH], check=True)
    subprocess.run([*pip, "--no-deps", "--requirement", str(HERE / f"{name}.txt")], check=True)
    if name == "llamafactory":
        # It imports torchaudio for audio data; that package's wheels need CUDA, and no audio is read here.
        packages = next((ENVIRONMENTS / name / "lib").glob("python*")) / "site-packages"
        (packages / "torchaudio").mkdir(exist_ok=True)
        (packages / "torchaudio" / "__init__.py").write_text("")


if __name__ == "__main__":
    for trainer in sys.argv[1:] or TRAINERS:
        print(f"{ENVIRONMENTS / trainer}: building")
        build(trainer)
