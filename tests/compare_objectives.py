"""What pretraining is worth: encoders of `configs/mini.py`, at equal compute, fine-tuned on tasks of one's own; no test.

    python tests/compare_objectives.py --source=text.jsonl --tasks tasks/movie_sentiment=8 tasks/brown_pos=1.5 \
        --seeds 0 1 2 --times 0.25 0.75 2 --results=worth.jsonl

A task is a folder as `configs/finetune/jsonl.py` takes it, and its epochs. A line is added to `--results` for each encoder and
task; what stands there is not run again, so the same command goes on, and several share the work (`--objectives`, `--seeds`).
Without `--tasks` nothing is run. Ends with the table of `--results`, and with `--plot` draws it.
"""

import argparse
import itertools
import json
import statistics
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from scipy import stats

from electra_jax import cli
from electra_jax.analysis.flops import step_flops

CONFIGS = Path(__file__).resolve().parent.parent / "configs"
NAMES = {
    "random": "random weights",
    "masked_lm": "masked LM",
    "tied": "replaced tokens, one encoder",
    "separate": "replaced tokens, two encoders",
}
# Found on validation sets: an encoder this small wants a higher rate than `jsonl.py` has, and its lowest layer the same.
FINETUNING = {"optimizer.learning_rate": 5e-4, "optimizer.layerwise_decay": 1.0, "evaluation.interval_epochs": 1.0}


def run(module: str, config: str, workdir: Path, made: str, settings: dict[str, Any], *flags: str) -> Path:
    """A command of ours, its output in a file beside `workdir`; what it `made` there. Ends this process without that."""
    workdir.parent.mkdir(parents=True, exist_ok=True)
    line = [sys.executable, "-m", f"electra_jax.{module}", f"--config={CONFIGS / config}", f"--workdir={workdir}"]
    line += [*flags, *(f"--config.{name}={value}" for name, value in settings.items())]
    print("+", *line[2:], flush=True)
    with workdir.with_name(workdir.name + ".log").open("a") as log:
        done = subprocess.run(line, stdout=log, stderr=subprocess.STDOUT)
    if done.returncode or not (workdir / made).exists():
        sys.exit(f"{log.name}: failed or was stopped; the same command goes on")
    return workdir / made


def pretrain(runs: Path, source: str, objective: str, seed: int, times: list[float]) -> Path:
    """An encoder of the last of `times`: its constant part goes on where that of the one before began to cool down."""
    once = cli.load_config(str(CONFIGS / f"mini.py:{objective}"), []).train.num_train_steps
    steps = [round(x * once) for x in times]
    workdir, last = runs / f"{objective}-{seed}-x{times[-1]:g}", f"checkpoints/{steps[-1]}"
    if (workdir / last).exists():
        return workdir
    branch = []
    if len(times) > 1:
        before = pretrain(runs, source, objective, seed, times[:-1])
        branch = [] if (workdir / "checkpoints").exists() else [f"--branch={before}@{steps[-2] - steps[-2] // 4}"]
    settings = {"seed": seed, "data.source": source, "train.num_train_steps": steps[-1]}
    run(
        "train", f"mini.py:{objective}", workdir, last, settings | {"optimizer.cooldown_steps": steps[-1] // 4}, *branch
    )
    return workdir


def finetune(encoder: Path, task: Path, epochs: float, seeds: int, workdir: Path, *flags: str) -> dict[str, Any]:
    """The metric's name and its value on the test set, a seed."""
    settings = FINETUNING | {"task.path": task, "train.epochs": epochs, "seeds": seeds, "max_restarts": 0}
    made = run("finetune", "finetune/jsonl.py", workdir, "results.json", settings, f"--init={encoder}", *flags)
    found = json.loads(made.read_text())
    return {"metric": found["metric"], "scores": [round(value, 5) for value in found["values"]]}


def teraflop(objective: str, times: float) -> float:
    """Compute of pretraining, the generator's included."""
    config = cli.load_config(str(CONFIGS / f"mini.py:{objective}"), [])
    return times * config.train.num_train_steps * step_flops(config, config.tokenizer.vocab_size) / 1e12


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def encoders(args: argparse.Namespace) -> Iterator[tuple[str, int, list[float]]]:
    """Objective, seed of pretraining, compute: all shorter runs with the one that is meant, which is last."""
    times = sorted(args.times)
    if "random" in args.objectives:
        yield "random", 0, []
    for seed, objective, count in itertools.product(args.seeds, args.objectives, range(len(times))):
        if objective != "random":
            yield objective, seed, times[: count + 1]


def fill(args: argparse.Namespace) -> None:
    """Runs what `--results` lacks."""
    runs = Path(args.runs).absolute()
    for (objective, seed, times), task in itertools.product(encoders(args), args.tasks):
        folder, _, epochs = task.rpartition("=")
        x = times[-1] if times else 0.0
        row = {"task": Path(folder).name, "objective": objective, "seed": seed, "times": x}
        if any(row.items() <= done.items() for done in read(args.results)):
            continue
        flags = []
        if objective == "random":  # of an encoder only its sizes and vocabulary
            encoder, flags = pretrain(runs, args.source, "masked_lm", seed, [min(args.times)]), ["--random_weights"]
        else:
            encoder = pretrain(runs, args.source, objective, seed, times)
            row["teraflop"] = round(teraflop(objective, x), 1)
        workdir = runs / f"{row['task']}.{objective}-{seed}-x{x:g}"
        found = finetune(encoder, Path(folder).absolute(), float(epochs), args.finetuning_seeds, workdir, *flags)
        with args.results.open("a") as file:
            file.write(json.dumps(row | found) + "\n")


def difference(rows: list[dict], a: str, b: str) -> tuple[float, float] | None:
    """Mean over pretraining seeds of how far `a` is ahead of `b` at the most compute, and half of its 95 % interval.

    Paired by pretraining seed, each the mean of its fine-tuning seeds: these are no independent draws of what pretraining gives.
    """
    means = {(row["objective"], row["seed"]): statistics.fmean(row["scores"]) for row in at_most(rows)}
    pairs = [mean - means[b, seed] for (name, seed), mean in means.items() if name == a and (b, seed) in means]
    if len(pairs) < 2:
        return None
    return statistics.fmean(pairs), stats.t.ppf(0.975, len(pairs) - 1) * statistics.stdev(pairs) / len(pairs) ** 0.5


def at_most(rows: list[dict]) -> list[dict]:
    """Those of the most compute, and those that took none."""
    return [row for row in rows if row["times"] in (0, max(row["times"] for row in rows))]


def by_task(rows: list[dict]) -> dict[str, list[dict]]:
    found = defaultdict(list)
    for row in rows:
        found[row["task"]].append(row)
    return found


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown: a line a task, means at the most compute, and how far detection is ahead of masked LM."""
    shown = [name for name in NAMES if any(row["objective"] == name for row in rows)]
    ahead = [name for name in ("tied", "separate") if name in shown]
    heads = ["task", "metric", *(NAMES[name] for name in shown), *(f"{name} ahead by" for name in ahead)]
    lines = [f"| {' | '.join(heads)} |", "|" + "---|" * len(heads)]
    for task, found in by_task(rows).items():
        cells = [task, found[0]["metric"]]
        for name in shown:
            scores = [score for row in at_most(found) if row["objective"] == name for score in row["scores"]]
            cells.append(f"{statistics.fmean(scores):.3f} ± {statistics.stdev(scores):.3f}" if len(scores) > 1 else "")
        for name in ahead:
            pair = difference(found, name, "masked_lm")
            cells.append(f"{pair[0]:+.3f} ± {pair[1]:.3f}" if pair else "")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def plot(rows: list[dict[str, Any]], path: Path) -> None:
    """Score against compute: a panel a task, a dot an encoder, a line through the means of an objective's."""
    from matplotlib.figure import Figure

    tasks = by_task(rows)
    columns = min(3, len(tasks))
    height = -(-len(tasks) // columns)
    figure = Figure(figsize=(3.4 * columns, 2.7 * height), layout="constrained")
    for axes, (task, found) in zip(figure.subplots(height, columns, squeeze=False).flat, tasks.items()):
        for color, name in enumerate(NAMES):
            points = defaultdict(list)
            for row in found:
                if row["objective"] == name:
                    points[row.get("teraflop")].append(statistics.fmean(row["scores"]))
            if name == "random" and points:
                axes.axhline(statistics.fmean(points[None]), color="grey", linestyle="--", label=NAMES[name])
            elif points:
                x = sorted(points)
                axes.plot(x, [statistics.fmean(points[each]) for each in x], color=f"C{color}", label=NAMES[name])
                axes.plot(*zip(*((each, y) for each in x for y in points[each])), "o", color=f"C{color}", markersize=3)
        axes.set(title=f"{task}, {found[0]['metric']}", xscale="log", xlabel="pretraining, TFLOP")
        spent = sorted({row["teraflop"] for row in found if "teraflop" in row})
        axes.set_xticks(spent, [f"{each:.0f}" for each in spent])
        axes.minorticks_off()
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, frameon=False, fontsize=8)
    figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", help="text to pretrain on, in short documents")
    parser.add_argument("--tasks", nargs="*", default=[], metavar="FOLDER=EPOCHS")
    parser.add_argument("--objectives", nargs="+", default=list(NAMES), choices=list(NAMES))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], help="of pretraining")
    parser.add_argument("--finetuning_seeds", type=int, default=5, help="for each encoder and task")
    parser.add_argument("--times", nargs="+", type=float, default=[2.0], help="compute, as multiples of mini.py's")
    parser.add_argument("--runs", default="runs", help="where the runs go")
    parser.add_argument("--results", type=Path, required=True, metavar="FILE.jsonl")
    parser.add_argument("--plot", type=Path, metavar="FILE.svg")
    args = parser.parse_args(argv)
    fill(args)
    rows = read(args.results)
    print(table(rows), end="")
    if args.plot:
        plot(rows, args.plot)


if __name__ == "__main__":
    main(sys.argv[1:])
