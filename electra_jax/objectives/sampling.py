"""Sampling replacements from the generator."""

import jax
import jax.numpy as jnp

from electra_jax.models.vocabulary import BLOCK, block_sums


def uniforms(keys: jax.Array, slots: int) -> jax.Array:
    """The random numbers of `sample`: `[B, slots, 2]`, from a key an example."""
    return jax.vmap(lambda key: jax.random.uniform(key, (slots, 2)))(keys)


def uniform_logits(vocab_size: int, shape: tuple[int, ...]) -> jax.Array:
    """Logits of the uniform distribution over the vocabulary, padded as the generator's are: `[*shape, Vp]`."""
    size = -(-vocab_size // BLOCK) * BLOCK
    return jnp.broadcast_to(jnp.where(jnp.arange(size) < vocab_size, 0.0, -1e9), (*shape, size))


def sample(
    logits: jax.Array, draws: jax.Array, temperature: float = 1.0, disallowed: jax.Array | None = None
) -> jax.Array:
    """Draws token ids from softmax(logits / temperature); no gradient passes.

    The same distribution as the reference's Gumbel-max, with two uniform numbers instead of one for every token of
    the vocabulary: the first chooses a block of the vocabulary by the blocks' probabilities, the second a
    token within it. Two, because one would leave too few bits for rare tokens within a block.

    Args:
      logits: `[..., Vp]` float32, `Vp` a multiple of `BLOCK`.
      draws: `[..., 2]`, uniform in [0, 1).
      temperature: above 1 flattens the distribution.
      disallowed: `[...]`, an id each that is not to be drawn, or None.

    Returns:
      `[...]` int32.
    """
    logits = jax.lax.stop_gradient(logits)
    if temperature != 1.0:
        logits = logits / temperature
    if disallowed is not None:
        logits = jnp.where(jnp.arange(logits.shape[-1]) == disallowed[..., None], -1e9, logits)
    highest, sums = block_sums(logits)
    block = _invert(sums, draws[..., 0])  # [...]
    within = jax.lax.platform_dependent(logits, highest, block, tpu=_block_by_product, default=_block)
    return block * BLOCK + _invert(within, draws[..., 1])


def _block(logits: jax.Array, highest: jax.Array, block: jax.Array) -> jax.Array:
    """`exp(logits - highest)` of one block of the vocabulary each, `[..., BLOCK]`."""
    places = block[..., None] * BLOCK + jnp.arange(BLOCK)
    return jnp.exp(jnp.take_along_axis(logits, places, axis=-1) - highest[..., None])


def _block_by_product(logits: jax.Array, highest: jax.Array, block: jax.Array) -> jax.Array:
    """Likewise: a TPU would fetch the entries one by one."""
    column = jnp.arange(logits.shape[-1])
    of_block = jnp.where(column // BLOCK == block[..., None], jnp.exp(logits - highest[..., None]), 0)
    place = (column[:, None] % BLOCK == jnp.arange(BLOCK)).astype(logits.dtype)
    return jnp.dot(of_block, place, precision=jax.lax.Precision.HIGHEST)


def _invert(weights: jax.Array, draw: jax.Array) -> jax.Array:
    """The index that `draw` `[...]` falls on in the cumulated `weights` `[..., N]`; never one of weight 0."""
    cumulated = jnp.cumsum(weights, axis=-1)
    index = (cumulated <= draw[..., None] * cumulated[..., -1:]).sum(-1)
    # Rounding may carry draw * total up to total itself: the last index that has any weight, then.
    last = weights.shape[-1] - 1 - jnp.argmax(weights[..., ::-1] > 0, axis=-1)
    return jnp.minimum(index, last).astype(jnp.int32)
