"""The data of a run, as batches on its mesh."""

import itertools
from collections.abc import Iterator

import jax
import numpy as np

from electra_jax.data import pipeline
from electra_jax.data.build import Prepared
from electra_jax.training.loop import Position
from electra_jax.training.setup import Setup


class Inputs:
    """Training and held-out batches of prepared data for a setup."""

    def __init__(self, setup: Setup, prepared: Prepared):
        self._setup, config = setup, setup.config
        self._sequences = {
            length: pipeline.Sequences(sets, config.data, config.seed) for length, sets in prepared.sets.items()
        }
        self._held_out = {length: pipeline.held_out(sets) for length, sets in prepared.sets.items()}
        self.has_held_out = bool(self._held_out[config.data.max_seq_length])

    def epochs(self, length: int, count: int) -> float:
        """How often `count` training sequences of this length go through the text, or the part of it that is read most often."""
        return self._sequences[length].epochs(count)

    def read_per_used(self, length: int) -> float:
        """Bytes that this process has read for each that it used, of the data of this length."""
        return self._sequences[length].read_per_used()

    def training(self, start: Position) -> Iterator[jax.Array]:
        """Batches `[B, L]` from a position on, without end; `B` and `L` are those of the phase of each step."""
        for phase in self._setup.config.phases:
            if phase.end is not None and start.step >= phase.end:
                continue
            size, rows = phase.batch_size, self._setup.rows(phase.batch_size)
            batches = pipeline.training_batches(self._sequences[phase.length], start.sequences, size, rows)
            steps = None if phase.end is None else phase.end - start.step
            yield from self._setup.place(itertools.islice(batches, steps), size)
            start = Position(start.step + (steps or 0), 0)

    def held_out(self, step: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """This process's rows of the held-out batches, for `Setup.evaluate`, of the length trained on up to `step`."""
        settings = self._setup.config.evaluation
        size, length = self._setup.evaluation_batch_size, self._setup.config.phase(max(0, step - 1)).length
        return pipeline.evaluation_batches(
            self._held_out[length], size, settings.max_records, self._setup.ids.pad, self._setup.rows(size)
        )
