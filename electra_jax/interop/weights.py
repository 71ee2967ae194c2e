"""Weight files of other programs, read without running anything that is in them."""

import json
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import safetensors

from electra_jax.errors import UserError

_DTYPES = {"F64": np.float64, "F32": np.float32, "F16": np.float16, "BF16": ml_dtypes.bfloat16}


class Weights:
    """Tensors by name; each is read when it is asked for, as float32."""

    def __init__(self, names: Iterable[str], read: Callable[[str], np.ndarray]):
        self._names, self._read = set(names), read

    def names(self) -> set[str]:
        """All names."""
        return self._names

    def get(self, name: str) -> np.ndarray | None:
        """The tensor, or None where there is none of this name."""
        return np.asarray(self._read(name), np.float32) if name in self._names else None


_FILES = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin")


def is_folder(folder: Path) -> bool:
    """Whether a folder has a configuration and weights that `open_folder` takes."""
    return (folder / "config.json").is_file() and any((folder / name).is_file() for name in _FILES)


def open_folder(folder: Path) -> Weights:
    """The weights of a Hugging Face folder: safetensors, in one file or several, or else `pytorch_model.bin`.

    Raises:
      UserError: where there are none, or the file is damaged or holds anything but tensors.
    """
    index = folder / "model.safetensors.index.json"
    if (folder / "model.safetensors").is_file():
        return _from_mapping(read_safetensors(folder / "model.safetensors"))
    if index.is_file():
        shards = read_json(index).get("weight_map")
        if not isinstance(shards, dict):
            raise UserError(f"{index} has no weight_map; fetch it again")
        files = sorted(set(shards.values()))
        return _from_mapping({name: t for file in files for name, t in read_safetensors(folder / file).items()})
    if (folder / "pytorch_model.bin").is_file():
        return _from_mapping(read_pickle(folder / "pytorch_model.bin"))
    raise UserError(f"{folder} has neither model.safetensors nor pytorch_model.bin")


def read_json(path: Path) -> dict[str, Any]:
    """A file that holds a JSON object; raises `UserError` where it does not."""
    try:
        found = json.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror})") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is no JSON ({error})") from None
    if not isinstance(found, dict):
        raise UserError(f"{path} holds a JSON {type(found).__name__}, not an object")
    return found


def read_safetensors(path: Path) -> dict[str, np.ndarray]:
    """The floating-point tensors of a safetensors file; raises `UserError` where it is damaged."""
    try:
        stored = safetensors.deserialize(path.read_bytes())
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except safetensors.SafetensorError as error:
        raise UserError(f"{path} is damaged ({error}); fetch or export it again") from None
    return {
        name: np.frombuffer(entry["data"], _DTYPES[entry["dtype"]]).reshape(entry["shape"])
        for name, entry in stored
        if entry["dtype"] in _DTYPES
    }


def read_pickle(path: Path) -> dict[str, np.ndarray]:
    """The floating-point tensors of a `.bin` file, which torch reads as tensors and nothing else.

    Raises:
      UserError: without torch, or where the file is damaged or holds objects that would run code.
    """
    try:
        import torch
    except ImportError:
        raise UserError(
            f"{path}: torch reads .bin files; pip install 'electra_jax[torch]', or convert it to safetensors"
        ) from None
    try:
        stored: Any = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises whatever the unpickler, the archive or the file system does
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(f"{path} cannot be read as tensors alone, and nothing in it was run ({first[:200]})") from None
    if not isinstance(stored, Mapping):
        raise UserError(f"{path} holds a {type(stored).__name__}, not tensors by name")
    tensors = {name: value for name, value in stored.items() if torch.is_tensor(value) and value.is_floating_point()}
    return {name: value.to(torch.float32).numpy() for name, value in tensors.items()}


def _from_mapping(tensors: Mapping[str, np.ndarray]) -> Weights:
    # Checkpoints converted from TensorFlow's may keep its names for the LayerNorms' tensors.
    present = {_LAYER_NORM.sub(lambda m: f"LayerNorm.{_PRESENT[m[1]]}", name): value for name, value in tensors.items()}
    return Weights(present, present.__getitem__)


_LAYER_NORM, _PRESENT = re.compile(r"LayerNorm\.(gamma|beta)$"), {"gamma": "weight", "beta": "bias"}
