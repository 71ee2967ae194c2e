"""One run of fine-tuning: a single seed, trained with the loop of pretraining."""

import dataclasses
import math
import signal
import time
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
from etils import epath

from electra_jax import config_loading, distributed
from electra_jax.errors import RunFailed
from electra_jax.models.electra import Params
from electra_jax.reporting.health import Health
from electra_jax.reporting.reporter import Reporter
from electra_jax.reporting.writers import Console, JsonLines, is_evaluated, rows, writers_of
from electra_jax.tasks import batches
from electra_jax.tasks.job import Job, Split
from electra_jax.training import checkpoint, loop
from electra_jax.training.checkpoint import Checkpoints, NoCheckpoints, Saved
from electra_jax.training.interrupts import Interrupts

# Folders of the weights that were best on validation, each with its step.
BEST = "best-"


class Outcome(NamedTuple):
    """What a run came to."""

    seed: int
    step: int
    seconds: float
    figures: dict[str, dict[str, float]]  # by split
    is_collapsed: bool
    params: Params
    settings: dict[str, Any]
    outputs: dict[str, list[np.ndarray]]  # by split, of each feature


class Stopped(Exception):
    """A signal came; the message says where the run stands."""

    def __init__(self, text: str, is_preempted: bool):
        super().__init__(text)
        self.is_preempted = is_preempted


def run(job: Job, seed: int, workdir: epath.Path, interrupts: Interrupts) -> Outcome:
    """Trains with one seed in a directory of its own; goes on from where it was stopped.

    Of several processes each does the same, on its part of the devices; the directory is shared, process 0 reports.

    Raises:
      Stopped: after a signal.
      RunFailed: where the loss or a gradient is not finite.
    """
    return _Run(job, seed, workdir, interrupts).run()


class _Run:
    """The run of one seed."""

    def __init__(self, job: Job, seed: int, workdir: epath.Path, interrupts: Interrupts):
        self._job, self._seed, self._workdir, self._interrupts = job, seed, workdir, interrupts
        self._config = dataclasses.replace(job.run_config, seed=seed)
        self._validation = job.validation
        evaluation = job.config.evaluation
        self._keeps_best, self._patience = evaluation.select == "best" and bool(self._validation), evaluation.patience
        self._best, self._since = -math.inf, 0
        self._best_steps: list[int] = []  # each better than the one before

    def run(self) -> Outcome:
        job, begin = self._job, time.perf_counter()
        place = self._workdir / "checkpoints"
        steps, program = checkpoint.saved_steps(place), job.program
        if steps:
            origin = checkpoint.Origin(place, steps[-1])
            state, start = checkpoint.restore(origin, program.abstract), loop.Position(steps[-1], 0)
            job.say(f"going on from {origin}")
        else:
            state, start = program.init(job.initial(self._seed)), loop.Position(0, 0)
        self._replay(start.step)
        # A signal may have cut short the evaluation at the step where the run stands.
        is_due = bool(self._validation) and loop.is_evaluation_step(start.step, self._config)
        is_due = is_due and not is_evaluated(self._workdir / "metrics.jsonl", start.step)
        # A probe begins anew each time; its notice of preemption is for saving the run that is probed.
        checkpoints = NoCheckpoints() if job.is_probe else Checkpoints(place, self._config.checkpoint)
        reporter = self._reporter(start.step)
        tokenizer = job.kind.tokenizer.to_json()
        try:
            end, state, position = loop.train(
                self._config, state, start, job.train_step, self._batches(start.step),
                self._evaluate if self._validation else None, checkpoints,
                Saved(self._config, start.step, 0, job.data.digest, tokenizer, 0), reporter,
                self._interrupts, is_due, self._is_over,
            )  # fmt: skip
        finally:
            checkpoints.close()
            reporter.close()
        if end == loop.End.NOT_FINITE:
            raise RunFailed(
                f"step {int(state.failed_step)} of seed {self._seed} gave a loss or gradient that is not finite; lower "
                "optimizer.learning_rate, or train in float32 (model.dtype)"
            )
        if end != loop.End.FINISHED:
            where = f"at step {position.step} of {self._config.train.num_train_steps}, seed {self._seed}"
            raise Stopped(f"{where}; the same command goes on from there", end == loop.End.PREEMPTED)
        params, step = state.params, position.step
        if self._keeps_best and self._best_steps:
            step = self._best_steps[-1]
            params = checkpoint.restore_weights(self._kept(step), program.abstract.params)
        return self._outcome(params, step, time.perf_counter() - begin)

    def _outcome(self, params: Params, step: int, seconds: float) -> Outcome:
        job = self._job
        outputs, figures, predictions = {}, {}, {}
        for split in job.splits:
            outputs[split.name] = self._outputs(params, split)
            if split.is_labelled:
                predictions[split.name] = job.predictions(split, outputs[split.name])
                figures[split.name] = job.kind.figures(split.examples, predictions[split.name])
        judged = job.judged
        said = predictions[judged.name] if self._validation else job.predictions(judged, self._outputs(params, judged))
        is_collapsed = job.kind.is_collapsed(judged.examples, said)
        host, settings = job.on_host(params), job.kind.settings()
        return Outcome(self._seed, step, seconds, figures, is_collapsed, host, settings, outputs)

    def _outputs(self, params: Params, split: Split) -> list[np.ndarray]:
        found = self._job.outputs(params, split.features, self._is_stopped)
        if found is None:
            text = f"at its end, seed {self._seed}; the same command makes its predictions"
            raise Stopped(text, self._interrupts.poll() == signal.SIGTERM)
        return found

    def _batches(self, step: int) -> Iterator[Any]:
        job, size = self._job, self._config.train.batch_size
        made = batches.training(
            job.train, size, job.lengths, job.kind.tokenizer.special.pad, job.kind.by_token, self._seed, step
        )
        return job.place(made, size)

    def _evaluate(self, params: Params, step: int) -> Mapping[str, float] | None:
        job, split = self._job, self._validation
        outputs = job.outputs(params, split.features, self._is_stopped)
        if outputs is None:
            return None
        figures = job.kind.figures(split.examples, job.predictions(split, outputs))
        if self._note(step, figures[job.metric]) and self._keeps_best:
            # Before the figures are written down: wherever these are found, the weights are there.
            checkpoint.save_weights(self._kept(step), params)
            self._drop_surpassed()
        return figures

    def _kept(self, step: int) -> epath.Path:
        """Where the weights of an evaluation are."""
        return self._workdir / f"{BEST}{step}"

    def _drop_surpassed(self) -> None:
        """Removes weights that a run resumed from the newest checkpoint would not keep."""
        saved = max(
            checkpoint.saved_steps(self._workdir / "checkpoints"), default=math.inf if self._job.is_probe else 0
        )
        while len(self._best_steps) > 1 and self._best_steps[1] <= saved:
            surpassed = self._kept(self._best_steps.pop(0))
            if distributed.is_first():
                surpassed.rmtree(missing_ok=True)

    def _note(self, step: int, value: float) -> bool:
        """Takes note of an evaluation; returns whether it is the best so far."""
        if value > self._best:
            self._best, self._since = value, 0
            self._best_steps.append(step)
            return True
        self._since += 1
        return False

    def _replay(self, step: int) -> None:
        """Takes note again of the evaluations up to `step`, from before the run was stopped."""
        for row in rows(self._workdir / "metrics.jsonl"):
            value = row.get(f"eval/{self._job.metric}")
            if row["step"] <= step and value is not None:
                self._note(row["step"], value)

    def _is_stopped(self) -> bool:
        return self._interrupts.poll() is not None

    def _is_over(self) -> bool:
        return bool(self._patience) and self._since >= self._patience

    def _reporter(self, step: int) -> Reporter:
        total, size, writers = self._config.train.num_train_steps, self._config.train.batch_size, []
        if self._job.is_probe and distributed.is_first():
            writers = [JsonLines(self._workdir / "metrics.jsonl", step)]
        elif distributed.is_first():
            settings = config_loading.to_dict(self._job.config) | {"seed": self._seed, "init": self._job.encoder.name}
            writers = writers_of(self._workdir, step, self._job.config.reporting.wandb_project, settings)

        def throughput(step: int, seconds: float) -> dict[str, float]:
            del step
            return {"examples_per_second": size / seconds}

        interval = self._config.reporting.interval_steps
        console = Console(total, step, is_silent=self._job.is_probe or not distributed.is_first())
        return Reporter(console, writers, Health(0, total), interval, throughput, total)
