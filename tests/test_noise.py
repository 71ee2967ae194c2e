"""Dropout: exact rates, independence, the same bits backward, a function of (seed, place, index)."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from electra_jax.models.noise import Noise, dropout


def noise(examples: int, seed: int = 0) -> Noise:
    return Noise(jax.random.bits(jax.random.key(seed), (examples, 2)))


def kept(shape, rate, seed=0, place=0) -> np.ndarray:
    return np.asarray(dropout(jnp.ones(shape), rate, noise(shape[0], seed).at(place))) > 0


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.015625])
def test_rate(rate):
    share = 1 - kept((64, 128, 256), rate).mean()
    assert abs(share - rate) < 5 * np.sqrt(rate * (1 - rate) / (64 * 128 * 256))


def test_scale_keeps_the_mean():
    x = dropout(jnp.ones((8, 1000)), 0.1, noise(8))
    np.testing.assert_allclose(np.unique(x), [0, 1 / 0.9], rtol=1e-6)


def test_no_noise_and_rate_zero_are_identity():
    x = jnp.arange(6.0).reshape(2, 3)
    assert dropout(x, 0.1, None) is x
    assert dropout(x, 0.0, noise(2)) is x


def correlation(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.corrcoef(a.ravel(), b.ravel())[0, 1])


def test_independence_of_neighbours_examples_places_and_seeds():
    a = kept((32, 64, 64), 0.3)
    limit = 5 / np.sqrt(a.size)
    for lag in (1, 2, 64, 65, 128):
        flat = a.reshape(32, -1)
        assert abs(correlation(flat[:, lag:], flat[:, :-lag])) < limit, lag
    assert abs(correlation(a[1:], a[:-1])) < limit
    for other in (kept((32, 64, 64), 0.3, place=1), kept((32, 64, 64), 0.3, seed=1)):
        assert abs(correlation(a, other)) < limit
    assert correlation(a, kept((32, 64, 64), 0.3)) > 0.999  # the control: the same draw again


def test_counts_are_binomial():
    """Row sums have the variance of independent draws."""
    counts = kept((256, 64, 64), 0.2).sum(-1).ravel()
    assert abs(counts.var() / (64 * 0.2 * 0.8) - 1) < 0.05


def test_backward_uses_the_same_bits():
    x = jax.random.normal(jax.random.key(1), (4, 50))
    draws = noise(4)
    y, vjp = jax.vjp(lambda x: dropout(x, 0.3, draws), x)
    (gradient,) = vjp(jnp.ones_like(x))
    np.testing.assert_array_equal(np.asarray(gradient) == 0, np.asarray(y) == 0)
    np.testing.assert_allclose(gradient[gradient != 0], 1 / 0.7, rtol=1e-6)


def test_an_example_does_not_depend_on_its_batch():
    draws, x = noise(8), jnp.ones((8, 5, 7))
    whole = dropout(x, 0.4, draws)
    part = dropout(x[3:5], 0.4, Noise(draws.seeds[3:5]))
    np.testing.assert_array_equal(whole[3:5], part)
    assert not np.array_equal(whole[0:2], part)


def test_the_mean_stays_in_bfloat16():
    """The scaling factor is not rounded to bfloat16, as what it multiplies is (1 / 0.9 would become 1.1094)."""
    x = jax.random.normal(jax.random.key(0), (64, 16_384)).astype(jnp.bfloat16)
    kept = np.asarray(dropout(x, 0.1, noise(64)), np.float64)
    ratio = kept[kept != 0].sum() / np.asarray(x, np.float64)[kept != 0].sum()
    sizes = np.abs(kept).sum() / np.abs(np.asarray(x, np.float64))[kept != 0].sum()
    assert sizes == pytest.approx(1 / 0.9, rel=2e-4) and ratio == pytest.approx(1 / 0.9, rel=1e-2)
