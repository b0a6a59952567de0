"""Texts of tokens from the tokenizer that a score folder keeps."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from tokenizers import Tokenizer

from tests.helpers.paths import MODELS
from trajscore.errors import DataError
from trajscore.rendering.decoding import TOKENIZER, Decoder


@pytest.mark.parametrize("model", ["student", "student-llama"])
@pytest.mark.parametrize(
    "text", ["", "a", "Zwölf Äpfel: 🙂👩‍👩‍👧 \u202eRTL\n\n  two  spaces", "<think>\n7 + 8\n</think>"]
)
def test_texts_join_to_the_text(model: str, text: str, tmp_path: Path) -> None:
    shutil.copy(MODELS / model / "tokenizer.json", tmp_path / TOKENIZER)
    ids = Tokenizer.from_file(str(tmp_path / TOKENIZER)).encode(text, add_special_tokens=False).ids
    texts = Decoder(tmp_path).texts(ids)
    assert len(texts) == len(ids)
    assert "".join(texts) == text


def test_half_a_character_is_shown_as_such(tmp_path: Path) -> None:
    shutil.copy(MODELS / "student" / "tokenizer.json", tmp_path / TOKENIZER)
    ids = Tokenizer.from_file(str(tmp_path / TOKENIZER)).encode("a🙂", add_special_tokens=False).ids
    assert len(ids) > 2, "the emoji must take several tokens for this test to say anything"
    assert "".join(Decoder(tmp_path).texts(ids[:-1])).startswith("a\ufffd")
    assert Decoder(tmp_path).texts([]) == []


@pytest.mark.parametrize("number", [-7, 10**6, 2**40])
def test_ids_of_no_tokenizer_have_no_text(number: int, tmp_path: Path) -> None:
    shutil.copy(MODELS / "student" / "tokenizer.json", tmp_path / TOKENIZER)
    ids = Tokenizer.from_file(str(tmp_path / TOKENIZER)).encode("7 + 8", add_special_tokens=False).ids
    assert "".join(Decoder(tmp_path).texts([number, *ids, number])) == "7 + 8"


def test_a_folder_without_tokenizer_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="not there"):
        Decoder(tmp_path)
    (tmp_path / TOKENIZER).write_text("{}")
    with pytest.raises(DataError, match="no tokenizer"):
        Decoder(tmp_path)
