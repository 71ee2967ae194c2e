"""What every tokenizer does once its pipeline is made."""

import abc
from collections.abc import Sequence

import numpy as np
import tokenizers

from electra_jax.data.packing import SpecialTokens


class Tokenizer(abc.ABC):
    """A pipeline of the `tokenizers` library that knows no special token, so a text that spells [MASK] is text.

    Attributes:
      vocabulary: tokens in the order of their ids.
      vocab_size: how many.
      special: ids of the special tokens.
      lowercase: whether it ignores case.
    """

    lowercase: bool

    def __init__(self, vocabulary: Sequence[str], special: SpecialTokens, pipeline: tokenizers.Tokenizer):
        self.vocabulary, self.special, self._tokenizer = list(vocabulary), special, pipeline
        self.vocab_size = len(self.vocabulary)

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Token ids of each text, `[n]` int32, without special tokens; uses all cores."""
        encodings = self._tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
        return [np.asarray(encoding.ids, np.int32) for encoding in encodings]

    def encode_with_offsets(self, texts: Sequence[str]) -> list[tuple[np.ndarray, np.ndarray]]:
        """For each text its token ids, `[n]` int32, and where the characters of each token begin and end, `[n, 2]` int32."""
        encodings = self._tokenizer.encode_batch(list(texts), add_special_tokens=False)
        return [(np.asarray(e.ids, np.int32), np.asarray(e.offsets, np.int32).reshape(-1, 2)) for e in encodings]

    def decode(self, ids: Sequence[int]) -> str:
        """The text of `ids`, special tokens left out."""
        return self._tokenizer.decode([int(i) for i in ids if int(i) not in self.special])

    def tokens(self, ids: Sequence[int]) -> list[str]:
        """The pieces that `ids` stand for."""
        return [self.vocabulary[int(i)] for i in ids]

    @abc.abstractmethod
    def with_special_names(self) -> tokenizers.Tokenizer:
        """A separate pipeline, for a file that registers special tokens in it."""

    @abc.abstractmethod
    def to_json(self) -> dict[str, str]:
        """All there is to know, for `electra_jax.data.tokenizer.from_json`."""
