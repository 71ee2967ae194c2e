"""Pretrains ELECTRA: `python -m electra_jax.train --config=configs/small.py`."""

import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np

from electra_jax import cli, config_loading
from electra_jax.analysis.flops import step_flops
from electra_jax.analysis.hardware import peak_flops
from electra_jax.config import Config
from electra_jax.data import build, pipeline
from electra_jax.data import tokenizer as tokenizer_lib
from electra_jax.data.dataset import TRAIN, VALIDATION
from electra_jax.errors import RunFailed, UserError
from electra_jax.models.electra import Params
from electra_jax.reporting import run_info
from electra_jax.reporting.health import Health
from electra_jax.reporting.reporter import Reporter
from electra_jax.reporting.writers import Console, JsonLines, TensorBoard
from electra_jax.training import checkpoint, loop
from electra_jax.training.checkpoint import Checkpoints
from electra_jax.training.setup import Setup
from electra_jax.training.state import TrainState
from electra_jax.training.step import make_diagnosis


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
    args, overrides = cli.parse(parser, argv)
    config = cli.load_config(args.config, overrides)
    workdir = Path(args.workdir or Path("runs") / Path(args.config).stem)
    cli.use_compilation_cache(workdir.parent / "compilation_cache")
    return train(config, workdir, init=args.init, branch=args.branch)


def train(config: Config, workdir: Path, init: str | None = None, branch: str | None = None) -> int:
    """Runs `config` in `workdir` to its end or to a signal.

    Returns:
      The exit status: 0 when finished or preempted, 130 after Ctrl-C.

    Raises:
      UserError: for a configuration or data that cannot work.
      RunFailed: where the loss or a gradient is not finite.
    """
    steps = checkpoint.saved_steps(workdir / "checkpoints")
    origin = f"{workdir}@{steps[-1]}" if steps else branch
    saved = checkpoint.read_saved(*checkpoint.find(origin)) if origin else None
    if saved:
        for warning in config_loading.check_resume(saved.config, config):
            print(f"WARNING: {warning}")
        if saved.step >= config.train.num_train_steps:
            print(
                f"{origin} is finished: it stands at step {saved.step:,} of train.num_train_steps={config.train.num_train_steps:,}"
            )
            return 0

    prepared = build.prepare(config)
    if saved:
        _same_vocabulary(saved.tokenizer, prepared, origin)
    setup = Setup.of(config, prepared.tokenizer.special, prepared.tokenizer.vocab_size)
    records = pipeline.Records(prepared.directory, TRAIN)

    info = _resolved(setup, prepared, len(records))
    print("\n".join(run_info.lines(info)))
    workdir.mkdir(parents=True, exist_ok=True)
    (workdir / "run.json").write_text(json.dumps(info, indent=1))
    (workdir / "config.json").write_text(json.dumps(config_loading.to_dict(config), indent=1))

    state, start = _start(setup, prepared, origin, init)
    checkpoints = Checkpoints(workdir / "checkpoints", config.checkpoint)
    reporter = _reporter(setup, workdir, start, info)
    try:
        end, state, position = loop.train(
            config, state, start, setup.train_step, _training_batches(setup, records, start.sequences),
            _evaluator(setup, prepared), checkpoints, prepared.tokenizer.to_json(), reporter,
        )  # fmt: skip
    finally:
        reporter.close()
        checkpoints.close()
    match end:
        case loop.End.NOT_FINITE:
            _explain_failure(setup, state, start, records, workdir)
        case loop.End.FINISHED:
            print(f"finished at step {position.step:,}; everything about the run is in {workdir}")
        case loop.End.PREEMPTED:
            print(f"preempted at step {position.step}; saved, the same command goes on from there")
        case loop.End.INTERRUPTED:
            print(f"stopped at step {position.step}; saved, the same command goes on from there")
            return 130
    return 0


def _start(
    setup: Setup, prepared: build.Prepared, origin: str | None, init: str | None
) -> tuple[TrainState, loop.Position]:
    """The state to begin with: of a checkpoint, from another run's weights, or fresh."""
    if origin:
        directory, step = checkpoint.find(origin)
        print(f"going on from {directory / str(step)}")
        saved = checkpoint.read_saved(directory, step)
        return checkpoint.restore(directory, step, setup.abstract), loop.Position(step, saved.sequences)
    params = None
    if init:
        directory, step = checkpoint.find(init)
        _same_vocabulary(checkpoint.read_saved(directory, step).tokenizer, prepared, init)
        params = checkpoint.restore_params(directory, step, setup.abstract.params)
        print(f"starting from the weights of {directory / str(step)}")
    return setup.init(params), loop.Position(0, 0)


def _same_vocabulary(saved: dict[str, str], prepared: build.Prepared, origin: str) -> None:
    there, here = tokenizer_lib.digest(tokenizer_lib.from_json(saved)), tokenizer_lib.digest(prepared.tokenizer)
    if there != here:
        raise UserError(
            f"{origin} was trained with vocabulary {there}, the data of this configuration have {here}: "
            "its ids mean other tokens. Use the same tokenizer settings and source, or tokenizer.vocab_file"
        )


def _resolved(setup: Setup, prepared: build.Prepared, num_records: int) -> dict[str, Any]:
    """What is known of the run before its first step."""
    config = setup.config
    batch, steps = config.train.batch_size, config.train.num_train_steps
    peak, peak_source = peak_flops(jax.devices()[0], config.model.dtype)
    return {
        "devices": run_info.devices(),
        "mesh": dict(setup.mesh.shape),
        "batch": {
            "sequences": batch,
            "per_device": batch / (setup.mesh.shape["data"] * setup.mesh.shape["fsdp"]),
            "accumulation": config.train.gradient_accumulation_steps,
        },
        "compute": {"dtype": config.model.dtype, "attention": "reference", "remat": config.model.remat},
        "parameters": setup.parameter_count(),
        "model_flops": step_flops(config, prepared.tokenizer.vocab_size),
        "peak_flops": {"per_device": peak, "source": peak_source},
        "planned": {
            "steps": steps,
            "tokens": steps * batch * config.data.max_seq_length,
            "epochs": steps * batch / num_records,
        },
        "data": {
            "directory": str(prepared.directory),
            "records": num_records,
            "vocabulary": prepared.metadata["vocabulary"],
            "vocab_size": prepared.tokenizer.vocab_size,
        },
        "versions": run_info.versions(),
    }


def _reporter(setup: Setup, workdir: Path, start: loop.Position, info: dict[str, Any]) -> Reporter:
    config = setup.config
    tokens = config.train.batch_size * config.data.max_seq_length
    peak = info["peak_flops"]["per_device"] * setup.mesh.size

    def throughput(step_seconds: float) -> dict[str, float]:
        return {"tokens_per_second": tokens / step_seconds, "utilisation": info["model_flops"] / step_seconds / peak}

    writers = [JsonLines(workdir / "metrics.jsonl", start.step), TensorBoard(workdir / "tensorboard", start.step)]
    return Reporter(
        Console(config.train.num_train_steps, start.step), writers, Health(config.optimizer.warmup_steps),
        config.reporting.interval_steps, throughput, config.train.num_train_steps,
    )  # fmt: skip


def _training_batches(setup: Setup, records: pipeline.Records, sequences: int) -> Iterator[jax.Array]:
    size = setup.config.train.batch_size
    batches = pipeline.training_batches(records, setup.config.seed, sequences, size, setup.rows(size))
    return setup.place(batches, size)


def _evaluator(setup: Setup, prepared: build.Prepared) -> Callable[[Params], dict[str, float]] | None:
    """params -> held-out figures, or None where nothing is held out."""
    if VALIDATION not in prepared.metadata:
        return None
    records = pipeline.Records(prepared.directory, VALIDATION)
    settings = setup.config.evaluation
    rows = setup.rows(settings.batch_size)

    def evaluate(params: Params) -> dict[str, float]:
        batches = pipeline.evaluation_batches(records, settings.batch_size, settings.max_records, setup.ids.pad, rows)
        return setup.evaluate(params, batches)

    return evaluate


def _explain_failure(
    setup: Setup, state: TrainState, start: loop.Position, records: pipeline.Records, workdir: Path
) -> None:
    """Writes down the step that was not finite, and ends the run.

    The state is the one that step started from, and its batch follows from its position.
    """
    batch_size, step = setup.config.train.batch_size, int(state.failed_step)
    position = start.sequences + (step - start.step) * batch_size
    diagnose = make_diagnosis(setup.config, setup.architecture, setup.ids)
    found = jax.device_get(diagnose(state.params, step, next(_training_batches(setup, records, position))))
    terms = {name: float(value) for name, value in found.pop("losses").items()}
    norms = {name: float(value) for name, value in found.pop("gradient_norms").items()}
    arrays, report = workdir / f"failure-{step}.npz", workdir / f"failure-{step}.json"
    np.savez_compressed(arrays, **found)
    report.write_text(json.dumps({"step": step, "losses": terms, "gradient_norms": norms}, indent=1))
    bad = [name for name, norm in norms.items() if not math.isfinite(norm)]
    kept = checkpoint.saved_steps(workdir / "checkpoints")
    raise RunFailed(
        f"step {step} gave a loss or gradient that is not finite ("
        + ", ".join(f"{name} {value:.4g}" for name, value in terms.items())
        + f"; {len(bad)} of {len(norms)} gradients not finite{f', {bad[0]} first' if bad else ''}). "
        f"The batch, masked positions and samples are in {arrays}, gradient norms in {report}. "
        + (f"The last checkpoint, step {kept[-1]}, is good" if kept else "No checkpoint was saved before")
        + f". To pass over this batch, run the same command with --config.train.skip_steps={step}; if it comes again, "
        "lower optimizer.learning_rate"
    )


if __name__ == "__main__":
    cli.run(main)
