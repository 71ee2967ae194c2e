"""Where activations live, said by logical axis names: a module names axes and knows nothing of the mesh."""

import math

import jax
from flax.core import spmd
from jax.sharding import PartitionSpec


def constrain(x: jax.Array, *axes: str | None) -> jax.Array:
    """Lays `x` out by a logical axis name for each dimension; None, and names whose rule says so, are whole.

    The rules and the mesh are those of `training.partitioning.activation_rules`, under which a step is traced; outside
    of it, as on a single device, this is `x` itself. A dimension that its mesh axes do not divide stays whole.
    """
    rules, mesh = dict(spmd.get_logical_axis_rules()), jax.sharding.get_abstract_mesh()
    if not rules:
        return x
    on_mesh = [rules[name] if name else None for name in axes]
    fits = [
        names if names and size % math.prod(mesh.shape[name] for name in names) == 0 else None
        for names, size in zip(on_mesh, x.shape, strict=True)
    ]
    return jax.lax.with_sharding_constraint(x, PartitionSpec(*fits))
