"""How vLLM is imported and started, and which versions of it are known to be what `vllm_insides` relies on."""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import threading
import warnings
from collections.abc import Iterator, Mapping

from trajscore.errors import EngineError, MissingExtraError, first_line

_LOG = logging.getLogger("trajscore")

TESTED = {"0.32.0": "conformance suite on a CPU; never on a GPU"}
"""Version of vLLM -> what was run with it."""

_ENVIRONMENT = threading.Lock()
"""The environment belongs to the whole process: processes of engines start one after the other."""


def prepare_environment() -> None:
    """Settings that vLLM reads from the environment when it is imported; what the user has set stays."""
    defaults = {
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_LOGGING_LEVEL": "ERROR",
        # stdout carries a command's product.
        "VLLM_LOGGING_STREAM": "ext://sys.stderr",
        "VLLM_CPU_KVCACHE_SPACE": "4",
        # Binding threads to cores and memory to nodes would bind this process too, and everything it does besides.
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    }
    for name, value in defaults.items():
        os.environ.setdefault(name, value)
    # What vLLM has to say before it has read the level above.
    logging.getLogger("vllm").addHandler(logging.NullHandler())


@contextlib.contextmanager
def importing() -> Iterator[None]:
    """Around an import of vLLM: its environment is prepared, and what goes wrong is said.

    Raises:
        MissingExtraError: vLLM is not installed.
        EngineError: it is, and it is broken.
    """
    prepare_environment()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            yield
    except Exception as error:  # an installation that does not fit its torch fails in many ways
        if isinstance(error, ModuleNotFoundError) and error.name == "vllm":
            raise MissingExtraError("vllm", "vllm") from error
        raise EngineError(
            f"vLLM is installed, but cannot be imported ({first_line(error)}).",
            "Often torch is another one than vLLM was built for, or torchvision, torchaudio or torchcodec do not fit it.",
        ) from error


@contextlib.contextmanager
def environment(wanted: Mapping[str, str]) -> Iterator[None]:
    """Variables of the environment for as long as an engine starts: vLLM and its processes read them then."""
    with _ENVIRONMENT:
        before = {name: os.environ.get(name) for name in wanted}
        os.environ |= wanted
        try:
            yield
        finally:
            for name, value in before.items():
                if value is None:
                    del os.environ[name]
                else:
                    os.environ[name] = value


@functools.cache
def _say_untested(version: str) -> None:
    if version not in TESTED:
        _LOG.warning(
            "vLLM %s: not tested with trajscore, only looked at for what it needs (tested: %s)",
            version,
            ", ".join(TESTED),
        )


def check_names() -> None:
    """Refuse a vLLM that lacks something the engine relies on.

    Raises:
        EngineError: with what is missing and which versions are known to have it.
    """
    import vllm

    from trajscore.engines.vllm_insides import problems

    _say_untested(vllm.__version__.partition("+")[0])
    lines = problems()
    if lines:
        raise EngineError(
            f"vLLM {vllm.__version__} is not one that trajscore can use:\n  " + "\n  ".join(lines),
            f"Tested: {', '.join(TESTED)}. Install one of these, or use --engine hf.",
        )
