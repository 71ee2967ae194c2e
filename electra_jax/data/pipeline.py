"""Batches as a pure function of the position in the data: there is no iterator state to save."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import grain
import numpy as np
import tensorflow_datasets as tfds


class Records:
    """Random access to one split of a prepared data set."""

    def __init__(self, directory: Path, split: str):
        builder = tfds.builder_from_directory(str(directory))
        self._source = builder.as_data_source(split)

    def __len__(self) -> int:
        return len(self._source)

    def read(self, indices: Sequence[int]) -> np.ndarray:
        """Token ids `[len(indices), L]`, int32."""
        return np.stack([row["input_ids"] for row in self._source.__getitems__(list(indices))]).astype(np.int32)


class EvaluationBatch(NamedTuple):
    """Records in order; the last batch is filled up with empty records, all padding."""

    input_ids: np.ndarray  # [B, L] int32
    record: np.ndarray  # [B] int32, the index in the split


def training_order(num_records: int, seed: int) -> grain.MapDataset:
    """`order[i]` is the record that is the i-th sequence of the run; each epoch has an order of its own."""
    return grain.MapDataset.range(num_records).seed(seed).shuffle().repeat()


def training_batches(
    records: Records, seed: int, start: int, batch_size: int, rows: slice | np.ndarray = slice(None)
) -> Iterator[np.ndarray]:
    """Endless batches from sequence number `start` on, read ahead by a thread.

    Args:
      records: the split to read.
      seed: of the order.
      start: sequences that were consumed before, by any number of steps of any size.
      batch_size: sequences a step, over all processes.
      rows: the part of each batch that this process reads.

    Yields:
      Token ids `[rows, L]`, int32.
    """
    order = training_order(len(records), seed)

    def batch(index: int) -> np.ndarray:
        first = start + int(index) * batch_size
        return records.read([int(i) for i in order.slice(slice(first, first + batch_size)).batch(batch_size)[0][rows]])

    batches = grain.MapDataset.range(2**31 - 1).map(batch)
    return iter(batches.to_iter_dataset(grain.ReadOptions(num_threads=1, prefetch_buffer_size=4)))


def evaluation_batches(
    records: Records, batch_size: int, max_records: int, pad: int, rows: slice | np.ndarray = slice(None)
) -> Iterator[EvaluationBatch]:
    """The first `max_records` records (0: all), each once; `rows` as in `training_batches`."""
    total = min(len(records), max_records or len(records))
    for first in range(0, total, batch_size):
        index = np.arange(first, first + batch_size, dtype=np.int32)[rows]
        ids = records.read([min(int(i), total - 1) for i in index])
        ids[index >= total] = pad
        yield EvaluationBatch(ids, index)
