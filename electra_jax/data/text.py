"""The corpora of a run: what is found out about their text on the way to a vocabulary and to records."""

import functools
import io
import os
from collections.abc import Callable, Iterator

from etils import epath

from electra_jax import storage
from electra_jax.config import Config
from electra_jax.data import near_duplicates, sources, survey, work
from electra_jax.data.sources import Corpus
from electra_jax.data.survey import Dropped, Survey
from electra_jax.data.work import Runner


class SourceText:
    """The corpora of a run. What is found out about them is found out once, and only when it is asked for."""

    def __init__(self, config: Config, say: Callable[[str], None], run: Runner):
        self.config, self.say, self.run = config, say, run
        self.root = storage.absolute(config.data.directory)
        self.corpora = sources.corpora(config.data)

    def directory(self, corpus: Corpus) -> epath.Path:
        """For what is found out about the text of a corpus."""
        data = self.config.data
        key = [corpus.elements, data.document_separator, data.shard_bytes]
        return self.root / "corpora" / f"{corpus.name}-{storage.fingerprint(key)}"

    @functools.cached_property
    def surveys(self) -> list[Survey]:
        """One for each corpus, with every shard read; raises `UserError` where too much is broken."""
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
        files = [sources.lasting(one.plan().files) for one in self.surveys]
        key = storage.fingerprint([[corpus.elements for corpus in self.corpora], files, threshold])
        directories = [self.directory(corpus) / f"duplicates-{key}" for corpus in self.corpora]
        complete = directories[-1] / "complete"
        if not complete.exists():
            if threshold:
                near_duplicates.check_installed()
                self._warn_of_memory()
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

    def _warn_of_memory(self) -> None:
        documents = sum(shard["documents"] for one in self.surveys for shard in one.found())
        needed, there = documents * near_duplicates.DOCUMENT_BYTES, work.memory()
        if needed > there:
            self.say(
                f"WARNING: config.data.near_duplicates holds what it keeps of {documents:,} documents in one process, up to "
                f"{needed / 1e9:.0f} GB; {there / 1e9:.0f} are there. For so much text, take a tool made for it before this"
            )

    def samples(self, num_bytes: int) -> Iterator[str]:
        """Lines of about `num_bytes` of training text, in the proportions of the mixture; always the same for the same source."""
        sizes = [sum(shard["bytes"] for shard in one.found()) for one in self.surveys]
        data = self.config.data
        weights = data.weights or (1.0,)
        wanted = [w * size if data.weights_are == "epochs" else w for w, size in zip(weights, sizes, strict=True)]
        for one, dropped, size, part in zip(self.surveys, self.dropped, sizes, wanted):
            fraction = min(1.0, num_bytes * part / (sum(wanted) or 1) / (size or 1))
            key = storage.fingerprint([fraction, data.validation_fraction, dropped and dropped.name])
            directory = epath.Path(one.directory) / f"sample-{key}"
            directory.mkdir(parents=True, exist_ok=True)
            stage = survey.Sample(os.fspath(directory), one, dropped, fraction, data.validation_fraction)
            shards = len(one.plan().shards)
            self.run(stage, shards, "drawing text for the vocabulary")
            for text in storage.in_parallel(lambda s, d=directory: (d / f"{s:05}.txt").read_text(), range(shards)):
                yield from io.StringIO(text)
            if not storage.is_remote(directory):  # there another machine may be reading it
                directory.rmtree()
