"""Compiles the train step for a TPU that is not here: `python -m electra_jax.compile --config=FILE --topology=v5e:4x4`.

Needs the `[tpu]` extra but no TPU: the TPU compiler runs on any Linux machine. Memory is what the compiler has laid
out; times are estimates from its own cost model and from published bandwidths.
"""

import dataclasses
import math
import os
import re
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import topologies
from jax.sharding import NamedSharding

from electra_jax import cli, memory
from electra_jax.analysis import hlo, topology
from electra_jax.analysis.flops import step_flops
from electra_jax.analysis.topology import Topology
from electra_jax.config import Config
from electra_jax.errors import RunFailed, UserError
from electra_jax.objectives.layout import TokenIds
from electra_jax.training import partitioning
from electra_jax.training.setup import Setup, mesh_of


def main(argv: list[str]) -> None:
    parser = cli.parser("electra_jax.compile", "Memory, communication and estimated speed of the train step on a TPU.")
    parser.add_argument("--topology", required=True, metavar="KIND:CHIPS", help="such as v5e:4x4, v4:2x2x1, v5e:4x4*2")
    cli.add_json(parser)
    parser.add_argument("--hlo", type=cli.output_file, metavar="FILE", help="where the compiled program goes, as text")
    parser.add_argument(
        "--find_batch", action="store_true", help="the largest batch that fits, instead of train.batch_size"
    )
    args, overrides = cli.parse(parser, argv)
    config = cli.load_config(args.config, overrides)
    slices = topology.parse(args.topology)
    devices = _devices(slices)
    compiled = find_batch(config, slices, devices) if args.find_batch else compile_step(config, slices, devices)
    figures = analyse(compiled, slices)
    print("\n".join(report(figures)))
    cli.write_json(args.json, figures)
    if args.hlo:
        args.hlo.write_text(compiled.program.as_text())


# The share of peak FLOP/s that custom kernels are assumed to reach, where memory traffic does not take longer.
_KERNEL_SHARE = 0.5


class Compiled(NamedTuple):
    """A train step, compiled."""

    setup: Setup
    program: jax.stages.Compiled


class DoesNotFit(RunFailed):
    """More memory is needed than there is."""


def _devices(slices: Topology) -> list[jax.Device]:
    """The devices of a topology, as the TPU compiler knows them."""
    # The library would otherwise look for the machine's TPU, and ask Google Cloud what it is.
    for name, value in _NO_TPU_HERE.items():
        os.environ.setdefault(name, value)
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_enable_compilation_cache", False)  # cached programs cannot be loaded without a device
    try:
        return list(topologies.get_topology_desc(platform="tpu", **slices.describe()).devices)
    except Exception as error:
        if "libtpu" in str(error).lower() and "not" in str(error).lower():
            raise UserError("the TPU compiler is not installed: pip install 'electra_jax[tpu]' (Linux)") from None
        raise UserError(f"--topology={slices}: {_first_line(error)}") from None


_NO_TPU_HERE = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_ACCELERATOR_TYPE": "v5litepod-16",  # any kind will do
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # no device is taken
    "TPU_LOG_DIR": "disabled",
    "TF_CPP_MIN_LOG_LEVEL": "3",
}


def compile_step(config: Config, slices: Topology, devices: list[jax.Device]) -> Compiled:
    """Compiles the step of `config` for `devices`.

    Raises:
      DoesNotFit: where the memory of a device does not hold it.
      UserError: where the configuration does not fit the mesh.
    """
    setup = Setup(config, _TOKEN_IDS, config.tokenizer.vocab_size, mesh_of(config, devices))
    shape = config.train.batch_size, config.data.max_seq_length
    batch = jax.ShapeDtypeStruct(shape, jnp.int32, sharding=NamedSharding(setup.mesh, partitioning.BATCH))
    try:
        return Compiled(setup, setup.train_step.lower(setup.abstract, batch).compile())
    except jax.errors.JaxRuntimeError as error:
        if not memory.is_exhausted(error):
            raise
        if found := re.search(r"Used (\S+) of (\S+) ([sv]mem)", str(error)):
            needed, there, of = found.groups()
            raise UserError(
                f"a kernel needs {needed} of the {there} of {of} that {slices} has; config.model.attention=reference does "
                "without kernels"
            ) from None
        raise DoesNotFit(_overrun(str(error), config, slices)) from None


# Where the special tokens lie in the vocabulary makes no difference to the program's cost.
_TOKEN_IDS = TokenIds(pad=0, cls=1, sep=2, mask=3, two_segments=False)


def find_batch(config: Config, slices: Topology, devices: list[jax.Device]) -> Compiled:
    """The step with the largest batch that fits, to within an eighth: doubles or halves `train.batch_size`, then bisects.

    Raises:
      DoesNotFit: where not even the smallest does.
    """
    mesh, train = partitioning.make_mesh(config.mesh, devices), config.train
    unit = partitioning.batch_parts(mesh, train.gradient_accumulation_steps * train.replicas)

    def attempt(units: int) -> Compiled | None:
        sized = dataclasses.replace(config, train=dataclasses.replace(config.train, batch_size=units * unit))
        try:
            found = compile_step(sized, slices, devices)
        except DoesNotFit:
            if units == 1:
                raise
            print(f"a batch of {units * unit:,} does not fit", flush=True)
            return None
        print(f"a batch of {units * unit:,} fits", flush=True)
        return found

    size = max(1, config.train.batch_size // unit)
    best = attempt(size)
    if best:
        while larger := attempt(2 * size):
            best, size = larger, 2 * size
        too_large = 2 * size
    while not best:
        too_large, size = size, max(1, size // 2)
        best = attempt(size)
    while too_large - size > max(1, size // 8):
        between = (size + too_large) // 2
        if larger := attempt(between):
            best, size = larger, between
        else:
            too_large = between
    return best


def analyse(compiled: Compiled, slices: Topology) -> dict[str, Any]:
    """The figures of a compiled step, by the names in the JSON file.

    Memory is per chip, collectives are per device, times are estimates.
    """
    config, mesh, chip = compiled.setup.config, compiled.setup.mesh, slices.chip
    cost = hlo.cost(compiled.program.as_text(), mesh.size)
    flops = step_flops(config, config.tokenizer.vocab_size)
    compute = cost.cycles / chip.clock
    communication = sum(
        c.wire_bytes / (chip.network if kind == hlo.BETWEEN_SLICES else chip.link)
        for kind, c in cost.collectives.items()
    )
    kernels = sum(
        kernel.times * max(kernel.flops / (_KERNEL_SHARE * chip.peak_flops), kernel.bytes / chip.bandwidth)
        for kernel in cost.kernels
    )
    serial, overlapped = compute + kernels + communication, max(compute + kernels, communication)
    tokens = config.train.batch_size * config.data.max_seq_length
    peak = chip.peak_flops * mesh.size
    return {
        "topology": str(slices),
        "chips": slices.chips,
        "devices": mesh.size,
        "mesh": dict(mesh.shape),
        "batch_size": config.train.batch_size,
        "batch_per_chip": config.train.batch_size / slices.chips,
        "max_seq_length": config.data.max_seq_length,
        "gradient_accumulation_steps": config.train.gradient_accumulation_steps,
        "unroll": compiled.setup.model.unroll,
        "remat": compiled.setup.model.remat,
        "hbm_bytes": _memory(compiled, slices),
        "model_flops": flops,
        "collectives": {kind: c._asdict() for kind, c in cost.collectives.items()},
        "kernels": sum(kernel.times for kernel in cost.kernels),
        "kernel_flops": sum(kernel.times * kernel.flops for kernel in cost.kernels),
        "kernel_bytes": sum(kernel.times * kernel.bytes for kernel in cost.kernels),
        "kernel_seconds": kernels,
        "estimated_cycles": cost.cycles,
        "compute_seconds": compute,
        "communication_seconds": communication,
        "step_seconds": serial,
        "step_seconds_overlapped": overlapped,
        "tokens_per_second_per_chip": tokens / serial / slices.chips,
        "utilisation": flops / serial / peak,
        "utilisation_overlapped": flops / overlapped / peak,
        "save_bytes_per_host": _save_bytes(compiled.setup),
        "dearest": [dear._asdict() for dear in cost.dearest],
    }


def _memory(compiled: Compiled, slices: Topology) -> dict[str, int]:
    """Bytes per chip, by part. `activations` is the rest of the peak: temporaries, the batch, the program."""
    parameters, optimizer = (_device_bytes(tree) for tree in compiled.setup.abstract[1:3])
    peak = compiled.program.memory_analysis().peak_memory_in_bytes
    of_device = {
        "parameters": parameters,
        "optimizer": optimizer,
        "activations": peak - parameters - optimizer,
        "peak": peak,
        "limit": slices.chip.hbm,
    }
    return {name: size * slices.chip.devices_per_chip for name, size in of_device.items()}


def _device_bytes(tree: Any) -> int:
    shards = ((leaf.sharding.shard_shape(leaf.shape), leaf.dtype) for leaf in jax.tree.leaves(tree))
    return sum(dtype.itemsize * math.prod(shape) for shape, dtype in shards)


def _save_bytes(setup: Setup) -> int:
    """Bytes that the busiest host writes for a checkpoint: each shard is written by the first device that holds it."""
    by_host: dict[int, int] = {}
    for leaf in jax.tree.leaves((setup.abstract.params, setup.abstract.opt_state)):
        size = leaf.dtype.itemsize * math.prod(leaf.sharding.shard_shape(leaf.shape))
        seen = set()
        for device, index in leaf.sharding.devices_indices_map(leaf.shape).items():
            if str(index) not in seen:
                seen.add(str(index))
                by_host[device.process_index] = by_host.get(device.process_index, 0) + size
    return max(by_host.values())


def report(figures: dict[str, Any]) -> list[str]:
    """The figures as lines of text."""
    hbm, gib = figures["hbm_bytes"], 2**30
    mesh = " x ".join(f"{axis} {size}" for axis, size in figures["mesh"].items())
    parts = ", ".join(f"{name} {hbm[name] / gib:.2f}" for name in ("parameters", "optimizer", "activations"))
    lines = [
        f"{figures['topology']}: {figures['chips']} chips, {figures['devices']} devices, mesh {mesh}",
        f"batch           {figures['batch_size']:,} x {figures['max_seq_length']} "
        f"({figures['batch_per_chip']:g} a chip, in {figures['gradient_accumulation_steps']} parts, remat {figures['remat']})",
        f"memory, GiB     {hbm['peak'] / gib:.2f} of {hbm['limit'] / gib:.2f} a chip: {parts}",
        f"to save         {figures['save_bytes_per_host'] / gib:.2f} GiB by the busiest host, within a preemption's grace period",
        f"model FLOPs     {figures['model_flops']:.3e} a step, all chips",
    ]
    for kind, moved in figures["collectives"].items():
        lines.append(
            f"{kind:19} {moved['count']:,} a step, {moved['bytes'] / 1e6:,.1f} MB, {moved['wire_bytes'] / 1e6:,.1f} MB sent"
        )
    lines += [
        "estimates, not measured:",
        f"compute         {figures['compute_seconds']:.4f} s ({figures['estimated_cycles']:,} cycles by the compiler's cost model)",
        f"kernels         {figures['kernel_seconds']:.4f} s ({figures['kernels']:,} custom ones, at {_KERNEL_SHARE:.0%} of peak"
        " or as long as memory takes)",
        f"communication   {figures['communication_seconds']:.4f} s (bytes sent over the published bandwidth)",
        f"step            {figures['step_seconds']:.4f} s serial, {figures['step_seconds_overlapped']:.4f} s fully overlapped",
        f"tokens/s        {figures['tokens_per_second_per_chip']:,.0f} a chip, serial",
        f"utilisation     {figures['utilisation']:.1%} of the peak serial, {figures['utilisation_overlapped']:.1%} overlapped",
        "(xla_jf_spmd_threshold_for_windowed_einsum_mib, which can change an estimate a lot, is left at the compiler's default)",
        "the dearest instructions:",
    ]
    total = figures["estimated_cycles"] or 1
    for dear in figures["dearest"]:
        lines.append(f"  {dear['cycles'] / total:5.1%}  {dear['times']:4} x  {dear['source']:32} {dear['text']}")
    return lines


def _overrun(message: str, config: Config, slices: Topology) -> str:
    # `Used 20G of 15G hbm`, or `required for HLO temporaries (20G) exceeds available HBM (15G)`.
    found = re.search(r"Used ([\d.]+)([KMGT]) of \S+ hbm|\(([\d.]+)([KMGT])\) exceeds available HBM", message)
    number, unit = (found.group(1) or found.group(3), found.group(2) or found.group(4)) if found else ("0", "G")
    limit, needed = slices.chip.hbm, float(number) * _UNITS[unit]
    by = (
        f"needs {needed / 2**30:.2f} GiB of {limit / 2**30:.2f}, {(needed - limit) / 2**30:.2f} too many"
        if needed
        else "is too large"
    )
    helps = []
    if config.model.remat != "full":
        helps.append("--config.model.remat=full")
    helps.append(f"--config.train.gradient_accumulation_steps={2 * config.train.gradient_accumulation_steps}")
    if config.mesh.fsdp == 1 and slices.chips > 1:
        helps.append("--config.mesh.fsdp=-1 --config.mesh.data=1")
    helps.append("a smaller train.batch_size")
    return (
        f"it does not fit: a step of config.train.batch_size={config.train.batch_size} {by} on a device of {slices}; helpful: "
        + ", ".join(helps)
    )


_UNITS = {"K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0]


if __name__ == "__main__":
    cli.run(main)
