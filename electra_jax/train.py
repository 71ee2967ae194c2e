"""Pretrains ELECTRA: `python -m electra_jax.train --config=configs/small.py`."""

import contextlib
import json
import signal
from collections.abc import Iterator
from typing import Any

import jax
from etils import epath

from electra_jax import cli, config_loading, config_values, distributed, memory, resume, storage
from electra_jax.analysis.flops import step_flops
from electra_jax.analysis.hardware import peak_flops
from electra_jax.config import Config
from electra_jax.data import build
from electra_jax.data import tokenizer as tokenizer_lib
from electra_jax.failure import explain_failure
from electra_jax.held_out import Evaluator, read_probe
from electra_jax.inputs import Inputs
from electra_jax.reporting import report, run_info
from electra_jax.reporting.health import Health
from electra_jax.reporting.profile import profiled
from electra_jax.reporting.reporter import Reporter
from electra_jax.reporting.writers import Console, require_wandb, writers_of
from electra_jax.training import checkpoint, loop, partitioning
from electra_jax.training.checkpoint import Checkpoints, Saved
from electra_jax.training.interrupts import Interrupts
from electra_jax.training.optimizer import cooldown_start
from electra_jax.training.setup import Setup, mesh_of, resolve
from electra_jax.workdir import locked

# Tiny goes through the embedded corpus about ten times; small would do so thousands of times.
_MANY_EPOCHS = 200
# The recipes warm up over 1 % of a run or less.
_LONG_WARMUP = 0.3


def main(argv: list[str]) -> int:
    parser = cli.parser(
        "electra_jax.train", "Pretrains ELECTRA. The same command run again goes on from the newest checkpoint."
    )
    parser.add_argument(
        "--workdir", metavar="DIR", help="where everything about the run goes (default: runs/NAME_OF_CONFIG)"
    )
    start = parser.add_mutually_exclusive_group()
    start.add_argument("--init", metavar="DIR[@STEP]", help="start a new run from the weights of another")
    start.add_argument(
        "--branch", metavar="DIR[@STEP]", help="go on from another run's whole state, in a work directory of its own"
    )
    distributed.add_arguments(parser)
    args, overrides = cli.parse(parser, argv)
    config = cli.load_config(args.config, overrides)
    for flag, value in (("--init", args.init), ("--branch", args.branch)):
        if value:
            cli.directory(flag, value)
    workdir = cli.directory("--workdir", args.workdir or f"runs/{cli.run_name(*cli.split_word(args.config))}")
    memory.set_up()
    cli.use_compilation_cache(workdir.parent / "compilation_cache")
    distributed.join(args, config.train)
    signal.signal(signal.SIGTERM, cli.end_at_once)
    with locked(workdir):
        return train(config, workdir, init=args.init, branch=args.branch)


def train(config: Config, workdir: epath.Path, init: str | None = None, branch: str | None = None) -> int:
    """Runs `config` in `workdir` to its end or to a signal, on this process's part of the devices.

    Returns:
      The exit status: 0 when finished or preempted, 130 after Ctrl-C.

    Raises:
      UserError: for a configuration or data that cannot work.
      RunFailed: where the loss or a gradient is not finite.
    """
    # What can be refused is refused first: preparing the data may take hours.
    wandb_project = config.reporting.wandb_project if distributed.is_first() else ""
    distributed.together(lambda: require_wandb(wandb_project), "Weights & Biases")
    origin, weights = distributed.together(
        lambda: resume.find_origin(workdir, init, branch), "the checkpoint to begin with"
    )
    distributed.check_same(str(origin or weights), "the checkpoint to begin with")
    distributed.check_same_settings({name: value for name, (value, _) in config_values.leaves(config).items()})
    saved = distributed.together(lambda: checkpoint.read_saved(origin) if origin else None, "reading the checkpoint")
    evaluation_due = False
    if saved:
        resume.check(saved, config, workdir, origin)
        evaluation_due = resume.evaluation_is_due(saved, config, workdir, origin)
        if not evaluation_due and resume.is_finished(saved, config, workdir, origin):
            if distributed.is_first() and not (workdir / "report.html").exists():  # killed before it could be made
                report.try_write(workdir, distributed.say)
            return 0
    mesh = mesh_of(config)
    resolve(config, mesh)
    probed = distributed.together(lambda: read_probe(config.probe), "the probe")

    tokenizer = tokenizer_lib.from_json(saved.tokenizer) if saved else None
    prepared = distributed.first_then_others(
        lambda: build.prepare(config, distributed.say, tokenizer), "preparing the data"
    )
    distributed.check_same(prepared.digest, "the data set")
    if saved:
        resume.check_data(saved, prepared, origin)
    setup = Setup.of(config, prepared.tokenizer.special, prepared.tokenizer.vocab_size, mesh)
    inputs = Inputs(setup, prepared)
    evaluator = Evaluator(setup, inputs, prepared, workdir, probed)
    state, start, trained_length = resume.start_state(setup, prepared, origin, saved, weights)

    info = _resolved(setup, prepared, inputs) | {
        "start": {"step": start.step, "from": str(origin or weights or "fresh weights")}
    }
    _show(info, setup, workdir)
    checkpoints = Checkpoints(workdir / "checkpoints", config.checkpoint, cooldown_start(config))
    reporter = distributed.together(lambda: _reporter(setup, inputs, workdir, start, info), "the reports")
    profile_steps, say = config.reporting.profile_steps if distributed.is_first() else 0, reporter.console.say
    profiling = profiled(memory.settled(setup.train_step), profile_steps, workdir / "profile", say)
    with (
        Interrupts(mesh, config.train.hang_timeout) as interrupts,
        profiling as step_fn,
        contextlib.ExitStack() as closing,
    ):
        # Closed from the last to the first: what was trained is written before anything else can fail.
        if distributed.is_first():
            closing.callback(report.try_write, workdir, distributed.say)
        closing.callback(reporter.close)
        closing.callback(checkpoints.close)
        end, state, position = loop.train(
            config, state, start, step_fn, inputs.training(start), evaluator.until(interrupts), checkpoints,
            Saved(config, start.step, start.sequences, prepared.digest, prepared.tokenizer.to_json(), trained_length),
            reporter, interrupts, evaluation_due,
        )  # fmt: skip
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # all is saved, what is left takes no time
    # Process 0 may still have reports to finish, and JAX gives processes that end before it a minute.
    distributed.agree(None, "the end of the run")
    if end == loop.End.NOT_FINITE:
        explain_failure(setup, state, start, inputs, workdir)
    return _ended(end, position, workdir)


def _show(info: dict[str, Any], setup: Setup, workdir: epath.Path) -> None:
    """Says what was resolved, and leaves it in the work directory."""
    distributed.say("\n".join(run_info.lines(info)))
    if distributed.is_first():
        layout = partitioning.describe(setup.abstract.params)
        storage.write(workdir / "run.json", json.dumps(info | {"layout": layout}, indent=1))
        storage.write(workdir / "config.json", json.dumps(config_loading.to_dict(setup.config), indent=1))
    epochs = sum(phase["epochs"] for phase in info["phases"])
    if epochs > _MANY_EPOCHS:
        distributed.say(
            f"WARNING: this run goes through config.data.source={setup.config.data.source!r} {epochs:,.0f} times and will learn "
            "it by heart; name more text, or lower config.train.num_train_steps"
        )
    for warning in _never_reached(setup.config):
        distributed.say(f"WARNING: {warning}")
    distributed.say("compiling, which takes up to minutes the first time")


def _never_reached(config: Config) -> Iterator[str]:
    """Warnings of what a run is too short to reach, as when a recipe's steps were lowered for a trial."""
    optimizer, steps = config.optimizer, config.train.num_train_steps
    left = steps - optimizer.warmup_steps - optimizer.cooldown_steps
    # With a cooldown the step at which the warm-up ends is at the peak; other schedules have begun to fall before.
    if left < 0 or (left == 0 and not optimizer.cooldown_steps):
        what = f"config.optimizer.warmup_steps={optimizer.warmup_steps}"
        what += f" and cooldown_steps={optimizer.cooldown_steps}" if optimizer.cooldown_steps else ""
        yield (
            f"{what} leave nothing of config.train.num_train_steps={steps}: the learning rate never comes to "
            f"{optimizer.learning_rate:g}; lower them"
        )
    elif optimizer.schedule == "linear" and optimizer.warmup_steps > _LONG_WARMUP * steps:
        peak = optimizer.learning_rate * (1 - optimizer.warmup_steps / steps)
        yield (
            f"config.optimizer.warmup_steps={optimizer.warmup_steps} is much of config.train.num_train_steps={steps}: as the "
            f"linear schedule falls from step 0 on, the rate comes to {peak:.2g}, not {optimizer.learning_rate:g}; lower it"
        )
    if config.data.curriculum_steps and config.data.curriculum_steps[-1] >= steps:
        yield (
            f"config.data.curriculum_steps={config.data.curriculum_steps} go beyond config.train.num_train_steps={steps}: nothing "
            f"is trained at config.data.max_seq_length={config.data.max_seq_length}"
        )


def _ended(end: loop.End, position: loop.Position, workdir: epath.Path) -> int:
    """Says how a run ended; returns its exit status."""
    if end == loop.End.FINISHED:
        distributed.say(
            f"finished at step {position.step:,}; everything about the run is in {workdir}, see report.html there"
        )
        return 0
    how = "preempted" if end == loop.End.PREEMPTED else "stopped"
    kept = checkpoint.saved_steps(workdir / "checkpoints")
    stands = (
        "saved, the same command goes on from there" if position.step in kept else "nothing was done since it started"
    )
    print(f"{how} at step {position.step}; {stands}", flush=True)
    return 0 if end == loop.End.PREEMPTED else 130


def _resolved(setup: Setup, prepared: build.Prepared, inputs: Inputs) -> dict[str, Any]:
    """What is known of the run before its first step."""
    config = setup.config
    batch, phases = config.train.batch_size, _phases(config, inputs)
    peak, peak_source = peak_flops(jax.devices()[0], config.model.dtype)
    return {
        "devices": run_info.devices(),
        "mesh": dict(setup.mesh.shape),
        "batch": {
            "sequences": batch,
            "per_device": batch / (setup.mesh.shape["data"] * setup.mesh.shape["fsdp"]),
            "accumulation": config.train.gradient_accumulation_steps,
        },
        "compute": {
            "dtype": config.model.dtype,
            "attention": setup.model.attention,
            "unroll": setup.model.unroll,
            "remat": setup.model.remat,
        },
        "parameters": setup.parameter_count(),
        "model_flops": step_flops(config, prepared.tokenizer.vocab_size),  # of the last phase
        "peak_flops": {"per_device": peak, "source": peak_source},
        "planned": {"steps": config.train.num_train_steps, "tokens": sum(phase["tokens"] for phase in phases)},
        "phases": phases,
        "data": {"directories": prepared.directories, "digest": prepared.digest},
        "tokenizer": {
            "size": prepared.tokenizer.vocab_size,
            "digest": tokenizer_lib.digest(prepared.tokenizer),
        },
        "versions": run_info.versions(),
    }


def _phases(config: Config, inputs: Inputs) -> list[dict[str, Any]]:
    """What is planned at each length."""
    found, begin = [], 0
    for length, batch_size, end in config.phases:
        total = config.train.num_train_steps
        steps = max(0, min(end or total, total) - begin)
        sequences = steps * batch_size
        found.append(
            {"length": length, "batch_size": batch_size, "steps": steps, "tokens": sequences * length,
             "epochs": inputs.epochs(length, sequences)}
        )  # fmt: skip
        begin = end
    return found


def _reporter(
    setup: Setup, inputs: Inputs, workdir: epath.Path, start: loop.Position, info: dict[str, Any]
) -> Reporter:
    config = setup.config
    peak = info["peak_flops"]["per_device"] * setup.mesh.size

    def throughput(step: int, step_seconds: float) -> dict[str, float]:
        phase = config.phase(step - 1)
        return {
            "tokens_per_second": phase.batch_size * phase.length / step_seconds,
            "utilisation": step_flops(config, setup.architecture.vocab_size, phase) / step_seconds / peak,
            "data_read_per_used": inputs.read_per_used(phase.length),
        }

    writers = []
    if distributed.is_first():
        project, settings = config.reporting.wandb_project, config_loading.to_dict(config)
        writers = writers_of(workdir, start.step, project, settings)
    total = config.train.num_train_steps
    health = Health(config.optimizer.warmup_steps, total, prefix="eval/" if inputs.has_held_out else "")
    console = Console(total, start.step, is_silent=not distributed.is_first())
    return Reporter(console, writers, health, config.reporting.interval_steps, throughput, total)


if __name__ == "__main__":
    cli.run(main)
