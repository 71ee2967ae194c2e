"""Both towers over one set of embeddings, and the way between the module and its parameter tree."""

from typing import Any

import jax
from flax import nnx

from electra_jax.config import ModelConfig
from electra_jax.models.discriminator import Discriminator
from electra_jax.models.generator import Generator
from electra_jax.models.layers import Embeddings

Params = dict[str, Any]


class Electra(nnx.Module):
    """Generator and discriminator; the embeddings both use are one object (ELECTRA, section 3.2)."""

    def __init__(self, config: ModelConfig, vocab_size: int, *, rngs: nnx.Rngs):
        self.shared = Embeddings(config, vocab_size, rngs=rngs)
        self.generator = Generator(config.generator, vocab_size, rngs=rngs)
        self.discriminator = Discriminator(config.discriminator, rngs=rngs)


class Architecture:
    """The static part of the model: what makes an `Electra` of a parameter tree.

    Attributes:
      shapes: the parameter tree, `{"shared", "generator", "discriminator"}`, as `jax.ShapeDtypeStruct`.
      axes: the same tree, with the logical axis names of each parameter.
    """

    def __init__(self, config: ModelConfig, vocab_size: int):
        self._config, self._vocab_size = config, vocab_size
        # Laying out is the step's business, by the axis names; Flax would otherwise want a mesh right here.
        with nnx.use_eager_sharding(False):
            abstract = nnx.eval_shape(lambda: self._new(jax.random.key(0)))
        self._graph, self._state = nnx.split(abstract)
        self.shapes: Params = nnx.to_pure_dict(self._state)
        self.axes: Params = nnx.to_pure_dict(nnx.get_partition_spec(self._state))

    def init(self, key: jax.Array) -> Params:
        """Fresh parameters."""
        with nnx.use_eager_sharding(False):
            return nnx.to_pure_dict(nnx.state(self._new(key)))

    def merge(self, params: Params) -> Electra:
        """The model with these parameters, for use inside a pure function."""
        state = jax.tree.map(
            lambda variable, value: variable.replace(value), self._state, nnx.State(params), is_leaf=_is_variable
        )
        return nnx.merge(self._graph, state)

    def _new(self, key: jax.Array) -> Electra:
        return Electra(self._config, self._vocab_size, rngs=nnx.Rngs(params=key))


def _is_variable(x: Any) -> bool:
    return isinstance(x, nnx.Variable)
