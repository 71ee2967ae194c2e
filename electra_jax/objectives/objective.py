"""What a train step computes, and the objective that the towers are pretrained on."""

import dataclasses
from collections.abc import Mapping
from typing import Any, Protocol

import jax
import jax.numpy as jnp

from electra_jax.config import Config
from electra_jax.models.electra import Electra
from electra_jax.objectives import masking
from electra_jax.objectives.layout import TokenIds, read_layout
from electra_jax.objectives.masked_lm import masked_lm
from electra_jax.objectives.replaced_tokens import replaced_token_detection
from electra_jax.objectives.terms import Example, Terms, randomness


class Objective(Protocol):
    """What the train step needs to know of what it trains: pure functions, static for jit."""

    @property
    def weights(self) -> Mapping[str, float]:
        """What each loss counts for in the total."""

    def example(self, key: jax.Array, batch: Any) -> Any:
        """What `terms` computes losses on, made from a batch with the step's `key`; each leaf has the batch as its first axis."""

    def denominators(self, example: Any) -> dict[str, jax.Array]:
        """The weight of each loss over all of `example`, known before any of it is computed."""

    def terms(self, model: Any, example: Any) -> Terms:
        """Losses and metrics of `example`, as sums and weights."""


@dataclasses.dataclass(frozen=True)
class Pretraining:
    """Replaced-token detection or masked language modelling, as `model.towers` has it: an `Objective`."""

    config: Config
    ids: TokenIds

    @property
    def weights(self) -> dict[str, float]:
        """Equation 1 of the paper."""
        return {"masked_lm_loss": self.config.objective.gen_weight, "disc_loss": self.config.objective.disc_weight}

    def example(self, key: jax.Array, batch: jax.Array) -> Example:
        """Records `[B, L]`: layout read, positions masked, draws made."""
        made = read_layout(batch, jnp.arange(batch.shape[0]), self.ids)
        draws = randomness(key, made.index, dropout=True)
        return Example(made, masking.choose(draws.masking, made, self.ids, self.config.objective), draws)

    def denominators(self, example: Example) -> dict[str, jax.Array]:
        real = example.batch.is_real.sum().astype(jnp.float32)
        return {"masked_lm_loss": example.masked.weights.sum(), "disc_loss": real}

    def terms(self, model: Electra, example: Example) -> Terms:
        if self.config.model.towers == "masked_lm":
            return masked_lm(model, example)
        return replaced_token_detection(model, example, self.config)
