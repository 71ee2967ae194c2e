"""The data of a task: its splits, its labels, and what is odd about them."""

import dataclasses
import functools
import hashlib
import itertools
import re
from collections.abc import Iterable, Sequence
from typing import Any

from electra_jax.errors import UserError
from electra_jax.tasks import examples, formats, labels
from electra_jax.tasks.config import TaskConfig, check_windows
from electra_jax.tasks.examples import TaskExample
from electra_jax.tasks.formats import Row
from electra_jax.tasks.labels import Labels

_DEFAULT_METRIC = {
    "classification": "accuracy", "regression": "spearman", "tagging": "accuracy", "question_answering": "f1"
}  # fmt: skip
_DEFAULT_METRIC_OF_SPANS = "span_f1"  # most words are in no span: nearly all tags may be right, but no span


@dataclasses.dataclass(frozen=True)
class TaskData:
    """The splits of a task.

    Attributes:
      task: the configuration with `kind`, `metric` and `labels` decided.
      train, validation, test: examples by the name of the split; the first of each is what counts.
      warnings: of what is odd about the data and no reason to refuse them.
    """

    task: TaskConfig
    train: dict[str, list[TaskExample]]
    validation: dict[str, list[TaskExample]]
    test: dict[str, list[TaskExample]]
    warnings: tuple[str, ...] = ()

    @functools.cached_property
    def digest(self) -> str:
        """Identifies texts and labels: sixteen characters."""
        found = hashlib.sha256()
        for name in ("train", "validation", "test"):
            for split, there in getattr(self, name).items():
                found.update(f"{name} {split} {len(there)}".encode())
                for one in there:  # without `where`: moved files are the same data
                    found.update(repr(one[1:]).encode())
        return found.hexdigest()[:16]


def load(task: TaskConfig) -> TaskData:
    """Reads all splits of a task.

    Raises:
      UserError: for what is missing, broken or meaningless, named by file and line.
    """
    source = formats.TaskSource(task)
    splits = {name: source.splits(name) for name in ("train", "validation", "test")}
    if not splits["train"]:
        raise UserError(f"config.task.path={task.path}: nothing to train on there; {source.expected('train')}")
    rows: dict[str, dict[str, list[Row]]] = {}
    warnings: list[str] = []
    for part, places in splits.items():
        # Predictions for a test set must cover all of it.
        fraction = 0.0 if part == "test" else task.max_broken_fraction
        rows[part] = {split: _read(task, source, split, place, fraction, warnings) for split, place in places.items()}
    if both := rows["validation"].keys() & rows["test"].keys():
        raise UserError(
            f"config.task.test={task.test}: {min(both)} stands for validation and test; list it under one of them"
        )
    task = _decided(task, source.info(), [row for found in rows["train"].values() for row in found])
    of_training = list(_labels(task, rows["train"]))
    if not {*map(str, of_training)} & _NONE:
        rows["test"] = {split: _without_placeholders(task, found) for split, found in rows["test"].items()}
    given = _given(task, source, rows, of_training)
    if of_training and (header := _header(task, rows["train"], of_training)):
        warnings.append(header)
    task = task if given is None else dataclasses.replace(task, labels=given.predicted)
    if not task.metric:
        of_spans = task.kind == "tagging" and labels.are_of_spans(task.labels)
        task = dataclasses.replace(task, metric=_DEFAULT_METRIC_OF_SPANS if of_spans else _DEFAULT_METRIC[task.kind])
    parts = {
        name: {
            split: [examples.example(task, row, given, needs_label=name != "test") for row in found]
            for split, found in part.items()
        }
        for name, part in rows.items()
    }
    if task.kind == "question_answering" and all(e.label for found in parts["train"].values() for e in found):
        # If every question in training has an answer, a test split without any is one whose answers are withheld.
        for split, found in parts["test"].items():
            if not any(example.label for example in found):
                parts["test"][split] = [example._replace(label=None) for example in found]
    for split, found in parts["test"].items():
        missing = sum(example.label is None for example in found)
        if 0 < missing < len(found):
            warnings.append(f"{split}: {missing:,} of {len(found):,} examples have no label, so none of it is measured")
    return TaskData(task, **parts, warnings=tuple(warnings))


def _read(
    task: TaskConfig, source: formats.TaskSource, split: str, place: str, fraction: float, warnings: list[str]
) -> list[Row]:
    """The rows of a split, up to `fraction` of them left out because they are broken; `warnings` says so."""
    found = list(source.rows(place))
    if not found:
        raise UserError(f"config.task.path={task.path}: {split} holds no example")
    broken = [row.broken for row in found if row.broken]
    if len(broken) > fraction * len(found):
        raise UserError(
            f"{broken[0]} ({len(broken):,} of {len(found):,} lines are broken, at most {fraction:g} of them may be)"
        )
    if broken:
        warnings.append(
            f"{split}: {len(broken):,} of {len(found):,} lines are broken and left out, the first: {broken[0]}"
        )
    return [row for row in found if not row.broken]


# Placeholders for missing labels, if a whole split has them: TFDS's integers and floats, Hugging Face's, an empty column.
_NONE = {"-1", "-1.0", ""}


def _without_placeholders(task: TaskConfig, found: list[Row]) -> list[Row]:
    def stands_for_none(value: Any) -> bool:
        values = value if isinstance(value, (list, tuple)) else [value]
        return all(str(one) in _NONE for one in values)

    names = {examples.label_name(task, row) for row in found}
    if not all(stands_for_none(row.values.get(name)) for row in found for name in names):
        return found
    return [row._replace(values={k: v for k, v in row.values.items() if k not in names}) for row in found]


def _given(
    task: TaskConfig, source: formats.TaskSource, rows: dict[str, dict[str, list[Row]]], of_training: list[Any]
) -> Labels | None:
    """How the data give labels; None for a task that has none."""
    if task.kind not in ("classification", "tagging"):
        return None
    names = task.labels
    if not names:
        # In tagging, those of all splits: a tag that training never shows is then the model's error, not the data's.
        parts = rows.values() if task.kind == "tagging" else ()
        names = labels.in_order(map(str, itertools.chain(of_training, *(_labels(task, part) for part in parts))))
        return Labels(names, as_bioes=task.tags == "bioes")
    # TFDS's classes are numbered, whatever their names.
    numbered = source.is_tfds and all(isinstance(label, int) for label in of_training)
    return Labels(names, numbered or labels.are_indices(names, of_training), task.tags == "bioes")


def _header(task: TaskConfig, training: dict[str, list[Row]], of_training: list[Any]) -> str | None:
    """A warning where the first line of a table, whose columns go by number, seems to be their names."""
    first, label = next(iter(training.values()))[0], of_training[0]
    is_numbered = task.kind == "classification" and not task.labels and all(map(str.isdecimal, first.values))
    if not is_numbered or of_training.count(label) > 1 or len(of_training) < 3:
        return None
    return (
        f"{first.where} alone has the label {label!r}; if that line is the columns' names, set config.task.text and "
        "config.task.label to names of these"
    )


def _labels(task: TaskConfig, part: dict[str, list[Row]]) -> Iterable[Any]:
    """All labels, or tags; rows without any are skipped."""
    for row in itertools.chain.from_iterable(part.values()):
        if task.kind == "tagging":
            yield from examples.tags(task, row, False) or ()
        elif task.kind != "question_answering" and (label := examples.given_label(task, row, False)) is not None:
            yield label


def _decided(task: TaskConfig, info: dict[str, Any], training: Sequence[Row]) -> TaskConfig:
    kind = task.kind
    if kind == "auto":
        said = str(info.get("kind") or "").replace("pair classification", "classification").replace(" ", "_")
        kind = said or _kind_of(task, training)
    if kind not in _DEFAULT_METRIC:
        raise UserError(
            f"config.task.kind: {kind!r}, as info.json says, is not known; known are {', '.join(_DEFAULT_METRIC)}"
        )
    named = info.get("labels") or ()
    if not isinstance(named, (list, tuple)) or len({*map(str, named)}) < len(named):
        raise UserError(
            f"config.task.path={task.path}: labels in info.json must be a list of different names, not {named!r}"
        )
    names = task.labels or tuple(map(str, named))
    metric = task.metric or str(info.get("metric") or "")
    if kind in ("classification", "regression") and not task.text:
        # Fixed here, so that a single text is never taken for a pair.
        is_pair = "text_a" in training[0].values
        task = dataclasses.replace(
            task, text="text_a" if is_pair else "text", text_pair=task.text_pair or ("text_b" if is_pair else "")
        )
    task = dataclasses.replace(task, kind=kind, labels=names, metric=metric)
    if task.submission and kind not in ("classification", "regression"):
        raise UserError(f"config.task.submission={task.submission}: GLUE takes none of {kind}; leave it out")
    check_windows(task)
    return task


_NUMBER = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?")


def _are_scores(given: Sequence[Any]) -> bool:
    """Whether labels are numbers, some with a fraction; in a table they are text."""
    texts = [label for label in given if isinstance(label, str)]
    if not texts:
        return any(isinstance(label, float) for label in given)
    return all(map(_NUMBER.fullmatch, texts)) and any(not label.lstrip("+-").isdecimal() for label in texts)


def _kind_of(task: TaskConfig, rows: Sequence[Row]) -> str:
    first = rows[0].values
    if "question" in first and "context" in first:
        return "question_answering"
    if _are_scores([row.values.get(row.named(task.label)) for row in rows]):
        return "regression"
    return "tagging" if "tokens" in first else "classification"
