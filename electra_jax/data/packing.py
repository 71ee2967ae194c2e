"""From documents of token ids to records of fixed length, and from records back to their layout."""

import collections
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np

# As they are spelt in every vocabulary, in the order of `SpecialTokens`.
SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")


class SpecialTokens(NamedTuple):
    """Ids of the special tokens; `pad` is always 0."""

    pad: int
    unk: int
    cls: int
    sep: int
    mask: int


# Pieces that wait to be packed together: enough for a full record to be found nearly always, little memory.
_BUFFER = 16_384


def pack(documents: Iterable[np.ndarray], length: int, special: SpecialTokens) -> Iterator[np.ndarray]:
    """Packs whole documents into records; no token is lost.

    A document longer than a record is cut into consecutive windows. Each piece becomes [CLS] piece [SEP].
    Pieces are combined greedily, longest first, out of a bounded buffer (best-fit decreasing). The result
    depends on the input alone.

    Args:
      documents: the token ids of each document, `[n]`, without special tokens.
      length: tokens in a record.
      special: ids of the special tokens.

    Yields:
      Records `[length]` of int32, padded with `special.pad`.
    """
    buckets: list[collections.deque[np.ndarray]] = [collections.deque() for _ in range(length + 1)]
    available = 0  # bit n is set where a piece of n tokens waits
    waiting = 0
    window = length - 2

    def record() -> np.ndarray:
        nonlocal available, waiting
        out = np.full(length, special.pad, np.int32)
        used = 0
        while fitting := available & ((1 << (length - used + 1)) - 1):
            size = fitting.bit_length() - 1
            piece = buckets[size].popleft()
            if not buckets[size]:
                available &= ~(1 << size)
            waiting -= 1
            out[used] = special.cls
            out[used + 1 : used + size - 1] = piece
            out[used + size - 1] = special.sep
            used += size
        return out

    for document in documents:
        for start in range(0, len(document), window):
            piece = document[start : start + window]
            buckets[len(piece) + 2].append(piece)
            available |= 1 << (len(piece) + 2)
            waiting += 1
        while waiting > _BUFFER:
            yield record()
    while waiting:
        yield record()


def two_segments(
    documents: Iterable[list[np.ndarray]], length: int, special: SpecialTokens, seed: tuple[int, ...] = ()
) -> Iterator[np.ndarray]:
    """The reference's examples: [CLS] a [SEP] b [SEP], padded, overflowing tokens dropped.

    Follows google-research/electra, build_pretraining_dataset.py: lines of a document are gathered until a
    target length is reached (5 %: a random one); the example is split in two segments, in 10 % of the cases
    left as one; what overflows is cut off. Draws are a function of `seed` and the document's index.

    Args:
      documents: for each document the token ids of its lines, each `[n]`.
      length: tokens in a record.
      special: ids of the special tokens.
      seed: of the random choices, besides the document's index.

    Yields:
      Records `[length]` of int32, padded with `special.pad`.
    """

    def example(lines: list[np.ndarray], target: int, rng: np.random.Generator) -> np.ndarray:
        first_target = length * 1000 if rng.random() < 0.1 else (target - 3) // 2
        first: list[int] = []
        second: list[int] = []
        for line in lines:
            fits = not first or len(first) + len(line) < first_target
            if fits or (not second and len(first) < first_target and rng.random() < 0.5):
                first.extend(line)
            else:
                second.extend(line)
        first = first[: length - 2]
        second = second[: max(0, length - len(first) - 3)]
        ids = [special.cls, *first, special.sep, *([*second, special.sep] if second else [])]
        return np.asarray(ids + [special.pad] * (length - len(ids)), np.int32)

    def next_target(rng: np.random.Generator) -> int:
        return int(rng.integers(5, length + 1)) if rng.random() < 0.05 else length

    for index, lines in enumerate(documents):
        rng = np.random.default_rng((12345, *seed, index))
        target, gathered, count = next_target(rng), [], 0
        for line in lines:
            gathered.append(line)
            count += len(line)
            if count >= target:
                yield example(gathered, target, rng)
                gathered, count = [], 0
                target = next_target(rng)
        if count:
            yield example(gathered, target, rng)
