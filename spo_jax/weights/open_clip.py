"""CLIPs in open_clip's layout, such as HPSv2: its names and matrices as those of transformers' CLIPModel.

open_clip keeps the weights of query, key and value of an attention in one matrix ``attn.in_proj_weight`` [3w, w], and
its projections ``text_projection`` and ``visual.proj`` are matrices of y = x W, and not of y = x Wᵀ as in a Linear.
"""

import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from spo_jax.weights import rules

_PROJECTIONS = {"text_projection": "text_projection.weight", "visual.proj": "visual_projection.weight"}
_PREFIX = "module."  # of checkpoints that were written while training on several devices
_IGNORED = (r"^attn_mask$",)  # the causal mask, which old versions of open_clip write with the weights
# Each is applied to every name, in this order.
_NAMES = (
    (r"^visual\.transformer\.resblocks\.", "vision_model.encoder.layers."),
    (r"^transformer\.resblocks\.", "text_model.encoder.layers."),
    (r"\.ln_([12])\.", r".layer_norm\1."),
    (r"\.attn\.", ".self_attn."),
    (r"\.mlp\.c_fc\.", ".mlp.fc1."),
    (r"\.mlp\.c_proj\.", ".mlp.fc2."),
    (r"^visual\.class_embedding$", "vision_model.embeddings.class_embedding"),
    (r"^visual\.positional_embedding$", "vision_model.embeddings.position_embedding.weight"),
    (r"^visual\.conv1\.", "vision_model.embeddings.patch_embedding."),
    (r"^visual\.ln_pre\.", "vision_model.pre_layrnorm."),  # sic: transformers' spelling
    (r"^visual\.ln_post\.", "vision_model.post_layernorm."),
    (r"^positional_embedding$", "text_model.embeddings.position_embedding.weight"),
    (r"^token_embedding\.", "text_model.embeddings.token_embedding."),
    (r"^ln_final\.", "text_model.final_layer_norm."),
)


def clip_tree(
    state: Mapping[str, np.ndarray], shapes: Mapping[str, Any], where: str, dtype: Any = None
) -> dict[str, Any]:
    """Fills the tree of a CLIP with the tensors of open_clip; every tensor has to be used and every leaf filled.

    Args:
      state: open_clip's names to arrays.
      shapes: the tree to fill, with ``text_model`` and ``vision_model`` at its top.
      where: the file, for messages.
      dtype: the type that floating-point tensors are cast to; None keeps the stored type.

    Raises:
      UserError: tensors are missing, unknown or of another shape; those that are missing are named as in transformers.
    """
    named: dict[str, np.ndarray] = {}
    for key, array in state.items():
        named |= _as_transformers(key, array)
    return rules.to_tree(named, shapes, where, ignore=_IGNORED, dtype=dtype)


def _as_transformers(key: str, array: np.ndarray) -> dict[str, np.ndarray]:
    """Names one tensor as transformers does; the one of query, key and value becomes three."""
    key = key.removeprefix(_PREFIX)
    if key in _PROJECTIONS:
        return {_PROJECTIONS[key]: array.T}
    fused = re.fullmatch(r"(.+\.)in_proj_(weight|bias)", key)
    if fused and array.ndim and len(array) % 3 == 0:
        parts = np.split(array, 3)
        return {_rename(f"{fused[1]}{part}_proj.{fused[2]}"): x for part, x in zip("qkv", parts, strict=True)}
    return {_rename(key): array}


def _rename(key: str) -> str:
    for pattern, replacement in _NAMES:
        key = re.sub(pattern, replacement, key)
    return key
