"""The original TensorFlow checkpoints, `model.ckpt-N`, Adam's slots and the global step included."""

import re
from pathlib import Path
from typing import Any, NamedTuple

from electra_jax.errors import UserError
from electra_jax.interop.weights import Weights

_WORD = "electra/embeddings/word_embeddings"
# Adam's moments, as suffixes of a variable's name.
SLOTS = {"mu": "/adam_m", "nu": "/adam_v"}


class Checkpoint(NamedTuple):
    """A TensorFlow checkpoint."""

    path: Path  # the prefix of its files
    weights: Weights
    global_step: int | None

    def slots(self, which: str) -> Weights:
        """One of Adam's moments, "mu" or "nu", under the names of the variables."""
        suffix = SLOTS[which]
        found = {name.removesuffix(suffix) for name in self.weights.names() if name.endswith(suffix)}
        return Weights(found, lambda name: self.weights.get(name + suffix))


def find(path: Path) -> Path | None:
    """The prefix of the checkpoint that `path` names: that prefix, its .index file, or a folder, for its newest one; else None."""
    if Path(f"{path}.index").is_file():
        return path
    if path.name.endswith(".index") and path.is_file():
        return path.with_suffix("")
    numbered = {int(m[1]): p for p in path.glob("*.index") if (m := re.search(r"-(\d+)\.index$", p.name))}
    if numbered:
        return numbered[max(numbered)].with_suffix("")
    found = list(path.glob("*.index"))
    return found[0].with_suffix("") if len(found) == 1 else None


def read(path: Path) -> Checkpoint:
    """Opens a checkpoint by its prefix.

    Raises:
      UserError: without TensorFlow, or where it is damaged or not of the original ELECTRA.
    """
    try:
        import tensorflow as tf
    except ImportError:
        raise UserError(f"{path}: TensorFlow reads its checkpoints; pip install 'electra_jax[tensorflow]'") from None
    unreadable = (tf.errors.OpError, ValueError, RuntimeError, IndexError)
    try:
        reader = tf.train.load_checkpoint(str(path))
        names = set(reader.get_variable_to_shape_map())
        step = int(reader.get_tensor("global_step")) if "global_step" in names else None
    except unreadable as error:
        raise UserError(
            f"{path} cannot be read as a TensorFlow checkpoint ({str(error).splitlines()[0][:200]})"
        ) from None
    if _WORD not in names:
        raise UserError(f"{path} has no variable {_WORD}: it is not a checkpoint of the original ELECTRA code")

    def get(name: str) -> Any:
        try:
            return reader.get_tensor(name)
        except unreadable as error:
            raise UserError(f"{path}: {name} cannot be read ({str(error).splitlines()[0][:200]})") from None

    return Checkpoint(path, Weights(names, get), step)


def sizes(checkpoint: Checkpoint, tower: str, heads: int | None = None) -> dict[str, Any] | None:
    """A tower's sizes by the names of `ModelConfig`, read off its variables; None where it has none.

    Args:
      checkpoint: as read.
      tower: "electra" (the discriminator) or "generator".
      heads: how many attention heads it has, which the file does not tell; None: by the original's rule.
    """
    weights, names = checkpoint.weights, checkpoint.weights.names()
    layers = {int(m[1]) for name in names if (m := re.match(rf"{tower}/encoder/layer_(\d+)/", name))}
    if not layers:
        return None
    kernel = weights.get(f"{tower}/encoder/layer_0/intermediate/dense/kernel")
    if kernel is None:
        raise UserError(f"{checkpoint.path} lacks {tower}/encoder/layer_0/intermediate/dense/kernel")
    hidden, intermediate = kernel.shape
    own = f"{tower}/embeddings/" if f"{tower}/embeddings/word_embeddings" in names else "electra/embeddings/"
    tables = {
        name: weights.get(own + name) for name in ("word_embeddings", "position_embeddings", "token_type_embeddings")
    }
    lacking = [own + name for name, table in tables.items() if table is None]
    if lacking:
        raise UserError(f"{checkpoint.path} lacks {', '.join(lacking)}")
    return {
        "embedding_size": tables["word_embeddings"].shape[1],
        "hidden_size": hidden,
        "num_hidden_layers": max(layers) + 1,
        "num_attention_heads": heads or max(1, hidden // 64),
        "intermediate_size": intermediate,
        "max_position_embeddings": tables["position_embeddings"].shape[0],
        "type_vocab_size": tables["token_type_embeddings"].shape[0],
    }
