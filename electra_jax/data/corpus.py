"""Text sources: documents from plain text and JSON lines, compressed or not, and the embedded corpus."""

import glob
import gzip
import hashlib
import heapq
import io
import json
import lzma
import os
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import zstandard

from electra_jax.config import DataConfig
from electra_jax.errors import UserError

_EMBEDDED = Path(__file__).with_name("embedded_corpus.jsonl.xz")
_COMPRESSION = (".gz", ".xz", ".zst")
_JSON_LINES = (".jsonl", ".json", ".ndjson")


def source_files(source: str) -> list[Path]:
    """The files that `data.source` names, each glob sorted, in the order given and each once.

    Raises:
      UserError: where a part names no file, or a file of a kind that is not read.
    """
    files: list[Path] = []
    for part in (p.strip() for p in source.split(",") if p.strip()):
        if part == "embedded":
            files.append(_EMBEDDED)
            continue
        found = [Path(p) for p in sorted(glob.glob(os.path.expanduser(part), recursive=True)) if os.path.isfile(p)]
        if not found:
            hint = "; name files or a glob such as " + os.path.join(part, "*.txt") if os.path.isdir(part) else ""
            raise UserError(f"config.data.source: {part!r} names no file{hint}")
        files += found
    for path in files:
        if _kind(path) not in (*_JSON_LINES, ".txt"):
            raise UserError(
                f"config.data.source: {path} is of a kind that is not read; use .txt or .jsonl, plain or .gz, .xz, .zst"
            )
    return list(dict.fromkeys(files))


def describe_files(source: str) -> list[dict[str, object]]:
    """Name, size and a digest of every source file, to notice that a source changed.

    Of a large file the digest covers 64 evenly spaced blocks of 64 KiB, both ends among them.
    """
    described = []
    for path in source_files(source):
        size = path.stat().st_size
        digest = hashlib.sha256()
        with open(path, "rb") as file:
            for i in range(64):
                file.seek(max(0, size - 65536) * i // 63)
                digest.update(file.read(65536))
        name = path.name if path == _EMBEDDED else str(path)
        described.append({"name": name, "bytes": size, "digest": digest.hexdigest()[:16]})
    return described


def documents(config: DataConfig) -> Iterator[str]:
    """Every document of the source, stripped, in file order; empty ones are passed over.

    Raises:
      UserError: names file and line of text that is not UTF-8, not JSON, or lacks the text field.
    """
    for path in source_files(config.source):
        read = _json_documents if _kind(path) in _JSON_LINES else _text_documents
        yield from (stripped for text in read(path, config) if (stripped := text.strip()))


def document_digest(text: str) -> int:
    """A 64-bit hash of a document's text: what decides on the held-out split and on samples."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


def is_held_out(text: str, config: DataConfig) -> bool:
    """Whether a document belongs to the held-out split: a function of its text alone."""
    return document_digest(text) < config.validation_fraction * 2**64


def sample(config: DataConfig, num_bytes: int) -> list[str]:
    """About `num_bytes` of training text, drawn evenly over all files, the same for the same source.

    One pass that keeps the documents of smallest hash (salted, so that the held-out split, which goes by
    the plain hash, is no part of the choice); memory is bounded by `num_bytes`.
    """
    heap: list[tuple[int, str]] = []
    held = 0
    for text in documents(config):
        if is_held_out(text, config):
            continue
        size = len(text.encode())
        rank = -document_digest("sample:" + text)
        heapq.heappush(heap, (rank, text))
        held += size
        while held - len(heap[0][1].encode()) >= num_bytes:
            held -= len(heapq.heappop(heap)[1].encode())
    return [text for _, text in sorted(heap, reverse=True)]


def _kind(path: Path) -> str:
    return Path(path.stem).suffix if path.suffix in _COMPRESSION else path.suffix


def _open(path: Path) -> IO[bytes]:
    match path.suffix:
        case ".gz":
            return gzip.open(path, "rb")
        case ".xz":
            return lzma.open(path, "rb")
        case ".zst":
            return io.BufferedReader(_ZstdFile(path))
        case _:
            return open(path, "rb")


class _ZstdFile(io.RawIOBase):
    """Reads a .zst file of one or more frames; unlike `zstandard.open` it raises EOFError where it is cut short."""

    def __init__(self, path: Path):
        self._file = open(path, "rb")  # noqa: SIM115, closed with this object
        self._frame, self._rest, self._ready = None, b"", b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer) -> int:
        while not self._ready:
            data = self._rest or self._file.read(1 << 20)
            if not data:
                if self._frame is not None:
                    raise EOFError("the last frame is not complete")
                return 0
            if self._frame is None:
                self._frame = zstandard.ZstdDecompressor().decompressobj()
            self._ready, self._rest = self._frame.decompress(data), b""
            if self._frame.eof:
                self._frame, self._rest = None, self._frame.unused_data
        count = min(len(buffer), len(self._ready))
        buffer[:count], self._ready = self._ready[:count], self._ready[count:]
        return count

    def close(self) -> None:
        self._file.close()
        super().close()


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    number = 0
    try:
        with _open(path) as file:
            for number, line in enumerate(file, 1):
                yield number, line.decode("utf-8-sig" if number == 1 else "utf-8")
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path}, line {number}: not UTF-8 (byte {error.object[error.start]:#04x}); convert the file to UTF-8"
        ) from None
    except (EOFError, gzip.BadGzipFile, zlib.error, lzma.LZMAError, zstandard.ZstdError) as error:
        raise UserError(
            f"{path}, after line {number}: cannot be decompressed ({error}); the file is broken or cut short"
        ) from None


def _json_documents(path: Path, config: DataConfig) -> Iterator[str]:
    for number, line in _lines(path):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise UserError(
                f"{path}, line {number}: not JSON ({error.msg} at column {error.colno}); each line must be one JSON object"
            ) from None
        text = row.get(config.text_field) if isinstance(row, dict) else None
        if not isinstance(text, str):
            names = ", ".join(row) if isinstance(row, dict) else f"none: the line is a {type(row).__name__}"
            raise UserError(
                f"{path}, line {number}: no text in field {config.text_field!r} (fields: {names}); set config.data.text_field"
            )
        if not text.isascii() and any("\ud800" <= character <= "\udfff" for character in text):
            raise UserError(
                f"{path}, line {number}: half of a surrogate pair (\\ud800 to \\udfff), which is no character"
            )
        yield text


def _text_documents(path: Path, config: DataConfig) -> Iterator[str]:
    if config.document_separator == "line":
        yield from (line for _, line in _lines(path))
        return
    paragraph: list[str] = []
    for _, line in _lines(path):
        if line.strip():
            paragraph.append(line)
        else:
            yield "".join(paragraph)
            paragraph = []
    yield "".join(paragraph)
