"""Exports a run to Hugging Face: `python -m electra_jax.export --workdir=DIR --out=OUT`."""

import shutil
import tempfile
from pathlib import Path

import jax
import numpy as np
from etils import epath

from electra_jax import cli, storage
from electra_jax.config import MeshConfig
from electra_jax.data import tokenizer as tokenizer_lib
from electra_jax.errors import UserError
from electra_jax.interop import hub, huggingface, model_card, tokenizer_files
from electra_jax.models.electra import Architecture
from electra_jax.reporting.writers import rows
from electra_jax.training import checkpoint, partitioning
from electra_jax.training.checkpoint import Origin
from electra_jax.training.state import abstract_state


def main(argv: list[str]) -> None:
    parser = cli.parser(
        "electra_jax.export",
        "Writes OUT/discriminator and OUT/generator as Hugging Face reads them. Needs neither torch nor transformers.",
        with_config=False,
    )
    parser.add_argument(
        "--workdir", required=True, metavar="DIR", help="the work directory of a run, or of a fine-tuning"
    )
    parser.add_argument("--step", type=int, help="which of its checkpoints (default: the newest)")
    parser.add_argument("--out", required=True, metavar="OUT", help="a folder to write to")
    parser.add_argument("--license", default="unknown", help="identifier for the model card (default: unknown)")
    parser.add_argument("--language", default="", metavar="CODES", help="language codes for the model card: en,fr")
    parser.add_argument(
        "--push_to",
        metavar="ORG/NAME",
        help="also publish on the Hugging Face Hub, as ORG/NAME-discriminator and ORG/NAME-generator; a checkpoint named by "
        "--step becomes the revision step-N, the newest the main one",
    )
    parser.add_argument(
        "--push_every_step",
        action="store_true",
        help="with --push_to: every checkpoint that was kept, each as revision step-N",
    )
    args, _ = cli.parse(parser, argv)
    if args.push_every_step and not args.push_to:
        parser.error("argument --push_every_step: only with --push_to")
    if args.push_to and not hub.is_name(args.push_to):
        parser.error(f"argument --push_to: {args.push_to!r}; it must be ORG/NAME")
    if args.step is not None and args.step < 0:
        parser.error(f"argument --step: {args.step}; it must be 0 or more")
    if (Path(args.workdir) / "model" / "task.json").is_file():
        out = _copy(Path(args.workdir) / "model", cli.local_path("--out", args.out))
        if args.push_to:
            print(f"published {hub.publish(out, args.push_to, 'main', 'fine-tuned')}")
        return
    origin = checkpoint.find(args.workdir if args.step is None else f"{args.workdir}@{args.step}")
    out = cli.local_path("--out", args.out)
    languages = [code.strip() for code in args.language.split(",") if code.strip()]
    folders = export(origin, epath.Path(args.workdir), out, languages, args.license)
    for folder in folders:
        print(f"wrote {folder}")
    if args.push_to:
        _publish(folders, args.push_to, "main" if args.step is None else f"step-{origin.step}", origin.step)
    if args.push_every_step:
        for step in checkpoint.saved_steps(origin.directory):
            with tempfile.TemporaryDirectory() as scratch:
                every = export(
                    Origin(origin.directory, step), epath.Path(args.workdir), Path(scratch), languages, args.license
                )
                _publish(every, args.push_to, f"step-{step}", step)


def _copy(model: Path, out: Path) -> Path:
    """A model that `finetune` wrote, which is in Hugging Face's form already."""
    if (out / "model").exists():
        raise UserError(f"--out={out}: {out / 'model'} is there already; remove it, or give another folder")
    cli.make_directory("--out", out)
    shutil.copytree(model, out / "model")
    print(f"wrote {out / 'model'}")
    return out / "model"


def export(origin: Origin, workdir: epath.Path, out: Path, languages: list[str], license_name: str) -> list[Path]:
    """Writes each tower of a checkpoint as a Hugging Face folder below `out`; a folder appears whole or not at all.

    Raises:
      UserError: where a folder is there already.
    """
    saved = checkpoint.read_saved(origin)
    config, tokenizer = saved.config, tokenizer_lib.from_json(saved.tokenizer)
    parts = huggingface.parts(config.model)
    for part in parts:
        if (out / part).exists():
            raise UserError(f"--out={out}: {out / part} is there already; remove it, or give another folder")
    architecture = Architecture(config.model, tokenizer.vocab_size)
    mesh = partitioning.make_mesh(MeshConfig(), jax.devices()[:1])
    params = checkpoint.restore_params(origin, abstract_state(config, architecture, mesh).params)
    params = jax.tree.map(np.asarray, params)
    metrics = _held_out(workdir, origin.step)
    cli.make_directory("--out", out)
    written = []
    for part in parts:
        with storage.new_folder(out / part) as partial:
            count = huggingface.write(partial, params, config.model, part, tokenizer.special)
            tokenizer_files.write(tokenizer, partial, saved.trained_length)
            run = model_card.Run(
                config, saved.step, saved.sequences, count, saved.trained_length, metrics, languages, license_name,
                is_import=not saved.data,
            )  # fmt: skip
            card = model_card.text(run, part, huggingface.architecture(config.model, part))
            (partial / "README.md").write_text(card, encoding="utf-8")
        written.append(out / part)
    return written


def _publish(folders: list[Path], name: str, revision: str, step: int) -> None:
    for folder in folders:
        address = hub.publish(folder, f"{name}-{folder.name}", revision, f"step {step}")
        print(f"published {address}")


def _held_out(workdir: epath.Path, step: int) -> dict[str, float]:
    """The held-out figures that the run reported at `step`."""
    for row in rows(workdir / "metrics.jsonl"):
        if row["step"] == step:
            figures = {name.removeprefix("eval/"): x for name, x in row.items() if name.startswith("eval/")}
            return {name: x for name, x in figures.items() if x is not None}
    return {}


if __name__ == "__main__":
    cli.run(main)
