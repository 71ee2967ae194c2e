"""What is as wide as the vocabulary: the output layer tied to the word embeddings, and its softmax.

Arrays of `[N, Vp]` are the largest of a step. Each pass over one costs as much as several products, so the backward passes
are written by hand to make few of them, and the sums of the softmax are taken by block, which sampling needs too.
"""

import jax
import jax.numpy as jnp

from electra_jax.models.layers import sum_by_product, transpose
from electra_jax.models.sharding import is_spread

# Logits come for a vocabulary padded to a multiple of this: the tile of a TPU, and blocks for sampling.
BLOCK = 128
# How much of the vocabulary one product sums by block: a multiple of BLOCK.
_AT_ONCE = 32_768


@jax.custom_vjp
def tied_logits(rows: jax.Array, table: jax.Array, bias: jax.Array) -> jax.Array:
    """`[N, E]`, `[Vp, E]` and `[Vp]`, parameters float32 -> `[N, Vp]` float32, computed in the dtype of `rows`."""
    return jnp.dot(rows, table.astype(rows.dtype).T, preferred_element_type=jnp.float32) + bias


def _tied_logits_forward(rows, table, bias):
    return tied_logits(rows, table, bias), (rows, table.astype(rows.dtype))


def _tied_logits_backward(saved, gradient):
    rows, table = saved
    gradient = gradient.astype(rows.dtype)
    # The slice in `_sums_together` would keep XLA from adding up all gradients of the table before the devices exchange them.
    elsewhere = _sums_apart if is_spread() else _sums_together
    d_table, d_bias = jax.lax.platform_dependent(gradient, rows, cpu=_sums_apart, default=elsewhere)
    return gradient @ table, d_table, d_bias


def _sums_apart(gradient, rows):
    return jnp.dot(transpose(gradient), rows, preferred_element_type=jnp.float32), sum_by_product(gradient)


def _sums_together(gradient, rows):
    # This saves a pass over the gradient: the bias counts as the weight of an input that is always 1.
    inputs = jnp.concatenate([rows, jnp.ones_like(rows[:, :1])], axis=1)
    both = jnp.dot(gradient.T, inputs, preferred_element_type=jnp.float32)
    return both[:, :-1], both[:, -1]


tied_logits.defvjp(_tied_logits_forward, _tied_logits_backward)


def cross_entropy(logits: jax.Array, ids: jax.Array) -> jax.Array:
    """`[N, Vp]` float32 and `[N]` -> `[N]`, in nats."""
    return log_sum(logits) - pick(logits, ids)


def pick(logits: jax.Array, ids: jax.Array) -> jax.Array:
    """The logit of each id: `[N, Vp]` and `[N]` -> `[N]`."""
    return jnp.take_along_axis(logits, ids[:, None], axis=-1)[:, 0]


def is_highest(logits: jax.Array, ids: jax.Array) -> jax.Array:
    """Whether no logit is above that of the id; the maximum is there already, an argmax would not be."""
    return pick(logits, ids) >= logits.max(-1)


@jax.custom_vjp
def log_sum(logits: jax.Array) -> jax.Array:
    """The logarithm of the sum of exponentials, `[N, Vp]` float32 -> `[N]`: of the sums that `sampling` draws from."""
    highest, sums = block_sums(logits)
    return highest + jnp.log(sums.sum(-1))


def _log_sum_forward(logits):
    total = log_sum(logits)
    return total, (logits, total)


def _log_sum_backward(saved, gradient):
    logits, total = saved
    return (gradient[:, None] * jnp.exp(logits - total[:, None]),)


log_sum.defvjp(_log_sum_forward, _log_sum_backward)


def block_sums(logits: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Sums of the softmax by block: `[..., Vp]` -> the highest logits `[...]`, and `[..., Vp / BLOCK]`, the sums of
    `exp(logits - highest)`.

    On a TPU as a product, since making blocks an axis would copy all of the logits, twice. A large vocabulary goes in parts, since
    the product grows with the square of its size (250,112 entries, 2,432 tokens, v5e: by the compiler's estimate 25 ms in parts,
    49 at once).
    """
    size, highest = logits.shape[-1], logits.max(-1)

    def reshaped(x):
        return x.reshape(*x.shape[:-1], -1, BLOCK).sum(-1)

    def product(x):
        parts = [x[..., first : first + _AT_ONCE] for first in range(0, size, _AT_ONCE)]
        return jnp.concatenate([summed(part) for part in parts], -1)

    def summed(part):
        entries = part.shape[-1]
        membership = jnp.arange(entries)[:, None] // BLOCK == jnp.arange(entries // BLOCK)
        return jnp.dot(part, membership.astype(part.dtype), precision=jax.lax.Precision.HIGHEST)

    exponentials = jnp.exp(logits - highest[..., None])
    return highest, jax.lax.platform_dependent(exponentials, tpu=product, default=reshaped)
