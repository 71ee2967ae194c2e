"""The compile command, with the TPU's own compiler and no TPU."""

import json
import re
import subprocess
import sys
import types
from pathlib import Path

import jax
import numpy as np
import pytest

from conftest import SMALL, config_file, process_env, run_module
from electra_jax import compile
from electra_jax.analysis import topology
from electra_jax.analysis.flops import step_flops
from electra_jax.config import MeshConfig
from electra_jax.config_loading import from_dict
from electra_jax.errors import UserError
from electra_jax.models.electra import Architecture
from electra_jax.training import partitioning

pytestmark = pytest.mark.slow
MODEL = {**SMALL["model"], "num_hidden_layers": 2, "dtype": "bfloat16"}
VALUES = {**SMALL, "model": MODEL, "train": {"batch_size": 16, "num_train_steps": 20}}


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("compile")
    config_file(folder / "small.py", VALUES)
    return folder


def compile_for(place, slices, *arguments):
    return run_module("compile", "--config=small.py", f"--topology={slices}", *arguments, cwd=place)


def sizes(values=VALUES) -> int:
    """Bytes of the parameters."""
    shapes = Architecture(from_dict(values).model, values["tokenizer"]["vocab_size"]).shapes
    return sum(4 * leaf.size for leaf in jax.tree.leaves(shapes))


def test_one_chip(place):
    done = compile_for(place, "v5e:1x1", "--json=one.json", "--hlo=one.txt")
    assert done.returncode == 0, done.stdout + done.stderr
    figures = json.loads((place / "one.json").read_text())
    memory = figures["hbm_bytes"]
    assert memory["parameters"] == sizes() and memory["optimizer"] == 2 * sizes()
    assert memory["peak"] == memory["parameters"] + memory["optimizer"] + memory["activations"] < memory["limit"]
    assert memory["limit"] == 15.75 * 2**30
    config = from_dict(VALUES)
    assert figures["model_flops"] == step_flops(config, 512) and figures["batch_size"] == 16
    assert figures["collectives"] == {} and figures["communication_seconds"] == 0
    assert figures["step_seconds"] == pytest.approx(figures["estimated_cycles"] / 1.5e9)
    assert figures["tokens_per_second_per_chip"] == pytest.approx(16 * 32 / figures["step_seconds"])
    assert figures["utilisation"] == pytest.approx(figures["model_flops"] / figures["step_seconds"] / 197e12)
    assert figures["save_bytes_per_host"] == pytest.approx(3 * sizes(), rel=0.01)
    assert len(figures["dearest"]) == 10
    assert any(re.match(r"(models|objectives|training)/\w+\.py:\d+", row["source"]) for row in figures["dearest"])
    assert (place / "one.txt").read_text().startswith("HloModule")
    for part in ("estimates, not measured", "memory, GiB", "utilisation", "to save", "windowed_einsum"):
        assert part in done.stdout


def test_a_slice_with_parameters_spread_over_it(place):
    spread = ["--config.mesh.data=1", "--config.mesh.fsdp=-1"]
    done = compile_for(place, "v5e:2x2", "--json=four.json", *spread)
    assert done.returncode == 0, done.stdout + done.stderr
    figures = json.loads((place / "four.json").read_text())
    assert figures["chips"] == figures["devices"] == 4 and figures["mesh"] == {"data": 1, "fsdp": 4, "tensor": 1}
    assert sizes() / 4 < figures["hbm_bytes"]["parameters"] < sizes() / 2  # vectors are not split
    moved = figures["collectives"]
    # bfloat16: the kernels once for each pass; float32: every gradient.
    assert moved["all-gather"]["bytes"] + moved.get("collective-permute", {"bytes": 0})["bytes"] > sizes() / 2
    assert figures["communication_seconds"] == pytest.approx(sum(c["wire_bytes"] for c in moved.values()) / 90e9)
    assert figures["step_seconds"] == pytest.approx(figures["compute_seconds"] + figures["communication_seconds"])
    assert figures["step_seconds_overlapped"] == max(figures["compute_seconds"], figures["communication_seconds"])


def test_gradients_of_parts_of_a_batch_are_added_up_over_the_devices_once(place):
    sent = {}
    for parts in (1, 4):
        accumulation = f"--config.train.gradient_accumulation_steps={parts}"
        done = compile_for(place, "v5e:2x2", f"--json=parts{parts}.json", accumulation)
        assert done.returncode == 0, done.stdout + done.stderr
        sent[parts] = json.loads((place / f"parts{parts}.json").read_text())["collectives"]["all-reduce"]["bytes"]
    table = 4 * 512 * 16  # word embeddings: the compiler still sums their gradient once per part
    assert sizes() <= sent[1] < 1.5 * sizes()
    assert sent[4] < 1.5 * sizes() + 2 * 4 * table < 4 * sizes()


def test_two_slices_and_chips_of_two_devices(place):
    done = compile_for(place, "v5e:2x2*2", "--json=two.json")
    assert done.returncode == 0, done.stdout + done.stderr
    figures = json.loads((place / "two.json").read_text())
    assert figures["chips"] == 8 and figures["collectives"]["send"]["bytes"] > 0  # between the slices
    done = compile_for(place, "v4:2x2x1", "--json=v4.json")
    assert done.returncode == 0, done.stdout + done.stderr
    figures = json.loads((place / "v4.json").read_text())
    assert (figures["chips"], figures["devices"], figures["batch_per_chip"]) == (4, 8, 4)
    assert figures["hbm_bytes"]["limit"] == 2 * 15.25 * 2**30 and figures["hbm_bytes"]["parameters"] == 2 * sizes()


KERNELS = """
import jax, jax.numpy as jnp
from jax.sharding import SingleDeviceSharding
from electra_jax import compile
from electra_jax.analysis import topology
from electra_jax.models import pallas_attention, pallas_norm
from electra_jax.models.noise import Noise

def norm(batch, length, width):
    def total(seeds, x, y, scale):
        return pallas_norm.add_and_norm(x, y, Noise(seeds), scale, scale, 0.1, 1e-6).astype(jnp.float32).sum()
    rows = batch, length, width
    return total, [((batch, 2), jnp.uint32), (rows, jnp.bfloat16), (rows, jnp.float32), ((width,), jnp.float32)]

def attention(batch, length, heads):
    def total(seeds, projected, segment_ids):
        first = jnp.zeros(1, jnp.int32)
        mixed = pallas_attention.pallas_attention(projected, segment_ids, seeds, first, heads, 0.1)
        return mixed.astype(jnp.float32).sum()
    wide = (3, batch, length, heads * 64), jnp.bfloat16
    return total, [((batch, 2), jnp.uint32), wide, ((batch, length), jnp.int32)]

def compiled(kind, made):
    device = compile._devices(topology.parse(kind))[0]
    total, shapes = made
    inputs = [jax.ShapeDtypeStruct(*each, sharding=SingleDeviceSharding(device)) for each in shapes]
    jax.jit(jax.grad(total, argnums=1)).lower(*inputs).compile()
    return device

v4 = compiled("v4:2x2x1", norm(1, 512, 1024))  # 16 MiB next to the cores
compiled("v4:2x2x1", attention(1, pallas_attention.longest(v4.device_kind), 2))
v5e = compiled("v5e:1x1", norm(4096, 128, 128))  # 1 MiB for scalars
compiled("v5e:1x1", attention(4096, 128, 2))
assert pallas_attention.longest(v4.device_kind) < pallas_attention.longest(v5e.device_kind), v4.device_kind
"""
MESHES = """
from electra_jax import compile
from electra_jax.analysis import topology
from electra_jax.config import MeshConfig
from electra_jax.training import partitioning

for kind, meshes in (
    ("v5e:4x4", [(-1, 1, 1), (1, -1, 1), (8, 1, 2), (8, 2, 1), (2, 8, 1), (2, 4, 2), (1, 8, 2)]),
    ("v5e:4x4*2", [(16, 1, 2), (-1, 2, 1)]),
):
    devices = compile._devices(topology.parse(kind))
    for sizes in meshes:
        mesh = partitioning.make_mesh(MeshConfig(*sizes), devices)
        assert {*mesh.devices.flat} == {*devices}
        assert all(size in (-1, made) for size, made in zip(sizes, mesh.devices.shape)), (kind, sizes, mesh)
"""


@pytest.mark.parametrize("code", [KERNELS, MESHES], ids=["kernels", "meshes"])
def test_what_the_chips_have_room_for(code):
    """Kernels at their largest, in the memories next to the cores; meshes whose axes are parts of a torus' sides."""
    done = subprocess.run([sys.executable, "-c", code], env=process_env(), capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr


# So large that the state alone, 3 x 4 bytes a parameter, exceeds a chip's memory, whatever the batch.
LARGE = [f"--config.model.{setting}" for setting in ("hidden_size=8192", "intermediate_size=32768")]


def test_what_does_not_fit_is_one_line_and_status_3(place):
    done = compile_for(place, "v5e:1x1", *LARGE)
    assert done.returncode == 3, done.stdout
    assert done.stderr.count("\n") == 1 and "Traceback" not in done.stderr
    needed, overrun = re.search(r"needs ([\d.]+) GiB of 15.75, ([\d.]+) too many", done.stderr).groups()
    assert float(overrun) == pytest.approx(float(needed) - 15.75, abs=0.02)
    model = {**VALUES["model"], "hidden_size": 8192, "intermediate_size": 32768}
    stored = 3 * sizes({**VALUES, "model": model}) / 2**30
    # On top of what is stored come at most the gradients, the kernels in bfloat16, and little else.
    assert 15.75 < stored <= float(needed) <= 2 * stored
    for option in ("train.batch_size=16", "model.remat=", "gradient_accumulation_steps=2", "smaller train.batch_size"):
        assert option in done.stderr


@pytest.mark.parametrize(
    ("start", "limit"), [(16, 1000), (4096, 1000), (512, 512), (8, 8), (1024, 8), (24, 16), (168, 80)]
)
def test_the_largest_batch_that_fits(monkeypatch, capsys, start, limit):
    """The search alone: compiling with large batches takes minutes. Eight devices, so multiples of 8."""
    tried = []

    def compile_step(config, slices, devices):
        tried.append(config.train.batch_size)
        if config.train.batch_size > limit:
            raise compile.DoesNotFit("too many")
        return config.train.batch_size

    monkeypatch.setattr(compile, "compile_step", compile_step)
    config = from_dict({**VALUES, "train": {"batch_size": start}})
    found = compile.find_batch(config, topology.parse("v5e:2x4"), jax.devices())
    assert found <= limit < found + max(8, found / 8) and found % 8 == 0
    assert len(tried) == len(set(tried)) <= 12
    assert f"a batch of {found:,} fits" in capsys.readouterr().out
    with pytest.raises(compile.DoesNotFit):
        limit = 4
        compile.find_batch(config, topology.parse("v5e:2x4"), jax.devices())


BAD = [
    ("v7:2x2", "is no TPU slice"),
    ("v5e:4", "is no TPU slice"),
    ("v5p:2x2", "3 dimensions"),
    ("v4:2x2x0", "above 0"),
    ("v5e:3x3", "not divisible"),
    ("v5e:8x8", "config.train.batch_size=16 cannot work: it must be a multiple of 64"),
]


@pytest.mark.parametrize(("slices", "part"), BAD)
def test_bad_topologies(place, slices, part):
    done = compile_for(place, slices)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
    assert part in done.stderr


def test_a_folder_that_is_not_there_is_said_before_compiling(place):
    done = compile_for(place, "v5e:1x1", "--json=no/such.json")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1) and "no/such.json cannot be written" in done.stderr


def test_a_pass_that_sums_parts_wrongly_is_left_out():
    """Only on a TPU that splits a table's rows and computes a batch in parts; the compiler accepts the option."""
    device = types.SimpleNamespace(platform="tpu", slice_index=0)
    meshes = {size: types.SimpleNamespace(devices=np.array([device]), shape={"tensor": size}) for size in (1, 2)}
    found = {(size, parts): partitioning.compiler_options(meshes[size], parts) for size in (1, 2) for parts in (1, 2)}
    disabled = found.pop((2, 2))
    assert disabled == {"xla_disable_hlo_passes": "while-loop-all-reduce-code-motion"} and not any(found.values())
    jax.jit(lambda x: x, compiler_options=disabled)(1)


def test_chips_of_two_devices_on_several_slices(monkeypatch):
    """As v4 shows to the compiler: what goes over the slices is split between them, all else is within one."""
    devices = [
        types.SimpleNamespace(platform="tpu", slice_index=n // 8, core_on_chip=n % 2, id=n) for n in reversed(range(16))
    ]
    monkeypatch.setattr(partitioning, "Mesh", lambda devices, *_, **__: devices)  # JAX's takes none but its own
    for sizes, across in (({"data": -1, "tensor": 2}, 0), ({"data": 1, "fsdp": -1}, 1)):
        found = partitioning.make_mesh(MeshConfig(**sizes), devices)
        slices = np.vectorize(lambda device: device.slice_index)(found)
        assert found.size == 16
        first, second = np.split(slices, 2, axis=across)
        assert not first.any() and second.all()


def test_topologies_by_name():
    four = topology.parse("v5e:4x4*2")
    assert (four.chips, four.slices, str(four)) == (32, 2, "v5e:4x4*2")
    assert four.describe() == {"topology_name": "v5e:4x4", "num_slices": 2}
    assert topology.parse("v6e:1x1").describe()["chips_per_host_bounds"] == [1, 1, 1]
    with pytest.raises(UserError):
        topology.parse("4x4")
    # Dense peaks follow from the clock and the matrix units, counted here in units of 128 x 128.
    for kind, units in (("v4", 4), ("v5e", 4), ("v5p", 8), ("v6e", 16)):
        chip = topology.CHIPS[kind]
        assert np.isclose(chip.peak_flops, 2 * units * 128 * 128 * chip.clock, rtol=0.01), kind
