"""Runs the notebooks of this folder from top to bottom and stores what they show: `python notebooks/run.py [NAME...]`."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import nbformat
from jupyter_client.kernelspec import KernelSpecManager
from jupyter_client.manager import AsyncKernelManager
from nbclient import NotebookClient

FOLDER = Path(__file__).resolve().parent
LIMIT = 1200


def execute(path: Path) -> nbformat.NotebookNode:
    """A notebook after running all its cells in this interpreter, in its own folder.

    Raises:
        nbclient.exceptions.CellExecutionError: a cell raised.
    """
    notebook = nbformat.read(path, as_version=4)
    # Without folders to look in, the kernel is this interpreter and not one that some other installation registered.
    manager = AsyncKernelManager(kernel_spec_manager=KernelSpecManager(kernel_dirs=[]))
    # tqdm complains about widgets that a stored notebook could not show anyway.
    quiet = {"OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore:IProgress not found"}
    variables = {**os.environ, **quiet, "PYTHONPATH": str(FOLDER.parent)}
    client = NotebookClient(
        notebook, km=manager, timeout=LIMIT, record_timing=False, resources={"metadata": {"path": str(FOLDER)}}
    )
    client.execute(env=variables)
    return notebook


def main(names: list[str]) -> None:
    """Run the named notebooks, or all, and write them back."""
    for path in sorted(FOLDER.glob("*.ipynb")):
        if names and path.stem not in names:
            continue
        began = time.monotonic()
        notebook = execute(path)
        # The version of the interpreter is no part of what a notebook shows.
        notebook.metadata = {"kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"}}
        nbformat.write(notebook, path)
        print(f"{path.name}: {time.monotonic() - began:.0f} s")


if __name__ == "__main__":
    main(sys.argv[1:])
