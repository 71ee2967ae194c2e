"""Builds what is missing between the text and the records: a survey of the text, the tokenizer, then the data sets.

All lie under `data.directory`, here or in a bucket, named after the settings that determine them: runs that agree on these
share them, and a run that differs never reads the wrong ones:

    corpora/NAME-HASH/                     what the text holds, shard by shard; duplicates
    tokenizers/KIND-HASH.json
    electra_records/NAME-lLENGTH-HASH/2.0.0/   records (`electra_jax.data.dataset`)

A preparation that was interrupted goes on with the shards that are missing. A data set without `metadata.json` is not
finished, and nobody reads it.
"""

import contextlib
import dataclasses
import functools
import json
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import filelock
from etils import epath

from electra_jax import storage
from electra_jax.config import Config
from electra_jax.data import card, dataset, scripts, sources, survey, work
from electra_jax.data import tokenizer as tokenizer_lib
from electra_jax.data.dataset import TRAIN, VALIDATION, DataSet, Target
from electra_jax.data.sources import Corpus
from electra_jax.data.text import SourceText
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
        sets = (made.metadata for of_length in self.sets.values() for made in of_length)
        return storage.fingerprint([{**metadata, "files": sources.lasting(metadata["files"])} for metadata in sets])

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
      say: is called with lines of text about what is being done.
      tokenizer: that of a checkpoint; without it, one is loaded or trained.
      run: runs the stages: `work.locally`, or what `work.beam` returns.

    Raises:
      UserError: for input that cannot be read, or a data set that does not fit `config` or its source.
    """
    text = SourceText(config, say, run)
    with contextlib.ExitStack() as held:
        # What exists already is read without waiting for the lock.
        alone = functools.cache(lambda: held.enter_context(_alone(config.data.directory, text.root, say)))
        tokenizer = tokenizer or _known_tokenizer(text)
        if tokenizer is None:
            alone()
            tokenizer = _known_tokenizer(text) or _trained_tokenizer(text)
        sets: dict[int, list[DataSet]] = {phase.length: [] for phase in config.phases}
        for number, corpus in enumerate(text.corpora):
            targets = [_target(text, corpus, tokenizer, length) for length in sets]
            if _missing(targets):
                alone()
            if missing := _missing(targets):  # another run may have made them meanwhile
                _build(text, number, tokenizer, missing)
            for target in targets:
                metadata = json.loads((target.path / "metadata.json").read_text())
                _check(text, corpus, tokenizer, target, metadata)
                sets[target.length].append(DataSet(target.path, metadata))
    for of_length in sets.values():
        _check_together(config, text.corpora, of_length)
    if storage.is_remote(config.data.directory) and config.data.shuffle == "full":
        say(
            f"WARNING: config.data.shuffle=full requests each sequence from {config.data.directory} by itself, which may keep "
            "accelerators waiting; blocks reads neighbouring sequences together"
        )
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


@contextlib.contextmanager
def _alone(name: str, root: epath.Path, say: Say) -> Iterator[None]:
    """Makes runs that prepare data in one place wait for each other; for a bucket, only on one machine: others write the same."""
    try:
        root.mkdir(parents=True, exist_ok=True)
        place = tempfile.gettempdir() if storage.is_remote(root) else root
        file = f".electra_jax-{storage.fingerprint(os.fspath(root))}.lock"
        lock = filelock.FileLock(os.path.join(place, file), fallback_to_soft=False)
        try:
            lock.acquire(timeout=0)
        except filelock.Timeout:
            say(f"waiting for another run that prepares data in {root}")
            lock.acquire()
        except PermissionError:  # somebody else's lock: we may still be able to write what is missing
            pass
        except (OSError, NotImplementedError) as error:
            if not storage.is_without_locks(error):
                raise
            say(f"WARNING: {root} cannot be locked ({error}): see to it that no other run prepares data there")
        try:
            yield
        finally:
            lock.release()
    except (PermissionError, FileExistsError, NotADirectoryError) as error:
        raise UserError(f"config.data.directory={name} cannot be written to ({error})") from None


def _missing(targets: Sequence[Target]) -> list[Target]:
    return [target for target in targets if not (target.path / "metadata.json").exists()]


def _known_tokenizer(text: SourceText) -> Tokenizer | None:
    """The one that was given, or trained on this text before."""
    settings = text.config.tokenizer
    if settings.vocab_file:
        given = tokenizer_lib.load_vocab_file(settings)
        if given.lowercase != settings.lowercase:
            text.say(
                f"WARNING: tokenizer.lowercase={settings.lowercase} has no effect: {settings.vocab_file} "
                f"{'lower-cases' if given.lowercase else 'keeps case'} by its own rules"
            )
        return given
    path = _tokenizer_path(text)
    if not path.exists():
        return None
    stored = json.loads(path.read_text())
    for corpus, files in zip(text.corpora, stored["files"]):
        survey.check_files(text.config.data, corpus, path, files)
    return tokenizer_lib.from_json(stored["tokenizer"])


def _tokenizer_path(text: SourceText) -> epath.Path:
    settings, data = text.config.tokenizer, text.config.data
    key = [
        dataclasses.asdict(settings), data.source, data.text_field, data.document_separator, data.validation_fraction,
        data.weights, data.weights_are, data.deduplicate, data.near_duplicates,
    ]  # fmt: skip
    return text.root / "tokenizers" / f"{settings.kind}-{storage.fingerprint(key)}.json"


def _trained_tokenizer(text: SourceText) -> Tokenizer:
    settings, path = text.config.tokenizer, _tokenizer_path(text)
    path.parent.mkdir(parents=True, exist_ok=True)
    files = [one.plan().files for one in text.surveys]  # first: a source that cannot be read ends here
    text.say(f"training a {settings.kind} vocabulary of {settings.vocab_size:,} on {text.config.data.source}")
    trained = tokenizer_lib.train(settings, text.samples(settings.training_bytes))
    storage.write(path, json.dumps({"files": files, "tokenizer": trained.to_json()}))
    made, wanted = trained.vocab_size, settings.vocab_size
    if made < wanted:
        text.say(f"the text gave {made:,} tokens, fewer than tokenizer.vocab_size={wanted:,}")
    if made < 0.8 * wanted:
        text.say(
            "WARNING: these are all pieces that occur in it more than once, most of them too rare to be learnt; usual sizes are "
            "from 8,000 for some megabytes to 60,000 for gigabytes"
        )
    return trained


def _target(text: SourceText, corpus: Corpus, tokenizer: Tokenizer, length: int) -> Target:
    data = text.config.data
    among = [other.elements for other in text.corpora] if data.deduplicate or data.near_duplicates else []
    settings = [
        corpus.elements, among, data.deduplicate, data.near_duplicates, data.document_separator, data.packing,
        data.validation_fraction, data.shard_bytes, tokenizer_lib.digest(tokenizer),
    ]  # fmt: skip
    name = f"{corpus.name}-l{length}-{storage.fingerprint(settings)}"
    return Target(os.fspath(text.root / "electra_records" / name / dataset.VERSION), length)


def _build(text: SourceText, number: int, tokenizer: Tokenizer, targets: Sequence[Target]) -> None:
    data, corpus = text.config.data, text.corpora[number]
    one, dropped = text.surveys[number], text.dropped[number]
    plan = one.plan()
    for target in targets:
        text.say(f"preparing {target.directory}")
        _begin(
            target, tokenizer, storage.fingerprint([sources.lasting(plan.files), plan.shards, dropped and dropped.name])
        )
    for warning in scripts.warnings(tokenizer, one.documents(0)):
        text.say(f"WARNING: {corpus.name}: {warning}")
    stage = dataset.Recording(one, dropped, tuple(targets), data.packing, data.validation_fraction)
    begun, left = time.monotonic(), work.missing(stage, len(plan.shards))
    text.run(stage, len(plan.shards), f"tokenising {corpus.name}")
    seconds, found = time.monotonic() - begun, one.found()
    compared = storage.fingerprint([sources.lasting(other.plan().files) for other in text.surveys]) if dropped else ""
    survey_of = {
        "broken": sum(shard["broken"] for shard in found),
        "empty": sum(shard["empty"] for shard in found),
        "named": survey.named([one], 20),
        "duplicates": dropped.count() if dropped else 0,
    }
    for target in targets:
        made_of = {
            "max_seq_length": target.length, "packing": data.packing, "elements": corpus.elements, "files": plan.files,
            "vocabulary": tokenizer_lib.digest(tokenizer), "vocab_size": tokenizer.vocab_size, "survey": survey_of,
            "compared_with": compared,
        }  # fmt: skip
        made = DataSet(target.path, dataset.finish(target, made_of, len(plan.shards)))
        for line in summary(made):
            text.say(line)
        card.write(made, tokenizer)
        storage.write(target.path / "metadata.json", json.dumps(made.metadata, indent=1))
    tokens = sum(dataset.tokens_of(targets[0], shard) for shard in left)
    text.say(f"prepared in {seconds:.1f} s, {tokens / seconds:,.0f} tokens/s")


def _begin(target: Target, tokenizer: Tokenizer, made_of: str) -> None:
    """Readies the folder of a data set; shards that an interrupted run has made of other text are thrown away."""
    path = target.path / "made_of.txt"
    if not path.exists() or path.read_text() != made_of:
        if (target.path / "shards").exists():
            (target.path / "shards").rmtree()
        (target.path / "shards").mkdir(parents=True, exist_ok=True)
        storage.write(target.path / "tokenizer.json", json.dumps(tokenizer.to_json()))
        storage.write(path, made_of)


def _check_together(config: Config, corpora: Sequence[Corpus], sets: Sequence[DataSet]) -> None:
    """Refuses data sets that do not make a run together; raises `UserError`."""
    data = config.data
    for split in _EMPTY if data.validation_fraction else [TRAIN]:
        if not sum(made.metadata[split]["sequences"] for made in sets):
            raise UserError(_EMPTY[split].format(data.source, data.validation_fraction))
    of_all = storage.fingerprint([sources.lasting(made.metadata["files"]) for made in sets])
    for corpus, made in zip(corpora, sets):
        if data.weights and not made.metadata[TRAIN]["sequences"]:
            raise UserError(
                f"config.data.source: {corpus.elements[0][0]} holds no text for training; leave it out of the mixture"
            )
        if made.metadata["compared_with"] not in ("", of_all):
            raise UserError(
                f"{made.directory} left out duplicates of other text than config.data.source={data.source!r} holds now; remove "
                "the folder to have it made again"
            )


def _check(text: SourceText, corpus: Corpus, tokenizer: Tokenizer, target: Target, metadata: dict[str, Any]) -> None:
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
