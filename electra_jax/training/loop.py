"""The loop around the train step: the same for every run."""

import enum
import functools
import signal
from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

import jax

from electra_jax.config import Config
from electra_jax.models.electra import Params
from electra_jax.reporting.reporter import NotFinite, Reporter
from electra_jax.training.checkpoint import Checkpoints, NoCheckpoints, Saved
from electra_jax.training.interrupts import Interrupts
from electra_jax.training.state import TrainState


class Position(NamedTuple):
    """Where a run stands."""

    step: int
    sequences: int  # consumed at this length; counted on the host, since 32 bits are too few for long runs

    def next(self, config: Config) -> "Position":
        """The position one step further on."""
        phase, step = config.phase(self.step), self.step + 1
        return Position(step, 0 if step == phase.end else self.sequences + phase.batch_size)


class End(enum.Enum):
    """Why a run ended."""

    FINISHED = enum.auto()
    INTERRUPTED = enum.auto()  # Ctrl-C
    PREEMPTED = enum.auto()  # SIGTERM
    NOT_FINITE = enum.auto()  # a loss or gradient was NaN or infinite; the state is the one before that step


def train(
    config: Config,
    state: TrainState,
    start: Position,
    step_fn: Callable[[TrainState, jax.Array], tuple[TrainState, dict]],
    batches: Iterator[jax.Array],
    evaluate: Callable[[Params, int], Mapping[str, float] | None] | None,
    checkpoints: Checkpoints | NoCheckpoints,
    saved: Saved,
    reporter: Reporter,
    interrupts: Interrupts,
    evaluation_due: bool = False,
    is_over: Callable[[], bool] = lambda: False,
) -> tuple[End, TrainState, Position]:
    """Trains from `start` to the end of the run or to a signal, and saves where it ends.

    A step is reported and evaluated before it is saved, so wherever a checkpoint exists `metrics.jsonl`
    is complete up to its step, unless a signal cut the evaluation short.

    Args:
      config: of the run.
      state: consumed.
      start: the position of `state`.
      step_fn: the jitted step.
      batches: from `start` on, one a step.
      evaluate: gives held-out figures of the parameters after a step, or None if a signal cuts it short; None: no evaluation.
      checkpoints, saved: where checkpoints go, and what they say of the run.
      reporter: takes metrics.
      interrupts: active.
      evaluation_due: whether the evaluation at `start` was cut short, and is to be made up for.
      is_over: whether the run has come to its end before its last step, asked once a step.

    Returns:
      Why it ended, and the state and position it ended at.
    """
    position = start
    total, skipped = config.train.num_train_steps, frozenset(config.train.skip_steps)

    def save() -> None:
        trained_length = max(saved.trained_length, config.phase(position.step - 1).length)
        checkpoints.save(state, saved._replace(**position._asdict(), trained_length=trained_length))

    try:
        while True:
            if evaluate and evaluation_due:
                evaluation_due = not reporter.flush(
                    position.step, functools.partial(evaluate, state.params, position.step)
                )
            if position != start and checkpoints.should_save(position.step, interrupts.save_is_agreed):
                reporter.flush(position.step)
                save()
            # Once a step: what it returns is known when the step before is done, which the reporter waits for anyway.
            if interrupts.poll(checkpoints.is_due()) is not None or position.step >= total or is_over():
                break
            ids = next(batches)
            if position.step in skipped:
                state = state._replace(step=state.step + 1)
                reporter.console.say(f"step {position.step} left out, as config.train.skip_steps says")
            else:
                state, metrics = step_fn(state, ids)
                reporter.step_done(position.step + 1, metrics)
            position = position.next(config)
            if position.sequences == 0:  # another length, which is compiled for first
                reporter.restart_clock()
            evaluation_due = is_evaluation_step(position.step, config)
        reporter.flush(position.step)
    except NotFinite:
        return End.NOT_FINITE, state, position
    if position != start:
        save()
    if (position.step >= total or is_over()) and not (evaluate and evaluation_due):
        return End.FINISHED, state, position
    return (End.PREEMPTED if interrupts.poll() == signal.SIGTERM else End.INTERRUPTED), state, position


def is_evaluation_step(step: int, config: Config) -> bool:
    """Whether the run is evaluated after `step` updates."""
    return step > 0 and (step == config.train.num_train_steps or step % config.evaluation.interval_steps == 0)
