"""The prepared data set: a TFDS builder that writes fixed-length records of token ids as ArrayRecord."""

import concurrent.futures
import itertools
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from electra_jax.config import Config
from electra_jax.data import corpus, packing
from electra_jax.data.tokenizer import Tokenizer
from electra_jax.errors import UserError

TRAIN, VALIDATION = "train", "validation"

# Characters that are tokenised at a time: enough to keep the tokenizer's threads busy.
_BATCH_CHARACTERS = 1_000_000

OnProgress = Callable[[str, int, int], None]


class ElectraRecords(tfds.core.GeneratorBasedBuilder):
    """Records of one corpus, one tokenizer and one length; see `electra_jax.data.build` for its place on disk.

    Records come in the order of TFDS's hash of their index: a fixed pseudo-random order, written with
    bounded memory. Each holds `input_ids`, `[data.max_seq_length]`; everything else about its layout is
    derived from the special tokens in it (`electra_jax.objectives.layout`).
    """

    VERSION = tfds.core.Version("1.0.0")

    def __init__(
        self,
        *,
        name: str,
        data_dir: str,
        config: Config,
        tokenizer: Tokenizer,
        metadata: dict[str, Any],
        on_progress: OnProgress,
    ):
        """`on_progress(split, documents, tokens)` is called with what each tokenised batch adds."""
        self._run_config, self._tokenizer = config, tokenizer
        self._metadata, self._on_progress = metadata, on_progress
        super().__init__(config=tfds.core.BuilderConfig(name=name), data_dir=data_dir, file_format="array_record")

    def _info(self) -> tfds.core.DatasetInfo:
        dtype = np.uint16 if self._tokenizer.vocab_size <= 2**16 else np.int32
        length = self._run_config.data.max_seq_length
        ids = tfds.features.Tensor(shape=(length,), dtype=dtype, encoding=tfds.features.Encoding.BYTES)
        return tfds.core.DatasetInfo(
            builder=self,
            description="Token ids for replaced-token detection.",
            features=tfds.features.FeaturesDict({"input_ids": ids}),
            metadata=tfds.core.MetadataDict(self._metadata),
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Iterator]:
        del dl_manager  # nothing is downloaded
        splits = {TRAIN: self._generate_examples(TRAIN)}
        if self._run_config.data.validation_fraction > 0:
            splits[VALIDATION] = self._generate_examples(VALIDATION)
        return splits

    def _generate_examples(self, split: str) -> Iterator[tuple[int, dict[str, np.ndarray]]]:
        data, special = self._run_config.data, self._tokenizer.special
        counts = {"documents": 0, "records": 0, "source_tokens": 0, "text_tokens": 0, "padding": 0}

        def counted(documents: Iterable[list[np.ndarray]]) -> Iterator[list[np.ndarray]]:
            for lines in documents:
                counts["documents"] += 1
                counts["source_tokens"] += sum(map(len, lines))
                yield lines

        texts = (t for t in corpus.documents(data) if corpus.is_held_out(t, data) == (split == VALIDATION))
        documents = counted(self._encode(texts, split))
        if data.packing == "packed":
            records = packing.pack(itertools.chain.from_iterable(documents), data.max_seq_length, special)
        else:
            records = packing.two_segments(documents, data.max_seq_length, special)
        for index, ids in enumerate(records):
            padding = int(np.count_nonzero(ids == special.pad))
            marks = int(np.count_nonzero((ids == special.cls) | (ids == special.sep)))
            counts["records"] += 1
            counts["padding"] += padding
            counts["text_tokens"] += len(ids) - padding - marks
            yield index, {"input_ids": ids.astype(self.info.features["input_ids"].np_dtype)}
        if not counts["records"]:
            raise UserError(_EMPTY_SPLIT[split].format(data.source, data.validation_fraction))
        counts["dropped_tokens"] = counts["source_tokens"] - counts["text_tokens"]
        self.info.metadata[split] = counts

    def _encode(self, texts: Iterable[str], split: str) -> Iterator[list[np.ndarray]]:
        """The token ids of each document, by line where lines matter; one batch is tokenised ahead."""
        by_line = self._run_config.data.packing == "two_segments"

        def encode(batch: list[str]) -> list[list[np.ndarray]]:
            lines = [[line for line in text.splitlines() if line.strip()] if by_line else [text] for text in batch]
            ids = iter(self._tokenizer.encode_batch([line for document in lines for line in document]))
            return [[next(ids) for _ in document] for document in lines]

        with concurrent.futures.ThreadPoolExecutor(1) as executor:
            pending = None
            for batch in itertools.chain(_batches(texts), [None]):
                submitted = executor.submit(encode, batch) if batch else None
                if pending is not None:
                    encoded = pending.result()
                    self._on_progress(split, len(encoded), sum(len(line) for lines in encoded for line in lines))
                    yield from encoded
                pending = submitted


_EMPTY_SPLIT = {
    TRAIN: "config.data.source={0!r} holds no text for training (held out: {1:.1%} of the documents)",
    VALIDATION: "config.data.source={0!r} has too few documents for config.data.validation_fraction={1}: none fell in "
    "the held-out split; raise the fraction, or set it to 0 to train without evaluation",
}


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
