"""Work directories as runs leave them, with random weights, for tests that read or write them."""

import json

import jax
import jax.numpy as jnp
import numpy as np

from conftest import small_config
from electra_jax.config import MeshConfig, ModelConfig, TokenizerConfig
from electra_jax.data import tokenizer as tokenizer_lib
from electra_jax.models.electra import Architecture
from electra_jax.training import checkpoint, partitioning
from electra_jax.training.checkpoint import Checkpoints, Saved
from electra_jax.training.state import abstract_state, new_state

TEXTS = [
    "The quick brown fox jumps over the lazy dog, twice.",
    "Où êtes-vous allés, garçons ? Noël à l'œuvre, une île naïve.",
    "床前明月光，疑是地上霜。舉頭望明月，低頭思故鄉。",
    "😀 👩‍👩‍👧 🇫🇷 \x00\x07 control \x7f\x85 tab\tnew\nline",
    "",
    "   ",
    "\u200b\ufeff e\u0301 ﬁ ＦＵＬＬ　ｗｉｄｔｈ \u00a0 İstanbul",
    "a" * 150,
]


def random_params(config: ModelConfig, vocab_size: int):
    """Random parameters; biases and LayerNorms are not near 0 and 1, so that a swapped or forgotten one shows."""
    rng = np.random.default_rng(0)
    shapes = Architecture(config, vocab_size).shapes

    def values(path, leaf):
        noise = rng.normal(0, 0.05, leaf.shape).astype(np.float32)
        return 1 + noise if path[-1].key == "scale" else noise

    return jax.tree_util.tree_map_with_path(values, shapes)


def tokenizer(kind="wordpiece"):
    """A small cased vocabulary."""
    return tokenizer_lib.train(TokenizerConfig(kind=kind, vocab_size=300, lowercase=False), TEXTS * 5)


def make_run(workdir, config=None, steps=(7,), params=None, kind="wordpiece"):
    """A work directory with checkpoints, as a run leaves one."""
    config = config or small_config(model={"num_hidden_layers": 2})
    made = tokenizer(kind)
    architecture = Architecture(config.model, made.vocab_size)
    params = random_params(config.model, made.vocab_size) if params is None else params
    checkpoints = Checkpoints(workdir / "checkpoints", config.checkpoint)
    for step in steps:
        state = new_state(config, architecture, jax.tree.map(lambda x, step=step: jnp.asarray(x) + step, params))
        checkpoints.save(state, Saved(config, step, step * 8, "some data", made.to_json(), 32))
    checkpoints.close()
    lines = [{"step": step, "loss": 1.0, "eval/disc_auc": step / 10} for step in steps]
    (workdir / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return params


def restored(workdir):
    """What the newest checkpoint holds: the `Saved` record and the state."""
    origin = checkpoint.find(str(workdir))
    saved = checkpoint.read_saved(origin)
    architecture = Architecture(saved.config.model, tokenizer_lib.from_json(saved.tokenizer).vocab_size)
    mesh = partitioning.make_mesh(MeshConfig(), jax.devices()[:1])
    return saved, checkpoint.restore(origin, abstract_state(saved.config, architecture, mesh))
