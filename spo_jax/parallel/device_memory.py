"""Bytes that arrays and compiled programs take of each device, by XLA's own account."""

import math

import jax

from spo_jax.core.typing import PyTree

TPU_USABLE = 0.98  # share of a TPU's memory that programs can have: the compiler can use 15.75 of a v5e's 16 GiB

# What a program takes; donated arrays, the aliases, are arguments and results in one place.
PARTS = ("argument", "temp", "output", "alias", "generated_code")


def shard_bytes(tree: PyTree) -> int:
    """Returns the bytes that one device holds of a tree of shapes with shardings."""
    leaves = jax.tree.leaves(tree)
    return sum(math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize for x in leaves)


def program_bytes(program: jax.stages.Compiled) -> dict[str, int]:
    """Returns the bytes that a program takes of one device while it runs: each of `PARTS`, and their ``total``."""
    memory = program.memory_analysis()
    sizes = {part: getattr(memory, f"{part}_size_in_bytes") for part in PARTS}
    return {**sizes, "total": sum(sizes.values()) - 2 * sizes["alias"]}
