"""Reads and writes single-file checkpoints: a whole pipeline under LDM's names (SD 1.5, SD 2.1) or SGM's (SDXL).

Reading mirrors diffusers' ``from_single_file``, except that every key must be known and none may be missing. Such files
have neither tokenizers nor a scheduler.
"""

import dataclasses
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from spo_jax.core.errors import UserError
from spo_jax.models.stable_diffusion import architecture, ldm
from spo_jax.models.stable_diffusion.architecture import OPEN_CLIP, PREFIXES, Kind
from spo_jax.weights import store
from spo_jax.weights.messages import shorten

State = dict[str, np.ndarray]

# Leftovers of training: schedules, losses, counters, the moving average, buffers of position numbers, and the marks
# that `architecture.scheduler_config` reads.
_LEFTOVERS = re.compile(
    r"^(model_ema\.|denoiser\.|first_stage_model\.loss\.|posterior_|log_one_minus_|sqrt_|(alphas_cumprod\w*|betas|logvar"
    r"|lvlb_weights|global_step|v_pred|ztsnr)$)|\.position_ids$|(^|\.)logit_scale$"
)
# SD 2.x is conditioned on the last layer but one, so diffusers' text encoder ends there: it has neither the last block
# of OpenCLIP ViT-H nor its projection.
_SD21_UNUSED = re.compile(r"^(transformer\.resblocks\.23\.|text_projection$)")
# No part has a hundred blocks. A name that says so would have the names of all of them listed.
_FAR = re.compile(r"(^|\.)\d{3,}(\.|$)")
_VAE_ATTENTION = re.compile(r"mid\.attn_1\.(q|k|v|proj_out)\.weight$")


@dataclasses.dataclass(frozen=True)
class SingleFile:
    """The content of a single-file checkpoint.

    Attributes:
      kind: ``sd15`` (all of SD 1.x), ``sd21`` (all of SD 2.x) or ``sdxl``.
      components: weights of ``unet``, ``vae``, ``text_encoder`` and SDXL's ``text_encoder_2``, under diffusers' and
        transformers' names (with ``text_model.``), in torch's layouts and the stored dtypes. Some arrays are views of
        others.
      configs: diffusers' config of each component; under ``scheduler`` only the fields that the file has, if any.
      shown: the part of ``configs`` that the weights show. The rest (heads, groups, scaling, ...) are facts of the
        kind; the config of the model that was fine-tuned takes precedence over them.
    """

    kind: Kind
    components: dict[str, State]
    configs: dict[str, dict[str, Any]]
    shown: dict[str, dict[str, Any]]


def read_single_file(path: str | os.PathLike) -> SingleFile:
    """Reads a ``.safetensors`` or ``.ckpt`` checkpoint of SD 1.5, SD 2.1 or SDXL.

    Raises:
      UserError: the file cannot be read, is of another architecture, or has missing or unknown keys, which the message
        names.
    """
    # Split the tensors by component.
    path = Path(path)
    state = store.read_file(path)
    kind = architecture.detect(path, state)
    parts, unknown = _split(kind, state)
    prefixes = PREFIXES[kind]
    loaded = [_Part(path, kind, name, parts[name]) for name in prefixes]
    # Check that each component has all its keys and no others.
    missing: list[str] = []
    for part in loaded:
        required, optional = part.keys()
        missing += [prefixes[part.name] + key for key in required - part.state.keys()]
        unknown += [prefixes[part.name] + key for key in part.state.keys() - required - optional]
    problems = {"missing": missing, "unknown": unknown}
    found = [f"{len(keys)} {problem}: {shorten(keys)}" for problem, keys in problems.items() if keys]
    if found:
        raise UserError(f"{path}: not a whole checkpoint of {kind}, or of another model: {'; '.join(found)}")
    # Convert each component to its library's names.
    converted = {part.name: part.converted() for part in loaded}
    marked = architecture.scheduler_config(state)
    return SingleFile(
        kind=kind,
        components={name: state for name, (state, _) in converted.items()},
        configs={"scheduler": marked} | {name: config.facts | config.shown for name, (_, config) in converted.items()},
        shown={"scheduler": marked} | {name: config.shown for name, (_, config) in converted.items()},
    )


def _split(kind: Kind, state: Mapping[str, np.ndarray]) -> tuple[dict[str, State], list[str]]:
    """Returns each component's tensors without its prefix, and the keys that belong to none."""
    parts: dict[str, State] = {name: {} for name in PREFIXES[kind]}
    unknown = []
    for key, array in state.items():
        if _LEFTOVERS.search(key):
            continue
        name = next((name for name, prefix in PREFIXES[kind].items() if key.startswith(prefix)), None)
        if name is None or _FAR.search(key):
            unknown.append(key)
            continue
        key = key.removeprefix(PREFIXES[kind][name])
        if name == "text_encoder" and kind == "sd15" and not key.startswith("text_model."):
            key = f"text_model.{key}"  # The first fine-tunes have transformers' names without it.
        if (kind, name) != ("sd21", "text_encoder") or not _SD21_UNUSED.match(key):
            parts[name][key] = array
    return parts, unknown


@dataclasses.dataclass(frozen=True)
class _Part:
    """One component under LDM's names, without its prefix."""

    path: Path
    kind: Kind
    name: str
    state: State

    @property
    def _open_clip(self) -> bool:
        return (self.kind, self.name) in OPEN_CLIP

    @property
    def _counts(self) -> tuple[int, int]:
        """The levels and layers of a VAE; the layers of a text encoder, twice."""
        if self.name == "vae":
            levels = ldm.count(self.state, r"encoder\.down\.(\d+)\.")
            layers = ldm.count(self.state, r"encoder\.down\.0\.block\.(\d+)\.")
            return levels, layers
        pattern = r"transformer\.resblocks\.(\d+)\." if self._open_clip else r"text_model\.encoder\.layers\.(\d+)\."
        return (ldm.count(self.state, pattern),) * 2

    @property
    def _layout(self) -> ldm.UNetLayout:
        try:
            return ldm.ldm_unet_layout(self.state)
        except ValueError as error:
            raise UserError(f"{self.path}: its UNet has an unknown architecture: {error}") from error

    def keys(self) -> tuple[set[str], set[str]]:
        """Returns the required and the optional keys."""
        if self.name == "unet":
            layout = dataclasses.replace(self._layout, size_embedding=self.kind == "sdxl")
            return ldm.unet_keys(layout)
        levels, layers = self._counts
        # If a component is missing entirely, the message names the keys of one level or layer.
        levels = max(levels, 1)
        layers = max(layers, 1)
        if self.name == "vae":
            return ldm.vae_keys(levels, layers)
        return ldm.open_clip_keys(layers, self.kind == "sdxl") if self._open_clip else ldm.clip_keys(layers)

    def converted(self) -> tuple[State, architecture.Config]:
        """Returns the component under its library's names, and its config.

        Raises:
          UserError: a tensor has a shape that no such component has.
        """
        try:
            return self._converted()
        except (IndexError, ValueError) as error:
            raise UserError(f"{self.path}: its {self.name} has tensors of another shape: {error}") from error

    def _converted(self) -> tuple[State, architecture.Config]:
        if self.name == "unet":
            layout = self._layout
            state = _renamed(self.state, ldm.inverse(ldm.unet_modules(layout)))
            return state, architecture.unet_config(self.kind, state, layout)
        levels, layers = self._counts
        if self.name == "vae":
            flat = {key: _squeezed(key, array) for key, array in self.state.items()}
            state = _renamed(flat, ldm.inverse(ldm.vae_modules(levels, layers)))
            return state, architecture.vae_config(self.kind, state, levels, layers)
        state = _from_open_clip(self.state, layers) if self._open_clip else self.state
        return state, architecture.text_config(state, layers, self._open_clip)


def _renamed(state: Mapping[str, np.ndarray], names: Mapping[str, str]) -> State:
    converted = {ldm.renamed(key, names): array for key, array in state.items()}
    if None in converted or len(converted) != len(state):
        raise ValueError(f"names without a place in the other layout: {_without_place(state, names)}")
    return converted


def _without_place(keys: Iterable[str], names: Mapping[str, str]) -> str:
    return shorten(key for key in keys if ldm.renamed(key, names) is None)


def _squeezed(key: str, array: np.ndarray) -> np.ndarray:
    """Converts the attentions of autoencoders from LDM's 1x1 convolutions to diffusers' linear layers."""
    # [out in 1 1] -> [out in]
    return array[:, :, 0, 0] if _VAE_ATTENTION.search(key) and array.shape[2:] == (1, 1) else array


def _from_open_clip(state: State, layers: int) -> State:
    """Converts an OpenCLIP tower to transformers' names, and splits its fused projections."""
    plain = {key: array for key, array in state.items() if ".in_proj_" not in key}
    text = {"text_model.embeddings.position_embedding.weight": plain.pop("positional_embedding")}
    if "text_projection" in plain:
        text["text_projection.weight"] = plain.pop("text_projection").T
    for layer in range(layers):
        for leaf in ("weight", "bias"):
            fused = state[f"transformer.resblocks.{layer}.attn.in_proj_{leaf}"]
            for part, array in zip("qkv", np.split(fused, 3), strict=True):
                text[f"text_model.encoder.layers.{layer}.self_attn.{part}_proj.{leaf}"] = array
    return text | _renamed(plain, ldm.inverse(ldm.open_clip_modules(layers)))


def _to_open_clip(state: Mapping[str, np.ndarray]) -> State:
    """Converts a text tower to OpenCLIP's names, and fuses the projections of its attentions."""
    layers = ldm.count(state, r"text_model\.encoder\.layers\.(\d+)\.")
    fused = re.compile(r"\.self_attn\.[qkv]_proj\.")
    plain = {key: array for key, array in state.items() if not fused.search(key)}
    tower = {"positional_embedding": plain.pop("text_model.embeddings.position_embedding.weight")}
    if "text_projection.weight" in plain:
        tower["text_projection"] = plain.pop("text_projection.weight").T
    for layer in range(layers):
        for leaf in ("weight", "bias"):
            parts = [state[f"text_model.encoder.layers.{layer}.self_attn.{part}_proj.{leaf}"] for part in "qkv"]
            tower[f"transformer.resblocks.{layer}.attn.in_proj_{leaf}"] = np.concatenate(parts)
    return tower | _renamed(plain, ldm.open_clip_modules(layers))


def write_single_file(
    path: str | os.PathLike,
    kind: Kind,
    components: Mapping[str, Mapping[str, np.ndarray]],
    scheduler: Mapping[str, Any] | None = None,
) -> None:
    """Writes a checkpoint that web UIs and ``from_single_file`` read; it appears as a whole or not at all.

    Args:
      path: file to write, which ends in ``.safetensors``.
      kind: layout of the file: ``sd15``, ``sd21`` or ``sdxl``.
      components: as `SingleFile.components`; contiguous arrays are written without a copy, except OpenCLIP's fused
        ones.
      scheduler: the pipeline's scheduler config; SDXL's files are marked if it predicts v or rescales betas, as
        `architecture.scheduler_config` reads it.

    Raises:
      UserError: a number is infinite, for example because it is beyond float16's range; the file cannot be written.
      ValueError: the kind is unknown, a component is missing or does not belong to the kind, or a name has no place.
    """
    if kind not in PREFIXES or components.keys() != PREFIXES[kind].keys():
        raise ValueError(f"kind {kind!r} with {sorted(components)}: expected {PREFIXES}")
    state: State = {}
    for name, prefix in PREFIXES[kind].items():
        state |= {prefix + key: array for key, array in _to_ldm(kind, name, components[name]).items()}
    # Refuse numbers that the dtype cannot hold.
    infinite = [key for key, array in state.items() if np.isinf(array).any()]
    if infinite:
        dtypes = shorten({array.dtype.name for array in state.values()})
        raise UserError(f"{path}: infinite numbers in {dtypes}: {shorten(infinite)}; write float32, or check the LoRA")
    # Mark the scheduler's fields by empty tensors.
    if kind == "sdxl" and scheduler:
        marks = {
            "v_pred": scheduler.get("prediction_type") == "v_prediction",
            "ztsnr": bool(scheduler.get("rescale_betas_zero_snr")),
        }
        state |= {name: np.zeros(0, np.float32) for name, marked in marks.items() if marked}
    store.write_state(path, state)


def _to_ldm(kind: Kind, name: str, state: Mapping[str, np.ndarray]) -> State:
    """Converts a component to the names and layouts of a single file."""
    if name == "unet":
        return _renamed(state, ldm.unet_modules(ldm.unet_layout(state)))
    if name == "vae":
        levels = ldm.count(state, r"encoder\.down_blocks\.(\d+)\.")
        layers = ldm.count(state, r"encoder\.down_blocks\.0\.resnets\.(\d+)\.")
        converted = _renamed(state, ldm.vae_modules(levels, layers))
        return {
            key: array[:, :, None, None] if _VAE_ATTENTION.search(key) and array.ndim == 2 else array
            for key, array in converted.items()
        }
    return _to_open_clip(state) if (kind, name) in OPEN_CLIP else dict(state)
