"""Linen's layers for weights that are given, as files have them, instead of drawn.

Linen traces the initialiser of every weight at every use of a layer, only to compare two shapes. That was a quarter of
the time that tracing a training program took (`python -m benchmarks.startup`). These layers compare with the shape that
they ask for.
"""

from collections.abc import Callable, Sequence
from typing import Any, no_type_check

import jax.numpy as jnp
from flax import linen as nn
from flax.errors import ScopeParamShapeError

from spo_jax.core.typing import Array, DType


class Given(nn.Module):
    """The base of modules with weights; its ``param`` reads a weight without a look at its initialiser.

    Without a weight it draws one, as Linen does, if there is a key for weights. Without a key it makes zeros: then
    nobody asks for more than shapes (`spo_jax.nn.shapes`).
    """

    @nn.nowrap
    def param(
        self, name: str, initialiser: Callable[..., Any], shape: Sequence[int], dtype: DType = jnp.float32
    ) -> Array | Any:  # fmt: skip
        """Returns the weight of a name; the arguments are Linen's.

        Raises:
          ScopeParamShapeError: the weight has another shape.
        """
        if not self.has_variable("params", name) and self.has_rng("params"):
            return super().param(name, initialiser, shape, dtype)
        value = self.variable("params", name, jnp.zeros, shape, dtype).value
        if jnp.shape(value) != tuple(shape):
            raise ScopeParamShapeError(name, self.scope.path_text, jnp.shape(value), tuple(shape))
        return value


# Their fields are Linen's, with types that cannot be checked at run time.


@no_type_check
class Dense(Given, nn.Dense):
    """Linen's ``Dense``."""


@no_type_check
class Conv(Given, nn.Conv):
    """Linen's ``Conv``."""


@no_type_check
class LayerNorm(Given, nn.LayerNorm):
    """Linen's ``LayerNorm``."""


@no_type_check
class Embed(Given, nn.Embed):
    """Linen's ``Embed``."""
