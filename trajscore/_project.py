"""The project's name on a package index, its address, and the command that installs it: hints and the build read them here."""

from __future__ import annotations

# The name `trajscore` on the package index is another project's, with the same import name.
DISTRIBUTION = "trajscore-toolkit"

# Address of the public repository, such as https://github.com/OWNER/NAME (no slash at its end). UNSET: there is none yet.
# While it is None, the release job refuses, and a built package shows the README without pictures, which need it.
URL: str | None = None


def install_command(*extras: str, options: str = "") -> str:
    """What a user types to add optional dependencies.

    >>> install_command("hf")
    "pip install 'trajscore-toolkit[hf]'"
    >>> install_command("vllm", "ray", options="--force-reinstall")
    "pip install --force-reinstall 'trajscore-toolkit[vllm,ray]'"
    """
    named = f"'{DISTRIBUTION}[{','.join(extras)}]'" if extras else DISTRIBUTION
    return " ".join(["pip install", *([options] if options else []), named])
