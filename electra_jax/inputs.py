"""The data of a run, as batches on its mesh."""

from collections.abc import Iterator

import jax
import numpy as np

from electra_jax.data import pipeline
from electra_jax.data.build import Prepared
from electra_jax.data.dataset import TRAIN, VALIDATION
from electra_jax.training.setup import Setup


class Inputs:
    """Training and held-out batches of a prepared data set for a setup."""

    def __init__(self, setup: Setup, prepared: Prepared):
        self._setup = setup
        self._train = pipeline.Records(prepared.directory, TRAIN)
        has_held_out = VALIDATION in prepared.metadata
        self._held_out = pipeline.Records(prepared.directory, VALIDATION) if has_held_out else None
        self.num_records = len(self._train)

    @property
    def has_held_out(self) -> bool:
        """Whether anything is held out."""
        return self._held_out is not None

    def training(self, sequences: int) -> Iterator[jax.Array]:
        """Batches `[B, L]` from a position in the data on, without end."""
        config, size = self._setup.config, self._setup.config.train.batch_size
        rows = self._setup.rows(size)
        return self._setup.place(pipeline.training_batches(self._train, config.seed, sequences, size, rows), size)

    def held_out(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """This process's rows of the held-out batches, for `Setup.evaluate`."""
        settings = self._setup.config.evaluation
        size = self._setup.evaluation_batch_size
        return pipeline.evaluation_batches(
            self._held_out, size, settings.max_records, self._setup.ids.pad, self._setup.rows(size)
        )
