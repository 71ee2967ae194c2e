"""The kinds of task: each from examples to what the model reads, and from what it says to predictions and figures."""

import abc
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy import special

from electra_jax.config import ModelConfig
from electra_jax.data.encoding import Tokenizer
from electra_jax.errors import UserError
from electra_jax.tasks.config import TaskConfig
from electra_jax.tasks.examples import TaskExample


class Feature(NamedTuple):
    """What the model reads of an example, or of a part of it."""

    example: int  # its place among the examples
    input_ids: np.ndarray  # [n] int32
    token_type_ids: np.ndarray  # [n] int32
    target: np.ndarray  # its shape depends on the kind; of classes and tags, -1 where there is none
    tokens: np.ndarray  # what of the example each token stands for, in the kind's own terms; may be empty


class Kind(abc.ABC):
    """A kind of task.

    Attributes:
      task: the configuration, with its labels.
      num_outputs: numbers that the head gives, for a text or for each token.
    """

    head: str  # which of the heads: "sequence", "tagging" or "question_answering"
    num_outputs: int
    by_token = False  # whether a target has one entry per token
    probability_axis = -1  # of the stacked outputs of several models, that probabilities sum to 1 over
    num_cut = 0  # texts that `features` cut at its last call
    cut_by = "max_length"  # the setting of `TaskConfig` that says where

    def __init__(self, task: TaskConfig, tokenizer: Tokenizer):
        self.task, self.tokenizer = task, tokenizer

    @property
    def limit(self) -> str:
        """The setting that texts are cut by, as it is written."""
        return f"task.{self.cut_by}={getattr(self.task, self.cut_by)}"

    @abc.abstractmethod
    def features(self, examples: Sequence[TaskExample]) -> list[Feature]:
        """Features of all examples, in their order."""

    @abc.abstractmethod
    def predictions(
        self, examples: Sequence[TaskExample], features: Sequence[Feature], outputs: Sequence[np.ndarray]
    ) -> list[Any]:
        """One prediction per example, from the outputs of the features, `[num_outputs]` or `[n, num_outputs]` each."""

    @abc.abstractmethod
    def figures(self, examples: Sequence[TaskExample], predictions: Sequence[Any]) -> dict[str, float]:
        """Measures of predictions, by name; all examples are labelled."""

    @property
    @abc.abstractmethod
    def measures(self) -> tuple[str, ...]:
        """The names of `figures`."""

    @abc.abstractmethod
    def is_collapsed(self, examples: Sequence[TaskExample], predictions: Sequence[Any]) -> bool:
        """Whether a model has learnt nothing: what it says is no better than chance, on examples that would show the difference."""

    def average(self, outputs: Sequence[np.ndarray]) -> np.ndarray:
        """One output in place of those of several models for a feature: the logarithm of their mean probabilities."""
        every = special.softmax(np.asarray(outputs, np.float64), axis=self.probability_axis)
        return np.log(np.maximum(every.mean(0), 1e-30))

    @abc.abstractmethod
    def shown(self, example: TaskExample, prediction: Any) -> dict[str, Any]:
        """A prediction as a JSON object."""

    def for_export(self, params: dict[str, Any]) -> dict[str, Any]:
        """The head's parameters for a program that knows nothing of how targets are scaled."""
        return params

    def training_examples(self, examples: Sequence[TaskExample]) -> list[TaskExample]:
        """The examples to train on, made from the labelled ones."""
        return list(examples)

    def fit(self, examples: Sequence[TaskExample]) -> None:  # noqa: B027 - most have nothing to look at
        """Looks at the training examples, where targets depend on them."""

    def tune(self, examples: Sequence[TaskExample], predictions: Sequence[Any]) -> None:  # noqa: B027
        """Looks at the predictions for the validation set, where a threshold is to be chosen."""

    def settings(self) -> dict[str, Any]:
        """What `fit` and `tune` found and a later use needs: attributes by name."""
        return {}


def check_model(task: TaskConfig, model: ModelConfig, name: str) -> None:
    """Refuses a task that a model cannot read; raises `UserError`."""
    positions = model.max_position_embeddings
    if task.max_length > positions:
        raise UserError(
            f"config.task.max_length={task.max_length} cannot work: {name} has {positions} positions; set it to at most that"
        )
    if model.type_vocab_size < 2 and (task.text_pair or task.kind == "question_answering"):
        raise UserError(f"{name} has one token type (model.type_vocab_size=1); a pair of texts needs two")


def check_metric(kind: Kind) -> None:
    """Refuses a metric that the kind does not have for these labels; raises `UserError`."""
    task = kind.task
    if task.metric not in kind.measures:
        raise UserError(
            f"config.task.metric={task.metric!r} cannot work: of {task.kind} with {len(task.labels)} labels there are "
            f"{', '.join(kind.measures)}"
        )


def check_labels(task: TaskConfig, training: Sequence[TaskExample]) -> str | None:
    """Raises `UserError` where all of training has one label; returns a warning where a label has no training example."""
    if task.kind not in ("classification", "tagging"):
        return None
    of_words = task.kind == "tagging"
    seen = {label for example in training for label in (example.label if of_words else (example.label,))}
    if len(seen) < 2:
        only = task.labels[next(iter(seen))]
        raise UserError(
            f"config.task.path={task.path}: all of training has the label {only}: there is nothing to tell apart"
        )
    if of_words:  # tags that never occur are normal: E- and S- of some span
        return None
    never = [name for index, name in enumerate(task.labels) if index not in seen]
    return f"no training example has the label{'s' * (len(never) > 1)} {', '.join(never)}" if never else None


def check_vocabulary(features: Sequence[Feature], tokenizer: Tokenizer, name: str) -> str | None:
    """Raises `UserError` where the vocabulary is of another language than the task; a warning where it may be."""
    ids = np.concatenate([feature.input_ids for feature in features[:10_000]])
    is_special = np.isin(ids, [tokenizer.special.cls, tokenizer.special.sep])
    share = float((ids == tokenizer.special.unk).sum() / max(1, (~is_special).sum()))
    text = f"{share:.0%} of the task's tokens are unknown to the vocabulary of {name}"
    if share > 0.5:
        raise UserError(f"{text}: it was made for another language or script; use a checkpoint of this one")
    return f"{text}; it may have been made for another language" if share > 0.05 else None


def check_lengths(features: Sequence[Feature], trained_length: int, name: str) -> str | None:
    """A warning where texts are longer than those that the encoder was trained on."""
    count = sum(len(feature.input_ids) > trained_length for feature in features)
    if not count:
        return None
    return (
        f"{count:,} of {len(features):,} training texts are longer than the {trained_length} tokens that {name} was trained on: "
        f"its positions beyond are untrained. Set task.max_length={trained_length}, or pretrain on longer sequences"
    )


def cut_pair(one: int, two: int, room: int) -> tuple[int, int]:
    """How many tokens of a pair fit: the longer loses the last of its tokens first, as in BERT."""
    first = min(one, max(room - two, (room + 1) // 2))
    return first, min(two, room - first)


def joined(parts: Sequence[np.ndarray], tokenizer: Tokenizer) -> tuple[np.ndarray, np.ndarray]:
    """`[CLS] a [SEP]`, or `[CLS] a [SEP] b [SEP]` with token type 1 from b on: ids and types, `[n]` int32 each."""
    ids, types = [tokenizer.special.cls], [0]
    for kind, part in enumerate(parts):
        ids += [*part.tolist(), tokenizer.special.sep]
        types += [kind] * (len(part) + 1)
    return np.asarray(ids, np.int32), np.asarray(types, np.int32)
