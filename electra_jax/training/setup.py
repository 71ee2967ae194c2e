"""What a configuration and a vocabulary make: mesh, architecture, shapes, compiled steps."""

import dataclasses
import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from electra_jax.config import Config, EncoderConfig, ModelConfig
from electra_jax.errors import UserError
from electra_jax.models import pallas_attention
from electra_jax.models.attention import fused_attention
from electra_jax.models.electra import Architecture, Electra, Params
from electra_jax.objectives.layout import TokenIds
from electra_jax.objectives.objective import Objective, Pretraining
from electra_jax.training import partitioning
from electra_jax.training.evaluation import EvalStep, HeldOut, evaluate, make_evaluation_step
from electra_jax.training.state import TrainState, abstract_state, fresh_params, new_state
from electra_jax.training.step import make_train_step


class SpecialIds(Protocol):
    """What is needed to know of a tokenizer's special tokens."""

    pad: int
    cls: int
    sep: int
    mask: int


def mesh_of(config: Config, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """The mesh of `config` over all devices, or these; raises `UserError` where it or the batch do not fit them."""
    mesh = partitioning.make_mesh(config.mesh, devices)
    check_batches(config, mesh)
    return mesh


def check_batches(config: Config, mesh: Mesh) -> None:
    """Raises `UserError` where the devices of `mesh` cannot share a batch of `config` evenly."""
    train = config.train
    for phase in config.phases:
        of_curriculum = phase.end is not None and train.curriculum_batch_sizes
        name = "train.curriculum_batch_sizes" if of_curriculum else "train.batch_size"
        partitioning.check_batch(name, phase.batch_size, mesh, train.gradient_accumulation_steps, train.replicas)


def resolve(config: Config, mesh: Mesh) -> ModelConfig:
    """`config.model` with `auto` decided for `mesh`; raises `UserError` for what cannot be had there."""
    device = mesh.devices.flat[0]
    unroll, remat = choose_layers(config.model, device)
    attention = choose_attention(config, device, mesh.shape["tensor"])
    return dataclasses.replace(config.model, attention=attention, unroll=unroll, remat=remat)


def choose_attention(config: Config, device: jax.Device, tensor: int = 1) -> str:
    """What `model.attention` resolves to on `device`, one of `tensor` devices that share the heads.

    Raises:
      UserError: for one that is not available there.
    """
    model = config.model
    towers = [tower for tower in (model.generator, model.discriminator) if tower]
    if model.attention == "reference":
        return "reference"
    if model.attention == "pallas" or (model.attention == "auto" and device.platform == "tpu"):
        return _choose_pallas(config, towers, device, tensor)
    return _choose_cudnn(model, towers, sorted({phase.length for phase in config.phases}), device)


def choose_layers(model: ModelConfig, device: jax.Device) -> tuple[str, str]:
    """What `model.unroll` (`all`, `none`) and `model.remat` (`none`, `dots`, `full`) resolve to on `device`.

    A loop has to stack what each layer leaves for the backward pass, on a TPU copy it out again for the attention kernel,
    and exchange gradients after each part of a batch: half of the time for 24 layers in 16 parts. Unrolled layers take
    longer to compile, minutes for a TPU, but the compiler then finds by itself what is cheap to recompute, and needs less
    memory than with `dots`.
    """
    few = 24 if device.platform == "tpu" else 4
    unroll = model.unroll if model.unroll != "auto" else ("all" if model.num_hidden_layers <= few else "none")
    return unroll, model.remat if model.remat != "auto" else ("none" if unroll == "all" else "dots")


def _choose_pallas(config: Config, towers: list[EncoderConfig], device: jax.Device, tensor: int) -> str:
    reason = ""
    if device.platform not in ("tpu", "cpu"):
        reason = f"{device.device_kind} is no TPU"
    for tower in towers:
        shared = tensor if tower.num_attention_heads % tensor == 0 else 1
        width, heads = tower.hidden_size // shared, tower.num_attention_heads // shared
        for phase in config.phases:
            if not pallas_attention.fits(phase.length, width, heads, device.device_kind):
                longest = pallas_attention.longest(device.device_kind)
                reason = (
                    f"{heads} heads that are {width} wide together on a device, at length {phase.length}: lengths must be "
                    f"multiples of 128 up to {longest}, widths multiples of 128 or below it, and heads a divisor or multiple of "
                    "128 wide"
                )
    if reason and config.model.attention == "pallas":
        raise UserError(f"config.model.attention='pallas' cannot work: {reason}")
    return "reference" if reason else "pallas"


def _choose_cudnn(model: ModelConfig, towers: list[EncoderConfig], lengths: Sequence[int], device: jax.Device) -> str:
    head_sizes = {tower.hidden_size // tower.num_attention_heads for tower in towers}
    reason = ""
    if device.platform != "gpu":
        reason = f"{device.device_kind} is no GPU"
    elif model.attention_probs_dropout_prob:
        reason = (
            f"it has no dropout, and config.model.attention_probs_dropout_prob={model.attention_probs_dropout_prob}"
        )
    elif model.dtype != "bfloat16":
        reason = f"it is for bfloat16, and config.model.dtype={model.dtype}"
    elif any(size % 8 or size > 128 for size in head_sizes):
        reason = f"heads must be a multiple of 8 wide and at most 128; these are {sorted(head_sizes)}"
    elif not all(compiles_fused(tower, length) for tower in towers for length in lengths):
        reason = f"cuDNN is not there, or not for sequences of {', '.join(map(str, lengths))}"
    if reason and model.attention == "cudnn":
        raise UserError(f"config.model.attention='cudnn' cannot work: {reason}")
    return "reference" if reason else "cudnn"


def compiles_fused(tower: EncoderConfig, length: int, implementation: str = "cudnn") -> bool:
    """Whether the tower's attention compiles here with cuDNN, mask and gradient included: trying is the only way to know.

    `implementation="xla"` works everywhere, so that tests can run this on a machine without cuDNN.
    """
    heads = tower.num_attention_heads
    projected = jax.ShapeDtypeStruct((3, 1, length, heads, tower.hidden_size // heads), jnp.bfloat16)
    segments = jax.ShapeDtypeStruct((1, length), jnp.int32)

    def total(projected: jax.Array, segment_ids: jax.Array) -> jax.Array:
        return fused_attention(projected, segment_ids, implementation).astype(jnp.float32).sum()

    try:
        jax.jit(jax.grad(total)).lower(projected, segments).compile()
    except (RuntimeError, NotImplementedError, ValueError):  # which it is depends on what is missing
        return False
    return True


class Program:
    """Everything static about what is trained.

    Attributes:
      config, objective, mesh: as given.
      model: `config.model` with every `auto` decided for the mesh.
      architecture: the `Architecture` of `model`.
      evaluation_batch_size: `evaluation.batch_size` rounded up, so that the devices share it evenly.
      abstract: the train state as shapes with shardings.
    """

    def __init__(
        self,
        config: Config,
        objective: Objective,
        vocab_size: int,
        mesh: Mesh | None = None,
        module: Callable[..., nnx.Module] = Electra,
    ):
        """`module` is what `Architecture` makes of the model's configuration."""
        self.config, self.objective = config, objective
        self.mesh = mesh or mesh_of(config)
        self.model = resolve(config, self.mesh)
        self.architecture = Architecture(self.model, vocab_size, module)
        parts = partitioning.batch_parts(self.mesh)
        self.evaluation_batch_size = -(-config.evaluation.batch_size // parts) * parts
        self.abstract = abstract_state(config, self.architecture, self.mesh)

    @functools.cached_property
    def train_step(self):
        """(state, batch) -> (state, metrics)."""
        return make_train_step(self.config, self.architecture, self.objective, self.mesh, self.abstract)

    @functools.cached_property
    def fresh_params(self) -> Callable[[int], Params]:
        """seed -> parameters, created already sharded; the seed is an argument, so one compiled program serves all seeds."""
        make = functools.partial(fresh_params, self.architecture)
        compiled = jax.jit(make, out_shardings=partitioning.shardings_of(self.abstract.params))
        return lambda seed: compiled(np.uint32(seed))

    def init(self, params: Params | None = None) -> TrainState:
        """The state before the first step, with `params`, which are not donated, or with fresh ones."""
        make = functools.partial(new_state, self.config, self.architecture)
        is_fresh = params is None
        params = self.fresh_params(self.config.seed) if is_fresh else params
        shardings = partitioning.shardings_of(self.abstract)
        return jax.jit(make, out_shardings=shardings, donate_argnums=0 if is_fresh else ())(params)

    def place(self, batches: Iterable[Any], batch_size: int) -> Iterator[Any]:
        """Batches of this process's rows, as global arrays on the mesh."""
        return (partitioning.place(rows, self.mesh, batch_size) for rows in batches)

    def rows(self, batch_size: int) -> np.ndarray:
        """The rows of a batch that this process reads."""
        return partitioning.batch_rows(self.mesh, batch_size)

    def parameter_count(self) -> dict[str, int]:
        """Parameters by group: shared, generator, discriminator."""
        return {
            group: sum(leaf.size for leaf in jax.tree.leaves(tree)) for group, tree in self.architecture.shapes.items()
        }


class Setup(Program):
    """A program of pretraining; `ids` are those that its objective treats apart."""

    def __init__(self, config: Config, ids: TokenIds, vocab_size: int, mesh: Mesh | None = None):
        self.ids = ids
        super().__init__(config, Pretraining(config, ids), vocab_size, mesh)

    @classmethod
    def of(cls, config: Config, special: SpecialIds, vocab_size: int, mesh: Mesh | None = None) -> "Setup":
        """The setup for the special tokens of a tokenizer."""
        two_segments = config.data.packing == "two_segments"
        ids = TokenIds(special.pad, special.cls, special.sep, special.mask, two_segments)
        return cls(config, ids, vocab_size, mesh)

    @functools.cached_property
    def evaluation_step(self) -> EvalStep:
        """(params, input_ids, record) -> sums."""
        return make_evaluation_step(self.architecture, self.objective, self.mesh, self.abstract.params)

    def evaluate(
        self,
        params: Params,
        batches: Iterable[tuple[np.ndarray, np.ndarray]],
        is_cut_short: Callable[[], bool] = lambda: False,
    ) -> HeldOut | None:
        """Held-out figures of `params` over `batches`, given as this process's rows; None where it was cut short."""
        batches = self.place(batches, self.evaluation_batch_size)
        return evaluate(self.evaluation_step, params, batches, is_cut_short)
