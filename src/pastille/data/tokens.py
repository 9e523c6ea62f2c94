"""Text as token ids, by a tokenizer that a bundle carries: one code for training and for a request."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Final, final

import numpy as np

from pastille.errors import DataError, IntegrityError, UsageError
from pastille.files import read_bounded
from pastille.values import TextEncoding

if TYPE_CHECKING:
    from tokenizers import Tokenizer as Backend

MAX_TOKENIZER_BYTES = 64 << 20
MAX_TEXT_BYTES = 256 << 10


@final
class Tokenizer:
    """What `TextEncoding` says, with its tokenizer read; the file is read when the first text comes.

    Threads may share it. Pickled, it arrives with the file unread. It is a ``tokenize`` of `TokenizedText`.

    Args:
        path: The tokenizer's file.
        encoding: Its hash, and what the model takes.
    """

    def __init__(self, path: Path, encoding: TextEncoding) -> None:
        self.path: Final = path
        self.encoding: Final = encoding
        self._backend: Backend | None = None

    def __reduce__(self) -> tuple[type[Tokenizer], tuple[Path, TextEncoding]]:
        return Tokenizer, (self.path, self.encoding)

    def __call__(self, text: str) -> dict[str, np.ndarray]:
        """Cut one text into tokens.

        Returns:
            ``{input name: (T,)}``, int64.

        Raises:
            DataError: It is too long to be looked at.
            IntegrityError: The tokenizer's file is missing, or not the one that the encoding names.
            UsageError: The package tokenizers is not installed.
        """
        try:
            size = len(text.encode())
        except UnicodeEncodeError:  # JSON can write half a letter
            raise DataError("text must be Unicode, without halves of surrogate pairs") from None
        if size > MAX_TEXT_BYTES:
            raise DataError(f"text must have at most {MAX_TEXT_BYTES} bytes")
        if self._backend is None:
            self._backend = _opened(self.path, self.encoding)
        found = self._backend.encode(text)
        given = self.encoding
        named = {given.ids: found.ids, given.mask: found.attention_mask, given.types: found.type_ids}
        return {name: np.array(values, np.int64) for name, values in named.items() if name is not None}


def text_encoding(path: Path, *, length: int) -> TextEncoding:
    """Say how a tokenizer's file is used: what goes into `Preprocessing.text`.

    The inputs are called as by most transformers; where they are not, `dataclasses.replace` the names.

    Args:
        path: The file, in the format of Hugging Face tokenizers; ``Splits.files`` gives it to the bundle.
        length: Tokens of each text.

    Raises:
        IntegrityError: The file is missing or too large.
        UsageError: The package tokenizers is not installed.
    """
    data = read_bounded(path, MAX_TOKENIZER_BYTES, what="tokenizer")
    pad = next((i for word in ("[PAD]", "<pad>") if (i := _backend(data).token_to_id(word)) is not None), 0)
    return TextEncoding(
        sha256=hashlib.sha256(data).hexdigest(), length=length, tokenizer=path.name, pad_id=pad
    )


def _opened(path: Path, encoding: TextEncoding) -> Backend:
    data = read_bounded(path, MAX_TOKENIZER_BYTES, what="tokenizer")
    if hashlib.sha256(data).hexdigest() != encoding.sha256:
        raise IntegrityError(f"tokenizer {path} is not the file that the model was trained with")
    backend = _backend(data)
    backend.enable_truncation(max_length=encoding.length)
    backend.enable_padding(length=encoding.length, pad_id=encoding.pad_id)
    return backend


def _backend(data: bytes) -> Backend:
    try:
        from tokenizers import Tokenizer as Backend
    except ImportError:
        raise UsageError("text needs tokenizers; install it with pip install 'pastille[tokens]'") from None
    try:
        return Backend.from_str(data.decode())
    except Exception as error:  # the package raises nothing narrower
        raise IntegrityError(f"tokenizer cannot be read ({type(error).__name__})") from None
