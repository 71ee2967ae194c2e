"""Turns the metrics of steps into reports, one step behind the device so that it never waits."""

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from electra_jax.reporting.health import Health
from electra_jax.reporting.metrics import figures
from electra_jax.reporting.writers import Console, Writer

Evaluation = Callable[[], Mapping[str, float] | None]


class NotFinite(Exception):
    """A step whose loss or gradient was NaN or infinite; `step` is the one that failed."""

    def __init__(self, step: int):
        super().__init__(f"step {step}")
        self.step = step


class Reporter:
    """Collects the metrics of each step; reports those that are due, to all writers.

    Reading a metric waits for its step. So the metrics of a step are read when the next one has been
    dispatched, and only those of steps that are reported are read whole. An evaluation and a checkpoint
    wait for the step before them.
    """

    def __init__(
        self,
        console: Console,
        writers: Sequence[Writer],
        health: Health,
        interval_steps: int,
        throughput: Callable[[int, float], Mapping[str, float]],
        total_steps: int,
    ):
        """`throughput(step, step_seconds)` gives the speed figures that are reported along with the step."""
        self.console = console
        self._writers = [*writers, console]
        self._health = health
        self._interval = interval_steps
        self._throughput = throughput
        self._total_steps = total_steps
        self._pending: tuple[int, Any] | None = None
        self._clock_step: int | None = None
        self._clock_time = 0.0

    def step_done(self, step: int, metrics: Any) -> None:
        """Takes the metrics of the step just dispatched, which led to `step`; reports the one before.

        Raises:
          NotFinite: where an earlier step failed.
        """
        previous, self._pending = self._pending, (step, metrics)
        if previous is not None:
            self._settle(*previous)

    def flush(self, step: int, held_out: Evaluation | None = None) -> bool:
        """Waits for the last step and reports it; what `held_out` returns is reported under `step` too.

        Returns:
          Whether `held_out` gave figures; it gives None where it was cut short.

        Raises:
          NotFinite: where that step failed.
        """
        pending, self._pending = self._pending, None
        if pending is not None and pending[0] != step:  # `step` itself was skipped (`train.skip_steps`)
            self._settle(*pending)
            pending = None
        values = self._settle_figures(*pending) if pending is not None else {}
        found = held_out() if held_out is not None else None
        values |= {f"eval/{name}": value for name, value in (found or {}).items()}
        if values:
            self._write(step, values)
        for writer in self._writers:
            writer.flush()
        self.restart_clock()
        return found is not None

    def restart_clock(self) -> None:
        """Leaves the time since the last report out of the speed: an evaluation, a checkpoint, a compilation."""
        self._clock_step = None

    def close(self) -> None:
        """Closes all writers."""
        for writer in self._writers:
            writer.close()

    def _settle(self, step: int, metrics: Any) -> None:
        values = self._settle_figures(step, metrics)
        if values:
            self._write(step, values)

    def _settle_figures(self, step: int, metrics: Any) -> dict[str, float]:
        """Waits for a step; its figures where it is due for a report."""
        failed = int(np.asarray(metrics["failed_step"]))  # waits for the step
        if failed >= 0:
            raise NotFinite(failed)
        self.console.advance(step)
        values: dict[str, float] = {}
        if self._clock_step is None:
            self._clock_step, self._clock_time = step, time.perf_counter()
        if step % self._interval == 0 or step == self._total_steps:
            values = figures(jax.device_get(metrics))
            seconds = self._seconds_per_step(step)
            if seconds is not None:
                values |= {"step_seconds": seconds, **self._throughput(step, seconds)}
                values["seconds_left"] = seconds * (self._total_steps - step)
        return values

    def _write(self, step: int, values: Mapping[str, float]) -> None:
        for writer in self._writers:
            writer.write(step, values)
        for warning in self._health.check(step, values):
            self.console.say(f"WARNING: {warning}")

    def _seconds_per_step(self, step: int) -> float | None:
        """Mean over the steps since the last report; None where there were none."""
        now = time.perf_counter()
        steps = step - self._clock_step
        seconds = (now - self._clock_time) / steps if steps else None
        self._clock_step, self._clock_time = step, now
        return seconds
