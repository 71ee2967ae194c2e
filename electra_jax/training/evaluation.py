"""Held-out figures: the training objective without dropout, on masks that belong to each record."""

from collections.abc import Callable, Iterable
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding

from electra_jax.models.electra import Architecture, Params
from electra_jax.objectives import masking
from electra_jax.objectives.layout import read_layout
from electra_jax.objectives.objective import Pretraining
from electra_jax.objectives.terms import Example, randomness
from electra_jax.reporting import metrics as metrics_lib
from electra_jax.training.partitioning import BATCH, activation_rules, compiler_options, replicated
from electra_jax.training.state import EVALUATION_STREAM, stream

EvalStep = Callable[[Params, jax.Array, jax.Array], dict[str, Any]]


def evaluation_step(
    params: Params, input_ids: jax.Array, record: jax.Array, architecture: Architecture, objective: Pretraining
) -> dict[str, Any]:
    """Sums over one batch; masks and samples depend on (seed, record) alone, whatever batch it is in.

    Args:
      params: parameter tree.
      input_ids: `[B, L]`.
      record: `[B]`, the index of each record in the split.
      architecture, objective: static.
    """
    config, ids = objective.config, objective.ids
    batch = read_layout(input_ids, record, ids)
    draws = randomness(stream(config.seed, EVALUATION_STREAM), record, dropout=False)
    example = Example(batch, masking.choose(draws.masking, batch, ids, config.objective), draws)
    terms = objective.terms(architecture.merge(params), example)
    return {"means": {**terms.losses, **terms.metrics}, "histogram": terms.histogram}


def make_evaluation_step(architecture: Architecture, objective: Pretraining, mesh: Mesh, params: Params) -> EvalStep:
    """`evaluation_step`, jitted for `mesh`; `params` is the tree as shapes with shardings."""
    shardings = jax.tree.map(lambda leaf: leaf.sharding, params)
    batch = NamedSharding(mesh, BATCH)

    def step(params: Params, input_ids: jax.Array, record: jax.Array) -> dict[str, Any]:
        with activation_rules(mesh):
            return evaluation_step(params, input_ids, record, architecture, objective)

    return jax.jit(
        step,
        in_shardings=(shardings, batch, batch),
        out_shardings=replicated(mesh),
        compiler_options=compiler_options(mesh),
    )


def evaluate(
    step: EvalStep,
    params: Params,
    batches: Iterable[tuple[jax.Array, jax.Array]],
    is_cut_short: Callable[[], bool] = lambda: False,
) -> dict[str, float] | None:
    """Held-out figures over `batches` of (input_ids, record); sums are float64, so batches do not matter.

    `is_cut_short` is asked before every batch; where it says so, the result is None.
    """
    total = metrics_lib.Sums()
    for input_ids, record in batches:
        if is_cut_short():
            return None
        total.add(step(params, input_ids, record))
    return total.figures()
