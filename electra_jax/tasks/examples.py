"""Labelled examples of a task: from rows of any format to what the kinds of task are made of."""

import dataclasses
import functools
import hashlib
import itertools
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from electra_jax.errors import UserError
from electra_jax.tasks import formats
from electra_jax.tasks.config import TaskConfig, check_windows
from electra_jax.tasks.formats import Row
from electra_jax.tasks.metrics import to_bioes


class Answer(NamedTuple):
    """A span of the context."""

    text: str
    start: int  # characters before it


class Example(NamedTuple):
    """One example; what its kind has no use for is empty."""

    where: str  # file and line, for messages
    id: str
    texts: tuple[str, ...] = ()  # one or two; a question and its context
    words: tuple[str, ...] = ()  # of a sentence that is tagged
    label: Any = None  # an index, a number, an index a word, or answers; None where it is not known


@dataclasses.dataclass(frozen=True)
class TaskData:
    """The splits of a task.

    Attributes:
      task: the configuration with `kind`, `metric` and `labels` decided.
      train, validation, test: examples by the name of the split; the first of each is what counts.
    """

    task: TaskConfig
    train: dict[str, list[Example]]
    validation: dict[str, list[Example]]
    test: dict[str, list[Example]]

    @functools.cached_property
    def digest(self) -> str:
        """Identifies texts and labels: sixteen characters."""
        found = hashlib.sha256()
        for name in ("train", "validation", "test"):
            for split, examples in getattr(self, name).items():
                found.update(f"{name} {split} {len(examples)}".encode())
                for one in examples:  # wherever they are
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
    rows = {name: {split: list(source.rows(place)) for split, place in found.items()} for name, found in splits.items()}
    for split, found in itertools.chain.from_iterable(part.items() for part in rows.values()):
        if not found:
            raise UserError(f"config.task.path={task.path}: {split} holds no example")
    first = next(iter(rows["train"].values()))[0]
    task = _decided(task, source.info(), first)
    if not task.labels and task.kind in ("classification", "tagging"):
        # Of all splits where words are tagged: a tag that training never shows is an error of the model, not of the data.
        parts = rows.values() if task.kind == "tagging" else [rows["train"]]
        every = itertools.chain.from_iterable(itertools.chain(*part.values()) for part in parts)
        task = dataclasses.replace(task, labels=_labels_of(task, every))
    if task.kind == "tagging" and task.tags == "bioes":
        task = dataclasses.replace(task, labels=_bioes(task.labels))
    make = functools.partial(example, task)
    parts = {
        name: {split: [make(row, needs_label=name != "test") for row in found] for split, found in part.items()}
        for name, part in rows.items()
    }
    return TaskData(task, **parts)


def of_rows(task: TaskConfig, rows: Iterable[Row]) -> list[Example]:
    """Examples without labels, to predict; raises `UserError` for what is broken."""
    return [example(task, row, needs_label=False, take_label=False) for row in rows]


def _decided(task: TaskConfig, info: dict[str, Any], first: Row) -> TaskConfig:
    kind = task.kind
    if kind == "auto":
        said = str(info.get("kind", "")).replace("pair classification", "classification").replace(" ", "_")
        kind = said or _kind_of(first)
    if kind not in METRICS:
        raise UserError(f"config.task.kind: {kind!r}, as info.json says, is not known; known are {', '.join(METRICS)}")
    named = info.get("labels", ())
    if not isinstance(named, (list, tuple)) or len({*map(str, named)}) < len(named):
        raise UserError(
            f"config.task.path={task.path}: labels in info.json must be a list of different names, not {named!r}"
        )
    labels = task.labels or tuple(map(str, named))
    metric = task.metric or str(info.get("metric", METRICS[kind]))
    if kind in ("classification", "regression") and not task.text:
        # Said, so that one text is never taken for two.
        names = {"text": "text_a", "text_pair": "text_b"} if "text_a" in first.values else {"text": "text"}
        task = dataclasses.replace(task, **names)
    task = dataclasses.replace(task, kind=kind, labels=labels, metric=metric)
    check_windows(task)
    return task


def _kind_of(row: Row) -> str:
    if "question" in row.values and "context" in row.values:
        return "question_answering"
    if isinstance(row.values.get("label"), float):
        return "regression"
    return "tagging" if "tokens" in row.values else "classification"


def _labels_of(task: TaskConfig, rows: Iterable[Row]) -> tuple[str, ...]:
    """The labels that occur, sorted: numbers by size."""
    if task.kind == "tagging":
        found = {str(tag) for row in rows for tag in _tags(task, row, False) or ()}
    else:
        found = {str(_field(row, task.label)) for row in rows}
    return tuple(sorted(found, key=lambda name: (0, int(name), "") if name.isdigit() else (1, 0, name)))


def _bioes(labels: Sequence[str]) -> tuple[str, ...]:
    """Labels in BIO or BIOES with every prefix that a span may be spelt by."""
    names = sorted({label.partition("-")[2] for label in labels if label[:2] in ("B-", "I-", "E-", "S-")})
    others = [label for label in labels if label[:2] not in ("B-", "I-", "E-", "S-")]
    return (*others, *(f"{prefix}-{name}" for name in names for prefix in "BIES"))


def example(task: TaskConfig, row: Row, needs_label: bool = True, take_label: bool = True) -> Example:
    """One row as an example of the task; raises `UserError` for one that is broken."""
    identity = str(row.values.get("id", row.values.get("index", row.values.get("idx", row.number))))
    if task.kind == "question_answering":
        return _question(row, identity, needs_label, take_label)
    if task.kind == "tagging":
        return _sentence(task, row, identity, needs_label, take_label)
    texts = tuple(str(text) for text in _texts(task, row))
    if not any(text.strip() for text in texts):
        raise UserError(f"{row.where}: the text is empty")
    label = _optional(row, task.label, needs_label) if take_label else None
    if label is not None:
        label = _number(row, label) if task.kind == "regression" else index_of(task.labels, label, row.where)
    return Example(row.where, identity, texts, label=label)


def _texts(task: TaskConfig, row: Row) -> Sequence[Any]:
    return [_field(row, name) for name in (task.text, task.text_pair) if name]


def _question(row: Row, identity: str, needs_label: bool, take_label: bool) -> Example:
    question, context = str(_field(row, "question")), str(_field(row, "context"))
    for name, text in (("question", question), ("context", context)):
        if not text.strip():
            raise UserError(f"{row.where}: the {name} is empty")
    given = _optional(row, "answers", needs_label) if take_label else None
    if given is None:
        return Example(row.where, identity, (question, context))
    try:
        if isinstance(given, dict):  # as in Hugging Face's and TFDS's sets
            given = [{"text": t, "answer_start": s} for t, s in zip(given["text"], given["answer_start"], strict=True)]
        answers = tuple(Answer(str(answer["text"]), int(answer["answer_start"])) for answer in given)
    except (TypeError, KeyError, ValueError):
        raise UserError(
            f"{row.where}: answers must be a list of {{text, answer_start}}, not {str(given)[:80]!r}"
        ) from None
    for answer in answers:
        there = context[answer.start : answer.start + len(answer.text)]
        if there != answer.text:
            raise UserError(
                f"{row.where}: the answer {answer.text[:40]!r} is not at character {answer.start} of the context, "
                f"{there[:40]!r} is"
            )
    return Example(row.where, identity, (question, context), label=answers)


def _sentence(task: TaskConfig, row: Row, identity: str, needs_label: bool, take_label: bool) -> Example:
    words = _field(row, task.text or "tokens")
    words = words.split() if isinstance(words, str) else words
    if not isinstance(words, (list, tuple)):
        raise UserError(f"{row.where}: {task.text or 'tokens'} must be a list of words, not {str(words)[:60]!r}")
    if not words:
        raise UserError(f"{row.where}: the sentence is empty")
    tags = _tags(task, row, needs_label) if take_label else None
    if tags is not None:
        if len(tags) != len(words):
            raise UserError(f"{row.where}: {len(words)} words and {len(tags)} tags; each word must have one")
        tags = tuple(index_of(task.labels, tag, row.where) for tag in tags)
    return Example(row.where, identity, words=tuple(map(str, words)), label=tags)


def _tags(task: TaskConfig, row: Row, is_needed: bool) -> Sequence[Any] | None:
    tags = _optional(row, "tags" if task.label == "label" or "tags" in row.values else task.label, is_needed)
    if tags is not None and not isinstance(tags, (list, tuple)):
        raise UserError(f"{row.where}: the tags must be a list, one a word, not {str(tags)[:60]!r}")
    return to_bioes(list(map(str, tags))) if tags is not None and task.tags == "bioes" else tags


def index_of(labels: Sequence[str], label: Any, where: str) -> int:
    """The index of a label, given by name or by index; raises `UserError` where it is neither."""
    if isinstance(label, str) and label.isdigit() and label not in labels:
        label = int(label)
    if isinstance(label, int) and not isinstance(label, bool) and str(label) not in labels:
        if 0 <= label < len(labels):
            return label
        raise UserError(f"{where}: label {label} is not an index of the {len(labels)} labels")
    try:
        return _indices(tuple(labels))[str(label)]
    except KeyError:
        some = ", ".join(labels[:8]) + (" ..." if len(labels) > 8 else "")
        raise UserError(f"{where}: label {str(label)!r} is not one of the {len(labels)} labels: {some}") from None


@functools.cache
def _indices(labels: tuple[str, ...]) -> dict[str, int]:
    return {label: index for index, label in enumerate(labels)}


def _number(row: Row, label: Any) -> float:
    try:
        value = float(label)
    except (TypeError, ValueError):
        raise UserError(f"{row.where}: label {label!r} is not a number, which regression needs") from None
    if value != value or value in (float("inf"), float("-inf")):
        raise UserError(f"{row.where}: label {label!r} is not a finite number")
    return value


def _optional(row: Row, name: str, is_needed: bool) -> Any:
    found = row.values.get(row.named(name))
    if found is None and is_needed:
        _field(row, name)
    return found


def _field(row: Row, name: str) -> Any:
    found = row.values.get(row.named(name))
    if found is None and row.named(name) in row.values:
        raise UserError(f"{row.where}: field {row.named(name)!r} is null")
    if found is None:
        raise UserError(f"{row.where}: no field {name!r}; there are {', '.join(map(str, row.values))}")
    return found
