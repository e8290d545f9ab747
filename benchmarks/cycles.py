"""Seconds of a program on a TPU that is not here, by the compiler's own estimates.

The optimised HLO that libtpu hands back holds ``estimated_cycles`` for most operations that take time. Here they are
added up, with every loop as often as it turns, and divided by the chip's clock. What is counted, and how:

- A loop whose length the program knows turns that often. Other loops turn as often as the run says (`loop_trips`; those
  of SPO's update for ONE training batch), or once. Of the branches of a condition the most expensive one runs.
- A kernel (Pallas) carries no estimate. It takes as long as its products do at the chip's peak, their sides rounded up
  to those of the matrix unit, or as its arguments and results take through the memory, their last axes rounded up to
  registers, whichever is longer. Nothing is added for softmax, so this is the least that it can take.
- Other operations without an estimate, among them transfers that run beside other work, are counted and take no time.

These are estimates of a compiler for one chip and not measurements. Ratios between variants of a program are what to
trust. Transfers between chips are not in them.
"""

import collections
import dataclasses
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
from jax.extend import core

from benchmarks.flops import Countable, inner_jaxprs
from benchmarks.hlo import Instruction, Program, arrays
from benchmarks.topologies import Chip

TOP = 20
KINDS = ("products", "kernels", "reductions", "elementwise", "copies", "other")
# What only moves or repeats numbers, or costs nothing.
_FREE = ("parameter", "constant", "get-tuple-element", "tuple", "bitcast", "after-all", "partition-id", "replica-id")
_MOVES = (
    *_FREE, "broadcast", "concatenate", "convert", "copy", "dynamic-slice", "dynamic-update-slice", "fusion", "gather",
    "iota", "pad", "reshape", "reverse", "select", "slice", "transpose",
)  # fmt: skip
_PRODUCTS = ("convolution", "dot")
_KERNEL = 'custom_call_target="tpu_custom_call"'
# The class of a network, and its method, as flax writes them into name stacks: "UNet", "jvp(UNet)", "VAE.decode".
_NETWORK = re.compile(r"(?:^|[/(])([A-Z]\w*(?:\.\w+)?)(?=[/)]|$)")
_TYPES = {"bfloat16": "bf16", "float32": "f32", "float16": "f16", "int32": "s32", "bool": "pred"}
_REGISTER = (8, 128)
_SIZES = {"bf16": 2, "f16": 2, "f32": 4, "s32": 4, "u32": 4, "pred": 1, "s8": 1, "u8": 1}

_LOOPS = re.compile(r"(?:^|(?<=/))(?:jit\(\w+\)|while|body|closed_call|cond|checkpoint|rematted_computation)/")

# A kernel's arguments and results by type and shape, which say which of a program's kernels it is.
Signature = tuple[tuple[str, tuple[int, ...]], ...]


@dataclasses.dataclass(frozen=True)
class Operation:
    """An operation of a compiled program.

    Attributes:
      name: its name in the program.
      kind: one of `KINDS`.
      network: class and method of the network that it belongs to; ``rest`` outside of networks.
      source: where it comes from, as a name stack.
      shape: its result.
      seconds: what one turn takes; None where neither the compiler nor the model of kernels says so.
      turns: how often it runs.
    """

    name: str
    kind: str
    network: str
    source: str
    shape: str
    seconds: float | None
    turns: float

    @property
    def total(self) -> float:
        """Seconds of all turns."""
        return (self.seconds or 0.0) * self.turns


def operations(
    program: Program, chip: Chip, while_trips: Sequence[float] = (), kernels: Mapping[Signature, float] | None = None
) -> list[Operation]:
    """Lists the operations of a program that take time.

    Args:
      program: the optimised program of one chip.
      chip: the chip.
      while_trips: how often loops run whose length is not known, outermost first; loops further inside run once.
      kernels: what `kernel_flops` counts of the same program.
    """
    return list(_Walk(program, chip, tuple(while_trips), kernels or {}).computation(program.entry, 1.0, "", 0))


@dataclasses.dataclass(frozen=True)
class _Walk:
    program: Program
    chip: Chip
    while_trips: tuple[float, ...]
    kernels: Mapping[Signature, float]

    def computation(self, name: str, turns: float, around: str, unknown: int) -> Iterator[Operation]:
        """Yields the operations of a computation.

        Args:
          name: the computation.
          turns: how often it runs.
          around: name stack of what runs it, for operations that have none.
          unknown: number of loops of unknown length around it.
        """
        sources = _sources(self.program.computations[name], around)
        for instruction in self.program.computations[name].values():
            source = sources[instruction.name]
            called = instruction.called()
            if instruction.opcode == "while":
                known = self.program.trips(name, instruction)
                given = self.while_trips[unknown] if unknown < len(self.while_trips) else 1.0
                trips = turns * (given if known is None else known)
                yield from self.computation(called["body"][0], trips, source, unknown + (known is None))
            elif instruction.opcode == "conditional":
                branches = [list(self.computation(name, turns, source, unknown)) for name in called["branches"]]
                yield from max(branches, key=seconds)
            elif instruction.opcode in ("call", "async-start") and instruction.cycles is None:
                for inner in (*called.get("calls", ()), *called.get("to_apply", ())):
                    yield from self.computation(inner, turns, source, unknown)
            elif instruction.opcode not in _FREE:
                yield self.operation(name, instruction, source, turns)

    def operation(self, computation: str, instruction: Instruction, source: str, turns: float) -> Operation:
        """Describes an instruction."""
        found = _NETWORK.search(source)
        taken = None if instruction.cycles is None else instruction.cycles / self.chip.clock
        if taken is None and _KERNEL in instruction.attributes:
            taken = self.kernel(computation, instruction)
        kind = self.kind(instruction)
        network = found[1] if found else "rest"
        return Operation(instruction.name, kind, network, source, _short(instruction.shape), taken, turns)

    def kernel(self, computation: str, instruction: Instruction) -> float:
        """Returns the seconds of a kernel by the model in the docstring of the module."""
        signature = _signature(self.program, computation, instruction)
        moved = sum(_SIZES.get(kind, 4) * _stored(shape) for kind, shape in signature)
        return max(self.kernels.get(signature, 0.0) / self.chip.peak_flops, moved / self.chip.bandwidth)

    def kind(self, instruction: Instruction) -> str:
        """Sorts an instruction by what it does; what a product is fused with counts as part of the product."""
        if _KERNEL in instruction.attributes:
            return "kernels"
        inside = [instruction.opcode]
        if instruction.opcode == "fusion":
            inside = [part.opcode for name in instruction.called()["calls"] for part in self.program.inside(name)]
        if any(opcode in _PRODUCTS for opcode in inside):
            return "products"
        if any(opcode.startswith("reduce") for opcode in inside):
            return "reductions"
        if all(opcode in _MOVES or opcode.startswith(("copy-", "slice-")) for opcode in inside):
            return "copies"
        return "elementwise" if instruction.opcode == "fusion" else "other"


def _sources(instructions: Mapping[str, Instruction], around: str) -> dict[str, str]:
    """Returns the name stack of every instruction; what has none takes that of what reads it, or of what it reads.

    The compiler's own copies have none, and they are made for the operation that reads them.
    """
    found = {name: instruction.op_name for name, instruction in instructions.items()}

    def adopt(name: str, from_: str) -> None:
        if not _NETWORK.search(found[name]) and _NETWORK.search(found.get(from_, "")):
            found[name] = found[from_]

    for name, instruction in reversed(instructions.items()):  # readers come after what they read
        for operand in instruction.operands:
            if operand in found and instruction.opcode != "tuple":
                adopt(operand, name)
    for name, instruction in instructions.items():
        for operand in instruction.operands:
            adopt(name, operand)
    return {name: source or around for name, source in found.items()}


def _signature(program: Program, computation: str, instruction: Instruction) -> Signature:
    operands = program.computations[computation]
    shapes = [operands[name].shape for name in instruction.operands if name in operands]
    return tuple(array for shape in (*shapes, instruction.shape) for array in arrays(shape))


def _stored(shape: tuple[int, ...]) -> int:
    """Returns how many numbers memory holds for an array, whose last two axes fill registers of 8 x 128."""
    if len(shape) < 2:
        return math.prod(shape)
    *outer, rows, columns = shape
    return math.prod(outer) * _rounded_up(rows, _REGISTER[0]) * _rounded_up(columns, _REGISTER[1])


def _short(shape: str) -> str:
    """Returns a shape without its layout: ``bf16[8,512,512,128]``."""
    return ", ".join(f"{kind}[{','.join(map(str, sizes))}]" for kind, sizes in arrays(shape))


# Kernels


def kernel_flops(program: Countable, lanes: int) -> dict[Signature, float]:
    """Counts the operations of one run of every Pallas kernel in a program, as the matrix unit works on them.

    The contracted side and the columns of a product are rounded up to the side of the matrix unit: a head of size 40
    takes as long as one of size 128.

    Args:
      program: what `jax.jit(...).trace` returns, or a closed jaxpr.
      lanes: side of the matrix unit.
    """
    closed = program.jaxpr if isinstance(program, jax.stages.Traced) else program
    found = {}
    for equation in _named(closed.jaxpr, "pallas_call"):
        variables = (*equation.invars, *equation.outvars)
        signature = tuple((_TYPES.get(v.aval.dtype.name, v.aval.dtype.name), v.aval.shape) for v in variables)
        body = equation.params["jaxpr"]
        grid = math.prod(equation.params["grid_mapping"].grid)
        found[signature] = grid * sum(_padded_product(dot, lanes) for dot in _named(body, "dot_general"))
    return found


def _named(jaxpr: core.Jaxpr, primitive: str) -> Iterator[Any]:
    """Yields the equations of a primitive, also those inside others but for each other's own."""
    for equation in jaxpr.eqns:
        if equation.primitive.name == primitive:
            yield equation
            continue
        for inner in inner_jaxprs(equation.params):
            yield from _named(inner, primitive)


def _padded_product(dot: Any, lanes: int) -> float:
    (contracted, _), (batch, _) = dot.params["dimension_numbers"]
    left = dot.invars[0].aval.shape
    depth = math.prod(left[axis] for axis in contracted)
    copies = math.prod(left[axis] for axis in batch)
    rows = math.prod(left) // (depth * copies)
    columns = math.prod(dot.outvars[0].aval.shape) // (rows * copies)
    return 2 * copies * rows * _rounded_up(depth, lanes) * _rounded_up(columns, lanes)


def _rounded_up(count: int, multiple: int) -> int:
    return -(-count // multiple) * multiple


# What is reported


def seconds(found: Sequence[Operation]) -> float:
    """Adds up the seconds of operations."""
    return sum(operation.total for operation in found)


def summary(found: Sequence[Operation], chip: Chip, flops: float) -> dict[str, Any]:
    """Summarises the operations of a program.

    Args:
      found: its operations.
      chip: the chip.
      flops: operations of its layers on one chip, each loop as often as it turns, for the estimated MFU.

    Returns:
      Numbers that can be written as JSON: seconds in all, by network and kind, the products' share of them, what has
      no estimate, MFU, and the most expensive operations.
    """
    total = seconds(found)
    networks: dict[str, dict[str, float]] = collections.defaultdict(lambda: dict.fromkeys(KINDS, 0.0))
    for operation in found:
        networks[operation.network][operation.kind] += operation.total
    kinds = {kind: sum(row[kind] for row in networks.values()) for kind in KINDS}
    silent = collections.Counter(re.sub(r"[.\d]+$", "", o.name) for o in found if o.seconds is None)
    return {
        "seconds": total,
        "seconds_kernels_modelled": kinds["kernels"],
        "kinds": kinds,
        "networks": dict(sorted(networks.items(), key=lambda item: -sum(item[1].values()))),
        "share_of_products": (kinds["products"] + kinds["kernels"]) / total if total else 0.0,
        "mfu": flops / (total * chip.peak_flops) if total else 0.0,
        "without_estimate": dict(silent.most_common()),
        "top": _dearest(found),
    }


def _dearest(found: Sequence[Operation]) -> list[dict[str, Any]]:
    """Returns the most expensive operations; those of layers that differ in their number alone are one row."""
    rows: dict[tuple[str, ...], dict[str, Any]] = {}
    for operation in found:
        source = re.sub(r"_\d+(?=/|$)", "_*", where(operation.source))
        row = rows.setdefault(
            (operation.kind, operation.network, source, operation.shape),
            {"kind": operation.kind, "network": operation.network, "source": source, "shape": operation.shape,
             "runs": 0, "total": 0.0},
        )  # fmt: skip
        row["runs"] += operation.turns
        row["total"] += operation.total
    return sorted((row for row in rows.values() if row["total"]), key=lambda row: -row["total"])[:TOP]


def report(found: Mapping[str, Any]) -> str:
    """Formats a summary for a terminal."""
    total = found["seconds"] or math.inf
    head = f"{'':28s}{'seconds':>10s}" + "".join(f"{kind:>13s}" for kind in KINDS)
    lines = [head]
    for name, row in (*found["networks"].items(), ("all", found["kinds"])):
        lines.append(f"{name:28s}{sum(row.values()):10.4g}" + "".join(f"{row[kind]:13.4g}" for kind in KINDS))
    missing = sum(found["without_estimate"].values())
    lines.append(
        f"products and kernels {found['share_of_products']:.0%}, estimated MFU {found['mfu']:.1%}, "
        f"{missing} operations without an estimate"
    )
    for row in found["top"]:
        start = f"{row['total']:10.4g} s {row['total'] / total:5.1%} {row['runs']:7g} x {row['kind']:12s}"
        lines.append(f"{start}{row['shape'][:40]:42s}{row['source']}")
    return "\n".join(lines) + "\n"


def where(source: str) -> str:
    """Shortens a name stack: without the program's name and the loops, which every name has."""
    return _LOOPS.sub("", source)
