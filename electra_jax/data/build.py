"""Builds what is missing between the text and the records: a survey of the text, the tokenizer, then the data sets.

All lie under `data.directory`, here or in a bucket, named after the settings that determine them, so runs that agree on
those share them, and a run that does not never reads the wrong ones:

    corpora/NAME-HASH/                     what the text holds, shard by shard; duplicates
    tokenizers/KIND-HASH.json
    electra_records/NAME-lLENGTH-HASH/2.0.0/   records (`electra_jax.data.dataset`)

A preparation that was interrupted goes on with the shards that are missing. A data set without `metadata.json` is not
finished, and nobody reads it.
"""

import contextlib
import dataclasses
import functools
import hashlib
import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import filelock
from etils import epath

from electra_jax import storage
from electra_jax.config import Config
from electra_jax.data import card, dataset, near_duplicates, sources, survey, work
from electra_jax.data import tokenizer as tokenizer_lib
from electra_jax.data.dataset import TRAIN, VALIDATION, DataSet, Target
from electra_jax.data.sources import Corpus
from electra_jax.data.survey import Dropped, Survey
from electra_jax.data.tokenizer import Tokenizer
from electra_jax.data.work import Runner
from electra_jax.errors import UserError

Say = Callable[[str], None]


class Prepared(NamedTuple):
    """Prepared data: for each length of the run, a data set of each corpus."""

    sets: dict[int, list[DataSet]]
    tokenizer: Tokenizer

    @property
    def digest(self) -> str:
        """Identifies the records: the sources' files, the settings, the counts that came out."""
        return _hash([_lasting(made.metadata) for of_length in self.sets.values() for made in of_length])

    @property
    def directories(self) -> list[str]:
        """Of all data sets."""
        return [os.fspath(made.directory) for of_length in self.sets.values() for made in of_length]


def prepare(
    config: Config, say: Say = print, tokenizer: Tokenizer | None = None, run: Runner = work.locally
) -> Prepared:
    """Returns the data sets of `config`, and builds whatever part of them is missing.

    Args:
      config: of a run.
      say: what is done is told to it, a line at a time.
      tokenizer: that of a checkpoint; without it, one is loaded or trained.
      run: runs the stages: `work.locally`, or what `work.beam` returns.

    Raises:
      UserError: for input that cannot be read, or a data set that does not fit `config` or its source.
    """
    text = _Text(config, say, run)
    with _alone(text.root, say):
        tokenizer = tokenizer or _tokenizer(text)
        sets: dict[int, list[DataSet]] = {phase.length: [] for phase in config.phases}
        for number, corpus in enumerate(text.corpora):
            targets = [_target(text, corpus, tokenizer, length) for length in sets]
            missing = [target for target in targets if not (target.path / "metadata.json").exists()]
            if missing:
                _build(text, number, tokenizer, missing)
            for target in targets:
                metadata = json.loads((target.path / "metadata.json").read_text())
                _check(text, corpus, tokenizer, target, metadata)
                sets[target.length].append(DataSet(target.path, metadata))
    for of_length in sets.values():
        for split in _EMPTY if config.data.validation_fraction else [TRAIN]:
            if not sum(made.metadata[split]["sequences"] for made in of_length):
                raise UserError(_EMPTY[split].format(config.data.source, config.data.validation_fraction))
    return Prepared(sets, tokenizer)


def summary(made: DataSet) -> list[str]:
    """One line a split: documents, sequences, tokens, padding."""
    lines, metadata = [], made.metadata
    for split in (TRAIN, VALIDATION):
        if split in metadata:
            s = metadata[split]
            padding = s["padding"] / max(1, s["sequences"] * metadata["max_seq_length"])
            lines.append(
                f"{split}: {s['documents']:,} documents, {s['sequences']:,} sequences of {metadata['max_seq_length']}, "
                f"{s['text_tokens']:,} tokens, {s['dropped_tokens']:,} dropped, {padding:.1%} padding"
            )
    return lines


_EMPTY = {
    TRAIN: "config.data.source={0!r} holds no text for training (held out: {1:.1%} of the documents)",
    VALIDATION: "config.data.source={0!r} has too few documents for config.data.validation_fraction={1}: none fell in "
    "the held-out split; raise the fraction, or set it to 0 to train without evaluation",
}


class _Text:
    """The corpora of a run; what is found out about them is found out once, and only when it is asked for."""

    def __init__(self, config: Config, say: Say, run: Runner):
        self.config, self.say, self.run = config, say, run
        self.root = storage.absolute(config.data.directory)
        self.corpora = sources.corpora(config.data)

    def directory(self, corpus: Corpus) -> epath.Path:
        """Of what is known of the text of a corpus."""
        data = self.config.data
        key = [corpus.elements, data.document_separator, data.shard_bytes]
        return self.root / "corpora" / f"{corpus.name}-{_hash(key)}"

    @functools.cached_property
    def surveys(self) -> list[Survey]:
        """Of each corpus, every shard of it read; raises `UserError` where too much is broken."""
        data = self.config.data
        made = [survey.begin(data, corpus, self.directory(corpus)) for corpus in self.corpora]
        for one, corpus in zip(made, self.corpora):
            self.run(one, len(one.plan().shards), f"reading {corpus.name}")
        for line in survey.check_broken(data, made):
            self.say(line)
        return made

    @functools.cached_property
    def dropped(self) -> list[Dropped | None]:
        """For each corpus, the documents that are left out as duplicates."""
        data = self.config.data
        if not (data.deduplicate or data.near_duplicates):
            return [None] * len(self.corpora)
        threshold = data.near_duplicates
        key = _hash([[corpus.elements for corpus in self.corpora], threshold])
        directories = [self.directory(corpus) / f"duplicates-{key}" for corpus in self.corpora]
        complete = directories[-1] / "complete"
        if not complete.exists():
            if threshold:
                near_duplicates.check_installed()
                signatures = [
                    near_duplicates.Signatures(os.fspath(directory / "signatures"), one)
                    for directory, one in zip(directories, self.surveys)
                ]
                for one, corpus in zip(signatures, self.corpora):
                    epath.Path(one.directory).mkdir(parents=True, exist_ok=True)
                    self.run(one, len(one.survey.plan().shards), f"comparing {corpus.name}")
                near_duplicates.drop(signatures, threshold, directories)
            else:
                survey.drop_duplicates(self.surveys, directories)
            storage.write(complete, "")
        found = [Dropped(os.fspath(directory)) for directory in directories]
        self.say(f"leaving out {sum(one.count() for one in found):,} duplicates")
        return found

    def samples(self, num_bytes: int) -> Iterator[str]:
        """Lines of about `num_bytes` of training text, as the mixture has it, the same for the same source."""
        sizes = [sum(shard["bytes"] for shard in one.found()) for one in self.surveys]
        data = self.config.data
        weights = data.weights or (1.0,)
        wanted = [w * size if data.weights_are == "epochs" else w for w, size in zip(weights, sizes, strict=True)]
        for one, dropped, size, part in zip(self.surveys, self.dropped, sizes, wanted):
            fraction = min(1.0, num_bytes * part / (sum(wanted) or 1) / (size or 1))
            key = _hash([fraction, data.validation_fraction, dropped and dropped.directory])
            directory = epath.Path(one.directory) / f"sample-{key}"
            directory.mkdir(parents=True, exist_ok=True)
            stage = survey.Sample(os.fspath(directory), one, dropped, fraction, data.validation_fraction)
            shards = len(one.plan().shards)
            self.run(stage, shards, "drawing text for the vocabulary")
            for shard in range(shards):
                with (directory / f"{shard:05}.txt").open() as file:
                    yield from file
            directory.rmtree()


@contextlib.contextmanager
def _alone(root: epath.Path, say: Say) -> Iterator[None]:
    """Runs that prepare in the same place wait for each other; in a bucket, which knows no locks, they write the same."""
    root.mkdir(parents=True, exist_ok=True)
    if storage.is_remote(root):
        yield
        return
    lock = filelock.FileLock(root / ".lock")
    try:
        lock.acquire(timeout=0)
    except filelock.Timeout:
        say(f"waiting for another run that prepares data in {root}")
        lock.acquire()
    with lock:
        yield


def _tokenizer(text: _Text) -> Tokenizer:
    settings = text.config.tokenizer
    if settings.vocab_file:
        return tokenizer_lib.load_vocab_file(settings)
    data = text.config.data
    key = [
        dataclasses.asdict(settings), data.source, data.text_field, data.document_separator, data.validation_fraction,
        data.weights, data.weights_are, data.deduplicate, data.near_duplicates,
    ]  # fmt: skip
    path = text.root / "tokenizers" / f"{settings.kind}-{_hash(key)}.json"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        text.say(f"training a {settings.kind} vocabulary of {settings.vocab_size:,} on {data.source}")
        trained = tokenizer_lib.train(settings, text.samples(settings.training_bytes))
        files = [one.plan().files for one in text.surveys]
        storage.write(path, json.dumps({"files": files, "tokenizer": trained.to_json()}))
        if trained.vocab_size < settings.vocab_size:
            text.say(
                f"the text gave {trained.vocab_size:,} tokens, fewer than tokenizer.vocab_size={settings.vocab_size:,}"
            )
    stored = json.loads(path.read_text())
    for corpus, files in zip(text.corpora, stored["files"]):
        survey.check_files(data, corpus, path, files)
    return tokenizer_lib.from_json(stored["tokenizer"])


def _target(text: _Text, corpus: Corpus, tokenizer: Tokenizer, length: int) -> Target:
    data = text.config.data
    among = [other.elements for other in text.corpora] if data.deduplicate or data.near_duplicates else []
    settings = [
        corpus.elements, among, data.deduplicate, data.near_duplicates, data.document_separator, data.packing,
        data.validation_fraction, data.shard_bytes, tokenizer_lib.digest(tokenizer),
    ]  # fmt: skip
    name = f"{corpus.name}-l{length}-{_hash(settings)}"
    return Target(os.fspath(text.root / "electra_records" / name / dataset.VERSION), length)


def _build(text: _Text, number: int, tokenizer: Tokenizer, targets: Sequence[Target]) -> None:
    data, corpus = text.config.data, text.corpora[number]
    one, dropped = text.surveys[number], text.dropped[number]
    plan = one.plan()
    for target in targets:
        text.say(f"preparing {target.directory}")
        (target.path / "shards").mkdir(parents=True, exist_ok=True)
        storage.write(target.path / "tokenizer.json", json.dumps(tokenizer.to_json()))
    stage = dataset.Recording(one, dropped, tuple(targets), data.packing, data.validation_fraction)
    begun, left = time.monotonic(), work.missing(stage, len(plan.shards))
    text.run(stage, len(plan.shards), f"tokenising {corpus.name}")
    seconds, found = time.monotonic() - begun, one.found()
    survey_of = {
        "broken": sum(shard["broken"] for shard in found),
        "empty": sum(shard["empty"] for shard in found),
        "named": [line for shard in found for line in shard["named"]][:20],
        "duplicates": dropped.count() if dropped else 0,
    }
    for target in targets:
        made_of = {
            "max_seq_length": target.length, "packing": data.packing, "elements": corpus.elements, "files": plan.files,
            "vocabulary": tokenizer_lib.digest(tokenizer), "vocab_size": tokenizer.vocab_size, "survey": survey_of,
        }  # fmt: skip
        made = DataSet(target.path, dataset.finish(target, made_of, len(plan.shards)))
        for line in summary(made):
            text.say(line)
        card.write(made, tokenizer)
        storage.write(target.path / "metadata.json", json.dumps(made.metadata, indent=1))
    tokens = sum(dataset.tokens_of(targets[0], shard) for shard in left)
    text.say(f"prepared in {seconds:.1f} s, {tokens / seconds:,.0f} tokens/s")


def _check(text: _Text, corpus: Corpus, tokenizer: Tokenizer, target: Target, metadata: dict[str, Any]) -> None:
    """Refuses a data set that is not the one `config` describes, or whose source has changed since."""
    expected = {
        "max_seq_length": target.length,
        "vocabulary": tokenizer_lib.digest(tokenizer),
        "elements": [list(element) for element in corpus.elements],
    }
    for name, value in expected.items():
        if metadata.get(name) != value:
            raise UserError(
                f"{target.directory}: its {name} is {metadata.get(name)!r}, the run's is {value!r}; remove the folder to prepare "
                "it again"
            )
    survey.check_files(text.config.data, corpus, target.path, metadata["files"])


def _lasting(metadata: dict[str, Any]) -> dict[str, Any]:
    """What is the same for the same text, wherever it was prepared."""
    return metadata | {"files": [{**file, "modified": None} for file in metadata["files"]]}


def _hash(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:12]
