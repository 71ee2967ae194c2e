"""A tag for each word of a sentence; the first of a word's tokens speaks for it (BERT, section 5.3)."""

from collections.abc import Sequence

import numpy as np
from scipy import special

from electra_jax.data.encoding import Tokenizer
from electra_jax.tasks import labels, metrics
from electra_jax.tasks.config import TaskConfig
from electra_jax.tasks.examples import TaskExample
from electra_jax.tasks.kinds import Feature, Kind, joined


class Tagging(Kind):
    """Tags of words; a prediction is the probability of each tag for each word, `[words, C]`.

    A sentence longer than the model is read in parts, cut between words: no word goes without its tag.
    """

    head, by_token = "tagging", True

    def __init__(self, task: TaskConfig, tokenizer: Tokenizer):
        super().__init__(task, tokenizer)
        self.num_outputs = len(task.labels)

    @property
    def measures(self):
        return ("accuracy", "span_precision", "span_recall", "span_f1") if self._has_spans else ("accuracy",)

    @property
    def _has_spans(self) -> bool:
        return labels.are_of_spans(self.task.labels)

    def features(self, examples: Sequence[TaskExample]) -> list[Feature]:
        words = sorted({word for example in examples for word in example.words})
        unknown = np.asarray([self.tokenizer.special.unk], np.int32)
        pieces = {word: ids if len(ids) else unknown for word, ids in zip(words, self.tokenizer.encode_batch(words))}
        room, made = self.task.max_length - 2, []
        for index, example in enumerate(examples):
            part: list[np.ndarray] = []
            first = used = 0
            for place, word in enumerate(example.words):
                ids = pieces[word][:room]
                if used + len(ids) > room:
                    made.append(self._part(index, example, first, part))
                    part, first, used = [], place, 0
                part.append(ids)
                used += len(ids)
            made.append(self._part(index, example, first, part))
        return made

    def _part(self, index: int, example: TaskExample, first: int, pieces: list[np.ndarray]) -> Feature:
        ids, types = joined([np.concatenate(pieces)], self.tokenizer)
        starts = 1 + np.cumsum([0, *map(len, pieces[:-1])])
        target = np.full(len(ids), -1, np.int32)
        if example.label is not None:
            target[starts] = example.label[first : first + len(pieces)]
        return Feature(index, ids, types, target, starts)

    def predictions(self, examples, features, outputs):
        found: list[list[np.ndarray]] = [[] for _ in examples]
        for feature, output in zip(features, outputs, strict=True):
            found[feature.example].append(output[feature.tokens])
        return [special.softmax(np.concatenate(parts).astype(np.float64), axis=-1) for parts in found]

    def figures(self, examples, predictions):
        tags = [np.argmax(prediction, -1) for prediction in predictions]
        expected = [np.asarray(example.label) for example in examples]
        found = {"accuracy": metrics.accuracy(np.concatenate(expected), np.concatenate(tags))}
        if self._has_spans:
            sets = (
                [metrics.spans([self.task.labels[tag] for tag in row]) for row in rows] for rows in (expected, tags)
            )
            names = ("span_precision", "span_recall", "span_f1")
            found |= zip(names, metrics.span_precision_recall_f1(*sets))
        return found

    def is_collapsed(self, examples, predictions):
        tags = np.concatenate([np.argmax(prediction, -1) for prediction in predictions])
        expected = np.concatenate([np.asarray(example.label) for example in examples])
        return metrics.knows_nothing(expected, metrics.agreement_over_chance(expected, tags))

    def shown(self, example, prediction):
        names = [self.task.labels[tag] for tag in np.argmax(prediction, -1)]
        found = {"tokens": list(example.words), "tags": names}
        if self._has_spans:
            found["spans"] = [
                {"label": label, "first": first, "last": last, "text": " ".join(example.words[first : last + 1])}
                for label, first, last in sorted(metrics.spans(names), key=lambda span: span[1])
            ]
        return found
