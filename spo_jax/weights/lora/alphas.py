"""Alphas in an adapter's config, as PEFT and diffusers write it."""

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from spo_jax.core.errors import UserError
from spo_jax.core.files import read_json
from spo_jax.core.json_text import parse_json
from spo_jax.weights.lora.layouts import PREFIXES, Module

METADATA_KEY = "lora_adapter_metadata"


def read_alphas(modules: Mapping[str, Module], metadata: Mapping[str, str], path: Path) -> None:
    """Sets every module's alpha from the adapter's config in the file's header, or in PEFT's file beside it.

    Raises:
      UserError: the config cannot be understood, has an alpha that is not finite, or is that of a DoRA.
    """
    config_file = path.parent / "adapter_config.json"
    try:
        if METADATA_KEY in metadata:
            config = parse_json(metadata[METADATA_KEY])
        else:
            config = read_json(config_file) if config_file.is_file() else {}
        # In a pipeline's file keys start with the component; in a single model's file they do not.
        config = {PREFIXES.sub("", key): value for key, value in config.items()}
        if config.get("use_dora"):
            raise UserError(f"{path} is a DoRA, which is not supported")
        for name, module in modules.items():
            alpha = _pattern_value(config.get("alpha_pattern") or {}, name, config.get("lora_alpha"))
            if alpha is not None and module.down is not None and module.down.ndim == 2:
                # Rank-stabilised LoRA divides by the root of the rank; alpha absorbs the difference.
                module.alpha = float(alpha) * (math.sqrt(module.rank) if config.get("use_rslora") else 1.0)
                if not math.isfinite(module.alpha):
                    raise ValueError(f"lora_alpha of {name} is {alpha}, expected a finite number")
    except (ValueError, TypeError, AttributeError, re.error) as error:
        raise UserError(f"{path}: cannot understand the adapter's config ({METADATA_KEY}): {error}") from error


def _pattern_value(patterns: Mapping[str, Any], module: str, default: Any) -> Any:
    # As in peft.utils.get_pattern_key, the pattern matches the end of the name after a dot.
    for pattern, value in patterns.items():
        if re.match(rf"(.*\.)?({pattern})$", module):
            return value
    return default
