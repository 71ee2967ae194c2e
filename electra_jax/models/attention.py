"""Multi-head self-attention within segments."""

import math

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name

from electra_jax.config import EncoderConfig
from electra_jax.models.layers import KEPT, Linear, normal
from electra_jax.models.noise import Noise, dropout
from electra_jax.models.pallas_attention import pallas_attention
from electra_jax.models.sharding import constrain, on_each_device

# Finite, so that a row with nothing to attend to gives a mean and no NaN.
_MASKED = -1e9


def attention(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    segment_ids: jax.Array,
    dropout_rate: float,
    noise: Noise | None,
    implementation: str = "reference",
) -> jax.Array:
    """Scaled dot-product attention; a token attends to the tokens of its own segment.

    Scores and their softmax are float32. Dropout falls on the weights, as in BERT.

    Args:
      query, key, value: `[B, L, H, K]`.
      segment_ids: `[B, L]`; equal numbers attend to each other (padding, 0, to padding).
      dropout_rate: of the attention weights.
      noise: for dropout, or None.
      implementation: `reference`; `pallas`: our kernel for TPUs, dropout included; `cudnn`: cuDNN's, which takes none. Neither
        keeps the weights.

    Returns:
      `[B, L, H, K]`.
    """
    if implementation == "cudnn":
        if noise is not None and dropout_rate:
            raise ValueError("cuDNN's attention takes none of our dropout")
        return fused_attention(query, key, value, segment_ids, "cudnn")
    if implementation == "pallas":
        return _pallas(query, key, value, segment_ids, dropout_rate, noise)
    scores = jnp.einsum("bqhk,bshk->bhqs", query, key, preferred_element_type=jnp.float32)
    same_segment = segment_ids[:, None, :, None] == segment_ids[:, None, None, :]  # [B, 1, L, L]
    scores = jnp.where(same_segment, scores / math.sqrt(query.shape[-1]), _MASKED)
    weights = dropout(jax.nn.softmax(scores, axis=-1).astype(value.dtype), dropout_rate, noise)
    return jnp.einsum("bhqs,bshk->bqhk", weights, value)


def _pallas(query, key, value, segment_ids, dropout_rate, noise):
    batch = query.shape[0]
    seeds = jnp.zeros((batch, 2), jnp.uint32) if noise is None else noise.seeds
    rate = 0.0 if noise is None else dropout_rate

    def of_device(query, key, value, segment_ids, seeds, heads):
        flat = (*query.shape[:2], query.shape[2] * query.shape[3])
        arrays = (x.reshape(flat) for x in (query, key, value))
        mixed = pallas_attention(*arrays, segment_ids, seeds, heads[:1], len(heads), rate)
        return mixed.reshape(query.shape)

    by_head = ("batch", None, "heads", None)
    numbers = jnp.arange(query.shape[2], dtype=jnp.int32)
    inputs = [(query, by_head), (key, by_head), (value, by_head), (segment_ids, ("batch", None)),
              (seeds, ("batch", None)), (numbers, ("heads",))]  # fmt: skip
    return on_each_device(of_device, inputs)


def fused_attention(
    query: jax.Array, key: jax.Array, value: jax.Array, segment_ids: jax.Array, implementation: str
) -> jax.Array:
    """`attention` without dropout by `jax.nn.dot_product_attention`: `cudnn`, or `xla`, its reference."""
    same_segment = segment_ids[:, None, :, None] == segment_ids[:, None, None, :]
    return jax.nn.dot_product_attention(query, key, value, mask=same_segment, implementation=implementation)


class SelfAttention(nnx.Module):
    """Projections around `attention`; query, key and value are stored apart."""

    def __init__(self, config: EncoderConfig, *, rngs: nnx.Rngs):
        size, init = config.hidden_size, normal(config.initializer_range)
        self.query = Linear(size, size, ("embed", "heads"), init, rngs=rngs)
        self.key = Linear(size, size, ("embed", "heads"), init, rngs=rngs)
        self.value = Linear(size, size, ("embed", "heads"), init, rngs=rngs)
        self.output = Linear(size, size, ("heads", "embed"), init, rngs=rngs)
        self.num_heads, self.dropout_rate = config.num_attention_heads, config.attention_probs_dropout_prob
        self.implementation = config.attention

    def __call__(self, x: jax.Array, segment_ids: jax.Array, noise: Noise | None) -> jax.Array:
        """`[B, L, D] -> [B, L, D]`."""
        heads = (*x.shape[:2], self.num_heads, x.shape[2] // self.num_heads)
        query, key, value = (
            constrain(linear(x).reshape(heads), "batch", None, "heads", None)
            for linear in (self.query, self.key, self.value)
        )
        mixed = attention(query, key, value, segment_ids, self.dropout_rate, noise, self.implementation)
        return self.output(checkpoint_name(mixed.reshape(x.shape), KEPT))
