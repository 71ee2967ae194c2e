"""The pretrained encoder with a task's head, and its loss as the train step takes it."""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import NamedSharding

from electra_jax.config import ModelConfig
from electra_jax.models.discriminator import Discriminator
from electra_jax.models.electra import Architecture, Params, Text, encode
from electra_jax.models.layers import Embeddings, Linear, gelu, normal
from electra_jax.models.noise import Noise, dropout
from electra_jax.objectives import losses
from electra_jax.objectives.terms import Terms
from electra_jax.training.partitioning import BATCH, activation_rules, replicated, shardings_of
from electra_jax.training.setup import Program

# The place of the head's dropout; the encoder's layers have the places from 0 on (`models.electra`).
_HEAD = 2**20 + 1


class TaskBatch(NamedTuple):
    """Features of a batch, filled up with [PAD] and with rows of weight 0."""

    input_ids: jax.Array  # [B, L] int32
    token_type_ids: jax.Array  # [B, L] int32
    target: jax.Array  # [B]; tagging: [B, L], -1 where there is none; question answering: [B, 2]
    weight: jax.Array  # [B] float32
    seeds: jax.Array  # [B, 2] uint32, of dropout


class Head(nnx.Module):
    """The layers on top: of the first token's vector (`sequence`), or of every token's; as in transformers' models.

    The reference instead has no hidden layer for texts, and searches for answer spans with a beam.
    """

    def __init__(self, config: ModelConfig, kind: str, num_outputs: int, dropout_rate: float, *, rngs: nnx.Rngs):
        size, init = config.hidden_size, normal(config.initializer_range)
        self.dense = Linear(size, size, ("embed", "mlp"), init, rngs=rngs) if kind == "sequence" else None
        axes = ("embed" if self.dense is None else "mlp", "single")
        self.output = Linear(size, num_outputs, axes, init, rngs=rngs)
        self.dropout_rate = 0.0 if kind == "question_answering" else dropout_rate

    def __call__(self, hidden: jax.Array, noise: Noise | None) -> jax.Array:
        """`[B, L, D]` -> `[B, C]` of the first token, or `[B, L, C]`; float32."""
        first, second = (noise and noise.at(place) for place in (_HEAD, _HEAD + 1))
        if self.dense is None:
            return self.output(dropout(hidden, self.dropout_rate, first)).astype(jnp.float32)
        # As sequences of one token, since layers take `[B, L, D]`.
        x = gelu(self.dense(dropout(hidden[:, :1], self.dropout_rate, first)))
        return self.output(dropout(x, self.dropout_rate, second))[:, 0].astype(jnp.float32)


class TaskModel(nnx.Module):
    """Embeddings and encoder of the discriminator, and a head; the tree names them as in pretraining."""

    def __init__(
        self, config: ModelConfig, vocab_size: int, head: str, num_outputs: int, dropout_rate: float, *, rngs: nnx.Rngs
    ):
        self.shared = Embeddings(config, config.embedding_size, vocab_size, rngs=rngs)
        self.discriminator = Discriminator(config.discriminator, has_head=False, rngs=rngs)
        self.head = Head(config, head, num_outputs, dropout_rate, rngs=rngs)

    def __call__(self, input_ids: jax.Array, token_type_ids: jax.Array, pad: int, noise: Noise | None) -> jax.Array:
        """Ids `[B, L]` -> `[B, C]` or `[B, L, C]` float32."""
        positions = jnp.broadcast_to(jnp.arange(input_ids.shape[1]), input_ids.shape)
        text = Text(input_ids, positions, token_type_ids, (input_ids != pad).astype(jnp.int32))
        return self.head(encode(self.shared, self.discriminator.encoder, text, noise), noise)


@dataclasses.dataclass(frozen=True)
class FineTuning:
    """The loss of a task: an `Objective`."""

    kind: str  # as in the task's configuration
    pad: int

    weights = {"task_loss": 1.0}

    def example(self, key: jax.Array, batch: TaskBatch) -> TaskBatch:
        """The batch itself: it brings the seeds of its dropout, so that runs of several seeds share one program."""
        del key
        return batch

    def denominators(self, example: TaskBatch) -> dict[str, jax.Array]:
        return {"task_loss": self._weights(example).sum()}

    def terms(self, model: TaskModel, example: TaskBatch) -> Terms:
        logits = model(example.input_ids, example.token_type_ids, self.pad, Noise(example.seeds))
        loss = losses.mean(self._losses(logits, example), self._weights(example))
        return Terms({"task_loss": loss}, {}, histogram=None, sampled_ids=None)

    def _losses(self, logits: jax.Array, example: TaskBatch) -> jax.Array:
        if self.kind == "regression":
            return jnp.square(logits[..., 0] - example.target)
        if self.kind == "question_answering":
            real = (example.input_ids != self.pad)[..., None]
            by_place = jnp.where(real, logits, -1e9).swapaxes(1, 2)  # [B, 2, L]
            return losses.cross_entropy(by_place, example.target).mean(-1)
        return losses.cross_entropy(logits, jnp.maximum(example.target, 0))

    def _weights(self, example: TaskBatch) -> jax.Array:
        """The weights of examples, or of their tokens."""
        if self.kind == "tagging":
            return example.weight[:, None] * (example.target >= 0)
        return example.weight


def predictor(program: Program, architecture: Architecture) -> Callable[..., jax.Array]:
    """(params, input_ids, token_type_ids) -> logits, whole on every device."""
    shardings = shardings_of(program.abstract.params)
    rows_of_batch = NamedSharding(program.mesh, BATCH)
    pad = program.objective.pad

    def predict(params: Params, input_ids: jax.Array, token_type_ids: jax.Array) -> jax.Array:
        with activation_rules(program.mesh):
            return architecture.merge(params)(input_ids, token_type_ids, pad, None)

    return jax.jit(
        predict, in_shardings=(shardings, rows_of_batch, rows_of_batch), out_shardings=replicated(program.mesh)
    )
