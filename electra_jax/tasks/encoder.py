"""The encoder to fine-tune: of a run, of an exported folder, or of another program's."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import jax
from etils import epath
from jax.sharding import Mesh

from electra_jax.config import Config, ModelConfig, TokenizerConfig
from electra_jax.data import tokenizer as tokenizer_lib
from electra_jax.data.encoding import Tokenizer
from electra_jax.errors import UserError
from electra_jax.interop import importing, sources, tokenizer_files
from electra_jax.models.electra import Architecture, Params
from electra_jax.training import checkpoint
from electra_jax.training.state import abstract_state


@dataclasses.dataclass(frozen=True)
class Encoder:
    """An encoder and its vocabulary.

    Attributes:
      name: where it is from, for messages.
      model: its configuration.
      tokenizer: its vocabulary.
      params: mesh -> `{"shared", "discriminator": {"encoder"}}`; None for fresh weights.
    """

    name: str
    model: ModelConfig
    tokenizer: Tokenizer
    params: Callable[[Mesh], Params] | None

    def fresh(self) -> "Encoder":
        """The same with random weights instead."""
        return dataclasses.replace(self, name=f"{self.name}, random weights", params=None)


def load(path: str) -> Encoder:
    """The encoder that `DIR[@STEP]` names: a work directory of `train` or `import_checkpoint`, or a model's folder.

    Raises:
      UserError: where it is none of them, or damaged.
    """
    folder = Path(path).expanduser()
    for place in (folder / "discriminator", folder / "model", folder):
        if (place / "config.json").is_file() and (place / "model.safetensors").is_file():
            return _of_folder(place)
    is_workdir = (epath.Path(path.rpartition("@")[0] or path).expanduser() / "checkpoints").is_dir() or (
        epath.Path(path).expanduser() / "checkpoints"
    ).is_dir()
    if not is_workdir:
        raise UserError(
            f"--init={path}: neither a work directory (with checkpoints/) nor a model's folder (with config.json and "
            "model.safetensors); import_checkpoint makes a work directory of other weights"
        )
    return _of_run(path)


def _of_run(path: str) -> Encoder:
    origin = checkpoint.find(path)
    saved = checkpoint.read_saved(origin)
    tokenizer = tokenizer_lib.from_json(saved.tokenizer)

    def params(mesh: Mesh) -> Params:
        architecture = Architecture(saved.config.model, tokenizer.vocab_size)
        return parts(checkpoint.restore_params(origin, abstract_state(saved.config, architecture, mesh).params))

    return Encoder(str(origin), saved.config.model, tokenizer, params)


def _of_folder(folder: Path) -> Encoder:
    tokenizer = tokenizer_files.read(folder, TokenizerConfig())
    if tokenizer is None:
        raise UserError(f"--init={folder} has no vocabulary that is known here (vocab.txt or spiece.model)")
    source = sources.from_hugging_face([folder], ModelConfig(towers="masked_lm"))
    imported = importing.assemble(source, Config(), tokenizer)
    return Encoder(
        str(folder), imported.config.model, tokenizer, lambda mesh: jax.device_get(parts(imported.state.params))
    )


def parts(params: Params) -> Params:
    """What fine-tuning takes of the parameters of pretraining."""
    return {"shared": params["shared"], "discriminator": {"encoder": params["discriminator"]["encoder"]}}
