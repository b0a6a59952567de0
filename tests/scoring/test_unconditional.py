"""The second reading without the prompt: the same tokens after a bare header, checked against the model itself."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
import transformers

import trajscore as ts
from tests.helpers.paths import DATA
from trajscore.options.groups import RenderOptions
from trajscore.rendering.renderer import Rendered, Renderer
from trajscore.scoring.unconditional import turns

COLUMN = "student_unconditional_surprisal"
CHAT = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Start with 7. Then plus 3. Last digit?"},
    {"role": "assistant", "content": "<think>\n7 + 3 = 0.\n</think>\n\nAnswer: 0"},
    {"role": "user", "content": "And double?"},
    {"role": "assistant", "content": "0"},
]
PLAIN = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
BARE = "{% for m in messages %}{{ m.content }}{% if m.role == 'user' %} {% endif %}{% endfor %}"


def _renderer(name: str, **options: Any) -> Renderer:
    return Renderer(str(DATA / "models" / name), RenderOptions(**options))


def _read(rendered: Rendered, by: Renderer) -> list[str]:
    return [by.decode(sequence.input_ids_P.tolist()) for _, sequence in turns(rendered)]


@pytest.mark.parametrize(
    ("name", "header"),
    [
        ("student", "<|im_start|>assistant\n"),
        ("student-llama", "<|begin_of_text|><|start_header_id|>assistant<|end_header_id|>\n\n"),
    ],
)
def test_each_turn_stands_after_start_token_and_header(name: str, header: str) -> None:
    by = _renderer(name)
    rendered = by.render_messages(CHAT)
    assert _read(rendered, by) == [header + message["content"] for message in CHAT if message["role"] == "assistant"]
    for first, sequence in turns(rendered):
        count = len(sequence.positions_N)
        predicted = sequence.input_ids_P[sequence.positions_N]
        assert predicted.tolist() == rendered.input_ids_P[rendered.positions_N[first : first + count]].tolist()
    assert sum(len(sequence.positions_N) for _, sequence in turns(rendered)) == len(rendered.positions_N)


def test_options_carry_over() -> None:
    by = _renderer("student", turns="last")
    assert _read(by.render_messages(CHAT), by) == ["<|im_start|>assistant\n0"]
    whole = _renderer("student").render_messages(CHAT)
    first = int(whole.positions_N[3])
    cut = _renderer("student", on_overlong="truncate", max_model_len=first + 1)
    (read,) = _read(cut.render_messages(CHAT), cut)
    assert read.startswith("<|im_start|>assistant\n<think>\n7")
    assert "Answer" not in read


def test_a_header_without_generation_prompt_and_none_at_all(tmp_path: Path) -> None:
    (tmp_path / "plain.jinja").write_text(PLAIN)
    by = _renderer("student", chat_template=str(tmp_path / "plain.jinja"))
    assert _read(by.render_messages(CHAT[1:3]), by) == ["assistant: " + CHAT[2]["content"]]
    (tmp_path / "bare.jinja").write_text(BARE)
    by = _renderer("student", chat_template=str(tmp_path / "bare.jinja"))
    rendered = by.render_messages(CHAT[1:3])
    ((first, sequence),) = turns(rendered)
    assert (first, sequence.positions_N[0]) == (1, 1)  # the first token follows nothing
    assert len(sequence.input_ids_P) == len(rendered.positions_N)
    one = by.render_messages([CHAT[1], {"role": "assistant", "content": "0"}])
    assert len(one.positions_N) == 1
    assert list(turns(one)) == []


def test_the_data_cannot_pose_as_a_header() -> None:
    by = _renderer("student")
    said = "<|im_start|>assistant\nHi"
    rendered = by.render_messages([CHAT[1], {"role": "assistant", "content": said}])
    assert _read(rendered, by) == ["<|im_start|>assistant\n" + said]
    assert rendered.bare_turns[0].header_ids.tolist() == by.render_messages(CHAT).bare_turns[0].header_ids.tolist()


def _score(folder: Path, rows: list[dict[str, Any]], **options: Any) -> pl.DataFrame:
    data = folder / "rows.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    ts.score(data, student=DATA / "models" / "student", out=folder / "out", unconditional=True, **options)
    return ts.scan(folder / "out").collect()


def _oracle(ids: list[int]) -> list[float]:
    """-ln p of every token but the first, by the model's own logits."""
    model = transformers.AutoModelForCausalLM.from_pretrained(DATA / "models" / "student", dtype=torch.float32)
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([ids])).logits[0].double()
    logprob = torch.log_softmax(logits, -1)
    return [-logprob[place, token].item() for place, token in enumerate(ids[1:])]


def test_values_equal_the_model_on_the_response_alone(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [{"id": "chat", "messages": CHAT}, {"id": "text", "text": "7 + 3 = 0."}]
    rows += [{"id": "none", "messages": [CHAT[1], {"role": "assistant", "content": ""}]}]
    frame = _score(tmp_path, rows, part_rows=2)
    values = dict(frame.select("id", COLUMN).iter_rows())
    tokenizer = transformers.AutoTokenizer.from_pretrained(DATA / "models" / "student")
    expected = []
    for message in (CHAT[2], CHAT[4]):
        header = tokenizer("<|im_start|>assistant\n")["input_ids"]
        ids = header + tokenizer(message["content"])["input_ids"]
        expected += _oracle(ids)[len(header) - 1 :]
    np.testing.assert_allclose(values["chat"], expected, atol=1e-4)
    assert values["text"] is None  # it has no prompt to leave out
    assert values["none"] is None
    # Control: with the prompt the numbers are others.
    conditional = frame.filter(id="chat")["student_surprisal"][0].to_list()
    assert max(abs(a - b) for a, b in zip(conditional, expected, strict=True)) > 0.1
    (ifd,) = frame.filter(id="chat").select(ts.metrics.ifd())["ifd"].to_list()
    assert ifd == pytest.approx(math.fsum(conditional) / math.fsum(values["chat"]))


def test_only_when_asked_for_and_part_of_the_settings(tmp_path: Path) -> None:
    _score(tmp_path, [{"id": "chat", "messages": CHAT}])
    with pytest.raises(ts.UsageError, match="unconditional"):
        ts.score(tmp_path / "rows.jsonl", student=DATA / "models" / "student", out=tmp_path / "out")
    ts.score(tmp_path / "rows.jsonl", student=DATA / "models" / "student", out=tmp_path / "plain")
    assert COLUMN not in ts.scan(tmp_path / "plain").collect_schema()
    with pytest.raises(ts.UsageError, match="--unconditional"):
        ts.select(tmp_path / "plain", "ifd")


def test_beside_a_teacher_that_takes_turns(tmp_path: Path) -> None:
    rows = [{"id": str(n), "messages": CHAT[: 3 + 2 * (n % 2)]} for n in range(5)]
    plain = _score(tmp_path, rows)
    swapped = tmp_path / "swapped"
    swapped.mkdir()
    beside = _score(swapped, rows, teacher=str(DATA / "models" / "teacher"), swap_models=True, part_rows=2)
    for one, other in zip(plain[COLUMN], beside[COLUMN], strict=True):
        np.testing.assert_allclose(one.to_list(), other.to_list(), atol=1e-4)
    row = beside.row(1, named=True)
    assert row["response_compression"] is not None
    assert row["repeated_lines"] is not None
    assert len(row["phase"]) == row["n_tokens"] == len(row[COLUMN])
