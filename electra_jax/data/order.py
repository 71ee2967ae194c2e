"""The order of a run's data: functions from positions to sequences, with no state to save.

A position is the number of sequences that were consumed before. Each function takes positions `[n]` and gives the
numbers of the sequences there, `[n]`; each epoch has an order of its own.
"""

import functools
from collections.abc import Callable, Sequence

import numpy as np

Order = Callable[[np.ndarray], np.ndarray]

# Positions over which a mixture is exact.
ROUND = 1_000_000


def fully_shuffled(count: int, seed: int) -> Order:
    """Every sequence is as likely to come next as any other that is left of the epoch.

    The order of an epoch is a table: 4 bytes a sequence, a second or so for ten million.
    """

    @functools.lru_cache(2)  # an epoch may end within a batch
    def epoch_order(epoch: int) -> np.ndarray:
        numbers = np.arange(count, dtype=np.uint32 if count <= 2**32 else np.uint64)
        return np.random.default_rng((seed, epoch)).permutation(numbers)

    return _by_epoch(count, lambda epoch, places: epoch_order(epoch)[places])


def shuffled_by_blocks(blocks: Sequence[int], window: int, seed: int) -> Order:
    """Blocks of neighbours come in random order; within each `window` of them, sequences do.

    Args:
      blocks: how many sequences each block holds; the first block has the first numbers.
      window: blocks that are mixed with each other.
      seed: of all epochs.
    """
    sizes = np.asarray(blocks, np.int64)
    firsts, count = np.cumsum(sizes) - sizes, int(sizes.sum())

    @functools.lru_cache(2)  # an epoch may end within a batch
    def epoch_order(epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """The blocks in their order, and where each window begins and the last ends."""
        blocks = np.random.default_rng((seed, epoch)).permutation(len(sizes))
        ends = np.cumsum(sizes[blocks])
        return blocks, np.concatenate([[0], ends[window - 1 :: window], ends[-1:]])

    @functools.lru_cache(4)
    def window_order(epoch: int, number: int) -> np.ndarray:
        blocks = epoch_order(epoch)[0][number * window : (number + 1) * window]
        sequences = np.concatenate([np.arange(firsts[block], firsts[block] + sizes[block]) for block in blocks])
        return np.random.default_rng((seed, epoch, number)).permutation(sequences)

    def in_epoch(epoch: int, places: np.ndarray) -> np.ndarray:
        result = np.empty(len(places), np.int64)
        begins = epoch_order(epoch)[1]
        numbers = np.searchsorted(begins, places, side="right") - 1
        for number in np.unique(numbers).tolist():
            here = numbers == number
            result[here] = window_order(epoch, number)[places[here] - begins[number]]
        return result

    return _by_epoch(count, in_epoch)


def _by_epoch(count: int, in_epoch: Callable[[int, np.ndarray], np.ndarray]) -> Order:
    """An order of `count` sequences an epoch: `in_epoch` gives those at some places of one epoch."""

    def order(positions: np.ndarray) -> np.ndarray:
        epochs, places = np.divmod(np.asarray(positions, np.int64), count)
        result = np.empty(len(places), np.int64)
        for epoch in np.unique(epochs).tolist():
            here = epochs == epoch
            result[here] = in_epoch(epoch, places[here])
        return result

    return order


def mixed(shares: Sequence[float], seed: int) -> Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]:
    """Positions `[n]` -> which source each is of, and the position in that source, `[n]` each.

    Over every `ROUND` positions each source has as many as its share of them, to the next whole number.
    """
    counts = np.floor(np.asarray(shares) / np.sum(shares) * ROUND).astype(np.int64)
    # What rounding down has left goes to those that it took most from.
    lost = np.asarray(shares) / np.sum(shares) * ROUND - counts
    counts[np.argsort(-lost, kind="stable")[: ROUND - counts.sum()]] += 1
    # Evenly spread: each of a source's places is drawn from a stretch of its own.
    rng = np.random.default_rng(seed)
    places = np.concatenate([(np.arange(n) + rng.random(n)) / max(n, 1) for n in counts])
    table = np.repeat(np.arange(len(counts)), counts)[np.argsort(places, kind="stable")]
    before = np.zeros(ROUND, np.int64)
    for source in range(len(counts)):
        before[table == source] = np.arange(counts[source])

    def order(positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        rounds, places = np.divmod(np.asarray(positions, np.int64), ROUND)
        sources = table[places]
        return sources, rounds * counts[sources] + before[places]

    return order
