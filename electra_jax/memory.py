"""Memory of a run that trains on the CPU: that of one step at a time, kept for the next (with glibc; else left as it is)."""

import collections
import ctypes
import glob
import os
from collections.abc import Callable
from typing import Any

import jax


def set_up() -> None:
    """Keeps freed memory for reuse, and makes each step wait until the one before has freed its memory.

    For commands that train, to be called before JAX looks for devices. A step on the CPU allocates and frees hundreds of
    megabytes to gigabytes. If these go back to the kernel each time, it clears and maps the pages again in every step, which
    took up to half of its time. And a step dispatched while the memory of another is still being freed needs as much again.
    """
    jax.config.update("jax_cpu_enable_async_dispatch", False)
    mallopt = _glibc("mallopt")
    # Not on hosts of accelerators, where many threads save and read: these keep an arena each.
    if mallopt and not _has_accelerator():
        for option, value in ((_M_MMAP_MAX, 0), (_M_TRIM_THRESHOLD, _NEVER), (_M_TOP_PAD, 2**26), (_M_ARENA_MAX, 1)):
            mallopt(option, value)


def is_exhausted(error: Exception) -> bool:
    """Whether an error says that the memory of a device does not suffice."""
    return isinstance(error, jax.errors.JaxRuntimeError) and "RESOURCE_EXHAUSTED" in str(error)


def settled(step: Callable[..., Any]) -> Callable[..., Any]:
    """`step`, a jitted function of (state, batch), kept from fragmenting its memory.

    What outlives the first steps (from compiling, metrics) lies scattered over the memory they used, so that later steps
    find no room there and take as much again. Returning the gaps to the kernel after each of the first two steps of a
    batch shape halves the peak.
    """
    trim = _glibc("malloc_trim")
    if trim is None or jax.default_backend() != "cpu":
        return step
    calls = collections.Counter()

    def call(state: Any, batch: Any) -> Any:
        shapes = tuple(leaf.shape for leaf in jax.tree.leaves(batch))
        result = step(state, batch)
        calls[shapes] += 1
        if calls[shapes] <= 2:
            jax.block_until_ready(result)
            trim(0)
        return result

    return call


def _has_accelerator() -> bool:
    """Whether this machine has devices besides its CPU that JAX may use, judged by device files: JAX must not look yet."""
    if os.environ.get("JAX_PLATFORMS") == "cpu":
        return False
    return any(glob.glob(path) for path in ("/dev/nvidia[0-9]*", "/dev/accel[0-9]*", "/dev/vfio/[0-9]*", "/dev/kfd"))


def _glibc(name: str) -> Callable[..., int] | None:
    try:
        return getattr(ctypes.CDLL(None), name)
    except (AttributeError, OSError, TypeError):
        return None


_NEVER = -1
# From glibc's malloc.h.
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -2, -4, -8
