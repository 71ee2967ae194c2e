"""AdamW as ELECTRA uses it, and learning rates as functions of the step."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from electra_jax.config import Config, OptimizerConfig
from electra_jax.models.electra import Params


def learning_rate(step: jax.Array, config: Config) -> jax.Array:
    """The learning rate of the update that leads from `step` to `step + 1`; with a warm-up, the first is 0.

    `linear` is the reference's: a linear decay to 0 over the whole run, multiplied by the warm-up, so the
    nominal peak is not quite reached. `linear_after_warmup`, `cosine` and `wsd` (warm-up, stable, decay; Hu et
    al., 2024) begin to decay after it.
    """
    settings, end = config.optimizer, config.train.num_train_steps
    step = step.astype(jnp.float32)
    warmup = jnp.minimum(1.0, step / settings.warmup_steps) if settings.warmup_steps else 1.0
    done = jnp.clip((step - settings.warmup_steps) / max(1, end - settings.warmup_steps), 0, 1)
    match settings.schedule:
        case "linear":
            decay = 1 - step / end
        case "linear_after_warmup":
            decay = 1 - done
        case "cosine":
            decay = 0.5 * (1 + jnp.cos(jnp.pi * done))
        case "wsd":
            # Without a cooldown the end is in no program: a run that is made longer need not compile again.
            decay = (end - step) / settings.cooldown_steps if settings.cooldown_steps else 1
    return settings.learning_rate * warmup * jnp.clip(decay, 0, 1)


def cooldown_start(config: Config) -> int | None:
    """The step at which the cooldown of `wsd` begins, None without one; a run can also go on from there at the level rate."""
    settings = config.optimizer
    begins = settings.schedule == "wsd" and settings.cooldown_steps
    return config.train.num_train_steps - settings.cooldown_steps if begins else None


def ends_at_zero(config: Config) -> bool:
    """Whether the learning rate has come to 0 where a run ends."""
    match config.optimizer.schedule:
        case "linear":
            return True
        case "wsd":
            return cooldown_start(config) is not None
        case _:
            return config.optimizer.warmup_steps < config.train.num_train_steps


def make_optimizer(config: OptimizerConfig, axes: Params) -> optax.GradientTransformation:
    """Clipping by global norm, Adam, decoupled weight decay: everything but the learning rate.

    Args:
      config: rates.
      axes: the parameter tree, for the names that are exempt from decay.
    """
    if config.bias_correction:
        adam = optax.scale_by_adam(config.beta1, config.beta2, config.eps)
    else:
        adam = adam_without_bias_correction(config.beta1, config.beta2, config.eps)
    decay = optax.add_decayed_weights(config.weight_decay, mask=is_decayed(axes, config.decay_embeddings))
    # `per_replica` clips where the gradients are computed (`training.step`); the state has the same form either way.
    is_global = config.clipping == "global"
    clip = optax.clip_by_global_norm(config.clip_norm) if is_global else optax.identity()
    return optax.chain(clip, adam, decay)


def is_decayed(tree: Params, embeddings: bool = True) -> Params:
    """Which parameters decay: all but biases and LayerNorm, by name, since stacking changes their rank.

    Args:
      tree: the parameter tree.
      embeddings: whether the embedding tables do.
    """

    def by_name(path: tuple[jax.tree_util.DictKey, ...], _) -> bool:
        name = path[-1].key
        if name in _TABLES:
            return embeddings
        return not (name.endswith("bias") or name == "scale")

    return jax.tree_util.tree_map_with_path(by_name, tree, is_leaf=lambda x: not isinstance(x, dict))


def layer_rates(shapes: Params, config: OptimizerConfig) -> Params:
    """What each parameter's learning rate is multiplied by: less, the deeper it lies below the heads.

    A tower has its embeddings at depth 0, its layers at 1 to n, its head at n + 1: `layerwise_decay` to the
    power of the distance from the head. The reference puts the head at n + 2, so that the top layer decays twice
    (google-research/electra, issue 51).

    Args:
      shapes: the parameter tree as shapes.
      config: the decay and its rule.
    """
    decay, head_distance = config.layerwise_decay, 2 if config.layerwise_rule == "reference" else 1

    def rate(path: tuple[jax.tree_util.DictKey, ...], leaf: jax.ShapeDtypeStruct) -> np.ndarray:
        group, *names = (key.key for key in path)
        # Shared embeddings lie below the discriminator, which every layout of the towers has.
        tower = shapes[group] if "encoder" in shapes[group] else shapes["discriminator"]
        layers = jax.tree.leaves(tower["encoder"]["layers"])[0].shape[0]
        if "layers" in names:
            distance = np.arange(layers - 1, -1, -1) + head_distance
            return (decay**distance).reshape(-1, *[1] * (len(leaf.shape) - 1)).astype(np.float32)
        is_below = group == "shared" or "embeddings" in names or "embeddings_project" in names
        return np.float32(decay ** (layers + head_distance) if is_below else 1.0)

    return jax.tree_util.tree_map_with_path(rate, shapes)


_TABLES = ("word", "position", "token_type")


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
