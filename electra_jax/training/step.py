"""The train step: one pure function of (state, batch) for every machine and mesh."""

import dataclasses
import functools
import operator
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding

from electra_jax.config import Config
from electra_jax.models.electra import Architecture, Params, by_layer, by_name, stacked
from electra_jax.objectives.layout import Batch, TokenIds
from electra_jax.objectives.losses import Mean
from electra_jax.objectives.masking import Masked
from electra_jax.objectives.objective import Objective, Pretraining
from electra_jax.objectives.terms import Example, Randomness, Terms
from electra_jax.training.optimizer import layer_rates, learning_rate, make_optimizer
from electra_jax.training.partitioning import BATCH, activation_rules, compiler_options, replicated, shardings_of
from electra_jax.training.state import TRAIN_STREAM, TrainState, stream

Metrics = dict[str, Any]


def train_step(
    state: TrainState, batch: Any, config: Config, architecture: Architecture, objective: Objective
) -> tuple[TrainState, Metrics]:
    """One update.

    Masks, samples and dropout depend on (seed, step, place in the batch), so neither the mesh nor gradient
    accumulation changes them.

    Args:
      state: donated by the jitted form.
      batch: the global batch, as the objective takes it; records `[B, L]` where that is pretraining.
      config, architecture, objective: static.

    Returns:
      The next state, and metrics as (sum, weight).
    """
    example = example_of(state.step, batch, config, objective)
    computed = loss_and_gradients(state.params, example, config, architecture, objective)
    return _update(state, *computed, config, architecture)


def example_of(step: jax.Array, batch: Any, config: Config, objective: Objective) -> Any:
    """What the objective makes of the batch of a step: all that is random in it goes by (seed, step)."""
    return objective.example(jax.random.fold_in(stream(config.seed, TRAIN_STREAM), step), batch)


def replay(
    config: Config,
    state: TrainState,
    batch: Batch,
    masked_positions: jax.Array,
    masked_weights: jax.Array,
    masked_input_ids: jax.Array,
    sampled_ids: jax.Array,
) -> tuple[TrainState, dict[str, jax.Array]]:
    """One update with everything random given from outside, and without dropout.

    For comparison with another implementation: given the same positions and samples, both must come to the same
    losses and parameters. The rest is `train_step` itself. A pure function; jit it with `config` static.

    Args:
      config: of the run.
      state: `training.state.new_state(config, Architecture(config.model, vocab_size), params)`, or what the last call returned.
      batch: the text; `objectives.layout.read_layout` makes one of token ids.
      masked_positions: `[B, M]` int32, positions to predict, any number `M` of slots.
      masked_weights: `[B, M]`, 1 for slots that are used and 0 for the others.
      masked_input_ids: `[B, L]` int32, the generator's input.
      sampled_ids: `[B, M]` int32, the replacements; not used where `model.towers` is `masked_lm`.

    Returns:
      The next state, and the figures of the step by their names in `metrics.jsonl`, as scalars.
    """
    architecture = Architecture(config.model, state.params["shared"]["word"].shape[0])
    masked = Masked(masked_positions, masked_weights.astype(jnp.float32), masked_input_ids)
    example = Example(batch, masked, Randomness(), sampled_ids)
    objective = Pretraining(config, _NO_IDS)
    computed = loss_and_gradients(state.params, example, config, architecture, objective)
    new, metrics = _update(state, *computed, config, architecture)
    return new, {name: mean.total / jnp.maximum(mean.weight, 1) for name, mean in metrics["means"].items()}


# Not used for a batch whose layout and masks are given.
_NO_IDS = TokenIds(0, 0, 0, 0, False)


def make_train_step(config: Config, architecture: Architecture, objective: Objective, mesh: Mesh, abstract: TrainState):
    """`train_step`, jitted for `mesh`: (state, batch) -> (state, metrics); the old state is consumed."""
    shardings = shardings_of(abstract)

    def step(state: TrainState, batch: Any) -> tuple[TrainState, Metrics]:
        with activation_rules(mesh):
            return train_step(state, batch, config, architecture, objective)

    return jax.jit(
        step,
        in_shardings=(shardings, NamedSharding(mesh, BATCH)),
        out_shardings=(shardings, replicated(mesh)),
        donate_argnums=0,
        compiler_options=compiler_options(mesh, _parts(config)),
    )


def _parts(config: Config) -> int:
    """What a batch is computed in, one after the other."""
    return config.train.gradient_accumulation_steps * config.train.replicas


def make_diagnosis(config: Config, architecture: Architecture, objective: Pretraining, mesh: Mesh):
    """(params, step, input_ids) -> what a step does before it updates: its batch, masks, samples, terms, gradients' norms."""

    # Without clipping per replica: dividing by a norm that is not finite would spoil the gradients that are.
    config = dataclasses.replace(config, optimizer=dataclasses.replace(config.optimizer, clipping="global"))

    def diagnose(params: Params, step: jax.Array, input_ids: jax.Array) -> dict[str, Any]:
        with activation_rules(mesh):
            example = example_of(step, input_ids, config, objective)
            _, gradients, terms = loss_and_gradients(params, example, config, architecture, objective)
        sampled = {} if terms.sampled_ids is None else {"sampled_ids": terms.sampled_ids}
        return {
            "input_ids": input_ids,
            "masked_positions": example.masked.positions,
            "masked_weights": example.masked.weights,
            "masked_input_ids": example.masked.input_ids,
            **sampled,
            "gradient_norms_by_group": {group: optax.tree.norm(part) for group, part in gradients.items()},
            "losses": {name: term.total / jnp.maximum(term.weight, 1) for name, term in terms.losses.items()},
            "gradient_norms": {name: jnp.linalg.norm(leaf) for name, leaf in by_name(gradients).items()},
        }

    options = compiler_options(mesh, _parts(config))
    return jax.jit(diagnose, out_shardings=replicated(mesh), compiler_options=options)


def loss_and_gradients(
    params: Params, example: Any, config: Config, architecture: Architecture, objective: Objective
) -> tuple[jax.Array, Params, Terms]:
    """The total loss, its gradients, and the terms as sums over the batch.

    A batch is computed in parts, one after the other: by replica where each has its own means or clips its own
    gradient, and within that by accumulation. With `optimizer.clipping=per_replica` the gradients are the sum of
    the replicas' clipped ones, as the reference's optimizer on a TPU adds them up.
    """
    optimizer, replicas = config.optimizer, config.train.replicas
    clips, own_means = optimizer.clipping == "per_replica", config.objective.loss_mean == "per_replica"
    cast, accumulation = architecture.cast(params), config.train.gradient_accumulation_steps
    # XLA moves the sum over devices out of the loop over parts only where a part's gradients go straight into the running sum:
    # stacking those of the layers first would prevent that.
    if accumulation > 1 and architecture.is_unrolled:
        params = by_layer(params)
    # Divided by the weight of the whole batch, so that the parts' gradients simply add up.
    whole = {name: jnp.maximum(weight, 1) / replicas for name, weight in objective.denominators(example).items()}

    def replica(example: Any) -> tuple[jax.Array, Params, Terms]:
        own = objective.denominators(example)
        divisors = {name: weight + 1e-6 for name, weight in own.items()} if own_means else whole
        part = functools.partial(
            _part_gradients, params=params, cast=cast, divisors=divisors, architecture=architecture, objective=objective
        )
        loss, gradients, terms = _sum_over_parts(part, example, accumulation)
        if clips:
            gradients, _ = optax.clip_by_global_norm(optimizer.clip_norm).update(gradients, optax.EmptyState())
        return loss, gradients, terms

    loss, gradients, terms = _sum_over_parts(replica, example, replicas)
    if replicas > 1:
        loss = loss / replicas
        gradients = gradients if clips else jax.tree.map(lambda g: g / replicas, gradients)
    return loss, stacked(gradients), terms


def _part_gradients(
    example: Any,
    params: Params,
    cast: Params,
    divisors: dict[str, jax.Array],
    architecture: Architecture,
    objective: Objective,
) -> tuple[jax.Array, Params, Terms]:
    def total(params: Params) -> tuple[jax.Array, Terms]:
        terms = objective.terms(architecture.merge(stacked(params), cast), example)
        losses = terms.losses.items()
        return sum(objective.weights[name] * loss.total / divisors[name] for name, loss in losses), terms

    (loss, terms), gradients = jax.value_and_grad(total, has_aux=True)(params)
    return loss, gradients, terms


def _sum_over_parts(compute: Callable[[Any], Any], example: Any, parts: int) -> Any:
    """The sum of `compute`, (loss, gradients, terms), over `parts` of the batch, one after the other."""
    if parts == 1:
        return compute(example)

    def add(total: Any, part: Any) -> tuple[Any, jax.Array | None]:
        loss, gradients, terms = compute(part)
        new = loss, gradients, terms._replace(sampled_ids=None, verdicts=None)
        return jax.tree.map(jnp.add, total, new), terms.sampled_ids

    # Each part takes every `parts`-th example, so that every device has a share of every part.
    split = jax.tree.map(lambda x: x.reshape(-1, parts, *x.shape[1:]).swapaxes(0, 1), example)
    loss, gradients, terms = jax.eval_shape(compute, jax.tree.map(lambda x: x[0], split))
    shapes = loss, gradients, terms._replace(sampled_ids=None, verdicts=None)
    zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
    (loss, gradients, terms), sampled_ids = jax.lax.scan(add, zeros, split)
    if sampled_ids is not None:
        sampled_ids = sampled_ids.swapaxes(0, 1).reshape(-1, *sampled_ids.shape[2:])
    return loss, gradients, terms._replace(sampled_ids=sampled_ids)


def _update(
    state: TrainState, loss: jax.Array, gradients: Params, terms: Terms, config: Config, architecture: Architecture
) -> tuple[TrainState, Metrics]:
    squares = {group: optax.tree.norm(part, squared=True) for group, part in gradients.items()}
    norm = jnp.sqrt(sum(squares.values()))
    rate = learning_rate(state.step, config)

    direction, opt_state = make_optimizer(config.optimizer, architecture.axes).update(
        gradients, state.opt_state, state.params
    )
    if config.optimizer.layerwise_decay != 1.0:
        direction = jax.tree.map(operator.mul, direction, layer_rates(architecture.shapes, config.optimizer))
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
