"""The Transformer encoder: post-LayerNorm layers, stacked and scanned."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name
from jax.nn import initializers

from electra_jax.config import EncoderConfig
from electra_jax.models import pallas_norm
from electra_jax.models.attention import SelfAttention
from electra_jax.models.layers import KEPT, WHOLE, LayerNorm, Linear, add, gelu, normal
from electra_jax.models.noise import Noise
from electra_jax.models.sharding import constrain


class Layer(nnx.Module):
    """Self-attention and a feed-forward network, each followed by dropout, residual and LayerNorm (BERT)."""

    def __init__(self, config: EncoderConfig, *, rngs: nnx.Rngs):
        hidden, inner, init = config.hidden_size, config.intermediate_size, normal(config.initializer_range)
        self.attention = SelfAttention(config, rngs=rngs)
        self.attention_norm = LayerNorm(hidden, config.layer_norm_eps, "embed", rngs=rngs)
        self.intermediate = Linear(hidden, inner, ("embed", "mlp"), init, rngs=rngs)
        self.output = Linear(inner, hidden, ("mlp", "embed"), init, from_memory=pallas_norm.is_used(config), rngs=rngs)
        self.output_norm = LayerNorm(hidden, config.layer_norm_eps, "embed", rngs=rngs)
        self.dropout_rate = config.hidden_dropout_prob
        self.has_kernel = pallas_norm.is_used(config)

    def __call__(self, x: jax.Array, segment_ids: jax.Array, noise: Noise | None) -> jax.Array:
        """`[B, L, D] -> [B, L, D]`."""
        weights, first, second = (noise and noise.at(place) for place in range(3))
        x = self._end(self.attention_norm, x, self.attention(x, segment_ids, weights), first)
        inner = gelu(checkpoint_name(self.intermediate(x), KEPT))
        return self._end(self.output_norm, x, self.output(inner, dtype=jnp.float32), second)

    def _end(self, norm: LayerNorm, x: jax.Array, y: jax.Array, noise: Noise | None) -> jax.Array:
        """Dropout, residual and LayerNorm: the input of a sub-layer and its float32 result -> `[B, L, D]`."""
        if self.has_kernel:
            scale, bias = norm.scale[...], norm.bias[...]
            return _whole(pallas_norm.add_and_norm(x, y, noise, scale, bias, self.dropout_rate, norm.eps))
        return _whole(norm(add(x, y, self.dropout_rate, noise)))


def _whole(x: jax.Array) -> jax.Array:
    """`[B, L, D]` with its width on every device of a tensor group: left to itself, XLA would spread it in between."""
    return constrain(x, *WHOLE)


class Encoder(nnx.Module):
    """From embeddings to hidden states: a projection where the widths differ, then the layers.

    The layers' parameters are stacked along a leading axis, `layers`.
    """

    def __init__(self, config: EncoderConfig, *, rngs: nnx.Rngs):
        # TensorFlow's default initialiser, which the reference leaves in place here.
        init, sizes = initializers.glorot_uniform(), (config.embedding_size, config.hidden_size)
        is_needed = config.embedding_size != config.hidden_size
        self.embeddings_project = Linear(*sizes, ("embedding", "embed"), init, rngs=rngs) if is_needed else None

        @nnx.split_rngs(splits=config.num_hidden_layers)
        @nnx.vmap(in_axes=(0,), out_axes=0, transform_metadata={nnx.PARTITION_NAME: "layers"})
        def stacked(rngs: nnx.Rngs) -> Layer:
            return Layer(config, rngs=rngs)

        self.layers = stacked(rngs)
        self.num_layers, self.remat, self.is_unrolled = config.num_hidden_layers, config.remat, config.unroll == "all"

    def __call__(self, embedded: jax.Array, segment_ids: jax.Array, noise: Noise | None) -> jax.Array:
        """`[B, L, E] -> [B, L, D]`."""
        x = embedded if self.embeddings_project is None else self.embeddings_project(embedded)
        graph, parameters = nnx.split(self.layers)

        def layer(x, inputs):
            index, own = inputs
            return nnx.merge(graph, own)(x, segment_ids, noise and noise.at(index)), None

        layer = _rematerialised(layer, self.remat, prevent_cse=self.is_unrolled)
        x, _ = jax.lax.scan(layer, x, (jnp.arange(self.num_layers), parameters), unroll=self.is_unrolled)
        return x


def _rematerialised(layer: Callable, remat: str, prevent_cse: bool) -> Callable:
    # Inside a loop the barrier against common-subexpression elimination is not needed, and it prevents fusions.
    match remat:
        case "none" | "auto":  # left undecided where a model is built without a `training.setup.Program`
            return layer
        case "dots":
            keep = jax.checkpoint_policies.save_only_these_names(KEPT)
            return jax.checkpoint(layer, policy=keep, prevent_cse=prevent_cse)
        case "full":
            return jax.checkpoint(layer, prevent_cse=prevent_cse)
    raise ValueError(f"remat={remat!r}")
