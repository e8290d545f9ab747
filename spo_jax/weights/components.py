"""Components of a pipeline's folder: UNet, autoencoders, text encoders and CLIP into trees, and a component written back.

Mirrors ``from_pretrained`` and ``save_pretrained`` of diffusers and transformers, except that every key has to be used
and every leaf filled.

transformers 5 writes a CLIPTextModel without ``text_model.`` where 4 wrote it with; 5 reads both, 4 only warns about
the bare names and leaves its weights random. So both are read here and the prefix is always written.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from spo_jax.core.files import write_json
from spo_jax.weights import rules, store

# Buffers with the numbers 0..n-1 that transformers 4 saved among the weights.
IGNORED = (r"(^|\.)position_ids$",)
_TEXT_PREFIX = "text_model."
# Beside the text tower, not in it: CLIPTextModelWithProjection keeps it outside the prefix.
_OUTSIDE_TEXT = "text_projection."


def load_text(
    folder: str | os.PathLike, shapes: Mapping[str, Any], variant: str | None = None, dtype: Any = None
) -> dict[str, Any]:
    """The parameters of a CLIPTextModel or CLIPTextModelWithProjection.

    Args:
      folder: ``<pipeline>/text_encoder``.
      shapes: the tree to fill, with or without ``text_model`` at its top.
      variant: e.g. ``fp16`` (see `store.choose_weights`).
      dtype: what floating-point tensors are cast to; None keeps the stored type.

    Raises:
      UserError: no readable weights, or weights that do not fit the tree.
    """
    state = store.read_state(folder, "transformers", variant)
    if "text_model" in shapes:
        renames = [(r"^(?!text_model\.|text_projection\.)", _TEXT_PREFIX)]
    else:
        renames = [(r"^text_model\.", "")]
    return rules.to_tree(state, shapes, str(folder), renames=renames, ignore=IGNORED, dtype=dtype)


def load_clip(
    path: str | os.PathLike, shapes: Mapping[str, Any], variant: str | None = None, dtype: Any = None
) -> dict[str, Any]:
    """The parameters of a CLIPModel (PickScore) or of a step-aware preference model.

    Args:
      path: a folder with ``model.safetensors``, or one file; the published preference models hold the network as
        ``self.model``, so their ``model.`` prefix is taken off.
      shapes: the tree to fill, with ``text_model`` and ``vision_model`` at its top.
      variant: e.g. ``fp16`` (see `store.choose_weights`).
      dtype: what floating-point tensors are cast to; None keeps the stored type.

    Raises:
      UserError: no readable weights, or weights that do not fit the tree.
    """
    return clip_tree(store.read_state(path, "transformers", variant), shapes, str(path), dtype)


def clip_tree(
    state: Mapping[str, np.ndarray], shapes: Mapping[str, Any], where: str, dtype: Any = None
) -> dict[str, Any]:
    """`load_clip` of tensors that have been read already; ``where`` they were, for messages."""
    return rules.to_tree(state, shapes, where, renames=[(r"^model\.", "")], ignore=IGNORED, dtype=dtype)


def text_state(tree: Mapping[str, Any], dtype: Any = None) -> dict[str, np.ndarray]:
    """A text encoder's tree under transformers' names, always with ``text_model.``; see `rules.to_state`."""
    state = rules.to_state(tree, dtype)
    outside = (_TEXT_PREFIX, _OUTSIDE_TEXT)
    return {key if key.startswith(outside) else _TEXT_PREFIX + key: value for key, value in state.items()}

# Until diffusers 0.11 the autoencoder's attention had names of its own, and the files on the hub still have them
# (AttentionBlock; diffusers repairs them in ModelMixin._convert_deprecated_attention_blocks).
OLD_VAE_ATTENTION: rules.Renames = tuple(
    (rf"(^|\.)(attentions\.\d+)\.{old}\.(weight|bias)$", rf"\g<1>\g<2>.{new}.\g<3>")
    for old, new in (("query", "to_q"), ("key", "to_k"), ("value", "to_v"), ("proj_attn", "to_out.0"))
)


def load_unet(
    folder: str | os.PathLike, shapes: Mapping[str, Any], variant: str | None = None, dtype: Any = None
) -> dict[str, Any]:
    """The parameters of a UNet2DConditionModel.

    Args:
      folder: ``<pipeline>/unet``.
      shapes: the tree to fill (``jax.eval_shape`` of the model's init).
      variant: e.g. ``fp16`` (see `store.choose_weights`).
      dtype: what floating-point tensors are cast to; None keeps the stored type.

    Raises:
      UserError: no readable weights, or weights that do not fit the tree.
    """
    state = store.read_state(folder, "diffusers", variant)
    return rules.to_tree(state, shapes, str(folder), dtype=dtype)


def load_vae(
    folder: str | os.PathLike, shapes: Mapping[str, Any], variant: str | None = None, dtype: Any = None
) -> dict[str, Any]:
    """The parameters of an AutoencoderKL or AutoencoderTiny, old attention names included; else as `load_unet`."""
    state = store.read_state(folder, "diffusers", variant)
    return rules.to_tree(state, shapes, str(folder), renames=OLD_VAE_ATTENTION, dtype=dtype)


def write_component(
    folder: str | os.PathLike,
    config: Mapping[str, Any],
    state: Mapping[str, Any],
    kind: store.Kind = "diffusers",
    variant: str | None = None,
    max_shard_bytes: int | None = None,
) -> None:
    """Writes ``config.json`` and the weights of one component, as ``save_pretrained`` names them.

    Args:
      folder: ``<pipeline>/unet`` or the like, the component's own; made if missing. Weights of the same name are
        replaced, their shards included.
      config: the component's config in its library's own form.
      state: torch names and layouts, from `rules.to_state` or `clip.text_state`.
      kind: whose names the files get.
      variant: put into the file names only; cast with ``to_state(tree, dtype)``.
      max_shard_bytes: cut into shards of at most this size; None writes one file.

    Raises:
      UserError: the folder cannot be written.
    """
    path = Path(folder) / store.weights_name(kind, variant)
    store.remove_older(path, keep=store.write_state(path, state, max_shard_bytes=max_shard_bytes))
    write_json(path.parent / "config.json", dict(config))
