"""From another program's weights to a state to train on."""

import dataclasses
from collections.abc import Iterable
from typing import Any, NamedTuple

import jax
import numpy as np
import optax

from electra_jax.config import Config, TokenizerConfig
from electra_jax.config_loading import validate
from electra_jax.data.sentencepiece_model import SentencePiece
from electra_jax.data.tokenizer import Tokenizer, WordPiece
from electra_jax.errors import UserError
from electra_jax.interop import tensorflow
from electra_jax.interop.names import Tensor
from electra_jax.interop.sources import ONE_ENCODER, ForeignCheckpoint, Piece
from electra_jax.interop.weights import Weights
from electra_jax.models.electra import Architecture, Params
from electra_jax.training.optimizer import Moments
from electra_jax.training.state import TrainState, fresh_params, new_state


class Imported(NamedTuple):
    """A state made of a source, and what became of each part."""

    config: Config
    state: TrainState
    taken: list[str]
    fresh: list[str]
    ignored: list[str]


def assemble(source: ForeignCheckpoint, config: Config, tokenizer: Tokenizer, restart: bool = False) -> Imported:
    """The state that a source makes, with fresh values for what it lacks.

    Args:
      source: what was read.
      config: for everything that the source does not determine.
      tokenizer: of the source.
      restart: count steps from 0 again.

    Raises:
      UserError: where a tensor is absent or has another shape than the sizes say.
    """
    length = min(config.data.max_seq_length, source.model.max_position_embeddings)
    config = dataclasses.replace(
        config,
        model=source.model,
        data=dataclasses.replace(config.data, max_seq_length=length),
        tokenizer=described(tokenizer, config.tokenizer),
    )
    validate(config)
    architecture = Architecture(config.model, tokenizer.vocab_size)
    fresh_state = jax.device_get(
        jax.jit(lambda: new_state(config, architecture, fresh_params(architecture, config.seed)))()
    )
    params = _writable(fresh_state.params)
    taken, fresh, cut = _fill(params, source.pieces, source, tokenizer.vocab_size)
    used = {(id(piece.weights), tensor.theirs) for piece in source.pieces for tensor in piece.tensors}
    untaken = _groups_untaken(params, source.pieces)
    fresh += untaken

    opt_state = fresh_state.opt_state
    if source.moments:
        mu, nu = (_writable(jax.tree.map(np.zeros_like, params)) for _ in range(2))
        lacking = []
        for tree, pieces in zip((mu, nu), (source.moments["mu"], source.moments["nu"])):
            lacking += _fill_moments(tree, pieces, source, tokenizer.vocab_size)
        opt_state = _with_moments(opt_state, mu, nu, source.step)
        taken.append("optimizer state")
        fresh += sorted({f"optimizer state of {name}" for name in [*lacking, *untaken]})
    else:
        fresh.append("optimizer state")
    ignored = cut + _ignored(source, used)
    state = TrainState(np.int32(0 if restart else source.step), params, opt_state, np.int32(-1))
    return Imported(config, state, taken, fresh, ignored)


def _fill(
    params: Params, pieces: list[Piece], source: ForeignCheckpoint, vocab_size: int
) -> tuple[list[str], list[str], list[str]]:
    """Writes the pieces into `params`; returns the names of those taken, those left fresh, and what was cut off."""
    taken, fresh, cut = [], [], []
    for piece in pieces:
        absent = [tensor.theirs for tensor in piece.tensors if tensor.theirs not in piece.weights.names()]
        if len(absent) == len(piece.tensors) and piece.is_optional:
            fresh.append(piece.name)
            continue
        if absent:
            raise UserError(
                f"{source.path}: {len(absent)} of the {len(piece.tensors)} tensors of the {piece.name} are missing, first "
                f"{absent[0]}"
            )
        for tensor in piece.tensors:
            cut += _put(params, tensor, piece.weights, source, vocab_size)
        taken.append(piece.name)
    return taken, fresh, cut


def _fill_moments(tree: Params, pieces: list[Piece], source: ForeignCheckpoint, vocab_size: int) -> list[str]:
    """Writes those of Adam's moments that the source has; returns the pieces where some are missing and stay at zero."""
    lacking = []
    for piece in pieces:
        known = [tensor for tensor in piece.tensors if tensor.theirs in piece.weights.names()]
        for tensor in known:
            _put(tree, tensor, piece.weights, source, vocab_size)
        if len(known) < len(piece.tensors):
            lacking.append(piece.name)
    return lacking


def _put(params: Params, tensor: Tensor, weights: Weights, source: ForeignCheckpoint, vocab_size: int) -> list[str]:
    """Writes one tensor; returns what was cut off it, in words."""
    value, cut = weights.get(tensor.theirs), []
    if not np.isfinite(value).all():
        raise UserError(f"{source.path}: {tensor.theirs} holds values that are not finite")
    if tensor.ours[-1] in ("word", "output_bias"):  # some vocabularies are padded
        if value.shape[0] < vocab_size:
            raise UserError(
                f"{source.path}: {tensor.theirs} has {value.shape[0]} rows, the tokenizer {vocab_size} tokens; "
                "give the vocabulary it was trained with, --config.tokenizer.vocab_file=FILE"
            )
        if value.shape[0] > vocab_size:
            cut = [f"{value.shape[0] - vocab_size} rows of {tensor.theirs} beyond the vocabulary"]
        value = value[:vocab_size]
    try:
        tensor.put(params, value)
    except ValueError as error:
        raise UserError(f"{source.path}: {error}, as its sizes say") from None
    return cut


def _groups_untaken(params: Params, pieces: list[Piece]) -> list[str]:
    """Towers that the source does not have at all."""
    present = {piece.name for piece in pieces}
    return [name for name in ("discriminator", "generator") if name in params and not present & {name, f"{name} head"}]


def _ignored(source: ForeignCheckpoint, used: set[tuple[int, str]]) -> list[str]:
    """Tensors of the source that were not used, apart from second copies of shared ones."""
    every: dict[int, Weights] = {id(piece.weights): piece.weights for piece in source.pieces}
    slots = tuple(tensorflow.SLOTS.values()) if source.moments else ()
    found = [
        name
        for key, weights in every.items()
        for name in weights.names()
        if (key, name) not in used and not name.endswith((*slots, "global_step")) and not _is_tied_copy(name, source)
    ]
    return sorted(found)


def _is_tied_copy(name: str, source: ForeignCheckpoint) -> bool:
    """Whether a tensor is the unused copy of one that both towers share."""
    if name == "generator_lm_head.weight":
        return True
    if source.model.towers in ONE_ENCODER:
        return any(part in f".{name}" for part in (".encoder.", ".embeddings.", ".embeddings_project."))
    has_both = {"discriminator", "generator"} <= {piece.name for piece in source.pieces}
    return has_both and ".embeddings." in f".{name}" and source.model.tied_embeddings


def described(tokenizer: Tokenizer, settings: TokenizerConfig) -> TokenizerConfig:
    """`settings`, made to describe a tokenizer that was not made from them."""
    settings = dataclasses.replace(settings, vocab_size=tokenizer.vocab_size, vocab_file="")
    if isinstance(tokenizer, WordPiece):
        return dataclasses.replace(
            settings, kind="wordpiece", lowercase=tokenizer.lowercase, strip_accents=tokenizer.strip_accents
        )
    assert isinstance(tokenizer, SentencePiece)
    return dataclasses.replace(
        settings, kind="unigram" if tokenizer.is_unigram else "bpe", lowercase=tokenizer.lowercase
    )


def _with_moments(opt_state: optax.OptState, mu: Params, nu: Params, step: int) -> optax.OptState:
    def replaced(state: Any) -> Any:
        if isinstance(state, Moments):
            return Moments(mu, nu)
        if isinstance(state, optax.ScaleByAdamState):
            return optax.ScaleByAdamState(np.int32(step), mu, nu)
        return state

    return jax.tree.map(replaced, opt_state, is_leaf=lambda x: isinstance(x, (Moments, optax.ScaleByAdamState)))


def _writable(tree: Iterable) -> Any:
    return jax.tree.map(np.array, tree)
