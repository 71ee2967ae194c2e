"""The page of a run: `python -m electra_jax.report --workdir=DIR [--compare DIR2 ...]`."""

from electra_jax import cli
from electra_jax.errors import UserError
from electra_jax.reporting import report


def main(argv: list[str]) -> None:
    parser = cli.parser(
        "electra_jax.report", "Writes WORKDIR/report.html: curves, verdicts, what was run.", with_config=False
    )
    parser.add_argument("--workdir", required=True, metavar="DIR", help="the work directory of a run")
    parser.add_argument(
        "--compare", nargs="+", action="extend", default=[], metavar="DIR", help="other runs, laid over it"
    )
    parser.add_argument("--out", metavar="FILE", help="where to (default: report.html in the work directory)")
    args = cli.arguments(parser, argv)
    workdir = cli.directory("--workdir", args.workdir)
    others = [cli.directory("--compare", other) for other in args.compare]
    out = cli.directory("--out", args.out) if args.out else workdir / "report.html"
    if out.is_dir():
        raise UserError(f"--out={out} is a folder; it must be a file")
    if args.out:
        cli.make_directory("--out", out.parent)
    report.write([workdir, *others], out)
    print(f"written: {out}")


if __name__ == "__main__":
    cli.run(main)
