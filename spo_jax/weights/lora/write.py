"""Writes LoRA files that every program applies at the right strength."""

import json
import os
from collections.abc import Mapping
from typing import Any

import numpy as np

from spo_jax.weights import store
from spo_jax.weights.lora.adapter import LoRA
from spo_jax.weights.lora.alphas import METADATA_KEY
from spo_jax.weights.lora.hashes import kohya_hashes
from spo_jax.weights.lora.names import FindNames
from spo_jax.weights.lora.targets import targets_of

LORA_FORMATS = ("diffusers", "kohya")


def write_lora(
    path: str | os.PathLike,
    lora: LoRA,
    format: str = "diffusers",
    metadata: Mapping[str, str] | None = None,
    module_shapes: Mapping[str, Any] | None = None,
    *,
    find_names: FindNames,
) -> None:
    """Writes a LoRA that ``pipe.load_lora_weights`` and programs that ignore alpha read with the right scale.

    Alpha is the rank in the file: another alpha is multiplied into ``lora_B`` (see `LoRA.folded`).

    Args:
      path: file to write; diffusers looks for ``pytorch_lora_weights.safetensors`` in a folder.
      lora: the updates, which are written in float32.
      format: ``diffusers``, or ``kohya`` for the web UIs (with SGM's block names for SDXL).
      metadata: additional text for the header. A file in kohya's format also gets the hashes of its tensors.
      module_shapes: tree of the LoRA's model, as in `read_lora`. SDXL's blocks are numbered from it in kohya's format;
        it is not needed for a LoRA on all attentions.
      find_names: finds the names of the family that has the modules.

    Raises:
      UserError: the file cannot be written.
      ValueError: the format is unknown.
    """
    if format not in LORA_FORMATS:
        raise ValueError(f"format {format!r}: expected {' or '.join(LORA_FORMATS)}")
    # Collect the tensors.
    lora = lora.folded()
    state: dict[str, np.ndarray] = {}
    if format == "kohya":
        model = None if module_shapes is None else targets_of(module_shapes)
        flat_names = find_names(lora.modules()).file_names(lora.modules(), model)
    for name, (lora_a, lora_b) in lora.modules().items():
        down = np.asarray(lora_a, np.float32).T  # [in r] -> [r in]
        up = np.asarray(lora_b, np.float32).T  # [r out] -> [out r]
        if format == "kohya":
            flat = flat_names[name]
            state[f"{flat}.lora_down.weight"] = down
            state[f"{flat}.lora_up.weight"] = up
            state[f"{flat}.alpha"] = np.float32(lora.alpha)
        else:
            state[f"unet.{name}.lora.down.weight"] = down
            state[f"unet.{name}.lora.up.weight"] = up
    # Write them with the header.
    header = dict(metadata or {})
    if format == "diffusers":
        header[METADATA_KEY] = _adapter_metadata(lora)
    else:
        header |= kohya_hashes(state, header)
    store.write_state(path, state, header)


def _adapter_metadata(lora: LoRA) -> str:
    """Returns the adapter's config as diffusers writes it to the header of a file."""
    config = {"r": lora.rank, "lora_alpha": lora.rank, "peft_type": "LORA", "target_modules": list(lora.modules())}
    return json.dumps({f"unet.{key}": value for key, value in config.items()}, sort_keys=True)
