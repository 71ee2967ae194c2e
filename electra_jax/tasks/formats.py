"""Files and data sets of labelled examples, as rows of named fields.

JSON lines keep their fields, tab-separated files their columns. SQuAD's JSON gives id, question, context and
answers; columns of words give tokens and tags.
"""

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from electra_jax.errors import UserError, missing_extra
from electra_jax.interop.weights import read_json
from electra_jax.tasks import columns
from electra_jax.tasks.config import TaskConfig


class Row(NamedTuple):
    """One example as it stands in a file."""

    where: str  # file and line
    number: int  # of the example in its split, from 0
    values: Mapping[str, Any]
    broken: str = ""  # what is wrong with the line, where it may be left out

    def named(self, name: str) -> str:
        """Of `NAME|NAME`, the first that this row has, or the first of all where it has none."""
        names = name.split("|")
        return next((one for one in names if one in self.values), names[0])


# What a folder's files are called, by the split.
_STEMS = {"train": ("train",), "validation": ("validation", "valid", "val", "dev"), "test": ("test",)}
FORMATS = {"jsonl": "jsonl", "tsv": "tsv", "conllu": "conllu", "conll": "conll", "txt": "conll", "json": "squad"}


class TaskSource:
    """The data that a task's configuration names.

    Attributes:
      is_tfds: whether it is a data set of TFDS, not a folder.
    """

    def __init__(self, task: TaskConfig):
        self._task, self._name = task, task.path.removeprefix("tfds:")
        self.is_tfds = task.path.startswith("tfds:") or task.format == "tfds"
        if self.is_tfds:
            self._builder = _tfds_builder(self._name)
            return
        self._folder = Path(task.path).expanduser()
        if not self._folder.is_dir():
            raise UserError(f"config.task.path={task.path}: no such folder")

    def expected(self, part: str) -> str:
        """What would be right, where a split is not there."""
        if self.is_tfds:
            return f"it has the splits {', '.join(self._builder.info.splits)}; set config.task.{part}"
        return f"expected {part}.jsonl, .tsv, .conllu, .conll, .txt or .json, or config.task.{part}=FILE"

    def info(self) -> dict[str, Any]:
        """What the folder's `info.json`, or the data set, says of the task; may be empty."""
        if not self.is_tfds:
            file = self._folder / "info.json"
            return read_json(file) if file.is_file() else {}
        features = self._builder.info.features
        feature = next((features[name] for name in (*self._task.label.split("|"), "tags") if name in features), None)
        names = getattr(getattr(feature, "feature", feature), "names", None)  # of a sequence's elements
        return {"labels": names} if names else {}

    def splits(self, part: str) -> dict[str, str]:
        """The splits of `train`, `validation` or `test`, by name, each with where it is."""
        given = getattr(self._task, part)
        if self.is_tfds:
            there = list(self._builder.info.splits)
            wanted = _listed(given) or [name for name in _STEMS[part] if name in there][:1]
            for name in wanted:
                if name not in there:
                    raise UserError(f"config.task.{part}={given}: {self._task.path} has {', '.join(there)}")
            return {name: name for name in wanted}
        if given:
            files = [self._folder / name for name in _listed(given)]
            for file in files:
                if not file.is_file():
                    raise UserError(f"config.task.{part}={given}: {file} is not there")
        else:
            names = (f"{stem}.{ending}" for stem in _STEMS[part] for ending in FORMATS)
            files = [self._folder / name for name in names if (self._folder / name).is_file()][:1]
        if len(files) == 1:
            return {part: str(files[0])}
        names = [file.stem for file in files]
        if len({*names}) < len(files):  # the same name in several folders, or formats
            names = [name.strip("/").replace("/", "-") for name in _listed(given)]
        if len({*names}) < len(files):
            raise UserError(f"config.task.{part}={given}: two of these would go by one name; rename a file")
        return dict(zip(names, map(str, files)))

    def rows(self, where: str) -> Iterator[Row]:
        """The rows of a split, by where it is."""
        if self.is_tfds:
            return _tfds_rows(self._builder, where)
        return rows(Path(where), self._task)


def rows(path: Path, task: TaskConfig) -> Iterator[Row]:
    """The rows of a file; raises `UserError` for what is broken, named by line."""
    kind = task.format if task.format != "auto" else FORMATS.get(path.suffix.lstrip("."), "")
    if kind in ("", "tfds"):
        raise UserError(f"{path}: what is in it does not follow from its name; set config.task.format")
    try:
        with path.open(encoding="utf-8", newline="\n") as file:
            yield from from_lines(file, str(path), kind, task)
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror})") from None
    except UnicodeDecodeError:
        raise UserError(_not_utf8(path)) from None


def _not_utf8(path: Path) -> str:
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            try:
                line.decode()
            except UnicodeDecodeError as error:
                return f"{path}:{number} is no UTF-8 text ({error.reason} at byte {error.start} of the line)"
    return f"{path} is no UTF-8 text"


def from_lines(lines: Iterable[str], name: str, kind: str, task: TaskConfig) -> Iterator[Row]:
    """The rows of an open file of format `kind`: jsonl, tsv, squad, conll or conllu; `name` is for messages."""
    lines = without_mark(lines)
    if kind == "jsonl":
        return _json_lines(lines, name)
    if kind == "tsv":
        return _tsv(lines, name, task)
    if kind == "squad":
        return _squad(lines, name)
    field = "tags" if task.label == "label" else task.label.split("|")[0]
    return (
        Row(where, number, {"tokens": words} if tags is None else {"tokens": words, field: tags})
        for number, (where, words, tags) in enumerate(columns.sentences(lines, name, kind, task.label))
    )


def without_mark(lines: Iterable[str]) -> Iterator[str]:
    """Lines without the byte order mark that some programs begin a file with."""
    for number, line in enumerate(lines):
        yield line if number else line.removeprefix("\ufeff")


def _json_lines(lines: Iterable[str], name: str) -> Iterator[Row]:
    number = 0
    for line_number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        where = f"{name}:{line_number}"
        try:
            values = json.loads(line)
        except json.JSONDecodeError as error:
            raise UserError(f"{where} is no JSON ({error.msg} at character {error.pos})") from None
        except (ValueError, RecursionError) as error:  # a number of thousands of digits, brackets thousands deep
            raise UserError(f"{where} cannot be read as JSON ({error})") from None
        if not isinstance(values, dict):
            raise UserError(f"{where} holds a JSON {type(values).__name__}, not an object with the example's fields")
        yield Row(where, number, values)
        number += 1


def _tsv(lines: Iterable[str], name: str, task: TaskConfig) -> Iterator[Row]:
    """As GLUE's files are: no quoting; columns go by the names in the first line, or by number where it has none of the fields."""
    wanted = {part for field in (task.text, task.text_pair, task.label) for part in field.split("|") if part}
    names, number = None, 0
    for line_number, line in enumerate(lines, 1):
        line = line.rstrip("\r\n")
        if not line:
            continue
        cells = line.split("\t")
        if names is None:
            is_header = bool({part for part in wanted | {"index", "text", "text_a"} if not part.isdecimal()} & {*cells})
            names = cells if is_header else [str(place) for place in range(len(cells))]
            if is_header:
                continue
        where = f"{name}:{line_number}"
        fits = len(cells) == len(names)
        yield Row(
            where,
            number,
            dict(zip(names, cells)),
            "" if fits else f"{where} has {len(cells)} columns, the first line {len(names)}",
        )
        number += 1


_AS_SQUAD = ".json is read as SQuAD's; of an object a line, set config.task.format=jsonl"


def _squad(lines: Iterable[str], name: str) -> Iterator[Row]:
    """The official JSON of SQuAD 1.1 and 2.0: data > paragraphs > qas."""
    number = 0
    try:
        articles = json.loads("".join(lines))["data"]
        for article in articles:
            for paragraph in article["paragraphs"]:
                for question in paragraph["qas"]:
                    where = f"{name}: question {question['id']}"
                    answers = [] if question.get("is_impossible") else question.get("answers")
                    values = {"id": question["id"], "question": question["question"], "context": paragraph["context"]}
                    yield Row(where, number, values | ({} if answers is None else {"answers": answers}))
                    number += 1
    except json.JSONDecodeError as error:
        raise UserError(f"{name}:{error.lineno} is no JSON ({error.msg}); {_AS_SQUAD}") from None
    except UnicodeDecodeError:
        raise
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise UserError(
            f"{name}, after {number:,} questions: not SQuAD's form, data > paragraphs > qas ({error!r}); {_AS_SQUAD}"
        ) from None


def _tfds_builder(name: str) -> Any:
    import tensorflow_datasets as tfds

    try:
        if Path(name).expanduser().is_dir():
            return tfds.builder_from_directory(str(Path(name).expanduser()))
        builder = tfds.builder(name, file_format="array_record")
        builder.download_and_prepare()
        return builder
    except ImportError:
        raise missing_extra(f"config.task.path=tfds:{name} has to be prepared, which", "tensorflow") from None
    except Exception as error:  # whatever a builder and its download raise
        first = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise UserError(f"config.task.path=tfds:{name} cannot be had: {first[:300]}") from None


def _tfds_rows(builder: Any, split: str) -> Iterator[Row]:
    try:
        records = builder.as_data_source(split=split)
    except NotImplementedError:  # prepared in another format than ArrayRecord
        try:
            import tensorflow_datasets as tfds

            records = tfds.as_numpy(builder.as_dataset(split=split, shuffle_files=False))
        except ImportError:
            raise UserError(
                f"config.task.path: {builder.info.full_name} is stored in a format that TensorFlow reads, an extra: "
                "pip install 'electra_jax[tensorflow]'"
            ) from None
    for number, record in enumerate(records):
        yield Row(f"{builder.info.full_name} {split}, example {number}", number, _plain(record))


def _plain(value: Any) -> Any:
    """A record of TFDS in Python's own types."""
    if isinstance(value, Mapping):
        return {name: _plain(item) for name, item in value.items()}
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    if isinstance(value, np.ndarray):
        return _plain(value.tolist())
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value.item() if isinstance(value, np.generic) else value


def _listed(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]
