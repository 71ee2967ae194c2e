"""Masked language modelling: the generator's part, and BERT's whole objective (Devlin et al., 2019)."""

from typing import NamedTuple

import jax

from electra_jax.models import vocabulary
from electra_jax.models.electra import Electra
from electra_jax.objectives import losses
from electra_jax.objectives.losses import Mean
from electra_jax.objectives.terms import Example, Terms


class Filled(NamedTuple):
    """What the generator says of the masked positions."""

    logits: jax.Array  # [B * M, Vp] float32, one row after the other: see Generator.logits
    loss: Mean
    metrics: dict[str, Mean]


def fill(model: Electra, example: Example) -> Filled:
    """Runs the generator on the masked text."""
    masked, labels, weights = example.masked, example.labels.reshape(-1), example.masked.weights.reshape(-1)
    text = example.batch.text._replace(input_ids=masked.input_ids)
    logits = model.generator_logits(text, masked.positions, example.draws.generator_dropout)
    loss = losses.mean(vocabulary.cross_entropy(logits, labels), weights)
    metrics = {"masked_lm_accuracy": losses.mean(vocabulary.is_highest(logits, labels), weights)}
    return Filled(logits, loss, metrics)


def masked_lm(model: Electra, example: Example) -> Terms:
    """Masked language modelling alone, with ELECTRA's masks: no random tokens among them."""
    filled = fill(model, example)
    return Terms({"masked_lm_loss": filled.loss}, filled.metrics, histogram=None, sampled_ids=None)
