"""The precisions that the matrix products and convolutions of a traced program ask for."""

from collections.abc import Iterator

import jax
from jax.extend import core

FULL = (jax.lax.Precision.HIGHEST,) * 2


def precisions(function, *args) -> list[tuple[str, tuple | None]]:
    """Returns (primitive, precision of both sides) for each product of a function, in the order of the program."""
    return [(e.primitive.name, e.params["precision"]) for e in _products(jax.make_jaxpr(function)(*args).jaxpr)]


def _products(jaxpr: core.Jaxpr) -> Iterator:
    for equation in jaxpr.eqns:
        if equation.primitive.name in ("dot_general", "conv_general_dilated"):
            yield equation
        for value in equation.params.values():
            for item in value if isinstance(value, tuple | list) else (value,):
                inner = getattr(item, "jaxpr", item)
                if isinstance(inner, core.Jaxpr):
                    yield from _products(inner)
