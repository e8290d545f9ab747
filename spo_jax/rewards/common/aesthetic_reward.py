"""LAION's aesthetic score as a reward: an affine map of an image's CLIP features."""

import jax.numpy as jnp

from spo_jax.core.typing import Array, Float, Int, Params, PyTree
from spo_jax.parallel.sharding import abstract_weights, place_weights
from spo_jax.rewards.base import Context
from spo_jax.rewards.common.aesthetic_files import CLIP, find_files
from spo_jax.rewards.common.affine_head import apply_head, fold_head, folded_shapes, head_shapes
from spo_jax.rewards.common.clip_pixels import Pixels
from spo_jax.rewards.common.clip_reward import CLIPVisionReward, clip_network, clip_weights
from spo_jax.rewards.common.preference_files import resolve_model
from spo_jax.weights import kinds, rules, store

_SEEING = ("vision_model", "visual_projection", "logit_scale")  # the text tower is left out, as there is no text


class AestheticReward(CLIPVisionReward):
    """Scores an image by w · x + b, where x are its CLIP features of length 1."""

    def score(
        self, params: Params, x: Float[Array, "b h w 3"], features: PyTree, t: Int[Array, " b"]
    ) -> Float[Array, " b"]:
        """Scores images near [-1, 1]; neither prompt nor timestep has an influence."""
        return apply_head(params["head"], self.image_features(params, x))


def load_aesthetic(source: str, context: Context, name: str, meaning: str, pixels: Pixels) -> AestheticReward:
    """Reads head and CLIP.

    Args:
      source: as `find_files` takes it.
      context: where and how to load them.
      name: name of the score.
      meaning: what it is, in a sentence.
      pixels: function from images to CLIP's input.

    Raises:
      UserError: they cannot be read, are something else, or do not fit each other.
    """
    head_source, clip_source = find_files(source)
    layers = None if context.abstract else _read_layers(head_source)  # before the CLIP, which is fetched for minutes
    clip, path = clip_network(clip_source, context, CLIP)
    width = clip.config.projection_dim
    if layers is None:
        head = abstract_weights(folded_shapes(width), jnp.float32, context.mesh)
    else:
        folded = fold_head(rules.to_tree(layers, head_shapes(width), head_source))
        head = place_weights(folded, context.mesh, title=head_source)
    weights = clip_weights(clip, path, context)
    params = {part: weights[part] for part in _SEEING} | {"head": head}
    return AestheticReward(name, meaning, clip=clip, params=params, pixels=pixels)


def _read_layers(source: str) -> store.State:
    path = resolve_model(source)
    state = store.read_file(path)
    kinds.check_weights_are(kinds.AESTHETIC_HEAD, state, str(path))
    return state
