"""How the cost of a step grows: `python -m electra_jax.growth --config=configs/small.py --plot=growth.svg`.

One size is changed at a time, on random tokens and one device.
"""

import dataclasses
import statistics
import time
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from etils import epath

from electra_jax import cli, memory
from electra_jax.analysis.flops import step_flops
from electra_jax.config import Config, MeshConfig
from electra_jax.errors import UserError, missing_extra
from electra_jax.objectives.layout import TokenIds
from electra_jax.training.setup import Setup, mesh_of

_LENGTHS = (128, 256, 512, 1024, 2048, 4096)
_BATCHES = (1, 2, 4, 8, 16, 32, 64)
_LAYERS = (2, 4, 8, 12, 16, 24)
_VOCABULARIES = (30_522, 64_000, 128_000, 250_000)
_TOKENS = 4096  # a step, while the length grows


class Point(NamedTuple):
    """A step of some size."""

    grows: str
    length: int
    batch_size: int
    layers: int
    vocab_size: int


def main(argv: list[str]) -> None:
    parser = cli.parser("electra_jax.growth", "How a step's time grows with length, batch, layers and vocabulary.")
    parser.add_argument(
        "--steps", type=cli.positive, default=5, help="steps to time at each size, after two untimed ones (default: 5)"
    )
    cli.add_json(parser)
    parser.add_argument(
        "--plot",
        type=cli.output_file,
        metavar="FILE",
        help="where the picture goes, .svg or .png; needs the [plots] extra",
    )
    args, overrides = cli.parse(parser, argv)
    if args.plot:
        _require_matplotlib()  # before minutes of work
        if args.plot.suffix not in (".svg", ".png"):
            raise UserError(f"--plot={args.plot} must end in .svg or .png")
    config = cli.load_config(args.config, overrides)
    memory.set_up()
    cli.use_compilation_cache(epath.Path("runs") / "compilation_cache")
    rows = []
    for point in points(config):
        rows.append(measure(config, point, args.steps))
        print(
            "{grows:12} length {length:5} batch {batch_size:3} layers {layers:3} vocabulary {vocab_size:7,} "
            "{step_seconds:8.3f} s {tokens_per_second:9,.0f} tokens/s {flops_per_second:9.3g} FLOP/s".format(
                **rows[-1]
            ),
            flush=True,
        )
    cli.write_json(args.json, {"device": jax.devices()[0].device_kind, "points": rows})
    if args.plot:
        plot(rows, args.plot)


def points(config: Config) -> list[Point]:
    """The sizes to time: one grows at a time, from those of `config`, its first length and a batch of 16."""
    length, layers, vocab_size = config.phases[0].length, config.model.num_hidden_layers, config.tokenizer.vocab_size
    return [
        *(Point("length", n, max(1, _TOKENS // n), layers, vocab_size) for n in _LENGTHS),
        *(Point("batch", length, n, layers, vocab_size) for n in _BATCHES),
        *(Point("layers", length, 16, n, vocab_size) for n in _LAYERS),
        *(Point("vocabulary", length, 16, layers, n) for n in _VOCABULARIES),
    ]


def measure(config: Config, point: Point, steps: int) -> dict[str, Any]:
    """The point, with its median step time, tokens and model FLOPs a second."""
    model = dataclasses.replace(
        config.model,
        num_hidden_layers=point.layers,
        max_position_embeddings=max(point.length, config.model.max_position_embeddings),
    )
    data = dataclasses.replace(config.data, max_seq_length=point.length, curriculum_lengths=(), curriculum_steps=())
    train = dataclasses.replace(
        config.train,
        batch_size=point.batch_size,
        curriculum_batch_sizes=(),
        gradient_accumulation_steps=1,
        replicas=1,
    )
    config = dataclasses.replace(config, model=model, data=data, train=train, mesh=MeshConfig())
    one = mesh_of(config, jax.devices()[:1])
    setup = Setup(config, TokenIds(0, 1, 2, 3, two_segments=False), point.vocab_size, one)
    tokens = np.random.default_rng(0).integers(4, point.vocab_size, (point.batch_size, point.length), np.int32)
    tokens[:, 0], tokens[:, -1] = 1, 2
    (batch,) = setup.place([tokens], point.batch_size)
    state, step, seconds = setup.init(), memory.settled(setup.train_step), []
    for _ in range(2 + steps):
        begin = time.perf_counter()
        state, metrics = step(state, batch)
        jax.block_until_ready(metrics)
        seconds.append(time.perf_counter() - begin)
    median = statistics.median(seconds[2:])
    flops = step_flops(config, point.vocab_size)
    figures = {"step_seconds": median, "tokens_per_second": tokens.size / median, "flops_per_second": flops / median}
    return point._asdict() | figures


def plot(rows: list[dict[str, Any]], path: Path) -> None:
    """Plots step times by the size that grows, and the times that the model's FLOPs would take at the rate of the first point."""
    from matplotlib.figure import Figure

    sizes = {"length": "length", "batch": "batch_size", "layers": "layers", "vocabulary": "vocab_size"}
    labels = {"length": f"length, {_TOKENS:,} tokens a step", "batch": "sequences a batch"}
    figure = Figure(figsize=(10, 2.8), layout="constrained")
    for axes, (grows, size) in zip(figure.subplots(1, len(sizes)), sizes.items(), strict=True):
        found = [row for row in rows if row["grows"] == grows]
        x, seconds = [row[size] for row in found], np.array([row["step_seconds"] for row in found])
        flops = seconds * [row["flops_per_second"] for row in found]
        axes.plot(x, seconds, "o-", label="measured")
        axes.plot(x, flops / found[0]["flops_per_second"], "--", color="grey", label="as FLOPs grow")
        axes.set(xlabel=labels.get(grows, grows), ylim=(0, None), xticks=x[-3:] if len(x) > 4 else x)
        axes.ticklabel_format(axis="x", style="plain")
        axes.tick_params(axis="x", labelrotation=30)
    figure.axes[0].set_ylabel("seconds a step")
    figure.axes[0].legend(frameon=False, fontsize=8)
    figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)


def _require_matplotlib() -> None:
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise missing_extra("--plot", "plots") from None


if __name__ == "__main__":
    cli.run(main)
