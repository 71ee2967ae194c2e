"""Documents that are nearly the same as an earlier one, found by MinHash (Broder, 1997) with the datasketch library.

Signatures are made shard by shard; then one process goes through them in order, and holds those of all documents that
are kept (about 7 kB each): enough for a few million documents. For more, run a dedicated tool first.
"""

import array
import dataclasses
import os
import re
from collections.abc import Sequence

import numpy as np
from etils import epath

from electra_jax.data.survey import Dropped, Survey, read_array, write_array
from electra_jax.errors import missing_extra

_PERMUTATIONS, _SEED, _SCHEME = 128, 1, "affine32"
_SHINGLE = 5
# Of memory, for each document that is kept.
DOCUMENT_BYTES = 7_000
# Weights of the index's errors: a false positive costs one comparison of signatures, a false negative keeps a duplicate.
_ERRORS = (0.1, 0.9)
# Words, but single characters of Chinese, Japanese and Korean.
_WORD = re.compile(r"[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7a3]|\w+")


@dataclasses.dataclass(frozen=True)
class Signatures:
    """A stage: the MinHash of every document, `[documents, 128]` uint32 as NNNNN.npy for each shard."""

    directory: str
    survey: Survey

    def done(self, shard: int) -> bool:
        return self._path(shard).exists()

    def read(self, shard: int) -> None:
        made = array.array("I")
        for text in self.survey.documents(shard):
            made.frombytes(_minhash(_shingles(text)).hashvalues.astype(np.uint32).tobytes())
        write_array(self._path(shard), np.frombuffer(made, np.uint32).reshape(-1, _PERMUTATIONS))

    def of(self, shard: int) -> np.ndarray:
        """What `read` has made."""
        return read_array(self._path(shard))

    def _path(self, shard: int) -> epath.Path:
        return epath.Path(self.directory) / f"{shard:05}.npy"


def check_installed() -> None:
    """Raises `UserError` where the library is not there."""
    try:
        import datasketch  # noqa: F401
    except ImportError:
        raise missing_extra("config.data.near_duplicates", "dedup") from None


def drop(signatures: Sequence[Signatures], threshold: float, directories: Sequence[epath.Path]) -> list[Dropped]:
    """Leaves out documents whose estimated similarity to an earlier one that is kept is at least `threshold`.

    The index misses some of those just above it (one in eight at 0.8, few from 0.85 on).
    """
    import datasketch

    index = datasketch.MinHashLSH(threshold, _PERMUTATIONS, weights=_ERRORS)
    kept: dict[tuple[int, int, int], datasketch.MinHash] = {}
    for c, (of_corpus, directory) in enumerate(zip(signatures, directories)):
        directory.mkdir(parents=True, exist_ok=True)
        for shard in range(len(of_corpus.survey.plan().shards)):
            left_out = []
            for number, values in enumerate(of_corpus.of(shard)):
                minhash = datasketch.MinHash(_PERMUTATIONS, _SEED, hashvalues=values, scheme=_SCHEME)
                if any(minhash.jaccard(kept[other]) >= threshold for other in index.query(minhash)):
                    left_out.append(number)
                else:
                    kept[c, shard, number] = minhash
                    index.insert((c, shard, number), minhash)
            write_array(directory / f"{shard:05}.npy", np.asarray(left_out, np.int64))
    return [Dropped(os.fspath(directory)) for directory in directories]


def _minhash(shingles: set[bytes]):
    import datasketch

    made = datasketch.MinHash(_PERMUTATIONS, _SEED, scheme=_SCHEME)
    made.update_batch(shingles)
    return made


def _shingles(text: str) -> set[bytes]:
    words = _WORD.findall(text.lower()) or [text]
    return {" ".join(words[i : i + _SHINGLE]).encode() for i in range(max(1, len(words) - _SHINGLE + 1))}
