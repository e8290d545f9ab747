"""The UNet's config: diffusers' ``config.json`` as a frozen dataclass."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from spo_jax.core.config import JSONConfig, check_divisors, check_levels, limited
from spo_jax.core.errors import UserError

DOWN_BLOCKS = ("DownBlock2D", "CrossAttnDownBlock2D")
UP_BLOCKS = ("UpBlock2D", "CrossAttnUpBlock2D")
_MAX_LAYERS = 300  # on the way down, where SDXL has 32; tracing takes some hundredths of a second for each


def per_block(value: Any, blocks: int) -> tuple:
    """Returns one value per block for a field that holds either one value or one per block."""
    return value if isinstance(value, tuple) else (value,) * blocks


@dataclasses.dataclass(frozen=True)
class UNetConfig(JSONConfig):
    """Config of a UNet2DConditionModel with diffusers' field names, as far as SD 1.5, SD 2.1 and SDXL use them.

    ``attention_head_dim`` is the NUMBER of heads when ``num_attention_heads`` is null: a mistake in diffusers that all
    published configs rely on.
    """

    sample_size: int | tuple[int, int] | None = limited(None, at_least=1, at_most=1024)
    in_channels: int = limited(4, at_least=1, at_most=256)
    out_channels: int = limited(4, at_least=1, at_most=256)
    flip_sin_to_cos: bool = True
    freq_shift: int = limited(0, at_least=0, at_most=1)
    down_block_types: tuple[str, ...] = ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",)
    up_block_types: tuple[str, ...] = ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3
    block_out_channels: tuple[int, ...] = limited((320, 640, 1280, 1280), at_least=1, at_most=2**14)
    layers_per_block: int | tuple[int, ...] = limited(2, at_least=1, at_most=16)
    norm_num_groups: int = limited(32, at_least=1, at_most=2**10)
    norm_eps: float = limited(1e-5, above=0, at_most=1)
    cross_attention_dim: int = limited(1280, at_least=1, at_most=2**15)
    transformer_layers_per_block: int | tuple[int, ...] = limited(1, at_least=0, at_most=64)
    attention_head_dim: int | tuple[int, ...] = limited(8, at_least=1, at_most=2**12)
    use_linear_projection: bool = False
    addition_embed_type: str | None = None
    addition_time_embed_dim: int | None = limited(None, at_least=2, at_most=2**14)
    projection_class_embeddings_input_dim: int | None = limited(None, at_least=1, at_most=2**17)
    upcast_attention: bool | None = False
    conv_in_kernel: int = limited(3, at_least=1, at_most=15)
    conv_out_kernel: int = limited(3, at_least=1, at_most=15)

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
    # diffusers reads the first only together with fields that are refused above. The others are notes of a trainer that
    # averaged the weights: diffusers' EMAModel writes its settings into the config of the average.
    IGNORED = frozenset({
        "addition_embed_type_num_heads", "decay", "min_decay", "optimization_step", "update_after_step",
        "use_ema_warmup", "inv_gamma", "power",
    })  # fmt: skip

    def _check(self, where: str, raw: Mapping[str, Any]) -> None:
        check_levels(where, "block_out_channels", self.block_out_channels)
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
                raise UserError(f"{where}: {field} has {length} entries: expected {blocks} as in block_out_channels")
        counts = (per_block(value, blocks) for value in (self.layers_per_block, self.transformer_layers_per_block))
        layers = sum(count * (1 + depth) for count, depth in zip(*counts, strict=True))
        if layers > _MAX_LAYERS:
            raise UserError(
                f"{where}: layers_per_block and transformer_layers_per_block make {layers} layers on the way down: "
                f"expected at most {_MAX_LAYERS}"
            )
        check_divisors(where, "norm_num_groups", (self.norm_num_groups,) * blocks, self.block_out_channels)
        check_divisors(where, "attention_head_dim", *self._heads_and_widths())
        self._one_of(where, "addition_embed_type", (None, "text_time"))
        for field in ("addition_time_embed_dim", "projection_class_embeddings_input_dim"):
            if self.wants_size_conditions and getattr(self, field) is None:
                raise UserError(f"{where}: {field} is missing: addition_embed_type 'text_time' needs it")

    def _heads_and_widths(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Returns heads and channels of the levels with attention, which the last one always has (middle block)."""
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
        """Whether pooled text and time ids are inputs of the network, as in SDXL."""
        return self.addition_embed_type == "text_time"
