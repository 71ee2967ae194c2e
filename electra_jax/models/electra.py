"""Both towers over one set of embeddings, and the way between the module and its parameter tree."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from electra_jax.config import ModelConfig
from electra_jax.models.discriminator import Discriminator
from electra_jax.models.encoder import Encoder
from electra_jax.models.generator import Generator
from electra_jax.models.layers import Embeddings, Weight
from electra_jax.models.noise import Noise

Params = dict[str, Any]


def by_name(tree: Any) -> dict[str, Any]:
    """The leaves of a parameter tree by their path: `discriminator/head/kernel`."""
    flat = jax.tree_util.tree_flatten_with_path(tree)[0]
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in flat}


def by_layer(params: Params) -> Params:
    """The tree with each stacked parameter, under `layers`, as a tuple of its layers'."""

    def split(path: tuple[jax.tree_util.DictKey, ...], leaf: jax.Array) -> jax.Array | tuple[jax.Array, ...]:
        return tuple(leaf) if any(key.key == "layers" for key in path) else leaf

    return jax.tree_util.tree_map_with_path(split, params)


def stacked(params: Params) -> Params:
    """The inverse of `by_layer`."""
    return jax.tree.map(
        lambda leaf: jnp.stack(leaf) if isinstance(leaf, tuple) else leaf,
        params,
        is_leaf=lambda x: isinstance(x, tuple),
    )


class Text(NamedTuple):
    """What the towers read, `[B, L]` int32 each."""

    input_ids: jax.Array
    position_ids: jax.Array
    token_type_ids: jax.Array
    segment_ids: jax.Array  # attention stays within equal numbers; 0 for padding


class Electra(nnx.Module):
    """The towers; the embeddings both use are one object (ELECTRA, section 3.2).

    `generator` is None where there is none (`model.towers`), and may lack an encoder of its own.
    """

    def __init__(self, config: ModelConfig, vocab_size: int, *, rngs: nnx.Rngs):
        self.shared = Embeddings(config, config.embedding_size, vocab_size, rngs=rngs)
        generator = config.generator
        self.generator = generator and Generator(config, generator, vocab_size, rngs=rngs)
        self.discriminator = Discriminator(config.discriminator, config.towers != "masked_lm", rngs=rngs)

    def generator_logits(self, text: Text, positions: jax.Array, noise: Noise | None = None) -> jax.Array:
        """Masked-LM logits at `positions`, `[B, M] -> [B * M, Vp]` float32 (see `Generator.logits`)."""
        embeddings = self.generator.embeddings or self.shared
        encoder = self.generator.encoder or self.discriminator.encoder
        hidden = encode(embeddings, encoder, text, noise)
        return self.generator.logits(hidden, positions, embeddings.word_table())

    def discriminator_logits(self, text: Text, noise: Noise | None = None) -> jax.Array:
        """`[B, L]` float32; above 0 where a token looks replaced."""
        return self.discriminator.logits(self.discriminator_hidden(text, noise))

    def discriminator_hidden(self, text: Text, noise: Noise | None = None) -> jax.Array:
        """Hidden states of the last layer, `[B, L, D]`."""
        return encode(self.shared, self.discriminator.encoder, text, noise)


def encode(embeddings: Embeddings, encoder: Encoder, text: Text, noise: Noise | None) -> jax.Array:
    """Hidden states of the last layer, `[B, L, D]`."""
    embedded = embeddings(text.input_ids, text.position_ids, text.token_type_ids, noise and noise.at(_EMBEDDINGS))
    return encoder(embedded, text.segment_ids, noise)


# The place of the embeddings' dropout; the layers have the places from 0 on.
_EMBEDDINGS = 2**20


class Architecture:
    """The static part of a model: it turns a parameter tree into an `Electra`, or another module built from its parts.

    Attributes:
      vocab_size: rows of the word embeddings.
      is_unrolled: whether layers are written out, not a loop.
      shapes: the parameter tree, `{"shared", "generator", "discriminator"}`, as `jax.ShapeDtypeStruct`.
      axes: the same tree, with the logical axis names of each parameter.
    """

    def __init__(self, config: ModelConfig, vocab_size: int, module: Callable[..., nnx.Module] = Electra):
        """`module(config, vocab_size, rngs=...)` makes the module."""
        self._config, self.vocab_size, self.is_unrolled = config, vocab_size, config.unroll == "all"
        self._module = module
        self._dtype = jnp.dtype(config.dtype)
        # Sharding is left to the step, which goes by the axis names; otherwise Flax would require a mesh right here.
        with nnx.use_eager_sharding(False):
            abstract = nnx.eval_shape(lambda: self._new(jax.random.key(0)))
        self._graph, self._state = nnx.split(abstract)
        self.shapes: Params = nnx.to_pure_dict(self._state)
        self.axes: Params = nnx.to_pure_dict(nnx.get_partition_spec(self._state))

    def init(self, key: jax.Array) -> Params:
        """Fresh parameters."""
        with nnx.use_eager_sharding(False):
            return nnx.to_pure_dict(nnx.state(self._new(key)))

    def cast(self, params: Params) -> Params:
        """The `read` half of each kernel's `Weight`, None for other parameters: `merge` computes it unless it is given.

        Computed once, it serves several calls of `merge`; no gradient passes through it.
        """

        def weight(path: tuple[jax.tree_util.DictKey, ...], value: jax.Array) -> jax.Array:
            return jax.lax.stop_gradient(value.astype(self._dtype)) if path[-1].key == "kernel" else None

        return jax.tree_util.tree_map_with_path(weight, params)

    def merge(self, params: Params, cast: Params | None = None) -> Any:
        """The model with these parameters, for use inside a pure function; `cast` is `self.cast(params)`, if that is at hand."""

        def variable(abstract, value, read):
            return abstract.replace(value if read is None else Weight(value, read))

        cast = self.cast(params) if cast is None else cast
        state = jax.tree.map(variable, self._state, nnx.State(params), nnx.State(cast), is_leaf=_is_variable)
        return nnx.merge(self._graph, state)

    def _new(self, key: jax.Array) -> nnx.Module:
        return self._module(self._config, self.vocab_size, rngs=nnx.Rngs(params=key))


def _is_variable(x: Any) -> bool:
    return isinstance(x, nnx.Variable)
