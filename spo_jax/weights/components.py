"""Components of a pipeline's folder: loads UNets, autoencoders, text encoders and CLIP into trees, and writes them.

Mirrors ``from_pretrained`` and ``save_pretrained`` of diffusers and transformers, except that every key has to be used
and every leaf filled.

transformers 5 writes a CLIPTextModel without the prefix ``text_model.``, while transformers 4 wrote it with the prefix.
Version 5 reads both forms, but version 4 only warns about names without the prefix and leaves their weights random.
Therefore both forms are read here, and the prefix is always written.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from spo_jax.core.files import write_json
from spo_jax.weights import kinds, rules, store

# Buffers that hold 0..n-1; transformers 4 saved them among the weights.
IGNORED = (r"(^|\.)position_ids$",)
_TEXT_PREFIX = "text_model."
# CLIPTextModelWithProjection keeps its projection beside the text tower, outside the prefix.
_OUTSIDE_TEXT = "text_projection."

# Until diffusers 0.11 the layers of the autoencoder's attention had other names, and files on the hub still use them
# (AttentionBlock; diffusers repairs them in ModelMixin._convert_deprecated_attention_blocks).
OLD_VAE_ATTENTION: rules.Renames = tuple(
    (rf"(^|\.)(attentions\.\d+)\.{old}\.(weight|bias)$", rf"\g<1>\g<2>.{new}.\g<3>")
    for old, new in (("query", "to_q"), ("key", "to_k"), ("value", "to_v"), ("proj_attn", "to_out.0"))
)


def load_unet(
    folder: str | os.PathLike, shapes: Mapping[str, Any], variant: str | None = None, dtype: Any = None
) -> dict[str, Any]:
    """Loads the parameters of a UNet2DConditionModel.

    Args:
      folder: ``<pipeline>/unet``.
      shapes: the tree to fill (``jax.eval_shape`` of the model's init).
      variant: for example ``fp16`` (see `store.choose_weights`).
      dtype: the type that floating-point tensors are cast to; None keeps the stored type.

    Raises:
      UserError: there are no readable weights, or they do not fit the tree.
    """
    state = store.read_state(folder, "diffusers", variant)
    return rules.to_tree(state, shapes, str(folder), dtype=dtype)


def load_vae(
    folder: str | os.PathLike, shapes: Mapping[str, Any], variant: str | None = None, dtype: Any = None
) -> dict[str, Any]:
    """Loads the parameters of an AutoencoderKL or AutoencoderTiny; reads the old attention names too.

    Args:
      folder: ``<pipeline>/vae``.
      shapes: the tree to fill (``jax.eval_shape`` of the model's init).
      variant: for example ``fp16`` (see `store.choose_weights`).
      dtype: the type that floating-point tensors are cast to; None keeps the stored type.

    Raises:
      UserError: there are no readable weights, or they do not fit the tree.
    """
    state = store.read_state(folder, "diffusers", variant)
    return rules.to_tree(state, shapes, str(folder), renames=OLD_VAE_ATTENTION, dtype=dtype)


def load_text(
    folder: str | os.PathLike, shapes: Mapping[str, Any], variant: str | None = None, dtype: Any = None
) -> dict[str, Any]:
    """Loads the parameters of a CLIPTextModel or CLIPTextModelWithProjection.

    Args:
      folder: ``<pipeline>/text_encoder``.
      shapes: the tree to fill, with or without ``text_model`` at its top.
      variant: for example ``fp16`` (see `store.choose_weights`).
      dtype: the type that floating-point tensors are cast to; None keeps the stored type.

    Raises:
      UserError: there are no readable weights, or they do not fit the tree.
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
    """Loads the parameters of a CLIPModel (PickScore) or of a step-aware preference model.

    Args:
      path: a folder with ``model.safetensors``, or one file. The published preference models hold the network as
        ``self.model``, so their prefix ``model.`` is removed.
      shapes: the tree to fill, with ``text_model`` and ``vision_model`` at its top.
      variant: for example ``fp16`` (see `store.choose_weights`).
      dtype: the type that floating-point tensors are cast to; None keeps the stored type.

    Raises:
      UserError: there are no readable weights, they are those of something else, or they do not fit the tree.
    """
    state = store.read_state(path, "transformers", variant)
    kinds.check_weights_are(kinds.SPM if "t_embedder" in shapes else kinds.CLIP, state, str(path))
    return clip_tree(state, shapes, str(path), dtype)


def clip_tree(
    state: Mapping[str, np.ndarray], shapes: Mapping[str, Any], where: str, dtype: Any = None
) -> dict[str, Any]:
    """Does what `load_clip` does, for tensors that have already been read.

    Args:
      state: torch names to arrays.
      shapes: the tree to fill, with ``text_model`` and ``vision_model`` at its top.
      where: the file or folder that the tensors come from, for messages.
      dtype: the type that floating-point tensors are cast to; None keeps the stored type.
    """
    return rules.to_tree(state, shapes, where, renames=[(r"^model\.", "")], ignore=IGNORED, dtype=dtype)


def text_state(tree: Mapping[str, Any], dtype: Any = None) -> dict[str, np.ndarray]:
    """Names the tensors of a text encoder as transformers does, always with ``text_model.``; see `rules.to_state`."""
    state = rules.to_state(tree, dtype)
    outside = (_TEXT_PREFIX, _OUTSIDE_TEXT)
    return {key if key.startswith(outside) else _TEXT_PREFIX + key: value for key, value in state.items()}


def write_component(
    folder: str | os.PathLike,
    config: Mapping[str, Any],
    state: Mapping[str, Any],
    kind: store.Kind = "diffusers",
    variant: str | None = None,
    max_shard_bytes: int | None = None,
) -> None:
    """Writes ``config.json`` and the weights of one component, under the names that ``save_pretrained`` uses.

    Args:
      folder: the component's own folder, such as ``<pipeline>/unet``; created if it does not exist. Weights of the same
        name are replaced, including their shards.
      config: the component's config in the form of its own library.
      state: tensors under torch's names and in torch's layouts, from `rules.to_state` or `text_state`.
      kind: the library whose file names are used.
      variant: becomes part of the file names and nothing else; to cast the weights, use ``to_state(tree, dtype)``.
      max_shard_bytes: cuts the weights into shards of at most this size; None writes one file.

    Raises:
      UserError: the folder cannot be written.
    """
    path = Path(folder) / store.weights_name(kind, variant)
    store.remove_older(path, keep=store.write_state(path, state, max_shard_bytes=max_shard_bytes))
    write_json(path.parent / "config.json", dict(config))
