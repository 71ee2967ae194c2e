"""The end of a sub-layer, with its backward pass as one TPU kernel.

Dropout, the residual connection and LayerNorm are a chain of small operations on `[B, L, D]`, bound by memory. In the
forward pass XLA fuses them into the product before; in the backward pass the sums over rows prevent that, and XLA
reads and writes the same arrays several times, which takes most of a narrow model's step. Here a program reads a block of
an example's rows once. Dropout is that of `models.noise`, bit for bit.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from electra_jax.config import EncoderConfig
from electra_jax.models.layers import WHOLE, add, layer_norm, layer_norm_gradient, statistics
from electra_jax.models.noise import Noise, bits_at, keep
from electra_jax.models.sharding import Output, on_each_device

# Elements that a program holds at a time: a dozen float32 copies of so many fit into the chip's memory.
_ELEMENTS = 3 * 2**17


def is_used(config: EncoderConfig) -> bool:
    """Whether a tower uses the kernel: with the `pallas` attention, where rows fill whole registers.

    XLA stores the arrays of a narrower tower without the padding that a kernel would need.
    """
    return config.attention == "pallas" and config.hidden_size % 128 == 0


@functools.partial(jax.custom_vjp, nondiff_argnums=(5, 6))
def add_and_norm(
    x: jax.Array,
    y: jax.Array,
    noise: Noise | None,
    scale: jax.Array,
    bias: jax.Array,
    rate: float,
    eps: float,
) -> jax.Array:
    """LayerNorm of `x + dropout(y)`.

    Args:
      x: the input of the sub-layer, `[B, L, D]`.
      y: its result, `[B, L, D]` float32.
      noise: for dropout, or None.
      scale, bias: of LayerNorm, `[D]` float32.
      rate: of dropout.
      eps: of LayerNorm.

    Returns:
      `[B, L, D]` in the dtype of `x`.
    """
    return _forward(x, y, noise, scale, bias, rate, eps)[0]


def _forward(x, y, noise, scale, bias, rate, eps):
    total = add(x, y, rate, noise)
    return layer_norm(total, scale, bias, eps), (total, noise, scale)


def _backward(rate, eps, saved, gradient):
    total, noise, scale = saved
    of_rows = total.shape
    seeds = jnp.zeros((of_rows[0], 2), jnp.uint32) if noise is None else noise.seeds
    call = functools.partial(_call, rate=0.0 if noise is None else rate, eps=eps)
    d_total, d_y, sums = on_each_device(
        call,
        [(total, WHOLE), (gradient.astype(total.dtype), WHOLE), (seeds, ("batch", None)), (scale, (None,))],
        (Output(of_rows, WHOLE), Output(of_rows, WHOLE), Output((of_rows[0], 2, of_rows[2]), WHOLE)),
    )
    d_scale, d_bias = sums.sum(0)
    no_gradient = jax.tree.map(lambda seeds: np.zeros(seeds.shape, jax.dtypes.float0), noise)
    return d_total, d_y.astype(jnp.float32), no_gradient, d_scale, d_bias


add_and_norm.defvjp(_forward, _backward)


def _call(total, gradient, seeds, scale, rate, eps):
    """Gradients of `x` and `y`; those of `scale` and `bias` summed over the rows of each example, `[B, 2, D]` float32."""
    batch, length, width = total.shape
    rows = _rows(length, width)
    of_rows = pl.BlockSpec((1, rows, width), lambda b, r: (b, r, 0))
    call = functools.partial(
        pl.pallas_call,
        functools.partial(_kernel, rate=rate, eps=eps),
        grid=(batch, length // rows),
        in_specs=[
            pl.BlockSpec(memory_space=pltpu.SMEM), pl.BlockSpec((1, width), lambda b, r: (0, 0)), of_rows, of_rows
        ],
        out_specs=[of_rows, of_rows, pl.BlockSpec((1, 2, width), lambda b, r: (b, 0, 0))],
        out_shape=[
            jax.ShapeDtypeStruct(total.shape, total.dtype),
            jax.ShapeDtypeStruct(total.shape, total.dtype),
            jax.ShapeDtypeStruct((batch, 2, width), jnp.float32),
        ],
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "arbitrary"), vmem_limit_bytes=64 * 2**20
        ),
        cost_estimate=pl.CostEstimate(
            flops=30 * total.size, transcendentals=0, bytes_accessed=4 * total.size * total.dtype.itemsize
        ),
    )  # fmt: skip
    inputs = seeds.reshape(-1), scale[None], total, gradient  # flat: a row of its own is padded to 128 words
    return jax.lax.platform_dependent(*inputs, cpu=call(interpret=True), default=call())


def _rows(length: int, width: int) -> int:
    """How many rows a program takes: all of an example's, or the largest equal part of them that fits into memory."""
    parts = next(p for p in range(1, length + 1) if length % p == 0 and length // p * width <= _ELEMENTS)
    return length // parts


def _kernel(seeds, scale, total, gradient, d_total, d_y, sums, *, rate, eps):
    example, block = pl.program_id(0), pl.program_id(1)
    x, g = total[0].astype(jnp.float32), gradient[0].astype(jnp.float32)
    mean, factor = statistics(x, eps)
    normal = (x - mean) * factor
    d = layer_norm_gradient(normal, factor, g * scale[...])
    d_total[0] = d.astype(d_total.dtype)
    if rate:
        row = block * d.shape[0] + jax.lax.broadcasted_iota(jnp.int32, d.shape, 0)
        place = row * d.shape[1] + jax.lax.broadcasted_iota(jnp.int32, d.shape, 1)
        d = keep(d, bits_at(place.astype(jnp.uint32), seeds[2 * example], seeds[2 * example + 1]), rate)
    d_y[0] = d.astype(d_y.dtype)

    @pl.when(block == 0)
    def _():
        sums[...] = jnp.zeros_like(sums)

    sums[0, 0, :] += (g * normal).sum(0)
    sums[0, 1, :] += g.sum(0)
