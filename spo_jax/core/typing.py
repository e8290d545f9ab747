"""Array types and the glossary of axis letters used in every signature.

b  batch: prompts, or rows of any kind        k  candidates of one pool
n  pairs of a training batch                  r  records: transitions that a rollout keeps
s  judgements of a rollout                    l  tokens
h w c  height, width, channels (NHWC)         d  features

``Array``, ``Key`` and ``PyTree`` are jax's. They are looked up when they are first used, so that modules that only have
numpy arrays import no jax, and commands find mistakes before they do.
"""

from typing import Any

from jaxtyping import Bool, Float, Int, Num, UInt8

# jnp.float32 and jnp.bfloat16 are scalar types rather than dtypes, and no type that can be checked covers both.
DType = Any
Params = dict[str, Any]

_OF_JAX = ("Array", "Key", "PyTree")
__all__ = [*_OF_JAX, "Bool", "DType", "Float", "Int", "Num", "Params", "UInt8"]


def __getattr__(name: str) -> Any:
    if name not in _OF_JAX:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import jaxtyping

    return jaxtyping.Array if name == "Key" else getattr(jaxtyping, name)
