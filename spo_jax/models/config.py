"""Network configs: diffusers' and transformers' ``config.json`` as frozen dataclasses.

Reading is strict. A field that would change the result and is not implemented raises, and so does a field that
is not known: silently different pictures are worse than an error.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from spo_jax.core.errors import UserError
from spo_jax.core.fields import frozen, typed


@dataclasses.dataclass(frozen=True)
class _Config:
    """Shared reader. ``FIXED`` lists fields with the values that are implemented, ``IGNORED`` fields without effect."""

    FIXED = {}
    IGNORED = frozenset()

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any], where: str = "config") -> "_Config":
        """Reads a config in the form of the library that is mirrored.

        Raises:
          UserError: an unknown field, or a value that is not implemented; ``where`` is named.
        """
        kinds = {field.name: field.type for field in dataclasses.fields(cls)}
        values = {}
        for key, value in raw.items():
            if key in kinds:
                values[key] = typed(value, kinds[key], f"{where}: {key}")
            elif key in cls.FIXED:
                if frozen(value) not in cls.FIXED[key]:
                    allowed = ", ".join(map(repr, cls.FIXED[key]))
                    raise UserError(f"{where}: {key} = {value!r} is not implemented (known: {allowed})")
            elif not key.startswith("_") and key not in cls.IGNORED:
                raise UserError(f"{where}: unknown field {key!r} for {cls.__name__}")
        config = cls(**values)
        config._check(where, raw)
        return config

    def _check(self, where: str, raw: Mapping[str, Any]) -> None:
        """Refuses values that the type allows and the network does not."""

    def _one_of(self, where: str, field: str, allowed: tuple) -> None:
        value = getattr(self, field)
        if value not in allowed:
            raise UserError(f"{where}: {field} = {value!r} is not implemented (known: {', '.join(map(repr, allowed))})")


def _check_divides(where: str, field: str, values: tuple[int, ...], widths: tuple[int, ...]) -> None:
    for value, width in zip(values, widths, strict=True):
        if value < 1 or width % value:
            raise UserError(
                f"{where}: {field} = {value} is not implemented for {width} channels, which it does not divide"
            )


def per_block(value: Any, blocks: int) -> tuple:
    """A field that is one value or one per block, as one per block."""
    return value if isinstance(value, tuple) else (value,) * blocks


DOWN_BLOCKS = ("DownBlock2D", "CrossAttnDownBlock2D")
UP_BLOCKS = ("UpBlock2D", "CrossAttnUpBlock2D")


@dataclasses.dataclass(frozen=True)
class UNetConfig(_Config):
    """diffusers' UNet2DConditionModel, as far as SD 1.5, SD 2.1 and SDXL use it.

    ``attention_head_dim`` is the NUMBER of heads when ``num_attention_heads`` is null: a slip of diffusers that
    every published config relies on.
    """

    sample_size: int | tuple[int, int] | None = None
    in_channels: int = 4
    out_channels: int = 4
    flip_sin_to_cos: bool = True
    freq_shift: int = 0
    down_block_types: tuple[str, ...] = ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",)
    up_block_types: tuple[str, ...] = ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3
    block_out_channels: tuple[int, ...] = (320, 640, 1280, 1280)
    layers_per_block: int | tuple[int, ...] = 2
    norm_num_groups: int = 32
    norm_eps: float = 1e-5
    cross_attention_dim: int = 1280
    transformer_layers_per_block: int | tuple[int, ...] = 1
    attention_head_dim: int | tuple[int, ...] = 8
    use_linear_projection: bool = False
    addition_embed_type: str | None = None
    addition_time_embed_dim: int | None = None
    projection_class_embeddings_input_dim: int | None = None
    upcast_attention: bool | None = False
    conv_in_kernel: int = 3
    conv_out_kernel: int = 3

    FIXED = {
        "act_fn": ("silu", "swish"), "mid_block_type": ("UNetMidBlock2DCrossAttn",), "center_input_sample": (False,),
        "only_cross_attention": (False, (False,) * 2, (False,) * 3, (False,) * 4), "downsample_padding": (1,),
        "mid_block_scale_factor": (1,), "dropout": (0.0,), "reverse_transformer_layers_per_block": (None,),
        "encoder_hid_dim": (None,), "encoder_hid_dim_type": (None,), "num_attention_heads": (None,),
        "dual_cross_attention": (False,), "class_embed_type": (None,), "num_class_embeds": (None,),
        "resnet_time_scale_shift": ("default",), "resnet_skip_time_act": (False,), "resnet_out_scale_factor": (1.0,),
        "time_embedding_type": ("positional",), "time_embedding_dim": (None,), "time_embedding_act_fn": (None,),
        "timestep_post_act": (None,), "time_cond_proj_dim": (None,), "attention_type": ("default",),
        "class_embeddings_concat": (False,), "mid_block_only_cross_attention": (None, False),
        "cross_attention_norm": (None,),
    }  # fmt: skip
    # Read by diffusers only together with fields that are refused above.
    IGNORED = frozenset({"addition_embed_type_num_heads"})

    def _check(self, where: str, raw: Mapping[str, Any]) -> None:
        blocks = len(self.block_out_channels)
        for field, known in (("down_block_types", DOWN_BLOCKS), ("up_block_types", UP_BLOCKS)):
            for kind in getattr(self, field):
                if kind not in known:
                    raise UserError(f"{where}: {field}: {kind!r} is not implemented (known: {', '.join(known)})")
        for field in (
            "down_block_types", "up_block_types", "layers_per_block", "transformer_layers_per_block",
            "attention_head_dim",
        ):  # fmt: skip
            length = len(per_block(getattr(self, field), blocks))
            if length != blocks:
                raise UserError(f"{where}: {field} has {length} entries, expected {blocks} as block_out_channels has")
        _check_divides(where, "norm_num_groups", (self.norm_num_groups,) * blocks, self.block_out_channels)
        _check_divides(where, "attention_head_dim", *self._heads_and_widths())
        self._one_of(where, "addition_embed_type", (None, "text_time"))
        for field in ("addition_time_embed_dim", "projection_class_embeddings_input_dim"):
            if self.wants_size_conditions and getattr(self, field) is None:
                raise UserError(f"{where}: {field} is missing: addition_embed_type 'text_time' needs it")

    def _heads_and_widths(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Heads and channels of the levels that attend; the last one does in the middle block in any case."""
        blocks = len(self.block_out_channels)
        attends = [
            level == blocks - 1 or any(kind.startswith("CrossAttn") for kind in kinds)
            for level, kinds in enumerate(zip(self.down_block_types, self.up_block_types[::-1], strict=True))
        ]
        levels = zip(attends, per_block(self.attention_head_dim, blocks), self.block_out_channels, strict=True)
        heads, widths = zip(*[(heads, width) for attend, heads, width in levels if attend], strict=True)
        return heads, widths

    @property
    def wants_size_conditions(self) -> bool:
        """Whether pooled text and time ids are inputs (SDXL)."""
        return self.addition_embed_type == "text_time"


@dataclasses.dataclass(frozen=True)
class VAEConfig(_Config):
    """diffusers' AutoencoderKL."""

    in_channels: int = 3
    out_channels: int = 3
    block_out_channels: tuple[int, ...] = (64,)
    layers_per_block: int = 1
    latent_channels: int = 4
    norm_num_groups: int = 32
    sample_size: int | tuple[int, int] | None = 32
    scaling_factor: float = 0.18215
    force_upcast: bool = True
    use_quant_conv: bool = True
    use_post_quant_conv: bool = True
    mid_block_add_attention: bool = True

    FIXED = {
        "act_fn": ("silu",), "shift_factor": (None, 0.0), "latents_mean": (None,), "latents_std": (None,),
        "down_block_types": tuple(("DownEncoderBlock2D",) * n for n in range(1, 7)),
        "up_block_types": tuple(("UpDecoderBlock2D",) * n for n in range(1, 7)),
    }  # fmt: skip

    def _check(self, where: str, raw: Mapping[str, Any]) -> None:
        blocks = len(self.block_out_channels)
        for field in ("down_block_types", "up_block_types"):
            length = len(raw.get(field, ("one",)))  # diffusers' default is a single block.
            if length != blocks:
                raise UserError(f"{where}: {field} has {length} entries, expected {blocks} as block_out_channels has")
        _check_divides(where, "norm_num_groups", (self.norm_num_groups,) * blocks, self.block_out_channels)

    @property
    def downscale(self) -> int:
        """Pixels per latent along a side."""
        return 2 ** (len(self.block_out_channels) - 1)


@dataclasses.dataclass(frozen=True)
class TinyVAEConfig(_Config):
    """diffusers' AutoencoderTiny (TAESD, TAESDXL)."""

    in_channels: int = 3
    out_channels: int = 3
    encoder_block_out_channels: tuple[int, ...] = (64, 64, 64, 64)
    decoder_block_out_channels: tuple[int, ...] = (64, 64, 64, 64)
    latent_channels: int = 4
    num_encoder_blocks: tuple[int, ...] = (1, 3, 3, 3)
    num_decoder_blocks: tuple[int, ...] = (3, 3, 3, 1)
    scaling_factor: float = 1.0

    FIXED = {
        "act_fn": ("relu",),
        "upsample_fn": ("nearest",),
        "shift_factor": (0.0, None),
        "upsampling_scaling_factor": (2,),
    }
    # The first two belong to diffusers' 8-bit storage of latents, not to encode or decode.
    IGNORED = frozenset({"latent_magnitude", "latent_shift", "force_upcast", "block_out_channels"})

    def _check(self, where: str, raw: Mapping[str, Any]) -> None:
        for side in ("encoder", "decoder"):
            widths, blocks = getattr(self, f"{side}_block_out_channels"), getattr(self, f"num_{side}_blocks")
            # diffusers builds networks of several widths and then cannot run them.
            if len(widths) != len(blocks) or len(set(widths)) != 1:
                raise UserError(
                    f"{where}: {side}_block_out_channels = {list(widths)} is not implemented "
                    f"(expected one width, {len(blocks)} times as num_{side}_blocks has)"
                )


# Fields of transformers' configs that do not enter a CLIP's forward pass.
_CLIP_IGNORED = frozenset({
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
_CLIP_FIXED = {"attention_dropout": (0.0,), "dropout": (0.0,), "pruned_heads": ({}, None)}


@dataclasses.dataclass(frozen=True)
class CLIPTextConfig(_Config):
    """transformers' CLIPTextConfig. ``eos_token_id`` 2 means "pool at the largest id", as in transformers."""

    vocab_size: int = 49408
    hidden_size: int = 512
    intermediate_size: int = 2048
    projection_dim: int = 512
    num_hidden_layers: int = 12
    num_attention_heads: int = 8
    max_position_embeddings: int = 77
    hidden_act: str = "quick_gelu"
    layer_norm_eps: float = 1e-5
    eos_token_id: int = 49407

    FIXED = _CLIP_FIXED
    IGNORED = _CLIP_IGNORED

    def _check(self, where: str, raw: Mapping[str, Any]) -> None:
        self._one_of(where, "hidden_act", ("gelu", "quick_gelu"))
        _check_divides(where, "num_attention_heads", (self.num_attention_heads,), (self.hidden_size,))


@dataclasses.dataclass(frozen=True)
class CLIPVisionConfig(_Config):
    """transformers' CLIPVisionConfig."""

    hidden_size: int = 768
    intermediate_size: int = 3072
    projection_dim: int = 512
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    num_channels: int = 3
    image_size: int = 224
    patch_size: int = 32
    hidden_act: str = "quick_gelu"
    layer_norm_eps: float = 1e-5

    FIXED = _CLIP_FIXED
    # transformers writes the text tower's token ids into the vision config as well.
    IGNORED = _CLIP_IGNORED | {"eos_token_id"}

    def _check(self, where: str, raw: Mapping[str, Any]) -> None:
        self._one_of(where, "hidden_act", ("gelu", "quick_gelu"))
        _check_divides(where, "num_attention_heads", (self.num_attention_heads,), (self.hidden_size,))


@dataclasses.dataclass(frozen=True)
class CLIPConfig:
    """transformers' CLIPConfig; ``time_conditioned`` adds the SPM's modulation of the vision tower."""

    text: CLIPTextConfig
    vision: CLIPVisionConfig
    projection_dim: int = 512
    time_conditioned: bool = False

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any], where: str = "config", time_conditioned: bool = False) -> "CLIPConfig":
        """Reads a CLIPModel's config.json.

        Raises:
          UserError: one of the towers' configs is absent, or as in `_Config.from_dict`.
        """
        towers = {"text_config": CLIPTextConfig, "vision_config": CLIPVisionConfig}
        for key in raw:
            known = key in _CLIP_IGNORED or key.removesuffix("_dict") in towers
            if not known and not key.startswith("_"):
                raise UserError(f"{where}: unknown field {key!r} for CLIPConfig")
        configs = {}
        for key, config in towers.items():
            # The first configs of CLIP have the same fields again as text_config_dict; where it is given it wins, and
            # what it does not hold has its default, as in transformers.
            name = f"{key}_dict" if raw.get(f"{key}_dict") is not None else key
            if not isinstance(raw.get(name), Mapping):
                raise UserError(f"{where}: field {key!r} is missing: expected the config of a CLIPModel")
            configs[key] = config.from_dict(raw[name], f"{where}: {name}")
        width = typed(raw.get("projection_dim", 512), int, f"{where}: projection_dim")
        return cls(configs["text_config"], configs["vision_config"], width, time_conditioned)
