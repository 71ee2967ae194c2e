"""Where arrays live: the mesh, and the rules from logical axis names to its axes."""

import math
from collections.abc import Sequence
from typing import Any

import jax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from electra_jax.config import MeshConfig
from electra_jax.errors import UserError
from electra_jax.models.electra import by_name

# Every logical axis of every parameter must be named here; None is whole on every device.
RULES: dict[str, str | None] = {
    "vocab": "tensor",
    "embed": "fsdp",
    "mlp": "tensor",
    "heads": "tensor",
    "embedding": None,
    "position": None,
    "token_type": None,
    "layers": None,
    "single": None,
}

BATCH = PartitionSpec(("data", "fsdp"))


def make_mesh(config: MeshConfig, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """The mesh (data, fsdp, tensor) over all devices; an axis of -1 takes what the others leave.

    Raises:
      UserError: where the sizes do not multiply to the number of devices.
    """
    devices = list(devices if devices is not None else jax.devices())
    sizes = {"data": config.data, "fsdp": config.fsdp, "tensor": config.tensor}
    fixed = math.prod(size for size in sizes.values() if size != -1)
    filled = {axis: len(devices) // fixed if size == -1 else size for axis, size in sizes.items()}
    if math.prod(filled.values()) != len(devices):
        text = ", ".join(f"mesh.{axis}={size}" for axis, size in sizes.items())
        raise UserError(f"config.{text}: the sizes must multiply to the number of devices, {len(devices)}")
    # Auto axes: the compiler propagates; make_mesh would make them Explicit.
    return jax.make_mesh(tuple(filled.values()), tuple(filled), axis_types=(AxisType.Auto,) * 3, devices=devices)


def check_batch(name: str, batch_size: int, mesh: Mesh, accumulation: int = 1) -> None:
    """Refuses a batch that the devices cannot share evenly; raises `UserError`."""
    parts = mesh.shape["data"] * mesh.shape["fsdp"] * accumulation
    if batch_size % parts:
        by = f"mesh.data x mesh.fsdp = {mesh.shape['data']} x {mesh.shape['fsdp']}"
        by += f" x {accumulation} accumulation steps" if accumulation > 1 else ""
        raise UserError(f"config.{name}={batch_size} cannot work: it must be a multiple of {parts} ({by})")


def parameter_shardings(axes: Any, shapes: Any, mesh: Mesh) -> Any:
    """A `NamedSharding` for each parameter, from its logical axes.

    A dimension that its mesh axis does not divide stays whole (the vocabulary of 30,522 does on most
    meshes); `run.json` shows how each parameter came out.
    """

    def sharding(names: PartitionSpec, shape: jax.ShapeDtypeStruct) -> NamedSharding:
        if len(names) != len(shape.shape):
            raise ValueError(f"a parameter of shape {shape.shape} has axis names {names}")
        rules = [RULES[name] for name in names]
        fits = [axis if axis and size % mesh.shape[axis] == 0 else None for axis, size in zip(rules, shape.shape)]
        return NamedSharding(mesh, PartitionSpec(*fits))

    return jax.tree.map(sharding, axes, shapes, is_leaf=lambda x: isinstance(x, PartitionSpec))


def replicated(mesh: Mesh) -> NamedSharding:
    """Whole on every device."""
    return NamedSharding(mesh, PartitionSpec())


def batch_rows(mesh: Mesh, batch_size: int) -> slice:
    """The rows of a batch that this process holds."""
    indices = NamedSharding(mesh, BATCH).addressable_devices_indices_map((batch_size,)).values()
    starts = [(index[0].start or 0, batch_size if index[0].stop is None else index[0].stop) for index in indices]
    return slice(min(start for start, _ in starts), max(stop for _, stop in starts))


def place(rows: Any, mesh: Mesh, batch_size: int) -> Any:
    """Global arrays `[batch_size, ...]`, for a tree of arrays of which this process gives its `rows`."""
    sharding = NamedSharding(mesh, BATCH)
    return jax.tree.map(lambda x: jax.make_array_from_process_local_data(sharding, x, (batch_size, *x.shape[1:])), rows)


def describe(abstract: Any) -> dict[str, str]:
    """The shape and layout of each parameter, by name; `abstract` holds shapes with shardings."""
    return {name: f"{leaf.shape} {leaf.sharding.spec}" for name, leaf in by_name(abstract).items()}
