"""AdamW as ELECTRA uses it, and learning rates as functions of the step."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from electra_jax.config import Config, OptimizerConfig
from electra_jax.models.electra import Params


def learning_rate(step: jax.Array, config: Config) -> jax.Array:
    """The learning rate of the update that leads from `step` to `step + 1`; the first one is 0 (or warms up).

    `linear` is the reference's: a linear decay to 0 over the whole run, multiplied by the warm-up, so the
    nominal peak is not quite reached. `cosine` and `wsd` (warm-up, stable, decay; Hu et al., 2024) begin to
    decay after it.
    """
    settings, end = config.optimizer, config.train.num_train_steps
    step = step.astype(jnp.float32)
    warmup = jnp.minimum(1.0, step / max(1, settings.warmup_steps))
    match settings.schedule:
        case "linear":
            decay = 1 - step / end
        case "cosine":
            done = (step - settings.warmup_steps) / max(1, end - settings.warmup_steps)
            decay = 0.5 * (1 + jnp.cos(jnp.pi * jnp.clip(done, 0, 1)))
        case "wsd":
            decay = (end - step) / max(1, settings.cooldown_steps)
    return settings.learning_rate * warmup * jnp.clip(decay, 0, 1)


def make_optimizer(config: OptimizerConfig, axes: Params) -> optax.GradientTransformation:
    """Clipping by global norm, Adam, decoupled weight decay: everything but the learning rate.

    Args:
      config: rates.
      axes: the parameter tree, for the names that are exempt from decay.
    """
    return optax.chain(
        optax.clip_by_global_norm(config.clip_norm),
        adam_without_bias_correction(config.beta1, config.beta2, config.eps),
        optax.add_decayed_weights(config.weight_decay, mask=is_decayed(axes)),
    )


def is_decayed(tree: Params) -> Params:
    """Which parameters decay: all but biases and LayerNorm, by name, since stacking changes their rank."""

    def by_name(path: tuple[jax.tree_util.DictKey, ...], _) -> bool:
        name = path[-1].key
        return not (name.endswith("bias") or name == "scale")

    return jax.tree_util.tree_map_with_path(by_name, tree, is_leaf=lambda x: not isinstance(x, dict))


class Moments(NamedTuple):
    """First and second moments of the gradient."""

    mu: optax.Updates
    nu: optax.Updates


def adam_without_bias_correction(beta1: float, beta2: float, eps: float) -> optax.GradientTransformation:
    """Adam's direction without bias correction, as in BERT's and ELECTRA's AdamWeightDecayOptimizer."""

    def init(params: optax.Params) -> Moments:
        return Moments(*(jax.tree.map(jnp.zeros_like, params) for _ in range(2)))

    def update(gradients: optax.Updates, state: Moments, params: optax.Params | None = None):
        del params
        mu = jax.tree.map(lambda m, g: beta1 * m + (1 - beta1) * g, state.mu, gradients)
        nu = jax.tree.map(lambda v, g: beta2 * v + (1 - beta2) * jnp.square(g), state.nu, gradients)
        return jax.tree.map(lambda m, v: m / (jnp.sqrt(v) + eps), mu, nu), Moments(mu, nu)

    return optax.GradientTransformation(init, update)
