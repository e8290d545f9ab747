"""Optimised HLO is read as compilers write it: libtpu's from a file, XLA's for CPUs as it is compiled here."""

import jax
import jax.numpy as jnp
import pytest

from benchmarks.hlo import arrays, parse
from tests.benchmarks.tpu_program import HEADS, ROWS, TEXT, TOKENS, TURNS, WIDTH


def loops(program):
    """The loops of a program by computation, and how often they turn."""
    return [
        program.trips(name, instruction)
        for name, instructions in program.computations.items()
        for instruction in instructions.values()
        if instruction.opcode == "while"
    ]


def compiled(function, *arguments):
    return parse(jax.jit(function).lower(*arguments).compile().as_text())


def test_a_program_for_tpus_is_read():
    """Every line with a name is an instruction, with its operands among those before it."""
    program = parse(TEXT.read_text())
    instructions = [i for computation in program.computations.values() for i in computation.values()]
    assert len(instructions) == sum(" = " in line and line.startswith("  ") for line in TEXT.read_text().splitlines())
    estimates = [int(part.split('"')[0]) for part in TEXT.read_text().split('"estimated_cycles":"')[1:]]
    assert sorted(i.cycles for i in instructions if i.cycles is not None) == sorted(estimates)
    for name, computation in program.computations.items():
        seen = set()
        for instruction in computation.values():
            if instruction.opcode not in ("parameter", "constant"):
                assert seen.issuperset(instruction.operands), (name, instruction)
            for called in sum(instruction.called().values(), []):
                assert called in program.computations
            seen.add(instruction.name)
    assert len(next(i for i in instructions if i.opcode == "conditional").called()["branches"]) == 2
    kernel = next(i for i in instructions if i.opcode == "custom-call")
    assert kernel.op_name.endswith("/pallas_call") and arrays(kernel.shape) == [("bf16", (ROWS, TOKENS, HEADS * WIDTH))]


def test_loops_of_a_program_for_tpus_turn_as_often_as_written():
    """The counter's bound is carried into the condition by the compiler; one length is an argument of the program."""
    assert sorted(loops(parse(TEXT.read_text())), key=str) == [TURNS, None]


@pytest.mark.parametrize(("first", "last"), [(0, 7), (3, 11)])
def test_loops_of_a_program_for_cpus_turn_as_often_as_written(first, last):
    def function(x, count):
        x = jax.lax.fori_loop(first, last, lambda i, x: jnp.sin(x * i), x)
        return jax.lax.fori_loop(0, count, lambda i, x: jnp.cos(x * i), x)

    assert sorted(loops(compiled(function, jnp.ones(3), 2)), key=str) == sorted([last - first, None], key=str)


def test_a_bound_that_a_loop_carries_is_followed_to_where_it_begins():
    """Steps of two from 1 to a bound of 8, which both begin outside: four turns."""
    text = """HloModule example

%body (p: (s32[], s32[])) -> (s32[], s32[]) {
  %p = (s32[], s32[]) parameter(0)
  %i = s32[] get-tuple-element(%p), index=0
  %end = s32[] get-tuple-element(%p), index=1
  %two = s32[] constant(2)
  %next = s32[] add(%i, %two)
  ROOT %out = (s32[], s32[]) tuple(%next, %end)
}

%condition (q: (s32[], s32[])) -> pred[] {
  %q = (s32[], s32[]) parameter(0)
  %j = s32[] get-tuple-element(%q), index=0
  %bound = s32[] get-tuple-element(%q), index=1
  ROOT %less = pred[] compare(%j, %bound), direction=LT
}

ENTRY %main (x: s32[]) -> s32[] {
  %x = s32[] parameter(0)
  %one = s32[] constant(1)
  %eight = s32[] constant(8)
  %start = (s32[], /*index=1*/s32[]) tuple(%one, %eight)
  ROOT %loop = (s32[], s32[]) while(%start), condition=%condition, body=%body
}
"""
    assert loops(parse(text)) == [4]
    assert loops(parse(text.replace("direction=LT", "direction=NE"))) == [None]
    assert loops(parse(text.replace("tuple(%one, %eight)", "tuple(%one, %x)"))) == [None]
    assert loops(parse(text.replace("add(%i, %two)", "multiply(%i, %two)"))) == [None]


def test_text_without_a_program_is_refused():
    with pytest.raises(ValueError, match="no entry computation: expected optimised HLO"):
        parse("HloModule nothing\n")
