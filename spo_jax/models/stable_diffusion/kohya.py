"""Module names of kohya's trainer and of the web UIs, which are always made from the names of a given model.

They are torch's names with underscores in place of dots and cannot be split again (``to_out_0``, ``conv_in``).
Therefore a file is read with a table of the names that all modules of the model would have. For SD 1.x and 2.x they are
made from diffusers' names; for SDXL from those of the SGM code, which the web UIs use (diffusers reads either).
"""

import re
from collections.abc import Iterable, Mapping

from spo_jax.models.stable_diffusion import ldm
from spo_jax.weights.lora import BaseVersion

# Dots in torch's names are underscores in kohya's.
_FIRST_LEVEL = re.compile(r"down_blocks[._]0[._]attentions[._]|up_blocks[._]3[._]attentions[._]")
_DEEPER = re.compile(r"transformer_blocks[._][1-9]")
_SGM = re.compile(r"lora_unet_((in|out)put_blocks|middle_block)_")
SD, SDXL = "SD 1.x or 2.x", "SDXL"

# What kohya's trainer and the model spec call published models, by the kind of model, the width of its text states,
# and what the network predicts. The last line of a kind is for a prediction that is not known.
_SGM_CODE = "https://github.com/Stability-AI/generative-models"
_VERSIONS = {
    (SD, 768): {"v_prediction": ("sd_v1_v", "stable-diffusion-v1"), None: ("sd_v1", "stable-diffusion-v1")},
    (SD, 1024): {
        "epsilon": ("sd_v2", "stable-diffusion-v2-512"),
        "v_prediction": ("sd_v2_v", "stable-diffusion-v2-768-v"),
    },
    (SDXL, 2048): {None: ("sdxl_base_v1-0", "stable-diffusion-xl-v1-base")},
}


def claims(names: Iterable[str]) -> bool:
    """Reports whether these are names of a UNet's modules, torch's or kohya's."""
    return any("_blocks" in name or "mid_block" in name for name in names)


def architecture(names: Iterable[str]) -> str | None:
    """Returns `SD` or `SDXL` from the names of modules, torch's or kohya's; None if they could belong to either.

    SD 1.x and 2.x have attention on their first level, and all their attentions are one transformer block deep. SDXL
    has none there, and its other attentions are deeper. Only SDXL's modules have SGM's names in LoRA files.
    """
    names = list(names)
    if any(_FIRST_LEVEL.search(name) for name in names):
        return SD
    return SDXL if any(_DEEPER.search(name) or _SGM.match(name) for name in names) else None


def base_version(widths: Mapping[str, int], prediction: str | None) -> BaseVersion | None:
    """Returns what other programs call the kind of model that modules of these input widths show.

    Args:
      widths: input width of each module, by torch's name; the model's cross-attention shows the width of its text.
      prediction: the scheduler's ``prediction_type``; None if it is not known.

    Returns:
      None if no published kind has such modules, or if the prediction is needed to tell two kinds apart.
    """
    kind = architecture(widths)
    text = {width for module, width in widths.items() if module.endswith("attn2.to_k")}
    versions = _VERSIONS.get((kind, *text), {})
    names = versions.get(prediction) or versions.get(None)
    return BaseVersion(*names, _SGM_CODE if kind == SDXL else "diffusers") if names else None


def kohya_name(module: str) -> str:
    """Converts a torch name: ``down_blocks.0...to_out.0`` becomes ``lora_unet_down_blocks_0_..._to_out_0``."""
    return "lora_unet_" + module.replace(".", "_")


def file_names(modules: Iterable[str], model: Iterable[str] | None = None) -> dict[str, str]:
    """Maps torch's names of modules to the names that are written, for SDXL ``lora_unet_input_blocks_4_1_...``.

    Args:
      modules: modules of the LoRA.
      model: modules of its model, from which SDXL's blocks are numbered; needed only for a LoRA on some of the
        attentions.

    Raises:
      ValueError: SDXL does not have one of the modules.
    """
    modules = list(modules)
    whole = modules if model is None else [*modules, *model]
    if architecture(whole) != SDXL:
        return {module: kohya_name(module) for module in modules}
    places = _sgm_places(whole)
    names = {module: ldm.renamed(module, places) for module in modules}
    unknown = sorted(module for module, name in names.items() if name is None)
    if unknown:
        raise ValueError(f"SDXL does not have these modules: {', '.join(unknown)}")
    return {module: kohya_name(name) for module, name in names.items()}


def module_names(modules: Iterable[str]) -> dict[str, str]:
    """Maps kohya's names in all their forms to the torch names of the given modules.

    Raises:
      ValueError: two modules would have the same name.
    """
    modules = list(modules)
    pairs = [(kohya_name(module), module) for module in modules]
    if architecture(modules) == SDXL:
        places = _sgm_places(modules)
        sgm = ((ldm.renamed(module, places), module) for module in modules)
        pairs += [(kohya_name(name), module) for name, module in sgm if name is not None]
    names: dict[str, str] = {}
    for name, module in pairs:
        if names.setdefault(name, module) != module:
            raise ValueError(f"{name} could be {names[name]} or {module}")
    return names


def _sgm_places(modules: Iterable[str]) -> ldm.Names:
    try:
        layout = ldm.unet_layout(modules)
    except ValueError:  # Only the middle block is there, whose name needs no counting.
        layout = ldm.UNetLayout(layers=1, depths=(0,))
    return ldm.unet_modules(layout)
