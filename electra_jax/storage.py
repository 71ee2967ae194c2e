"""Files on this machine and in buckets, through etils paths; a file appears whole or not at all."""

import concurrent.futures
import contextlib
import errno
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

from etils import epath

# Where TensorFlow is installed, etils would use it for buckets: slowly, and with files unlike Python's own.
os.environ.setdefault("EPATH_USE_TF", "false")


T, R = TypeVar("T"), TypeVar("R")


def is_remote(path: str | epath.PathLike) -> bool:
    """Whether a path is in a bucket."""
    return "://" in str(path)


def absolute(path: epath.PathLike) -> epath.Path:
    """A path that means the same in every process."""
    return epath.Path(path) if is_remote(path) else epath.Path(path).expanduser().absolute()


def write(path: epath.PathLike, content: bytes | str) -> None:
    """Writes a file; a process killed meanwhile leaves what was there before, and perhaps `NAME.partial`."""
    path = epath.Path(path)
    data = content.encode() if isinstance(content, str) else content
    if is_remote(path):  # an object appears when it is complete
        path.write_bytes(data)
        return
    partial = scratch(path)
    partial.write_bytes(data)
    partial.replace(path)


def size(path: epath.PathLike) -> int:
    """Bytes of a file."""
    # etils also looks up the owner's name, which may not exist in a container.
    return epath.Path(path).stat().length if is_remote(path) else os.stat(path).st_size


def scratch(destination: epath.PathLike) -> Path:
    """Where on this machine to write a file that is then moved to `destination`."""
    if is_remote(destination):
        return Path(tempfile.gettempdir()) / f"electra_jax-{fingerprint(str(destination))}-{os.getpid()}.partial"
    return Path(f"{destination}.partial")


@contextlib.contextmanager
def new_folder(destination: epath.PathLike) -> Iterator[Path]:
    """A folder on this machine to fill, which then replaces `destination`; after a failure nothing is left of it.

    In a bucket, where nothing can be renamed, its files appear one by one.
    """
    if is_remote(destination):
        with tempfile.TemporaryDirectory() as filled:
            yield Path(filled)
            copy_folder(filled, destination)
        return
    destination = Path(destination)
    partial = Path(tempfile.mkdtemp(prefix=f".{destination.name}-", dir=destination.parent))
    try:
        yield partial
        partial.chmod(0o755)
        if destination.exists():
            shutil.rmtree(destination)
        partial.rename(destination)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def copy_folder(source: epath.PathLike, destination: epath.PathLike) -> None:
    """Copies a folder with its subfolders, replacing what was at `destination`."""
    source, destination = epath.Path(source), epath.Path(destination)
    if destination.exists():
        destination.rmtree()
    destination.mkdir(parents=True)
    for path in source.iterdir():
        if path.is_dir():
            copy_folder(path, destination / path.name)
            continue
        with path.open("rb") as there, (destination / path.name).open("wb") as here:
            shutil.copyfileobj(there, here, 1 << 24)


def move(local: Path, destination: epath.PathLike) -> None:
    """Moves a file from its `scratch` place to where it belongs."""
    if not is_remote(destination):
        local.replace(destination)
        return
    with open(local, "rb") as source, epath.Path(destination).open("wb") as target:
        shutil.copyfileobj(source, target, 1 << 24)
    local.unlink()


def in_parallel(function: Callable[[T], R], items: Sequence[T]) -> Iterator[R]:
    """`function` of each item, in order, 16 at a time: for many small files, each of which takes its time in a bucket."""
    with concurrent.futures.ThreadPoolExecutor(16) as pool:
        for first in range(0, len(items), 256):
            yield from pool.map(function, items[first : first + 256])


def is_without_locks(error: Exception) -> bool:
    """Whether an error says that a file system has no locks, such as Lustre without -o flock, or NFS without its daemon."""
    without = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP)
    return isinstance(error, NotImplementedError) or getattr(error, "errno", None) in without


def is_unreachable(error: Exception) -> bool:
    """Whether an error says that storage could not be reached or was busy, so that another try may succeed."""
    if isinstance(error, (ConnectionError, TimeoutError)):
        return True
    package, name = type(error).__module__.partition(".")[0], type(error).__name__
    if package == "gcsfs":  # its error for every HTTP status that has no exception of Python's
        code = str(getattr(error, "code", ""))
        return code in ("408", "429") or code.startswith("5")
    return package in ("aiohttp", "requests") or (package, name) == ("google", "TransportError")


def fingerprint(value: Any) -> str:
    """A hash of a JSON value in twelve characters, for the name of what was made from it."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:12]
