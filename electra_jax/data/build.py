"""Builds what is missing between the text and the records: the tokenizer, then the data set.

Both lie under `data.directory` and are named after the settings that determine them, so runs that agree on
those share them, and a run that does not never reads the wrong ones:

    tokenizers/KIND-HASH.json
    electra_records/SOURCE-lLENGTH-HASH/1.0.0/   records, dataset_info.json, metadata.json
"""

import contextlib
import dataclasses
import hashlib
import io
import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import absl.logging
import filelock
import tensorflow_datasets as tfds
import tqdm

from electra_jax.config import Config
from electra_jax.data import corpus
from electra_jax.data import tokenizer as tokenizer_lib
from electra_jax.data.dataset import TRAIN, VALIDATION, ElectraRecords
from electra_jax.data.tokenizer import Tokenizer
from electra_jax.errors import UserError

Say = Callable[[str], None]


class Prepared(NamedTuple):
    """A prepared data set: its folder, its tokenizer, what is stored with it."""

    directory: Path
    tokenizer: Tokenizer
    metadata: dict[str, Any]

    @property
    def digest(self) -> str:
        """Identifies the records: the source's files, the settings, the counts that came out."""
        return _hash(self.metadata)


def prepare(config: Config, say: Say = print, tokenizer: Tokenizer | None = None) -> Prepared:
    """Returns the data set of `config`, and builds whatever part of it is missing.

    With `tokenizer`, that of a checkpoint, none is trained or loaded.

    A data set appears whole or not at all: it is written to a folder `incomplete.*` and renamed. Folders
    that a killed run left are removed here. Runs that prepare the same data wait for each other.

    Raises:
      UserError: for input that cannot be read, or a data set that does not fit `config` or its source.
    """
    tokenizer = tokenizer or _tokenizer(config, say)
    directory = _dataset_directory(config, tokenizer)
    directory.parent.mkdir(parents=True, exist_ok=True)
    if not directory.exists():
        with filelock.FileLock(directory.parent / ".lock"):
            for stale in directory.parent.glob("incomplete.*"):
                say(f"removing {stale}, left by an interrupted run")
                shutil.rmtree(stale)
            if not directory.exists():
                _build(config, tokenizer, directory, say)
    metadata = json.loads((directory / "metadata.json").read_text())
    _check(config, tokenizer, directory, metadata)
    return Prepared(directory, tokenizer, metadata)


def summary(metadata: dict[str, Any]) -> list[str]:
    """One line a split: documents, records, tokens, padding."""
    lines = []
    for split in (TRAIN, VALIDATION):
        if split in metadata:
            s = metadata[split]
            padding = s["padding"] / (s["records"] * metadata["max_seq_length"])
            lines.append(
                f"{split}: {s['documents']:,} documents, {s['records']:,} records of {metadata['max_seq_length']}, "
                f"{s['text_tokens']:,} tokens, {s['dropped_tokens']:,} dropped, {padding:.1%} padding"
            )
    return lines


def _tokenizer(config: Config, say: Say) -> Tokenizer:
    settings = config.tokenizer
    if settings.vocab_file:
        return tokenizer_lib.load_vocab_file(settings)
    data = config.data
    key = [
        dataclasses.asdict(settings),
        data.source,
        data.text_field,
        data.document_separator,
        data.validation_fraction,
    ]
    path = Path(data.directory).expanduser() / "tokenizers" / f"{settings.kind}-{_hash(key)}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    with filelock.FileLock(path.parent / ".lock"):
        if not path.exists():
            say(f"training a {settings.kind} vocabulary of {settings.vocab_size:,} on {data.source}")
            trained = tokenizer_lib.train(settings, corpus.sample(data, settings.training_bytes))
            partial = path.with_suffix(".partial")
            files = corpus.describe_files(data.source)
            partial.write_text(json.dumps({"files": files, "tokenizer": trained.to_json()}))
            partial.replace(path)
            if trained.vocab_size < settings.vocab_size:
                say(
                    f"the text gave {trained.vocab_size:,} tokens, fewer than tokenizer.vocab_size={settings.vocab_size:,}"
                )
    stored = json.loads(path.read_text())
    _check_files(config, path, stored["files"])
    return tokenizer_lib.from_json(stored["tokenizer"])


def _dataset_directory(config: Config, tokenizer: Tokenizer) -> Path:
    data = config.data
    settings = {k: v for k, v in dataclasses.asdict(data).items() if k != "directory"}
    first = Path(data.source.split(",")[0].strip()).name.split(".")[0].strip("*") or "text"
    name = f"{first}-l{data.max_seq_length}-{_hash([settings, tokenizer_lib.digest(tokenizer)])}"
    return Path(data.directory).expanduser() / "electra_records" / name / str(ElectraRecords.VERSION)


def _build(config: Config, tokenizer: Tokenizer, directory: Path, say: Say) -> None:
    metadata = {
        "max_seq_length": config.data.max_seq_length,
        "packing": config.data.packing,
        "source": config.data.source,
        "files": corpus.describe_files(config.data.source),
        "vocabulary": tokenizer_lib.digest(tokenizer),
        "vocab_size": tokenizer.vocab_size,
    }
    say(f"preparing {directory}")
    tokens = 0
    start = time.monotonic()
    with tqdm.tqdm(unit=" tokens", unit_scale=True, disable=not sys.stderr.isatty()) as bar:

        def on_progress(split: str, new_documents: int, new_tokens: int) -> None:
            nonlocal tokens
            tokens += new_tokens
            bar.set_description(f"{split}, +{new_documents:,} documents", refresh=False)
            bar.update(new_tokens)

        with _quiet_tfds(), tempfile.TemporaryDirectory() as downloads:
            builder = ElectraRecords(
                name=directory.parent.name, data_dir=str(directory.parent.parent.parent), config=config,
                tokenizer=tokenizer, metadata=metadata, on_progress=on_progress,
            )  # fmt: skip
            builder.download_and_prepare(download_dir=downloads)
    seconds = time.monotonic() - start
    for line in summary(builder.info.metadata):
        say(line)
    say(f"prepared in {seconds:.1f} s, {tokens / seconds:,.0f} tokens/s on {os.cpu_count()} cores")


def _check(config: Config, tokenizer: Tokenizer, directory: Path, metadata: dict[str, Any]) -> None:
    """Refuses a data set that is not the one `config` describes, or whose source has changed since."""
    expected = {
        "max_seq_length": config.data.max_seq_length,
        "vocabulary": tokenizer_lib.digest(tokenizer),
        "source": config.data.source,
    }
    for name, value in expected.items():
        if metadata.get(name) != value:
            raise UserError(
                f"{directory}: its {name} is {metadata.get(name)!r}, the run's is {value!r}; remove the folder to prepare it again"
            )
    _check_files(config, directory, metadata["files"])


def _check_files(config: Config, made: Path, before: list[dict[str, Any]]) -> None:
    """Refuses what was `made` of files that are others now."""
    try:
        now = corpus.describe_files(config.data.source)
    except UserError:
        return  # prepared elsewhere: the text itself need not be here
    if now != before:
        named = {file["name"]: file for file in before}
        changed = [file["name"] for file in now if named.pop(file["name"], None) != file] + list(named)
        raise UserError(
            f"config.data.source={config.data.source!r} changed since {made} was made of it ({', '.join(changed[:5])}); "
            "put the old files back, or remove that to have it made again"
        )


def _hash(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:12]


@contextlib.contextmanager
def _quiet_tfds():
    """TFDS prints and draws bars of its own, which say less than ours."""
    verbosity = absl.logging.get_verbosity()
    tfds.disable_progress_bar()
    absl.logging.set_verbosity(absl.logging.ERROR)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        absl.logging.set_verbosity(verbosity)
        tfds.enable_progress_bar()
