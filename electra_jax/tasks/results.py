"""What several seeds come to: their figures, the average of their predictions, files."""

import io
import json
import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from etils import epath

from electra_jax import storage
from electra_jax.tasks import folder
from electra_jax.tasks.config import submission_files
from electra_jax.tasks.finetuning import Outcome
from electra_jax.tasks.job import Job, Split
from electra_jax.tasks.question_answering import QuestionAnswering


class SeedResult(NamedTuple):
    """What is kept of a seed's run."""

    seed: int
    step: int
    seconds: float
    figures: dict[str, dict[str, float]]  # by split
    is_collapsed: bool
    settings: dict[str, Any]
    outputs: dict[str, list[np.ndarray]]


def of(outcome: Outcome) -> SeedResult:
    """An outcome without its parameters."""
    return SeedResult(*(getattr(outcome, name) for name in SeedResult._fields))


def save(workdir: epath.Path, job: Job, outcome: Outcome) -> None:
    """Writes a seed's model, outputs and figures; the last of them, `result.json`, says that it is complete."""
    about = {"seed": outcome.seed, "step": outcome.step, "metric": job.metric, "figures": outcome.figures}
    about["trained_length"] = job.encoder.trained_length
    folder.write(workdir / "model", outcome.params, job.encoder.model, job.kind, about | {"from": job.encoder.name})
    rows = {split: [np.atleast_2d(output) for output in found] for split, found in outcome.outputs.items()}
    arrays = {f"{split}/outputs": np.concatenate(found) for split, found in rows.items()}
    sizes = {f"{split}/rows": np.asarray([len(output) for output in found]) for split, found in rows.items()}
    np.savez_compressed(packed := io.BytesIO(), **arrays, **sizes)
    storage.write(workdir / "outputs.npz", packed.getvalue())
    kept = of(outcome)._asdict()
    del kept["outputs"]
    storage.write(workdir / "result.json", json.dumps(kept, indent=1) + "\n")


def load(workdir: epath.Path, job: Job) -> SeedResult | None:
    """What `save` wrote, or None where the seed is not done."""
    if not (workdir / "result.json").is_file():
        return None
    kept = json.loads((workdir / "result.json").read_text())
    with np.load(io.BytesIO((workdir / "outputs.npz").read_bytes())) as arrays:
        outputs = {
            s.name: np.split(arrays[f"{s.name}/outputs"], np.cumsum(arrays[f"{s.name}/rows"])[:-1]) for s in job.splits
        }
    if job.kind.head == "sequence":
        outputs = {name: [row[0] for row in found] for name, found in outputs.items()}
    return SeedResult(**kept, outputs=outputs)


def summary(values: Sequence[float]) -> dict[str, Any]:
    """Mean, median, (sample) standard deviation and best of the values of the seeds, and the values themselves."""
    return {
        "values": list(values),
        "mean": statistics.fmean(values),
        "median": statistics.median(values),
        "standard_deviation": statistics.stdev(values) if len(values) > 1 else 0.0,
        "best": max(values),
    }


def reported_split(job: Job) -> Split | None:
    """The split whose figures count: the first labelled test split, or else the first labelled validation split."""
    for part in (job.data.test, job.data.validation):
        for split in job.splits:
            if split.name in part and split.is_labelled:
                return split
    return None


def combine(
    job: Job,
    done: Sequence[SeedResult],
    collapsed: Sequence[dict[str, Any]],
    outputs: Mapping[str, Sequence[np.ndarray]],
) -> dict[str, Any]:
    """`results.json`: the reported metric over the seeds on top, then everything else.

    Args:
      job: of the task.
      done: a result for each seed that counts.
      collapsed: the runs that collapsed, whether or not another seed took their place.
      outputs: the average of the outputs of `done`, by split.
    """
    reported = reported_split(job)
    found: dict[str, Any] = {"init": job.encoder.name, "kind": job.data.task.kind, "metric": job.metric}
    if reported is not None:
        found |= {"split": reported.name} | summary([one.figures[reported.name][job.metric] for one in done])
        found["is_chosen_by_it"] = reported is job.validation and job.config.evaluation.select == "best"
        replaced = [one["figures"] for one in collapsed if one["seed"] not in {kept.seed for kept in done}]
        if replaced:  # the mean is too high without those left out for being low
            low = [figures[reported.name][job.metric] for figures in replaced if figures]
            found |= {"replaced": len(replaced), "mean_of_all": statistics.fmean([*found["values"], *low])}
    averaged = {
        s.name: job.kind.figures(s.examples, job.predictions(s, outputs[s.name]))
        for s in job.splits
        if s.is_labelled and len(done) > 1
    }
    figures = {
        split: {name: summary([one.figures[split][name] for one in done]) for name in done[0].figures[split]}
        for split in done[0].figures
    }
    return found | {
        "average_of_predictions": averaged,
        "figures": figures,
        "seeds": [
            {"seed": one.seed, "step": one.step, "seconds": round(one.seconds, 1), "is_collapsed": one.is_collapsed}
            for one in done
        ],
        "collapsed": list(collapsed),
    }


def average(job: Job, done: Sequence[SeedResult]) -> dict[str, list[np.ndarray]]:
    """By split, the outputs of several models, averaged into those of one."""
    if len(done) == 1:
        return done[0].outputs
    return {
        split.name: [job.kind.average(row) for row in zip(*(one.outputs[split.name] for one in done), strict=True)]
        for split in job.splits
    }


def best_of(job: Job, done: Sequence[SeedResult]) -> SeedResult:
    """The seed with the best figure on validation; without one, the first that learnt anything."""

    def value(one: SeedResult) -> tuple[bool, float]:
        named = next((name for name in job.data.validation if name in one.figures), None)
        return not one.is_collapsed, one.figures[named][job.metric] if named else -math.inf

    return max(done, key=value)


def last_line(results: Mapping[str, Any], metric: str) -> str:
    """The reported figure by name, on one line."""
    if "mean" not in results:
        return f"no labelled split to report {metric} of"
    count = len(results["values"])
    more = (
        f" (mean of {count} seeds; median {results['median']:.4f}, standard deviation "
        f"{results['standard_deviation']:.4f}, best {results['best']:.4f})"
        if count > 1
        else ""
    )
    more += collapses(results)
    more += "; the weights were chosen by this split" if results["is_chosen_by_it"] else ""
    return f"{results['split']} {metric} {results['mean']:.4f}{more}"


def collapses(results: Mapping[str, Any], in_percent: bool = False) -> str:
    """What is to be said of runs that learnt nothing, or the empty string."""
    count = sum(one["is_collapsed"] for one in results["seeds"])
    text = f"; {count} of {len(results['values'])} collapsed" if count else ""
    if "replaced" in results:
        mean = f"{100 * results['mean_of_all']:.1f}" if in_percent else f"{results['mean_of_all']:.4f}"
        text += f"; {results['replaced']} more collapsed and replaced, mean of all {mean}"
    return text


def write_predictions(workdir: epath.Path, job: Job, outputs: Mapping[str, Sequence[np.ndarray]]) -> list[epath.Path]:
    """A JSON object a line for each example of each split; also SQuAD's files of answers, and GLUE's where they are asked for."""
    written = []
    kind = job.kind
    files = submission_files(job.data.task)
    for split in job.splits:
        predictions = job.predictions(split, outputs[split.name])
        lines = [
            json.dumps({"id": example.id, **kind.shown(example, prediction)}, ensure_ascii=False)
            for example, prediction in zip(split.examples, predictions)
        ]
        written.append(workdir / f"predictions-{split.name}.jsonl")
        storage.write(written[-1], "\n".join(lines) + "\n")
        if isinstance(kind, QuestionAnswering):
            answers = {e.id: kind.answer(p) for e, p in zip(split.examples, predictions)}
            written.append(workdir / f"squad-{split.name}.json")
            storage.write(written[-1], json.dumps(answers, ensure_ascii=False, indent=1) + "\n")
            if kind.has_unanswerable:
                odds = {e.id: p.null_odds for e, p in zip(split.examples, predictions)}
                written.append(workdir / f"squad-{split.name}-null-odds.json")
                storage.write(written[-1], json.dumps(odds, indent=1) + "\n")
        elif files and split.name in job.data.test:
            written.append(workdir / files.pop(0))
            storage.write(written[-1], glue_submission(job, split, predictions, written[-1].stem))
    return written


# Where GLUE takes the names of labels; elsewhere their numbers.
_BY_NAME = ("MNLI-m", "MNLI-mm", "QNLI", "RTE", "AX")


def glue_submission(job: Job, split: Split, predictions: Sequence[Any], name: str) -> str:
    """Tab-separated index and prediction, as gluebenchmark.com takes them."""
    labels = job.data.task.labels
    lines = ["index\tprediction"]
    ids = [example.id for example in split.examples]
    # A data set of TFDS has them in an order of its own.
    order = sorted(range(len(predictions)), key=lambda place: int(ids[place]) if ids[place].isdecimal() else place)
    for place in order:
        index, prediction = ids[place], predictions[place]
        if job.data.task.kind == "regression":
            shown = f"{min(5.0, max(0.0, prediction)):.3f}"
        else:
            best = int(np.argmax(prediction))
            shown = labels[best] if name in _BY_NAME else str(best)
        lines.append(f"{index}\t{shown}")
    return "\n".join(lines) + "\n"
