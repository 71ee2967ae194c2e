"""Attention as one TPU kernel: scores, softmax, dropout and mix of a head stay on the chip, forward and backward.

The plain way writes weights `[B, H, L, L]` and their dropout to memory and reads them again, which is most of a step's
time on a TPU. Here a program takes the queries of a block and all keys of its heads; nothing but queries, keys and values
is kept for the backward pass. Heads stand side by side in the lanes, as the projections leave them: nothing is transposed.
Dropout is that of `models.noise`, bit for bit, so this and the reference may stand in for each other in a run.
"""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from electra_jax.models.noise import bits_at, keep

_LANES = 128  # of a TPU's vector registers
_MASKED = -1e9
# Scores that a program holds at a time, in elements: a few copies of so many float32 fit into the chip's memory.
_SCORES = 512 * 512
_CONTRACT_LAST = (((1,), (1,)), ((), ()))  # a @ b.T
_CONTRACT_FIRST = (((0,), (0,)), ((), ()))  # a.T @ b


def longest(device_kind: str) -> int:
    """The longest sequence whose keys and values fit into the memory next to the cores, which is 16 MiB up to v4."""
    return 2048 if device_kind in ("TPU v2", "TPU v3", "TPU v4") else 4096


def fits(length: int, hidden_size: int, num_heads: int, device_kind: str) -> bool:
    """Whether the kernel can be had for such a tower."""
    head = hidden_size // num_heads
    in_lanes = hidden_size <= _LANES or (hidden_size % _LANES == 0 and (_LANES % head == 0 or head % _LANES == 0))
    return length % _LANES == 0 and length <= longest(device_kind) and in_lanes


def pallas_attention(
    projected: jax.Array,
    segment_ids: jax.Array,
    seeds: jax.Array,
    first_head: jax.Array,
    num_heads: int,
    dropout_rate: float,
) -> jax.Array:
    """`models.attention.attention` on the heads that one device holds; on a CPU interpreted, which is for tests.

    Args:
      projected: queries, keys and values, `[3, B, L, H * K]`, heads side by side.
      segment_ids: `[B, L]`.
      seeds: of dropout, `[B, 2]` uint32.
      first_head: the number of the first head here among all of the model's, `[1]` int32.
      num_heads: H.
      dropout_rate: of the attention weights.

    Returns:
      `[B, L, H * K]`.
    """
    return _attention((num_heads, dropout_rate), projected, segment_ids, seeds, first_head)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attention(settings, projected, *others):
    return _call(settings, _forward, 2, [projected], projected.shape[1:], *others)


def _attention_forward(settings, *inputs):
    return _attention(settings, *inputs), inputs


def _attention_backward(settings, inputs, gradient):
    projected, *others = inputs
    arrays = [projected, gradient.astype(projected.dtype)]
    d_projected = _call(settings, _backward, 5, arrays, projected.shape, *others)
    return d_projected, *(np.zeros(x.shape, jax.dtypes.float0) for x in others)


_attention.defvjp(_attention_forward, _attention_backward)


def _call(settings, kernel, products, arrays, result, segment_ids, seeds, first_head):
    """Runs `kernel` for each example, group of heads that share the lanes, and block of queries."""
    num_heads, rate = settings
    _, batch, length, width = arrays[0].shape
    head = width // num_heads
    lanes = min(width, max(_LANES, head))
    # As many queries at a time as fit, in equal blocks of whole registers (16 rows of bfloat16).
    rows = max(n for n in range(16, length + 1, 16) if length % n == 0 and n * length <= _SCORES)
    query, key, value, of_queries, of_all = (
        pl.BlockSpec((1, 1, rows, lanes), lambda b, g, q: (0, b, q, g)),
        pl.BlockSpec((1, 1, length, lanes), lambda b, g, q: (1, b, 0, g)),
        pl.BlockSpec((1, 1, length, lanes), lambda b, g, q: (2, b, 0, g)),
        pl.BlockSpec((1, rows, lanes), lambda b, g, q: (b, q, g)),
        pl.BlockSpec((3, 1, length, lanes), lambda b, g, q: (0, b, 0, g)),
    )
    scalars = pl.BlockSpec(memory_space=pltpu.SMEM)
    segments = [
        pl.BlockSpec((1, rows, 1), lambda b, g, q: (b, q, 0)),
        pl.BlockSpec((1, 1, length), lambda b, g, q: (b, 0, 0)),
    ]
    is_backward, scores = kernel is _backward, batch * num_heads * length * length
    call = functools.partial(
        pl.pallas_call,
        functools.partial(kernel, head=head, rate=rate),
        grid=(batch, width // lanes, length // rows),
        in_specs=[scalars, scalars, *segments, query, key, value, *[of_queries] * is_backward],
        out_specs=of_all if is_backward else of_queries,
        out_shape=jax.ShapeDtypeStruct(result, arrays[0].dtype),
        scratch_shapes=[pltpu.VMEM((length, lanes), jnp.float32)] * 2 * is_backward,
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "parallel", "arbitrary"), vmem_limit_bytes=64 * 2**20
        ),
        cost_estimate=pl.CostEstimate(
            flops=2 * products * scores * head,
            transcendentals=scores,
            bytes_accessed=sum(math.prod(x) for x in (result, *(a.shape for a in arrays))) * arrays[0].dtype.itemsize,
        ),
    )
    projected, *gradient = arrays
    # Seeds are flat: each row of `[B, 2]` would be padded to 128 words, and the memory for scalars holds few such rows.
    inputs = (
        seeds.reshape(-1),
        first_head,
        segment_ids[:, :, None],
        segment_ids[:, None, :],
        *[projected] * 3,
        *gradient,
    )
    return jax.lax.platform_dependent(*inputs, cpu=call(interpret=True), default=call())


def _weights(query, key, allowed, scale):
    """Softmax of the scores of one head, `[rows, L]` float32."""
    scores = jax.lax.dot_general(query, key, _CONTRACT_LAST, preferred_element_type=jnp.float32)
    scores = jnp.where(allowed, scores * scale, _MASKED)
    exponentials = jnp.exp(scores - scores.max(-1, keepdims=True))
    return exponentials / exponentials.sum(-1, keepdims=True)


def _bits(seeds, first_head, number, shape):
    """Random bits for the weights of a head: those that `models.noise.dropout` has for `[B, H, L, L]`."""
    example, block = pl.program_id(0), pl.program_id(2)
    rows, length = shape
    row = block * rows + jax.lax.broadcasted_iota(jnp.int32, shape, 0)
    place = ((first_head[0] + number) * length + row) * length + jax.lax.broadcasted_iota(jnp.int32, shape, 1)
    return bits_at(place.astype(jnp.uint32), seeds[2 * example], seeds[2 * example + 1])


def _heads(query, head):
    """For each head of a group: its number within the group, and its lanes."""
    return [(i, pl.ds(i * head, head)) for i in range(query.shape[-1] // head)]


def _forward(seeds, first_head, segment_of_query, segment_of_key, query, key, value, mixed, *, head, rate):
    allowed = segment_of_query[0] == segment_of_key[0]
    for i, lanes in _heads(query, head):
        weights = _weights(query[0, 0, :, lanes], key[0, 0, :, lanes], allowed, 1 / math.sqrt(head))
        if rate:
            number = pl.program_id(1) * (query.shape[-1] // head) + i
            weights = keep(weights, _bits(seeds, first_head, number, weights.shape), rate)
        of_head = jnp.dot(weights.astype(value.dtype), value[0, 0, :, lanes], preferred_element_type=jnp.float32)
        mixed[0, :, lanes] = of_head.astype(mixed.dtype)


def _backward(
    seeds, first_head, segment_of_query, segment_of_key, query, key, value, d_mixed, d_projected, sum_key, sum_value,
    *, head, rate,
):  # fmt: skip
    block, rows, dtype, scale = pl.program_id(2), query.shape[2], query.dtype, 1 / math.sqrt(head)

    @pl.when(block == 0)
    def _():
        sum_key[...] = jnp.zeros_like(sum_key)
        sum_value[...] = jnp.zeros_like(sum_value)

    allowed = segment_of_query[0] == segment_of_key[0]
    for i, lanes in _heads(query, head):
        q, k, v = (x[0, 0, :, lanes] for x in (query, key, value))
        d_out = d_mixed[0, :, lanes]
        weights = _weights(q, k, allowed, scale)
        d_dropped = jax.lax.dot_general(d_out, v, _CONTRACT_LAST, preferred_element_type=jnp.float32)
        dropped, d_weights = weights, d_dropped
        if rate:
            number = pl.program_id(1) * (query.shape[-1] // head) + i
            bits = _bits(seeds, first_head, number, weights.shape)
            dropped, d_weights = (keep(x, bits, rate) for x in (weights, d_dropped))
        sum_value[:, lanes] += jax.lax.dot_general(
            dropped.astype(dtype), d_out, _CONTRACT_FIRST, preferred_element_type=jnp.float32
        )
        d_scores = weights * (d_weights - (d_weights * weights).sum(-1, keepdims=True)) * scale
        d_scores = jnp.where(allowed, d_scores, 0).astype(dtype)
        d_query = jnp.dot(d_scores, k, preferred_element_type=jnp.float32)
        d_projected[0, 0, pl.ds(pl.multiple_of(block * rows, rows), rows), lanes] = d_query.astype(dtype)
        sum_key[:, lanes] += jax.lax.dot_general(d_scores, q, _CONTRACT_FIRST, preferred_element_type=jnp.float32)

    @pl.when(block == pl.num_programs(2) - 1)
    def _():
        d_projected[1, 0] = sum_key[...].astype(dtype)
        d_projected[2, 0] = sum_value[...].astype(dtype)
