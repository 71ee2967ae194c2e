"""What an encoder is worth while it is still being pretrained: a fine-tuning every so many steps."""

from etils import epath
from jax.sharding import Mesh

from electra_jax import distributed, memory
from electra_jax.errors import RunFailed, UserError
from electra_jax.models.electra import Params
from electra_jax.tasks import encoder as encoders
from electra_jax.tasks import finetuning, results
from electra_jax.tasks.config import FinetuneConfig
from electra_jax.tasks.data import TaskData
from electra_jax.tasks.encoder import PretrainedEncoder
from electra_jax.tasks.finetuning import Stopped
from electra_jax.tasks.job import Job
from electra_jax.training.interrupts import Interrupts


class Probe:
    """A task, read once, whose fine-tuning begins anew with the weights of each call."""

    def __init__(
        self, config: FinetuneConfig, data: TaskData, encoder: PretrainedEncoder, scratch: epath.Path, mesh: Mesh
    ):
        """`encoder`, without weights, is the one being pretrained on `mesh`. `scratch` is a folder that is removed after use."""
        self._scratch = scratch
        self._job = Job(config, data, encoder, lambda text: distributed.say(f"the probe: {text}"), mesh)
        # Validation if there is any: pretraining may be steered by this, which is not what a test set is for.
        self._split = self._job.validation or results.reported_split(self._job)
        if self._split is None:
            raise UserError(
                f"config.probe.path={config.task.path}: no labelled validation or test set to report figures of"
            )

    def __call__(self, params: Params, interrupts: Interrupts) -> dict[str, float] | None:
        """The task's figures, as `probe_METRIC`, of one seed; None where a signal came in between.

        Args:
          params: of pretraining, after some step.
          interrupts: of the run.
        """
        job = self._job
        job.start_from(encoders.parts(params))
        distributed.first_then_others(self._begin, "the probe")
        try:
            outcome = finetuning.run(job, job.config.seed, self._scratch, interrupts)
        except Stopped:
            return None
        except Exception as failure:
            # These are no reason to end the run that is probed.
            if not (isinstance(failure, RunFailed) or memory.is_exhausted(failure)):
                raise
            distributed.say(f"WARNING: the probe gave nothing: {str(failure).partition(chr(10))[0]}")
            return {}
        finally:
            self._clear()
        return {f"probe_{job.metric}": outcome.figures[self._split.name][job.metric]}

    def _begin(self) -> None:
        self._clear()  # of what a run that was killed may have left
        if distributed.is_first():
            self._scratch.mkdir(parents=True)

    def _clear(self) -> None:
        if distributed.is_first() and self._scratch.exists():
            self._scratch.rmtree()
