"""Where arrays live: the mesh, and the rules from logical axis names to its axes."""

import contextlib
import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
from flax.core import spmd
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from electra_jax.config import MeshConfig
from electra_jax.errors import UserError
from electra_jax.models.electra import by_name

# The mesh axis of every logical axis of every parameter, and of the optimizer's state; None is whole on every device.
PARAMETERS: dict[str, str | None] = {
    "vocab": "tensor",
    "embed": "fsdp",
    "embedding": "fsdp",
    "mlp": "tensor",
    "heads": "tensor",
    "position": None,
    "token_type": None,
    "layers": None,
    "single": None,
}

# The mesh axes of activations. Parameters in use follow these too: what is sharded over fsdp is gathered for each use.
ACTIVATIONS: dict[str, tuple[str, ...] | None] = {
    "batch": ("data", "fsdp"),
    "batch_of_logits": ("data", "fsdp", "tensor"),
    "vocab": None,
    "embed": None,
    "embedding": None,
    "mlp": ("tensor",),
    "heads": ("tensor",),
    "single": None,
}

BATCH = PartitionSpec(("data", "fsdp"))


def make_mesh(config: MeshConfig, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """The mesh (data, fsdp, tensor) over all devices; an axis of -1 takes what the others leave.

    Over several TPU slices, which a slower network joins, the data axis goes across them, or else fsdp; the rest stays
    within a slice.

    Raises:
      UserError: where the sizes do not multiply to the number of devices, or no axis can go across slices.
    """
    devices = list(devices if devices is not None else jax.devices())
    sizes = {"data": config.data, "fsdp": config.fsdp, "tensor": config.tensor}
    fixed = math.prod(size for size in sizes.values() if size != -1)
    filled = {axis: len(devices) // fixed if size == -1 else size for axis, size in sizes.items()}
    if math.prod(filled.values()) != len(devices):
        text = ", ".join(f"mesh.{axis}={size}" for axis, size in sizes.items())
        raise UserError(f"config.{text}: the sizes must multiply to the number of devices, {len(devices)}")
    slices = _slices(devices)
    across = next((axis for axis in ("data", "fsdp") if filled[axis] % slices == 0), None)
    if across is None:
        raise UserError(
            f"config.mesh.data={filled['data']} and mesh.fsdp={filled['fsdp']}: one must be a multiple of the {slices} slices"
        )
    between = {axis: slices if axis == across else 1 for axis in filled}
    within = [filled[axis] // between[axis] for axis in filled]
    if len({getattr(device, "core_on_chip", 0) for device in devices}) > 1:
        # A chip that shows as two devices (v4 to the compiler without a TPU), which mesh_utils does not lay out.
        of_slices = np.asarray(sorted(devices, key=lambda device: getattr(device, "slice_index", 0))).reshape(
            slices, *within
        )
        array = np.concatenate(of_slices, axis=list(filled).index(across))
    # An axis may be a part of a side of the torus: two devices of a side of four.
    elif slices > 1:
        array = mesh_utils.create_hybrid_device_mesh(
            within, list(between.values()), devices, allow_split_physical_axes=True
        )
    else:
        array = mesh_utils.create_device_mesh(within, devices, allow_split_physical_axes=True)
    # Auto axes: the compiler propagates; by default they would be Explicit.
    return Mesh(array, tuple(filled), axis_types=(AxisType.Auto,) * 3)


def compiler_options(mesh: Mesh, accumulation: int = 1) -> dict[str, str]:
    """Options of the compiler that programs for `mesh`, which compute a batch in `accumulation` parts, need."""
    options = {}
    if _slices(mesh.devices.flat) > 1:
        # Else the TPU compiler (libtpu 0.0.50) fails on gradients between slices: `AllReduceScatterFusion not implemented`.
        options["xla_tpu_decompose_every_reduce_scatters_hlos"] = "true"
    if mesh.devices.flat[0].platform == "tpu" and mesh.shape["tensor"] > 1 and accumulation > 1:
        # This pass sums the gradient of a row-sharded table over the parts incorrectly (openxla/xla, issue 49143).
        options["xla_disable_hlo_passes"] = "while-loop-all-reduce-code-motion"
    return options


def _slices(devices: Iterable[jax.Device]) -> int:
    """How many TPU slices the devices are spread over; 1 where they are no TPUs."""
    return len({getattr(device, "slice_index", None) if device.platform == "tpu" else None for device in devices})


def batch_parts(mesh: Mesh, accumulation: int = 1) -> int:
    """What a batch must be a multiple of: the devices it is spread over, times the parts it is computed in."""
    return mesh.shape["data"] * mesh.shape["fsdp"] * accumulation


def check_batch(name: str, batch_size: int, mesh: Mesh, accumulation: int = 1, replicas: int = 1) -> None:
    """Refuses a batch, the setting `name`, that the devices cannot share evenly; raises `UserError`."""
    parts = batch_parts(mesh, accumulation * replicas)
    if batch_size % parts:
        by = f"mesh.data x mesh.fsdp = {mesh.shape['data']} x {mesh.shape['fsdp']}"
        by += f" x {accumulation} accumulation steps" if accumulation > 1 else ""
        by += f" x {replicas} replicas" if replicas > 1 else ""
        raise UserError(f"config.{name}={batch_size} cannot work: it must be a multiple of {parts} ({by})")


def parameter_shardings(axes: Any, shapes: Any, mesh: Mesh) -> Any:
    """A `NamedSharding` for each parameter, from its logical axes.

    A dimension that its mesh axis does not divide stays whole (the vocabulary of 30,522 does on most
    meshes); `run.json` shows how each parameter came out. Vectors are not split over fsdp: gathering one takes
    longer than the memory it saves is worth. Of two dimensions with the same mesh axis, the first gets it.
    """

    def sharding(names: PartitionSpec, shape: jax.ShapeDtypeStruct) -> NamedSharding:
        if len(names) != len(shape.shape):
            raise ValueError(f"a parameter of shape {shape.shape} has axis names {names}")
        is_vector = len(set(names) - {"layers"}) == 1
        fits = []
        for name, size in zip(names, shape.shape):
            axis = PARAMETERS[name]
            taken = axis in fits or (axis == "fsdp" and is_vector)
            fits.append(axis if axis and not taken and size % mesh.shape[axis] == 0 else None)
        return NamedSharding(mesh, PartitionSpec(*fits))

    return jax.tree.map(sharding, axes, shapes, is_leaf=lambda x: isinstance(x, PartitionSpec))


def shardings_of(abstract: Any) -> Any:
    """The shardings of a tree's arrays, in the form that jit takes."""
    return jax.tree.map(lambda leaf: leaf.sharding, abstract)


@contextlib.contextmanager
def activation_rules(mesh: Mesh) -> Iterator[None]:
    """A context for tracing a step for `mesh`, in which the models' constraints on activations take effect."""
    if mesh.size == 1:
        yield
        return
    with spmd.logical_axis_rules(tuple(ACTIVATIONS.items())), jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
        yield


def replicated(mesh: Mesh) -> NamedSharding:
    """Whole on every device."""
    return NamedSharding(mesh, PartitionSpec())


def batch_rows(mesh: Mesh, batch_size: int) -> np.ndarray:
    """The numbers of the rows of a batch that this process's devices hold, ascending; not always one block."""
    indices = NamedSharding(mesh, BATCH).addressable_devices_indices_map((batch_size,)).values()
    return np.unique(np.concatenate([np.arange(batch_size)[index] for index in indices]))


def place(rows: Any, mesh: Mesh, batch_size: int) -> Any:
    """Global arrays `[batch_size, ...]` from a tree of arrays that hold only the rows of this process (`batch_rows`)."""
    sharding, numbers = NamedSharding(mesh, BATCH), batch_rows(mesh, batch_size)

    def array(x: np.ndarray) -> jax.Array:
        return jax.make_array_from_callback(
            (batch_size, *x.shape[1:]), sharding, lambda index: rows_of(x, numbers, np.arange(batch_size)[index[0]])
        )

    return jax.tree.map(array, rows)


def rows_of(x: np.ndarray, numbers: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """The rows of `x` whose `numbers`, ascending, are `wanted`."""
    return x[np.searchsorted(numbers, wanted)]


def describe(abstract: Any) -> dict[str, str]:
    """The shape and layout of each parameter, by name; `abstract` holds shapes with shardings."""
    return {name: f"{leaf.shape} {leaf.sharding.spec}" for name, leaf in by_name(abstract).items()}
