"""Multi-head self-attention within segments."""

import math

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name

from electra_jax.config import EncoderConfig
from electra_jax.models import pallas_norm
from electra_jax.models.layers import KEPT, Linear, Weight, linear_stack, normal
from electra_jax.models.noise import Noise, dropout
from electra_jax.models.pallas_attention import pallas_attention
from electra_jax.models.sharding import Output, constrain, on_each_device

# Finite, so that a row with nothing to attend to gives a mean and no NaN.
_MASKED = -1e9


def attention(
    projected: jax.Array,
    segment_ids: jax.Array,
    dropout_rate: float,
    noise: Noise | None,
    implementation: str = "reference",
) -> jax.Array:
    """Scaled dot-product attention; a token attends to the tokens of its own segment.

    Scores and their softmax are float32. Dropout falls on the weights, as in BERT.

    Args:
      projected: queries, keys and values, `[3, B, L, H, K]`.
      segment_ids: `[B, L]`; equal numbers attend to each other (padding, 0, to padding).
      dropout_rate: of the attention weights.
      noise: for dropout, or None.
      implementation: `reference`; `pallas`: our kernel for TPUs, dropout included; `cudnn`: cuDNN's, without dropout. These two
        do not keep the weights for the backward pass.

    Returns:
      `[B, L, H, K]`.
    """
    if implementation == "cudnn":
        if noise is not None and dropout_rate:
            raise ValueError("cuDNN's attention takes none of our dropout")
        return fused_attention(projected, segment_ids, "cudnn")
    if implementation == "pallas":
        return _pallas(projected, segment_ids, dropout_rate, noise)
    query, key, value = projected
    scores = jnp.einsum("bqhk,bshk->bhqs", query, key, preferred_element_type=jnp.float32)
    same_segment = segment_ids[:, None, :, None] == segment_ids[:, None, None, :]  # [B, 1, L, L]
    scores = jnp.where(same_segment, scores / math.sqrt(query.shape[-1]), _MASKED)
    weights = dropout(jax.nn.softmax(scores, axis=-1).astype(value.dtype), dropout_rate, noise)
    return jnp.einsum("bhqs,bshk->bqhk", weights, value)


def _pallas(projected, segment_ids, dropout_rate, noise):
    _, batch, _, num_heads, _ = projected.shape
    seeds = jnp.zeros((batch, 2), jnp.uint32) if noise is None else noise.seeds
    rate = 0.0 if noise is None else dropout_rate

    def of_device(projected, segment_ids, seeds, heads):
        *lead, of_heads, size = projected.shape
        flat = projected.reshape(*lead, of_heads * size)
        mixed = pallas_attention(flat, segment_ids, seeds, heads[:1], of_heads, rate)
        return mixed.reshape(*lead[1:], of_heads, size)

    by_head = ("batch", None, "heads", None)
    inputs = [(projected, (None, *by_head)), (segment_ids, ("batch", None)), (seeds, ("batch", None)),
              (jnp.arange(num_heads, dtype=jnp.int32), ("heads",))]  # fmt: skip
    return on_each_device(of_device, inputs, Output(projected.shape[1:], by_head))


def fused_attention(projected: jax.Array, segment_ids: jax.Array, implementation: str) -> jax.Array:
    """`attention` without dropout by `jax.nn.dot_product_attention`: `cudnn`, or `xla`, its reference."""
    same_segment = segment_ids[:, None, :, None] == segment_ids[:, None, None, :]
    return jax.nn.dot_product_attention(*projected, mask=same_segment, implementation=implementation)


class SelfAttention(nnx.Module):
    """Projections around `attention`; query, key and value are stored apart."""

    def __init__(self, config: EncoderConfig, *, rngs: nnx.Rngs):
        size, init = config.hidden_size, normal(config.initializer_range)
        self.query, self.key, self.value = (
            Linear(size, size, ("embed", "heads"), init, from_memory=True, rngs=rngs) for _ in range(3)
        )
        self.output = Linear(size, size, ("heads", "embed"), init, from_memory=pallas_norm.is_used(config), rngs=rngs)
        self.num_heads, self.dropout_rate = config.num_attention_heads, config.attention_probs_dropout_prob
        self.implementation = config.attention

    def __call__(self, x: jax.Array, segment_ids: jax.Array, noise: Noise | None) -> jax.Array:
        """`[B, L, D] -> [B, L, D]` float32."""
        projected = self._project(x, (*x.shape[:2], self.num_heads, x.shape[2] // self.num_heads))
        mixed = attention(projected, segment_ids, self.dropout_rate, noise, self.implementation)
        return self.output(mixed.reshape(x.shape), dtype=jnp.float32, keeps_input=True)

    def _project(self, x: jax.Array, heads: tuple[int, ...]) -> jax.Array:
        """Queries, keys and values, `[B, L, D]` to three of shape `heads`, `[B, L, H, K]`."""
        linears, by_head = (self.query, self.key, self.value), ("batch", None, "heads", None)
        if self.implementation == "pallas":  # the kernel reads them where one product has put them
            kernels = Weight(*(jnp.stack(k) for k in zip(*(linear.kernel.get_value() for linear in linears))))
            biases = jnp.stack([linear.bias[...] for linear in linears])
            projected = checkpoint_name(linear_stack(x, kernels, biases, self.query.axes), KEPT)
            return constrain(projected.reshape(3, *heads), None, *by_head)
        return jnp.stack([constrain(checkpoint_name(linear(x), KEPT).reshape(heads), *by_head) for linear in linears])
