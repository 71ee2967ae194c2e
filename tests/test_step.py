"""The train step: arithmetic against NumPy, and the same numbers however it is computed."""

import itertools
import json
import os

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec as P

from conftest import ROOT, make_setup, sequences, small_config
from electra_jax import train
from electra_jax.data import pipeline
from electra_jax.reporting.metrics import figures
from electra_jax.training import step as step_lib
from electra_jax.training.optimizer import ends_at_zero, is_decayed, learning_rate, make_optimizer
from electra_jax.training.step import example_of, make_diagnosis

GOLDEN = ROOT / "tests" / "golden_metrics.json"


def batches(prepared, config, count):
    made = pipeline.training_batches(sequences(config, prepared), 0, config.train.batch_size)
    return [next(made) for _ in range(count)]


def run(config, prepared, steps, num_devices=1):
    """The state after some steps, and the metrics of each."""
    setup = make_setup(config, prepared, num_devices)
    state, found = setup.init(), []
    for ids in setup.place(batches(prepared, config, steps), config.train.batch_size):
        state, metrics = setup.train_step(state, ids)
        found.append(figures(jax.device_get(metrics)))
    return jax.device_get(state), found


def assert_close(one, other, **tolerance):
    flat_one, flat_other = (jax.tree_util.tree_leaves_with_path(tree) for tree in (one, other))
    for (path, a), (_, b) in zip(flat_one, flat_other, strict=True):
        np.testing.assert_allclose(a, b, err_msg=jax.tree_util.keystr(path), **tolerance)


def test_loss_falls(prepared):
    config = small_config(
        model={"hidden_dropout_prob": 0.0}, optimizer={"learning_rate": 5e-3}, train={"num_train_steps": 60}
    )
    setup = make_setup(config, prepared)
    (ids,) = batches(prepared, config, 1)
    state, losses = setup.init(), []
    for _ in range(40):
        state, metrics = setup.train_step(state, ids)
        losses.append(figures(jax.device_get(metrics))["loss"])
    assert np.mean(losses[-5:]) < 0.8 * np.mean(losses[:5])


def test_accumulation_equals_one_batch(prepared):
    """With dropout, masks and samples on: they belong to the example, not to the part it is computed in."""

    def config(parts, **sections):  # layers are unrolled, each with its own gradients until those are summed
        return small_config(model={"num_hidden_layers": 2}, train={"gradient_accumulation_steps": parts}, **sections)

    (whole, whole_metrics), *others = (run(config(parts), prepared, 3) for parts in (1, 2, 4))
    for split, split_metrics in others:
        for one, other in zip(whole_metrics, split_metrics, strict=True):
            np.testing.assert_allclose(
                [one[n] for n in sorted(one)], [other[n] for n in sorted(one)], rtol=2e-5, atol=1e-6
            )
        assert_close(whole.params, split.params, atol=2e-6, rtol=1e-4)
    other_seed, _ = run(config(1, seed=1), prepared, 3)
    with pytest.raises(AssertionError):  # the control: these tolerances do tell runs apart
        assert_close(whole.params, other_seed.params, atol=2e-6, rtol=1e-4)


def test_updates_on_a_mesh_equal_those_on_one_device(prepared):
    """Three steps, all axes at once; `test_meshes.py` compares losses and gradients on every mesh."""
    one, one_metrics = run(small_config(), prepared, 3)
    mesh = {"data": 2, "fsdp": 2, "tensor": 2}
    many, many_metrics = run(small_config(mesh=mesh), prepared, 3, num_devices=8)
    for a, b in zip(one_metrics, many_metrics, strict=True):
        np.testing.assert_allclose([a[n] for n in sorted(a)], [b[n] for n in sorted(a)], rtol=2e-5, atol=1e-6)
    assert_close(one.params, many.params, atol=2e-6, rtol=1e-4)


def test_parameters_are_laid_out_by_the_rules(prepared):
    setup = make_setup(small_config(mesh={"data": 2, "fsdp": 2, "tensor": 2}), prepared, 8)
    params = setup.init().params
    layers = params["discriminator"]["encoder"]["layers"]
    assert layers["intermediate"]["kernel"].sharding.spec == P(None, "fsdp", "tensor")
    assert layers["attention"]["query"]["kernel"].sharding.spec == P(None, "fsdp", "tensor")
    assert layers["output_norm"]["scale"].sharding.spec == P(None, None)
    assert params["shared"]["word"].sharding.spec == P("tensor", "fsdp")


def test_the_layout_of_the_data_is_that_of_the_steps(prepared):
    for packing in ("packed", "two_segments"):
        assert make_setup(small_config(data={"packing": packing}), prepared).ids.two_segments == (
            packing == "two_segments"
        )


def test_masks_follow_the_step(prepared):
    config = small_config()
    setup = make_setup(config, prepared)
    (ids,) = batches(prepared, config, 1)
    drawn = [example_of(jnp.int32(step), jnp.asarray(ids), config, setup.objective) for step in (3, 3, 4)]
    positions = [np.asarray(example.masked.positions) for example in drawn]
    np.testing.assert_array_equal(positions[0], positions[1])
    assert not np.array_equal(positions[0], positions[2])


def numpy_updates(params, gradients, config):
    """ELECTRA's optimizer in plain NumPy: clip, Adam without bias correction, decoupled decay by name."""
    o = config.optimizer
    params = {name: value.astype(np.float64) for name, value in params.items()}
    m = dict.fromkeys(params, 0.0)
    v = dict.fromkeys(params, 0.0)
    for step, gradient in enumerate(gradients):
        norm = np.sqrt(sum((g.astype(np.float64) ** 2).sum() for g in gradient.values()))
        rate = o.learning_rate * (1 - step / config.train.num_train_steps) * min(1, step / o.warmup_steps)
        for name, g in gradient.items():
            g = g * min(1, o.clip_norm / norm)
            m[name] = o.beta1 * m[name] + (1 - o.beta1) * g
            v[name] = o.beta2 * v[name] + (1 - o.beta2) * g**2
            update = m[name] / (np.sqrt(v[name]) + o.eps)
            if not any(part in name for part in ("bias", "scale")):
                update = update + o.weight_decay * params[name]
            params[name] = params[name] - rate * update
    return params


def test_optimizer_equals_numpy():
    config = small_config(
        optimizer={"learning_rate": 0.1, "warmup_steps": 3, "weight_decay": 0.1}, train={"num_train_steps": 10}
    )
    rng = np.random.default_rng(0)
    # Stacked parameters: biases and scales have two dimensions, and still do not decay.
    shapes = {"kernel": (2, 4, 3), "bias": (2, 3), "scale": (2, 4), "word": (5, 4), "output_bias": (5,)}
    params = {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    sizes = (0.01, 5.0, 1.0, 100.0, 0.1, 1.0, 1.0)  # some clipped, some not
    gradients = [{n: (s * rng.normal(size=shape)).astype(np.float32) for n, shape in shapes.items()} for s in sizes]
    optimizer = make_optimizer(config.optimizer, params)
    state, now = optimizer.init(params), params
    for step, gradient in enumerate(gradients):
        direction, state = optimizer.update(gradient, state, now)
        rate = learning_rate(jnp.int32(step), config)
        now = optax.apply_updates(now, optax.tree.scale(-rate, direction))
    assert_close(now, numpy_updates(params, gradients, config), rtol=2e-5, atol=1e-6)


def test_decay_goes_by_name(prepared):
    decayed = is_decayed(make_setup(small_config(), prepared).architecture.shapes)
    names = {
        jax.tree_util.keystr(path, simple=True, separator="/"): value
        for path, value in jax.tree_util.tree_leaves_with_path(decayed)
    }
    assert names["shared/word"] and names["shared/position"] and names["shared/token_type"]  # embeddings decay
    assert not names["shared/norm/scale"] and not names["generator/output_bias"]
    for name, value in names.items():
        assert value == (not name.endswith(("bias", "scale"))), name


def test_schedules():
    def rates(**optimizer):
        config = small_config(
            optimizer={"learning_rate": 1.0, "warmup_steps": 10, **optimizer}, train={"num_train_steps": 100}
        )
        return np.asarray(learning_rate(jnp.arange(101), config))

    linear = rates()
    np.testing.assert_allclose(linear, [min(1, s / 10) * (1 - s / 100) for s in range(101)], atol=1e-6)
    assert max(linear) == pytest.approx(0.9)  # the nominal peak is not reached, as in the reference
    cosine = rates(schedule="cosine")
    np.testing.assert_allclose(
        cosine[10:], [0.5 * (1 + np.cos(np.pi * (s - 10) / 90)) for s in range(10, 101)], atol=1e-6
    )
    np.testing.assert_allclose(cosine[:10], np.arange(10) / 10, atol=1e-6)
    assert rates(schedule="linear_after_warmup", warmup_steps=0)[:2] == pytest.approx([1, 0.99])  # no warm-up at all
    stable = rates(schedule="wsd", cooldown_steps=20)
    np.testing.assert_allclose(stable[10:81], 1, atol=1e-6)
    np.testing.assert_allclose(stable[80:], np.linspace(1, 0, 21), atol=1e-6)


@pytest.mark.parametrize("what", ["loss", "gradient"])
def test_a_step_that_is_not_finite_changes_nothing(prepared, what):
    """Nor do the steps dispatched after it; the state stays the one that the failed step began with."""
    config = small_config()
    setup = make_setup(config, prepared)
    first, second, third = setup.place(batches(prepared, config, 3), config.train.batch_size)
    state, _ = setup.train_step(setup.init(), first)
    broken = jax.tree.map(lambda x: x, state.params)
    discriminator = broken["discriminator"]
    if what == "loss":
        discriminator["head_output"]["bias"] = jnp.full((1,), jnp.inf)
    else:  # the scores are 0, and the gradient through them overflows
        discriminator["head"] = jax.tree.map(jnp.zeros_like, discriminator["head"])
        discriminator["head_output"]["kernel"] = jnp.full_like(discriminator["head_output"]["kernel"], 1e25)
    before = jax.device_get(broken)
    moments = jax.device_get(state.opt_state)
    state, metrics = setup.train_step(state._replace(params=broken), second)
    assert int(metrics["failed_step"]) == 1
    assert np.isfinite(figures(jax.device_get(metrics))["loss"]) == (what == "gradient")
    state, metrics = setup.train_step(state, third)
    assert int(metrics["failed_step"]) == 1 and int(state.step) == 1
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(state.params), before)
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(state.opt_state), moments)
    if what == "gradient":  # groups are told apart even where each replica clips by a norm that is not finite
        clipping = small_config(optimizer={"clipping": "per_replica"})
        diagnose = make_diagnosis(clipping, setup.architecture, setup.objective, setup.mesh)
        norms = diagnose(state.params, 1, second)["gradient_norms_by_group"]
        assert 0 < norms["generator"] < 100 and not np.isfinite(norms["discriminator"])


def test_evaluation_is_the_same_for_any_batch_size(prepared):
    """Masks and samples depend on the record alone, and sums are divided only at the end."""
    records = prepared.sets[32]
    dropping = {"hidden_dropout_prob": 0.5, "attention_probs_dropout_prob": 0.5}  # in training alone
    found = []
    # On eight devices a batch of 6 becomes one of 8.
    for size, devices, rates in ((4, 1, {}), (8, 1, dropping), (24, 1, {}), (6, 8, {})):
        setup = make_setup(small_config(evaluation={"batch_size": size}, model=rates), prepared, devices)
        size = setup.evaluation_batch_size
        assert size % devices == 0
        rows = pipeline.evaluation_batches(pipeline.held_out(records), size, 23, 0)
        found.append(setup.evaluate(setup.init().params, rows).figures)
    assert set(found[0]) >= {
        "masked_lm_loss", "masked_lm_accuracy", "disc_loss", "disc_accuracy", "disc_auc", "disc_precision", "disc_recall",
        "replaced_share",
    }  # fmt: skip
    counted = []  # also where padding counts: that of records, not the rows that fill up the last batch
    for size in (4, 24):
        setup = make_setup(small_config(evaluation={"batch_size": size, "disc_auc_padding": "counted"}), prepared)
        rows = pipeline.evaluation_batches(pipeline.held_out(records), size, 22, 0)
        counted.append(setup.evaluate(setup.init().params, rows).figures["disc_auc"])
    assert counted[0] == pytest.approx(counted[1], abs=1e-6)
    for other in found[1:]:
        for name, value in found[0].items():
            assert other[name] == pytest.approx(value, rel=1e-5 if other is found[-1] else 1e-6, abs=1e-7), name
    setup = make_setup(small_config(seed=1), prepared)
    other = setup.evaluate(
        make_setup(small_config(), prepared).init().params,
        pipeline.evaluation_batches(pipeline.held_out(records), 8, 23, 0),
    ).figures
    assert other["masked_lm_loss"] != pytest.approx(found[0]["masked_lm_loss"], rel=1e-6)  # the control


def test_golden_first_metrics(prepared):
    """The first steps' numbers, by version of jax, since the last bits differ between versions and processors.

    If a change is meant to alter them (initial values, masks, samples, losses, optimizer), write them anew by
    ELECTRA_JAX_WRITE_GOLDEN=1 under each version, and say in the commit why. Otherwise the test has found a bug.
    """
    _, metrics = run(small_config(), prepared, 4)
    rounded = [{name: round(value, 6) for name, value in sorted(row.items())} for row in metrics]
    golden = json.loads(GOLDEN.read_text())
    if os.environ.get("ELECTRA_JAX_WRITE_GOLDEN"):
        golden[jax.__version__] = rounded
        GOLDEN.write_text(json.dumps(golden, indent=1) + "\n")
    # A version without numbers of its own still has to agree with another's to rounding.
    known = jax.__version__ in golden
    expected = golden[jax.__version__] if known else next(iter(golden.values()))
    for row, wanted in zip(rounded, expected, strict=True):
        assert row == pytest.approx(wanted, rel=1e-5 if known else 2e-4, abs=2e-6)


def test_steps_in_bfloat16_are_those_in_float32_to_its_rounding(prepared):
    """The weights are far from 0: with a new run's weights, losses would be those of guessing, whatever the towers compute."""

    def steps(dtype, seed=0):
        state, metrics = run(small_config(model={"dtype": dtype, "initializer_range": 0.3}, seed=seed), prepared, 3)
        assert all(leaf.dtype == np.float32 for leaf in jax.tree.leaves(state.params))
        return metrics[-1]

    found, reference, other = steps("bfloat16"), steps("float32"), steps("float32", seed=1)
    names = ["loss", "masked_lm_loss", "disc_loss", "grad_norm"]
    errors, apart = (np.asarray([abs(one[name] / reference[name] - 1) for name in names]) for one in (found, other))
    assert (errors < 0.03).all() and (errors < apart / 2).sum() >= 3, (errors, apart)


@pytest.mark.parametrize(
    ("schedule", "warmup_steps"),
    [*itertools.product(["linear", "linear_after_warmup", "cosine", "wsd"], [10, 200, 1000]), ("wsd", 50)],
)
def test_what_a_run_is_too_short_for_is_said(schedule, warmup_steps):
    """A warning comes where the rate never reaches its peak; `ends_at_zero` agrees with the rate at the last step."""
    cooldown = {"cooldown_steps": 50} if schedule == "wsd" else {}
    config = small_config(
        train={"num_train_steps": 100}, optimizer={"schedule": schedule, "warmup_steps": warmup_steps, **cooldown}
    )
    rates = np.asarray(learning_rate(jnp.arange(101), config))
    reaches = max(rates) == pytest.approx(config.optimizer.learning_rate, rel=0.15)  # `linear` does not quite
    said = list(train._never_reached(config))
    assert len(said) == (not reaches) and all(
        "leave nothing of config.train.num_train_steps=100" in one for one in said
    )
    assert ends_at_zero(config) == (rates[-1] == 0)


def test_a_long_warm_up_of_a_rate_that_falls_meanwhile_is_said():
    """As where only the steps of a recipe were lowered."""
    for schedule, warmup_steps, count in (("linear", 50, 1), ("linear", 25, 0), ("linear_after_warmup", 50, 0)):
        optimizer = {"schedule": schedule, "warmup_steps": warmup_steps, "learning_rate": 5e-4}
        config = small_config(train={"num_train_steps": 100}, optimizer=optimizer)
        said = list(train._never_reached(config))
        assert len(said) == count and all("comes to 0.00025, not 0.0005; lower it" in one for one in said)
        if count:
            assert max(learning_rate(jnp.arange(101), config)) == pytest.approx(2.5e-4)


def test_replicas_are_parts_of_a_batch_to_the_compiler(monkeypatch, prepared):
    """Their loop is one that its disabled pass would miscompile, as that of accumulation."""
    told = []
    monkeypatch.setattr(step_lib, "compiler_options", lambda mesh, parts: told.append(parts))
    config = small_config(
        train={"replicas": 2, "gradient_accumulation_steps": 2}, objective={"loss_mean": "per_replica"}
    )
    make_setup(config, prepared).train_step  # noqa: B018 - made when asked for
    assert told == [4]


def test_a_curriculum_that_goes_beyond_the_run_is_said():
    curriculum = {"curriculum_lengths": (16,), "curriculum_steps": (50,)}
    for steps, count in ((51, 0), (50, 1)):
        config = small_config(train={"num_train_steps": steps}, data=curriculum)
        said = list(train._never_reached(config))
        assert len(said) == count and all("nothing is trained at config.data.max_seq_length=32" in one for one in said)
