"""The model config of open_clip, such as its ``ViT-H-14.json``, as the config of the same CLIP here."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from spo_jax.core.config import JSONConfig, check_divisors, limited
from spo_jax.core.errors import UserError
from spo_jax.nn.clip_config import CLIPConfig, CLIPTextConfig, CLIPVisionConfig

_ARGMAX = 2  # the eos_token_id with which the text is read at its largest id, as open_clip always does


@dataclasses.dataclass(frozen=True)
class OpenCLIPVisionConfig(JSONConfig):
    """The field ``vision_cfg``, of a vision transformer."""

    image_size: int = limited(224, at_least=1, at_most=2**12)
    layers: int = limited(12, at_least=1, at_most=256)
    width: int = limited(768, at_least=1, at_most=2**15)
    head_width: int = limited(64, at_least=1, at_most=2**15)
    patch_size: int = limited(16, at_least=1, at_most=2**12)
    mlp_ratio: float = limited(4.0, above=0, at_most=64)

    def _check(self, where: str, raw: Mapping[str, Any]) -> None:
        check_divisors(where, "head_width", (self.head_width,), (self.width,))


@dataclasses.dataclass(frozen=True)
class OpenCLIPTextConfig(JSONConfig):
    """The field ``text_cfg``, of a text transformer."""

    context_length: int = limited(77, at_least=2, at_most=2**16)
    vocab_size: int = limited(49408, at_least=1, at_most=2**22)
    width: int = limited(512, at_least=1, at_most=2**15)
    heads: int = limited(8, at_least=1, at_most=2**10)
    layers: int = limited(12, at_least=1, at_most=256)
    mlp_ratio: float = limited(4.0, above=0, at_most=64)

    def _check(self, where: str, raw: Mapping[str, Any]) -> None:
        check_divisors(where, "heads", (self.heads,), (self.width,))


@dataclasses.dataclass(frozen=True)
class OpenCLIPConfig(JSONConfig):
    """What is beside both towers."""

    embed_dim: int = limited(512, at_least=1, at_most=2**15)
    quick_gelu: bool = False

    IGNORED = frozenset({"vision_cfg", "text_cfg"})  # they are read on their own


def read_open_clip_config(raw: Mapping[str, Any], where: str) -> CLIPConfig:
    """Reads a model config of open_clip, or the ``open_clip_config.json`` of its repositories on the hub.

    Only transformers are implemented; of a convolutional tower or a text tower of transformers, fields are unknown.

    Args:
      raw: content of the file.
      where: the file, for messages.

    Raises:
      UserError: a field is unknown, or a value has another type or is out of range.
    """
    if isinstance(raw.get("model_cfg"), Mapping):
        raw = raw["model_cfg"]
    for tower in OpenCLIPConfig.IGNORED:
        if not isinstance(raw.get(tower), Mapping):
            raise UserError(f"{where}: {tower} is missing: expected a model config of open_clip")
    model = OpenCLIPConfig.from_dict(raw, where)
    vision = OpenCLIPVisionConfig.from_dict(raw["vision_cfg"], f"{where}: vision_cfg")
    text = OpenCLIPTextConfig.from_dict(raw["text_cfg"], f"{where}: text_cfg")
    shared = {"projection_dim": model.embed_dim, "hidden_act": "quick_gelu" if model.quick_gelu else "gelu"}
    text_config = CLIPTextConfig(
        vocab_size=text.vocab_size,
        hidden_size=text.width,
        intermediate_size=int(text.width * text.mlp_ratio),
        num_hidden_layers=text.layers,
        num_attention_heads=text.heads,
        max_position_embeddings=text.context_length,
        eos_token_id=_ARGMAX,
        **shared,
    )
    vision_config = CLIPVisionConfig(
        hidden_size=vision.width,
        intermediate_size=int(vision.width * vision.mlp_ratio),
        num_hidden_layers=vision.layers,
        num_attention_heads=vision.width // vision.head_width,
        image_size=vision.image_size,
        patch_size=vision.patch_size,
        **shared,
    )
    return CLIPConfig(text_config, vision_config, model.embed_dim)
