"""Losses and measures as sums and weights, to be divided once, over the whole batch."""

from typing import NamedTuple

import jax
import jax.numpy as jnp


class Mean(NamedTuple):
    """A weighted mean that has not been divided yet; sums over parts of a batch add up."""

    total: jax.Array
    weight: jax.Array


# Number of bins, and outermost edge, of the score histogram that the area under the ROC curve is computed from.
AUC_BINS = 64 * 64
_AUC_RANGE = 16.0


def cross_entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """`[..., C]` float32 and `[...]` -> `[...]`, in nats."""
    of_label = jnp.take_along_axis(logits, labels[..., None], axis=-1)[..., 0]
    return jax.nn.logsumexp(logits, axis=-1) - of_label


def binary_cross_entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Sigmoid cross-entropy, element by element, in nats."""
    return jnp.maximum(logits, 0) - logits * labels + jnp.log1p(jnp.exp(-jnp.abs(logits)))


def mean(values: jax.Array, weights: jax.Array) -> Mean:
    """The weighted mean of `values`."""
    weights = weights.astype(jnp.float32)
    return Mean((values * weights).sum(), weights.sum())


def score_histogram(logits: jax.Array, labels: jax.Array, weights: jax.Array) -> jax.Array:
    """Counts of logits by bin for negatives and positives: `[2, AUC_BINS]` float32.

    The bins are equally wide, from -16 to 16. A bin's index is split into two digits, coarse and fine, and counted by a
    matrix product of their one-hot rows, which is faster than a scatter on every accelerator.
    """
    position = (jnp.clip(logits / _AUC_RANGE, -1, 1) + 1) / 2 * AUC_BINS
    index = jnp.clip(position.astype(jnp.int32), 0, AUC_BINS - 1).reshape(-1)
    coarse, fine = jax.nn.one_hot(index // 64, 64), jax.nn.one_hot(index % 64, 64)
    positive = labels.reshape(-1).astype(jnp.float32)
    by_class = jnp.stack([1 - positive, positive]) * weights.reshape(-1).astype(jnp.float32)  # [2, N]
    counts = jnp.einsum("cn,nh,nl->chl", by_class, coarse, fine, precision=jax.lax.Precision.HIGHEST)
    return counts.reshape(2, AUC_BINS)
