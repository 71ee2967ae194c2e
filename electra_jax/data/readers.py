"""Documents out of pieces of files: plain text, JSON lines, Parquet, Arrow and the records of TFDS.

What cannot be read as text comes as `Broken`, with its place in the file, and ends nothing. A file that cannot be
decompressed, or is not of its kind at all, is a `UserError`: how much of it is missing cannot be known.
"""

import contextlib
import gzip
import json
import lzma
import struct
import zlib
from collections.abc import Iterable, Iterator
from typing import IO, NamedTuple

import zstandard

from electra_jax.data import compressed, sources
from electra_jax.data.sources import TO_THE_END, FileRange
from electra_jax.errors import UserError

EMPTY = "empty document"
# The most bytes of a line, or of a document between blank lines, since it is held in memory.
_LARGEST = 64 * 2**20
# Up to this many bytes into a file, a place is named by its line, for which the lines before it are counted.
_COUNTED = 256 * 2**20


class Broken(NamedTuple):
    """A document that cannot be used."""

    path: str
    place: int  # bytes before its line, or its row, from 0
    unit: str  # line or row
    why: str


def documents(pieces: Iterable[FileRange], separator: str) -> Iterator[str | Broken]:
    """Every document of the pieces, stripped, in order; what is broken or empty as `Broken`.

    Args:
      pieces: of a shard.
      separator: `data.document_separator`, for plain text.
    """
    for piece in pieces:
        for found in _read(piece, separator):
            yield found if isinstance(found, Broken) else _stripped(piece, *found)


def where(broken: Broken) -> str:
    """`FILE, line N`; far into a file `FILE, byte N`, since counting lines takes reading all that is before."""
    if broken.unit == "row":
        return f"{broken.path}, row {broken.place + 1}"
    if broken.place > _COUNTED:
        return f"{broken.path}, byte {broken.place:,}"
    left, lines = broken.place, 1
    with compressed.open_file(broken.path) as file:
        while left and (block := file.read(min(left, 1 << 20))):
            lines += block.count(b"\n")
            left -= len(block)
    return f"{broken.path}, line {lines}"


def _read(piece: FileRange, separator: str) -> Iterator[tuple[int, str] | Broken]:
    """(place, text) of each document."""
    match piece.kind:
        case "text":
            return _text_lines(piece) if separator == "line" else _paragraphs(piece)
        case "json_lines":
            return _json_lines(piece)
        case "parquet":
            return _parquet(piece)
        case "arrow":
            return _arrow(piece)
        case _:
            return _examples(piece)


def _stripped(piece: FileRange, place: int, text: str) -> str | Broken:
    stripped = text.strip()
    unit = "line" if piece.kind in ("text", "json_lines") else "row"
    return stripped or Broken(piece.path, place, unit, EMPTY)


def _lines(path: str, start: int) -> Iterator[tuple[int, bytes | Broken]]:
    """The lines that begin at byte `start` or later, each with the byte where it begins; one that is too long as `Broken`."""
    number = 0
    try:
        with compressed.open_file(path) as file:
            place = 0
            if start:
                file.seek(start - 1)
                place = start - 1 + _skip_line(file)
            while line := file.readline(_LARGEST):
                number += 1
                if len(line) == _LARGEST and not line.endswith(b"\n"):
                    why = f"a line of more than {_LARGEST / 2**20:.0f} MB; of JSON, each line is an object, not the file a list"
                    yield place, Broken(path, place, "line", why)
                    place += len(line) + _skip_line(file)
                    continue
                yield place, line
                place += len(line)
    except (EOFError, gzip.BadGzipFile, zlib.error, lzma.LZMAError, zstandard.ZstdError) as error:
        raise UserError(
            f"{path}, after line {number}: cannot be decompressed ({error}); the file is broken or cut short"
        ) from None


def _skip_line(file: IO[bytes]) -> int:
    """Reads to the end of a line; returns how many bytes that took."""
    count = 0
    while part := file.readline(1 << 20):
        count += len(part)
        if part.endswith(b"\n"):
            break
    return count


def _decoded(path: str, place: int, line: bytes | Broken, unit: str = "line") -> str | Broken:
    if isinstance(line, Broken):
        return line
    try:
        return line.decode("utf-8-sig" if place == 0 else "utf-8")
    except UnicodeDecodeError as error:
        return Broken(path, place, unit, f"not UTF-8 (byte {error.object[error.start]:#04x})")


def _lines_within(piece: FileRange) -> Iterator[tuple[int, bytes | Broken]]:
    for place, line in _lines(piece.path, piece.start):
        if piece.stop != TO_THE_END and place >= piece.stop:
            return
        if isinstance(line, Broken) or line.strip():
            yield place, line


def _text_lines(piece: FileRange) -> Iterator[tuple[int, str] | Broken]:
    for place, line in _lines_within(piece):
        text = _decoded(piece.path, place, line)
        yield text if isinstance(text, Broken) else (place, text)


def _paragraphs(piece: FileRange) -> Iterator[tuple[int, str] | Broken]:
    """Documents between blank lines. One belongs to the piece in which the blank line before it begins."""
    begins = piece.start == 0
    paragraph: list[str] = []
    first, size, broken = 0, 0, None

    def finished() -> Iterator[tuple[int, str] | Broken]:
        if broken:
            yield broken
        elif paragraph:
            yield first, "".join(paragraph)

    for place, line in _lines(piece.path, piece.start):
        is_past = piece.stop != TO_THE_END and place >= piece.stop
        if isinstance(line, Broken) or line.strip():
            if begins:
                text = _decoded(piece.path, place, line)
                length = 0 if isinstance(line, Broken) else len(line)
                first, size = (first, size + length) if paragraph else (place, length)
                if size > _LARGEST:
                    paragraph = paragraph[:1]
                    why = f"a document of more than {_LARGEST / 2**20:.0f} MB; data.document_separator=line makes each line one"
                    broken = broken or Broken(piece.path, first, "line", why)
                elif isinstance(text, Broken):
                    broken = broken or text
                else:
                    paragraph.append(text)
            elif is_past:
                return
            continue
        yield from finished()
        paragraph, broken, begins = [], None, True
        if is_past:
            return
    yield from finished()


def _json_lines(piece: FileRange) -> Iterator[tuple[int, str] | Broken]:
    for place, line in _lines_within(piece):
        decoded = _decoded(piece.path, place, line)
        if isinstance(decoded, Broken):
            yield decoded
            continue
        try:
            row = json.loads(decoded)
        except (ValueError, RecursionError) as error:  # also of numbers with thousands of digits
            why = f"{error.msg} at column {error.colno}" if isinstance(error, json.JSONDecodeError) else str(error)
            yield Broken(piece.path, place, "line", f"not JSON ({why})")
            continue
        text = row.get(piece.field) if isinstance(row, dict) else None
        if not isinstance(text, str):
            fields = ", ".join(row) if isinstance(row, dict) else f"none: the line is a {type(row).__name__}"
            why = f"no text in field {piece.field!r} (fields: {fields}); see config.data.text_field"
            yield Broken(piece.path, place, "line", why)
        elif not text.isascii() and any("\ud800" <= character <= "\udfff" for character in text):
            yield Broken(
                piece.path, place, "line", "half of a surrogate pair (\\ud800 to \\udfff), which is no character"
            )
        else:
            yield place, text


def _parquet(piece: FileRange) -> Iterator[tuple[int, str] | Broken]:
    import pyarrow.parquet

    with sources.open_file(piece.path) as opened, _named(piece.path):
        file = pyarrow.parquet.ParquetFile(opened)
        row = sum(file.metadata.row_group(i).num_rows for i in range(piece.start))
        groups = list(range(piece.start, piece.stop))
        for batch in file.iter_batches(batch_size=1000, row_groups=groups, columns=[piece.field], use_threads=False):
            yield from _column(piece, row, batch)
            row += batch.num_rows


def _arrow(piece: FileRange) -> Iterator[tuple[int, str] | Broken]:
    import pyarrow

    with sources.open_file(piece.path) as opened, _named(piece.path):
        row = 0
        for batch in pyarrow.ipc.open_stream(opened):
            if piece.field not in batch.schema.names:
                fields = ", ".join(batch.schema.names)
                raise UserError(
                    f"{piece.path}: no field {piece.field!r} (fields: {fields}); set config.data.text_field"
                )
            yield from _column(piece, row, batch)
            row += batch.num_rows


@contextlib.contextmanager
def _named(path: str) -> Iterator[None]:
    import pyarrow

    try:
        yield
    except (pyarrow.ArrowException, OSError) as error:
        raise UserError(
            f"{path}: cannot be read ({str(error).splitlines()[0]}); the file is broken or cut short"
        ) from None


def _column(piece: FileRange, row: int, batch) -> Iterator[tuple[int, str] | Broken]:
    import pyarrow

    column = batch.column(batch.schema.get_field_index(piece.field))
    try:
        # As bytes: as text, one value that is not UTF-8 would make its whole batch fail.
        column = column.dictionary_decode() if pyarrow.types.is_dictionary(column.type) else column
        values = column.cast(pyarrow.large_binary())
    except pyarrow.ArrowException:
        raise UserError(
            f"{piece.path}: field {piece.field!r} holds {column.type} and no text; set config.data.text_field"
        ) from None
    for place, value in enumerate(values.to_pylist(), row):
        text = _decoded(piece.path, place, value or b"", "row")
        yield text if isinstance(text, Broken) else (place, text)


def _examples(piece: FileRange) -> Iterator[tuple[int, str] | Broken]:
    from tensorflow_datasets.proto import tf_example_pb2

    read = _array_records if piece.kind == "array_record" else _tf_records
    for place, record in enumerate(read(piece), piece.start):
        values = tf_example_pb2.Example.FromString(record).features.feature[piece.field].bytes_list.value
        text = _decoded(piece.path, place, values[0] if values else b"", "row")
        yield text if isinstance(text, Broken) else (place, text)


def _array_records(piece: FileRange) -> Iterator[bytes]:
    from array_record.python.array_record_module import ArrayRecordReader

    reader = ArrayRecordReader(piece.path)
    for start in range(piece.start, piece.stop, 1000):
        yield from reader.read(start, min(start + 1000, piece.stop))
    reader.close()


def _tf_records(piece: FileRange) -> Iterator[bytes]:
    """The records of a TFRecord file: length, its checksum, data, its checksum."""
    with sources.open_file(piece.path) as file:
        for _ in range(piece.start, piece.stop):
            head = file.read(12)
            length = struct.unpack("<Q", head[:8])[0] if len(head) == 12 else 0
            record = file.read(length + 4)
            if len(head) < 12 or len(record) < length + 4:
                raise UserError(f"{piece.path}: cut short; the data set says that it holds {piece.stop} records")
            yield record[:-4]
