"""Configs of BLIP with cross-attention, as ImageReward has it: of its vision transformer and of its text encoder."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from spo_jax.core.config import JSONConfig, check_divisors, limited
from spo_jax.core.errors import UserError


@dataclasses.dataclass(frozen=True)
class ViTConfig(JSONConfig):
    """Sizes of the vision transformer; the defaults are those of ViT-L/16, which ImageReward's code has built in."""

    image_size: int = limited(224, at_least=1, at_most=2**12)
    patch_size: int = limited(16, at_least=1, at_most=2**12)
    embed_dim: int = limited(1024, at_least=1, at_most=2**15)
    depth: int = limited(24, at_least=1, at_most=256)
    num_heads: int = limited(16, at_least=1, at_most=2**10)
    mlp_ratio: float = limited(4.0, above=0, at_most=64)
    layer_norm_eps: float = limited(1e-6, above=0, at_most=1)

    IGNORED = frozenset({"note"})

    def _check(self, where: str, raw: Mapping[str, Any]) -> None:
        check_divisors(where, "num_heads", (self.num_heads,), (self.embed_dim,))
        if self.patch_size > self.image_size:
            raise UserError(f"{where}: patch_size = {self.patch_size}: expected at most image_size, {self.image_size}")


@dataclasses.dataclass(frozen=True)
class BertConfig(JSONConfig):
    """Config of the text encoder: BLIP's ``med_config.json``, with the field names of transformers' BertConfig.

    ``encoder_width`` is not read. The published file gives it the text encoder's own width, and the original overwrites
    it with that of the vision transformer.
    """

    vocab_size: int = limited(30522, at_least=1, at_most=2**22)
    hidden_size: int = limited(768, at_least=1, at_most=2**15)
    intermediate_size: int = limited(3072, at_least=1, at_most=2**17)
    num_hidden_layers: int = limited(12, at_least=1, at_most=256)
    num_attention_heads: int = limited(12, at_least=1, at_most=2**10)
    max_position_embeddings: int = limited(512, at_least=2, at_most=2**16)
    layer_norm_eps: float = limited(1e-12, above=0, at_most=1)

    FIXED = {
        "hidden_act": ("gelu",),
        "add_cross_attention": (True,),
        "position_embedding_type": ("absolute",),
        "is_decoder": (False,),
    }
    # Dropout does nothing here, and there is no embedding of token types.
    IGNORED = frozenset({
        "architectures", "attention_probs_dropout_prob", "classifier_dropout", "encoder_width", "hidden_dropout_prob",
        "initializer_range", "model_type", "pad_token_id", "transformers_version", "type_vocab_size", "use_cache",
    })  # fmt: skip

    def _check(self, where: str, raw: Mapping[str, Any]) -> None:
        check_divisors(where, "num_attention_heads", (self.num_attention_heads,), (self.hidden_size,))


@dataclasses.dataclass(frozen=True)
class BLIPConfig:
    """Configs of both parts; the defaults are those of the published ImageReward.

    Attributes:
      vision: config of the vision transformer.
      text: config of the text encoder, whose vocabulary is that of bert-base-uncased with two more tokens.
    """

    vision: ViTConfig = ViTConfig()
    text: BertConfig = BertConfig(vocab_size=30524)
