"""The parts both towers are made of. Parameters are float32; each call computes in the dtype of its input."""

import jax
import jax.numpy as jnp
from flax import nnx
from jax.nn import initializers

from electra_jax.config import ModelConfig
from electra_jax.models.noise import Noise, dropout


def parameter(
    rngs: nnx.Rngs, init: initializers.Initializer, shape: tuple[int, ...], axes: tuple[str, ...]
) -> nnx.Param:
    """A float32 parameter with a logical axis name for each dimension."""
    return nnx.Param(init(rngs.params(), shape, jnp.float32), out_sharding=axes)


def normal(stddev: float) -> initializers.Initializer:
    """Normal, cut off at two standard deviations, as all BERT-like weights are initialised."""
    return initializers.truncated_normal(stddev)


class Linear(nnx.Module):
    """`[..., in] -> [..., out]`, with bias."""

    def __init__(
        self, in_size: int, out_size: int, axes: tuple[str, str], init: initializers.Initializer, *, rngs: nnx.Rngs
    ):
        self.kernel = parameter(rngs, init, (in_size, out_size), axes)
        self.bias = parameter(rngs, initializers.zeros, (out_size,), axes[1:])

    def __call__(self, x: jax.Array) -> jax.Array:
        return x @ self.kernel[...].astype(x.dtype) + self.bias[...].astype(x.dtype)


class LayerNorm(nnx.Module):
    """Layer normalisation over the last axis, computed in float32."""

    def __init__(self, size: int, eps: float, axis: str, *, rngs: nnx.Rngs):
        self.scale = parameter(rngs, initializers.ones, (size,), (axis,))
        self.bias = parameter(rngs, initializers.zeros, (size,), (axis,))
        self.eps = eps

    def __call__(self, x: jax.Array) -> jax.Array:
        y = x.astype(jnp.float32)
        y = y - y.mean(-1, keepdims=True)
        y = y * jax.lax.rsqrt(jnp.square(y).mean(-1, keepdims=True) + self.eps)
        return (y * self.scale[...] + self.bias[...]).astype(x.dtype)


def gelu(x: jax.Array) -> jax.Array:
    """The exact GELU, by the error function, as in BERT and ELECTRA."""
    return jax.nn.gelu(x, approximate=False)


class Embeddings(nnx.Module):
    """Word, position and token-type embeddings with LayerNorm; one object, given to both towers."""

    def __init__(self, config: ModelConfig, vocab_size: int, *, rngs: nnx.Rngs):
        init, size = normal(config.initializer_range), config.embedding_size
        # The embedding axis stays whole: sharded, the gather would have to be assembled on every device.
        self.word = parameter(rngs, init, (vocab_size, size), ("vocab", "embedding"))
        self.position = parameter(rngs, init, (config.max_position_embeddings, size), ("position", "embedding"))
        self.token_type = parameter(rngs, init, (config.type_vocab_size, size), ("token_type", "embedding"))
        self.norm = LayerNorm(size, config.layer_norm_eps, "embedding", rngs=rngs)
        self.dropout_rate, self.dtype = config.hidden_dropout_prob, jnp.dtype(config.dtype)

    def __call__(
        self, input_ids: jax.Array, position_ids: jax.Array, token_type_ids: jax.Array, noise: Noise | None
    ) -> jax.Array:
        """Ids `[B, L]` each -> `[B, L, E]` in the compute dtype."""
        x = self.word[...][input_ids] + self.position[...][position_ids] + self.token_type[...][token_type_ids]
        return dropout(self.norm(x).astype(self.dtype), self.dropout_rate, noise)
