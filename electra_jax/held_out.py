"""What a run is judged by while it trains: held-out figures, verdicts to look at, a task that it is probed with."""

from collections.abc import Callable
from typing import Any

from etils import epath

from electra_jax import cli, distributed
from electra_jax.config import ProbeConfig
from electra_jax.data.build import Prepared
from electra_jax.errors import UserError
from electra_jax.inputs import Inputs
from electra_jax.models.electra import Params
from electra_jax.reporting import verdicts
from electra_jax.training.interrupts import Interrupts
from electra_jax.training.setup import Setup

# A fine-tuning (`tasks.config.FinetuneConfig`), and its data (`tasks.data.TaskData`).
Probed = tuple[Any, Any]


class Evaluator:
    """Evaluates parameters; `verdicts.jsonl` in the work directory is written on the way."""

    def __init__(
        self, setup: Setup, inputs: Inputs, prepared: Prepared, workdir: epath.Path, probed: Probed | None = None
    ):
        """Raises `UserError` where the task in `probed` does not fit the encoder."""
        self._setup, self._inputs, self._tokenizer = setup, inputs, prepared.tokenizer
        self._path = workdir / "verdicts.jsonl"
        self._probe = _probe(probed, setup, prepared, workdir) if probed else None

    def until(self, interrupts: Interrupts) -> Callable[[Params, int], dict[str, float] | None] | None:
        """A function (params, step) -> figures, or None if a signal comes in between; no function where nothing is held out."""

        def evaluate(params: Params, step: int) -> dict[str, float] | None:
            found = self._setup.evaluate(params, self._inputs.held_out(step), lambda: interrupts.poll() is not None)
            if found is None:
                return None
            if found.verdicts and distributed.is_first():
                tokenizer = self._tokenizer
                sequences = verdicts.read_tokens(found.verdicts, tokenizer.vocabulary, tokenizer.special.pad)
                verdicts.write(self._path, step, sequences)
            config = self._setup.config
            if not self._probe or (step % config.probe.interval_steps and step != config.train.num_train_steps):
                return found.figures
            more = self._probe(params, interrupts)
            return None if more is None else found.figures | more

        return evaluate if self._inputs.has_held_out else None


def read_probe(config: ProbeConfig) -> Probed | None:
    """The fine-tuning that a configuration asks to be probed with, and its data; raises `UserError` as fine-tuning would."""
    if not config.config:
        return None
    from electra_jax.tasks import data

    try:
        task = cli.load_finetune_config(config.config, [("task.path", config.path)] if config.path else [])
        return task, data.load(task.task)
    except UserError as error:  # whose message names settings of fine-tuning
        raise UserError(f"config.probe.config={config.config}: {error}") from None


def _probe(probed: Probed, setup: Setup, prepared: Prepared, workdir: epath.Path) -> Callable:
    """The `tasks.probe.Probe` of the task."""
    from electra_jax.tasks import encoder, probe  # not at the top: every run would load them, but few are probed

    named = encoder.PretrainedEncoder(
        str(workdir), setup.config.model, prepared.tokenizer, setup.config.data.max_seq_length, None
    )
    return distributed.together(lambda: probe.Probe(*probed, named, workdir / "probe", setup.mesh), "the probe")
