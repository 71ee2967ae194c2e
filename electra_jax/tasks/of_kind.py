"""Kinds of task by the name that the configuration has for them, and the model of each."""

import functools

from electra_jax.config import ModelConfig
from electra_jax.data.encoding import Tokenizer
from electra_jax.models.electra import Architecture
from electra_jax.tasks.classification import Classification, Regression
from electra_jax.tasks.config import TaskConfig, encoder_alone
from electra_jax.tasks.kinds import Kind
from electra_jax.tasks.model import TaskModel
from electra_jax.tasks.question_answering import QuestionAnswering
from electra_jax.tasks.tagging import Tagging


def make_kind(task: TaskConfig, tokenizer: Tokenizer) -> Kind:
    """The kind of a task whose configuration is decided (`data.load`)."""
    match task.kind:
        case "classification":
            return Classification(task, tokenizer)
        case "regression":
            return Regression(task, tokenizer)
        case "tagging":
            return Tagging(task, tokenizer)
        case "question_answering":
            return QuestionAnswering(task, tokenizer)
    raise ValueError(f"task.kind={task.kind!r}")


def module_of(kind: Kind, classifier_dropout: float = 0.0) -> functools.partial:
    """The module that `Architecture` and `Program` build a model from."""
    return functools.partial(TaskModel, head=kind.head, num_outputs=kind.num_outputs, dropout_rate=classifier_dropout)


def predicting(model: ModelConfig, kind: Kind) -> Architecture:
    """The model that predictions are made with: in float32, with plain attention."""
    plain = encoder_alone(model, dtype="float32", attention="reference", remat="none", unroll="auto")
    return Architecture(plain, kind.tokenizer.vocab_size, module_of(kind))
