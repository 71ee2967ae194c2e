"""Exports a run to Hugging Face: `python -m electra_jax.export --workdir=DIR --out=OUT`."""

import dataclasses
import tempfile
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from etils import epath

from electra_jax import cli, storage
from electra_jax.config import MeshConfig
from electra_jax.data import tokenizer as tokenizer_lib
from electra_jax.errors import UserError
from electra_jax.interop import hub, huggingface, importing, model_card, tokenizer_files
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
    parser.add_argument(
        "--private", action="store_true", help="with --push_to: create new repositories as private ones"
    )
    args = cli.arguments(parser, argv)
    for flag in ("push_every_step", "private"):
        if getattr(args, flag) and not args.push_to:
            parser.error(f"argument --{flag}: only with --push_to")
    if args.push_to and not hub.is_name(args.push_to):
        parser.error(f"argument --push_to: {args.push_to!r}; it must be ORG/NAME")
    if args.step is not None and args.step < 0:
        parser.error(f"argument --step: {args.step}; it must be 0 or more")
    out = cli.local_path("--out", args.out)
    languages = [code.strip() for code in args.language.split(",") if code.strip()]
    about = About(languages, args.license, args.push_to or "")
    workdir = cli.directory("--workdir", args.workdir)
    if (workdir / "model" / "task.json").is_file():
        if args.push_every_step or args.step is not None:
            parser.error("argument --step or --push_every_step: a fine-tuned model has no steps; leave it out")
        made = _copy(workdir / "model", out, about)
        if args.push_to:
            print(f"published {hub.publish(made, args.push_to, 'main', 'fine-tuned', args.private)}")
        return
    finetuned = sorted(file.parent.parent.name for file in workdir.glob("*/model/task.json"))
    if finetuned and not checkpoint.is_workdir(str(workdir)):
        if all(name.startswith("seed-") for name in finetuned):
            raise UserError(f"--workdir={args.workdir} is not finished: of its seeds there are {', '.join(finetuned)}")
        tasks = ", ".join(finetuned)
        raise UserError(f"--workdir={args.workdir} has a model of each task; give one of the folders in it: {tasks}")
    origin = checkpoint.find_in(str(workdir), args.step)
    folders = export(origin, workdir, out, about)
    for folder in folders:
        print(f"wrote {folder}")
    if args.push_to:
        _publish(
            folders, args.push_to, "main" if args.step is None else f"step-{origin.step}", origin.step, args.private
        )
    if args.push_every_step:
        for step in checkpoint.saved_steps(origin.directory):
            with tempfile.TemporaryDirectory() as scratch:
                every = export(Origin(origin.directory, step), workdir, Path(scratch), about)
                _publish(every, args.push_to, f"step-{step}", step, args.private)


class About(NamedTuple):
    """What only the publisher knows, for the model cards."""

    languages: list[str]  # codes
    license: str
    name: str  # ORG/NAME on the Hub, or empty


def _copy(model: epath.Path, out: Path, about: About) -> Path:
    """Copies a model that `finetune` wrote, already in Hugging Face's format, and adds the publisher's part of the card."""
    if (out / "model").exists():
        raise UserError(f"--out={out}: {out / 'model'} is there already; remove it, or give another folder")
    cli.make_directory("--out", out)
    with storage.new_folder(out / "model") as partial:
        storage.copy_folder(model, partial)
        card = (model / "README.md").read_text(encoding="utf-8")
        head = "\n".join(["---", *model_card.rights(about.license, about.languages), ""])
        card = head + card.removeprefix("---\n").replace(model_card.NO_NAME, about.name or model_card.NO_NAME)
        (partial / "README.md").write_text(card, encoding="utf-8")
    print(f"wrote {out / 'model'}")
    return out / "model"


def export(origin: Origin, workdir: epath.Path, out: Path, about: About) -> list[Path]:
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
    shown = dataclasses.replace(config, tokenizer=importing.described(tokenizer, config.tokenizer))
    cli.make_directory("--out", out)
    written = []
    for part in parts:
        with storage.new_folder(out / part) as partial:
            count = huggingface.write(partial, params, config.model, part, tokenizer.special)
            tokenizer_files.write(tokenizer, partial, saved.trained_length)
            run = model_card.PretrainingRun(
                shown, saved.step, saved.sequences, count, saved.trained_length, metrics, about.languages,
                about.license, is_import=not saved.data, name=_name(about.name, part),
            )  # fmt: skip
            card = model_card.text(run, part, huggingface.architecture(config.model, part))
            (partial / "README.md").write_text(card, encoding="utf-8")
        written.append(out / part)
    return written


def _name(push_to: str, part: str) -> str:
    """What a tower is called on the Hub."""
    return push_to and f"{push_to}-{part}"


def _publish(folders: list[Path], push_to: str, revision: str, step: int, is_private: bool) -> None:
    for folder in folders:
        address = hub.publish(folder, _name(push_to, folder.name), revision, f"step {step}", is_private)
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
