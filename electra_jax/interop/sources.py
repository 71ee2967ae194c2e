"""What another program's checkpoint holds, in terms of our parameter tree."""

import dataclasses
from pathlib import Path
from typing import NamedTuple

import numpy as np

from electra_jax.config import ModelConfig
from electra_jax.errors import UserError
from electra_jax.interop import huggingface, names, tensorflow
from electra_jax.interop.names import HUGGING_FACE, TENSORFLOW, Convention, Tensor
from electra_jax.interop.weights import Weights


class Piece(NamedTuple):
    """Tensors that are present or missing together, and where they come from."""

    name: str
    tensors: list[Tensor]
    weights: Weights
    is_optional: bool  # whether training may begin with fresh values instead


class ForeignCheckpoint(NamedTuple):
    """What a source holds.

    Attributes:
      path: for messages.
      model: the configuration with its sizes.
      pieces: its tensors.
      moments: those of Adam, as the same pieces with other weights; empty if there are none.
      step: updates made so far, 0 where it does not say.
    """

    path: str
    model: ModelConfig
    pieces: list[Piece]
    moments: dict[str, list[Piece]]
    step: int


def from_hugging_face(folders: list[Path], base: ModelConfig) -> ForeignCheckpoint:
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
    if discriminator and generator:
        is_one = _equal(discriminator, generator, "encoder.layer.0.attention.self.query.weight")
        has_head = any(name.startswith("discriminator_predictions") for name in discriminator.weights.names())
        one = "tied" if has_head else "masked_lm"
        base = dataclasses.replace(base, towers=one if is_one else "separate")
    sizes = (model and huggingface.sizes(model) for model in (discriminator, generator))
    config = _with_sizes(base, *sizes, path)
    if (
        config.towers == "separate"
        and discriminator
        and generator
        and not _equal(discriminator, generator, *_EMBEDDINGS)
    ):
        if config.embedding_size != config.generator.hidden_size:
            raise UserError(
                f"{discriminator.folder} and {generator.folder} do not share their embeddings, so they are not of one "
                "run; import one of them"
            )
        config = dataclasses.replace(config, tied_embeddings=False)
    bodies = {part: (model.weights, model.prefix) for part, model in by_part.items()}
    return ForeignCheckpoint(path, config, _pieces(config, HUGGING_FACE, bodies), {}, 0)


def from_tensorflow(path: Path, base: ModelConfig, heads: int | None = None) -> ForeignCheckpoint:
    """A checkpoint of the original code.

    Args:
      path: the prefix of its files.
      base: for what it does not determine.
      heads: of the discriminator's attention, where they are not 64 wide.

    Raises:
      UserError: where it is none, or damaged.
    """
    checkpoint = tensorflow.read(path)
    discriminator, generator = tensorflow.sizes(checkpoint, "electra", heads), tensorflow.sizes(checkpoint, "generator")
    if discriminator is None:
        raise UserError(f"{path} has no electra/encoder: it is not a checkpoint of the original ELECTRA code")
    has_heads = [
        f"{name}_predictions/dense/kernel" in checkpoint.weights.names() for name in ("discriminator", "generator")
    ]
    if generator or has_heads[1]:
        one = "tied" if has_heads[0] else "masked_lm"
        base = dataclasses.replace(base, towers="separate" if generator else one)
    config = _with_sizes(base, discriminator, generator, str(path))
    if "generator/embeddings/word_embeddings" in checkpoint.weights.names():
        config = dataclasses.replace(config, tied_embeddings=False)

    def pieces(weights: Weights) -> list[Piece]:
        has_generator = generator or config.towers in ONE_ENCODER
        bodies = {
            "discriminator": (weights, "electra"),
            **({"generator": (weights, "generator")} if has_generator else {}),
        }
        return _pieces(config, TENSORFLOW, bodies)

    slots = {which: checkpoint.slots(which) for which in tensorflow.SLOTS}
    has_moments = all(weights.names() for weights in slots.values())
    moments = {which: pieces(weights) for which, weights in slots.items()} if has_moments else {}
    return ForeignCheckpoint(str(path), config, pieces(checkpoint.weights), moments, checkpoint.global_step or 0)


def _pieces(config: ModelConfig, convention: Convention, bodies: dict[str, tuple[Weights, str]]) -> list[Piece]:
    """The pieces of the towers in `bodies`, each given as its weights and the prefix of its body."""
    pieces = []
    body = bodies.get("discriminator")
    if body is None and config.towers in ONE_ENCODER:
        body = bodies["generator"]
    if body:
        weights, prefix = body
        pieces.append(Piece("discriminator", list(names.discriminator(config, convention, prefix)), weights, False))
        if config.towers != "masked_lm":
            pieces.append(Piece("discriminator head", list(names.discriminator_head(convention)), weights, True))
    if "generator" in bodies and config.generator:
        weights, prefix = bodies["generator"]
        own = list(names.generator(config, convention, prefix))
        if body:  # what both share is taken already
            own = [tensor for tensor in own if tensor.ours[0] == "generator"]
        if own:
            pieces.append(Piece("generator", own, weights, False))
        pieces.append(Piece("generator head", list(names.generator_head(convention)), weights, True))
    return pieces


# Layouts in which the generator has no encoder of its own, and the tables that separate towers share.
ONE_ENCODER = ("tied", "masked_lm")
_EMBEDDINGS = tuple(
    f"embeddings.{name}.weight"
    for name in ("word_embeddings", "position_embeddings", "token_type_embeddings", "LayerNorm")
) + ("embeddings.LayerNorm.bias",)


def _with_sizes(base: ModelConfig, discriminator: dict | None, generator: dict | None, path: str) -> ModelConfig:
    """`base` with the sizes of the towers there are; raises `UserError` where the generator is no fraction of the discriminator."""
    model = dataclasses.replace(base, **discriminator) if discriminator else base
    if model.towers in ONE_ENCODER:
        return model if discriminator else dataclasses.replace(base, **generator)
    if generator is None or model.generator is None:
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


def _equal(discriminator: huggingface.Model, generator: huggingface.Model, *tensors: str) -> bool:
    """Whether two towers have the same values in all of `tensors`, names within the body."""
    pairs = (
        [model.weights.get(_dotted(model.prefix, name)) for model in (discriminator, generator)] for name in tensors
    )
    return all(one is not None and other is not None and np.array_equal(one, other) for one, other in pairs)


def _dotted(prefix: str, name: str) -> str:
    return f"{prefix}.{name}" if prefix else name
