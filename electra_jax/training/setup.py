"""What a configuration and a vocabulary make: mesh, architecture, shapes, compiled steps."""

import functools
from collections.abc import Iterable, Iterator
from typing import Any, Protocol

import jax
import numpy as np
from jax.sharding import Mesh

from electra_jax.config import Config
from electra_jax.models.electra import Architecture, Params
from electra_jax.objectives.layout import TokenIds
from electra_jax.training import partitioning
from electra_jax.training.evaluation import EvalStep, evaluate, make_evaluation_step
from electra_jax.training.state import TrainState, abstract_state, init_state
from electra_jax.training.step import make_train_step


class SpecialIds(Protocol):
    """What is needed to know of a tokenizer's special tokens."""

    pad: int
    cls: int
    sep: int
    mask: int


def mesh_of(config: Config) -> Mesh:
    """The mesh of `config` over all devices; raises `UserError` where it or the batch sizes do not fit them."""
    mesh = partitioning.make_mesh(config.mesh)
    accumulation = config.train.gradient_accumulation_steps
    partitioning.check_batch("train.batch_size", config.train.batch_size, mesh, accumulation)
    partitioning.check_batch("evaluation.batch_size", config.evaluation.batch_size, mesh)
    return mesh


class Setup:
    """Everything static about a run.

    Attributes:
      config, mesh, architecture, ids: as made.
      abstract: the train state as shapes with shardings.
    """

    def __init__(self, config: Config, ids: TokenIds, vocab_size: int, mesh: Mesh | None = None):
        self.config, self.ids = config, ids
        self.mesh = mesh or mesh_of(config)
        self.architecture = Architecture(config.model, vocab_size)
        self.abstract = abstract_state(config, self.architecture, self.mesh)

    @classmethod
    def of(cls, config: Config, special: SpecialIds, vocab_size: int, mesh: Mesh | None = None) -> "Setup":
        """The setup for the special tokens of a tokenizer."""
        two_segments = config.data.packing == "two_segments"
        return cls(
            config, TokenIds(special.pad, special.cls, special.sep, special.mask, two_segments), vocab_size, mesh
        )

    @functools.cached_property
    def train_step(self):
        """(state, input_ids) -> (state, metrics)."""
        return make_train_step(self.config, self.architecture, self.ids, self.mesh, self.abstract)

    @functools.cached_property
    def evaluation_step(self) -> EvalStep:
        """(params, input_ids, record) -> sums."""
        return make_evaluation_step(self.config, self.architecture, self.ids, self.mesh, self.abstract.params)

    def init(self, params: Params | None = None) -> TrainState:
        """The state before the first step."""
        return init_state(self.config, self.architecture, self.mesh, params)

    def evaluate(self, params: Params, batches: Iterable[tuple[np.ndarray, np.ndarray]]) -> dict[str, float]:
        """Held-out figures of `params` over this process's rows of `batches`."""
        return evaluate(self.evaluation_step, params, self.place(batches, self.config.evaluation.batch_size))

    def place(self, batches: Iterable[Any], batch_size: int) -> Iterator[Any]:
        """Batches of this process's rows, as global arrays on the mesh."""
        return (partitioning.place(rows, self.mesh, batch_size) for rows in batches)

    def rows(self, batch_size: int) -> slice:
        """The rows of a batch that this process reads."""
        return partitioning.batch_rows(self.mesh, batch_size)

    def parameter_count(self) -> dict[str, int]:
        """Parameters by group: shared, generator, discriminator."""
        return {
            group: sum(leaf.size for leaf in jax.tree.leaves(tree)) for group, tree in self.architecture.shapes.items()
        }
