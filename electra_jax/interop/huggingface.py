"""Hugging Face folders: `config.json` and weights of ELECTRA, and of BERT as a body."""

import dataclasses
import json
from pathlib import Path
from typing import Any, NamedTuple

from safetensors.numpy import save_file

from electra_jax.config import EncoderConfig, ModelConfig
from electra_jax.data.packing import SpecialTokens
from electra_jax.errors import UserError
from electra_jax.interop import names, weights
from electra_jax.interop.names import HUGGING_FACE
from electra_jax.interop.weights import Weights
from electra_jax.models.electra import Params

# Fields that mean the same under the same name: what the weights determine, and what they do not.
_SIZES = (
    "embedding_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size",
    "max_position_embeddings", "type_vocab_size",
)  # fmt: skip
_SETTINGS = ("hidden_dropout_prob", "attention_probs_dropout_prob", "initializer_range", "layer_norm_eps")
# Settings of theirs in which we have no choice, and the values they must have.
_FIXED = {"hidden_act": ("gelu",), "position_embedding_type": ("absolute",), "is_decoder": (False,)}


class Model(NamedTuple):
    """One tower in a Hugging Face folder."""

    folder: Path
    config: dict[str, Any]
    weights: Weights
    prefix: str  # of the body's tensors: `electra`, `bert` or nothing
    part: str  # "generator" or "discriminator"


# Fields that the exported configuration and weights express, or that only say how the model is computed.
_EXPRESSED = {
    *_SIZES, *_SETTINGS, "towers", "tied_embeddings", "generator_hidden_size", "generator_layers",
    "dtype", "remat", "attention", "unroll",
}  # fmt: skip


def refuse_inexpressible(config: ModelConfig) -> None:
    """Refuses a model that Hugging Face's ELECTRA has no settings for; raises `UserError`."""
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if field.name not in _EXPRESSED and value != field.default:
            raise UserError(
                f"config.model.{field.name}={value!r}: Hugging Face's ELECTRA cannot express it, so it is not exported"
            )


def write(folder: Path, params: Params, config: ModelConfig, part: str, special: SpecialTokens) -> int:
    """Writes `config.json` and `model.safetensors` of one tower; returns its number of parameters.

    Args:
      folder: exists.
      params: the parameter tree, as NumPy arrays.
      config: of the model.
      part: "generator" or "discriminator".
      special: ids of the special tokens.
    """
    tower = config.generator if part == "generator" else config.discriminator
    return _write(folder, params, config, tower, architecture(config, part), model_tensors(config, part), special, {})


def write_task(
    folder: Path, params: Params, config: ModelConfig, head: str, special: SpecialTokens, extra: dict[str, Any]
) -> int:
    """Writes `config.json` and `model.safetensors` of an encoder with the head of a task; returns its number of parameters.

    Args:
      folder: exists.
      params: the parameter tree, `{"shared", "discriminator", "head"}`, as NumPy arrays.
      config: of the model.
      head: "sequence", "tagging" or "question_answering".
      special: ids of the special tokens.
      extra: what else `config.json` says, the names of labels among it.
    """
    tensors = [*names.discriminator(config, HUGGING_FACE), *names.task_head(head, HUGGING_FACE)]
    return _write(folder, params, config, config.discriminator, TASK_MODELS[head], tensors, special, extra)


# What transformers calls an ELECTRA with each head.
TASK_MODELS = {
    "sequence": "ElectraForSequenceClassification",
    "tagging": "ElectraForTokenClassification",
    "question_answering": "ElectraForQuestionAnswering",
}


def _write(
    folder: Path,
    params: Params,
    config: ModelConfig,
    tower: EncoderConfig,
    architecture: str,
    tensors: list[names.Tensor],
    special: SpecialTokens,
    extra: dict[str, Any],
) -> int:
    refuse_inexpressible(config)
    rows = params["shared"]["word"].shape[0]
    written = {
        "architectures": [architecture],
        "model_type": "electra",
        "vocab_size": rows,
        **{name: getattr(tower if hasattr(tower, name) else config, name) for name in _SIZES},
        **{name: getattr(tower, name) for name in _SETTINGS},
        "hidden_act": "gelu",
        "position_embedding_type": "absolute",
        "pad_token_id": special.pad,
        "summary_type": "first",
        "summary_use_proj": True,
        "summary_activation": "gelu",
        "summary_last_dropout": 0.1,
        "tie_word_embeddings": True,
        "dtype": "float32",
        **extra,
    }
    (folder / "config.json").write_text(json.dumps(written, indent=2) + "\n")
    values = {tensor.theirs: tensor.take(params) for tensor in tensors}
    # The metadata that transformers looks for.
    save_file(values, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "model.safetensors").chmod(0o644)  # readable like the other files
    return sum(value.size for value in values.values())


def parts(config: ModelConfig) -> list[str]:
    """The towers that are exported, each as a model of its own."""
    return ["discriminator"] if config.generator is None else ["discriminator", "generator"]


def architecture(config: ModelConfig, part: str) -> str:
    """What Hugging Face calls the model that a tower is exported as."""
    if part == "generator":
        return "ElectraForMaskedLM"
    return "ElectraModel" if config.towers == "masked_lm" else "ElectraForPreTraining"


def model_tensors(config: ModelConfig, part: str) -> list[names.Tensor]:
    """All tensors of one tower as a model of its own."""
    if part == "generator":
        return [*names.generator(config, HUGGING_FACE), *names.generator_head(HUGGING_FACE)]
    body = names.discriminator(config, HUGGING_FACE)
    return [*body, *([] if config.towers == "masked_lm" else names.discriminator_head(HUGGING_FACE))]


def read(folder: Path) -> Model:
    """Reads the configuration of a folder and lists its weights.

    Raises:
      UserError: where it is no ELECTRA or BERT model, or one with settings that are not known here.
    """
    path = folder / "config.json"
    if not path.is_file():
        raise UserError(f"{folder} has no config.json; a Hugging Face model folder has one")
    config = weights.read_json(path)
    kind = config.get("model_type")
    if kind not in ("electra", "bert"):
        raise UserError(f"{path}: model_type is {kind!r}; electra and bert can be imported")
    for name, allowed in _FIXED.items():
        if config.get(name) not in (None, *allowed):
            raise UserError(f"{path}: {name} is {config[name]!r}; only {allowed[0]!r} can be imported")
    stored = weights.open_folder(folder)
    known = [name for name in stored.names() if name.endswith("embeddings.word_embeddings.weight")]
    if not known:
        raise UserError(
            f"{folder} has no tensor embeddings.word_embeddings.weight: it is no encoder of the BERT family"
        )
    prefix = known[0].removesuffix("embeddings.word_embeddings.weight").removesuffix(".")
    is_generator = any(name.startswith("generator_") for name in stored.names())
    return Model(folder, config, stored, prefix, "generator" if is_generator else "discriminator")


def sizes(model: Model) -> dict[str, Any]:
    """A tower's sizes by the names of `ModelConfig`; raises `UserError` where one is absent or not a valid size."""
    found = {name: model.config.get(name) for name in _SIZES}
    if found["embedding_size"] is None:
        found["embedding_size"] = found["hidden_size"]  # BERT has only the one
    for name in _SIZES:
        if not isinstance(found.get(name), int) or found[name] < 1:
            raise UserError(
                f"{model.folder / 'config.json'}: {name} is {found.get(name)!r}; it must be a number above 0"
            )
    eps = model.config.get("layer_norm_eps", 1e-12)
    if not isinstance(eps, float) or not 0 < eps < 1:
        raise UserError(f"{model.folder / 'config.json'}: layer_norm_eps is {eps!r}; it must be a fraction above 0")
    return found | {"layer_norm_eps": eps}
