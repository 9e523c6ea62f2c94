"""Raw text that is turned into token ids as it is read."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np


@dataclass(frozen=True, kw_only=True)
class TokenizedText:
    """Inputs for a `Split` of a text model: the texts, and the user's own tokenizer.

    The token ids alone would serve a model as well, but a stress test has to misspell the text before it is
    cut into tokens.

    Attributes:
        texts: One per case.
        tokenize: Gives ``{input name: (T,) integers}``, of the same length for every text: padded and cut.

    Example:
        >>> def bytes_of(text: str) -> dict[str, np.ndarray]:
        ...     return {"input_ids": np.frombuffer(text.encode().ljust(8)[:8], np.uint8).astype(np.int64)}
        >>> inputs = TokenizedText(texts=["no fever", "cough"], tokenize=bytes_of)
        >>> len(inputs), inputs[1]["input_ids"][:3]
        (2, array([ 99, 111, 117]))
    """

    texts: Sequence[str]
    tokenize: Callable[[str], Mapping[str, np.ndarray]]

    modality: ClassVar[str] = "text"

    def __len__(self) -> int:
        return len(self.texts)

    def __getitem__(self, index: int, /) -> Mapping[str, np.ndarray]:
        return self.tokenize(self.texts[index])

    def __iter__(self) -> Iterator[Mapping[str, np.ndarray]]:
        return (self.tokenize(text) for text in self.texts)
