"""The encoder to fine-tune: from a run, from an exported folder, or from another program."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import jax
from jax.sharding import Mesh

from electra_jax.config import Config, MeshConfig, ModelConfig, TokenizerConfig
from electra_jax.data import tokenizer as tokenizer_lib
from electra_jax.data.encoding import Tokenizer
from electra_jax.errors import UserError
from electra_jax.interop import hub, importing, sources, tokenizer_files, weights
from electra_jax.models.electra import Architecture, Params
from electra_jax.training import checkpoint
from electra_jax.training.partitioning import make_mesh
from electra_jax.training.state import abstract_state


@dataclasses.dataclass(frozen=True)
class PretrainedEncoder:
    """An encoder and its vocabulary.

    Attributes:
      name: where it is from, for messages.
      model: its configuration.
      tokenizer: its vocabulary.
      trained_length: tokens of the longest text that it was trained on, as far as is known.
      params: mesh -> the parameters, laid out for a mesh or, without one, as NumPy arrays; None for fresh weights.
    """

    name: str
    model: ModelConfig
    tokenizer: Tokenizer
    trained_length: int
    params: Callable[[Mesh | None], Params] | None

    def fresh(self) -> "PretrainedEncoder":
        """The same with random weights instead."""
        untrained = self.model.max_position_embeddings  # no position is trained better than another
        return dataclasses.replace(self, name=f"{self.name}, random weights", trained_length=untrained, params=None)


def load(path: str, with_head: bool = False) -> PretrainedEncoder:
    """The encoder of a work directory of `train` or `import_checkpoint`, of a model's folder, or on the Hugging Face Hub.

    Args:
      path: DIR[@STEP], or ORG/NAME[@REVISION] where there is no such folder.
      with_head: with the discriminator's head, as a whole model of pretraining; else what fine-tuning begins with,
        `{"shared", "discriminator": {"encoder"}}`.

    Raises:
      UserError: where it is none of them, or damaged, or has no such head.
    """
    folder = Path(path).expanduser()
    # Before looking for models, since one of an older step may have been exported into the work directory.
    if checkpoint.is_workdir(path) or checkpoint.is_workdir(path.rpartition("@")[0] or path):
        return _of_run(path, with_head)
    for place in (folder / "discriminator", folder / "model", folder):
        if weights.is_folder(place):
            return _of_folder(place, with_head)
    if hub.is_name(path.partition("@")[0]) and not folder.exists():
        fetched = hub.fetch("--init", path)  # .../snapshots/COMMIT, in whatever cache
        return dataclasses.replace(_of_folder(fetched, with_head), name=f"{path.partition('@')[0]}@{fetched.name}")
    raise UserError(
        f"--init={path}: neither a work directory (with checkpoints/) nor a model's folder (with config.json and its weights) "
        "nor a name on the Hub; import_checkpoint makes a work directory of a TensorFlow checkpoint"
    )


def _of_run(path: str, with_head: bool) -> PretrainedEncoder:
    origin = checkpoint.find(path)
    saved = checkpoint.read_saved(origin)
    tokenizer = tokenizer_lib.from_json(saved.tokenizer)

    if with_head and saved.config.model.towers == "masked_lm":
        raise UserError(f"{origin} has no discriminator: it was trained with model.towers=masked_lm")

    def params(mesh: Mesh | None) -> Params:
        architecture = Architecture(saved.config.model, tokenizer.vocab_size)
        place = mesh or make_mesh(MeshConfig(), jax.local_devices()[:1])
        found = checkpoint.restore_params(origin, abstract_state(saved.config, architecture, place).params)
        found = found if with_head else parts(found)
        return found if mesh else jax.device_get(found)

    return PretrainedEncoder(str(origin), saved.config.model, tokenizer, saved.trained_length, params)


def _of_folder(folder: Path, with_head: bool) -> PretrainedEncoder:
    tokenizer = tokenizer_files.read(folder, TokenizerConfig())
    if tokenizer is None:
        raise UserError(f"--init={folder} has no vocabulary that is known here (vocab.txt or spiece.model)")
    # A folder holds one tower: the layout to ask for is one without a generator of its own, with the head or without.
    towers = "uniform_generator" if with_head else "masked_lm"
    imported = importing.assemble(sources.from_hugging_face([folder], ModelConfig(towers=towers)), Config(), tokenizer)
    if with_head and {"discriminator", "discriminator head"} & {*imported.fresh}:
        raise UserError(f"{folder} has no discriminator with its head, which tells replaced tokens")
    found = jax.device_get(imported.state.params)
    found = found if with_head else parts(found)
    model = imported.config.model
    trained_length = tokenizer_files.max_length(folder, model.max_position_embeddings)
    if (folder / "task.json").is_file():  # its texts may be shorter than those its encoder was trained on
        trained_length = weights.read_json(folder / "task.json").get("trained_length", trained_length)
    return PretrainedEncoder(str(folder), model, tokenizer, trained_length, lambda mesh: found)


def parts(params: Params) -> Params:
    """The pretraining parameters that fine-tuning starts from."""
    return {"shared": params["shared"], "discriminator": {"encoder": params["discriminator"]["encoder"]}}
