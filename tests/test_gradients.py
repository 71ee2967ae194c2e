"""Hand-written backward passes, in the versions for CPUs and accelerators, against automatic differentiation and NumPy."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats
from scipy.special import erf, log_softmax

from electra_jax.models import vocabulary
from electra_jax.models.layers import Weight, gelu, layer_norm, linear, linear_stack, normal_cdf
from electra_jax.models.noise import Noise, dropout
from electra_jax.models.pallas_norm import add_and_norm


@pytest.fixture(params=["cpu", "accelerator", "accelerators"])
def platform(request, monkeypatch):
    if request.param != "cpu":
        request.getfixturevalue("as_on_accelerators")
    monkeypatch.setattr(vocabulary, "is_spread", lambda: request.param == "accelerators")
    return request.param


def normals(*shapes):
    return [jax.random.normal(jax.random.key(i), shape) for i, shape in enumerate(shapes)]


def assert_same(function, derived, inputs, gradient, tolerance=1e-5):
    """Values and gradients of `function` are those of `derived`; as a control, not those for another incoming gradient."""
    value, pull = jax.vjp(function, *inputs)
    expected, derived_pull = jax.vjp(derived, *inputs)
    for found, wanted in zip([value, *pull(gradient)], [expected, *derived_pull(gradient)], strict=True):
        assert found.dtype == wanted.dtype
        np.testing.assert_allclose(found, wanted, rtol=tolerance, atol=tolerance * np.abs(wanted).max())
    others = derived_pull(1.5 * gradient)
    assert all(np.abs(found - other).max() > 0.01 for found, other in zip(pull(gradient), others, strict=True))


def product(x, kernel, bias):
    return linear(x, Weight(kernel, jax.lax.stop_gradient(kernel).astype(x.dtype)), bias, ("embed", "mlp"))


def test_written_gradients_equal_numpy():
    shapes = [(2, 3, 5), (5, 4), (4,), (2, 3, 4)]
    x, kernel, bias, gradient = (np.asarray(jax.random.normal(jax.random.key(i), s)) for i, s in enumerate(shapes))
    y, pull = jax.vjp(product, x, kernel, bias)
    expected = [x @ kernel + bias, gradient @ kernel.T, np.einsum("abi,abo->io", x, gradient), gradient.sum((0, 1))]
    for value, reference in zip([y, *pull(gradient)], expected):
        np.testing.assert_allclose(value, reference, rtol=1e-5, atol=1e-5)

    def exact(x):
        return x * (1 + erf(x / math.sqrt(2))) / 2

    points, width = np.linspace(-8, 8, 1001), 1e-5
    np.testing.assert_allclose(gelu(points.astype(np.float32)), exact(points), atol=1e-6)
    slope = (exact(points + width) - exact(points - width)) / (2 * width)
    np.testing.assert_allclose(jax.vmap(jax.grad(gelu))(points.astype(np.float32)), slope, atol=1e-5)


def test_gradients_of_parameters_are_not_rounded_to_bfloat16():
    x = jax.random.normal(jax.random.key(0), (4096, 8)).astype(jnp.bfloat16)
    _, pull = jax.vjp(product, x, jnp.ones((8, 8)), jnp.ones(8))
    _, d_kernel, d_bias = pull(jnp.ones((4096, 8), jnp.bfloat16))
    expected = np.broadcast_to(np.asarray(x, np.float64).sum(0)[:, None], (8, 8))
    np.testing.assert_allclose(d_kernel, expected, rtol=1e-5, atol=1e-3)
    np.testing.assert_array_equal(d_bias, 4096)  # bfloat16 counts in steps of 16 from 2048 on


def test_the_normal_distribution_of_accelerators(as_on_accelerators):
    x = np.linspace(-12, 12, 10_001)
    exact = stats.norm.cdf(x)
    in_bfloat16, in_float32 = (
        np.abs(np.asarray(normal_cdf(jnp.float32(x), dtype)) - exact).max() for dtype in (jnp.bfloat16, jnp.float32)
    )
    usual = np.abs(0.5 * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3))) - exact).max()
    assert in_float32 < 3e-7 < in_bfloat16 < 7e-6 < 1e-4 < usual  # the control: GELU's usual approximation


def test_layer_norm():
    def derived(x, scale, bias):
        mean = x.mean(-1, keepdims=True)
        variance = jnp.square(x - mean).mean(-1, keepdims=True)
        return (x - mean) / jnp.sqrt(variance + 0.1) * scale + bias

    x, scale, bias, gradient = normals((2, 5, 16), (16,), (16,), (2, 5, 16))
    assert_same(lambda *inputs: layer_norm(*inputs, 0.1), derived, (x, scale, bias), gradient)


def test_several_linears_at_once(platform):
    def at_once(x, kernels, biases):
        return linear_stack(x, Weight(kernels, jax.lax.stop_gradient(kernels)), biases, ("embed", "heads"))

    def derived(x, kernels, biases):
        return jnp.einsum("bld,kde->kble", x, kernels) + biases[:, None, None]

    *inputs, gradient = normals((2, 5, 8), (3, 8, 12), (3, 12), (3, 2, 5, 12))
    assert_same(at_once, derived, inputs, gradient)


def test_tied_logits(platform):
    rows, table, bias, gradient = normals((6, 8), (128, 8), (128,), (6, 128))
    assert_same(vocabulary.tied_logits, lambda rows, table, bias: rows @ table.T + bias, (rows, table, bias), gradient)
    _, pull = jax.vjp(vocabulary.tied_logits, rows.astype(jnp.bfloat16), table, bias)
    assert [x.dtype for x in pull(gradient)] == [jnp.bfloat16, jnp.float32, jnp.float32]


def test_cross_entropy_over_the_vocabulary(platform):
    (logits,) = normals((6, 384))
    logits = (5 * logits).at[:, 300:].set(-1e9)  # padding of the vocabulary
    ids, gradient = jnp.asarray([0, 5, 299, 128, 127, 7]), jnp.arange(1.0, 7.0)
    value, pull = jax.vjp(lambda logits: vocabulary.cross_entropy(logits, ids), logits)
    exact = log_softmax(np.asarray(logits, np.float64), axis=-1)
    np.testing.assert_allclose(value, -exact[np.arange(6), ids], rtol=1e-5)
    expected = (np.exp(exact) - np.eye(384)[np.asarray(ids)]) * np.asarray(gradient)[:, None]
    np.testing.assert_allclose(pull(gradient)[0], expected, atol=1e-5)
    assert (np.asarray(pull(gradient)[0])[:, 300:] == 0).all()


@pytest.mark.parametrize("shape", [(2, 128, 64), (3, 16, 256), (1, 64, 8192 * 2)], ids=str)  # the last in two parts
@pytest.mark.parametrize("rate", [0.0, 0.1])
def test_the_end_of_a_sublayer(shape, rate):
    noise = Noise(jax.random.bits(jax.random.key(9), (shape[0], 2))) if rate else None

    def derived(x, y, scale, bias):
        return layer_norm(x + dropout(y, rate, noise), scale, bias, 1e-6)

    def kernel(x, y, scale, bias):
        return add_and_norm(x, y, noise, scale, bias, rate, 1e-6)

    *inputs, gradient = normals(shape, shape, shape[-1:], shape[-1:], shape)
    assert_same(kernel, derived, inputs, gradient, 2e-5)
