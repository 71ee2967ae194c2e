"""Held-out figures of a checkpoint: `python -m electra_jax.evaluate --workdir=DIR`."""

import json
from pathlib import Path

from electra_jax import cli, config_loading
from electra_jax.data import build, pipeline
from electra_jax.data import tokenizer as tokenizer_lib
from electra_jax.data.dataset import VALIDATION
from electra_jax.errors import UserError
from electra_jax.training import checkpoint
from electra_jax.training.setup import Setup


def main(argv: list[str]) -> None:
    parser = cli.parser("electra_jax.evaluate", "Evaluates a checkpoint on held-out records.", with_config=False)
    parser.add_argument("--workdir", required=True, metavar="DIR", help="the work directory of a run")
    parser.add_argument("--step", type=int, help="which of its checkpoints (default: the newest)")
    parser.add_argument("--json", metavar="FILE", help="where the figures go besides the terminal")
    args, overrides = cli.parse(parser, argv)
    directory, step = checkpoint.find(args.workdir if args.step is None else f"{args.workdir}@{args.step}")
    saved = checkpoint.read_saved(directory, step)
    config = cli.apply_overrides(config_loading.to_dict(saved.config), overrides)
    prepared = build.prepare(config)
    if tokenizer_lib.digest(prepared.tokenizer) != tokenizer_lib.digest(tokenizer_lib.from_json(saved.tokenizer)):
        raise UserError(
            f"{prepared.directory} was made with another vocabulary than {directory / str(step)} was trained with"
        )
    if VALIDATION not in prepared.metadata:
        raise UserError(f"{prepared.directory} has no held-out split: config.data.validation_fraction was 0")

    cli.use_compilation_cache(Path(args.workdir).parent / "compilation_cache")
    setup = Setup.of(config, prepared.tokenizer.special, prepared.tokenizer.vocab_size)
    params = checkpoint.restore_params(directory, step, setup.abstract.params)
    settings = config.evaluation
    records = pipeline.Records(prepared.directory, VALIDATION)
    rows = setup.rows(settings.batch_size)
    batches = pipeline.evaluation_batches(records, settings.batch_size, settings.max_records, setup.ids.pad, rows)
    figures = setup.evaluate(params, batches)
    print(f"step {step} of {args.workdir}, held out:")
    for name, value in figures.items():
        print(f"  {name:28} {value:.5f}")
    if args.json:
        Path(args.json).write_text(json.dumps({"step": step, **figures}, indent=1) + "\n")


if __name__ == "__main__":
    cli.run(main)
