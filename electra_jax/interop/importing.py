"""From another program's weights to a state to train on."""

import dataclasses
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import optax

from electra_jax.config import Config, ModelConfig, TokenizerConfig
from electra_jax.config_loading import validate
from electra_jax.data.sentencepiece_model import SentencePiece
from electra_jax.data.tokenizer import Tokenizer, WordPiece
from electra_jax.errors import UserError
from electra_jax.interop import huggingface, names, tensorflow
from electra_jax.interop.names import HUGGING_FACE, TENSORFLOW, Convention, Tensor
from electra_jax.interop.weights import Weights
from electra_jax.models.electra import Architecture, Params
from electra_jax.training.optimizer import Moments
from electra_jax.training.state import TrainState, new_state


class Piece(NamedTuple):
    """Tensors that come or lack together, and where they come from."""

    name: str
    tensors: list[Tensor]
    weights: Weights
    is_optional: bool  # whether training may begin with fresh values instead


class Source(NamedTuple):
    """What a source holds.

    Attributes:
      path: for messages.
      model: the configuration with its sizes.
      pieces: its tensors.
      moments: Adam's, as the same pieces of other weights; empty where it has none.
      step: updates it has behind it, 0 where it does not say.
    """

    path: str
    model: ModelConfig
    pieces: list[Piece]
    moments: dict[str, list[Piece]]
    step: int


class Imported(NamedTuple):
    """A state made of a source, and what became of each part."""

    config: Config
    state: TrainState
    taken: list[str]
    fresh: list[str]
    ignored: list[str]


def from_hugging_face(folders: list[Path], base: ModelConfig) -> Source:
    """One or both towers, in Hugging Face folders.

    Raises:
      UserError: for folders that are damaged, unknown here or do not go together.
    """
    models = [huggingface.read(folder) for folder in folders]
    by_part = {model.part: model for model in models}
    if len(by_part) < len(models):
        raise UserError(
            f"{' and '.join(map(str, folders))} are both a {models[0].part}; one discriminator and one generator go together"
        )
    discriminator, generator = by_part.get("discriminator"), by_part.get("generator")
    path = " and ".join(map(str, folders))
    sizes = (model and huggingface.sizes(model) for model in (discriminator, generator))
    config = _with_sizes(base, *sizes, path)
    if discriminator and generator and _differ(discriminator, generator):
        if config.embedding_size != config.generator.hidden_size:
            raise UserError(
                f"{discriminator.folder} and {generator.folder} do not share their embeddings, so they are not of one "
                "run; import one of them"
            )
        config = dataclasses.replace(config, tied_embeddings=False)
    bodies = {part: (model.weights, model.prefix) for part, model in by_part.items()}
    return Source(path, config, _pieces(config, HUGGING_FACE, bodies), {}, 0)


def from_tensorflow(path: Path, base: ModelConfig) -> Source:
    """A checkpoint of the original code, by its prefix; raises `UserError` where it is none or damaged."""
    checkpoint = tensorflow.read(path)
    discriminator, generator = (tensorflow.sizes(checkpoint, tower) for tower in ("electra", "generator"))
    if discriminator is None:
        raise UserError(f"{path} has no electra/encoder: it is not a checkpoint of the original ELECTRA code")
    config = _with_sizes(base, discriminator, generator, str(path))
    if "generator/embeddings/word_embeddings" in checkpoint.weights.names():
        config = dataclasses.replace(config, tied_embeddings=False)

    def pieces(weights: Weights) -> list[Piece]:
        bodies = {"discriminator": (weights, "electra"), **({"generator": (weights, "generator")} if generator else {})}
        return _pieces(config, TENSORFLOW, bodies)

    slots = {which: checkpoint.slots(which) for which in tensorflow.SLOTS}
    moments = {which: pieces(weights) for which, weights in slots.items() if weights.names()}
    return Source(str(path), config, pieces(checkpoint.weights), moments, checkpoint.global_step or 0)


def assemble(source: Source, config: Config, tokenizer: Tokenizer) -> Imported:
    """The state that a source makes, with fresh values for what it lacks.

    Raises:
      UserError: where a tensor is absent or has another shape than the sizes say.
    """
    length = min(config.data.max_seq_length, source.model.max_position_embeddings)
    config = dataclasses.replace(
        config,
        model=source.model,
        data=dataclasses.replace(config.data, max_seq_length=length),
        tokenizer=_described(tokenizer, config.tokenizer),
    )
    validate(config)
    architecture = Architecture(config.model, tokenizer.vocab_size)
    fresh_state = jax.device_get(jax.jit(lambda: new_state(config, architecture))())
    params = _writable(fresh_state.params)
    taken, fresh = _fill(params, source.pieces, source, tokenizer.vocab_size)
    used = {(id(piece.weights), tensor.theirs) for piece in source.pieces for tensor in piece.tensors}
    untaken = _groups_untaken(params, source.pieces)
    fresh += untaken

    opt_state = fresh_state.opt_state
    if source.moments:
        mu, nu = (_writable(jax.tree.map(np.zeros_like, params)) for _ in range(2))
        lacking = []
        for tree, pieces in zip((mu, nu), (source.moments["mu"], source.moments["nu"])):
            lacking += _fill(tree, pieces, source, tokenizer.vocab_size)[1]
        opt_state = _with_moments(opt_state, mu, nu, source.step)
        taken.append("optimizer state")
        fresh += sorted({f"optimizer state of {name}" for name in [*lacking, *untaken]})
    else:
        fresh.append("optimizer state")
    ignored = _ignored(source, used)
    state = TrainState(np.int32(source.step), params, opt_state, np.int32(-1))
    return Imported(config, state, taken, fresh, ignored)


def _pieces(config: ModelConfig, convention: Convention, bodies: dict[str, tuple[Weights, str]]) -> list[Piece]:
    """The pieces of the towers in `bodies`, each given as its weights and the prefix of its body."""
    pieces = []
    if "discriminator" in bodies:
        weights, prefix = bodies["discriminator"]
        pieces.append(Piece("discriminator", list(names.discriminator(config, convention, prefix)), weights, False))
        pieces.append(Piece("discriminator head", list(names.discriminator_head(convention)), weights, True))
    if "generator" in bodies:
        weights, prefix = bodies["generator"]
        body = list(names.generator(config, convention, prefix))
        if "discriminator" in bodies:  # shared embeddings are taken already
            body = [tensor for tensor in body if tensor.ours[0] != "shared"]
        pieces.append(Piece("generator", body, weights, False))
        pieces.append(Piece("generator head", list(names.generator_head(convention)), weights, True))
    return pieces


def _with_sizes(base: ModelConfig, discriminator: dict | None, generator: dict | None, path: str) -> ModelConfig:
    """`base` with the sizes of the towers there are; raises `UserError` where the generator fits no fraction."""
    base = dataclasses.replace(base, towers="separate")
    model = dataclasses.replace(base, **discriminator) if discriminator else base
    if generator is None:
        return model
    if not discriminator:
        tables = {"embedding_size", "max_position_embeddings", "type_vocab_size", "layer_norm_eps"} & generator.keys()
        model = dataclasses.replace(model, **{name: generator[name] for name in tables})
    model = dataclasses.replace(
        model,
        generator_hidden_size=generator["hidden_size"] / model.hidden_size,
        generator_layers=generator["num_hidden_layers"] / model.num_hidden_layers,
    )
    for name in ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size"):
        ours = getattr(model.generator, name)
        if ours != generator[name]:
            raise UserError(
                f"{path}: the generator's {name} is {generator[name]}; as a fraction of the discriminator's "
                f"(width {model.hidden_size}, {model.num_attention_heads} heads, feed-forward {model.intermediate_size}) "
                f"it would be {ours}"
            )
    return model


def _differ(discriminator: huggingface.Model, generator: huggingface.Model) -> bool:
    """Whether two towers have embeddings of their own."""
    for table in ("word_embeddings.weight", "position_embeddings.weight", "LayerNorm.weight"):
        one, other = (m.weights.get(_dotted(m.prefix, f"embeddings.{table}")) for m in (discriminator, generator))
        if one is not None and other is not None and not np.array_equal(one, other):
            return True
    return False


def _dotted(prefix: str, name: str) -> str:
    return f"{prefix}.{name}" if prefix else name


def _fill(params: Params, pieces: list[Piece], source: Source, vocab_size: int) -> tuple[list[str], list[str]]:
    """Writes the pieces into `params`; returns the names of those taken and of those left fresh."""
    taken, fresh = [], []
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
            value = piece.weights.get(tensor.theirs)
            if tensor.ours[-1] in ("word", "output_bias"):
                value = _rows(value, vocab_size, tensor, source)
            try:
                tensor.put(params, value)
            except ValueError as error:
                raise UserError(f"{source.path}: {error}, as its sizes say") from None
        taken.append(piece.name)
    return taken, fresh


def _rows(value: np.ndarray, vocab_size: int, tensor: Tensor, source: Source) -> np.ndarray:
    """The rows of the vocabulary: some tables are padded beyond it."""
    if value.shape[0] < vocab_size:
        raise UserError(
            f"{source.path}: {tensor.theirs} has {value.shape[0]} rows, the tokenizer {vocab_size} tokens; "
            "give the vocabulary it was trained with, --config.tokenizer.vocab_file=FILE"
        )
    return value[:vocab_size]


def _groups_untaken(params: Params, pieces: list[Piece]) -> list[str]:
    """Towers that the source does not have at all."""
    present = {piece.name for piece in pieces}
    return [name for name in ("discriminator", "generator") if name in params and name not in present]


def _ignored(source: Source, used: set[tuple[int, str]]) -> list[str]:
    """Tensors of the source that nothing was made of; a second copy of the tied table is no loss."""
    every: dict[int, Weights] = {id(piece.weights): piece.weights for piece in source.pieces}
    slots = tuple(tensorflow.SLOTS.values()) if source.moments else ()
    found = [
        name
        for key, weights in every.items()
        for name in weights.names()
        if (key, name) not in used and not name.endswith((*slots, "global_step")) and not _is_tied_copy(name, source)
    ]
    return sorted(found)


def _is_tied_copy(name: str, source: Source) -> bool:
    has_both = {"discriminator", "generator"} <= {piece.name for piece in source.pieces}
    return name == "generator_lm_head.weight" or (
        has_both and ".embeddings." in f".{name}" and source.model.tied_embeddings
    )


def _described(tokenizer: Tokenizer, settings: TokenizerConfig) -> TokenizerConfig:
    """The settings of a tokenizer that was not made by them."""
    settings = dataclasses.replace(settings, vocab_size=tokenizer.vocab_size, vocab_file="")
    if isinstance(tokenizer, WordPiece):
        return dataclasses.replace(
            settings, kind="wordpiece", lowercase=tokenizer.lowercase, strip_accents=tokenizer.strip_accents
        )
    assert isinstance(tokenizer, SentencePiece)
    return dataclasses.replace(settings, kind="unigram" if tokenizer.is_unigram else "bpe")


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
