"""Alphas in an adapter's config, as PEFT and diffusers write it."""

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from spo_jax.core.config import typed
from spo_jax.core.errors import UserError
from spo_jax.core.files import read_json
from spo_jax.core.json_text import parse_json
from spo_jax.weights.lora.layouts import PREFIXES, Module
from spo_jax.weights.messages import printable

METADATA_KEY = "lora_adapter_metadata"
# PEFT takes the keys of alpha_pattern for regular expressions, which can run for ever. Files have names of modules.
_PATTERN = re.compile(r"\^?[\w.]+")


def read_alphas(modules: Mapping[str, Module], metadata: Mapping[str, str], path: Path) -> None:
    """Sets every module's alpha from the adapter's config in the file's header, or in PEFT's file beside it.

    Raises:
      UserError: the config cannot be understood, has an alpha that is not a finite number or a key of
        ``alpha_pattern`` that is not the name of a module, or is that of a DoRA.
    """
    problem = f"{path}: cannot understand the adapter's config ({METADATA_KEY})"
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
        patterns = _checked(config.get("alpha_pattern") or {})
        for name, module in modules.items():
            alpha = _pattern_value(patterns, name, config.get("lora_alpha"))
            if alpha is not None and module.down is not None and module.down.ndim == 2:
                # Rank-stabilised LoRA divides by the root of the rank; alpha absorbs the difference.
                alpha = typed(alpha, float, f"{problem}: lora_alpha of {printable(name)}")
                module.alpha = alpha * (math.sqrt(module.rank) if config.get("use_rslora") else 1.0)
                if not math.isfinite(module.alpha):
                    raise ValueError(f"lora_alpha of {name} is {alpha}, expected a finite number")
    except (ValueError, TypeError, AttributeError) as error:
        raise UserError(f"{problem}: {error}") from error


def _checked(patterns: Mapping[str, Any]) -> Mapping[str, Any]:
    """Refuses patterns that are more than the name of a module or its end, perhaps behind a ``^`` for its begin."""
    for pattern in patterns.keys():
        if not _PATTERN.fullmatch(pattern):
            raise ValueError(f"{printable(pattern)} in alpha_pattern is a pattern: expected the name of a module")
    return patterns


def _pattern_value(patterns: Mapping[str, Any], module: str, default: Any) -> Any:
    """Returns the value of the first pattern that is the module's name or, after a dot, its end, as in PEFT."""
    parts = module.split(".")
    ends = {f"^{module}", *(".".join(parts[start:]) for start in range(len(parts)))}
    if patterns.keys().isdisjoint(ends):
        return default
    return next(value for pattern, value in patterns.items() if pattern in ends)
