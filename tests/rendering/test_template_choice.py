"""Which chat template a row gets, and where thoughts and parts go."""

from __future__ import annotations

import importlib.util
import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.paths import DATA
from tests.rendering.conversations import CASES, Q1, said
from tests.rendering.test_real_templates import TRL, folder
from tests.rendering.test_templates import PLAIN, QWEN3, QWEN25
from trajscore.errors import UsageError
from trajscore.options.groups import RenderOptions
from trajscore.rendering.reasoning import joined_parts, reasoning_as
from trajscore.rendering.renderer import Renderer

NEEDS_TRL = pytest.mark.skipif(importlib.util.find_spec("trl") is None, reason="TRL is not installed")
TOOL_USE = "{%- if not tools %}{{ raise_exception('needs tools') }}{%- endif %}" + QWEN25.replace(
    "{%- if messages", "{{- tools | tojson }}{%- if messages", 1
)


def student(path: Path, template: str | dict[str, str], *, as_list: bool = False) -> str:
    """The shipped student's tokenizer with other templates."""
    shutil.copytree(DATA / "models" / "student", path, ignore=shutil.ignore_patterns("*.safetensors", "*.jinja"))
    settings = json.loads((path / "tokenizer_config.json").read_text())
    if isinstance(template, str):
        (path / "chat_template.jinja").write_text(template)
    elif as_list:
        settings["chat_template"] = [{"name": name, "template": source} for name, source in template.items()]
    else:
        (path / "additional_chat_templates").mkdir()
        for name, source in template.items():
            place = "chat_template.jinja" if name == "default" else f"additional_chat_templates/{name}.jinja"
            (path / place).write_text(source)
    (path / "tokenizer_config.json").write_text(json.dumps(settings))
    return str(path)


def text(by: Renderer, case: dict[str, Any]) -> str:
    rendered = by.render_messages(case["messages"], case.get("tools"), case.get("chat_template_kwargs"))
    assert rendered.status == "ok", rendered.detail
    return by.decode(rendered.input_ids_P.tolist())


@pytest.mark.parametrize("as_list", [True, False])
def test_rows_with_tools_get_the_template_for_tools(as_list: bool, tmp_path: Path) -> None:
    named = {"default": PLAIN, "tool_use": TOOL_USE, "rag": QWEN3}
    model = student(tmp_path / "m", named, as_list=as_list)
    by = Renderer(model)
    assert text(by, CASES["plain"]).startswith("### Instruction:")
    assert "lookup" in text(by, CASES["tool call, defined"])
    assert text(by, CASES["tools that are not called"]).startswith("[{")
    chosen = Renderer(model, RenderOptions(chat_template="rag"))
    assert text(chosen, CASES["plain"]).startswith("<|im_start|>user")
    assert chosen.describe()["chat_template_sha256"] != by.describe()["chat_template_sha256"]


def test_a_template_for_tools_alone(tmp_path: Path) -> None:
    by = Renderer(student(tmp_path / "m", {"tool_use": TOOL_USE}))
    assert "lookup" in text(by, CASES["tool call, defined"])
    refused = by.render_messages([Q1, said("alpha.")])
    assert (refused.status, "no default" in refused.detail) == ("template_error", True)
    # The same as a single template, which refuses rows without tools.
    alone = Renderer(student(tmp_path / "n", TOOL_USE))
    assert "lookup" in text(alone, CASES["tool call, defined"])
    assert alone.render_messages([Q1, said("alpha.")]).detail.endswith("needs tools")


def test_a_name_that_is_none_names_those_that_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # The hub is asked too: without a network that takes as long as its client tries.
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    model = student(tmp_path / "m", {"default": PLAIN, "rag": QWEN3})
    with pytest.raises(UsageError, match="default, rag"):
        Renderer(model, RenderOptions(chat_template="rags"))


@NEEDS_TRL
class TestWhatTRLTrainsWith:
    def model(self, tmp_path: Path, name: str) -> str:
        shutil.copytree(folder(), tmp_path / "m")
        (tmp_path / "m" / "chat_template.jinja").write_text(TRL[name])
        return str(tmp_path / "m")

    @pytest.mark.parametrize("name", ["qwen3", "deepseek_r1_distill"])
    def test_it_keeps_all_thoughts_and_the_refusal_says_so(self, name: str, tmp_path: Path) -> None:
        model = self.model(tmp_path, name)
        case = CASES["think in content, two turns"]
        refused = Renderer(model).render_messages(case["messages"])
        assert refused.status == "template_lost_text"
        assert "--chat-template trl" in refused.detail
        assert text(Renderer(model, RenderOptions(chat_template="trl")), case).count("aleph.") == 1

    def test_a_template_with_marks_is_its_own(self, tmp_path: Path) -> None:
        by = Renderer(self.model(tmp_path, "lfm2_2_5"), RenderOptions(chat_template="trl"))
        assert by.describe()["chat_template_sha256"] == Renderer(str(tmp_path / "m")).describe()["chat_template_sha256"]

    def test_one_that_it_does_not_know_is_refused(self, tmp_path: Path) -> None:
        with pytest.raises(UsageError, match="no training template"):
            Renderer(student(tmp_path / "m", PLAIN), RenderOptions(chat_template="trl"))


@pytest.mark.parametrize("key", ["reasoning_content", "reasoning", "thinking"])
def test_thoughts_that_no_template_reads_are_folded_or_renamed(key: str, tmp_path: Path) -> None:
    messages = [Q1, said("alpha.", **{key: "aleph."})]
    by = Renderer(student(tmp_path / "m", PLAIN))
    refused = by.render_messages(messages)
    assert refused.status == "template_lost_text"
    assert "--reasoning-as think" in refused.detail
    folded = Renderer(str(tmp_path / "m"), RenderOptions(reasoning_as="think"))
    assert text(folded, {"messages": messages}).endswith("<think>\naleph.\n</think>\n\nalpha.\n\n")
    # The shipped student's template reads one key.
    renamed = Renderer(str(DATA / "models" / "student"), RenderOptions(reasoning_as="reasoning_content"))
    assert "aleph." in text(renamed, {"messages": messages})


def test_where_thoughts_go() -> None:
    parts = [{"type": "thinking", "thinking": "aleph."}, {"type": "text", "text": "alpha."}]
    folded = reasoning_as([Q1, said(parts)], "think")[1]["content"]
    assert folded == [{"type": "text", "text": "<think>\naleph.\n</think>\n\n"}, {"type": "text", "text": "alpha."}]
    assert reasoning_as([said(parts)], "thinking") == [said([parts[1]], thinking="aleph.")]
    twice = said("<think>\naleph.\n</think>\n\nalpha.", reasoning_content="aleph.", reasoning="aleph.")
    assert reasoning_as([twice], "think") == [said(twice["content"])]
    assert reasoning_as([said(None, reasoning="aleph.")], "think") == [said("<think>\naleph.\n</think>\n\n")]
    assert reasoning_as([said("alpha.", reasoning="")], "think") == [said("alpha.")]


def test_parts_are_joined_only_where_the_template_takes_none() -> None:
    by = Renderer(str(DATA / "models" / "student"))
    assert text(by, CASES["parts"]) == text(by, CASES["plain"])
    assert text(by, CASES["thinking part"]) == text(by, CASES["reasoning_content"])
    assert joined_parts([Q1, said([{"type": "image"}])]) is None
    assert by.render_messages([Q1, said([{"type": "image", "image": "x"}])]).status == "template_error"


def test_a_rows_own_variables_prevail(tmp_path: Path) -> None:
    by = Renderer(
        student(tmp_path / "m", "{{ mood }}{{ tone }}" + PLAIN), RenderOptions(chat_template_kwargs={"mood": "a"})
    )
    own = {"messages": CASES["plain"]["messages"], "chat_template_kwargs": {"mood": "b", "tone": "c"}}
    assert (text(by, CASES["plain"])[:2], text(by, own)[:2]) == ("a#", "bc")
    taken = by.render_messages(own["messages"], None, {"messages": []})
    assert (taken.status, "'messages'" in taken.detail) == ("template_error", True)
