"""The head that LAION's aesthetic predictor and ImageReward share: five linear layers, which are one affine map.

There is nothing but dropout between the layers, whose torch names therefore are ``layers.0``, ``2``, ``4``, ``6`` and
``7``. Folded, the head is one weight per feature and a bias.
"""

import jax
import numpy as np

from spo_jax.core.typing import Array, Float, Params

_OUTPUTS = {"layers_0": 1024, "layers_2": 128, "layers_4": 64, "layers_6": 16, "layers_7": 1}  # names -> widths


def head_shapes(features: int) -> Params:
    """Returns the shapes of the five layers, into which a file of weights is read.

    Args:
      features: width of the features that the head reads.
    """
    shapes = {}
    for name, outputs in _OUTPUTS.items():
        kernel = jax.ShapeDtypeStruct((features, outputs), np.float32)
        shapes[name] = {"kernel": kernel, "bias": jax.ShapeDtypeStruct((outputs,), np.float32)}
        features = outputs
    return shapes


def folded_shapes(features: int) -> Params:
    """Returns the shapes of what `fold_head` returns."""
    return {"kernel": jax.ShapeDtypeStruct((features,), np.float32), "bias": jax.ShapeDtypeStruct((), np.float32)}


def fold_head(layers: Params) -> Params:
    """Multiplies the five layers into one, in float64.

    Args:
      layers: weights in the tree of `head_shapes`, as numpy arrays of any float dtype.

    Returns:
      ``kernel`` [d] and ``bias`` [], of float32.
    """
    first = next(iter(_OUTPUTS))
    kernel = np.eye(len(layers[first]["kernel"]))
    bias = np.zeros(len(kernel))
    for name in _OUTPUTS:
        weight = np.asarray(layers[name]["kernel"], np.float64)
        kernel = kernel @ weight
        bias = bias @ weight + np.asarray(layers[name]["bias"], np.float64)
    return {"kernel": kernel[:, 0].astype(np.float32), "bias": np.float32(bias[0])}


def apply_head(head: Params, features: Float[Array, "b d"]) -> Float[Array, " b"]:
    """Applies the folded head, in float32.

    Args:
      head: what `fold_head` returns.
      features: features of images, or of images and prompts.
    """
    # A sum of products and not a dot product, which TPUs and GPUs would compute in fewer bits.
    return (features.astype(np.float32) * head["kernel"][None]).sum(axis=-1) + head["bias"]
