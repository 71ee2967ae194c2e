"""Peak rates of accelerators, published or measured."""

import re
import time

import jax
import jax.numpy as jnp

# Dense bfloat16 FLOP/s of one JAX device, by words of `device_kind`; vendors' data sheets, half of what they give "with
# sparsity". A v4 or v5p chip is one device; order matters, the first that matches counts.
_PUBLISHED = (
    ("v6 lite", 918e12),
    ("v6e", 918e12),
    ("v5 lite", 197e12),
    ("v5e", 197e12),
    ("v5p", 459e12),
    ("v5", 459e12),
    ("v4", 275e12),
    ("v3", 61.5e12),
    ("v2", 22.5e12),
    ("h200", 989e12),
    ("h100 pcie", 756e12),
    ("h100 nvl", 835e12),
    ("h100", 989e12),
    ("a100", 312e12),
    ("l40s", 362e12),
    ("l40", 181e12),
    ("l4", 121e12),
    ("v100", 125e12),
    ("t4", 65e12),
)


def peak_flops(device: jax.Device, dtype: str) -> tuple[float, str]:
    """FLOP/s of one device, and where the figure is from; on a CPU, measured in `dtype` right now."""
    peak = published_peak(device.device_kind) if device.platform != "cpu" else None
    if peak:
        return peak, f"published, {device.device_kind}"
    return measured_peak(dtype), f"measured matrix product, {dtype}"


def published_peak(kind: str) -> float | None:
    """Dense bfloat16 FLOP/s of a kind of accelerator, where it is known."""
    return next((peak for name, peak in _PUBLISHED if re.search(rf"\b{name}\b", kind.lower())), None)


def measured_peak(dtype: str, duration: float = 0.4) -> float:
    """FLOP/s of the fastest of the square matrix products that fit into `duration` seconds, on the default device.

    The default outlasts other programs that take the device for some hundredths of a second.
    """
    # Launching a program takes time too, so accelerators get several products per launch.
    size, chained = (1024, 1) if jax.default_backend() == "cpu" else (8192, 16)
    x = jnp.full((size, size), 1 / size, dtype)
    product = jax.jit(lambda x, y: jax.lax.fori_loop(0, chained, lambda _, y: x @ y, y))
    product(x, x).block_until_ready()
    seconds, end = [], time.perf_counter() + duration
    while not seconds or time.perf_counter() < end:
        start = time.perf_counter()
        product(x, x).block_until_ready()
        seconds.append(time.perf_counter() - start)
    return 2 * size**3 * chained / min(seconds)
