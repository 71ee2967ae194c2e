"""The prepared data set: records of token ids as ArrayRecord, which TFDS reads.

A data set has one corpus, one tokenizer and one length. It is written shard by shard, each in any process on any
machine: first to local disk, then moved to where it belongs and written down in `shards/NNNNN.json`. `metadata.json`,
written last, makes it visible.

    NAME-train.array_record-00000-of-00007   records, RECORD_SEQUENCES sequences each
    NAME-validation.array_record-00000-of-00007
    shards/00000.json                        what each shard holds
    tokenizer.json, data_card.json, data_card.html
    dataset_info.json, features.json         as TFDS writes them
    metadata.json                            what it was made of, and counts
"""

import dataclasses
import functools
import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from array_record.python.array_record_module import ArrayRecordWriter
from etils import epath

from electra_jax import storage
from electra_jax.data import packing, survey
from electra_jax.data import tokenizer as tokenizer_lib
from electra_jax.data.survey import Dropped, Survey
from electra_jax.data.tokenizer import Tokenizer

TRAIN, VALIDATION = "train", "validation"
VERSION = "2.0.0"
# Sequences in a record, the least that is read at once. The last record of a shard is filled up with padding.
RECORD_SEQUENCES = 16
# Characters of text whose documents are packed, and the resulting sequences shuffled, at a time.
_CHUNK_CHARACTERS = 1 << 26
# Characters that are tokenised at a time.
_BATCH_CHARACTERS = 1_000_000
# Documents are counted by length: up to 1, 2, 4, ... tokens.
LENGTH_BINS = 24


class DataSet(NamedTuple):
    """A finished data set."""

    directory: epath.Path
    metadata: dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Target:
    """A data set to be made, of one length."""

    directory: str  # .../NAME/VERSION
    length: int

    @property
    def path(self) -> epath.Path:
        return epath.Path(self.directory)

    @property
    def name(self) -> str:
        """Its name in TFDS."""
        return self.path.parent.parent.name

    def file(self, split: str, shard: int, shards: int) -> epath.Path:
        """Where TFDS looks for the records of a shard."""
        return self.path / f"{self.name}-{split}.array_record-{shard:05}-of-{shards:05}"


@dataclasses.dataclass(frozen=True)
class Recording:
    """Makes the records of a corpus, for all lengths in one pass over its text."""

    survey: Survey
    dropped: Dropped | None
    targets: tuple[Target, ...]
    packing: str
    validation_fraction: float

    def done(self, shard: int) -> bool:
        """Whether the shard has been written."""
        return all((target.path / "shards" / f"{shard:05}.json").exists() for target in self.targets)

    def read(self, shard: int) -> None:
        """Tokenises, packs and writes one shard."""
        shards = len(self.survey.plan().shards)
        tokenizer = load_tokenizer(os.fspath(self.targets[0].path / "tokenizer.json"))
        splits = [TRAIN, VALIDATION] if self.validation_fraction > 0 else [TRAIN]
        files = {(target, split): target.file(split, shard, shards) for target in self.targets for split in splits}
        writers = {
            (target, split): _ShardWriter(storage.scratch(file), target.length, tokenizer, self.packing)
            for (target, split), file in files.items()
        }
        counts = {split: _Counts() for split in splits}
        for number, documents in enumerate(self._chunks(shard, tokenizer, counts)):
            for (_, split), writer in writers.items():
                writer.write(documents[split], (shard, number))
        for target in self.targets:
            written = {split: {**counts[split].summary(), **writers[target, split].close()} for split in splits}
            for split in splits:
                storage.move(writers[target, split].path, files[target, split])
            storage.write(target.path / "shards" / f"{shard:05}.json", json.dumps(written))

    def _chunks(
        self, shard: int, tokenizer: Tokenizer, counts: dict[str, "_Counts"]
    ) -> Iterator[dict[str, list[list[np.ndarray]]]]:
        """Yields, chunk by chunk, the token ids of the documents of each split, by line where the packing needs lines."""
        by_line = self.packing == "two_segments"
        documents: dict[str, list[list[np.ndarray]]] = {split: [] for split in counts}
        size = 0
        for texts in _batches(self.survey.documents(shard, self.dropped)):
            lines = [[line for line in text.splitlines() if line.strip()] if by_line else [text] for text in texts]
            ids = iter(tokenizer.encode_batch([line for text in lines for line in text]))
            for text, of_text in zip(texts, lines):
                held_out = survey.is_held_out(survey.digest(text), self.validation_fraction)
                split = VALIDATION if held_out else TRAIN
                encoded = [next(ids) for _ in of_text]
                documents[split].append(encoded)
                counts[split].add(text, encoded, tokenizer.special.unk)
                size += len(text)
            if size >= _CHUNK_CHARACTERS:
                yield documents
                documents, size = {split: [] for split in counts}, 0
        yield documents


@functools.lru_cache(1)
def load_tokenizer(path: str) -> Tokenizer:
    """The tokenizer of a data set."""
    return tokenizer_lib.from_json(json.loads(epath.Path(path).read_text()))


def features(length: int, vocab_size: int):
    """The TFDS features of a record."""
    import tensorflow_datasets as tfds

    dtype = np.uint16 if vocab_size <= 2**16 else np.int32
    ids = tfds.features.Tensor(
        shape=(RECORD_SEQUENCES, length), dtype=dtype, encoding=tfds.features.Encoding.BYTES,
        doc="token ids; the layout follows from the special tokens in them",
    )  # fmt: skip
    return tfds.features.FeaturesDict({"input_ids": ids})


class _ShardWriter:
    """The records of one shard, split and length, on local disk."""

    def __init__(self, path: Path, length: int, tokenizer: Tokenizer, how: str):
        from tensorflow_datasets.core.example_serializer import ExampleSerializer

        self.path, self._length, self._special, self._how = path, length, tokenizer.special, how
        self._features = features(length, tokenizer.vocab_size)
        self._serialize = ExampleSerializer(self._features.get_serialized_info()).serialize_example
        self._writer = ArrayRecordWriter(os.fspath(path), "group_size:1")
        self._rest = np.zeros((0, length), np.int32)
        self._counts = {"sequences": 0, "text_tokens": 0, "padding": 0}

    def write(self, documents: list[list[np.ndarray]], chunk: tuple[int, int]) -> None:
        """Packs the documents of a chunk, and writes the sequences in a random order that depends on the chunk alone."""
        if self._how == "packed":
            packed = packing.pack((ids for document in documents for ids in document), self._length, self._special)
        else:
            packed = packing.two_segments(documents, self._length, self._special, chunk)
        sequences = list(packed)
        if not sequences:
            return
        ids = np.stack(sequences)[np.random.default_rng(chunk).permutation(len(sequences))]
        padding = int(np.count_nonzero(ids == self._special.pad))
        marks = int(np.count_nonzero((ids == self._special.cls) | (ids == self._special.sep)))
        self._counts["sequences"] += len(ids)
        self._counts["padding"] += padding
        self._counts["text_tokens"] += ids.size - padding - marks
        ids = np.concatenate([self._rest, ids])
        whole = len(ids) // RECORD_SEQUENCES * RECORD_SEQUENCES
        for record in ids[:whole].reshape(-1, RECORD_SEQUENCES, self._length):
            self._record(record)
        self._rest = ids[whole:]

    def close(self) -> dict[str, int]:
        """Closes the file; returns the counts of what it holds."""
        if len(self._rest):
            filling = np.full((RECORD_SEQUENCES - len(self._rest), self._length), self._special.pad, np.int32)
            self._record(np.concatenate([self._rest, filling]))
        self._writer.close()
        return self._counts

    def _record(self, ids: np.ndarray) -> None:
        encoded = self._features.encode_example({"input_ids": ids.astype(self._features["input_ids"].np_dtype)})
        self._writer.write(self._serialize(encoded))


class _Counts:
    """Statistics of the documents of a split."""

    def __init__(self):
        self._sums = {"documents": 0, "bytes": 0, "words": 0, "source_tokens": 0, "unknown_tokens": 0}
        self._lengths = np.zeros(LENGTH_BINS, np.int64)

    def add(self, text: str, ids: list[np.ndarray], unknown: int) -> None:
        tokens = sum(map(len, ids))
        self._sums["documents"] += 1
        self._sums["bytes"] += len(text.encode())
        self._sums["words"] += len(text.split())
        self._sums["source_tokens"] += tokens
        self._sums["unknown_tokens"] += sum(int(np.count_nonzero(line == unknown)) for line in ids)
        self._lengths[min(max(tokens - 1, 0).bit_length(), LENGTH_BINS - 1)] += 1

    def summary(self) -> dict[str, Any]:
        return {**self._sums, "lengths": self._lengths.tolist()}


def finish(target: Target, made_of: dict[str, Any], shards: int) -> dict[str, Any]:
    """Adds up the shards and writes what TFDS needs: all but `metadata.json`, which the caller writes last, from the result.

    Returns:
      The metadata: `made_of`, and for each split its counts and the sequences of each shard.
    """
    import tensorflow_datasets as tfds

    written = list(storage.in_parallel(lambda shard: _written(target, shard), range(shards)))
    metadata, splits = dict(made_of), []
    for split in written[0]:
        of_split = [shard[split] for shard in written]
        sums = {name: sum(s[name] for s in of_split) for name in of_split[0] if name != "lengths"}
        sums["dropped_tokens"] = sums["source_tokens"] - sums["text_tokens"]
        lengths = np.sum([s["lengths"] for s in of_split], 0).tolist()
        sequences = [s["sequences"] for s in of_split]
        metadata[split] = {**sums, "lengths": lengths, "shards": sequences}
        template = tfds.core.ShardedFileTemplate(
            dataset_name=target.name, data_dir=target.path, split=split, filetype_suffix="array_record"
        )
        records = [-(-count // RECORD_SEQUENCES) for count in sequences]
        files = [target.file(split, shard, shards) for shard in range(shards)]
        size = sum(storage.in_parallel(storage.size, files))
        splits.append(
            tfds.core.SplitInfo(name=split, shard_lengths=records, num_bytes=size, filename_template=template)
        )
    tfds.folder_dataset.write_metadata(
        data_dir=target.directory, features=features(target.length, made_of["vocab_size"]), split_infos=splits,
        check_data=False, description="Token ids for replaced-token detection.",
    )  # fmt: skip
    return metadata


def tokens_of(target: Target, shard: int) -> int:
    """Tokens of the text of a shard that has been written."""
    return sum(counts["source_tokens"] for counts in _written(target, shard).values())


def _written(target: Target, shard: int) -> dict[str, dict[str, Any]]:
    return json.loads((target.path / "shards" / f"{shard:05}.json").read_text())


def _batches(texts: Iterable[str]) -> Iterator[list[str]]:
    batch, size = [], 0
    for text in texts:
        batch.append(text)
        size += len(text)
        if size >= _BATCH_CHARACTERS:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch
