"""The train step: one pure function of (state, batch) for every machine and mesh."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding

from electra_jax.config import Config
from electra_jax.models.electra import Architecture, Params
from electra_jax.objectives import masking
from electra_jax.objectives.layout import Batch, TokenIds, read_layout
from electra_jax.objectives.losses import Mean
from electra_jax.objectives.masking import Masked
from electra_jax.objectives.replaced_tokens import (
    Randomness,
    Terms,
    denominators,
    loss_weights,
    randomness,
    replaced_token_detection,
)
from electra_jax.training.optimizer import learning_rate, make_optimizer
from electra_jax.training.partitioning import BATCH
from electra_jax.training.state import TRAIN_STREAM, TrainState, stream

Metrics = dict[str, Any]


def train_step(
    state: TrainState, input_ids: jax.Array, config: Config, architecture: Architecture, ids: TokenIds
) -> tuple[TrainState, Metrics]:
    """One update.

    Masks, samples and dropout depend on (seed, step, place in the batch), so neither the mesh nor gradient
    accumulation changes them.

    Args:
      state: donated by the jitted form.
      input_ids: `[B, L]`, the global batch of records.
      config, architecture, ids: static.

    Returns:
      The next state, and metrics as (sum, weight).
    """
    batch, masked, draws = corrupt(state.step, input_ids, config, ids)
    gradients, terms = _gradients(state.params, batch, masked, draws, config, architecture)
    return _update(state, gradients, terms, config, architecture)


def corrupt(step: jax.Array, input_ids: jax.Array, config: Config, ids: TokenIds) -> tuple[Batch, Masked, Randomness]:
    """The batch of a step as the objective takes it: layout read, positions masked, draws made."""
    batch = read_layout(input_ids, jnp.arange(input_ids.shape[0]), ids)
    draws = randomness(jax.random.fold_in(stream(config.seed, TRAIN_STREAM), step), batch.index, dropout=True)
    return batch, masking.choose(draws.masking, batch, ids, config.objective), draws


def make_train_step(config: Config, architecture: Architecture, ids: TokenIds, mesh: Mesh, abstract: TrainState):
    """`train_step`, jitted for `mesh`: (state, input_ids) -> (state, metrics); the old state is consumed."""
    shardings = jax.tree.map(lambda leaf: leaf.sharding, abstract)
    return jax.jit(
        functools.partial(train_step, config=config, architecture=architecture, ids=ids),
        in_shardings=(shardings, NamedSharding(mesh, BATCH)),
        out_shardings=(shardings, None),
        donate_argnums=0,
    )


def make_diagnosis(config: Config, architecture: Architecture, ids: TokenIds):
    """(params, step, input_ids) -> what a step does before it updates: its batch, masks, samples, terms, gradients' norms."""

    def diagnose(params: Params, step: jax.Array, input_ids: jax.Array) -> dict[str, Any]:
        batch, masked, draws = corrupt(step, input_ids, config, ids)
        gradients, terms = _gradients(params, batch, masked, draws, config, architecture)
        return {
            "input_ids": input_ids,
            "masked_positions": masked.positions,
            "masked_weights": masked.weights,
            "masked_input_ids": masked.input_ids,
            "sampled_ids": terms.sampled_ids,
            "gradient_norms_by_group": {group: optax.tree.norm(part) for group, part in gradients.items()},
            "losses": {name: term.total / jnp.maximum(term.weight, 1) for name, term in terms.losses.items()},
            "gradient_norms": {
                jax.tree_util.keystr(path, simple=True, separator="/"): jnp.linalg.norm(leaf)
                for path, leaf in jax.tree_util.tree_flatten_with_path(gradients)[0]
            },
        }

    return jax.jit(diagnose)


def _gradients(
    params: Params, batch: Batch, masked: Masked, draws: Randomness, config: Config, architecture: Architecture
) -> tuple[Params, Terms]:
    """Gradients of the total loss, and the terms, summed over the parts a batch is computed in."""
    weights, divisors = loss_weights(config.objective), denominators(batch, masked)

    def loss(params: Params, part: tuple[Batch, Masked, Randomness]) -> tuple[jax.Array, Terms]:
        terms = replaced_token_detection(architecture.merge(params), *part, config.objective)
        # Divided by the weight of the whole batch, so that the parts' gradients simply add up.
        total = sum(w * terms.losses[n].total / jnp.maximum(divisors[n], 1) for n, w in weights.items())
        return total, terms

    gradient = jax.grad(loss, has_aux=True)
    accumulation = config.train.gradient_accumulation_steps
    if accumulation == 1:
        return gradient(params, (batch, masked, draws))

    def add(total: Any, part: Any) -> tuple[Any, jax.Array]:
        gradients, terms = gradient(params, part)
        return jax.tree.map(jnp.add, total, (gradients, terms._replace(sampled_ids=None))), terms.sampled_ids

    # Each part takes every accumulation-th example: all devices have their share in all parts.
    parts = jax.tree.map(lambda x: x.reshape(-1, accumulation, *x.shape[1:]).swapaxes(0, 1), (batch, masked, draws))
    shapes, terms = jax.eval_shape(gradient, params, jax.tree.map(lambda x: x[0], parts))
    zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), (shapes, terms._replace(sampled_ids=None)))
    (gradients, terms), sampled_ids = jax.lax.scan(add, zeros, parts)
    sampled_ids = sampled_ids.swapaxes(0, 1).reshape(-1, *sampled_ids.shape[2:])
    return gradients, terms._replace(sampled_ids=sampled_ids)


def _update(
    state: TrainState, gradients: Params, terms: Terms, config: Config, architecture: Architecture
) -> tuple[TrainState, Metrics]:
    weights = loss_weights(config.objective)
    loss = sum(weights[name] * term.total / jnp.maximum(term.weight, 1) for name, term in terms.losses.items())
    squares = {group: optax.tree.norm(part, squared=True) for group, part in gradients.items()}
    norm = jnp.sqrt(sum(squares.values()))
    rate = learning_rate(state.step, config)

    direction, opt_state = make_optimizer(config.optimizer, architecture.axes).update(
        gradients, state.opt_state, state.params
    )
    params = jax.tree.map(lambda p, d: p - rate * d, state.params, direction)
    is_finite = jnp.isfinite(loss) & jnp.isfinite(norm)
    failed_step = jnp.where((state.failed_step < 0) & ~is_finite, state.step, state.failed_step)
    new = TrainState(state.step + 1, params, opt_state, failed_step)
    # A step that is not finite changes nothing, nor do those that were dispatched behind it.
    new = jax.tree.map(
        lambda after, before: jnp.where(failed_step < 0, after, before), new, state._replace(failed_step=failed_step)
    )

    one = jnp.ones(())
    metrics = {
        "loss": Mean(loss, one),
        **terms.losses,
        **terms.metrics,
        "grad_norm": Mean(norm, one),
        **{f"grad_norm_{group}": Mean(jnp.sqrt(square), one) for group, square in squares.items()},
        "learning_rate": Mean(rate, one),
    }
    return new, {"means": metrics, "histogram": terms.histogram, "failed_step": new.failed_step}
