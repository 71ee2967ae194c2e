"""Replaced-token detection: the objective of ELECTRA (Clark et al., 2020, section 2)."""

import jax
import jax.numpy as jnp

from electra_jax.config import Config
from electra_jax.models import vocabulary
from electra_jax.models.electra import Electra
from electra_jax.objectives import losses, masking, sampling
from electra_jax.objectives.masked_lm import Filled, fill
from electra_jax.objectives.terms import Example, Terms, Verdicts


def replaced_token_detection(model: Electra, example: Example, config: Config) -> Terms:
    """Runs generator, sampling and discriminator, and returns their losses.

    The discriminator's input is the original text with the samples put in, so no [MASK] is left; a token
    counts as replaced only where the sample differs from the original, not where the generator guessed right. The
    discriminator's loss is over all real tokens, [CLS] and [SEP] included, as in the reference.

    Without a generator, replacements are drawn uniformly from the vocabulary, and the masked-LM loss is the
    constant that uniform guesses give.
    """
    batch, masked = example.batch, example.masked
    ids, real = batch.input_ids, batch.is_real
    filled = fill(model, example) if model.generator else _uniform(model, example)
    sampled_ids = example.sampled_ids
    if sampled_ids is None:
        sampled_ids = _sample(example, filled, config)
    corrupted = masking.replace(ids, masked, sampled_ids, config.objective.duplicate_positions)
    is_replaced = (corrupted != ids).astype(jnp.float32)

    scores = model.discriminator_logits(batch.text._replace(input_ids=corrupted), example.draws.discriminator_dropout)
    disc_loss = losses.binary_cross_entropy(scores, is_replaced)

    weights = masked.weights
    predicted = scores > 0
    # The surprise of the generator's own samples: at temperature 1 an unbiased estimate of its entropy, in nats.
    surprise = jax.lax.stop_gradient(vocabulary.cross_entropy(filled.logits, sampled_ids.reshape(-1)))
    metrics = filled.metrics | {
        "sampled_masked_lm_accuracy": losses.mean(sampled_ids == example.labels, weights),
        "generator_entropy": losses.mean(surprise, weights.reshape(-1)),
        "disc_accuracy": losses.mean(predicted == is_replaced, real),
        "disc_precision": losses.mean(is_replaced, predicted & real),
        "disc_recall": losses.mean(predicted, is_replaced),
        "replaced_share": losses.mean(is_replaced, real),
    }
    # Not the rows that fill up the last batch of an evaluation: their number goes by the size of the batch.
    in_records = jnp.broadcast_to(real.any(-1, keepdims=True), real.shape)
    counted = in_records if config.evaluation.disc_auc_padding == "counted" else real
    ranked = jnp.where(real, jax.lax.stop_gradient(scores), -jnp.inf)
    return Terms(
        losses={"masked_lm_loss": filled.loss, "disc_loss": losses.mean(disc_loss, real)},
        metrics=metrics,
        histogram=losses.score_histogram(ranked, is_replaced, counted),
        sampled_ids=sampled_ids,
        verdicts=Verdicts(ids, corrupted, jax.lax.stop_gradient(scores)),
    )


def _sample(example: Example, filled: Filled, config: Config) -> jax.Array:
    shape = example.masked.positions.shape
    draws = sampling.uniforms(example.draws.sampling, shape[1]).reshape(-1, 2)
    disallowed = example.labels.reshape(-1) if config.objective.disallow_correct else None
    return sampling.sample(filled.logits, draws, config.objective.temperature, disallowed).reshape(shape)


def _uniform(model: Electra, example: Example) -> Filled:
    """What a generator that knows nothing says: the same logit for every token of the vocabulary."""
    masked = example.masked
    vocab_size = model.shared.word[...].shape[0]
    logits = sampling.uniform_logits(vocab_size, (masked.positions.size,))
    loss = losses.mean(jnp.full(masked.positions.shape, jnp.log(vocab_size)), masked.weights)
    return Filled(logits, loss, {})
