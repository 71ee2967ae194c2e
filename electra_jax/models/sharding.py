"""Where activations live, said by logical axis names: a module names axes and knows nothing of the mesh."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
from flax.core import spmd
from jax.experimental.layout import Layout, with_layout_constraint
from jax.sharding import PartitionSpec


def constrain(x: jax.Array, *axes: str | None) -> jax.Array:
    """Lays `x` out by a logical axis name for each dimension; one named None, or whose rule is None, stays whole.

    The rules and the mesh are those of `training.partitioning.activation_rules`, under which a step is traced; outside
    of it, as on a single device, this is `x` itself. Where the mesh axes of a dimension do not divide it evenly, trailing ones
    are left out until the others do.
    """
    rules = dict(spmd.get_logical_axis_rules())
    return jax.lax.with_sharding_constraint(x, _spec(x.shape, axes, rules)) if rules else x


def is_spread() -> bool:
    """Whether what is being traced is for several devices."""
    return bool(spmd.get_logical_axis_rules())


def transposed_in_memory(x: jax.Array) -> jax.Array:
    """`x.T` of a matrix, written out in row-major order, where the compiler might only relabel the layout of `x`."""
    # XLA cannot partition a layout constraint over a mesh, and would gather all of `x` on every device.
    if is_spread():
        return jax.lax.optimization_barrier(x.T)
    return with_layout_constraint(jax.lax.optimization_barrier(x).T, Layout((0, 1)))


class Output(NamedTuple):
    """What `on_each_device` returns."""

    shape: tuple[int, ...]  # of all parts together
    axes: tuple[str | None, ...]


def on_each_device(
    function: Callable[..., Any],
    inputs: Sequence[tuple[jax.Array, tuple[str | None, ...]]],
    outputs: Any,
) -> Any:
    """Calls `function` on each device, on the parts of the arrays that it holds: for what XLA cannot partition by itself.

    Args:
      function: of as many arrays as there are `inputs`.
      inputs: arrays, each with a logical axis name for each dimension, as for `constrain`.
      outputs: an `Output`, or a tuple of them, as `function` returns arrays.
    """
    rules, arrays = dict(spmd.get_logical_axis_rules()), [x for x, _ in inputs]
    if not rules:
        return function(*arrays)
    specs = tuple(_spec(x.shape, axes, rules) for x, axes in inputs)
    out_specs = jax.tree.map(
        lambda output: _spec(output.shape, output.axes, rules), outputs, is_leaf=lambda x: isinstance(x, Output)
    )
    return jax.shard_map(function, in_specs=specs, out_specs=out_specs, check_vma=False)(*arrays)


def _spec(shape: tuple[int, ...], axes: Sequence[str | None], rules: dict[str, Any]) -> PartitionSpec:
    mesh = jax.sharding.get_abstract_mesh()
    on_mesh = [(rules[name] or ()) if name else () for name in axes]
    return PartitionSpec(*(_that_divide(size, names, mesh.shape) for names, size in zip(on_mesh, shape, strict=True)))


def _that_divide(size: int, names: Sequence[str], mesh: Mapping[str, int]) -> tuple[str, ...] | None:
    """The longest leading part of the mesh axes `names` that divides a dimension evenly; None where there is none."""
    counts = range(len(names), 0, -1)
    return next((names[:n] for n in counts if size % math.prod(mesh[name] for name in names[:n]) == 0), None)
