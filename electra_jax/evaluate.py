"""Held-out figures of a checkpoint: `python -m electra_jax.evaluate --workdir=DIR`."""

from electra_jax import cli, config_loading
from electra_jax.data import build
from electra_jax.data import tokenizer as tokenizer_lib
from electra_jax.errors import UserError
from electra_jax.inputs import Inputs
from electra_jax.training import checkpoint
from electra_jax.training.partitioning import make_mesh
from electra_jax.training.setup import Setup


def main(argv: list[str]) -> None:
    parser = cli.parser("electra_jax.evaluate", "Evaluates a checkpoint on held-out records.", with_config=False)
    parser.add_argument("--workdir", required=True, metavar="DIR", help="the work directory of a run")
    parser.add_argument("--step", type=int, help="which of its checkpoints (default: the newest)")
    cli.add_json(parser)
    args, overrides = cli.parse(parser, argv)
    workdir = cli.directory("--workdir", args.workdir)
    origin = checkpoint.find_in(args.workdir, args.step)
    saved = checkpoint.read_saved(origin)
    # On the devices at hand, which need not be those it was trained on, nor divide the training batch evenly.
    config = cli.apply_overrides(config_loading.to_dict(saved.config) | {"mesh": {}}, overrides)
    mesh = make_mesh(config.mesh)
    prepared = build.prepare(config, tokenizer=tokenizer_lib.from_json(saved.tokenizer))
    if saved.data and saved.data != prepared.digest:
        print(
            f"WARNING: {prepared.directories[0]} holds other text than {origin} was trained on, and another part held out"
        )
    cli.use_compilation_cache(workdir.parent / "compilation_cache")
    setup = Setup.of(config, prepared.tokenizer.special, prepared.tokenizer.vocab_size, mesh)
    inputs = Inputs(setup, prepared)
    if not inputs.has_held_out:
        raise UserError(f"{prepared.directories[0]} has no held-out split: config.data.validation_fraction was 0")
    params = checkpoint.restore_params(origin, setup.abstract.params)
    figures = setup.evaluate(params, inputs.held_out(origin.step)).figures
    print(f"step {origin.step} of {args.workdir}, held out:")
    for name, value in figures.items():
        print(f"  {name:28} {value:.5f}")
    cli.write_json(args.json, {"step": origin.step, **figures})


if __name__ == "__main__":
    cli.run(main)
