"""What an encoder is worth while it is still pretrained: a fine-tuning every so many steps."""

import shutil
from pathlib import Path

import jax

from electra_jax.config import ProbeConfig
from electra_jax.errors import RunFailed, UserError
from electra_jax.models.electra import Params
from electra_jax.tasks import data, finetuning, results
from electra_jax.tasks import encoder as encoders
from electra_jax.tasks.config import FinetuneConfig
from electra_jax.tasks.encoder import Encoder
from electra_jax.tasks.finetuning import Stopped
from electra_jax.tasks.job import Job
from electra_jax.training.interrupts import Interrupts


class Probe:
    """A task, read once, whose fine-tuning begins anew with the weights of each call."""

    def __init__(self, settings: ProbeConfig, config: FinetuneConfig, encoder: Encoder, scratch: Path):
        """`encoder` names what is pretrained; its weights are not looked at. `scratch` is removed again."""
        if jax.process_count() > 1:
            raise UserError(f"config.probe.config={settings.config}: a run of several processes cannot be probed")
        self._scratch = scratch
        self._job = Job(config, data.load(config.task), encoder.fresh(), lambda text: None, is_silent=True)
        if results.reported_split(self._job) is None:
            raise UserError(
                f"config.probe.path={config.task.path}: no labelled test or validation set to report figures of"
            )

    def __call__(self, params: Params, interrupts: Interrupts) -> dict[str, float] | None:
        """The task's figures, as `probe_METRIC`, of one seed; None where a signal came in between.

        Args:
          params: of pretraining, after some step.
          interrupts: of the run.
        """
        job = self._job
        job.start_from(encoders.parts(params))
        shutil.rmtree(self._scratch, ignore_errors=True)  # a run that was killed may have left one of other weights
        try:
            outcome = finetuning.run(job, job.config.seed, self._scratch, interrupts)
        except Stopped:
            return None
        except RunFailed as failure:  # no reason to end the run that is probed
            print(f"WARNING: the probe gave nothing: {failure}", flush=True)
            return {}
        finally:
            shutil.rmtree(self._scratch, ignore_errors=True)
        split = results.reported_split(job)
        return {f"probe_{job.metric}": outcome.figures[split.name][job.metric]}
