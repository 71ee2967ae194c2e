"""The objective that a model's towers are trained on."""

from electra_jax.config import Config
from electra_jax.models.electra import Electra
from electra_jax.objectives.masked_lm import masked_lm
from electra_jax.objectives.replaced_tokens import replaced_token_detection
from electra_jax.objectives.terms import Example, Terms


def objective(model: Electra, example: Example, config: Config) -> Terms:
    """Losses and metrics of `example`, as `model.towers` has it."""
    if config.model.towers == "masked_lm":
        return masked_lm(model, example)
    return replaced_token_detection(model, example, config)
