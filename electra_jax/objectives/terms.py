"""What every objective takes and gives."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from electra_jax.models.noise import Noise
from electra_jax.objectives.layout import Batch
from electra_jax.objectives.losses import Mean
from electra_jax.objectives.masking import Masked


class Randomness(NamedTuple):
    """Everything random in a step, one entry per example; dropout is off where its noise is None."""

    masking: jax.Array | None = None  # [B] keys
    sampling: jax.Array | None = None  # [B] keys
    generator_dropout: Noise | None = None
    discriminator_dropout: Noise | None = None


class Example(NamedTuple):
    """What an objective is computed on; each leaf has the batch as its first axis."""

    batch: Batch
    masked: Masked
    draws: Randomness
    sampled_ids: jax.Array | None = None  # [B, M], replacements given from outside instead of sampled

    @property
    def labels(self) -> jax.Array:
        """`[B, M]`, the tokens that were masked."""
        return jnp.take_along_axis(self.batch.input_ids, self.masked.positions, axis=1)


class Verdicts(NamedTuple):
    """What the discriminator was shown, and what it said; each `[B, L]`."""

    input_ids: jax.Array  # the text
    corrupted: jax.Array  # the same with the generator's samples put in
    scores: jax.Array  # logits, above 0 where a token looks replaced


class Terms(NamedTuple):
    """What an objective returns for a batch or a part of one."""

    losses: dict[str, Mean]
    metrics: dict[str, Mean]
    histogram: jax.Array | None  # [2, AUC_BINS], scores of original and replaced tokens
    sampled_ids: jax.Array | None  # [B, M]
    verdicts: Verdicts | None = None  # not of a batch that is computed in parts


def randomness(key: jax.Array, index: jax.Array, dropout: bool) -> Randomness:
    """Draws as a function of `key` and each example's `index`, `[B]`, alone: not of the batch around it."""
    keys = jax.vmap(lambda i: jax.random.split(jax.random.fold_in(key, i), 4))(index)  # [B, 4]

    def noise(which: int) -> Noise:
        return Noise(jax.vmap(lambda k: jax.random.bits(k, (2,)))(keys[:, which]))

    return Randomness(keys[:, 0], keys[:, 1], noise(2) if dropout else None, noise(3) if dropout else None)
