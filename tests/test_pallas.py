"""The TPU's attention kernel, in interpret mode: it gives what the reference gives, with the same dropout, on any mesh."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from conftest import make_setup, small_config, with_data
from electra_jax.config import Config
from electra_jax.config_loading import from_dict
from electra_jax.data import build
from electra_jax.errors import UserError
from electra_jax.models.attention import attention
from electra_jax.models.electra import by_name
from electra_jax.models.noise import Noise
from electra_jax.models.pallas_attention import fits, pallas_attention
from electra_jax.training import partitioning
from electra_jax.training.setup import choose_attention
from electra_jax.training.step import example_of, loss_and_gradients

TPU = SimpleNamespace(platform="tpu", device_kind="a TPU")
# Heads side by side in a register, and single heads narrower than a register, as wide, and wider; several blocks of queries,
# and lengths that are no power of two, which not every block size divides.
SHAPES = [(2, 128, 4, 64), (2, 128, 1, 64), (1, 128, 8, 32), (1, 256, 2, 128), (1, 128, 1, 256), (1, 1024, 2, 64),
          (1, 640, 2, 64), (1, 768, 2, 64)]  # fmt: skip


def inputs(shape, dtype=jnp.float32):
    q, k, v, g = (jax.random.normal(jax.random.key(i), shape).astype(dtype) for i in range(4))
    rng = np.random.default_rng(0)
    segments = np.sort(rng.integers(1, 4, shape[:2]), axis=1)
    segments[:, shape[1] - 17 :] = 0  # padding
    return q, k, v, g, jnp.asarray(segments, jnp.int32), Noise(jax.random.bits(jax.random.key(9), (shape[0], 2)))


def both(shape, rate, noise, dtype=jnp.float32):
    q, k, v, g, segments, _ = inputs(shape, dtype)
    results = []
    for implementation in ("reference", "pallas"):
        mixed, pull = jax.vjp(
            lambda *projected: attention(jnp.stack(projected), segments, rate, noise, implementation),  # noqa: B023
            q, k, v,
        )  # fmt: skip
        results.append([mixed, *pull(g)])
    return results


@pytest.mark.parametrize("rate", [0.0, 0.1])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_values_and_gradients_equal_the_references(shape, rate):
    expected, found = both(shape, rate, inputs(shape)[-1])
    for one, other in zip(expected, found, strict=True):
        np.testing.assert_allclose(other, one, atol=3e-6, rtol=1e-5)


@pytest.mark.parametrize("length", range(128, 4097, 128))
def test_every_length_that_fits_lowers_for_tpus(length):
    """Values and gradients; the TPU's lowering refuses blocks that are no whole registers."""
    assert fits(length, 128, 2, "TPU v5 lite")
    projected = jax.ShapeDtypeStruct((3, 1, length, 128), jnp.bfloat16)
    others = (
        jax.ShapeDtypeStruct((1, length), jnp.int32),
        jax.ShapeDtypeStruct((1, 2), jnp.uint32),
        jax.ShapeDtypeStruct((1,), jnp.int32),
    )

    def gradient(projected, *others):
        return jax.grad(lambda x: pallas_attention(x, *others, 2, 0.1).astype(jnp.float32).sum())(projected)

    jax.export.export(jax.jit(gradient), platforms=["tpu"])(projected, *others)


def test_the_comparison_can_fail():
    shape = SHAPES[0]
    expected, found = both(shape, 0.1, inputs(shape)[-1])
    _, other_masks = both(shape, 0.1, inputs(shape)[-1].at(1))
    _, without = both(shape, 0.1, None)
    for other in (other_masks, without):
        assert all(np.abs(np.asarray(one - two)).max() > 1e-2 for one, two in zip(expected, other, strict=True))
    assert np.abs(np.asarray(expected[0] - found[0])).max() < 1e-5


def test_bfloat16():
    expected, _ = both(SHAPES[0], 0.1, inputs(SHAPES[0])[-1])
    _, found = both(SHAPES[0], 0.1, inputs(SHAPES[0])[-1], jnp.bfloat16)
    for one, other in zip(expected, found, strict=True):
        assert other.dtype == jnp.bfloat16
        error = np.abs(np.asarray(other, np.float32) - one).mean() / np.abs(np.asarray(one)).mean()
        assert error < 0.02


MODEL = {"hidden_size": 256, "num_attention_heads": 4, "intermediate_size": 64, "max_position_embeddings": 128}


def gradients(prepared_for, mesh, implementation):
    """Loss and gradients of a batch of the whole objective, dropout on."""
    config, prepared = prepared_for
    sizes = dict(zip(("data", "fsdp", "tensor"), mesh))
    values = {"model": {**MODEL, "attention": implementation}, "data": {"max_seq_length": 128}, "mesh": sizes}
    config = small_config(**values)
    setup = make_setup(config, prepared, int(np.prod(mesh)))
    assert setup.model.attention == implementation
    ids = np.random.default_rng(0).integers(5, prepared.tokenizer.vocab_size, (4, 128)).astype(np.int32)
    ids[:, [0, 50]], ids[:, [49, 120]], ids[:, 121:] = prepared.tokenizer.special.cls, prepared.tokenizer.special.sep, 0
    (ids,) = setup.place([ids], 4)

    def compute(params, ids):
        with partitioning.activation_rules(setup.mesh):
            example = example_of(jnp.int32(0), ids, config, setup.objective)
            return loss_and_gradients(params, example, config, setup.architecture, setup.objective)[:2]

    return jax.device_get(jax.jit(compute)(setup.init().params, ids))


@pytest.fixture(scope="module")
def prepared_for(corpus_file, data_directory):
    config = with_data(small_config(data={"max_seq_length": 128}, model=MODEL), corpus_file, data_directory)
    return config, build.prepare(config, say=lambda text: None)


@pytest.fixture(scope="module")
def by_reference(prepared_for):
    return gradients(prepared_for, (1, 1, 1), "reference")


@pytest.mark.parametrize("mesh", [(1, 1, 1), (2, 1, 2)], ids=str)
def test_a_whole_step_on_every_mesh(prepared_for, by_reference, mesh):
    """Each device knows the numbers of its own heads, and so draws its part of the same dropout."""
    loss, found = gradients(prepared_for, mesh, "pallas")
    assert loss == pytest.approx(by_reference[0], rel=1e-5)
    for name, expected in by_name(by_reference[1]).items():
        tolerance = 1e-8 if name.endswith("key/bias") else 2e-5 * np.abs(expected).max()
        np.testing.assert_allclose(by_name(found)[name], expected, rtol=2e-4, atol=tolerance, err_msg=name)


def test_where_it_is_chosen():
    assert choose_attention(Config(), TPU) == "pallas"  # small: 4 heads of 64, and a generator of one
    base = from_dict({"model": {"hidden_size": 768, "num_attention_heads": 12, "intermediate_size": 3072,
                                "generator_hidden_size": 1 / 3}, "data": {"max_seq_length": 512}})  # fmt: skip
    assert choose_attention(base, TPU) == "pallas" and choose_attention(base, TPU, tensor=2) == "pallas"
    assert choose_attention(base, TPU, tensor=4) == "reference"  # 3 heads of 64 do not fill the registers
    assert choose_attention(from_dict({"data": {"max_seq_length": 100}}), TPU) == "reference"
    curriculum = {"data": {"max_seq_length": 128, "curriculum_lengths": [64], "curriculum_steps": [5]}}
    assert choose_attention(from_dict(curriculum), TPU) == "reference"
    assert choose_attention(Config(), SimpleNamespace(platform="cpu", device_kind="a CPU")) == "reference"
    with pytest.raises(UserError, match=r"'pallas' cannot work: .*multiples of 128"):
        choose_attention(from_dict({"data": {"max_seq_length": 100}, "model": {"attention": "pallas"}}), TPU)
    with pytest.raises(UserError, match="a GPU is no TPU"):
        choose_attention(
            from_dict({"model": {"attention": "pallas"}}), SimpleNamespace(platform="gpu", device_kind="a GPU")
        )
    assert not fits(128, 192, 3, "TPU v5e") and fits(128, 64, 1, "TPU v5e")
    assert fits(4096, 1024, 16, "TPU v5e") and not fits(8192, 1024, 16, "TPU v5e")
    assert fits(2048, 1024, 16, "TPU v4") and not fits(4096, 1024, 16, "TPU v4")
