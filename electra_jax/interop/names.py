"""What our parameters are called elsewhere: one table, read in both directions.

Hugging Face (ELECTRA and BERT alike) and the original TensorFlow code name the same modules; they differ in how a
layer is numbered, in the names of a module's tensors and in some heads.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from electra_jax.config import ModelConfig
from electra_jax.models.electra import Params

Path = tuple[str, ...]

_EMBEDDINGS = {
    "word": "word_embeddings",
    "position": "position_embeddings",
    "token_type": "token_type_embeddings",
    "norm": "LayerNorm",
}
_LAYER = {
    "attention/query": "attention/self/query",
    "attention/key": "attention/self/key",
    "attention/value": "attention/self/value",
    "attention/output": "attention/output/dense",
    "attention_norm": "attention/output/LayerNorm",
    "intermediate": "intermediate/dense",
    "output": "output/dense",
    "output_norm": "output/LayerNorm",
}


class Convention(NamedTuple):
    """How a format writes names."""

    separator: str
    layer: str  # how a layer is numbered, with {}
    linear: dict[str, str]  # tensors of a dense layer
    norm: dict[str, str]  # tensors of a LayerNorm
    table: str  # what an embedding's module name is followed by
    is_transposed: bool  # whether a dense layer's kernel is [out, in]
    discriminator_output: str  # the last layer of the discriminator's head
    output_bias: str


HUGGING_FACE = Convention(
    separator=".",
    layer="encoder/layer/{}",
    linear={"kernel": "weight", "bias": "bias"},
    norm={"scale": "weight", "bias": "bias"},
    table="/weight",
    is_transposed=True,
    discriminator_output="dense_prediction",
    output_bias="generator_lm_head/bias",
)
TENSORFLOW = Convention(
    separator="/",
    layer="encoder/layer_{}",
    linear={"kernel": "kernel", "bias": "bias"},
    norm={"scale": "gamma", "bias": "beta"},
    table="",
    is_transposed=False,
    discriminator_output="dense_1",
    output_bias="generator_predictions/output_bias",
)


class Tensor(NamedTuple):
    """A tensor of the other format and where it belongs in our tree."""

    theirs: str
    ours: Path
    layer: int | None  # which of the stacked layers, or None
    is_transposed: bool

    def take(self, params: Params) -> np.ndarray:
        """The tensor as the other format has it, out of our tree."""
        value: np.ndarray = _get(params, self.ours)
        value = value if self.layer is None else value[self.layer]
        return np.ascontiguousarray(value.T) if self.is_transposed else value

    def put(self, params: Params, value: np.ndarray) -> None:
        """Writes the other format's tensor into our tree of arrays, in place.

        Raises:
          ValueError: where the shape differs.
        """
        place = _get(params, self.ours)
        place = place if self.layer is None else place[self.layer]
        value = value.T if self.is_transposed else value
        if value.shape != place.shape:
            expected = place.shape[::-1] if self.is_transposed else place.shape
            there = value.shape[::-1] if self.is_transposed else value.shape
            raise ValueError(f"{self.theirs} is {there}, expected {expected}")
        place[...] = value


def discriminator(config: ModelConfig, convention: Convention, prefix: str = "electra") -> Iterator[Tensor]:
    """The body of the discriminator with the embeddings; its head is `discriminator_head`."""
    yield from _embeddings(("shared",), convention, prefix)
    yield from encoder("discriminator", config, convention, prefix)


def encoder(tower: str, config: ModelConfig, convention: Convention, prefix: str) -> Iterator[Tensor]:
    """The encoder of a tower, without its embeddings."""
    sizes = config.generator if tower == "generator" else config.discriminator
    ours: Path = (tower, "encoder")
    if sizes.embedding_size != sizes.hidden_size:
        yield from _module((*ours, "embeddings_project"), f"{prefix}/embeddings_project", convention)
    for index in range(sizes.num_hidden_layers):
        for mine, theirs in _LAYER.items():
            name = f"{prefix}/{convention.layer.format(index)}/{theirs}"
            yield from _module((*ours, "layers", *mine.split("/")), name, convention, index)


def discriminator_head(convention: Convention) -> Iterator[Tensor]:
    """The layers that tell replaced tokens."""
    for mine, theirs in (("head", "dense"), ("head_output", convention.discriminator_output)):
        yield from _module(("discriminator", mine), f"discriminator_predictions/{theirs}", convention)


def generator(config: ModelConfig, convention: Convention, prefix: str = "electra") -> Iterator[Tensor]:
    """The body of the generator with the embeddings it uses, as a model of its own."""
    yield from _embeddings(("shared",) if config.tied_embeddings else ("generator", "embeddings"), convention, prefix)
    yield from encoder("generator" if config.towers == "separate" else "discriminator", config, convention, prefix)


def generator_head(convention: Convention) -> Iterator[Tensor]:
    """The layers that predict masked tokens, without the tied embedding table."""
    for mine, theirs in (("transform", "dense"), ("transform_norm", "LayerNorm")):
        yield from _module(("generator", mine), f"generator_predictions/{theirs}", convention)
    yield Tensor(_join(convention.output_bias, convention), ("generator", "output_bias"), None, False)


# The layers of a task's head, by what it looks at, as transformers' models for tasks call them.
_TASK_HEADS = {
    "sequence": {"dense": "classifier/dense", "output": "classifier/out_proj"},
    "tagging": {"output": "classifier"},
    "question_answering": {"output": "qa_outputs"},
}


def task_head(kind: str, convention: Convention) -> Iterator[Tensor]:
    """The layers of a head of `tasks.model`."""
    for mine, theirs in _TASK_HEADS[kind].items():
        yield from _module(("head", mine), theirs, convention)


def _embeddings(ours: Path, convention: Convention, prefix: str) -> Iterator[Tensor]:
    for mine, theirs in _EMBEDDINGS.items():
        name = f"{prefix}/embeddings/{theirs}"
        if mine == "norm":
            yield from _module((*ours, mine), name, convention)
        else:
            yield Tensor(_join(name + convention.table, convention), (*ours, mine), None, False)


def _module(ours: Path, theirs: str, convention: Convention, layer: int | None = None) -> Iterator[Tensor]:
    leaves = convention.norm if ours[-1].endswith("norm") else convention.linear
    for mine, name in leaves.items():
        is_transposed = mine == "kernel" and convention.is_transposed
        yield Tensor(_join(f"{theirs}/{name}", convention), (*ours, mine), layer, is_transposed)


def _join(name: str, convention: Convention) -> str:
    return name.lstrip("/").replace("/", convention.separator)


def _get(params: Params, path: Path) -> np.ndarray:
    for key in path:
        params = params[key]
    return params
