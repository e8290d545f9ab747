"""Estimated cycles are added up with loops as often as they turn, and sorted by network and kind.

The program is that of `tests.benchmarks.tpu_program`: a loop of known length over a network, one of unknown length, a
branch and a kernel.
"""

import dataclasses
import importlib.util
import json

import jax
import pytest

from benchmarks import cycles
from benchmarks.hlo import parse
from benchmarks.topologies import GIB, Chip
from tests.benchmarks import tpu_program
from tests.benchmarks.tpu_program import HEADS, ROWS, TEXT, TOKENS, TURNS, WIDTH

V5E = Chip("v5e", 16 * GIB, 819e9, 197e12, 1.5e9, 128)
FLAT = ("bf16", (ROWS, TOKENS, HEADS * WIDTH))


@pytest.fixture(scope="module")
def program():
    return parse(TEXT.read_text())


def estimates(program, computation):
    """The compiler's cycles of the instructions of a computation, without those that it calls."""
    return sum(i.cycles or 0 for i in program.computations[computation].values())


def test_loops_count_as_often_as_they_turn(program):
    """The cycles of the parts are read from the text by hand, and a branch counts with its more expensive side."""
    entry = program.computations[program.entry]
    known, unknown = (i for i in entry.values() if i.opcode == "while")
    branches = next(i for i in entry.values() if i.opcode == "conditional").called()["branches"]
    costs = [estimates(program, name) for name in branches]
    assert costs[0] != costs[1]
    once = estimates(program, program.entry) + max(costs)
    inner = [estimates(program, loop.called()["body"][0]) for loop in (known, unknown)]
    assert min(inner) > 0
    for turns in (0, 1, 4):
        found = cycles.operations(program, V5E, [turns])
        kernels = sum(o.total for o in found if o.kind == "kernels")
        expected = (once + TURNS * inner[0] + turns * inner[1]) / V5E.clock
        assert cycles.seconds(found) - kernels == pytest.approx(expected)
    assert cycles.seconds(cycles.operations(program, V5E)) == cycles.seconds(cycles.operations(program, V5E, [1]))


def test_operations_belong_to_networks_and_kinds(program):
    """Only the loop of known length has a network in it: two products, which hold the norm's sums, and a root."""
    found = cycles.operations(program, V5E, [1])
    network = [o for o in found if o.network == "Net" and o.seconds]
    assert sorted(o.kind for o in network) == ["elementwise", "products", "products"]
    assert {o.turns for o in network} == {TURNS}
    assert [cycles.where(o.source).split("/")[1] for o in network if o.kind == "products"] == ["up", "down"]
    assert {o.kind for o in found if o.network == "rest" and o.seconds} == {"products", "copies", "kernels"}
    # The compiler's copies at a loop's begin have no name of their own.
    assert not any(o.source == "" for o in found if o.seconds)


def test_a_kernel_takes_its_products_or_its_bytes(program):
    """Heads of 40 fill a unit of 128: two products of 256 x 128 x 256 for every head, or four arrays of wide rows."""
    flat = jax.ShapeDtypeStruct((ROWS, TOKENS, HEADS * WIDTH), "bfloat16")
    kernels = cycles.kernel_flops(jax.make_jaxpr(lambda x: tpu_program.flash_attention(x, x, x, HEADS))(flat), 128)
    products = 2 * 2 * ROWS * HEADS * TOKENS * TOKENS * 128
    assert kernels == {(FLAT,) * 4: products}
    bytes_moved = 4 * 2 * ROWS * TOKENS * 128

    def kernel(chip):
        (found,) = (o for o in cycles.operations(program, chip, kernels=kernels) if o.kind == "kernels")
        return found.total

    assert kernel(V5E) == pytest.approx(max(products / 197e12, bytes_moved / 819e9))
    assert kernel(dataclasses.replace(V5E, peak_flops=1e12)) == pytest.approx(products / 1e12)
    assert cycles.kernel_flops(jax.make_jaxpr(lambda x: x @ x)(jax.numpy.ones((2, 2))), 128) == {}


def test_a_summary_adds_up_and_is_json(program):
    found = cycles.operations(program, V5E, [3])
    total = cycles.seconds(found)
    summary = json.loads(json.dumps(cycles.summary(found, V5E, flops=0.25 * total * 197e12)))
    assert summary["seconds"] == pytest.approx(total) and summary["mfu"] == pytest.approx(0.25)
    assert sum(summary["kinds"].values()) == pytest.approx(total)
    assert sum(sum(kinds.values()) for kinds in summary["networks"].values()) == pytest.approx(total)
    products = summary["kinds"]["products"] + summary["kinds"]["kernels"]
    assert summary["share_of_products"] == pytest.approx(products / total)
    totals = [row["total"] for row in summary["top"]]
    assert totals == sorted(totals, reverse=True) and 0 < len(totals) <= cycles.TOP
    assert sum(totals) == pytest.approx(total)  # there are fewer kinds of operations than rows
    assert summary["without_estimate"]["copy-start"] > 0
    text = cycles.report(summary)
    assert "estimated MFU 25.0%" in text and "Net/up/dot_general" in text


@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="the TPU compiler, wheel libtpu, is not here")
def test_the_compiler_here_says_what_the_file_says(program):
    """Another version may fuse otherwise and estimate anew; what turns how often is the program's own."""
    traced = tpu_program.traced()
    here = cycles.operations(parse(traced.lower().compile().as_text()), V5E, [2], cycles.kernel_flops(traced, 128))
    for found in (here, cycles.operations(program, V5E, [2])):
        assert {o.turns for o in found if o.network == "Net" and o.kind == "products"} == {TURNS}
        assert {o.turns for o in found if o.kind == "kernels"} == {1}
        assert {o.turns for o in found if o.kind == "products"} == {1, 2, TURNS}
    assert cycles.seconds(here) == pytest.approx(cycles.seconds(cycles.operations(program, V5E, [2])), rel=0.5)


def test_layers_that_differ_in_their_number_are_one_row():
    found = [
        cycles.Operation(f"fusion.{layer}", "products", "Net", f"jit(f)/Net/layers_{layer}/fc1", "f32[2]", 0.5, 3)
        for layer in range(12)
    ]
    other = cycles.Operation("fusion", "products", "Net", "jit(f)/Net/layers_0/fc2", "f32[2]", 0.25, 1)
    first, second = cycles.summary([*found, other], V5E, 0.0)["top"]
    assert (first["source"], first["runs"], first["total"]) == ("Net/layers_*/fc1", 36, 18.0)
    assert (second["source"], second["runs"], second["total"]) == ("Net/layers_*/fc2", 1, 0.25)
