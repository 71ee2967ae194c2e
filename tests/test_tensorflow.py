"""Checkpoints of the original code, written by TensorFlow itself under its names, are imported whole and can be trained on."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from conftest import small_config
from electra_jax import import_checkpoint
from electra_jax.data import tokenizer as tokenizer_lib
from electra_jax.errors import UserError
from electra_jax.models.electra import Architecture
from electra_jax.objectives.layout import TokenIds, read_layout
from electra_jax.training.optimizer import Moments
from electra_jax.training.state import new_state
from electra_jax.training.step import replay
from runs import random_params, restored, tokenizer

tf = pytest.importorskip("tensorflow", reason="TensorFlow writes and reads its checkpoints (extra [test])")

# One head, as the original's heads are 64 wide.
CONFIG = small_config(
    model={"num_hidden_layers": 2, "hidden_size": 64, "num_attention_heads": 1, "generator_hidden_size": 0.5,
           "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0},
    train={"num_train_steps": 1000},
    optimizer={"warmup_steps": 10},
)  # fmt: skip
STEP = 100


def original_names(params):
    """Every variable of the original code's graph and its value, named here by hand from its source."""
    shared, generator, discriminator = (params[group] for group in ("shared", "generator", "discriminator"))
    found = {
        "electra/embeddings/word_embeddings": shared["word"],
        "electra/embeddings/position_embeddings": shared["position"],
        "electra/embeddings/token_type_embeddings": shared["token_type"],
        "electra/embeddings/LayerNorm/gamma": shared["norm"]["scale"],
        "electra/embeddings/LayerNorm/beta": shared["norm"]["bias"],
        "discriminator_predictions/dense/kernel": discriminator["head"]["kernel"],
        "discriminator_predictions/dense/bias": discriminator["head"]["bias"],
        "discriminator_predictions/dense_1/kernel": discriminator["head_output"]["kernel"],
        "discriminator_predictions/dense_1/bias": discriminator["head_output"]["bias"],
        "generator_predictions/dense/kernel": generator["transform"]["kernel"],
        "generator_predictions/dense/bias": generator["transform"]["bias"],
        "generator_predictions/LayerNorm/gamma": generator["transform_norm"]["scale"],
        "generator_predictions/LayerNorm/beta": generator["transform_norm"]["bias"],
        "generator_predictions/output_bias": generator["output_bias"],
    }
    for scope, tower in (("electra", discriminator), ("generator", generator)):
        project = tower["encoder"]["embeddings_project"]
        found[f"{scope}/embeddings_project/kernel"], found[f"{scope}/embeddings_project/bias"] = (
            project["kernel"], project["bias"]
        )  # fmt: skip
        layers = tower["encoder"]["layers"]
        for i in range(CONFIG.model.num_hidden_layers):
            layer = jax.tree.map(lambda x, i=i: x[i], layers)
            at = f"{scope}/encoder/layer_{i}"
            dense = {
                "attention/self/query": layer["attention"]["query"], "attention/self/key": layer["attention"]["key"],
                "attention/self/value": layer["attention"]["value"],
                "attention/output/dense": layer["attention"]["output"],
                "intermediate/dense": layer["intermediate"], "output/dense": layer["output"],
            }  # fmt: skip
            for name, value in dense.items():
                found[f"{at}/{name}/kernel"], found[f"{at}/{name}/bias"] = value["kernel"], value["bias"]
            norms = {"attention/output/LayerNorm": layer["attention_norm"], "output/LayerNorm": layer["output_norm"]}
            for name, value in norms.items():
                found[f"{at}/{name}/gamma"], found[f"{at}/{name}/beta"] = value["scale"], value["bias"]
    return {name: np.asarray(value) for name, value in found.items()}


def write_checkpoint(prefix, variables):
    with tf.Graph().as_default(), tf.compat.v1.Session() as session:
        made = [tf.compat.v1.get_variable(name, initializer=tf.constant(value)) for name, value in variables.items()]
        session.run(tf.compat.v1.variables_initializer(made))
        tf.compat.v1.train.Saver(made).save(session, str(prefix), write_meta_graph=False)


@pytest.fixture(scope="module")
def state():
    """A state in the middle of a run."""
    architecture = Architecture(CONFIG.model, tokenizer().vocab_size)
    made = new_state(CONFIG, architecture, random_params(CONFIG.model, tokenizer().vocab_size))
    rng = np.random.default_rng(3)
    mu = jax.tree.map(lambda x: rng.normal(0, 1e-2, x.shape).astype(np.float32), made.params)
    nu = jax.tree.map(lambda x: rng.random(x.shape).astype(np.float32) * 1e-3, made.params)
    opt_state = jax.tree.map(
        lambda x: Moments(mu, nu) if isinstance(x, Moments) else x,
        made.opt_state,
        is_leaf=lambda x: isinstance(x, Moments),
    )
    return made._replace(step=jnp.int32(STEP), opt_state=opt_state)


@pytest.fixture(scope="module")
def original(state, tmp_path_factory):
    """The same state as the original code saves it."""
    folder = tmp_path_factory.mktemp("original")
    moments = next(x for x in state.opt_state if isinstance(x, Moments))
    variables = original_names(state.params)
    for suffix, tree in (("adam_m", moments.mu), ("adam_v", moments.nu)):
        variables |= {f"{name}/{suffix}": value for name, value in original_names(tree).items()}
    write_checkpoint(folder / f"model.ckpt-{STEP}", variables | {"global_step": np.int64(STEP)})
    made = tokenizer()
    (folder / "vocab.txt").write_text("".join(f"{token}\n" for token in made.tokens(range(made.vocab_size))))
    return folder


SETTINGS = [
    "--config.model.hidden_dropout_prob=0", "--config.model.attention_probs_dropout_prob=0",
    "--config.train.num_train_steps=1000", "--config.optimizer.warmup_steps=10", "--config.optimizer.learning_rate=1e-3",
    "--config.tokenizer.lowercase=false",
]  # fmt: skip


@pytest.mark.parametrize("path", ["", f"model.ckpt-{STEP}", f"model.ckpt-{STEP}.index"])
def test_state_and_next_update(path, original, state, tmp_path, capsys):
    import_checkpoint.main([f"--from={original / path}", f"--workdir={tmp_path / 'new'}", *SETTINGS])
    said = capsys.readouterr().out
    assert "generator head, optimizer state" in said
    assert "fresh: nothing" in said
    assert "ignored: nothing" in said
    saved, found = restored(tmp_path / "new")
    assert saved.step == int(found.step) == STEP
    assert saved.config.model.num_attention_heads == 1
    # Cased, which the vocabulary alone does not say, but the setting does.
    assert tokenizer_lib.digest(tokenizer_lib.from_json(saved.tokenizer)) == tokenizer_lib.digest(tokenizer())
    jax.tree.map(np.testing.assert_array_equal, found.params, state.params)
    jax.tree.map(np.testing.assert_array_equal, found.opt_state, state.opt_state)
    if path:
        return
    ids = np.random.default_rng(4).integers(5, tokenizer().vocab_size, (4, 16))
    batch = read_layout(jnp.asarray(ids), jnp.arange(4), TokenIds(0, 2, 3, 4, two_segments=False))
    positions = jnp.asarray([[1, 5]] * 4)
    step = jax.jit(functools.partial(replay, saved.config))
    given = (batch, positions, jnp.ones((4, 2)), jnp.asarray(ids).at[:, 5].set(4), jnp.asarray([[7, 8]] * 4))
    (one, metrics), (other, _) = step(found, *given), step(state, *given)
    jax.tree.map(np.testing.assert_array_equal, one.params, other.params)
    np.testing.assert_allclose(metrics["learning_rate"], 1e-3 * (1 - STEP / 1000), rtol=1e-6)  # the schedule goes on


def test_restarted_schedule_keeps_the_moments(original, state, tmp_path):
    arguments = [f"--from={original}", f"--workdir={tmp_path / 'new'}", "--restart_schedule", *SETTINGS]
    import_checkpoint.main(arguments)
    saved, found = restored(tmp_path / "new")
    assert saved.step == int(found.step) == 0
    jax.tree.map(np.testing.assert_array_equal, found.opt_state, state.opt_state)


def test_a_run_that_would_be_over_is_told(original, tmp_path, capsys):
    import_checkpoint.main(
        [f"--from={original}", f"--workdir={tmp_path / 'new'}", *SETTINGS, "--config.train.num_train_steps=50"]
    )
    assert "raise train.num_train_steps, 50, above that step" in capsys.readouterr().out


def test_heads_that_are_not_64_wide_are_said_by_hand(original, tmp_path, capsys):
    given = [f"--from={original}", *SETTINGS]
    import_checkpoint.main([*given, f"--workdir={tmp_path / 'one'}"])
    assert "taken for granted: 1 attention heads of 64" in capsys.readouterr().out
    import_checkpoint.main([*given, f"--workdir={tmp_path / 'two'}", "--config.model.num_attention_heads=2"])
    assert "taken for granted" not in capsys.readouterr().out
    assert restored(tmp_path / "two")[0].config.model.num_attention_heads == 2


def test_moments_that_are_missing_start_at_zero_and_are_named(state, tmp_path, capsys):
    variables, moments = original_names(state.params), next(x for x in state.opt_state if isinstance(x, Moments))
    for suffix, tree in (("adam_m", moments.mu), ("adam_v", moments.nu)):
        variables |= {f"{n}/{suffix}": v for n, v in original_names(tree).items() if not n.startswith("generator/")}
    write_checkpoint(tmp_path / "model.ckpt-7", variables)
    made = tokenizer()
    (tmp_path / "vocab.txt").write_text("".join(f"{token}\n" for token in made.tokens(range(made.vocab_size))))
    import_checkpoint.main([f"--from={tmp_path}", f"--workdir={tmp_path / 'new'}", *SETTINGS])
    assert "fresh: optimizer state of generator" in capsys.readouterr().out
    found = next(x for x in restored(tmp_path / "new")[1].opt_state if isinstance(x, Moments))
    jax.tree.map(np.testing.assert_array_equal, found.mu["discriminator"], moments.mu["discriminator"])
    assert not np.any(found.mu["generator"]["encoder"]["layers"]["output"]["kernel"])


def test_released_checkpoints_have_no_optimizer_state_and_may_lack_a_head(state, tmp_path, capsys):
    variables = {n: v for n, v in original_names(state.params).items() if not n.startswith("discriminator_predictions")}
    write_checkpoint(tmp_path / "electra.ckpt", variables)
    made = tokenizer()
    (tmp_path / "vocab.txt").write_text("".join(f"{token}\n" for token in made.tokens(range(made.vocab_size))))
    import_checkpoint.main([f"--from={tmp_path}", f"--workdir={tmp_path / 'new'}", *SETTINGS])
    assert "fresh: discriminator head, optimizer state" in capsys.readouterr().out
    saved, found = restored(tmp_path / "new")
    assert saved.step == 0
    jax.tree.map(np.testing.assert_array_equal, found.params["shared"], state.params["shared"])


def test_damage_and_strangers(original, state, tmp_path):
    def refused(match, path):
        with pytest.raises(UserError, match=match):
            import_checkpoint.main([f"--from={path}", f"--workdir={tmp_path / 'new'}", *SETTINGS])
        assert not (tmp_path / "new").exists()

    write_checkpoint(tmp_path / "other.ckpt-1", {"bert/embeddings/word_embeddings": np.zeros((3, 3), np.float32)})
    refused("not a checkpoint of the original ELECTRA", tmp_path / "other.ckpt-1")
    broken = tmp_path / "broken"
    broken.mkdir()
    for path in original.iterdir():
        (broken / path.name).write_bytes(path.read_bytes())
    data = next(broken.glob("*.data-*"))
    data.write_bytes(data.read_bytes()[:1000])
    refused("cannot be read", broken)
    next(broken.glob("*.index")).write_bytes(b"nothing")
    refused("cannot be read as a TensorFlow checkpoint", broken)
    variables = original_names(state.params)
    del variables["electra/encoder/layer_1/output/dense/kernel"]
    (tmp_path / "lacking").mkdir()
    write_checkpoint(tmp_path / "lacking" / "model.ckpt-1", variables)
    (tmp_path / "lacking" / "vocab.txt").write_bytes((original / "vocab.txt").read_bytes())
    refused(
        "1 of the .* tensors of the discriminator are missing, first electra/encoder/layer_1/output",
        tmp_path / "lacking",
    )
