"""What a step changes: parameters, optimizer, step count."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from electra_jax.config import Config
from electra_jax.models.electra import Architecture, Params
from electra_jax.training import partitioning
from electra_jax.training.optimizer import make_optimizer

# Streams of random numbers that derive from the seed.
INIT_STREAM, TRAIN_STREAM, EVALUATION_STREAM = range(3)


class TrainState(NamedTuple):
    """Everything a step needs besides its batch.

    `failed_step` is -1, or the first step whose loss or gradient was not finite: from there on nothing
    changes, so the state is still the one that the failing step started from. Such a state is never saved.
    """

    step: jax.Array  # int32, updates done
    params: Params
    opt_state: optax.OptState
    failed_step: jax.Array  # int32


def stream(seed: int | jax.Array, which: int) -> jax.Array:
    """The key of one of the streams above."""
    return jax.random.fold_in(jax.random.key(seed), which)


def fresh_params(architecture: Architecture, seed: int | jax.Array) -> Params:
    """The parameters that a seed gives; a pure function."""
    return architecture.init(stream(seed, INIT_STREAM))


def new_state(config: Config, architecture: Architecture, params: Params) -> TrainState:
    """The state before the first step, with `params`; a pure function."""
    opt_state = make_optimizer(config.optimizer, architecture.axes).init(params)
    return TrainState(jnp.zeros((), jnp.int32), params, opt_state, jnp.full((), -1, jnp.int32))


def abstract_state(config: Config, architecture: Architecture, mesh: Mesh) -> TrainState:
    """The state as shapes with shardings: what jit, restore and compile need to know of it."""
    shapes = jax.eval_shape(functools.partial(new_state, config, architecture), architecture.shapes)
    params = partitioning.parameter_shardings(architecture.axes, architecture.shapes, mesh)
    replicated = partitioning.replicated(mesh)

    def shardings(tree: Any) -> Any:
        # The optimizer's state holds copies of the parameter tree, which are laid out like it.
        return jax.tree.map(
            lambda leaf: params if isinstance(leaf, dict) else replicated, tree, is_leaf=lambda x: isinstance(x, dict)
        )

    return jax.tree.map(
        lambda shape, sharding: jax.ShapeDtypeStruct(shape.shape, shape.dtype, sharding=sharding),
        shapes,
        shardings(shapes),
    )
