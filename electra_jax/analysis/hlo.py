"""Reads a compiled program (optimized HLO text): what it moves between devices, and the compiler's own cost model.

The TPU compiler writes `estimated_cycles` to the instructions it schedules, in `backend_config`. It estimates neither
collectives nor custom kernels; those are counted here, kernels with the FLOPs they say they take. Nor does it estimate
gathers and scatters, which are left out. A loop's body counts as often as it runs.
"""

import math
import re
from collections.abc import Iterator
from typing import NamedTuple

KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute", "send")
BETWEEN_SLICES = "send"  # how what goes between slices is compiled

_BYTES = {"pred": 1, "s8": 1, "u8": 1, "s16": 2, "u16": 2, "bf16": 2, "f16": 2, "s32": 4, "u32": 4, "f32": 4,
          "s64": 8, "u64": 8, "f64": 8}  # fmt: skip


class Instruction(NamedTuple):
    """A line of a computation."""

    name: str
    result: str  # its type, as written: `f32[8,128]{1,0}` or a tuple of such
    opcode: str
    text: str

    def attribute(self, pattern: str) -> str | None:
        """What the group of `pattern` matches, if it does."""
        found = re.search(pattern, self.text)
        return found and found.group(1)


class Collective(NamedTuple):
    """All runs of one kind of collective in a step, on one device."""

    count: int
    bytes: int  # of the results; of a reduce-scatter's operands
    wire_bytes: int  # that a device sends, by the ring algorithms


class Dear(NamedTuple):
    """An instruction and what the compiler thinks it costs in a step."""

    cycles: int
    times: int
    source: str  # file:line of ours, where the program says so
    text: str


class Kernel(NamedTuple):
    """A custom kernel (Pallas), for which there is no estimate, and what it says it takes."""

    times: int
    flops: int
    bytes: int  # read and written


class Cost(NamedTuple):
    """What one step costs one device."""

    cycles: int
    collectives: dict[str, Collective]
    kernels: list[Kernel]
    dearest: list[Dear]


class Module:
    """The computations of an HLO text."""

    def __init__(self, text: str):
        self.computations: dict[str, list[Instruction]] = {}
        self.entry = ""
        current: list[Instruction] = []
        for line in text.splitlines():
            head = re.match(r"(ENTRY )?%?([\w.\-]+) \(.*\) -> .*\{$", line)
            if head:
                current = self.computations.setdefault(head.group(2), [])
                self.entry = head.group(2) if head.group(1) else self.entry
            elif found := re.match(r"\s+(?:ROOT )?%?([\w.\-]+) = (.*?[\])}]) ([a-z][\w\-]*)\(", line):
                current.append(Instruction(*found.groups(), line))
        self._frames = _Frames(text)

    def walk(self, name: str = "", times: int = 1, into_fusions: bool = False) -> Iterator[tuple[Instruction, int]]:
        """Every instruction that runs, with how often it does."""
        for instruction in self.computations.get(name or self.entry, ()):
            yield instruction, times
            called, runs = self._called(instruction, into_fusions)
            for other in called:
                yield from self.walk(other, times * runs, into_fusions)

    def _called(self, instruction: Instruction, into_fusions: bool) -> tuple[list[str], int]:
        match instruction.opcode:
            case "while":
                return [instruction.attribute(r"body=%?([\w.\-]+)")], self._trips(instruction)
            case "call" | "conditional" | "async-start":
                names = (
                    r"(?:to_apply|calls|branch_computations|true_computation|false_computation)=\{?([^}]*?)[,}] ?\w*="
                )
                listed = ",".join(re.findall(names, instruction.text + ", end="))
                return re.findall(r"%([\w.\-]+)", listed), 1
            case "fusion" if into_fusions:
                return [instruction.attribute(r"calls=%?([\w.\-]+)")], 1
        return [], 1

    def _trips(self, loop: Instruction) -> int:
        known = loop.attribute(r'known_trip_count[^}]*?"?n"?:"?(\d+)')
        if known:
            return int(known)
        # Otherwise the bound is the constant that the condition compares with.
        condition = self.computations.get(loop.attribute(r"condition=%?([\w.\-]+)"), ())
        bounds = [int(n) for line in condition for n in re.findall(r" constant\((\d+)\)", line.text)]
        return max(bounds, default=1)

    def source(self, instruction: Instruction) -> str:
        """The `file:line` in this package that an instruction comes from, or else its innermost frame's."""
        return self._frames.source(instruction)


def cost(text: str, devices: int, top: int = 10) -> Cost:
    """The cost of a program on each of `devices`."""
    program = Module(text)
    rows = []
    for instruction, times in program.walk():
        estimate = instruction.attribute(r'"estimated_cycles":"?(\d+)')
        if estimate:
            rows.append((int(estimate) * times, times, instruction))
    dearest = [
        Dear(cycles, times, program.source(i), _shortened(i))
        for cycles, times, i in sorted(rows, key=lambda row: -row[0])[:top]
    ]
    kernels = [
        Kernel(times, *(int(i.attribute(rf'"cost_estimate":{{[^}}]*"{what}":"(\d+)"') or 0) for what in _TAKEN))
        for i, times in program.walk()
        if i.opcode == "custom-call" and "tpu_custom_call" in i.text
    ]
    return Cost(sum(row[0] for row in rows), collectives(program, devices), kernels, dearest)


_TAKEN = "flops", "bytes_accessed"


def collectives(program: Module, devices: int) -> dict[str, Collective]:
    """Collectives by kind; those that compiled programs hide in fusions, or split into start and done, count once."""
    runs: dict[str, tuple[Instruction, int]] = {}
    for instruction, times in program.walk(into_fusions=True):
        kind = instruction.opcode.removesuffix("-start")
        if kind in KINDS:
            # One that is overlapped with several fusions stands in each of them, under one channel.
            channel = instruction.attribute(r"channel_id=(\d+)")
            key = f"channel {channel} {kind}" if channel else instruction.name
            if key not in runs or runs[key][1] < times:
                runs[key] = instruction, times
    totals = {kind: [0, 0, 0] for kind in KINDS}
    for instruction, times in runs.values():
        kind = instruction.opcode.removesuffix("-start")
        size = result_bytes(instruction)
        group = _group_size(instruction, devices)
        if group == 1:
            continue
        if kind == "reduce-scatter":
            size *= group
        wire = times * size * (1 if kind in ("collective-permute", "send") else (group - 1) / group)
        wire *= 2 if kind == "all-reduce" else 1
        for i, value in enumerate((times, times * size, int(wire))):
            totals[kind][i] += value
    return {kind: Collective(*values) for kind, values in totals.items() if values[0]}


def result_bytes(instruction: Instruction) -> int:
    """Bytes of what a collective gives to one device."""
    arrays = [
        _BYTES.get(kind, 0) * math.prod(int(n) for n in dims.split(",") if n)
        for kind, dims in re.findall(r"\b([a-z]+\d*)\[([\d,]*)\]", instruction.result)
    ]
    if instruction.opcode == "send":
        return arrays[0]
    if not instruction.opcode.endswith("-start") or len(arrays) == 1:
        return sum(arrays)
    if instruction.opcode == "all-reduce-start":
        return sum(arrays)
    # A start returns its operands, its results, and words of bookkeeping for some kinds.
    if instruction.opcode == "collective-permute-start":
        return arrays[1]
    return sum(arrays[len(arrays) // 2 :])


def _group_size(instruction: Instruction, devices: int) -> int:
    """How many devices take part together."""
    if instruction.opcode == "send" or "source_target_pairs" in instruction.text:
        return 2
    listed = instruction.attribute(r"replica_groups=\{\{([\d,]+)\}")
    if listed:
        return listed.count(",") + 1
    rows = instruction.attribute(r"replica_groups=\[\d+,(\d+)\]<=")  # `[4,2]<=[8]`: four groups of two
    if rows:
        return int(rows)
    # `mesh['data'=2,'fsdp'=4] {'fsdp'}`: groups along some axes of a mesh.
    mesh = re.search(r"replica_groups=mesh\[([^\]]*)\][^{]*\{([^}]*)\}", instruction.text)
    if mesh:
        sizes = {name: int(size) for name, size in re.findall(r"'(\w+)'=(\d+)", mesh.group(1))}
        return math.prod(sizes[name] for name in re.findall(r"'(\w+)'", mesh.group(2)))
    return devices


def _shortened(instruction: Instruction) -> str:
    arrays = re.sub(r"\{[^{}]*\}", "", instruction.result)
    operation = instruction.attribute(r'op_name="([^"]*)"') or ""
    return f"{instruction.opcode} {arrays[:100]} {operation.rpartition('/')[2]}".strip()


class _Frames:
    """The tables at the head of an HLO text that say which source line an instruction comes from."""

    def __init__(self, text: str):
        self._tables: dict[str, dict[int, str]] = {}
        table = None
        for line in text.splitlines():
            if re.fullmatch(r"[A-Z]\w+", line):
                table = self._tables.setdefault(line, {})
            elif table is not None and (row := re.match(r"(\d+) (.*)$", line)):
                table[int(row.group(1))] = row.group(2)
            elif line.endswith("{") and "->" in line:
                break

    def source(self, instruction: Instruction) -> str:
        frame = int(instruction.attribute(r"stack_frame_id=(\d+)") or 0)
        places = []
        while frame > 0:
            row = self._tables.get("StackFrames", {}).get(frame, "")
            location = self._tables.get("FileLocations", {}).get(_number(row, "file_location_id"), "")
            name = self._tables.get("FileNames", {}).get(_number(location, "file_name_id"), "").strip('"')
            places.append((name, _number(location, "line")))
            frame = _number(row, "parent_frame_id") - 1  # which counts from 1: 1 is none
        ours = [place for place in places if "electra_jax/" in place[0]] or places[:1]
        return f"{ours[0][0].rpartition('electra_jax/')[2]}:{ours[0][1]}" if ours else ""


def _number(row: str, name: str) -> int:
    found = re.search(rf"\b{name}=(\d+)", row)
    return int(found.group(1)) if found else 0
