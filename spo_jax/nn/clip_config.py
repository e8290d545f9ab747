"""Configs of CLIP: transformers' ``config.json`` as frozen dataclasses, and three published ones."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from spo_jax.core.config import JSONConfig, check_divisors, check_ranges, limited, typed
from spo_jax.core.errors import UserError

# Fields of transformers' configs that have no effect on the forward pass of CLIP.
_IGNORED = frozenset({
    "architectures", "initializer_factor", "initializer_range", "model_type",
    "torch_dtype", "dtype", "transformers_version", "bos_token_id", "pad_token_id", "logit_scale_init_value",
    "return_dict", "output_hidden_states", "output_attentions", "torchscript", "use_bfloat16", "tf_legacy_loss",
    "tie_word_embeddings", "is_encoder_decoder", "is_decoder", "cross_attention_hidden_size",
    "add_cross_attention", "tie_encoder_decoder", "max_length", "min_length", "do_sample", "early_stopping",
    "num_beams", "num_beam_groups", "diversity_penalty", "temperature", "top_k", "top_p", "typical_p",
    "repetition_penalty", "length_penalty", "no_repeat_ngram_size", "encoder_no_repeat_ngram_size", "bad_words_ids",
    "num_return_sequences", "output_scores", "return_dict_in_generate", "forced_bos_token_id", "forced_eos_token_id",
    "remove_invalid_values", "exponential_decay_length_penalty", "suppress_tokens", "begin_suppress_tokens",
    "finetuning_task", "id2label", "label2id", "tokenizer_class", "prefix", "sep_token_id", "decoder_start_token_id",
    "task_specific_params", "problem_type", "chunk_size_feed_forward", "use_return_dict",
    "projection_dim", "vocab_size",
})  # fmt: skip
_IGNORED_AT_THE_TOP = _IGNORED | {"eos_token_id", "pruned_heads"}
_FIXED = {"attention_dropout": (0.0,), "dropout": (0.0,), "pruned_heads": ({}, None)}


@dataclasses.dataclass(frozen=True)
class CLIPTextConfig(JSONConfig):
    """Config of a text tower, with the field names of transformers' CLIPTextConfig.

    As in transformers, an ``eos_token_id`` of 2 means "pool at the token with the largest id".
    """

    vocab_size: int = limited(49408, at_least=1, at_most=2**22)
    hidden_size: int = limited(512, at_least=1, at_most=2**15)
    intermediate_size: int = limited(2048, at_least=1, at_most=2**17)
    projection_dim: int = limited(512, at_least=1, at_most=2**15)
    num_hidden_layers: int = limited(12, at_least=1, at_most=256)
    num_attention_heads: int = limited(8, at_least=1, at_most=2**10)
    max_position_embeddings: int = limited(77, at_least=2, at_most=2**16)
    hidden_act: str = "quick_gelu"
    layer_norm_eps: float = limited(1e-5, above=0, at_most=1)
    eos_token_id: int = limited(49407, at_least=0, at_most=2**22)

    FIXED = _FIXED
    IGNORED = _IGNORED

    def _check(self, where: str, raw: Mapping[str, Any]) -> None:
        self._one_of(where, "hidden_act", ("gelu", "quick_gelu"))
        check_divisors(where, "num_attention_heads", (self.num_attention_heads,), (self.hidden_size,))


@dataclasses.dataclass(frozen=True)
class CLIPVisionConfig(JSONConfig):
    """Config of a vision tower, with the field names of transformers' CLIPVisionConfig."""

    hidden_size: int = limited(768, at_least=1, at_most=2**15)
    intermediate_size: int = limited(3072, at_least=1, at_most=2**17)
    projection_dim: int = limited(512, at_least=1, at_most=2**15)
    num_hidden_layers: int = limited(12, at_least=1, at_most=256)
    num_attention_heads: int = limited(12, at_least=1, at_most=2**10)
    num_channels: int = limited(3, at_least=1, at_most=64)
    image_size: int = limited(224, at_least=1, at_most=2**12)
    patch_size: int = limited(32, at_least=1, at_most=2**12)
    hidden_act: str = "quick_gelu"
    layer_norm_eps: float = limited(1e-5, above=0, at_most=1)

    FIXED = _FIXED
    # transformers writes the token ids of the text tower into the vision config too.
    IGNORED = _IGNORED | {"eos_token_id"}

    def _check(self, where: str, raw: Mapping[str, Any]) -> None:
        self._one_of(where, "hidden_act", ("gelu", "quick_gelu"))
        check_divisors(where, "num_attention_heads", (self.num_attention_heads,), (self.hidden_size,))
        if self.patch_size > self.image_size:
            raise UserError(f"{where}: patch_size = {self.patch_size}: expected at most image_size, {self.image_size}")


@dataclasses.dataclass(frozen=True)
class CLIPConfig:
    """Config of a CLIPModel with two towers.

    Attributes:
      text: config of the text tower.
      vision: config of the vision tower.
      projection_dim: width of the space that both towers are projected to.
      time_conditioned: adds the modulation of the vision tower by the timestep (the SPM).
    """

    text: CLIPTextConfig
    vision: CLIPVisionConfig
    projection_dim: int = limited(512, at_least=1, at_most=2**15)
    time_conditioned: bool = False

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any], where: str = "config", time_conditioned: bool = False) -> "CLIPConfig":
        """Reads the ``config.json`` of transformers' CLIPModel.

        Args:
          raw: the content of the file.
          where: the file, for messages.
          time_conditioned: whether the model is an SPM; the file does not say.

        Raises:
          UserError: the config of a tower is missing, a field is unknown, or a value is not implemented.
        """
        towers = {"text_config": CLIPTextConfig, "vision_config": CLIPVisionConfig}
        for key in raw:
            # Until version 4, transformers wrote fields of every model here too, of which no tower knows.
            known = key in _IGNORED_AT_THE_TOP or key.removesuffix("_dict") in towers
            if not known and not key.startswith("_"):
                raise UserError(f"{where}: {key} is not a field of CLIPConfig")
        configs = {}
        for key, config in towers.items():
            # The first configs of CLIP repeat the fields of a tower, as in text_config_dict. As in transformers, that
            # dict takes precedence if it is given, and a field that it leaves out has its default.
            name = f"{key}_dict" if raw.get(f"{key}_dict") is not None else key
            if not isinstance(raw.get(name), Mapping):
                raise UserError(f"{where}: {key} is missing: expected the config of a CLIPModel")
            configs[key] = config.from_dict(raw[name], f"{where}: {name}")
        width = typed(raw.get("projection_dim", 512), int, f"{where}: projection_dim")
        clip = cls(configs["text_config"], configs["vision_config"], width, time_conditioned)
        check_ranges(clip, where)
        return clip


# Published configs, each in the form of its ``config.json``

# The text tower of OpenAI's CLIP ViT-L/14, 123.1 M parameters. Its published eos_token_id is 2: "the largest id".
CLIP_L_TEXT: dict[str, Any] = {
    "attention_dropout": 0.0,
    "bos_token_id": 0,
    "dropout": 0.0,
    "eos_token_id": 2,
    "hidden_act": "quick_gelu",
    "hidden_size": 768,
    "initializer_factor": 1.0,
    "initializer_range": 0.02,
    "intermediate_size": 3072,
    "layer_norm_eps": 1e-05,
    "max_position_embeddings": 77,
    "model_type": "clip_text_model",
    "num_attention_heads": 12,
    "num_hidden_layers": 12,
    "pad_token_id": 1,
    "projection_dim": 768,
    "vocab_size": 49408,
}

# openai/clip-vit-large-patch14, 427.6 M parameters, 590 tensors: the network of CLIPScore and LAION's aesthetic score.
CLIP_L: dict[str, Any] = {
    "initializer_factor": 1.0,
    "logit_scale_init_value": 2.6592,
    "model_type": "clip",
    "projection_dim": 768,
    "text_config": CLIP_L_TEXT,
    "vision_config": {
        "attention_dropout": 0.0,
        "dropout": 0.0,
        "hidden_act": "quick_gelu",
        "hidden_size": 1024,
        "image_size": 224,
        "initializer_factor": 1.0,
        "initializer_range": 0.02,
        "intermediate_size": 4096,
        "layer_norm_eps": 1e-05,
        "model_type": "clip_vision_model",
        "num_attention_heads": 16,
        "num_channels": 3,
        "num_hidden_layers": 24,
        "patch_size": 14,
        "projection_dim": 768,
    },
}

# laion/CLIP-ViT-H-14-laion2B-s32B-b79K, 986.1 M parameters, 910 tensors: the network of PickScore and of the SPM.
CLIP_H: dict[str, Any] = {
    "initializer_factor": 1.0,
    "logit_scale_init_value": 2.6592,
    "model_type": "clip",
    "projection_dim": 1024,
    "text_config": {
        **CLIP_L_TEXT,
        "hidden_act": "gelu",
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "num_attention_heads": 16,
        "num_hidden_layers": 24,
        "projection_dim": 1024,
    },
    "vision_config": {
        "attention_dropout": 0.0,
        "dropout": 0.0,
        "hidden_act": "gelu",
        "hidden_size": 1280,
        "image_size": 224,
        "initializer_factor": 1.0,
        "initializer_range": 0.02,
        "intermediate_size": 5120,
        "layer_norm_eps": 1e-05,
        "model_type": "clip_vision_model",
        "num_attention_heads": 16,
        "num_channels": 3,
        "num_hidden_layers": 32,
        "patch_size": 14,
        "projection_dim": 1024,
    },
}
