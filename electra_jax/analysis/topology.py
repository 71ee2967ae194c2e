"""TPU slices as `--topology` names them, and what a chip of each kind can do."""

import math
import re
from typing import NamedTuple

from electra_jax.analysis.hardware import published_peak
from electra_jax.errors import UserError


class Chip(NamedTuple):
    """One JAX device of a TPU generation.

    `peak_flops`, `bandwidth`, `link` and `network` are published (Google Cloud's TPU pages; a chip's divided by its devices).
    The rest comes from the compiler: `hbm`, from its message when it refuses a program; `clock`, from its estimate of a large
    bfloat16 product, which with these clocks comes to 88 to 90 % of the peak (v6e: 70 %).
    """

    peak_flops: float  # bfloat16, FLOP/s
    hbm: int  # bytes
    bandwidth: float  # of that memory, bytes/s
    link: float  # bytes/s that a device sends along one axis of the torus, both ways together
    network: float  # bytes/s between slices, a device
    clock: float  # cycles/s of `estimated_cycles`
    devices_per_chip: int = 1


_GIB = 2**30
CHIPS = {
    "v4": Chip(published_peak("v4") / 2, int(15.25 * _GIB), 614e9, 45e9, 3.1e9, 1.05e9, devices_per_chip=2),
    "v5e": Chip(published_peak("v5e"), int(15.75 * _GIB), 819e9, 90e9, 3.1e9, 1.5e9),
    "v5p": Chip(published_peak("v5p"), int(95.73 * _GIB), 2765e9, 180e9, 6.2e9, 1.75e9),
    "v6e": Chip(published_peak("v6e"), int(31.24 * _GIB), 1640e9, 180e9, 12.5e9, 1.75e9),
}

_CHIPS_PER_HOST = 4


class Topology(NamedTuple):
    """Slices of one kind of TPU: `v5e:4x4`, or two of them, `v5e:4x4*2`."""

    kind: str
    shape: tuple[int, ...]  # chips
    slices: int

    @property
    def chip(self) -> Chip:
        return CHIPS[self.kind]

    @property
    def chips(self) -> int:
        """In all slices."""
        return math.prod(self.shape) * self.slices

    def __str__(self) -> str:
        return f"{self.kind}:{'x'.join(map(str, self.shape))}" + (f"*{self.slices}" if self.slices > 1 else "")

    def describe(self) -> dict[str, object]:
        """Arguments of `jax.experimental.topologies.get_topology_desc`."""
        options: dict[str, object] = {"topology_name": f"{self.kind}:{'x'.join(map(str, self.shape))}"}
        if self.slices > 1:
            options["num_slices"] = self.slices
        if math.prod(self.shape) < _CHIPS_PER_HOST:
            options["chips_per_host_bounds"] = [*self.shape, *[1] * (3 - len(self.shape))]
        return options


def parse(text: str) -> Topology:
    """The topology that `text` names; raises `UserError`."""
    found = re.fullmatch(r"(v\d\w?):(\d+(?:x\d+){1,2})(?:\*(\d+))?", text)
    if not found or found.group(1) not in CHIPS:
        raise UserError(
            f"--topology={text} is no TPU slice: it must be KIND:CHIPS with KIND one of {', '.join(CHIPS)}, such as v5e:4x4 "
            "(16 chips), v5p:2x2x2, or v5e:4x4*2 for two slices"
        )
    kind, shape, slices = found.group(1), tuple(map(int, found.group(2).split("x"))), int(found.group(3) or 1)
    dims = 3 if kind in ("v4", "v5p") else 2
    if len(shape) != dims or 0 in shape or slices == 0:
        example = "2x2x1" if dims == 3 else "4x4"
        raise UserError(f"--topology={text}: a {kind} slice has {dims} dimensions above 0, such as {kind}:{example}")
    return Topology(kind, shape, slices)
