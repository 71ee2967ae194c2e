"""What is in a corpus, found before anything is tokenised: documents, broken lines, duplicates, a sample of the text.

Each stage works on one shard at a time, in any process on any machine, and leaves its result as a file; a stage that
is begun again goes on with the shards that are missing.
"""

import array
import dataclasses
import hashlib
import io
import itertools
import json
import os
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from etils import epath

from electra_jax import storage
from electra_jax.config import DataConfig
from electra_jax.data import readers, sources
from electra_jax.data.readers import Broken
from electra_jax.data.sources import Corpus, FileRange, Plan
from electra_jax.errors import UserError

# How many broken or empty documents of a shard are listed; all are counted.
_NAMED = 5
# Documents that are compared at a time for duplicates, which bounds the memory it takes.
_COMPARED = 1 << 24


def digest(text: str) -> int:
    """A 64-bit hash of a document: what decides on the held-out split, on samples, and on what is a duplicate."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


def is_held_out(digest_of_text: int, validation_fraction: float) -> bool:
    """Whether a document belongs to the held-out split: a function of its text alone."""
    return digest_of_text < validation_fraction * 2**64


@dataclasses.dataclass(frozen=True)
class Survey:
    """The stages of a corpus, each writing to `directory`: NNNNN.json and NNNNN.npy for each shard."""

    directory: str
    separator: str

    @property
    def path(self) -> epath.Path:
        return epath.Path(self.directory)

    def plan(self) -> Plan:
        """How the corpus is cut, as it was written down by `begin`."""
        stored = json.loads((self.path / "plan.json").read_text())
        return Plan(stored["files"], [[FileRange(*piece) for piece in shard] for shard in stored["shards"]])

    def done(self, shard: int) -> bool:
        """Whether a shard has been read."""
        return (self.path / f"{shard:05}.json").exists()

    def read(self, shard: int) -> None:
        """Counts what is in a shard, and hashes its documents."""
        counts = {"documents": 0, "bytes": 0, "empty": 0, "broken": 0}
        named: list[Broken] = []
        hashes = array.array("Q")
        for text in readers.documents(self.plan().shards[shard], self.separator):
            if isinstance(text, Broken):
                counts["empty" if text.why == readers.EMPTY else "broken"] += 1
                if len(named) < _NAMED:
                    named.append(text)
                continue
            counts["documents"] += 1
            counts["bytes"] += len(text.encode())
            hashes.append(digest(text))
        write_array(self.path / f"{shard:05}.npy", np.asarray(hashes, np.uint64))
        storage.write(self.path / f"{shard:05}.json", json.dumps({**counts, "named": named}))

    def found(self) -> list[dict[str, Any]]:
        """What `read` has counted in each shard."""
        shards = range(len(self.plan().shards))
        return list(storage.in_parallel(lambda shard: json.loads((self.path / f"{shard:05}.json").read_text()), shards))

    def hashes(self, shard: int) -> np.ndarray:
        """The hashes of the documents of a shard, in order."""
        return read_array(self.path / f"{shard:05}.npy")

    def documents(self, shard: int, dropped: "Dropped | None" = None) -> Iterator[str]:
        """The documents of a shard that are kept."""
        leave_out = frozenset(dropped.of(shard).tolist()) if dropped else frozenset()
        texts = (t for t in readers.documents(self.plan().shards[shard], self.separator) if not isinstance(t, Broken))
        return (text for place, text in enumerate(texts) if place not in leave_out)


def begin(data: DataConfig, corpus: Corpus, directory: epath.Path) -> Survey:
    """The survey of a corpus, planned if it has not been.

    Raises:
      UserError: where a source cannot be read, or has changed since an earlier survey of it was begun.
    """
    survey = Survey(os.fspath(directory), data.document_separator)
    path = directory / "plan.json"
    if path.exists():
        check_files(data, corpus, directory, survey.plan().files)
        return survey
    plan = sources.make_plan(corpus, data.shard_bytes)
    directory.mkdir(parents=True, exist_ok=True)
    storage.write(path, json.dumps({"files": plan.files, "shards": plan.shards}))
    return survey


def check_files(data: DataConfig, corpus: Corpus, made: epath.Path, before: Sequence[dict[str, Any]]) -> None:
    """Refuses `made` if the files that it was made from (`before`) have changed since; raises `UserError`."""
    try:
        changed = sources.changed_files(corpus, before)
    except OSError:
        return
    except UserError:
        if any(epath.Path(file["name"]).exists() for file in before):
            raise
        return  # prepared elsewhere: the text itself need not be here
    if changed:
        raise UserError(
            f"config.data.source={data.source!r} changed since {made} was made of it ({', '.join(changed[:5])}); "
            "put the old files back, or remove that to have it made again"
        )


def check_broken(data: DataConfig, surveys: Sequence[Survey]) -> list[str]:
    """One line for each kind of document that is passed over; raises `UserError` where they are too many."""
    found = [shard for survey in surveys for shard in survey.found()]
    documents, empty, broken = (sum(shard[name] for shard in found) for name in ("documents", "empty", "broken"))
    total, bad = documents + empty + broken, empty + broken
    if bad > data.max_broken_fraction * total:
        first = "; ".join(named(surveys, 3))
        raise UserError(
            f"config.data.source: {bad:,} of {total:,} documents are broken or empty, more than "
            f"config.data.max_broken_fraction={data.max_broken_fraction}; the first: {first}"
        )
    if not bad:
        return []
    return [
        f"passed over {broken:,} broken and {empty:,} empty of {total:,} documents:",
        *(f"  {line}" for line in named(surveys, _NAMED)),
    ]


def named(surveys: Sequence[Survey], count: int) -> list[str]:
    """The first broken or empty documents, by file and place."""
    found = (Broken(*entry) for survey in surveys for shard in survey.found() for entry in shard["named"])
    return [f"{readers.where(broken)}: {broken.why}" for broken in itertools.islice(found, count)]


@dataclasses.dataclass(frozen=True)
class Dropped:
    """Which documents of a corpus are left out: NNNNN.npy with their numbers, for each shard."""

    directory: str

    @property
    def name(self) -> str:
        """Identifies what was compared."""
        return epath.Path(self.directory).name

    def of(self, shard: int) -> np.ndarray:
        return read_array(epath.Path(self.directory) / f"{shard:05}.npy")

    def count(self) -> int:
        paths = list(epath.Path(self.directory).glob("*.npy"))
        return sum(storage.in_parallel(lambda path: len(read_array(path)), paths))


def drop_duplicates(surveys: Sequence[Survey], directories: Sequence[epath.Path]) -> list[Dropped]:
    """Leaves out every document whose text has come before, in the order of the corpora.

    Memory is bounded: documents are compared in groups of about `_COMPARED`, by the range of their hash.
    """
    places = [(c, s) for c, survey in enumerate(surveys) for s in range(len(survey.plan().shards))]
    dropped: dict[tuple[int, int], list[np.ndarray]] = {place: [] for place in places}
    total = sum(shard["documents"] for survey in surveys for shard in survey.found())
    groups = -(-total // _COMPARED) or 1
    width = 2**64 // groups + 1
    for group in range(groups):
        hashes, owners, numbers = [], [], []
        for i, of_shard in enumerate(storage.in_parallel(lambda place: surveys[place[0]].hashes(place[1]), places)):
            (inside,) = np.nonzero(of_shard // np.uint64(width) == group) if groups > 1 else (np.arange(len(of_shard)),)
            hashes.append(of_shard[inside])
            owners.append(np.full(len(inside), i, np.int32))
            numbers.append(inside.astype(np.int64))
        of_group, owner, number = (np.concatenate(part) for part in (hashes, owners, numbers))
        repeated = np.ones(len(of_group), bool)
        repeated[np.unique(of_group, return_index=True)[1]] = False  # the first of each
        (left_out,) = np.nonzero(repeated)
        ends = np.searchsorted(owner[left_out], np.arange(1, len(places)))  # owners ascend
        for place, of_shard in zip(places, np.split(number[left_out], ends)):
            dropped[place].append(of_shard)
    for (c, s), parts in dropped.items():
        directories[c].mkdir(parents=True, exist_ok=True)
        write_array(directories[c] / f"{s:05}.npy", np.sort(np.concatenate(parts)))
    return [Dropped(os.fspath(directory)) for directory in directories]


@dataclasses.dataclass(frozen=True)
class Sample:
    """Training text of a corpus, for a vocabulary: about `fraction` of it, drawn evenly, as NNNNN.txt for each shard."""

    directory: str
    survey: Survey
    dropped: Dropped | None
    fraction: float
    validation_fraction: float

    def done(self, shard: int) -> bool:
        return (epath.Path(self.directory) / f"{shard:05}.txt").exists()

    def read(self, shard: int) -> None:
        """Draws by a salted hash of the text, independent of the plain one that selects the held-out split, which is left out."""
        limit = self.fraction * 2**64
        chosen = (
            text
            for text in self.survey.documents(shard, self.dropped)
            if digest("sample:" + text) < limit and not is_held_out(digest(text), self.validation_fraction)
        )
        lines = "".join("\n".join(line for line in text.splitlines() if line.strip()) + "\n" for text in chosen)
        storage.write(epath.Path(self.directory) / f"{shard:05}.txt", lines)


def write_array(path: epath.Path, values: np.ndarray) -> None:
    """As a .npy file, whole or not at all."""
    buffer = io.BytesIO()
    np.save(buffer, values)
    storage.write(path, buffer.getvalue())


def read_array(path: epath.Path) -> np.ndarray:
    """What `write_array` wrote."""
    return np.load(io.BytesIO(path.read_bytes()))
