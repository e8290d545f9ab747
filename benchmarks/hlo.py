"""Reads the text of optimised HLO, which is what a compiler hands back: computations and their instructions.

XLA's text has an instruction a line, ``%name = shape opcode(operands), attributes``, in computations that are given
before they are called. TPU's compiler adds ``estimated_cycles`` to most instructions that take time.
"""

import dataclasses
import re
from collections.abc import Iterator, Mapping

_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\) -> .*\{$")
_INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%([\w.\-]+) = ")
_OPCODE = re.compile(r"([\w\-]+)\(")
_CYCLES = re.compile(r'"estimated_cycles":"(-?\d+)"')
_OP_NAME = re.compile(r'op_name="((?:[^"\\]|\\.)*)"')
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
# The computations that an instruction runs; ``to_apply`` of a sort or a reduction is run for its elements.
_CALLED = re.compile(r"\b(calls|body|condition|to_apply|true_computation|false_computation)=%([\w.\-]+)")
_OF_TWO = ("true_computation", "false_computation")  # the branches of a conditional that has two
_BRANCHES = re.compile(r"\bbranch_computations=\{([^}]*)\}")
_ARRAY = re.compile(r"([a-z]\w*)\[([\d,]*)\]")


@dataclasses.dataclass(frozen=True)
class Instruction:
    """An instruction of a computation.

    Attributes:
      name: its name in the program.
      shape: its result as text, layouts included.
      opcode: what it is, such as ``fusion``.
      operands: names of the instructions whose results it reads; of a constant or a parameter, its text.
      attributes: the text after the operands.
    """

    name: str
    shape: str
    opcode: str
    operands: tuple[str, ...]
    attributes: str

    @property
    def cycles(self) -> int | None:
        """The compiler's estimate; None where it gives none."""
        found = _CYCLES.search(self.attributes)
        return max(0, int(found[1])) if found else None

    @property
    def op_name(self) -> str:
        """The name stack of the operation that it comes from; empty where the compiler made it."""
        found = _OP_NAME.search(self.attributes)
        return found[1] if found else ""

    def called(self) -> dict[str, list[str]]:
        """Returns the computations that it runs, by ``calls``, ``body``, ``condition``, ``to_apply``, ``branches``."""
        found: dict[str, list[str]] = {}
        for role, name in _CALLED.findall(self.attributes):
            found.setdefault("branches" if role in _OF_TWO else role, []).append(name)
        branches = _BRANCHES.search(self.attributes)
        if branches:
            found["branches"] = re.findall(r"%([\w.\-]+)", branches[1])
        return found

    def text(self, attribute: str) -> str:
        """Returns the value of a plain attribute, such as ``direction`` or ``index``; empty if it has none."""
        found = re.search(rf"\b{attribute}=\"?([\w.\-]+)", self.attributes)
        return found[1] if found else ""


Instructions = Mapping[str, Instruction]  # those of a computation, in the order of the program


@dataclasses.dataclass(frozen=True)
class Program:
    """A module of HLO.

    Attributes:
      entry: name of the computation that runs first.
      computations: the instructions of every computation, by names.
    """

    entry: str
    computations: Mapping[str, Instructions]

    def inside(self, computation: str) -> Iterator[Instruction]:
        """Yields the instructions of a computation and of all fusions in it."""
        for instruction in self.computations[computation].values():
            yield instruction
            if instruction.opcode == "fusion":
                for name in instruction.called()["calls"]:
                    yield from self.inside(name)

    def trips(self, computation: str, loop: Instruction) -> int | None:
        """Returns how often the body of a ``while`` runs; None where that is only known while the program runs.

        The compiler's own note is taken if there is one. Otherwise the loop has to be one that counts: its condition
        compares an element of what it carries with a constant, the element begins at a constant and grows by a
        constant. A bound that is carried through the loop is followed to where the loop begins.
        """
        noted = _TRIPS.search(loop.attributes)
        if noted:
            return int(noted[1])
        called = loop.called()
        condition = self.computations[called["condition"][0]]
        body = self.computations[called["body"][0]]
        compare = next((i for i in condition.values() if i.opcode == "compare"), None)
        if compare is None or compare.text("direction") != "LT":
            return None
        index, bound = (condition.get(name) for name in compare.operands)
        outside = self.computations[computation]
        start = _carried(outside, loop, index)
        end = _number(outside, loop, bound)
        step = None if start is None else _step(outside, loop, body, int(index.text("index")))
        return max(0, -(-(end - start) // step)) if step and end is not None else None


def _step(outside: Instructions, loop: Instruction, body: Instructions, element: int) -> int | None:
    """Returns the constant that the body of a loop adds to an element of what it carries."""
    *_, result = body.values()  # the root comes last
    following = _uncopied(body, result.operands[element]) if result.opcode == "tuple" else None
    if following is None or following.opcode != "add":
        return None
    values = [_number(outside, loop, _uncopied(body, name)) for name in following.operands]
    # One of the two is the element itself, which begins at a constant as well.
    own = [_reads(body, name, element) for name in following.operands]
    return next((value for value, is_own in zip(values, own, strict=True) if not is_own), None)


def _reads(body: Instructions, name: str, element: int) -> bool:
    read = _uncopied(body, name)
    return read is not None and read.opcode == "get-tuple-element" and int(read.text("index")) == element


def _number(outside: Instructions, loop: Instruction, instruction: Instruction | None) -> int | None:
    """Returns the value of a constant inside a loop, or of an element that the loop carries from a constant."""
    if instruction is not None and instruction.opcode == "constant":
        return _constant(instruction)
    return _carried(outside, loop, instruction)


def _carried(outside: Instructions, loop: Instruction, element: Instruction | None) -> int | None:
    """Returns the constant with which an element of what a loop carries begins."""
    start = outside.get(loop.operands[0])
    if element is None or element.opcode != "get-tuple-element" or start is None or start.opcode != "tuple":
        return None
    first = _uncopied(outside, start.operands[int(element.text("index"))])
    return None if first is None else _constant(first)


def _uncopied(instructions: Instructions, name: str) -> Instruction | None:
    """Returns the instruction of this name, or what it is a copy of."""
    found = instructions.get(name)
    while found is not None and found.opcode == "copy":
        found = instructions.get(found.operands[0])
    return found


def arrays(shape: str) -> list[tuple[str, tuple[int, ...]]]:
    """Returns type and shape of every array in the text of a shape: ``(bf16[8,4]{1,0}, s32[])``."""
    return [(kind, tuple(int(n) for n in sizes.split(",") if n)) for kind, sizes in _ARRAY.findall(shape)]


def _constant(instruction: Instruction) -> int | None:
    if instruction.opcode != "constant":
        return None
    text = instruction.operands[0] if instruction.operands else ""
    return int(text) if re.fullmatch(r"-?\d+", text) else None


def parse(text: str) -> Program:
    """Reads the text of a module, as ``compiled.as_text()`` gives it.

    Raises:
      ValueError: it has no entry computation.
    """
    computations: dict[str, dict[str, Instruction]] = {}
    entry = ""
    current: dict[str, Instruction] = {}
    for line in text.splitlines():
        head = _COMPUTATION.match(line)
        if head:
            current = computations[head[2]] = {}
            entry = head[2] if head[1] else entry
            continue
        named = _INSTRUCTION.match(line)
        if named:
            current[named[1]] = _instruction(named[1], line[named.end() :])
    if not entry:
        raise ValueError("the text has no entry computation: expected optimised HLO")
    return Program(entry, computations)


def _instruction(name: str, text: str) -> Instruction:
    """Reads what follows ``%name = ``."""
    end = _closing(text, 0) if text.startswith("(") else text.index(" ")
    shape = text[:end]
    opcode = _OPCODE.search(text, end)
    close = _closing(text, opcode.end() - 1)
    inside = text[opcode.end() : close - 1]
    operands = tuple(re.findall(r"%([\w.\-]+)", inside)) or ((inside,) if inside else ())
    return Instruction(name, shape, opcode[1], operands, text[close:])


def _closing(text: str, start: int) -> int:
    """Returns the position behind the bracket that closes the one at ``start``."""
    depth = 0
    for position in range(start, len(text)):
        depth += {"(": 1, ")": -1}.get(text[position], 0)
        if not depth:
            return position + 1
    raise ValueError(f"a bracket is not closed in {text[:80]!r}")
