"""Replaced-token detection: the objective of ELECTRA (Clark et al., 2020, section 2)."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from electra_jax.config import ObjectiveConfig
from electra_jax.models.electra import Electra
from electra_jax.models.noise import Noise
from electra_jax.objectives import losses, masking, sampling
from electra_jax.objectives.layout import Batch
from electra_jax.objectives.losses import Mean
from electra_jax.objectives.masking import Masked

# The place of the embeddings' dropout; the layers have the places from 0 on.
_EMBEDDINGS = 2**20


class Randomness(NamedTuple):
    """Everything random in a step, an entry an example; dropout is off where its noise is None."""

    masking: jax.Array  # [B] keys
    sampling: jax.Array  # [B] keys
    generator_dropout: Noise | None
    discriminator_dropout: Noise | None


class Terms(NamedTuple):
    """What the objective returns for a batch or a part of one."""

    losses: dict[str, Mean]
    metrics: dict[str, Mean]
    histogram: jax.Array  # [2, AUC_BINS], scores of original and replaced tokens
    sampled_ids: jax.Array  # [B, M]


def randomness(key: jax.Array, index: jax.Array, dropout: bool) -> Randomness:
    """Draws as a function of `key` and each example's `index`, `[B]`, alone: not of the batch around it."""
    keys = jax.vmap(lambda i: jax.random.split(jax.random.fold_in(key, i), 4))(index)  # [B, 4]

    def noise(which: int) -> Noise:
        return Noise(jax.vmap(lambda k: jax.random.bits(k, (2,)))(keys[:, which]))

    return Randomness(keys[:, 0], keys[:, 1], noise(2) if dropout else None, noise(3) if dropout else None)


def loss_weights(config: ObjectiveConfig) -> dict[str, float]:
    """What each loss counts for in the total (equation 1 of the paper)."""
    return {"masked_lm_loss": config.gen_weight, "disc_loss": config.disc_weight}


def denominators(batch: Batch, masked: Masked) -> dict[str, jax.Array]:
    """The weight of each loss over the whole batch, known before any of it is computed."""
    return {"masked_lm_loss": masked.weights.sum(), "disc_loss": batch.is_real.sum().astype(jnp.float32)}


def replaced_token_detection(
    model: Electra,
    batch: Batch,
    masked: Masked,
    draws: Randomness,
    config: ObjectiveConfig,
    sampled_ids: jax.Array | None = None,
) -> Terms:
    """Runs generator, sampling and discriminator, and returns their losses.

    The discriminator's input is the original text with the samples put in, so no [MASK] is left; a token
    counts as replaced where the sample differs from the original, so a lucky sample is original. Its loss
    is over all real tokens, [CLS] and [SEP] included, as in the reference.

    Args:
      model: both towers.
      batch: records.
      masked: positions and the generator's input.
      draws: random keys and noise.
      config: rates and temperature.
      sampled_ids: `[B, M]`, replacements given from outside instead of sampled.
    """
    ids, real = batch.input_ids, batch.is_real
    embedding_noise = draws.generator_dropout and draws.generator_dropout.at(_EMBEDDINGS)
    embedded = model.shared(masked.input_ids, batch.position_ids, batch.token_type_ids, embedding_noise)
    hidden = model.generator.hidden(embedded, batch.segment_ids, draws.generator_dropout)
    logits = model.generator.logits(hidden, masked.positions, model.shared.word[...])  # [B, M, Vp]
    labels = jnp.take_along_axis(ids, masked.positions, axis=1)
    masked_lm_loss = losses.cross_entropy(logits, labels)

    if sampled_ids is None:
        uniforms = sampling.uniforms(draws.sampling, labels.shape[1])
        sampled_ids = sampling.sample(logits, uniforms, config.temperature)
    corrupted = masking.put(ids, masked.positions, masked.weights > 0, sampled_ids)
    is_replaced = (corrupted != ids).astype(jnp.float32)

    embedding_noise = draws.discriminator_dropout and draws.discriminator_dropout.at(_EMBEDDINGS)
    embedded = model.shared(corrupted, batch.position_ids, batch.token_type_ids, embedding_noise)
    scores = model.discriminator.logits(
        model.discriminator.hidden(embedded, batch.segment_ids, draws.discriminator_dropout)
    )
    disc_loss = losses.binary_cross_entropy(scores, is_replaced)

    weights = masked.weights
    predicted = scores > 0
    metrics = {
        "masked_lm_accuracy": losses.mean(losses.is_highest(logits, labels), weights),
        "sampled_masked_lm_accuracy": losses.mean(sampled_ids == labels, weights),
        # The surprise of the generator's own samples: at temperature 1 an unbiased estimate of its entropy, in nats.
        "generator_entropy": losses.mean(jax.lax.stop_gradient(losses.cross_entropy(logits, sampled_ids)), weights),
        "disc_accuracy": losses.mean(predicted == is_replaced, real),
        "disc_precision": losses.mean(is_replaced, predicted & real),
        "disc_recall": losses.mean(predicted, is_replaced),
        "replaced_share": losses.mean(is_replaced, real),
    }
    return Terms(
        losses={"masked_lm_loss": losses.mean(masked_lm_loss, weights), "disc_loss": losses.mean(disc_loss, real)},
        metrics=metrics,
        histogram=losses.score_histogram(jax.lax.stop_gradient(scores), is_replaced, real),
        sampled_ids=sampled_ids,
    )
