"""Files on this machine and in buckets, through etils paths; a file appears whole or not at all."""

import shutil
from pathlib import Path

from etils import epath


def is_remote(path: str | epath.PathLike) -> bool:
    """Whether a path is in a bucket."""
    return "://" in str(path)


def absolute(path: epath.PathLike) -> epath.Path:
    """A path that means the same in every process."""
    return epath.Path(path) if is_remote(path) else epath.Path(path).expanduser().absolute()


def write(path: epath.PathLike, content: bytes | str) -> None:
    """Writes a file; whoever is killed on the way leaves none, or `NAME.partial`."""
    path = epath.Path(path)
    data = content.encode() if isinstance(content, str) else content
    if is_remote(path):  # an object appears when it is complete
        path.write_bytes(data)
        return
    partial = path.with_name(path.name + ".partial")
    partial.write_bytes(data)
    partial.replace(path)


def move(local: Path, destination: epath.PathLike) -> None:
    """Moves a file of this machine to where it belongs, on whatever storage."""
    destination = epath.Path(destination)
    if is_remote(destination):
        with open(local, "rb") as source, destination.open("wb") as target:
            shutil.copyfileobj(source, target, 1 << 24)
        local.unlink()
        return
    partial = destination.with_name(destination.name + ".partial")
    shutil.move(local, partial)  # may go from disk to disk
    partial.replace(destination)
