"""The step on meshes of eight simulated devices: the same numbers, laid out by the rules, and no needless communication."""

import os
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from conftest import ROOT, first_batch, make_setup, small_config
from electra_jax import cli
from electra_jax.analysis import hlo
from electra_jax.config import Config, MeshConfig
from electra_jax.errors import UserError
from electra_jax.models import sharding
from electra_jax.models.electra import by_name
from electra_jax.models.vocabulary import BLOCK
from electra_jax.objectives.layout import TokenIds
from electra_jax.objectives.losses import AUC_BINS
from electra_jax.reporting.metrics import figures
from electra_jax.training import partitioning
from electra_jax.training.setup import Setup, mesh_of
from electra_jax.training.step import example_of, loss_and_gradients

GOLDEN = ROOT / "tests" / "golden_shardings.txt"
MESHES = [(1, 1, 1), (8, 1, 1), (1, 8, 1), (2, 2, 2), (1, 2, 4)]
# Enough layers for a loop over them; a generator whose two heads four devices cannot share.
MODEL = {"num_hidden_layers": 5, "num_attention_heads": 4}
HARD = {"model": {**MODEL, "remat": "dots"}, "train": {"batch_size": 16, "gradient_accumulation_steps": 2}}


def on_mesh(mesh, **sections) -> Config:
    return small_config(mesh=dict(zip(("data", "fsdp", "tensor"), mesh)), **sections)


def setup_of(config, prepared) -> Setup:
    return make_setup(config, prepared, int(np.prod([config.mesh.data, config.mesh.fsdp, config.mesh.tensor])))


def gradients_of(config, prepared):
    """Initial parameters, loss, gradients and samples of the first batch."""
    setup = setup_of(config, prepared)
    rows = first_batch(config, prepared)
    (ids,) = setup.place([rows], config.train.batch_size)

    def compute(params, ids):
        with partitioning.activation_rules(setup.mesh):
            example = example_of(jnp.int32(0), ids, config, setup.objective)
            loss, gradients, terms = loss_and_gradients(params, example, config, setup.architecture, setup.objective)
            return loss, gradients, terms.sampled_ids

    params = setup.init().params
    return jax.device_get((params, *jax.jit(compute)(params, ids)))


@pytest.fixture(scope="module")
def plain(prepared):
    """One device, without accumulation or rematerialisation."""
    return gradients_of(on_mesh((1, 1, 1), model=MODEL, train={"batch_size": 16}), prepared)


@pytest.mark.parametrize("mesh", MESHES, ids=str)
def test_every_mesh_gives_the_same(prepared, plain, mesh):
    """With accumulation, rematerialisation and the loop over layers, dropout on."""
    params, loss, gradients, samples = gradients_of(on_mesh(mesh, **HARD), prepared)
    for name, value in by_name(params).items():
        np.testing.assert_array_equal(value, by_name(plain[0])[name], err_msg=name)
    np.testing.assert_array_equal(samples, plain[3])
    assert loss == pytest.approx(plain[1], rel=1e-6)
    for name, value in by_name(gradients).items():
        expected = by_name(plain[2])[name]
        # The bias of the keys changes nothing: its gradient is 0 but for rounding.
        tolerance = 1e-9 if name.endswith("key/bias") else 1e-5 * np.abs(expected).max()
        np.testing.assert_allclose(value, expected, rtol=1e-5, atol=tolerance, err_msg=name)


def test_the_comparison_can_fail(prepared, plain):
    params, loss, gradients, samples = gradients_of(on_mesh((1, 1, 1), seed=1, **HARD), prepared)
    assert not np.array_equal(samples, plain[3]) and loss != pytest.approx(plain[1], rel=1e-6)
    name = "discriminator/head/kernel"
    assert not np.array_equal(by_name(params)[name], by_name(plain[0])[name])
    assert not np.allclose(by_name(gradients)[name], by_name(plain[2])[name], rtol=1e-5, atol=1e-7)


def test_every_leaf_is_laid_out_by_the_rules():
    """Base on 2 x 2 x 2, a line per parameter; Adam's moments are laid out like the parameters.

    A change of the rules changes this table: ELECTRA_JAX_WRITE_GOLDEN=1 rewrites it; read the changes before keeping them.
    """
    config = cli.load_config(str(ROOT / "configs" / "base.py"), [])
    mesh = partitioning.make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
    setup = Setup(config, TokenIds(0, 1, 2, 3, False), 30522, mesh)
    table = partitioning.describe(setup.abstract.params)
    width = max(map(len, table))
    text = "".join(f"{name:{width}}  {layout}\n" for name, layout in table.items())
    if os.environ.get("ELECTRA_JAX_WRITE_GOLDEN"):
        GOLDEN.write_text(text)
    assert text == GOLDEN.read_text()
    for name, leaf in by_name(setup.abstract.opt_state).items():
        moment = re.search(r"(?:mu|nu)/(.*)", name)
        if moment:
            parameter = by_name(setup.abstract.params)[moment.group(1)]
            assert leaf.sharding == parameter.sharding and leaf.shape == parameter.shape
    # A name that no rule covers is an error, not a parameter that is silently whole.
    with pytest.raises(KeyError):
        shape = jax.ShapeDtypeStruct((4,), jnp.float32)
        partitioning.parameter_shardings({"x": jax.sharding.PartitionSpec("unheard_of")}, {"x": shape}, mesh)


@pytest.mark.parametrize("mesh", [(2, 2, 2), (1, 2, 4)], ids=str)
def test_a_step_leaves_every_leaf_where_it_was(prepared, mesh):
    config = on_mesh(mesh, **HARD)
    setup = setup_of(config, prepared)
    rows = first_batch(config, prepared)
    (ids,) = setup.place([rows], config.train.batch_size)
    state, metrics = setup.train_step(setup.init(), ids)
    for (name, leaf), wanted in zip(by_name(state).items(), by_name(setup.abstract).values(), strict=True):
        assert leaf.sharding.is_equivalent_to(wanted.sharding, leaf.ndim), name
    assert np.isfinite(figures(jax.device_get(metrics))["loss"])


def compiled_text(config, prepared) -> str:
    setup = setup_of(config, prepared)
    shape = config.train.batch_size, config.data.max_seq_length
    batch = jax.ShapeDtypeStruct(shape, jnp.int32, sharding=NamedSharding(setup.mesh, partitioning.BATCH))
    return setup.train_step.lower(setup.abstract, batch).compile().as_text()


@pytest.fixture(scope="module")
def programs(prepared):
    """The compiled steps, plain, by mesh."""
    return {mesh: compiled_text(on_mesh(mesh, model=MODEL, train={"batch_size": 16}), prepared) for mesh in MESHES}


def sizes(prepared) -> dict[str, int]:
    """Float32 bytes: of all parameters, of the kernels, of the tables."""
    setup = setup_of(on_mesh((1, 1, 1), model=MODEL), prepared)
    found = {"all": 0, "kernels": 0, "tables": 0}
    for name, leaf in by_name(setup.architecture.shapes).items():
        found["all"] += 4 * leaf.size
        found["kernels"] += 4 * leaf.size if name.endswith("kernel") else 0
        found["tables"] += 4 * leaf.size if name.rpartition("/")[2] in ("word", "position", "token_type") else 0
    return found


def test_collectives_move_what_they_have_to(programs, prepared):
    """Bytes moved per step, worked out from 4 bytes a parameter (this is float32); the ranges leave room for scalars.

    data: every gradient is summed once; on the CPU, those of the tables are summed once for each of their three uses (the
      TPU's compiler adds the three up first). The histogram of scores comes on top.
    fsdp: kernels are gathered for the forward pass and again for the backward pass, tables once. XLA on the CPU sums
      whole gradients and keeps a part of them (`all-reduce`). The TPU compiler does the same with small kernels, even
      where the program says `psum_scatter` (tried with libtpu 0.0.50); above its threshold for windowed einsums it
      sends pieces round a ring during the product (`collective-permute`), which moves half as much.
    tensor: kernels are split over 2 or 4 devices, but activations come on top: an all-reduce of [B, L, D] for each product
      that sums over split heads or features, 2 forward and 4 backward (query, key and value apart) in every layer of both
      towers. About as much is gathered for the generator, whose two heads cannot be split over four devices.
    """
    size, histogram = sizes(prepared), 2 * AUC_BINS * 4
    summed = size["all"] + 2 * size["tables"] + histogram
    gathered = 2 * size["kernels"] + size["tables"]
    for mesh, text in programs.items():
        moved = hlo.collectives(hlo.Module(text), int(np.prod(mesh)))
        total = {kind: moved[kind].bytes if kind in moved else 0 for kind in hlo.KINDS}
        others = total["all-to-all"] + total["collective-permute"]
        if mesh == (1, 1, 1):
            assert not moved
        if mesh == (8, 1, 1):
            assert 0.95 * summed <= total["all-reduce"] <= 1.05 * summed
            assert total["all-gather"] + others <= 0.02 * size["all"]
        if mesh == (1, 8, 1):
            assert 0.95 * gathered <= total["all-gather"] <= 1.05 * gathered
            assert 0.95 * summed <= total["all-reduce"] + total["reduce-scatter"] <= 1.05 * summed
            assert others <= 0.02 * size["all"]
        if mesh[2] > 1:
            tokens = 16 // (mesh[0] * mesh[1]) * 32
            activations = (2 + 4) * 5 * tokens * (32 + 16) * 4
            assert activations + size["all"] / mesh[2] <= total["all-reduce"] <= 1.2 * (activations + summed)
            assert total["all-gather"] <= 2 * gathered / mesh[2] + activations
            assert others <= 0.02 * size["all"]


def shapes(text: str) -> set[tuple[int, ...]]:
    """The shape of every array in a program."""
    return {tuple(int(n) for n in dims.split(",")) for dims in re.findall(r"\b[a-z]+\d*\[([\d,]+)\]", text)}


@pytest.mark.parametrize("mesh", MESHES[1:], ids=str)
def test_no_device_holds_the_logits_of_the_whole_batch(programs, prepared, mesh):
    config = on_mesh(mesh, model=MODEL, train={"batch_size": 16})
    vocab = -(-prepared.tokenizer.vocab_size // BLOCK) * BLOCK
    whole = 16 * config.objective.max_predictions(config.data.max_seq_length) * vocab

    def is_over_vocabulary(shape: tuple[int, ...]) -> bool:
        return shape[-1] == vocab or shape[-2:] == (vocab // BLOCK, BLOCK)

    largest = {
        mesh: max(int(np.prod(shape)) for shape in shapes(text) if is_over_vocabulary(shape))
        for mesh, text in programs.items()
    }
    assert largest[(1, 1, 1)] >= whole  # the control
    assert largest[mesh] <= whole / 4


@pytest.mark.parametrize(
    ("rows", "expected"),
    [(16, ("data", "fsdp", "tensor")), (4 * 19, ("data", "fsdp")), (2 * 19, ("data",)), (19, None)],
)
def test_a_dimension_is_spread_over_as_many_axes_as_divide_it(rows, expected):
    """If the last axis does not divide it, the others still count: a batch's masked tokens need not be a multiple of `tensor`."""
    mesh = partitioning.make_mesh(MeshConfig(data=2, fsdp=2, tensor=2), jax.devices()[:8])

    @jax.jit
    def spread(x):
        with partitioning.activation_rules(mesh):
            return sharding.constrain(x, "batch_of_logits", None)

    found = spread(jax.device_put(jnp.zeros((rows, 3)), partitioning.replicated(mesh)))
    assert found.sharding.is_equivalent_to(NamedSharding(mesh, PartitionSpec(expected, None)), 2)


def test_replicas_count_where_a_batch_is_shared_out():
    """Each replica's part is spread over the devices by itself."""
    train = {"batch_size": 16, "replicas": 4, "gradient_accumulation_steps": 2}
    config = small_config(train=train, optimizer={"clipping": "per_replica"})
    with pytest.raises(
        UserError, match=r"batch_size=16 .* multiple of 64 \(.* 8 x 1 x 2 accumulation steps x 4 replicas\)"
    ):
        mesh_of(config, jax.devices()[:8])
    assert mesh_of(config, jax.devices()[:2]).size == 2


def test_hlo_parser_counts_every_form():
    """Asynchronous forms, tuples, loops, what is hidden in fusions, groups written in each way."""
    moved = hlo.collectives(hlo.Module(HLO), 8)
    assert moved["all-gather"] == hlo.Collective(3 + 1, 3 * 8 * 4 * 4 + 16 * 2, int(3 * 128 * 3 / 4 + 32 * 7 / 8))
    assert moved["all-reduce"] == hlo.Collective(1, 16 + 8, int(2 * 24 / 2))
    assert moved["reduce-scatter"] == hlo.Collective(3, 3 * 32 * 8, 3 * 32 * 7)
    assert moved["collective-permute"] == hlo.Collective(1, 64, 64)
    assert moved["send"] == hlo.Collective(1, 512, 512)
    assert "all-to-all" not in moved  # groups of one device
    cost = hlo.cost(HLO, 8)
    assert (cost.cycles, cost.kernels) == (3 * 100 + 7, [hlo.Kernel(1, 640, 96)])
    assert cost.dearest[0].source == "models/encoder.py:12" and cost.dearest[0].times == 3


HLO = """HloModule jit_step

FileNames
1 "/somewhere/electra_jax/models/encoder.py"
2 "/site-packages/jax/lax.py"

FunctionNames
1 "f"

FileLocations
1 {file_name_id=1 function_name_id=1 line=12 end_line=12 column=1 end_column=2}
2 {file_name_id=2 function_name_id=1 line=99 end_line=99 column=1 end_column=2}

StackFrames
1 {file_location_id=1 parent_frame_id=1}
2 {file_location_id=2 parent_frame_id=2}

%fused (p: f32[2,4]) -> f32[8,4] {
  %p = f32[2,4]{1,0} parameter(0)
  ROOT %ag.1 = f32[8,4]{1,0} all-gather(%p), channel_id=1, replica_groups=[2,4]<=[8], dimensions={0}
}

%fused.again (p: f32[2,4]) -> f32[8,4] {
  %p = f32[2,4]{1,0} parameter(0)
  ROOT %ag.2 = f32[8,4]{1,0} all-gather(%p), channel_id=1, replica_groups=[2,4]<=[8], dimensions={0}
}

%body (t: (s32[], f32[2,4])) -> (s32[], f32[2,4]) {
  %t = (s32[], f32[2,4]{1,0}) parameter(0)
  %fusion.1 = f32[8,4]{1,0} fusion(%t), calls=%fused, metadata={stack_frame_id=2}, backend_config={"estimated_cycles":"100"}
  %fusion.2 = f32[8,4]{1,0} fusion(%t), kind=kLoop, calls=%fused.again
  %rs = f32[2,4]{1,0} reduce-scatter(%fusion.1), channel_id=2, replica_groups=mesh['data'=8,'tensor'=1] {'data'}, dimensions={0}
  ROOT %r = (s32[], f32[2,4]{1,0}) tuple(%t, %rs)
}

%condition (t: (s32[], f32[2,4])) -> pred[] {
  %t = (s32[], f32[2,4]{1,0}) parameter(0)
  %bound = s32[] constant(3)
  ROOT %less = pred[] compare(%t, %bound), direction=LT
}

ENTRY %main (x: f32[2,4]) -> f32[2,4] {
  %x = f32[2,4]{1,0} parameter(0)
  %loop = (s32[], f32[2,4]{1,0}) while(%x), condition=%condition, body=%body
  %start = (bf16[2]{0}, bf16[16]{0}) all-gather-start(%x), channel_id=3, replica_groups={{0,1,2,3,4,5,6,7}}, dimensions={0}
  %done = bf16[16]{0} all-gather-done(%start)
  %ar = (f32[4]{0}, /*index=1*/f32[2]{0}) all-reduce(%x, %x), channel_id=4, replica_groups={{0,1},{2,3},{4,5},{6,7}}
  %cp = (f32[16]{0}, f32[16]{0}, u32[], u32[]) collective-permute-start(%x), channel_id=5, source_target_pairs={{0,1},{1,0}}
  %cpd = f32[16]{0} collective-permute-done(%cp)
  %a2a = f32[16]{0} all-to-all(%x), channel_id=6, replica_groups={{0},{1},{2},{3},{4},{5},{6},{7}}, dimensions={0}
  %s = (f32[1,1,128]{2,1,0}, u32[], token[]) send(%x, %x), channel_id=7, is_host_transfer=true
  %k = f32[2,4]{1,0} custom-call(%x), custom_call_target="tpu_custom_call", backend_config={"cost_estimate":{"flops":"640","transcendentals":"1","bytes_accessed":"96"}}
  ROOT %last = f32[2,4]{1,0} copy(%x), backend_config={"estimated_cycles":"7"}
}
"""  # noqa: E501
