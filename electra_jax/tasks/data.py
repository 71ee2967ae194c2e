"""The data of a task: its splits, its labels, and what is odd about them."""

import dataclasses
import functools
import hashlib
import itertools
from collections.abc import Iterable, Sequence
from typing import Any

from electra_jax.errors import UserError
from electra_jax.tasks import examples, formats, labels
from electra_jax.tasks.config import TaskConfig, check_windows
from electra_jax.tasks.examples import Example
from electra_jax.tasks.formats import Row
from electra_jax.tasks.labels import Labels


@dataclasses.dataclass(frozen=True)
class TaskData:
    """The splits of a task.

    Attributes:
      task: the configuration with `kind`, `metric` and `labels` decided.
      train, validation, test: examples by the name of the split; the first of each is what counts.
      warnings: of what is odd about the data and no reason to refuse them.
    """

    task: TaskConfig
    train: dict[str, list[Example]]
    validation: dict[str, list[Example]]
    test: dict[str, list[Example]]
    warnings: tuple[str, ...] = ()

    @functools.cached_property
    def digest(self) -> str:
        """Identifies texts and labels: sixteen characters."""
        found = hashlib.sha256()
        for name in ("train", "validation", "test"):
            for split, there in getattr(self, name).items():
                found.update(f"{name} {split} {len(there)}".encode())
                for one in there:  # wherever they are
                    found.update(repr(one[1:]).encode())
        return found.hexdigest()[:16]


METRICS = {"classification": "accuracy", "regression": "spearman", "tagging": "accuracy", "question_answering": "f1"}


def load(task: TaskConfig) -> TaskData:
    """Reads all splits of a task.

    Raises:
      UserError: for what is not there, broken or has no meaning, named by file and line.
    """
    source = formats.Source(task)
    splits = {name: source.splits(name) for name in ("train", "validation", "test")}
    if not splits["train"]:
        raise UserError(f"config.task.path={task.path}: nothing to train on there; {source.expected('train')}")
    rows, warnings = _read(task, source, splits)
    every = itertools.chain.from_iterable(rows["train"].values())
    task = _decided(task, source.info(), list(every))
    task, given = _labelled(task, rows)
    parts = {
        name: {
            split: [examples.example(task, row, given, needs_label=name != "test") for row in found]
            for split, found in part.items()
        }
        for name, part in rows.items()
    }
    if task.kind in ("classification", "tagging") and len(task.labels) < 2:
        raise UserError(
            f"config.task.path={task.path}: all labels are {task.labels[0]}: there is nothing to tell apart"
        )
    warnings += _oddities(task, parts)
    return TaskData(task, **parts, warnings=tuple(warnings))


def _read(task: TaskConfig, source: formats.Source, splits: dict[str, dict[str, str]]) -> tuple[dict, list[str]]:
    """All rows by part and split, broken ones left out as far as the configuration allows, and what is to be said of that."""
    rows: dict[str, dict[str, list[Row]]] = {part: {} for part in splits}
    warnings = []
    for part, split, place in (
        (part, split, place) for part, places in splits.items() for split, place in places.items()
    ):
        found = list(source.rows(place))
        kept, broken = [row for row in found if not row.broken], [row.broken for row in found if row.broken]
        if not found:
            raise UserError(f"config.task.path={task.path}: {split} holds no example")
        # Predictions for a test set must be of all of it.
        if len(broken) > (0 if part == "test" else task.max_broken_fraction * len(found)):
            raise UserError(broken[0])
        if broken:
            warnings.append(
                f"{split}: {len(broken):,} of {len(found):,} lines are broken and left out, the first: {broken[0]}"
            )
        rows[part][split] = _without_placeholders(task, kept) if part == "test" else kept
    if both := rows["validation"].keys() & rows["test"].keys():
        raise UserError(
            f"config.task.test={task.test}: validation and test both have a {min(both)}; give one another name"
        )
    return rows, warnings


def _without_placeholders(task: TaskConfig, found: list[Row]) -> list[Row]:
    """Rows of a split whose labels are all -1, as TFDS and Hugging Face say that there are none, without them."""
    names = {row.named(task.label) for row in found}
    if any(str(row.values.get(name)) != "-1" for row in found for name in names):
        return found
    return [row._replace(values={k: v for k, v in row.values.items() if k not in names}) for row in found]


def _labelled(task: TaskConfig, rows: dict[str, dict[str, list[Row]]]) -> tuple[TaskConfig, Labels]:
    """The task with the names of its labels, and how the data give them."""
    if task.kind not in ("classification", "tagging"):
        return task, Labels((), False)
    of_training = list(_labels(task, rows, "train"))
    if task.labels:
        given = labels.given_as(task.labels, of_training)
    else:
        # Of all splits where words are tagged: a tag that training never shows is an error of the model, not of the data.
        every = _labels(task, rows, *rows) if task.kind == "tagging" else of_training
        given = Labels(labels.in_order(map(str, every)), False)
    names = labels.bioes(given.names) if task.kind == "tagging" and task.tags == "bioes" else given.names
    return dataclasses.replace(task, labels=names), given


def _labels(task: TaskConfig, rows: dict[str, dict[str, list[Row]]], *parts: str) -> Iterable[Any]:
    """Labels, or tags, of some parts of the data; what has none is passed over, but for training."""
    for part in parts:
        for row in itertools.chain.from_iterable(rows[part].values()):
            if task.kind == "tagging":
                yield from examples.tags(task, row, False) or ()
            elif part == "train":
                yield examples.field(row, task.label)


def _oddities(task: TaskConfig, parts: dict[str, dict[str, list[Example]]]) -> Iterable[str]:
    if task.kind == "classification":
        seen = {example.label for found in parts["train"].values() for example in found}
        never = [name for index, name in enumerate(task.labels) if index not in seen]
        if never:
            yield f"no training example has the label{'s' * (len(never) > 1)} {', '.join(never)}"
    for split, found in itertools.chain(parts["validation"].items(), parts["test"].items()):
        missing = sum(example.label is None for example in found)
        if missing:
            yield f"{split}: {missing:,} of {len(found):,} examples have no label; it is predicted, not measured"


def _decided(task: TaskConfig, info: dict[str, Any], training: Sequence[Row]) -> TaskConfig:
    kind = task.kind
    if kind == "auto":
        said = str(info.get("kind") or "").replace("pair classification", "classification").replace(" ", "_")
        kind = said or _kind_of(training)
    if kind not in METRICS:
        raise UserError(f"config.task.kind: {kind!r}, as info.json says, is not known; known are {', '.join(METRICS)}")
    named = info.get("labels") or ()
    if not isinstance(named, (list, tuple)) or len({*map(str, named)}) < len(named):
        raise UserError(
            f"config.task.path={task.path}: labels in info.json must be a list of different names, not {named!r}"
        )
    names = task.labels or tuple(map(str, named))
    metric = task.metric or str(info.get("metric") or METRICS[kind])
    if kind in ("classification", "regression") and not task.text:
        # Said, so that one text is never taken for two.
        is_pair = "text_a" in training[0].values
        task = dataclasses.replace(
            task, text="text_a" if is_pair else "text", text_pair=task.text_pair or ("text_b" if is_pair else "")
        )
    task = dataclasses.replace(task, kind=kind, labels=names, metric=metric)
    check_windows(task)
    return task


def _kind_of(rows: Sequence[Row]) -> str:
    first = rows[0].values
    if "question" in first and "context" in first:
        return "question_answering"
    if any(isinstance(row.values.get("label"), float) for row in rows):
        return "regression"
    return "tagging" if "tokens" in first else "classification"
