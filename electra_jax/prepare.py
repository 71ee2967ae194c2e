"""Writes the data set of a configuration: `python -m electra_jax.prepare --config=FILE`."""

from electra_jax import cli
from electra_jax.data import build


def main(argv: list[str]) -> None:
    parser = cli.parser(
        "electra_jax.prepare", "Tokenises and packs the text of a configuration, if that has not been done."
    )
    args, overrides = cli.parse(parser, argv)
    said: list[str] = []
    prepared = build.prepare(cli.load_config(args.config, overrides), say=lambda text: (said.append(text), print(text)))
    if not said:
        print("\n".join(build.summary(prepared.metadata)))
    print(f"ready: {prepared.directory}")


if __name__ == "__main__":
    cli.run(main)
