"""Single-file checkpoints: a whole pipeline in LDM's names (SD 1.5, SD 2.1) or SGM's (SDXL), read and written.

Mirrors diffusers' ``from_single_file``, but every key has to be known and none may be missing. Tokenizers and the
scheduler are not in such files.
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

# What training leaves behind: schedules, losses, counters, the moving average, buffers of position numbers, and the
# marks that `architecture.scheduler_config` reads.
_LEFTOVERS = re.compile(
    r"^(model_ema\.|denoiser\.|first_stage_model\.loss\.|posterior_|log_one_minus_|sqrt_|(alphas_cumprod\w*|betas|logvar"
    r"|lvlb_weights|global_step|v_pred|ztsnr)$)|\.position_ids$|(^|\.)logit_scale$"
)
# SD 2.x conditions on the layer before the last, so diffusers' text encoder ends there: OpenCLIP ViT-H's last block
# and its projection are not in it.
_SD21_UNUSED = re.compile(r"^(transformer\.resblocks\.23\.|text_projection$)")
_VAE_ATTENTION = re.compile(r"mid\.attn_1\.(q|k|v|proj_out)\.weight$")


@dataclasses.dataclass(frozen=True)
class SingleFile:
    """What a single-file checkpoint holds.

    Attributes:
      kind: ``sd15`` (all of SD 1.x), ``sd21`` (all of SD 2.x) or ``sdxl``.
      components: ``unet``, ``vae``, ``text_encoder`` and SDXL's ``text_encoder_2``; diffusers' and transformers' names
        (with ``text_model.``), torch's layouts, the stored types. Some arrays are views of others.
      configs: diffusers' config of each component; under ``scheduler`` only the fields that the file tells, if any.
      shown: the part of them that the weights show. The rest (heads, groups, scaling, ...) are facts of the kind, which
        the config of a model that the file is a tuning of knows better.
    """

    kind: Kind
    components: dict[str, State]
    configs: dict[str, dict[str, Any]]
    shown: dict[str, dict[str, Any]]


def read_single_file(path: str | os.PathLike) -> SingleFile:
    """Reads a ``.safetensors`` or ``.ckpt`` checkpoint of SD 1.5, SD 2.1 or SDXL.

    Raises:
      UserError: an unreadable file, another architecture, missing or unknown keys; all by name.
    """
    path = Path(path)
    state = store.read_file(path)
    kind = architecture.detect(path, state)
    parts, unknown = _split(kind, state)
    prefixes = PREFIXES[kind]
    loaded = [_Part(path, kind, name, parts[name]) for name in prefixes]
    missing: list[str] = []
    for part in loaded:
        needed, optional = part.keys()
        missing += [prefixes[part.name] + key for key in needed - part.state.keys()]
        unknown += [prefixes[part.name] + key for key in part.state.keys() - needed - optional]
    problems = {"missing": missing, "unknown": unknown}
    found = [f"{len(keys)} {problem}: {shorten(keys)}" for problem, keys in problems.items() if keys]
    if found:
        raise UserError(f"{path}: not a whole checkpoint of {kind}, or of another model: {'; '.join(found)}")
    converted = {part.name: part.converted() for part in loaded}
    told = architecture.scheduler_config(state)
    return SingleFile(
        kind=kind,
        components={name: state for name, (state, _) in converted.items()},
        configs={"scheduler": told} | {name: config.facts | config.shown for name, (_, config) in converted.items()},
        shown={"scheduler": told} | {name: config.shown for name, (_, config) in converted.items()},
    )


def _split(kind: Kind, state: Mapping[str, np.ndarray]) -> tuple[dict[str, State], list[str]]:
    """Each component's tensors without its prefix, and the keys of none."""
    parts: dict[str, State] = {name: {} for name in PREFIXES[kind]}
    unknown = []
    for key, array in state.items():
        if _LEFTOVERS.search(key):
            continue
        name = next((name for name, prefix in PREFIXES[kind].items() if key.startswith(prefix)), None)
        if name is None:
            unknown.append(key)
            continue
        key = key.removeprefix(PREFIXES[kind][name])
        if name == "text_encoder" and kind == "sd15" and not key.startswith("text_model."):
            key = f"text_model.{key}"  # the first fine-tunes have transformers' names without it
        if (kind, name) != ("sd21", "text_encoder") or not _SD21_UNUSED.match(key):
            parts[name][key] = array
    return parts, unknown


@dataclasses.dataclass(frozen=True)
class _Part:
    """One component in LDM's names, without its prefix."""

    path: Path
    kind: Kind
    name: str
    state: State

    @property
    def _open_clip(self) -> bool:
        return (self.kind, self.name) in OPEN_CLIP

    @property
    def _counts(self) -> tuple[int, int]:
        """Levels and layers of a VAE; layers (twice) of a text encoder."""
        if self.name == "vae":
            levels, layers = r"encoder\.down\.(\d+)\.", r"encoder\.down\.0\.block\.(\d+)\."
            return ldm.count(self.state, levels), ldm.count(self.state, layers)
        pattern = r"transformer\.resblocks\.(\d+)\." if self._open_clip else r"text_model\.encoder\.layers\.(\d+)\."
        return (ldm.count(self.state, pattern),) * 2

    @property
    def _layout(self) -> ldm.UNetLayout:
        try:
            return ldm.ldm_unet_layout(self.state)
        except ValueError as error:
            raise UserError(f"{self.path}: its UNet is of an architecture that is not known: {error}") from error

    def keys(self) -> tuple[set[str], set[str]]:
        """The keys that have to be there and those that may."""
        if self.name == "unet":
            layout = dataclasses.replace(self._layout, size_embedding=self.kind == "sdxl")
            return ldm.unet_keys(layout)
        levels, layers = self._counts
        # Of a component that is not there at all, one level or layer stands for the whole.
        levels, layers = max(levels, 1), max(layers, 1)
        if self.name == "vae":
            return ldm.vae_keys(levels, layers)
        return ldm.open_clip_keys(layers, self.kind == "sdxl") if self._open_clip else ldm.clip_keys(layers)

    def converted(self) -> tuple[State, architecture.Config]:
        """The component in its library's names, and its config.

        Raises:
          UserError: tensors of shapes that no such component has.
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
        raise ValueError(f"names without a place in the other layout: {_strangers(state, names)}")
    return converted


def _strangers(keys: Iterable[str], names: Mapping[str, str]) -> str:
    return shorten(key for key in keys if ldm.renamed(key, names) is None)


def _squeezed(key: str, array: np.ndarray) -> np.ndarray:
    """LDM's autoencoders attend with 1x1 convolutions, diffusers' with linear layers."""
    return array[:, :, 0, 0] if _VAE_ATTENTION.search(key) and array.shape[2:] == (1, 1) else array


def _from_open_clip(state: State, layers: int) -> State:
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
    """Writes a checkpoint that web UIs and ``from_single_file`` read, whole or not at all.

    Args:
      path: ends in ``.safetensors``.
      kind: whose layout: ``sd15``, ``sd21`` or ``sdxl``.
      components: as `SingleFile.components`; contiguous arrays are written without a copy, but for OpenCLIP's fused
        ones.
      scheduler: the pipeline's scheduler config; of SDXL, prediction of v and rescaled betas are marked as in
        `architecture.scheduler_config`.

    Raises:
      UserError: numbers that are infinite, as float16 makes those beyond its range; the file cannot be written.
      ValueError: another kind, components that it has not or lacks, names that have no place.
    """
    if kind not in PREFIXES or components.keys() != PREFIXES[kind].keys():
        raise ValueError(f"kind {kind!r} with {sorted(components)}: expected {PREFIXES}")
    state: State = {}
    for name, prefix in PREFIXES[kind].items():
        state |= {prefix + key: array for key, array in _to_ldm(kind, name, components[name]).items()}
    infinite = [key for key, array in state.items() if np.isinf(array).any()]
    if infinite:
        kinds = shorten({array.dtype.name for array in state.values()})
        raise UserError(f"{path}: infinite numbers in {kinds}: {shorten(infinite)}; write float32, or check the LoRA")
    if kind == "sdxl" and scheduler:
        marks = {"v_pred": scheduler.get("prediction_type") == "v_prediction"}
        marks["ztsnr"] = bool(scheduler.get("rescale_betas_zero_snr"))
        state |= {name: np.zeros(0, np.float32) for name, marked in marks.items() if marked}
    store.write_state(path, state)


def _to_ldm(kind: Kind, name: str, state: Mapping[str, np.ndarray]) -> State:
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
