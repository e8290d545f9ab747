"""Gradient checkpointing: blocks are computed again in the backward pass, but for results that are worth their memory.

Results that a block may keep beside its inputs are named with `keep` where they are computed:

- ``costly``: what takes many operations for every number: the outputs of flash attention with many keys, and of the
  first convolution of a ResNet block (its last one is not needed again).
- ``products``: the outputs of projections as well. Norms, activations and sums remain to be computed again.
"""

import jax
from flax import linen as nn
from jax.ad_checkpoint import checkpoint_name

from spo_jax.core.typing import Array

# Every choice keeps what those before it keep, too.
KEEPS = ("inputs", "costly", "products")


def keep(x: Array, what: str = "costly") -> Array:
    """Returns x; a block that is computed again may keep it.

    Args:
      x: a result inside of a block.
      what: the first of `KEEPS` with which it is kept.
    """
    return checkpoint_name(x, what)


def recomputed(block: type[nn.Module], remat: bool | str) -> type[nn.Module]:
    """Returns a block that is computed again in the backward pass.

    Args:
      block: class of the block.
      remat: what it keeps, one of `KEEPS`; True is the first of them, and False returns the block as it is.
    """
    if not remat:
        return block
    kept = KEEPS[1 : KEEPS.index(KEEPS[0] if remat is True else remat) + 1]
    return nn.remat(block, policy=jax.checkpoint_policies.save_only_these_names(*kept))
