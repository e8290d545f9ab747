"""Components of a diffusers folder: UNet and autoencoders into trees, and a component written back.

Mirrors ``ModelMixin.from_pretrained`` and ``save_pretrained``, but every key has to be used and every leaf filled.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from spo_jax.core.files import write_json
from spo_jax.weights import rules, store

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
