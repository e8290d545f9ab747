"""Reads and writes LoRA files in the layouts of diffusers and of kohya (web UIs), with their strength intact.

delta W = lora_A lora_B * alpha / rank, with lora_A [in r] and lora_B [r out] (torch stores both transposed). What is
written has alpha = rank, because some programs ignore alpha: another alpha is multiplied into lora_B. What is read may
have any alpha, wherever its program stores it: the diffusers layout in the safetensors metadata
(``lora_adapter_metadata``; diffusers refuses a file with an ``.alpha`` tensor), PEFT in a file beside the weights, and
the kohya layout in one ``.alpha`` tensor per module.

Kohya's names of modules differ between model families; `spo_jax.models.lora` binds the functions here to them.
"""

from spo_jax.weights.lora.adapter import LoRA as LoRA
from spo_jax.weights.lora.alphas import METADATA_KEY as METADATA_KEY
from spo_jax.weights.lora.checks import check_finite as check_finite
from spo_jax.weights.lora.find import find_lora as find_lora
from spo_jax.weights.lora.names import BaseVersion as BaseVersion
from spo_jax.weights.lora.names import FindNames as FindNames
from spo_jax.weights.lora.names import ModuleNames as ModuleNames
from spo_jax.weights.lora.read import read_lora as read_lora
from spo_jax.weights.lora.write import LORA_FORMATS as LORA_FORMATS
from spo_jax.weights.lora.write import write_lora as write_lora
