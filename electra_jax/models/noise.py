"""Random bits for dropout as a pure function of the example and the place, cheap enough to be drawn twice.

A cryptographic generator costs more than the layers it regularises. Dropout needs only bits that look
independent, so each element's bits are a hash of (seeds of its example, index within the example): no
state, the same on any mesh and in any split of the batch, and computed again in the backward pass rather
than kept.
"""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np


class Noise(NamedTuple):
    """Seeds of dropout, two words an example: `[B, 2]` uint32."""

    seeds: jax.Array

    def at(self, place: int | jax.Array) -> "Noise":
        """The noise of one place in the network (a layer, a sub-layer), unlike that of all others."""
        salt = jnp.asarray(place, jnp.uint32) * jnp.uint32(0x9E3779B9) + jnp.uint32(0x85EBCA6B)
        return Noise(mix(self.seeds ^ mix(salt)))


def dropout(x: jax.Array, rate: float, noise: Noise | None) -> jax.Array:
    """Sets each element of `x`, `[B, ...]`, to zero with probability `rate` and scales up the others.

    Without noise (evaluation) or at rate 0, `x` itself.
    """
    if noise is None or rate == 0.0:
        return x
    return _dropout(x, noise.seeds, rate)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _dropout(x: jax.Array, seeds: jax.Array, rate: float) -> jax.Array:
    return keep(x, _bits(seeds, x.shape), rate)


def _dropout_forward(x, seeds, rate):
    return _dropout(x, seeds, rate), seeds


def _dropout_backward(rate, seeds, gradient):
    return _dropout(gradient, seeds, rate), np.zeros(seeds.shape, jax.dtypes.float0)


_dropout.defvjp(_dropout_forward, _dropout_backward)


def keep(x: jax.Array, bits: jax.Array, rate: float) -> jax.Array:
    """Dropout, given random bits for each element, uint32."""
    kept = bits >= np.uint32(round(rate * 2**32))
    # In bfloat16 the factor itself would be rounded, by 0.16 % at a rate of 0.1.
    scaled = (x.astype(jnp.float32) * np.float32(1.0 / (1.0 - rate))).astype(x.dtype)
    return jnp.where(kept, scaled, jnp.zeros((), x.dtype))


def _bits(seeds: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """uint32 `shape`; `shape[0]` is the batch of `seeds`."""
    if math.prod(shape[1:]) >= 2**32:
        raise ValueError(f"dropout over {shape}: an example has more elements than 32 bits count")
    index = jnp.zeros(shape, jnp.uint32)
    for axis in range(1, len(shape)):
        index += jax.lax.broadcasted_iota(jnp.uint32, shape, axis) * np.uint32(math.prod(shape[axis + 1 :]))
    start, stride = (seeds[:, i].reshape(-1, *[1] * (len(shape) - 1)) for i in range(2))
    return bits_at(index, start, stride)


def bits_at(index: jax.Array, start: jax.Array, stride: jax.Array) -> jax.Array:
    """The bits of an element, by its number within its example and the example's two seeds; all uint32."""
    # An odd stride of its own keeps two examples from walking through the same sequence at an offset.
    return mix(index * (stride | np.uint32(1)) + start)


def mix(x: jax.Array) -> jax.Array:
    """A bijective 32-bit hash of good avalanche (`lowbias32` of Wellons' hash-prospector, constants from there)."""
    x = x ^ (x >> 16)
    x = x * np.uint32(0x7FEB352D)
    x = x ^ (x >> 15)
    x = x * np.uint32(0x846CA68B)
    return x ^ (x >> 16)
