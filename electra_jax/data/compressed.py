"""Files that may be compressed, by their suffix, as streams of bytes."""

import gzip
import io
import lzma
from pathlib import Path
from typing import IO

import zstandard

from electra_jax import storage
from electra_jax.data import sources


def open_file(path: str) -> IO[bytes]:
    """Opens a file of a source; reading from it gives the decompressed bytes."""
    file = sources.open_file(path)
    match Path(sources.EMBEDDED_FILE if path == sources.EMBEDDED else path).suffix:
        case ".gz":
            return gzip.open(file, "rb")
        case ".xz":
            return lzma.open(file, "rb")
        case ".zst":
            return io.BufferedReader(_Zstandard(file), 1 << 20)
        case _:  # `readline` of fsspec's files takes no limit
            return io.BufferedReader(file, 1 << 20) if storage.is_remote(path) else file


class _Zstandard(io.RawIOBase):
    """Reads a .zst file of one or more frames; unlike `zstandard.open` it raises EOFError where it is cut short."""

    def __init__(self, file: IO[bytes]):
        self._file = file
        self._frame, self._rest, self._ready = None, b"", memoryview(b"")

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
                self._frame = zstandard.ZstdDecompressor(max_window_size=2**31).decompressobj()  # as of zstd --long=31
            self._ready, self._rest = memoryview(self._frame.decompress(data)), b""
            if self._frame.eof:
                self._frame, self._rest = None, self._frame.unused_data
        count = min(len(buffer), len(self._ready))
        buffer[:count], self._ready = self._ready[:count], self._ready[count:]
        return count

    def close(self) -> None:
        self._file.close()
        super().close()
