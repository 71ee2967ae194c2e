"""The parts both towers are made of. Parameters are float32; each call computes in the dtype of its input."""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.ad_checkpoint import checkpoint_name
from jax.nn import initializers

from electra_jax.config import ModelConfig
from electra_jax.models.noise import Noise, dropout
from electra_jax.models.sharding import constrain, transposed_in_memory


def parameter(
    rngs: nnx.Rngs, init: initializers.Initializer, shape: tuple[int, ...], axes: tuple[str, ...]
) -> nnx.Param:
    """A float32 parameter with a logical axis name for each dimension."""
    return nnx.Param(init(rngs.params(), shape, jnp.float32), out_sharding=axes)


def normal(stddev: float) -> initializers.Initializer:
    """Normal, cut off at two standard deviations, as all BERT-like weights are initialised."""
    return initializers.truncated_normal(stddev)


# The name of what `model.remat=dots` keeps for the backward pass: results of products, residual sums, and LayerNorm's
# statistics. By name, since JAX's own policies do not look into functions with a custom gradient.
KEPT = "kept"


class Weight(NamedTuple):
    """A kernel as it is stored and trained, and as products read it: cast once a step, not at every use."""

    stored: jax.Array  # float32; receives the gradient
    read: jax.Array  # in the compute dtype


class Linear(nnx.Module):
    """`[..., in] -> [..., out]`, with bias. The kernel is a `Weight` by the time it is called.

    `from_memory`: the gradient that arrives is the output of a Pallas kernel, so XLA cannot fuse its sum, which is the bias's
    gradient, into the operation that produces it.
    """

    def __init__(
        self,
        in_size: int,
        out_size: int,
        axes: tuple[str, str],
        init: initializers.Initializer,
        from_memory: bool = False,
        *,
        rngs: nnx.Rngs,
    ):
        self.kernel = parameter(rngs, init, (in_size, out_size), axes)
        self.bias = parameter(rngs, initializers.zeros, (out_size,), axes[1:])
        self.axes, self.from_memory = axes, from_memory

    def __call__(self, x: jax.Array, dtype: jnp.dtype | None = None, keeps_input: bool = False) -> jax.Array:
        """The result has `dtype`, or else that of `x`; with `keeps_input`, `model.remat=dots` keeps `x` for the backward pass."""
        return linear(x, self.kernel.get_value(), self.bias[...], self.axes, dtype, keeps_input, self.from_memory)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4, 5, 6))
def linear(
    x: jax.Array,
    kernel: Weight,
    bias: jax.Array,
    axes: tuple[str, str],
    dtype: jnp.dtype | None = None,
    keeps_input: bool = False,
    from_memory: bool = False,
) -> jax.Array:
    """`[..., in]`, `[in, out]`, `[out]` -> `[..., out]`; products, and gradients of parameters, accumulate in float32.

    Its backward pass is written out for three reasons: the parameters' gradients, sums over all tokens, are not rounded
    to bfloat16 on the way; XLA's CPU compiler multiplies several times faster where no operand is transposed; and the
    kernel is kept for it sharded over the mesh as it is stored, and gathered again, to the layout of `axes`, when needed.
    """
    x, kernel = _of_batch(x, axes[0]), constrain(kernel.read, *axes)
    y = (jnp.dot(x, kernel, preferred_element_type=jnp.float32) + bias).astype(dtype or x.dtype)
    return _of_batch(y, axes[1])


def _of_batch(x: jax.Array, axis: str) -> jax.Array:
    return constrain(x, "batch", *[None] * (x.ndim - 2), axis)


def _linear_forward(x, kernel, bias, axes, dtype, keeps_input, from_memory):
    # The saved copy gets the name, not what the product reads: where one value is both saved and read, JAX inserts a rounding
    # for the readers too, and after a kernel that costs a pass of its own.
    saved = checkpoint_name(x, KEPT) if keeps_input else x
    return linear(x, kernel, bias, axes, dtype), (saved, kernel.read)


def _linear_backward(axes, dtype, keeps_input, from_memory, saved, gradient):
    x, kernel = saved
    gradient = gradient.astype(x.dtype)
    x, gradient, kernel = _of_batch(x, axes[0]), _of_batch(gradient, axes[1]), constrain(kernel, *axes)
    rows = gradient.reshape(-1, gradient.shape[-1])
    d_kernel = jnp.dot(transpose(x.reshape(-1, x.shape[-1])), rows, preferred_element_type=jnp.float32)
    d_bias = sum_by_product(rows) if from_memory else rows.astype(jnp.float32).sum(0)
    return _of_batch(gradient @ kernel.T, axes[0]), Weight(d_kernel, None), d_bias


def sum_by_product(x: jax.Array) -> jax.Array:
    """The sum over rows as a product, `[N, D]` -> `[D]` float32, for an `x` whose producer XLA cannot fuse the sum into.

    On a TPU a product over a kernel's output takes a quarter of the time that the vector units take to add it up.
    """

    def product(x):
        ones = jnp.ones((8, x.shape[0]), x.dtype)  # a single row would be made a sum again
        return jnp.dot(ones, x, preferred_element_type=jnp.float32)[0]

    return jax.lax.platform_dependent(x, cpu=lambda x: x.astype(jnp.float32).sum(0), default=product)


def transpose(x: jax.Array) -> jax.Array:
    """`[M, N] -> [N, M]`, for a product."""
    # On the CPU the product is several times as fast on a row-major operand: with the transpose fused into it, or expressed
    # as a mere change of layout, XLA has no bfloat16 product for it. Elsewhere the fused transpose costs nothing.
    return jax.lax.platform_dependent(x, cpu=transposed_in_memory, default=jnp.transpose)


linear.defvjp(_linear_forward, _linear_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def linear_stack(x: jax.Array, kernels: Weight, biases: jax.Array, axes: tuple[str, str]) -> jax.Array:
    """Several `linear` of one input as one product: `[B, L, in]`, `[K, in, out]`, `[K, out]` -> `[K, B, L, out]`.

    For accelerators; in the backward pass the gradients with respect to the input are summed in float32, and rounded once.
    """
    x, kernels = _of_batch(x, axes[0]), constrain(kernels.read, None, *axes)
    y = jnp.einsum("bld,kde->kble", x, kernels, preferred_element_type=jnp.float32)
    return _of_batches((y + biases[:, None, None]).astype(x.dtype), axes[1])


def _linear_stack_forward(x, kernels, biases, axes):
    return linear_stack(x, kernels, biases, axes), (x, kernels.read)


def _linear_stack_backward(axes, saved, gradient):
    x, kernels = saved
    x, gradient, kernels = _of_batch(x, axes[0]), _of_batches(gradient, axes[1]), constrain(kernels, None, *axes)
    d_kernels = jnp.einsum("bld,kble->kde", x, gradient, preferred_element_type=jnp.float32)
    d_biases = jax.vmap(sum_by_product)(gradient.reshape(len(gradient), -1, gradient.shape[-1]))
    d_x = jnp.einsum("kble,kde->bld", gradient, kernels)
    return _of_batch(d_x, axes[0]), Weight(d_kernels, None), d_biases


linear_stack.defvjp(_linear_stack_forward, _linear_stack_backward)


def _of_batches(x: jax.Array, axis: str) -> jax.Array:
    return constrain(x, None, "batch", None, axis)


class LayerNorm(nnx.Module):
    """Layer normalisation over the last axis, computed in float32."""

    def __init__(self, size: int, eps: float, axis: str, *, rngs: nnx.Rngs):
        self.scale = parameter(rngs, initializers.ones, (size,), (axis,))
        self.bias = parameter(rngs, initializers.zeros, (size,), (axis,))
        self.eps = eps

    def __call__(self, x: jax.Array) -> jax.Array:
        return layer_norm(x, self.scale[...], self.bias[...], self.eps)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def layer_norm(x: jax.Array, scale: jax.Array, bias: jax.Array, eps: float) -> jax.Array:
    """`[..., D]`, `[D]`, `[D]` -> `[..., D]` in the dtype of `x`; its own backward pass takes one mean fewer than JAX's."""
    return _layer_norm_forward(x, scale, bias, eps)[0]


def _layer_norm_forward(x, scale, bias, eps):
    y = x.astype(jnp.float32)
    # Kept for the backward pass, which would take another pass over `x`.
    mean, factor = (checkpoint_name(of_rows, KEPT) for of_rows in statistics(y, eps))
    return ((y - mean) * factor * scale + bias).astype(x.dtype), (x, mean, factor, scale)


def _layer_norm_backward(eps, saved, gradient):
    x, mean, factor, scale = saved
    gradient, normal = gradient.astype(jnp.float32), (x.astype(jnp.float32) - mean) * factor
    d_x, of_tokens = layer_norm_gradient(normal, factor, gradient * scale).astype(x.dtype), tuple(range(x.ndim - 1))
    # Accelerators would compute all of this again in each of the two places that read it, rather than read it twice.
    d_x = jax.lax.platform_dependent(d_x, cpu=lambda d_x: d_x, default=jax.lax.optimization_barrier)
    return d_x, (gradient * normal).sum(of_tokens), gradient.sum(of_tokens)


layer_norm.defvjp(_layer_norm_forward, _layer_norm_backward)


def statistics(x: jax.Array, eps: float) -> tuple[jax.Array, jax.Array]:
    """Mean and inverse standard deviation, in one pass: `[..., D]` float32 -> `[..., 1]` each."""
    mean = x.mean(-1, keepdims=True)
    variance = jnp.maximum(jnp.square(x).mean(-1, keepdims=True) - jnp.square(mean), 0)
    return mean, jax.lax.rsqrt(variance + eps)


def layer_norm_gradient(normal: jax.Array, factor: jax.Array, scaled: jax.Array) -> jax.Array:
    """The gradient with respect to LayerNorm's input, `[..., D]`.

    Args:
      normal: the normalised input, `[..., D]`.
      factor: the inverse standard deviation, `[..., 1]`.
      scaled: the gradient with respect to the output, times the scale, `[..., D]`.
    """
    along = normal * (scaled * normal).mean(-1, keepdims=True)
    return factor * (scaled - scaled.mean(-1, keepdims=True) - along)


def add(x: jax.Array, y: jax.Array, rate: float, noise: Noise | None) -> jax.Array:
    """`x + dropout(y)` for the input `x` of a sub-layer and its float32 output `y`, `[B, L, D]`, in the dtype of `x`.

    Rounded once, and kept: the backward pass then draws dropout's bits for dropout's own gradient only, not for this sum.
    """
    total = (x + constrain(dropout(y, rate, noise), *WHOLE)).astype(x.dtype)
    return checkpoint_name(constrain(total, *WHOLE), KEPT)


WHOLE = "batch", None, None  # how `[B, L, D]` is laid out: its width on every device of a tensor group


@jax.custom_vjp
def gelu(x: jax.Array) -> jax.Array:
    """The exact GELU, by the error function, as in BERT and ELECTRA; keeps only `x` for the backward pass."""
    y = x.astype(jnp.float32)
    return (y * normal_cdf(y, x.dtype)).astype(x.dtype)


def _gelu_forward(x):
    return gelu(x), x


def _gelu_backward(x, gradient):
    y = x.astype(jnp.float32)
    density = jnp.exp(-0.5 * jnp.square(y)) * np.float32(1 / math.sqrt(2 * math.pi))
    return ((gradient.astype(jnp.float32) * (normal_cdf(y, x.dtype) + y * density)).astype(x.dtype),)


def normal_cdf(x: jax.Array, dtype: jnp.dtype) -> jax.Array:
    """The normal CDF, by the error function; for bfloat16 results on accelerators by tanh, which they have in hardware.

    The polynomial is a minimax fit of `atanh(erf(x / sqrt(2)))`: it is off by less than 7e-6, where bfloat16 rounds by 2e-3.
    """

    def by_erf(x):
        return 0.5 * (1 + jax.lax.erf(x * np.float32(math.sqrt(0.5))))

    def by_tanh(x):
        square, polynomial = jnp.square(x), np.float32(0)
        for coefficient in _ATANH_ERF:
            polynomial = polynomial * square + np.float32(coefficient)
        return 0.5 * (1 + jnp.tanh(x * polynomial))

    return jax.lax.platform_dependent(x, cpu=by_erf, default=by_erf if dtype == jnp.float32 else by_tanh)


_ATANH_ERF = (1.11908274e-06, -3.05810155e-05, -1.24861592e-04, 3.64687909e-02, 7.97828136e-01)


gelu.defvjp(_gelu_forward, _gelu_backward)


class Embeddings(nnx.Module):
    """Word, position and token-type embeddings of width `size`, with LayerNorm."""

    def __init__(self, config: ModelConfig, size: int, vocab_size: int, *, rngs: nnx.Rngs):
        init = normal(config.initializer_range)
        self.word = parameter(rngs, init, (vocab_size, size), ("vocab", "embedding"))
        self.position = parameter(rngs, init, (config.max_position_embeddings, size), ("position", "embedding"))
        self.token_type = parameter(rngs, init, (config.type_vocab_size, size), ("token_type", "embedding"))
        self.norm = LayerNorm(size, config.layer_norm_eps, "embedding", rngs=rngs)
        self.dropout_rate, self.dtype = config.hidden_dropout_prob, jnp.dtype(config.dtype)

    def __call__(
        self, input_ids: jax.Array, position_ids: jax.Array, token_type_ids: jax.Array, noise: Noise | None
    ) -> jax.Array:
        """Ids `[B, L]` each -> `[B, L, E]` in the compute dtype."""
        x = self.word_table()[input_ids] + self.position[...][position_ids] + self.token_type[...][token_type_ids]
        x = constrain(self.norm(x).astype(self.dtype), "batch", None, None)
        return dropout(x, self.dropout_rate, noise)

    def word_table(self) -> jax.Array:
        """`[V, E]`, gathered whole on every device: looking tokens up in a table sharded by width would cost more."""
        return constrain(self.word[...], "vocab", "embedding")
