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


def shuffled_by_blocks(blocks: Sequence[int], lanes: int, seed: int) -> Order:
    """Blocks of neighbouring sequences come in random order, in several lanes at once, and so do the sequences within a block.

    The blocks of an epoch, one after the other, are cut into `lanes` equal stretches. Lane `k` reads stretch `k` and has the
    places `k`, `k + lanes`, `k + 2 lanes`, ... of the epoch: successive sequences come from different blocks, and a process
    that has only the places of some lanes reads only the blocks of these.

    Args:
      blocks: how many sequences each block holds; the first block has the first numbers.
      lanes: blocks that are mixed with each other; no more than there are sequences.
      seed: of all epochs.
    """
    sizes = np.asarray(blocks, np.int64)
    firsts, count = np.cumsum(sizes) - sizes, int(sizes.sum())
    # Where each lane's stretch begins; the first `count % lanes` are longer by one, as these lanes have one place more.
    stretches = np.arange(lanes) * (count // lanes) + np.minimum(np.arange(lanes), count % lanes)

    @functools.lru_cache(2)  # an epoch may end within a batch
    def epoch_order(epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """The blocks in their order, and where each begins."""
        numbers = np.random.default_rng((seed, epoch)).permutation(len(sizes))
        return numbers, np.cumsum(sizes[numbers]) - sizes[numbers]

    @functools.lru_cache(2 * lanes)
    def block_order(epoch: int, block: int) -> np.ndarray:
        """Its sequences in their order, padded to the size of the largest block."""
        own = np.random.default_rng((seed, epoch, block)).permutation(sizes[block])
        return firsts[block] + np.pad(own, (0, sizes.max() - len(own)))

    def in_epoch(epoch: int, places: np.ndarray) -> np.ndarray:
        times, lane = np.divmod(places, lanes)
        places = stretches[lane] + times
        numbers, begins = epoch_order(epoch)
        nth = np.searchsorted(begins, places, side="right") - 1
        found, which = np.unique(nth, return_inverse=True)
        sequences = np.stack([block_order(epoch, block) for block in numbers[found].tolist()])
        return sequences[which, places - begins[nth]]

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


def mixed(shares: Sequence[float], lanes: int, seed: int) -> Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]:
    """Positions `[n]` -> which source each is of, and the position in that source, `[n]` each.

    Of every `ROUND` positions of a lane (see `shuffled_by_blocks`) each source has its share, rounded to a whole number.
    A position in a lane here is in the same lane of its source.
    """
    counts = np.floor(np.asarray(shares) / np.sum(shares) * ROUND).astype(np.int64)
    # What is left after rounding down goes to the sources that lost most by it.
    lost = np.asarray(shares) / np.sum(shares) * ROUND - counts
    counts[np.argsort(-lost, kind="stable")[: ROUND - counts.sum()]] += 1
    # Evenly spread: each of a source's places is drawn from a stretch of its own.
    rng = np.random.default_rng(seed)
    places = np.concatenate([(np.arange(n) + rng.random(n)) / max(n, 1) for n in counts])
    table = np.repeat(np.arange(len(counts)), counts)[np.argsort(places, kind="stable")]
    before = np.zeros(ROUND, np.int64)
    for source in range(len(counts)):
        before[table == source] = np.arange(counts[source])
    # Each lane begins at another place of the round; from the same place, all would read the same source at a time.
    starts = np.arange(lanes) * ROUND // lanes
    skipped = np.stack([np.bincount(table[:start], minlength=len(counts)) for start in starts])

    def order(positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        times, lane = np.divmod(np.asarray(positions, np.int64), lanes)
        rounds, places = np.divmod(times + starts[lane], ROUND)
        sources = table[places]
        return sources, (rounds * counts[sources] + before[places] - skipped[lane, sources]) * lanes + lane

    return order
