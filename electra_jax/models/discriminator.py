"""The discriminator: the encoder that is kept, with a head that tells which tokens were replaced."""

import jax
import jax.numpy as jnp
from flax import nnx
from jax.nn import initializers

from electra_jax.config import EncoderConfig
from electra_jax.models.encoder import Encoder
from electra_jax.models.layers import Linear, gelu, normal


class Discriminator(nnx.Module):
    """Encoder and head of the discriminator; without the head, the encoder alone."""

    def __init__(self, config: EncoderConfig, has_head: bool, *, rngs: nnx.Rngs):
        size = config.hidden_size
        self.encoder = Encoder(config, rngs=rngs)
        init = normal(config.initializer_range)
        self.head = Linear(size, size, ("embed", "mlp"), init, rngs=rngs) if has_head else None
        # The reference leaves TensorFlow's default initialiser here.
        init = initializers.glorot_uniform()
        self.head_output = Linear(size, 1, ("mlp", "single"), init, rngs=rngs) if has_head else None

    def logits(self, hidden: jax.Array) -> jax.Array:
        """`[B, L, D] -> [B, L]` float32; above 0 where a token looks replaced."""
        return self.head_output(gelu(self.head(hidden)), dtype=jnp.float32)[..., 0]
