"""Times the real train step, data included: `python -m electra_jax.benchmark --config=FILE --steps=10`."""

import json
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import jax
from etils import epath

from electra_jax import cli, memory
from electra_jax.analysis.flops import step_flops
from electra_jax.analysis.hardware import peak_flops
from electra_jax.config import Config
from electra_jax.data import build
from electra_jax.inputs import Inputs
from electra_jax.training.loop import Position
from electra_jax.training.setup import Setup


def main(argv: list[str]) -> None:
    parser = cli.parser("electra_jax.benchmark", "Times training steps: reading, step and metrics.")
    parser.add_argument(
        "--steps", type=int, default=10, help="steps that are timed, after three that are not (default: 10)"
    )
    parser.add_argument("--json", metavar="FILE", help="where the figures go besides the terminal")
    args, overrides = cli.parse(parser, argv)
    if args.steps < 1:
        parser.error(f"argument --steps: {args.steps}; it must be 1 or more")
    config = cli.load_config(args.config, overrides)
    # In a process of its own: building the data must not count in the peak memory of training.
    prepare = [sys.executable, "-m", "electra_jax.prepare", f"--config={args.config}"]
    prepared = subprocess.run(
        [*prepare, *(f"--config.{name}={text}" for name, text in overrides)], stdout=subprocess.DEVNULL
    )
    if prepared.returncode:
        sys.exit(prepared.returncode)
    memory.keep_freed()
    cli.use_compilation_cache(epath.Path("runs") / "compilation_cache")
    figures = benchmark(config, args.steps)
    for name, value in figures.items():
        print(f"{name:20} {value:,.6g}" if isinstance(value, (int, float)) else f"{name:20} {value}")
    if args.json:
        Path(args.json).write_text(json.dumps(figures, indent=1) + "\n")


def benchmark(config: Config, steps: int, warmup: int = 3) -> dict[str, Any]:
    """Times `steps` steps of `config` on its data, one by one.

    Returns:
      Seconds a step (median, least, most), tokens a second, FLOPs, utilisation, peak memory.
    """
    prepared = build.prepare(config)
    setup = Setup.of(config, prepared.tokenizer.special, prepared.tokenizer.vocab_size)
    size = config.train.batch_size
    inputs = Inputs(setup, prepared)
    batches = inputs.training(Position(max(phase.end or 0 for phase in config.phases), 0))  # the last phase
    state, step = setup.init(), memory.settled(setup.train_step)
    seconds = []
    for _ in range(warmup + steps):
        start = time.perf_counter()
        state, metrics = step(state, next(batches))
        jax.device_get(metrics["means"])  # waits for the step
        seconds.append(time.perf_counter() - start)
    seconds = sorted(seconds[warmup:])
    median = statistics.median(seconds)
    memory, memory_source = _peak_memory()
    flops = step_flops(config, prepared.tokenizer.vocab_size)
    peak, peak_source = peak_flops(jax.devices()[0], config.model.dtype)
    return {
        "step_seconds": median,
        "step_seconds_min": seconds[0],
        "step_seconds_max": seconds[-1],
        "tokens_per_second": size * config.data.max_seq_length / median,
        "batch_size": size,
        "max_seq_length": config.data.max_seq_length,
        "dtype": config.model.dtype,
        "model_flops": flops,
        "peak_flops": peak * setup.mesh.size,
        "peak_flops_source": peak_source,
        "utilisation": flops / median / (peak * setup.mesh.size),
        "peak_memory_bytes": memory,
        "peak_memory_source": memory_source,
        "device": jax.devices()[0].device_kind,
        "devices": jax.device_count(),
    }


def _peak_memory() -> tuple[int, str]:
    statistics = jax.devices()[0].memory_stats() or {}
    if "peak_bytes_in_use" in statistics:
        return statistics["peak_bytes_in_use"], "device 0, peak bytes in use"
    # Not getrusage where it can be helped: its peak survives exec, and would count the process that started this one.
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.exists() else []
    peak = next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM")), None)
    return peak or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024, "peak resident set of this process"


if __name__ == "__main__":
    cli.run(main)
