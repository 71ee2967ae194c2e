"""What `data.source` names: files and data sets of several kinds, cut into shards of work.

A shard is a list of pieces, each a stretch of one file. How a source is cut depends on its files alone, so any
number of workers, on any machines, make the same records of it.
"""

import glob
import hashlib
import json
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from etils import epath

from electra_jax import storage
from electra_jax.config import DataConfig
from electra_jax.errors import UserError

EMBEDDED, EMBEDDED_FILE = "embedded", "embedded_corpus.jsonl.xz"
TO_THE_END = -1
COMPRESSION = (".gz", ".xz", ".zst")
_KINDS = {".txt": "text", ".jsonl": "json_lines", ".json": "json_lines", ".ndjson": "json_lines", ".parquet": "parquet"}
# How many times larger text is assumed to be when unpacked; only used to gather small files into shards.
_UNPACKED = 4


class FileRange(NamedTuple):
    """A stretch of one file."""

    path: str
    kind: str  # text, json_lines, parquet, arrow, tfrecord, array_record
    field: str  # that holds the text
    start: int  # byte (text, json_lines), row group (parquet) or record
    stop: int  # or TO_THE_END


class Corpus(NamedTuple):
    """Text that is prepared together: one source of a mixture, or all sources where they are not mixed."""

    name: str
    elements: tuple[tuple[str, str], ...]  # what is read, and the field of it that holds the text


class Plan(NamedTuple):
    """A corpus cut into shards, and its files, described to notice that they change."""

    files: list[dict[str, Any]]
    shards: list[list[FileRange]]


def corpora(data: DataConfig) -> list[Corpus]:
    """The corpora of `data.source`: all of it, or with `data.weights` one for each comma-separated part."""
    names = split(data.source)
    fields = split(data.text_field)
    fields = fields * len(names) if len(fields) == 1 else fields
    elements = list(zip(names, fields, strict=True))
    groups = [[element] for element in elements] if data.weights else [elements]
    return [Corpus(_short_name(group[0][0]), tuple(group)) for group in groups]


def split(text: str) -> list[str]:
    """The comma-separated parts of a setting."""
    return [part.strip() for part in text.split(",") if part.strip()]


def make_plan(corpus: Corpus, shard_bytes: int) -> Plan:
    """Cuts a corpus into shards of about `shard_bytes`; a compressed file, and an Arrow file, stays whole.

    Raises:
      UserError: where a part names nothing that can be read.
    """
    shards: list[list[FileRange]] = [[]]
    size = 0
    files = _files(corpus)
    for file in files:
        for start, stop, length in file.cut(shard_bytes):
            if size and size + length > shard_bytes:
                shards.append([])
                size = 0
            shards[-1].append(FileRange(file.path, file.kind, file.field, start, stop))
            size += length
    return Plan(list(storage.in_parallel(describe, list(dict.fromkeys(file.path for file in files)))), shards)


def changed_files(corpus: Corpus, before: Sequence[dict[str, Any]]) -> list[str]:
    """The files that differ from `before` (`Plan.files`), new and lost ones included; raises `UserError` like `make_plan`."""
    named = {file["name"]: file for file in before}
    paths = list(dict.fromkeys(file.path for file in _files(corpus, download=False)))
    same = storage.in_parallel(lambda path: _is_as(path, named.get(path)), paths)
    return [path for path, is_same in zip(paths, same) if not is_same] + [*named.keys() - {*paths}]


def open_file(path: str):
    """A file of a source, for reading bytes; raises `UserError` where it is gone, or may not be read."""
    if path == EMBEDDED:
        return open(Path(__file__).with_name(EMBEDDED_FILE), "rb")
    try:
        return epath.Path(path).open("rb") if storage.is_remote(path) else open(path, "rb")
    except PermissionError as error:
        raise UserError(f"config.data.source: {path} may not be read ({error.strerror or error})") from None
    except FileNotFoundError:
        raise UserError(
            f"config.data.source: {path} is not there, and not all that these settings need has been made of it yet"
        ) from None


def describe(path: str) -> dict[str, Any]:
    """Name, size, a digest and the time of the last change of a file, to notice that it changed.

    Of a large file the digest covers 64 evenly spaced blocks of 64 KiB, both ends among them; in a bucket, where each block
    would be a request, the time of the upload takes its place.
    """
    size, modified = _size_and_time(path)
    if storage.is_remote(path):
        return {"name": path, "bytes": size, "digest": str(modified), "modified": modified}
    digest = hashlib.sha256()
    with open_file(path) as file:
        for i in range(64):
            file.seek(max(0, size - 65536) * i // 63)
            digest.update(file.read(65536))
    return {"name": path, "bytes": size, "digest": digest.hexdigest()[:16], "modified": modified}


def lasting(files: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The part of `describe` that stays the same when files are removed and put back; in a bucket, only if they stayed there."""
    return [{**file, "modified": None} for file in files]


def _size_and_time(path: str) -> tuple[int, int]:
    if storage.is_remote(path):
        stat = epath.Path(path).stat()
        return stat.length, int(stat.mtime or 0)
    stat = os.stat(Path(__file__).with_name(EMBEDDED_FILE) if path == EMBEDDED else path)
    return stat.st_size, stat.st_mtime_ns


def _is_as(path: str, before: dict[str, Any] | None) -> bool:
    if before is None:
        return False
    if _size_and_time(path) == (before["bytes"], before["modified"]):
        return True
    now = describe(path)  # may have been copied or touched
    return (now["bytes"], now["digest"]) == (before["bytes"], before["digest"])


class _File(NamedTuple):
    path: str
    kind: str
    field: str
    cut: Callable[[int], list[tuple[int, int, int]]]  # bytes of a shard -> start, stop, bytes of text (about)


def _files(corpus: Corpus, download: bool = True) -> list[_File]:
    """The files of a corpus, each once for each field that is read of it."""
    found: dict[tuple[str, str], _File] = {}
    for name, field in corpus.elements:
        for file in _files_of(name, field, download):
            found.setdefault((file.path, field), file)
    return list(found.values())


def _files_of(name: str, field: str, download: bool) -> Iterator[_File]:
    if name.startswith("tfds:"):
        return _tfds(*_builder(name.removeprefix("tfds:"), download), name, field)
    if name == EMBEDDED:
        return iter([_File(EMBEDDED, "json_lines", field, _whole(_UNPACKED))])
    folder = storage.absolute(name)
    if "*" not in name and folder.is_dir():
        return _folder(folder, name, field)
    return (_file(path, field) for path in _matching(name))


def _whole(size: int) -> Callable[[int], list[tuple[int, int, int]]]:
    return lambda shard_bytes: [(0, TO_THE_END, size)]


def _matching(pattern: str) -> list[str]:
    """The files that a name or glob matches, sorted."""
    if storage.is_remote(pattern):
        head, star, tail = pattern.partition("*")
        root, _, first = head.rpartition("/")
        found = epath.Path(root).glob(first + star + tail) if star else [epath.Path(pattern)]
        paths = sorted(os.fspath(path) for path in found if path.exists() and not path.is_dir())
    else:
        path = os.path.expanduser(pattern)
        found = [path] if os.path.isfile(path) else glob.glob(path, recursive=True)  # [] may be part of a name
        paths = sorted(path for path in found if os.path.isfile(path))
    if not paths:
        raise UserError(f"config.data.source: {pattern!r} names no file")
    return paths


def _file(path: str, field: str) -> _File:
    suffixes = Path(path).suffixes[-2:] or [""]
    is_compressed = suffixes[-1] in COMPRESSION
    kind = _KINDS.get(suffixes[0] if is_compressed else suffixes[-1])
    if kind is None or (is_compressed and (kind == "parquet" or len(suffixes) < 2)):
        raise UserError(
            f"config.data.source: {path} is of a kind that is not read; use .txt or .jsonl, plain or .gz, .xz, .zst, or .parquet"
        )
    if kind == "parquet":
        return _File(path, kind, field, lambda shard_bytes: _row_groups(path, field))
    size = storage.size(path)
    if is_compressed:
        return _File(path, kind, field, _whole(_UNPACKED * size))

    def stretches(shard_bytes: int) -> list[tuple[int, int, int]]:
        starts = range(0, max(size, 1), shard_bytes)
        return [(start, min(start + shard_bytes, size), min(shard_bytes, size - start)) for start in starts]

    return _File(path, kind, field, stretches)


def _row_groups(path: str, field: str) -> list[tuple[int, int, int]]:
    import pyarrow
    import pyarrow.parquet

    try:
        with open_file(path) as file:
            metadata = pyarrow.parquet.ParquetFile(file).metadata
    except pyarrow.ArrowException as error:
        raise UserError(f"config.data.source: {path} is no Parquet file ({_first_line(error)})") from None
    columns = metadata.schema.to_arrow_schema().names
    if field not in columns:
        raise UserError(_no_field(path, field, columns))
    paths = [metadata.schema.column(i).path for i in range(metadata.num_columns)]  # of a nested column, several
    number = next(i for i, column in enumerate(paths) if column == field or column.startswith(f"{field}."))
    sizes = [metadata.row_group(i).column(number).total_uncompressed_size for i in range(metadata.num_row_groups)]
    return [(i, i + 1, size) for i, size in enumerate(sizes)]


def _folder(folder: epath.Path, name: str, field: str) -> Iterator[_File]:
    """A data set that Hugging Face's `save_to_disk` or TFDS wrote."""
    if (folder / "dataset_dict.json").exists():
        splits = json.loads((folder / "dataset_dict.json").read_text())["splits"]
        if "train" not in splits:
            raise UserError(
                f"config.data.source: {name} has splits {', '.join(splits)} and no 'train'; name the folder of one"
            )
        folder /= "train"
    if (folder / "state.json").exists():
        state = json.loads((folder / "state.json").read_text())
        if state.get("_indices_data_files"):
            raise UserError(f"config.data.source: {name} selects rows by an index; save flatten_indices() of it")
        for file in state["_data_files"]:
            path = os.fspath(folder / file["filename"])
            yield _File(path, "arrow", field, _whole(storage.size(path)))
        return
    if (folder / "features.json").exists():
        import tensorflow_datasets as tfds

        yield from _tfds(tfds.builder_from_directory(os.fspath(folder)), "train", name, field)
        return
    raise UserError(
        f"config.data.source: {name!r} names no file; it is a folder, and no data set of Hugging Face or TFDS: name files, or a "
        f"glob such as {os.path.join(name, '*.txt')}"
    )


def _builder(text: str, download: bool) -> tuple[Any, str]:
    """The TFDS data set `NAME` or `NAME@SPLIT` and the split; raises `UserError` where it is not there, nor to be downloaded."""
    import tensorflow_datasets as tfds

    name, _, split_name = text.partition("@")
    try:
        builder = tfds.builder(name)
        if download and not builder.is_prepared():
            builder.download_and_prepare()
    except ImportError as error:
        raise UserError(
            f"config.data.source: tfds:{name} has to be downloaded, which needs an extra: pip install 'electra_jax[tensorflow]' "
            f"({_first_line(error)})"
        ) from None
    except Exception as error:  # each data set has its own ways to fail
        raise UserError(f"config.data.source: tfds:{name} cannot be had: {_first_line(error)}") from None
    if not builder.is_prepared():
        raise UserError(f"config.data.source: tfds:{name} is not here")
    return builder, split_name or "train"


def _tfds(builder: Any, split_name: str, name: str, field: str) -> Iterator[_File]:
    info = builder.info
    if split_name not in info.splits:
        raise UserError(f"config.data.source: {name} has splits {', '.join(info.splits)} and no {split_name!r}")
    if field not in info.features:
        raise UserError(_no_field(name, field, sorted(info.features)))
    kind = info.file_format.value
    if kind not in ("tfrecord", "array_record"):
        raise UserError(f"config.data.source: {name} is stored as {kind}; tfrecord and array_record are read")
    for instruction in info.splits[split_name].file_instructions:
        yield _records(os.fspath(instruction.filename), kind, field, instruction.take)


def _records(path: str, kind: str, field: str, count: int) -> _File:
    size = storage.size(path)

    def stretches(shard_bytes: int) -> list[tuple[int, int, int]]:
        at_once = max(1, count * shard_bytes // max(size, 1)) if kind == "array_record" else max(1, count)
        return [
            (start, min(start + at_once, count), at_once * size // max(count, 1)) for start in range(0, count, at_once)
        ]

    return _File(path, kind, field, stretches)


def _no_field(path: str, field: str, fields: list[str]) -> str:
    return f"{path}: no field {field!r} (fields: {', '.join(fields)}); set config.data.text_field"


def _short_name(source: str) -> str:
    stem = Path(source.removeprefix("tfds:").rstrip("/")).name.split(".")[0].strip("*")
    return "".join(c if c.isalnum() or c in "_-" else "_" for c in stem) or "text"


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
