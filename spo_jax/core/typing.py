"""Array types and the glossary of axis letters used in every signature.

b  batch: prompts, or rows of any kind        k  candidates of one pool
n  pairs of a training batch                  r  records: transitions that a rollout keeps
s  judgements of a rollout                    l  tokens
h w c  height, width, channels (NHWC)         d  features
"""

from typing import Any

import jax
from jaxtyping import Array, Bool, Float, Int, Num, PyTree, UInt8

Key = jax.Array
# jnp.float32 and jnp.bfloat16 are scalar types rather than dtypes, and no type that can be checked covers both.
DType = Any
Params = dict[str, Any]

__all__ = ["Array", "Bool", "DType", "Float", "Int", "Key", "Num", "Params", "PyTree", "UInt8"]
