"""Examples of a task: rows of any format, turned into what the kinds of task work on."""

import json
import math
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from electra_jax.errors import UserError
from electra_jax.tasks.config import TaskConfig
from electra_jax.tasks.formats import Row
from electra_jax.tasks.labels import Labels, is_text


class Answer(NamedTuple):
    """A span of the context."""

    text: str
    start: int  # characters before it


class TaskExample(NamedTuple):
    """One example; fields that its kind does not use are empty."""

    where: str  # file and line, for messages
    id: str
    texts: tuple[str, ...] = ()  # one or two; a question and its context
    words: tuple[str, ...] = ()  # of a sentence that is tagged
    label: Any = None  # an index, a number, an index a word, or answers; None where it is not known


def are_labelled(found: Iterable[TaskExample]) -> bool:
    """Whether all have a label, so that the split can be measured."""
    return all(example.label is not None for example in found)


def of_rows(task: TaskConfig, rows: Iterable[Row]) -> list[TaskExample]:
    """Examples without labels, to predict; raises `UserError` for what is broken."""
    return [example(task, row, None, takes_label=False) for row in rows]


def example(
    task: TaskConfig, row: Row, given: Labels | None, takes_label: bool = True, needs_label: bool = False
) -> TaskExample:
    """One row as an example of the task.

    Args:
      task: decided (`data.load`).
      row: of any format.
      given: how labels are given, where the task has any.
      takes_label: whether to look at the label at all.
      needs_label: whether to refuse a row without one.

    Raises:
      UserError: for a row that is broken.
    """
    if row.broken:
        raise UserError(row.broken)
    given_ids = (row.values.get(name) for name in ("id", "index", "idx"))  # some sets have objects there
    identity = next((found for found in given_ids if isinstance(found, (str, int, float))), row.number)
    identity = _as_text(row, "id", identity)
    if task.kind == "question_answering":
        return _question(row, identity, takes_label, needs_label)
    if task.kind == "tagging":
        return _sentence(task, row, identity, given, takes_label, needs_label)
    texts = tuple(text(row, name) for name in (task.text, task.text_pair) if name)
    if not any(one.strip() for one in texts):
        raise UserError(f"{row.where}: the text is empty")
    label = given_label(task, row, needs_label) if takes_label else None
    if label is not None:
        label = _number(row, label) if given is None else given.index(label, row.where)
    return TaskExample(row.where, identity, texts, label=label)


def text(row: Row, name: str) -> str:
    """A field that is text; raises `UserError` for anything else."""
    return _as_text(row, row.named(name), field(row, name))


def _as_text(row: Row, name: str, value: Any) -> str:
    if isinstance(value, bool) or not isinstance(value, (str, int, float)) or not _is_said(value):
        raise UserError(f"{row.where}: {name} must be text, not {json.dumps(value, default=str)[:60]}")
    found = str(value)
    if not is_text(found):
        raise UserError(f"{row.where}: {name} holds half of a character, which is no text: {found[:60]!a}")
    return found


def _is_said(value: Any) -> bool:
    """Not NaN or infinite, as programs write what is missing."""
    return not isinstance(value, float) or math.isfinite(value)


def _question(row: Row, identity: str, takes_label: bool, needs_label: bool) -> TaskExample:
    question, context = text(row, "question"), text(row, "context")
    for name, found in (("question", question), ("context", context)):
        if not found.strip():
            raise UserError(f"{row.where}: the {name} is empty")
    given = _optional(row, "answers", needs_label) if takes_label else None
    if given is None:
        return TaskExample(row.where, identity, (question, context))
    try:
        if isinstance(given, dict):  # as in Hugging Face's and TFDS's sets
            given = [{"text": t, "answer_start": s} for t, s in zip(given["text"], given["answer_start"], strict=True)]
        answers = tuple(
            Answer(str(answer["text"]), int(answer["answer_start"])) for answer in given if answer["text"] != ""
        )
    except (TypeError, KeyError, ValueError, OverflowError):
        raise UserError(
            f"{row.where}: answers must be a list of {{text, answer_start}}, not {str(given)[:80]!r}"
        ) from None
    return TaskExample(
        row.where, identity, (question, context), label=tuple(_placed(one, context, row) for one in answers)
    )


# Offsets to try, since some answers in SQuAD are a character or two off from their stated start.
_BESIDE = (0, -1, 1, -2, 2)


def _placed(answer: Answer, context: str, row: Row) -> Answer:
    for start in (answer.start + beside for beside in _BESIDE):
        if start >= 0 and context.startswith(answer.text, start):
            return answer._replace(start=start)
    there = context[max(answer.start, 0) :][: len(answer.text)]
    raise UserError(
        f"{row.where}: the answer {answer.text[:40]!r} is not at character {answer.start} of the context, {there[:40]!r} is"
    )


def _sentence(
    task: TaskConfig, row: Row, identity: str, given: Labels | None, takes_label: bool, needs_label: bool
) -> TaskExample:
    name = task.text or "tokens"
    words = field(row, name)
    words = words.split() if isinstance(words, str) else words
    if not isinstance(words, (list, tuple)):
        raise UserError(f"{row.where}: {name} must be a list of words, not {str(words)[:60]!r}")
    if not words:
        raise UserError(f"{row.where}: the sentence is empty")
    words = tuple(_as_text(row, f"a word of {name}", word) for word in words)
    label = tags(task, row, needs_label) if takes_label else None
    if label is not None:
        if len(label) != len(words):
            raise UserError(f"{row.where}: {len(words)} words and {len(label)} tags; each word must have one")
        label = given.of_words(label, row.where)
    return TaskExample(row.where, identity, words=words, label=label)


def label_name(task: TaskConfig, row: Row) -> str:
    """The field of a row that holds its label, or the tags of its words."""
    return "tags" if task.kind == "tagging" and task.label == "label" else row.named(task.label)


def tags(task: TaskConfig, row: Row, is_needed: bool) -> Sequence[Any] | None:
    """The tags of a sentence as they are given; raises `UserError` where they are not a list, or needed but missing."""
    found = _optional(row, label_name(task, row), is_needed)
    if found is not None and not isinstance(found, (list, tuple)):
        raise UserError(f"{row.where}: the tags must be a list, one a word, not {str(found)[:60]!r}")
    for tag in found or ():
        _check_label(row, "a tag", tag)
    return found


def given_label(task: TaskConfig, row: Row, is_needed: bool) -> Any:
    """The label of a text as it is given; raises `UserError` where it cannot be a label, or is needed but missing."""
    found = _optional(row, task.label, is_needed)
    if found is not None:
        _check_label(row, "the label", found)
    return found


def _check_label(row: Row, what: str, label: Any) -> None:
    if label is None or isinstance(label, (list, tuple, dict)) or not str(label).strip() or not _is_said(label):
        shown = json.dumps(label, default=str)[:60]
        raise UserError(f"{row.where}: {what} must be a name or a number, not {shown}")


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
        field(row, name)
    return found


def field(row: Row, name: str) -> Any:
    """A field of a row; raises `UserError` where it is null or not there."""
    found = row.values.get(row.named(name))
    if found is None and row.named(name) in row.values:
        raise UserError(f"{row.where}: field {row.named(name)!r} is null")
    if found is None:
        raise UserError(f"{row.where}: no field {name!r}; there are {', '.join(map(str, row.values))}")
    return found
