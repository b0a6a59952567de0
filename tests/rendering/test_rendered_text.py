"""Text to which a chat template was applied already: the tokens of the text as it is, the turns that the conversation has."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests.helpers.paths import DATA
from tests.rendering.conversations import CASES
from tests.rendering.test_real_templates import TRL, fixed_date, ours, renderer, tokenizer
from trajscore.rendering.rendered_text import NO_MARKS, RenderedMarks
from trajscore.rendering.renderer import Renderer

__all__ = ["fixed_date"]

CONVERSATIONS = (
    *("plain", "three turns", "system, two turns", "several lines", "leading lines", "trailing space"),
    *("think in content", "ends with a question", "the same answer twice"),
)
FAMILIES = (
    *(
        "qwen2_5",
        "qwen2_5_training",
        "qwen3",
        "qwen3_training",
        "qwen3_6_training",
        "llama3",
        "gemma3_training",
        "phi3",
    ),
    *("deepseekv3_training", "gptoss_training", "cohere2_training", "glm4moe", "nemotron_3_nano", "lfm2_v2"),
)


def student() -> Renderer:
    return Renderer(str(DATA / "models" / "student"))


def told(rendered: Any) -> tuple[Any, ...]:
    """Status, ids, scored positions and scaffold."""
    return (
        rendered.status,
        rendered.input_ids_P.tolist(),
        rendered.positions_N.tolist(),
        rendered.scaffold_S.tolist(),
    )


@pytest.mark.parametrize("family", FAMILIES)
def test_the_text_of_a_conversation_scores_what_the_conversation_does(family: str) -> None:
    if family not in TRL:
        pytest.skip("this TRL has other templates")
    source, scored = TRL[family], 0
    for name in CONVERSATIONS:
        wanted = ours(source, CASES[name])
        if wanted.status != "ok":
            continue
        text = renderer(source).decode(wanted.input_ids_P.tolist())
        assert told(renderer(source).render_rendered(text)) == told(wanted), name
        scored += 1
    assert scored >= 6


def test_ids_are_the_tokenizers_own_and_a_response_begins_where_its_prompt_ends() -> None:
    """Worked out by hand: everything up to the marker, which is scaffold; the prompt's own turns are context."""
    source = TRL["qwen2_5"]
    prompt = "<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\nx<|im_end|>\n<|im_start|>user\nb<|im_end|>\n"
    prompt += "<|im_start|>assistant\n"
    for said, end in (("y z", "<|im_end|>"), ("y z", "<|im_end|>\n"), ("y z", ""), ("<think>\ny", "")):
        rendered = renderer(source).render_rendered(prompt + said + end, len(prompt))
        ids = tokenizer()(prompt + said + end)["input_ids"]
        assert rendered.input_ids_P.tolist() == ids
        assert renderer(source).decode([ids[i] for i in rendered.positions_N]) == said
        assert [tokenizer().convert_ids_to_tokens(ids[i]) for i in rendered.scaffold_S][:1] == (
            ["<|im_end|>"] if end else []
        )
    begun = renderer(source).render_rendered(f"{prompt}Surely y", len(prompt) + len("Surely"))
    assert renderer(source).decode(begun.input_ids_P[begun.positions_N].tolist()).strip() == "y"
    whole = renderer(source, turns="last").render_rendered(f"{prompt}y<|im_end|>\n")
    assert renderer(source).decode(whole.input_ids_P[whole.positions_N].tolist()) == "y"


@pytest.mark.parametrize("text", ["<|im_start|>user\na<|im_end|>\n", "<start_of_turn>model\na", "plain"])
def test_a_text_without_a_turn_of_this_template_is_refused(text: str) -> None:
    rendered = student().render_rendered(text)
    assert rendered.status == "no_assistant_span"
    assert "<|im_start|>assistant" in rendered.detail
    assert not len(rendered.input_ids_P)


def test_the_start_token_comes_once() -> None:
    """A tokenizer that writes one of its own does not double the one that the text has; one that writes none adds none."""
    source = TRL["llama3"]
    wanted = ours(source, CASES["plain"]).input_ids_P
    text = renderer(source).decode(wanted.tolist())
    assert text.startswith("<s>")
    own = renderer(source)._tokenizer.backend_tokenizer
    from tokenizers.processors import TemplateProcessing

    before = own.post_processor
    own.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", int(wanted[0]))])
    try:
        for given in (text, text.removeprefix("<s>")):
            assert np.array_equal(renderer(source).render_rendered(given).input_ids_P, wanted)
    finally:
        own.post_processor = before


def test_what_shows_that_a_template_was_applied() -> None:
    marks = student().rendered_marks()
    assert marks.openers == ("<|im_start|>assistant\n",)
    for text in ("<|im_start|> user", "Be brief.<|im_start|>assistant\nok", "<s>[INST] a [/INST] b"):
        assert marks.found(text)
    for text in ("What does <|im_start|>user mean?", "a<|im_end|>", "<think>a", "<|endoftext|>a", ""):
        assert not marks.found(text)
    assert NO_MARKS.found("<|im_start|>user\na")
    assert not NO_MARKS.found("Be brief.<|im_start|>assistant\nok")
    assert RenderedMarks(openers=("<b>", "<c>")).prompt("a<c>x<b>y") == "a"
