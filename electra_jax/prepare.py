"""Writes the data set of a configuration: `python -m electra_jax.prepare --config=FILE`."""

from electra_jax import cli
from electra_jax.data import build, work


def main(argv: list[str]) -> None:
    parser = cli.parser(
        "electra_jax.prepare", "Tokenises and packs the text of a configuration, if that has not been done."
    )
    parser.add_argument(
        "--beam", nargs="?", const="", metavar="OPTIONS",
        help="as an Apache Beam pipeline (extra [beam]), with its options: --beam='--runner=DataflowRunner --project=...'",
    )  # fmt: skip
    args, overrides = cli.parse(parser, argv)
    said: list[str] = []

    def say(text: str) -> None:
        said.append(text)
        print(text, flush=True)

    run = work.locally if args.beam is None else work.beam(args.beam)
    prepared = build.prepare(cli.load_config(args.config, overrides), say, run=run)
    for made in (made for of_length in prepared.sets.values() for made in of_length):
        if not said:
            print("\n".join(build.summary(made)))
        print(f"ready: {made.directory}, described in data_card.html there")


if __name__ == "__main__":
    cli.run(main)
