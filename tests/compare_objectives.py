"""Measures what pretraining is worth: `configs/mini.py` encoders, at equal compute, fine-tuned on your own tasks. Not a test.

    python tests/compare_objectives.py --source=text.jsonl --tasks tasks/movie_sentiment=8 tasks/brown_pos=1.5 \
        --seeds 0 1 2 --times 0.25 0.75 2 --results=worth.jsonl

A task is a folder as `configs/finetune/jsonl.py` takes it, `=`, and the number of epochs. Each encoder and task adds a line to
`--results`. What is there already is not run again, so the same command continues a comparison, and several commands can share
the work (`--objectives`, `--seeds`). Without `--tasks` nothing is run. Ends by printing a table of `--results`; `--plot` also
draws them.
"""

import argparse
import itertools
import json
import re
import statistics
import subprocess
import sys
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from scipy import stats
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression, Ridge

from electra_jax import cli
from electra_jax.analysis.flops import step_flops

CONFIGS = Path(__file__).resolve().parent.parent / "configs"
NAMES = {
    "counts": "word counts",
    "random": "random weights",
    "masked_lm": "masked LM",
    "tied": "replaced tokens, one encoder",
    "separate": "replaced tokens, two encoders",
}
# Found on validation sets: an encoder this small wants a higher rate than `jsonl.py` has, the same in all layers.
FINETUNING = {"optimizer.learning_rate": 5e-4, "optimizer.layerwise_decay": 1.0, "evaluation.interval_epochs": 1.0}


def run(module: str, config: str, workdir: Path, made: str, settings: dict[str, Any], *flags: str) -> Path:
    """Runs a command of ours, logging to a file beside `workdir`; returns the path `made` in it, and exits if that is missing."""
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
    """The encoder for `times[-1]`; it branches off the one for the time before, at the step where that began to cool down."""
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
    """The metric's name, and its value on the test set for each seed."""
    settings = FINETUNING | {"task.path": task, "train.epochs": epochs, "seeds": seeds, "max_restarts": 0}
    made = run("finetune", "finetune/jsonl.py", workdir, "results.json", settings, f"--init={encoder}", *flags)
    found = json.loads(made.read_text())
    return {"metric": found["metric"], "scores": [round(value, 5) for value in found["values"]]}


def word_counts(task: Path) -> dict[str, Any]:
    """A baseline without a network: TF-IDF of the first 128 words, the words two texts share, or each word's most frequent tag."""
    train, test = (read(task / f"{split}.jsonl") for split in ("train", "test"))
    metric = json.loads((task / "info.json").read_text())["metric"]
    if "tags" in train[0]:
        tags = defaultdict(Counter)
        for one in train:
            for word, tag in zip(one["tokens"], one["tags"]):
                tags[word][tag] += 1
        common = sum(tags.values(), Counter())
        right = [
            tags.get(word, common).most_common(1)[0][0] == tag
            for one in test
            for word, tag in zip(one["tokens"], one["tags"])
        ]
        return {"metric": metric, "scores": [round(statistics.fmean(right), 5)]}
    if "text_a" in train[0]:
        inputs = [[[_shared(one["text_a"], one["text_b"])] for one in split] for split in (train, test)]
    else:
        vectors = TfidfVectorizer(sublinear_tf=True).fit(_beginning(one) for one in train)
        inputs = [vectors.transform(map(_beginning, split)) for split in (train, test)]
    model = Ridge() if metric == "spearman" else LogisticRegression(C=10, max_iter=1000)
    said, right = (
        model.fit(inputs[0], [one["label"] for one in train]).predict(inputs[1]),
        [one["label"] for one in test],
    )
    score = stats.spearmanr(said, right).statistic if metric == "spearman" else (said == right).mean()
    return {"metric": metric, "scores": [round(float(score), 5)]}


def _beginning(one: dict[str, Any]) -> str:
    return " ".join(one["text"].split()[:128])


def _shared(a: str, b: str) -> float:
    a, b = ({*re.findall(r"\w+", text.lower())} for text in (a, b))
    return len(a & b) / max(1, len(a | b))


def teraflop(objective: str, times: float) -> float:
    """Compute of pretraining, the generator's included."""
    config = cli.load_config(str(CONFIGS / f"mini.py:{objective}"), [])
    return times * config.train.num_train_steps * step_flops(config, config.tokenizer.vocab_size) / 1e12


def read(path: Path) -> list[dict[str, Any]]:
    if not path.exists():
        return []
    with path.open(encoding="utf-8") as file:  # not splitlines(): texts may hold other line separators
        return [json.loads(line) for line in file]


def encoders(args: argparse.Namespace) -> Iterator[tuple[str, int, list[float]]]:
    """Objective, seed of pretraining, and `times`: that of the encoder is the last, after those of the shorter runs before it."""
    times = sorted(args.times)
    for objective in args.objectives:
        if objective in ("counts", "random"):
            yield objective, 0, []
    for seed, objective, count in itertools.product(args.seeds, args.objectives, range(len(times))):
        if objective not in ("counts", "random"):
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
        task, workdir = Path(folder).absolute(), runs / f"{row['task']}.{objective}-{seed}-x{x:g}"
        if objective == "counts":
            found = word_counts(task)
        elif objective == "random":  # only the encoder's sizes and vocabulary are used
            encoder = pretrain(runs, args.source, "masked_lm", seed, [min(args.times)])
            found = finetune(encoder, task, float(epochs), args.finetuning_seeds, workdir, "--random_weights")
        else:
            encoder = pretrain(runs, args.source, objective, seed, times)
            found = finetune(encoder, task, float(epochs), args.finetuning_seeds, workdir)
            row["teraflop"] = round(teraflop(objective, x), 1)
        with args.results.open("a") as file:
            file.write(json.dumps(row | found) + "\n")


def difference(rows: list[dict], a: str, b: str) -> tuple[float, float] | None:
    """How far `a` is ahead of `b` on a task, in the mean over encoders, and half the width of the 95 % interval.

    Each encoder counts once, with the mean over its fine-tuning seeds, as these are not independent samples of pretraining. Two
    objectives are paired by the seed of pretraining; random weights, new for each fine-tuning seed, are not paired (Welch).
    """
    of_a, of_b = ({row["seed"]: row["scores"] for row in at_most(rows) if row["objective"] == name} for name in (a, b))
    seeds = of_a.keys() if b == "random" else of_a.keys() & of_b.keys()
    if len(seeds) < 3 or not of_b:  # from two, the interval is too wide to mean anything
        return None
    ours = [statistics.fmean(of_a[seed]) for seed in seeds]
    if b == "random":
        found = stats.ttest_ind(ours, of_b[0], equal_var=False)
    else:
        found = stats.ttest_rel(ours, [statistics.fmean(of_b[seed]) for seed in seeds])
    low, high = found.confidence_interval(0.95)
    return (low + high) / 2, (high - low) / 2


def at_most(rows: list[dict]) -> list[dict]:
    """The rows with the most compute that every encoder of a task has reached, and those without pretraining."""
    came_to = defaultdict(set)
    for row in rows:
        if row["times"]:
            came_to[row["objective"], row["seed"]].add(row["times"])
    most = max(set.intersection(*came_to.values()), default=0) if came_to else 0
    return [row for row in rows if row["times"] in (0, most)]


def by_task(rows: list[dict]) -> dict[str, list[dict]]:
    found = defaultdict(list)
    for row in rows:
        found[row["task"]].append(row)
    return found


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown, a line per task: means at the most compute, and how far objectives are ahead of random weights and masked LM.

    The ± of a score is the standard deviation over encoders, each with the mean over its fine-tuning seeds; where there is only
    one, as for random weights, it is that over its seeds. The ± of a difference is its 95 % interval.
    """
    tasks = by_task(rows)
    shown = [name for name in NAMES if any(row["objective"] == name for row in rows)]
    means = {task: [_mean(found, name) for name in shown] for task, found in tasks.items()}
    text = _markdown(["task", "metric", *(NAMES[name] for name in shown)], tasks, means)
    pairs = [(a, b) for b in ("random", "masked_lm") for a in ("masked_lm", "tied", "separate") if a != b]
    ahead = {pair: [difference(found, *pair) for found in tasks.values()] for pair in pairs}
    ahead = {
        pair: [f"{x[0]:+.3f} ± {x[1]:.3f}" if x else "" for x in found] for pair, found in ahead.items() if any(found)
    }
    if ahead:
        heads = ["task", "metric", *(f"{NAMES[a]} over {NAMES[b]}" for a, b in ahead)]
        text += "\n" + _markdown(heads, tasks, dict(zip(tasks, zip(*ahead.values()))))
    return text


def _markdown(heads: list[str], tasks: dict[str, list[dict]], cells: dict[str, Iterable[str]]) -> str:
    lines = [f"| {' | '.join(heads)} |", "|" + "---|" * len(heads)]
    lines += [f"| {' | '.join([task, found[0]['metric'], *cells[task]])} |" for task, found in tasks.items()]
    return "\n".join(lines) + "\n"


def _mean(rows: list[dict], objective: str) -> str:
    encoders = [row["scores"] for row in at_most(rows) if row["objective"] == objective]
    scores = [statistics.fmean(each) for each in encoders] if len(encoders) > 1 else sum(encoders, [])
    spread = f" ± {statistics.stdev(scores):.3f}" if len(scores) > 1 else ""
    return f"{statistics.fmean(scores):.3f}{spread}" if scores else ""


def plot(rows: list[dict[str, Any]], path: Path) -> None:
    """Score against compute: a panel per task, a dot per encoder, and for each objective a line through its means.

    Tasks whose encoders all have the same compute are left out where other tasks have several; the table shows them all.
    """
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    tasks = by_task(rows)
    curves = {task: found for task, found in tasks.items() if len({row["times"] for row in found} - {0}) > 1}
    tasks = curves or tasks
    columns = min(3, len(tasks))
    height = -(-len(tasks) // columns)
    figure = Figure(figsize=(3.4 * columns, 2.7 * height), layout="constrained")
    for axes, (task, found) in zip(figure.subplots(height, columns, squeeze=False).flat, tasks.items()):
        for color, name in enumerate(NAMES):
            points = defaultdict(list)
            for row in found:
                if row["objective"] == name:
                    points[row.get("teraflop")].append(statistics.fmean(row["scores"]))
            if None in points:  # no pretraining
                style = {"counts": ":", "random": "--"}[name]
                axes.axhline(statistics.fmean(points[None]), color="grey", linestyle=style, label=NAMES[name])
            elif points:
                x = sorted(points)
                axes.plot(x, [statistics.fmean(points[each]) for each in x], color=f"C{color}", label=NAMES[name])
                axes.plot(*zip(*((each, y) for each in x for y in points[each])), "o", color=f"C{color}", markersize=3)
        axes.set(title=f"{task}, {found[0]['metric']}", xscale="log", xlabel="pretraining, TFLOP")
        spent = sorted({round(row["teraflop"]) for row in found if "teraflop" in row})
        axes.set_xticks(spent, [f"{each}" for each in spent])
        axes.margins(x=0.1)
        axes.minorticks_off()
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, frameon=False, fontsize=8)
    with rc_context({"svg.hashsalt": "worth"}):  # the same rows give the same file
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
