"""Sampling replacements from the generator."""

import jax
import jax.numpy as jnp

from electra_jax.models.generator import VOCAB_BLOCK


def uniforms(keys: jax.Array, slots: int) -> jax.Array:
    """The random numbers of `sample`: `[B, slots, 2]`, from a key an example."""
    return jax.vmap(lambda key: jax.random.uniform(key, (slots, 2)))(keys)


def uniform_logits(vocab_size: int, shape: tuple[int, ...]) -> jax.Array:
    """Logits of the uniform distribution over the vocabulary, padded as the generator's are: `[*shape, Vp]`."""
    size = -(-vocab_size // VOCAB_BLOCK) * VOCAB_BLOCK
    return jnp.broadcast_to(jnp.where(jnp.arange(size) < vocab_size, 0.0, -1e9), (*shape, size))


def sample(
    logits: jax.Array, draws: jax.Array, temperature: float = 1.0, disallowed: jax.Array | None = None
) -> jax.Array:
    """Draws token ids from softmax(logits / temperature); no gradient passes.

    The same distribution as the reference's Gumbel-max, with two uniform numbers instead of one a token of
    the vocabulary: the first chooses a block of the vocabulary by the blocks' probabilities, the second a
    token within it. Two, because one would leave too few bits for rare tokens within a block.

    Args:
      logits: `[..., Vp]` float32, `Vp` a multiple of `VOCAB_BLOCK`.
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
    highest = logits.max(-1, keepdims=True)
    block = _invert(_block_sums(jnp.exp(logits - highest)), draws[..., 0])  # [...]
    places = block[..., None] * VOCAB_BLOCK + jnp.arange(VOCAB_BLOCK)
    within = jnp.exp(jnp.take_along_axis(logits, places, axis=-1) - highest)  # [..., VOCAB_BLOCK]
    return block * VOCAB_BLOCK + _invert(within, draws[..., 1])


def _block_sums(x: jax.Array) -> jax.Array:
    """`[..., Vp]` -> `[..., Vp / VOCAB_BLOCK]`.

    On accelerators as a product: a TPU would copy all of `x`, twice, to have blocks as an axis.
    """
    size = x.shape[-1]

    def reshaped(x):
        return x.reshape(*x.shape[:-1], -1, VOCAB_BLOCK).sum(-1)

    def product(x):
        membership = jnp.arange(size)[:, None] // VOCAB_BLOCK == jnp.arange(size // VOCAB_BLOCK)
        return jnp.dot(x, membership.astype(x.dtype), precision=jax.lax.Precision.HIGHEST)

    return jax.lax.platform_dependent(x, cpu=reshaped, default=product)


def _invert(weights: jax.Array, draw: jax.Array) -> jax.Array:
    """The index that `draw` `[...]` falls on in the cumulated `weights` `[..., N]`; never one of weight 0."""
    cumulated = jnp.cumsum(weights, axis=-1)
    index = (cumulated <= draw[..., None] * cumulated[..., -1:]).sum(-1)
    # Rounding may carry draw * total up to total itself: the last index that has any weight, then.
    last = weights.shape[-1] - 1 - jnp.argmax(weights[..., ::-1] > 0, axis=-1)
    return jnp.minimum(index, last).astype(jnp.int32)
