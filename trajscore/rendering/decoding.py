"""Token ids -> the text of each token, from the tokenizer that a score folder keeps.

The `tokenizers` library is small and needs no torch, so scores made elsewhere can be read on a laptop.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from trajscore.errors import DataError
from trajscore.io.paths import as_path

TOKENIZER = "tokenizer.json"
"""The file in a score folder."""


_NONE = 2**32 - 1
"""An id that no tokenizer has."""
_PENDING = 64
"""Most tokens without a character of their own that wait for one: a stream looks at all of them again with each."""


def token_texts(tokenizer: Any, ids: Sequence[int]) -> list[str]:
    """The text of each token; joined, the text of all.

    A character whose bytes lie in several tokens is given to the last of them, the others are empty. Bytes that make no
    character at all become U+FFFD, as in the tokenizer's own decoding.

    Args:
        tokenizer: one of the `tokenizers` library.
        ids: any of its ids; others have no text.
    """
    from tokenizers.decoders import DecodeStream

    ids = [int(number) if 0 <= number < _NONE else _NONE for number in ids]
    stream = DecodeStream(skip_special_tokens=False)
    texts, pending = list[str](), list[int]()
    for number in ids:
        text = stream.step(tokenizer, number) or ""
        pending = [] if text else [*pending, number]
        if len(pending) >= _PENDING:
            text, pending = str(tokenizer.decode(pending, skip_special_tokens=False)), []
            stream = DecodeStream(skip_special_tokens=False)
        texts.append(text)
    # A stream holds back bytes that are not yet a character; at the end nothing can complete them.
    whole = tokenizer.decode(ids, skip_special_tokens=False)
    joined = "".join(texts)
    if texts and len(joined) < len(whole):
        texts[-1] += whole[len(joined) :]
    return texts


class Decoder:
    """Gives every token its text.

    Args:
        folder: a score folder.

    Raises:
        DataError: the folder holds no tokenizer, or one that cannot be read.
    """

    def __init__(self, folder: str | Path) -> None:
        from tokenizers import Tokenizer

        path = as_path(folder) / TOKENIZER
        if not path.is_file():
            raise DataError(f"{path}: not there, so tokens cannot be shown as text.", "Score the corpus again.")
        try:
            self._tokenizer = Tokenizer.from_str(path.read_text("utf-8"))
        except Exception as error:  # the library raises bare Exceptions
            raise DataError(f"{path}: is no tokenizer ({error}).", "Score the corpus again.") from error

    def texts(self, ids: Sequence[int]) -> list[str]:
        """The text of each token; joined, the text of all. See `token_texts`."""
        return token_texts(self._tokenizer, ids)
