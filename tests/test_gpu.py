"""What can be tested for GPUs without one: that the step lowers for CUDA, and when cuDNN's attention is chosen."""

import dataclasses
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding

from conftest import make_setup, small_config
from electra_jax.config import Config, ModelConfig
from electra_jax.errors import UserError
from electra_jax.models.attention import attention, fused_attention
from electra_jax.training import partitioning
from electra_jax.training.setup import choose_attention, compiles_fused

GPU = SimpleNamespace(platform="gpu", device_kind="a GPU")
CPU = SimpleNamespace(platform="cpu", device_kind="a CPU")


@pytest.mark.parametrize("mesh", [(1, 1, 1), (2, 2, 2)], ids=str)
def test_the_step_lowers_for_cuda(prepared, mesh):
    config = small_config(mesh=dict(zip(("data", "fsdp", "tensor"), mesh)), model={"dtype": "bfloat16"})
    setup = make_setup(config, prepared, int(np.prod(mesh)))
    shape = config.train.batch_size, config.data.max_seq_length
    batch = jax.ShapeDtypeStruct(shape, jnp.int32, sharding=NamedSharding(setup.mesh, partitioning.BATCH))
    exported = jax.export.export(setup.train_step, platforms=["cuda"])(setup.abstract, batch)
    assert exported.platforms == ("cuda",) and exported.nr_devices == np.prod(mesh)
    # Transposing to row-major order for products, and the barrier before it, are for the CPU alone.
    allowed = [jax.export.DisabledSafetyCheck.custom_call("LayoutConstraint")]
    on_cpu = jax.export.export(setup.train_step, platforms=["cpu"], disabled_checks=allowed)(setup.abstract, batch)
    for part in ("optimization_barrier", *(["LayoutConstraint"] if np.prod(mesh) == 1 else [])):
        assert exported.mlir_module().count(part) < on_cpu.mlir_module().count(part)


def test_fused_attention_equals_the_reference():
    """The call that is made for cuDNN, computed by XLA: values and gradients, with several segments and padding."""
    q, k, v, g = (jax.random.normal(jax.random.key(i), (2, 16, 2, 8)) for i in range(4))
    segments = jnp.asarray([[1] * 5 + [2] * 7 + [0] * 4, [1] * 16])
    ours, pull = jax.vjp(lambda *projected: attention(jnp.stack(projected), segments, 0.0, None), q, k, v)
    fused, fused_pull = jax.vjp(lambda *projected: fused_attention(jnp.stack(projected), segments, "xla"), q, k, v)
    np.testing.assert_allclose(fused, ours, atol=1e-5)
    for one, other in zip(fused_pull(g), pull(g), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)
    wrong = fused_attention(jnp.stack([q, k, v]), jnp.ones_like(segments), "xla")
    assert not np.allclose(wrong, ours, atol=1e-2)  # the control: segments matter


FITS = Config(model=ModelConfig(dtype="bfloat16", attention_probs_dropout_prob=0.0))


@pytest.mark.parametrize(
    ("change", "device", "part"),
    [
        ({}, CPU, "a CPU is no GPU"),
        ({"attention_probs_dropout_prob": 0.1}, GPU, "attention_probs_dropout_prob=0.1"),
        ({"dtype": "float32"}, GPU, "config.model.dtype=float32"),
        ({"num_attention_heads": 1}, GPU, "at most 128"),
    ],
)
def test_cudnn_is_chosen_where_it_can_be_had(monkeypatch, change, device, part):
    monkeypatch.setattr("electra_jax.training.setup.compiles_fused", lambda tower, length: True)
    assert choose_attention(FITS, GPU) == "cudnn"
    assert choose_attention(with_model(attention="reference"), GPU) == "reference"
    assert choose_attention(with_model(**change), device) == "reference"
    with pytest.raises(UserError, match=part):
        choose_attention(with_model(**change, attention="cudnn"), device)


def with_model(**changes) -> Config:
    return Config(model=dataclasses.replace(FITS.model, **changes))


def test_cudnn_is_not_chosen_without_it():
    """Without a GPU the probe itself says no; a program that asked for it all the same could not be lowered."""
    assert choose_attention(FITS, GPU) == "reference"
    tower = FITS.model.discriminator
    assert compiles_fused(tower, 16, "xla") and not compiles_fused(
        tower, 16, "cudnn"
    )  # the control: its program compiles
    x = jnp.ones((3, 1, 64, 1, 64), jnp.bfloat16)
    with pytest.raises(RuntimeError, match="cuDNN is not detected"):
        attention(x, jnp.ones((1, 64), jnp.int32), 0.0, None, "cudnn")
