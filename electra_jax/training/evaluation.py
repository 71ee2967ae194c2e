"""Held-out figures: the training objective without dropout, on masks that belong to each record."""

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding

from electra_jax.models.electra import Architecture, Params
from electra_jax.objectives import masking
from electra_jax.objectives.layout import read_layout
from electra_jax.objectives.objective import Pretraining
from electra_jax.objectives.terms import Example, Verdicts, randomness
from electra_jax.reporting import metrics as metrics_lib
from electra_jax.training.partitioning import BATCH, activation_rules, compiler_options, replicated, shardings_of
from electra_jax.training.state import EVALUATION_STREAM, stream

EvalStep = Callable[[Params, jax.Array, jax.Array], dict[str, Any]]

_SHOWN = 8  # records of a batch whose verdicts are kept, to be looked at


class HeldOut(NamedTuple):
    """What an evaluation gives."""

    figures: dict[str, float]
    verdicts: Verdicts | None  # of the first records, as NumPy's; None without a discriminator


def evaluation_step(
    params: Params, input_ids: jax.Array, record: jax.Array, architecture: Architecture, objective: Pretraining
) -> dict[str, Any]:
    """Sums over one batch, and its first verdicts; masks and samples depend on (seed, record) alone, whatever batch it is in.

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
    shown = jax.tree.map(lambda x: x[:_SHOWN], terms.verdicts)
    return {"means": {**terms.losses, **terms.metrics}, "histogram": terms.histogram, "verdicts": shown}


def make_evaluation_step(architecture: Architecture, objective: Pretraining, mesh: Mesh, params: Params) -> EvalStep:
    """`evaluation_step`, jitted for `mesh`; `params` is the tree as shapes with shardings."""
    shardings = shardings_of(params)
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
) -> HeldOut | None:
    """Held-out figures over `batches` of (input_ids, record); sums are float64, so batches do not matter.

    `is_cut_short` is asked before every batch; where it says so, the result is None.
    """
    total, verdicts = metrics_lib.Sums(), None
    for number, (input_ids, record) in enumerate(batches):
        if is_cut_short():
            return None
        sums = step(params, input_ids, record)
        shown = sums.pop("verdicts")
        verdicts = jax.tree.map(np.asarray, shown) if number == 0 else verdicts
        total.add(sums)
    return HeldOut(total.figures(), verdicts)
