"""Times training: `python -m electra_jax.benchmark --config=FILE --steps=10`.

The real loop is timed, with its data, reports and checkpoints, each part separately.
"""

import dataclasses
import itertools
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
from etils import epath

from electra_jax import cli, memory
from electra_jax.analysis.flops import step_flops
from electra_jax.analysis.hardware import measured_peak, published_peak
from electra_jax.config import CheckpointConfig, Config
from electra_jax.data import build
from electra_jax.data.build import Prepared
from electra_jax.inputs import Inputs
from electra_jax.reporting.health import Health
from electra_jax.reporting.reporter import Reporter
from electra_jax.reporting.writers import Console, JsonLines, TensorBoard
from electra_jax.training import loop
from electra_jax.training.checkpoint import Checkpoints, Saved
from electra_jax.training.interrupts import Interrupts
from electra_jax.training.setup import Setup

# Untimed steps: the first one compiles, and memory use settles only over the next ones.
_WARMUP = 3
_READING_SECONDS = 2.0


def main(argv: list[str]) -> None:
    parser = cli.parser("electra_jax.benchmark", "Times training: data, steps, reports and checkpoints.")
    parser.add_argument(
        "--steps", type=cli.positive, default=10, help=f"steps to time, after {_WARMUP} untimed ones (default: 10)"
    )
    cli.add_json(parser)
    args, overrides = cli.parse(parser, argv)
    config = cli.load_config(args.config, overrides)
    # In a process of its own: building the data must not count in the peak memory of training.
    prepare = [sys.executable, "-m", "electra_jax.prepare", f"--config={args.config}"]
    prepared = subprocess.run(
        [*prepare, *(f"--config.{name}={text}" for name, text in overrides)], stdout=subprocess.DEVNULL
    )
    if prepared.returncode:
        sys.exit(prepared.returncode)
    memory.set_up()
    cli.use_compilation_cache(epath.Path("runs") / "compilation_cache")
    figures = benchmark(config, args.steps)
    for name, value in figures.items():
        print(f"{name:28} {value:,.6g}" if isinstance(value, (int, float)) else f"{name:28} {value}")
    cli.write_json(args.json, figures)


def benchmark(config: Config, steps: int) -> dict[str, Any]:
    """Times `steps` steps of the last phase of `config` one by one, waiting for each to finish.

    Returns:
      Seconds a step (median, least, most), tokens a second, FLOPs and utilisation; what data, reports and checkpoints
      add to a step; the rate of reading alone; peak memory.
    """
    prepared = build.prepare(config)
    setup = Setup.of(config, prepared.tokenizer.special, prepared.tokenizer.vocab_size)
    inputs = Inputs(setup, prepared)
    times = _timed_loop(config, setup, inputs, prepared, steps)
    seconds = sorted(times["step"])
    step = statistics.median(seconds)
    peak_memory, memory_source = _peak_memory()
    reading, padding = _read(config, setup, inputs)
    length, size, _ = config.phases[-1]
    flops = step_flops(config, setup.architecture.vocab_size)
    peak = measured_peak(config.model.dtype) * setup.mesh.size
    published = (published_peak(jax.devices()[0].device_kind) or 0) * setup.mesh.size
    beside = _beside(config, times)
    return {
        "step_seconds": step,
        "step_seconds_min": seconds[0],
        "step_seconds_max": seconds[-1],
        "tokens_per_second": length * size / (step + sum(beside.values())),
        "batch_size": size,
        "max_seq_length": length,
        "padding_share": padding,
        "dtype": config.model.dtype,
        "attention": setup.model.attention,
        "layers": "written out" if setup.model.unroll == "all" else "a loop",
        "remat": setup.model.remat,
        "model_flops": flops,
        "peak_flops": peak,
        "peak_flops_source": f"matrix product, {config.model.dtype}, measured in this run",
        "utilisation": flops / step / peak,
        **({"utilisation_of_published_peak": flops / step / published} if published else {}),
        **{f"{name}_seconds_a_step": value for name, value in beside.items()},
        "report_seconds": statistics.median(times["report"]),
        "save_seconds": statistics.median(times["save"]),
        "share_outside_steps": sum(beside.values()) / (step + sum(beside.values())),
        "reading_tokens_per_second": reading,
        "peak_memory_bytes": peak_memory,
        "peak_memory_source": memory_source,
        "device": jax.devices()[0].device_kind,
        "devices": jax.device_count(),
    }


def _beside(config: Config, times: dict[str, list[float]]) -> dict[str, float]:
    """Seconds spent besides each step, with reports and checkpoints at the intervals of `config`, without evaluations."""
    return {
        "data": statistics.median(times["data"]),
        "report": statistics.median(times["report"]) / config.reporting.interval_steps,
        "save": statistics.median(times["save"]) * _saves_a_step(config.checkpoint, statistics.median(times["step"])),
        "loop": statistics.median(times["loop"]),
    }


def _saves_a_step(policy: CheckpointConfig, step_seconds: float) -> float:
    by_clock = step_seconds / (60 * policy.save_interval_minutes) if policy.save_interval_minutes else 0
    return by_clock + sum(1 / steps for steps in (policy.save_interval_steps, policy.keep_period) if steps)


def _timed_loop(config: Config, setup: Setup, inputs: Inputs, prepared: Prepared, steps: int) -> dict[str, list[float]]:
    """Runs the training loop with a report after each step; seconds by part."""
    start = _last_phase(config)
    changed = dataclasses.replace(
        config, train=dataclasses.replace(config.train, num_train_steps=start.step + _WARMUP + steps, skip_steps=())
    )
    # The clock waits for each step to finish, so that no other part runs hidden behind it.
    clock = _Clock()
    with tempfile.TemporaryDirectory() as folder:
        workdir = epath.Path(folder)
        writers = [JsonLines(workdir / "metrics.jsonl", start.step), TensorBoard(workdir / "tensorboard", start.step)]
        console = Console(changed.train.num_train_steps, start.step, is_silent=True)
        health = Health(config.optimizer.warmup_steps, config.train.num_train_steps)
        reporter = Reporter(console, writers, health, 1, lambda *_: {}, changed.train.num_train_steps)
        checkpoints = Checkpoints(workdir / "checkpoints", config.checkpoint)
        saved = Saved(changed, start.step, start.sequences, prepared.digest, prepared.tokenizer.to_json(), 0)
        reporter.step_done = clock.timed("report", reporter.step_done)
        checkpoints.save = clock.timed("save", checkpoints.save)
        step = clock.timed("step", memory.settled(setup.train_step), wait=True)
        read = clock.timed("data", inputs.training(start).__next__)
        with Interrupts(setup.mesh) as interrupts:
            end, *_ = loop.train(
                changed, setup.init(), start, step, iter(read, None), None, checkpoints, saved, reporter, interrupts
            )
        reporter.close()
        checkpoints.close()
    if end != loop.End.FINISHED:
        raise KeyboardInterrupt  # too few steps for any figures
    return clock.parts(_WARMUP)


class _Clock:
    """Seconds of each call, by part; the time between calls counts as the loop's own."""

    def __init__(self):
        self._seconds: dict[str, list[float]] = {"loop": []}
        self._outside = 0.0
        self._last: float | None = None

    def timed(self, part: str, function: Callable[..., Any], wait: bool = False) -> Callable[..., Any]:
        """`function` with its calls timed; with `wait`, each until its result has been computed."""
        seconds = self._seconds.setdefault(part, [])

        def call(*args: Any) -> Any:
            begin = time.perf_counter()
            if self._last is not None:
                self._outside += begin - self._last
            result = function(*args)
            if wait:
                jax.block_until_ready(result)
                self._seconds["loop"].append(self._outside)
                self._outside = 0.0
            self._last = time.perf_counter()
            seconds.append(self._last - begin)
            return result

        return call

    def parts(self, warmup: int) -> dict[str, list[float]]:
        """Seconds by part without the first `warmup` calls; a part with no more calls than that keeps them all."""
        return {part: seconds[warmup:] or seconds for part, seconds in self._seconds.items()}


def _read(config: Config, setup: Setup, inputs: Inputs) -> tuple[float, float]:
    """Tokens a second from records to batches on the devices, when nothing else is done; the share of padding."""
    batches = inputs.training(_last_phase(config))
    first = next(batches)
    begin = time.perf_counter()
    for count in itertools.count(1):
        last = next(batches).block_until_ready()
        seconds = time.perf_counter() - begin
        if seconds > _READING_SECONDS:
            padding = ((first == setup.ids.pad).mean() + (last == setup.ids.pad).mean()) / 2
            return count * last.size / seconds, float(padding)
    raise AssertionError("batches have no end")


def _last_phase(config: Config) -> loop.Position:
    return loop.Position(max(phase.end or 0 for phase in config.phases), 0)


def _peak_memory() -> tuple[int, str]:
    figures = jax.devices()[0].memory_stats() or {}
    if "peak_bytes_in_use" in figures:
        return figures["peak_bytes_in_use"], "device 0, peak bytes in use"
    # getrusage only as a last resort: its peak survives exec, so it would include that of the process that started this one.
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.exists() else []
    peak = next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM")), None)
    return peak or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024, "peak resident set of this process"


if __name__ == "__main__":
    cli.run(main)
