"""The generator: a small encoder with a masked-LM head tied to the word embeddings."""

import jax
import jax.numpy as jnp
from flax import nnx
from jax.nn import initializers

from electra_jax.config import EncoderConfig, ModelConfig
from electra_jax.models import vocabulary
from electra_jax.models.encoder import Encoder
from electra_jax.models.layers import Embeddings, LayerNorm, Linear, gelu, normal, parameter
from electra_jax.models.sharding import constrain


class Generator(nnx.Module):
    """The generator's head, and what it does not share: an encoder if `towers` is `separate`, embeddings unless tied."""

    def __init__(self, model: ModelConfig, config: EncoderConfig, vocab_size: int, *, rngs: nnx.Rngs):
        size = config.embedding_size
        self.embeddings = None if model.tied_embeddings else Embeddings(model, size, vocab_size, rngs=rngs)
        self.encoder = Encoder(config, rngs=rngs) if model.towers == "separate" else None
        self.transform = Linear(
            config.hidden_size, size, ("embed", "embedding"), normal(config.initializer_range), rngs=rngs
        )
        self.transform_norm = LayerNorm(size, config.layer_norm_eps, "embedding", rngs=rngs)
        self.output_bias = parameter(rngs, initializers.zeros, (vocab_size,), ("vocab",))

    def logits(self, hidden: jax.Array, positions: jax.Array, word_embeddings: jax.Array) -> jax.Array:
        """Predictions at chosen positions only.

        Args:
          hidden: `[B, L, Dg]`.
          positions: `[B, M]`.
          word_embeddings: `[V, E]`, tied.

        Returns:
          `[B * M, Vp]` float32, one row after the other, `Vp` the vocabulary padded to a multiple of `vocabulary.BLOCK`; the
          padded logits are so low that their probability is exactly zero.
        """
        x = jnp.take_along_axis(hidden, positions[..., None], axis=1)
        # Positions are independent from here on, so the devices of a tensor group split the batch as well.
        x = constrain(self.transform_norm(gelu(self.transform(x))), "batch_of_logits", None, None)
        # Flattened to rows, since a TPU would pad an axis of M positions to a multiple of 8.
        rows = x.reshape(-1, x.shape[-1])
        padding = -word_embeddings.shape[0] % vocabulary.BLOCK
        table = jnp.pad(word_embeddings, ((0, padding), (0, 0)))
        bias = jnp.pad(self.output_bias[...], (0, padding), constant_values=-1e9)
        return constrain(vocabulary.tied_logits(rows, table, bias), "batch_of_logits", None)
