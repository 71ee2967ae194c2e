"""What a run leaves behind when a loss or gradient is not finite: everything about the step where that happened."""

import json
import math

import jax
import numpy as np
from etils import epath

from electra_jax import distributed, storage
from electra_jax.errors import RunFailed
from electra_jax.inputs import Inputs
from electra_jax.reporting import run_info
from electra_jax.training import checkpoint, loop
from electra_jax.training.setup import Setup
from electra_jax.training.state import TrainState
from electra_jax.training.step import make_diagnosis


def explain_failure(setup: Setup, state: TrainState, start: loop.Position, inputs: Inputs, workdir: epath.Path) -> None:
    """Writes down the step that was not finite, and ends the run.

    Args:
      setup, inputs, workdir: of the run.
      state: the one that step started from.
      start: where the run began; the position of the step follows from it, and its batch from that.

    Raises:
      RunFailed: always.
    """
    step, position = int(state.failed_step), start
    while position.step < step:
        position = position.next(setup.config)
    batch = next(inputs.training(position))
    diagnose = make_diagnosis(setup.config, setup.architecture, setup.objective, setup.mesh)
    found = jax.device_get(diagnose(state.params, step, batch))
    scalars = {
        name: {key: float(value) if math.isfinite(value) else str(value) for key, value in found.pop(name).items()}
        for name in ("losses", "gradient_norms_by_group", "gradient_norms")
    }
    arrays, report = workdir / f"failure-{step}.npz", workdir / f"failure-{step}.json"
    if distributed.is_first():
        with arrays.open("wb") as file:
            np.savez_compressed(file, **found)
        storage.write(report, json.dumps({"step": step, **scalars}, indent=1))
    distributed.agree(None, "what is left of the step")
    kept = checkpoint.saved_steps(workdir / "checkpoints")
    skip = ",".join(map(str, sorted({*setup.config.train.skip_steps, step})))
    raise RunFailed(
        f"step {step} gave a loss or gradient that is not finite: {run_info.text(scalars['losses'])}; gradient norms "
        f"{run_info.text(scalars['gradient_norms_by_group'])}. The batch, masked positions and samples are in {arrays}, all "
        f"gradients' norms in {report}. "
        + (f"The last checkpoint, step {kept[-1]}, is from before" if kept else "No checkpoint was saved before")
        + f". To pass over this batch, run the same command with --config.train.skip_steps={skip}; if it comes again, "
        "lower optimizer.learning_rate"
    )
