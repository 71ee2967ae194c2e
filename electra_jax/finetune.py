"""Fine-tunes an encoder on a task: `python -m electra_jax.finetune --config=configs/finetune/jsonl.py --init=PATH`."""

import json
import signal
import statistics
from pathlib import Path
from typing import Any

from etils import epath

from electra_jax import cli, config_values, distributed, memory, storage
from electra_jax.config import TrainConfig
from electra_jax.errors import UserError
from electra_jax.reporting import report
from electra_jax.reporting.writers import require_wandb
from electra_jax.tasks import data as task_data
from electra_jax.tasks import encoder as encoders
from electra_jax.tasks import results, seeds
from electra_jax.tasks.config import FinetuneConfig
from electra_jax.tasks.data import TaskData
from electra_jax.tasks.encoder import PretrainedEncoder
from electra_jax.tasks.examples import are_labelled
from electra_jax.tasks.finetuning import Stopped
from electra_jax.tasks.job import Job
from electra_jax.workdir import locked


def main(argv: list[str]) -> int:
    parser = cli.parser(
        "electra_jax.finetune",
        "Fine-tunes a pretrained encoder. The same command run again goes on where it was stopped.",
    )
    parser.add_argument(
        "--init",
        required=True,
        metavar="DIR[@STEP]",
        help="the encoder: a work directory, or an exported or imported model",
    )
    parser.add_argument(
        "--random_weights",
        action="store_true",
        help="take only sizes and vocabulary from --init, not its weights: the baseline",
    )
    parser.add_argument(
        "--workdir", metavar="DIR", help="where everything about the runs goes (default: runs/finetune-CONFIG-TASK)"
    )
    distributed.add_arguments(parser)
    args, overrides = cli.parse(parser, argv)
    config = cli.load_finetune_config(args.config, overrides)
    workdir = cli.directory("--workdir", args.workdir or f"runs/finetune-{_name(args.config, config)}")
    memory.set_up()
    cli.use_compilation_cache(workdir.parent / "compilation_cache")
    distributed.join(args, TrainConfig())
    wandb_project = config.reporting.wandb_project if distributed.is_first() else ""
    distributed.together(lambda: require_wandb(wandb_project), "Weights & Biases")
    cli.directory("--init", args.init)
    encoder = distributed.together(lambda: encoders.load(args.init), "reading --init")
    encoder = encoder.fresh() if args.random_weights else encoder
    signal.signal(signal.SIGTERM, cli.end_at_once)
    try:
        if config.suite:
            return _suite(args.config, config.suite, overrides, encoder, workdir)
        data = distributed.together(lambda: task_data.load(config.task), "reading the task")
        found = _task(config, data, encoder, workdir)
    except Stopped as stop:
        print(f"{'preempted' if stop.is_preempted else 'stopped'} {stop}", flush=True)
        return 0 if stop.is_preempted else 130
    distributed.say(results.last_line(found, found["metric"]))
    return 0


def _task(config: FinetuneConfig, data: TaskData, encoder: PretrainedEncoder, workdir: epath.Path) -> dict[str, Any]:
    distributed.check_same_settings({name: value for name, (value, _) in config_values.leaves(config).items()})
    distributed.check_same(data.digest, "the task")
    job = Job(config, data, encoder, distributed.say)
    with locked(workdir):
        counts = ", ".join(f"{split.name} {len(split.examples):,}" for split in job.splits)
        distributed.say(f"{data.task.kind} from {encoder.name}: train {len(job.train):,} features, {counts}")
        try:
            found = seeds.run(job, workdir, distributed.say)
        finally:
            if distributed.is_first():
                report.try_write(workdir, distributed.say)
        distributed.agree(None, "the end of the run")  # as in `train`
        return found


def _suite(path: str, words: tuple[str, ...], overrides: list, encoder: PretrainedEncoder, workdir: epath.Path) -> int:
    """Runs the configurations of a file one after the other, and prints their results beside the published ones."""
    (file, _), found = cli.split_word(path), []
    # All are read before the first one runs, so that a mistake in the last shows now.
    configs = [cli.load_finetune_config(f"{file}:{word}", overrides) for word in words]
    data = distributed.together(lambda: [_measured(config) for config in configs], "reading the tasks")
    for word, config in zip(words, configs, strict=True):
        distributed.say(f"== {word}")
        found.append((word, config, _task(config, data.pop(0), encoder, workdir / word)))
    distributed.say(f"{'task':8} {'metric':18} {'mean':>8} {'median':>8} {'deviation':>10} {'published':>10}")
    for word, config, one in found:
        shown = [f"{100 * one[name]:.1f}" for name in ("mean", "median", "standard_deviation")]
        published = f"{config.task.published:.1f}" if config.task.published else "-"
        line = f"{word:8} {one['metric']:18} {shown[0]:>8} {shown[1]:>8} {shown[2]:>10} {published:>10}"
        distributed.say(line + results.collapses(one, in_percent=True))
    scores = [100 * one["median"] for *_, one in found]
    published = [config.task.published for _, config, _ in found]
    total = {"metric": "average", "average": statistics.fmean(scores), "tasks": {word: one for word, _, one in found}}
    line = f"average of {len(found)} medians {total['average']:.2f}"
    values = [one["values"] for *_, one in found]
    if len({*map(len, values)}) == 1:  # all with as many seeds: adds the spread of the average over tasks
        total |= results.summary([100 * statistics.fmean(each) for each in zip(*values)])
    if len(total.get("values", ())) > 1:
        line += f", standard deviation over {len(total['values'])} seeds {total['standard_deviation']:.2f}"
    if all(published):
        total["published"] = statistics.fmean(published)
        line += f"; published {total['published']:.2f}, {total['average'] - total['published']:+.2f} here"
    if distributed.is_first():
        storage.write(workdir / "results.json", json.dumps(total, indent=1) + "\n")
    distributed.say(line)
    return 0


def _measured(config: FinetuneConfig) -> TaskData:
    """The data of a task; raises `UserError` where neither validation nor test has labels to measure by."""
    found = task_data.load(config.task)
    splits = [split for part in (found.validation, found.test) for split in part.values()]
    if not any(map(are_labelled, splits)):
        raise UserError(f"config.task.path={config.task.path}: neither validation nor test has labels to measure by")
    return found


def _name(path: str, config: FinetuneConfig) -> str:
    file, word = cli.split_word(path)
    task = word or Path(config.task.path.removeprefix("tfds:")).name
    return cli.run_name(file, task)


if __name__ == "__main__":
    cli.run(main)
