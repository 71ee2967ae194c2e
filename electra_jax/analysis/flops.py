"""Model FLOPs: the arithmetic the model needs, whatever is recomputed or padded to do it."""

from electra_jax.config import Config, EncoderConfig, Phase


def step_flops(config: Config, vocab_size: int, phase: Phase | None = None) -> float:
    """FLOPs of one training step over all devices: forward once, backward twice as much.

    Of `phase`, or of the last one.

    Matrix products only, two FLOPs a multiply-add. Attention is counted over the full length, packing or
    not; the vocabulary at the masked positions only; embedding look-ups as nothing.
    """
    length, batch, _ = phase or config.phases[-1]
    masked = config.objective.max_predictions(length)
    generator, discriminator = config.model.generator, config.model.discriminator
    forward = 0
    if generator:
        forward += _encoder(generator, length)
        forward += 2 * masked * generator.embedding_size * (generator.hidden_size + vocab_size)
    if config.model.towers != "masked_lm":
        forward += _encoder(discriminator, length)
        forward += 2 * length * discriminator.hidden_size * (discriminator.hidden_size + 1)
    return 3.0 * batch * forward


def _encoder(config: EncoderConfig, length: int) -> int:
    """Forward FLOPs of one sequence."""
    hidden = config.hidden_size
    projections = hidden * (4 * hidden + 2 * config.intermediate_size)
    attention = 2 * length * hidden
    project = config.embedding_size * hidden if config.embedding_size != hidden else 0
    return 2 * length * (config.num_hidden_layers * (projections + attention) + project)
