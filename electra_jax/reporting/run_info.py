"""What is known of a run before its first step: `run.json`, and the first lines the run prints."""

import importlib.metadata
import platform
from typing import Any

import jax

_PACKAGES = (
    "electra_jax",
    "jax",
    "jaxlib",
    "flax",
    "optax",
    "orbax-checkpoint",
    "grain",
    "tensorflow-datasets",
    "tokenizers",
    "sentencepiece",
)


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that decide on the numbers."""
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = "not installed"
    return found


def devices() -> dict[str, Any]:
    """Kind and number of devices and processes."""
    return {"kind": jax.devices()[0].device_kind, "count": jax.device_count(), "processes": jax.process_count()}


def lines(info: dict[str, Any]) -> list[str]:
    """`info` as text, one line per entry."""
    width = max(map(len, info))
    return [f"{name:{width}}  {text(value)}" for name, value in info.items()]


def text(value: Any) -> str:
    """A value of `run.json` as a person reads it."""
    if isinstance(value, dict):
        return ", ".join(f"{name} {text(item)}" for name, item in value.items())
    if isinstance(value, list):
        return "; ".join(map(text, value))
    if isinstance(value, float):
        return f"{value:,.4g}"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)
