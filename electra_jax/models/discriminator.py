"""The discriminator: the encoder that is kept, with a head that tells which tokens were replaced."""

import jax
import jax.numpy as jnp
from flax import nnx
from jax.nn import initializers

from electra_jax.config import EncoderConfig
from electra_jax.models.encoder import Encoder
from electra_jax.models.layers import Linear, gelu, normal
from electra_jax.models.noise import Noise


class Discriminator(nnx.Module):
    """Encoder and head of the discriminator; the embeddings are given to it."""

    def __init__(self, config: EncoderConfig, *, rngs: nnx.Rngs):
        size = config.hidden_size
        if config.embedding_size != size:
            self.embeddings_project = Linear(
                config.embedding_size, size, ("embedding", "embed"), initializers.glorot_uniform(), rngs=rngs
            )
        else:
            self.embeddings_project = None
        self.encoder = Encoder(config, rngs=rngs)
        self.head = Linear(size, size, ("embed", "mlp"), normal(config.initializer_range), rngs=rngs)
        # The reference leaves TensorFlow's default initialiser here.
        self.head_output = Linear(size, 1, ("mlp", "single"), initializers.glorot_uniform(), rngs=rngs)

    def hidden(self, embedded: jax.Array, segment_ids: jax.Array, noise: Noise | None) -> jax.Array:
        """`[B, L, E] -> [B, L, D]`."""
        x = embedded if self.embeddings_project is None else self.embeddings_project(embedded)
        return self.encoder(x, segment_ids, noise)

    def logits(self, hidden: jax.Array) -> jax.Array:
        """`[B, L, D] -> [B, L]` float32; above 0 where a token looks replaced."""
        return self.head_output(gelu(self.head(hidden)))[..., 0].astype(jnp.float32)
