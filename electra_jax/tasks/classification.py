"""Labels and scores of one or two texts."""

import abc
from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy import special

from electra_jax.data.encoding import Tokenizer
from electra_jax.tasks import metrics
from electra_jax.tasks.config import TaskConfig
from electra_jax.tasks.examples import TaskExample
from electra_jax.tasks.kinds import Feature, Kind, cut_pair, joined


class _OfTexts(Kind):
    head = "sequence"

    def features(self, examples: Sequence[TaskExample]) -> list[Feature]:
        count = max((len(example.texts) for example in examples), default=1)
        encoded = [
            self.tokenizer.encode_batch([example.texts[place] for example in examples]) for place in range(count)
        ]
        room, made = self.task.max_length - 1 - count, []
        self.num_cut = sum(sum(map(len, parts)) > room for parts in zip(*encoded))
        for index, (example, *parts) in enumerate(zip(examples, *encoded)):
            sizes = cut_pair(*map(len, parts), room) if count == 2 else (min(len(parts[0]), room),)
            ids, types = joined([part[:size] for part, size in zip(parts, sizes)], self.tokenizer)
            made.append(Feature(index, ids, types, self.target(example.label), np.zeros(0, np.int32)))
        return made

    def training_examples(self, examples: Sequence[TaskExample]) -> list[TaskExample]:
        if not self.task.double_unordered or len(examples[0].texts) < 2:
            return list(examples)
        return [*examples, *(example._replace(texts=example.texts[::-1]) for example in examples)]

    @abc.abstractmethod
    def target(self, label: Any) -> np.ndarray:
        """`[]`, what the head is trained towards."""


class Classification(_OfTexts):
    """One of several labels; a prediction is the probability of each, `[C]`."""

    def __init__(self, task: TaskConfig, tokenizer: Tokenizer):
        super().__init__(task, tokenizer)
        self.num_outputs = len(task.labels)

    @property
    def measures(self):
        found = ("accuracy", "matthews", "macro_f1")
        return (*found, "precision", "recall", "f1") if self.num_outputs == 2 else found

    def target(self, label: int | None) -> np.ndarray:
        return np.int32(-1 if label is None else label)

    def predictions(self, examples, features, outputs):
        return list(special.softmax(np.asarray(outputs, np.float64), axis=-1))

    def figures(self, examples, predictions):
        expected = np.asarray([example.label for example in examples])
        predicted = np.argmax(predictions, -1)
        found = {"accuracy": metrics.accuracy(expected, predicted), "matthews": metrics.matthews(expected, predicted)}
        found["macro_f1"] = metrics.macro_f1(expected, predicted)
        if self.num_outputs == 2:
            found |= zip(("precision", "recall", "f1"), metrics.precision_recall_f1(expected, predicted))
        return found

    def is_collapsed(self, examples, predictions):
        expected = np.asarray([example.label for example in examples])
        return metrics.knows_nothing(expected, metrics.agreement_over_chance(expected, np.argmax(predictions, -1)))

    def shown(self, example, prediction):
        best = int(np.argmax(prediction))
        scores = {label: round(float(p), 6) for label, p in zip(self.task.labels, prediction)}
        return {"label": self.task.labels[best], "scores": scores}


class Regression(_OfTexts):
    """A number; the model sees it scaled so that training's least is 0 and its greatest 1, as in the reference."""

    num_outputs = 1
    measures = ("pearson", "spearman", "pearson_spearman")
    low, high = 0.0, 1.0

    def fit(self, examples: Sequence[TaskExample]) -> None:
        labels = [example.label for example in examples]
        self.low, self.high = min(labels), max(labels)
        if self.low == self.high:
            self.high = self.low + 1

    def target(self, label: float | None) -> np.ndarray:
        return np.float32(0 if label is None else (label - self.low) / (self.high - self.low))

    def predictions(self, examples, features, outputs):
        return [float(output[0]) * (self.high - self.low) + self.low for output in outputs]

    def figures(self, examples, predictions):
        expected, predicted = np.asarray([example.label for example in examples]), np.asarray(predictions)
        pair = metrics.pearson(expected, predicted), metrics.spearman(expected, predicted)
        return {"pearson": pair[0], "spearman": pair[1], "pearson_spearman": sum(pair) / 2}

    def is_collapsed(self, examples, predictions):
        expected = np.asarray([example.label for example in examples])
        return metrics.knows_nothing(
            expected, metrics.spearman(expected, np.asarray(predictions)) * len(expected) ** 0.5
        )

    def average(self, outputs):
        return np.mean(outputs, 0)

    def shown(self, example, prediction):
        return {"score": float(f"{prediction:.7g}")}

    def for_export(self, params):
        output, width = params["output"], self.high - self.low
        scaled = {"kernel": output["kernel"] * width, "bias": output["bias"] * width + self.low}
        return params | {"output": {name: np.asarray(value, np.float32) for name, value in scaled.items()}}
