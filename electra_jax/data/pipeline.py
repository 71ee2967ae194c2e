"""Batches as a pure function of the position in the data: there is no iterator state to save."""

import collections
import concurrent.futures
import itertools
import math
import os
import threading
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import grain
import numpy as np
import tensorflow_datasets as tfds
from array_record.python.array_record_module import ArrayRecordReader
from tensorflow_datasets.proto import tf_example_pb2

from electra_jax import storage
from electra_jax.config import DataConfig
from electra_jax.data import order as orders
from electra_jax.data.dataset import RECORD_SEQUENCES, TRAIN, VALIDATION, DataSet
from electra_jax.errors import UserError

# Concurrent requests to a bucket, which takes a while to answer each of them.
_REQUESTS = 32
# Sequences to read together: in smaller groups, each costs more.
_READ_AHEAD = 1024


class Records:
    """Random access to the sequences of one split of a prepared data set.

    Attributes:
      bytes_read: of token ids so far, as they are stored.
      bytes_used: those of the sequences that were asked for.
    """

    def __init__(self, made: DataSet, split: str, block: int = RECORD_SEQUENCES, kept: int = 0):
        """`block` sequences, a multiple of `RECORD_SEQUENCES`, are read at a time; the last `kept` blocks are kept."""
        info = tfds.builder_from_directory(os.fspath(made.directory)).info
        self._paths = [os.fspath(path) for path in info.splits[split].filepaths]
        feature = info.features["input_ids"]
        self._dtype, self._length = feature.np_dtype, feature.shape[1]
        sequences = np.asarray(made.metadata[split]["shards"], np.int64)
        self._begins = np.cumsum(sequences) - sequences
        self._sequences, self._block = sequences, block
        self._readers: collections.OrderedDict[int, ArrayRecordReader] = collections.OrderedDict()
        self._kept: collections.OrderedDict[tuple[int, int], np.ndarray] = collections.OrderedDict()
        self._capacity, self._lock, self._open_files = kept, threading.Lock(), _open_files()
        is_remote = storage.is_remote(made.directory)
        self._executor = concurrent.futures.ThreadPoolExecutor(_REQUESTS) if is_remote else None
        self._head = (0, b"")  # of the last record: its size, and what stands before its ids
        self.bytes_read = self.bytes_used = 0

    def __len__(self) -> int:
        return int(self._sequences.sum())

    @property
    def blocks(self) -> np.ndarray:
        """How many sequences each block holds, in order; the last of a shard may hold fewer."""
        full, rest = np.divmod(self._sequences, self._block)
        parts = [[self._block] * f + ([r] if r else []) for f, r in zip(full.tolist(), rest.tolist())]
        return np.concatenate([np.asarray(part, np.int64) for part in parts])

    def read(self, indices: Sequence[int] | np.ndarray) -> np.ndarray:
        """Token ids `[len(indices), L]`, int32."""
        indices = np.asarray(indices, np.int64)
        shards = np.searchsorted(self._begins, indices, side="right") - 1
        blocks, places = np.divmod(indices - self._begins[shards], self._block)
        wanted, which = np.unique(
            shards << 32 | blocks, return_inverse=True
        )  # single numbers are many times faster than pairs
        numbered = [divmod(key, 1 << 32) for key in wanted.tolist()]
        of_shard = [(shard, [b for _, b in some]) for shard, some in itertools.groupby(numbered, lambda key: key[0])]
        if self._executor:  # a request for each block, many at a time
            tasks = [(shard, [block]) for shard, blocks in of_shard for block in blocks]
            found = itertools.chain.from_iterable(self._executor.map(lambda task: self._blocks(*task), tasks))
        else:
            found = itertools.chain.from_iterable(self._blocks(*task) for task in of_shard)
        found, out = list(found), np.empty((len(indices), self._length), np.int32)
        for row, (i, place) in enumerate(zip(which.tolist(), places.tolist())):
            out[row] = found[i][place]
        self.bytes_used += out.size * np.dtype(self._dtype).itemsize
        return out

    def _blocks(self, shard: int, blocks: list[int]) -> list[np.ndarray]:
        """The sequences of some blocks of a shard, each `[block, L]` as stored; the shard's last may be shorter, and is padded."""
        with self._lock:
            found = {block: self._kept[shard, block] for block in blocks if (shard, block) in self._kept}
            reader = self._readers.pop(shard, None)
        if reader is None:  # without the lock: in a bucket a request, for which no other thread should wait
            reader = ArrayRecordReader(self._paths[shard], options="readahead_buffer_size:0")
        with self._lock:
            self._readers[shard] = reader
            if len(self._readers) > self._open_files:
                self._readers.popitem(last=False)  # closes it, once no other thread reads from it
        missing, size = [block for block in blocks if block not in found], self._block // RECORD_SEQUENCES
        ranges = [range(block * size, min(block * size + size, reader.num_records())) for block in missing]
        raw = iter(reader.read([record for numbers in ranges for record in numbers]) if missing else [])
        for block, numbers in zip(missing, ranges):
            records = [self._decode(next(raw)) for _ in numbers]
            found[block] = np.concatenate(records).reshape(-1, self._length)
        with self._lock:
            for block in missing:
                self.bytes_read += found[block].nbytes
                if self._capacity:
                    self._kept[shard, block] = found[block]
            while len(self._kept) > self._capacity:
                self._kept.popitem(last=False)
        return [found[block] for block in blocks]

    def _decode(self, record: bytes) -> np.ndarray:
        """The ids of a `tf.train.Example`, as TFDS reads it but without its checks, which would take most of the time.

        The ids are the last bytes of a record, after all length fields: a record that is as long as the previous one and begins
        the same has them at the same place.
        """
        size, head = self._head
        if len(record) == size and record.startswith(head):
            return np.frombuffer(record, self._dtype, offset=len(head))
        (ids,) = tf_example_pb2.Example.FromString(record).features.feature["input_ids"].bytes_list.value
        if record.endswith(ids):
            self._head = (len(record), record[: len(record) - len(ids)])
        return np.frombuffer(ids, self._dtype)


def _open_files() -> int:
    """How many files to hold open: much text has more shards than a process may have by default."""
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return max(64, min(hard, 2**20) // 4)


class Sequences:
    """The training sequences of all sources of a run, in its order.

    Attributes:
      lanes: positions that differ by a multiple of it are in the same lane (`order.shuffled_by_blocks`).
      shares: how many sequences of each source are read, in proportion.
    """

    def __init__(self, sets: Sequence[DataSet], data: DataConfig, seed: int):
        block, kept = RECORD_SEQUENCES, 0
        if data.shuffle == "blocks":
            block, kept = data.shuffle_block, 2 * data.shuffle_window  # a lane may reach into its next block
        self._sources = [Records(made, TRAIN, block, kept) for made in sets]
        self.lanes = min(data.shuffle_window, *map(len, self._sources)) if data.shuffle == "blocks" else 1
        self._orders = []
        for i, source in enumerate(self._sources):
            if data.shuffle == "blocks":
                self._orders.append(orders.shuffled_by_blocks(source.blocks, self.lanes, seed + i))
            else:
                self._orders.append(orders.fully_shuffled(len(source), seed + i))
        weights = data.weights or (1.0,)
        in_epochs = data.weights_are == "epochs"
        self.shares = [w * len(source) if in_epochs else w for w, source in zip(weights, self._sources, strict=True)]
        self._mixed = orders.mixed(self.shares, self.lanes, seed) if len(sets) > 1 else None
        for number, share in enumerate(self.shares):
            if len(sets) > 1 and share / sum(self.shares) * orders.ROUND < 100:
                raise UserError(
                    f"config.data.weights: part {number + 1} of data.source has a share of {share / sum(self.shares):.1e} of the "
                    "sequences, too small to be mixed in evenly; raise its weight, or join it with another part"
                )

    def __len__(self) -> int:
        return sum(map(len, self._sources))

    def epochs(self, count: int) -> float:
        """How often `count` sequences go through the source that is read most often."""
        return max(count * share / sum(self.shares) / len(each) for share, each in zip(self.shares, self._sources))

    def read(self, positions: np.ndarray) -> np.ndarray:
        """Token ids `[len(positions), L]`, int32."""
        if self._mixed is None:
            return self._sources[0].read(self._orders[0](positions))
        which, places = self._mixed(positions)
        parts = [(which == i, source) for i, source in enumerate(self._sources)]
        out = None
        for i, (here, source) in enumerate(parts):
            ids = source.read(self._orders[i](places[here]))
            out = np.empty((len(positions), ids.shape[1]), np.int32) if out is None else out
            out[here] = ids
        return out

    def read_per_used(self) -> float:
        """Bytes of token ids that were read for each that was used, so far."""
        used = sum(source.bytes_used for source in self._sources)
        return sum(source.bytes_read for source in self._sources) / used if used else 0.0


def training_batches(
    sequences: Sequences, start: int, batch_size: int, rows: slice | np.ndarray = slice(None)
) -> Iterator[np.ndarray]:
    """Endless batches from sequence number `start` on, read ahead by a thread.

    Args:
      sequences: in their order.
      start: sequences that were consumed before, by any number of steps of any size.
      batch_size: sequences a step, over all processes.
      rows: the part of each batch that this process reads.

    Yields:
      Token ids `[rows, L]`, int32.
    """

    # In such an order that neighbouring rows, as one process has, are of the same lanes: it reads only its share of the blocks.
    mine = np.arange(batch_size).reshape(-1, math.gcd(batch_size, sequences.lanes)).T.reshape(-1)[rows]
    together = max(1, _READ_AHEAD // len(mine))

    def several(index: int) -> np.ndarray:
        firsts = start + (int(index) * together + np.arange(together)) * batch_size
        return sequences.read((firsts[:, None] + mine).reshape(-1)).reshape(together, len(mine), -1)

    made = grain.MapDataset.range(2**31 - 1).map(several)
    for batches in made.to_iter_dataset(grain.ReadOptions(num_threads=1, prefetch_buffer_size=4)):
        yield from batches


class EvaluationBatch(NamedTuple):
    """Records in order; the last batch is filled up with empty records, all padding."""

    input_ids: np.ndarray  # [B, L] int32
    record: np.ndarray  # [B] int32, the number among all that are held out


def held_out(sets: Sequence[DataSet]) -> list[Records]:
    """The held-out records of all sources that have any."""
    return [Records(made, VALIDATION) for made in sets if VALIDATION in made.metadata]


def evaluation_batches(
    sources: Sequence[Records], batch_size: int, max_records: int, pad: int, rows: slice | np.ndarray = slice(None)
) -> Iterator[EvaluationBatch]:
    """Up to `max_records` (0: all) of the records of all `sources` (`held_out`), each once; `rows` as in `training_batches`.

    They are drawn uniformly from all, the same ones for every run and batch size.
    """
    ends = np.cumsum([len(source) for source in sources])
    chosen = np.arange(ends[-1])
    if 0 < max_records < len(chosen):
        chosen = np.sort(np.random.default_rng(0).permutation(len(chosen))[:max_records])
    for first in range(0, len(chosen), batch_size):
        places = np.arange(first, first + batch_size)[rows]
        record = chosen[np.minimum(places, len(chosen) - 1)]
        of = np.searchsorted(ends, record, side="right")
        ids = np.concatenate(
            [source.read(record[of == i] - (ends[i] - len(source))) for i, source in enumerate(sources)]
        )  # sorted by record, so the sources come one after the other
        ids[places >= len(chosen)] = pad
        yield EvaluationBatch(ids, record.astype(np.int32))
