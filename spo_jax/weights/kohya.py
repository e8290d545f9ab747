"""The module names of kohya's trainer and of the web UIs, always made from the names of a given model.

They are the torch names with underscores for dots, so they cannot be taken apart again (``to_out_0``, ``conv_in``):
reading goes through the list of what every module of the model would be called.
"""

from collections.abc import Iterable


def kohya_name(module: str) -> str:
    """``down_blocks.0.attentions.0...attn1.to_out.0`` -> ``lora_unet_down_blocks_0_..._attn1_to_out_0``."""
    return "lora_unet_" + module.replace(".", "_")


# Every way of naming in use: kohya's trainer keeps diffusers' blocks for SD 1.x, others join here.
_NAMINGS = (kohya_name,)


def module_names(modules: Iterable[str]) -> dict[str, str]:
    """Kohya's names, of every kind, to the torch names of the given modules.

    Raises:
      ValueError: two modules would have the same name.
    """
    names: dict[str, str] = {}
    for module in modules:
        for naming in _NAMINGS:
            name = naming(module)
            if names.setdefault(name, module) != module:
                raise ValueError(f"{name} could be {names[name]} or {module}")
    return names
