"""Takes over another program's weights: `python -m electra_jax.import_checkpoint --from=PATH --workdir=DIR`."""

import pprint
import shlex
from pathlib import Path

from electra_jax import cli, config_loading, config_values
from electra_jax.config import Config
from electra_jax.data import tokenizer as tokenizer_lib
from electra_jax.data.tokenizer import Tokenizer
from electra_jax.errors import UserError
from electra_jax.interop import hub, importing, sources, tensorflow, tokenizer_files
from electra_jax.interop.sources import ForeignCheckpoint
from electra_jax.training import checkpoint
from electra_jax.training.checkpoint import Checkpoints, Saved


def main(argv: list[str]) -> None:
    parser = cli.parser(
        "electra_jax.import_checkpoint",
        "Makes a work directory of a Hugging Face model (ELECTRA, or BERT as a discriminator) or of a checkpoint of the original "
        "TensorFlow code, for `train` to go on from.",
        with_config=False,
    )
    parser.epilog = "--config.SECTION.FIELD=VALUE sets what the checkpoint does not determine."
    parser.add_argument(
        "--from",
        dest="source",
        required=True,
        metavar="PATH",
        help="a folder or a name on the Hub (two, comma-separated, for a discriminator and its generator; a folder may hold both "
        "as discriminator/ and generator/), or model.ckpt-N",
    )
    parser.add_argument("--workdir", required=True, metavar="DIR", help="a new work directory")
    parser.add_argument("--config", metavar="FILE", help="for everything but the sizes (default: the defaults)")
    parser.add_argument(
        "--restart_schedule",
        action="store_true",
        help="count steps from 0 again; otherwise schedule and end of the run include the steps the checkpoint has already done",
    )
    args, overrides = cli.parse(parser, argv)
    base = cli.load_config(args.config, overrides) if args.config else cli.apply_overrides({}, overrides)
    workdir = cli.local_path("--workdir", args.workdir)
    if checkpoint.saved_steps(workdir / "checkpoints"):
        raise UserError(f"--workdir={workdir} has checkpoints already; import into a new one")
    is_set = any(name == "model.num_attention_heads" for name, _ in overrides)
    source, folder = _read(args.source, base, base.model.num_attention_heads if is_set else None)
    tokenizer = _tokenizer(base, folder)
    imported = importing.assemble(source, base, tokenizer, restart=args.restart_schedule)
    _check_overrides(overrides, base, imported.config, source.path)

    step = int(imported.state.step)
    trained_length = tokenizer_files.max_length(folder, source.model.max_position_embeddings)
    cli.make_directory("--workdir", workdir)
    checkpoints = Checkpoints(workdir / "checkpoints", imported.config.checkpoint)
    checkpoints.save(imported.state, Saved(imported.config, step, 0, "", tokenizer.to_json(), trained_length))
    checkpoints.close()
    config_file = workdir / "config.py"
    config_file.write_text(_config_file(imported.config, args.source))

    print(f"taken from {source.path}: {', '.join(imported.taken)}")
    print(f"fresh: {', '.join(imported.fresh) or 'nothing'}")
    print(f"ignored: {_listed(imported.ignored)}")
    if not args.config:
        recipe = imported.config
        print(
            f"learning rate ({recipe.optimizer.learning_rate:g}), masking, length and dtype are the defaults, ELECTRA-Small's; "
            "--config=configs/base.py, say, has others"
        )
    print(f"saved as step {step:,}. To go on from there:")
    paths = f"--config={shlex.quote(str(config_file))} --workdir={shlex.quote(str(workdir))}"
    print(f"  python -m electra_jax.train {paths} --config.data.source=FILES")
    if step >= imported.config.train.num_train_steps:
        print(
            f"but first raise train.num_train_steps, {imported.config.train.num_train_steps:,}, above that step, or import with "
            "--restart_schedule"
        )


def _read(text: str, base: Config, heads: int | None) -> tuple[ForeignCheckpoint, Path]:
    """What `--from` names, and the folder to look for its vocabulary in; `heads`: how many attention heads, if that was given."""
    path = Path(text).expanduser()
    found = tensorflow.find(path)
    if found:
        source = sources.from_tensorflow(found, base.model, heads)
        if heads is None:
            print(
                f"taken for granted: {source.model.num_attention_heads} attention heads of 64, the original's rule; nothing in the "
                "file tells, and --config.model.num_attention_heads=N says otherwise"
            )
        return source, found.parent
    if path.is_dir() and text.strip():
        folders = [path / part for part in ("discriminator", "generator") if (path / part).is_dir()] or [path]
    else:
        folders = [_folder(part.strip(), text) for part in text.split(",")]
    if len(folders) > 2:
        raise UserError(f"--from={text} names {len(folders)} models; one discriminator and one generator go together")
    return sources.from_hugging_face(folders, base.model), folders[0]


def _folder(part: str, text: str) -> Path:
    path = Path(part).expanduser()
    if part and path.is_dir():
        return path
    name = part.rstrip("/")
    if not part or path.exists() or not hub.is_name(name.partition("@")[0]):
        reason = "names nothing" if not part else "is a file" if path.exists() else "does not exist"
        raise UserError(
            f"--from={text} {reason}; give a model's folder, its name on the Hub (ORG/NAME or ORG/NAME@REVISION), or model.ckpt-N"
        )
    return hub.fetch("--from", name)


def _tokenizer(config: Config, folder: Path) -> Tokenizer:
    if config.tokenizer.vocab_file:
        return tokenizer_lib.load_vocab_file(config.tokenizer)
    found = tokenizer_files.read(folder, config.tokenizer)
    if found is None:
        raise UserError(
            f"{folder} has no vocabulary that is known here (vocab.txt, spiece.model, or tokenizer.json with WordPiece); give it: "
            "--config.tokenizer.vocab_file=FILE"
        )
    return found


def _check_overrides(overrides: list[tuple[str, str]], asked: Config, made: Config, path: str) -> None:
    """Refuses a setting given on the command line that contradicts what the checkpoint determines."""
    wanted, found = config_values.leaves(asked), config_values.leaves(made)
    for name, text in overrides:
        if name not in ("tokenizer.vocab_file", "tokenizer.vocab_size") and wanted[name][0] != found[name][0]:
            raise UserError(f"--config.{name}={text} cannot work: {path} makes it {found[name][0]!r}; leave it out")


def _config_file(config: Config, source: str) -> str:
    """A configuration file with the sizes of the checkpoint, for `train`."""
    values = pprint.pformat(config_loading.to_dict(config), width=110, sort_dicts=False)
    return (
        f"# The configuration of weights imported from {source!r}.\n\nimport ml_collections\n\n\n"
        f"def get_config() -> ml_collections.ConfigDict:\n    return ml_collections.ConfigDict({values})\n"
    )


def _listed(names: list[str]) -> str:
    if not names:
        return "nothing"
    return ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")


if __name__ == "__main__":
    cli.run(main)
