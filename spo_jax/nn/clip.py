"""CLIP of transformers: the text encoders of Stable Diffusion, and both towers of the preference models.

The step-aware preference model (SPM) is CLIP with a vision tower that knows the diffusion timestep: an embedding ``c``
of ``t`` modulates every encoder layer and the pooled output (adaptive LayerNorm, as in DiT).
"""

from typing import NamedTuple

import jax.numpy as jnp
from flax import linen as nn

from spo_jax.core.typing import Array, DType, Float, Int, Num
from spo_jax.nn.attention import dot_product_attention
from spo_jax.nn.clip_config import CLIPConfig, CLIPTextConfig, CLIPVisionConfig
from spo_jax.nn.given import Conv, Dense, Embed, Given
from spo_jax.nn.layers import layer_norm, sinusoidal_embedding
from spo_jax.parallel.mesh import spread_rows

TIME_FEATURES = 256  # Width of the sinusoid that the SPM's time embedding is computed from.


class CLIPOutput(NamedTuple):
    """Hidden states of a tower.

    Attributes:
      last: output of the final layer, after the norm of the text tower but before the norm of the vision tower.
      penultimate: output of the layer before the final one, without norm; SDXL conditions on it.
      pooled: the normed token that stands for the whole input.
    """

    last: Float[Array, "b l d"]
    penultimate: Float[Array, "b l d"]
    pooled: Float[Array, "b d"]


def _quick_gelu(x):
    return x * nn.sigmoid(1.702 * x)


def _exact_gelu(x):
    return nn.gelu(x, approximate=False)


def activation(name: str):
    """Returns an activation of CLIP: ``quick_gelu`` (OpenAI's checkpoints) or exact ``gelu`` (OpenCLIP's)."""
    return {"quick_gelu": _quick_gelu, "gelu": _exact_gelu}[name]


class _SelfAttention(nn.Module):
    heads: int
    is_causal: bool
    dtype: DType = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b l d"]) -> Float[Array, "b l d"]:
        def dense(name):
            return Dense(x.shape[-1], dtype=self.dtype, name=name)

        q = dense("q_proj")(x)
        k = dense("k_proj")(x)
        v = dense("v_proj")(x)
        return dense("out_proj")(dot_product_attention(q, k, v, self.heads, self.is_causal))


class MLP(nn.Module):
    """The two layers after attention, with the names that CLIP and vision transformers share."""

    features: int
    act: str
    dtype: DType = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b l d"]) -> Float[Array, "b l d"]:
        h = activation(self.act)(Dense(self.features, dtype=self.dtype, name="fc1")(x))
        return Dense(x.shape[-1], dtype=self.dtype, name="fc2")(h)


def _modulation(c: Float[Array, "b e"], chunks: int, features: int, dtype: DType) -> list[Float[Array, "b 1 d"]]:
    """Computes ``chunks`` vectors as Linear(SiLU(c)); the index in the name is torch's, which counts the SiLU."""
    values = Dense(chunks * features, dtype=dtype, name="adaLN_modulation_1")(nn.silu(c))
    return jnp.split(values[:, None, :], chunks, axis=-1)  # [b chunks*d] -> chunks x [b 1 d]


class _EncoderLayer(nn.Module):
    """CLIPEncoderLayer; if ``c`` is given (the SPM), each half is h + gate · f(LN(h) · (1 + scale) + shift)."""

    config: CLIPTextConfig | CLIPVisionConfig
    is_causal: bool
    dtype: DType = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b l d"], c: Float[Array, "b e"] | None = None) -> Float[Array, "b l d"]:
        config = self.config
        attention = _SelfAttention(config.num_attention_heads, self.is_causal, self.dtype, name="self_attn")
        mlp = MLP(config.intermediate_size, config.hidden_act, self.dtype, name="mlp")

        def norm(name):
            return layer_norm(config.layer_norm_eps, self.dtype, name)

        if c is None:
            x = x + attention(norm("layer_norm1")(x))
            return x + mlp(norm("layer_norm2")(x))
        shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = _modulation(c, 6, x.shape[-1], self.dtype)
        x = x + gate_a * attention(norm("layer_norm1")(x) * (1 + scale_a) + shift_a)
        return x + gate_m * mlp(norm("layer_norm2")(x) * (1 + scale_m) + shift_m)


class _Encoder(nn.Module):
    config: CLIPTextConfig | CLIPVisionConfig
    is_causal: bool
    remat: bool = False
    dtype: DType = jnp.float32

    @nn.compact
    def __call__(self, x, c=None):
        layer = nn.remat(_EncoderLayer) if self.remat else _EncoderLayer
        x = spread_rows(x)
        penultimate = x
        for index in range(self.config.num_hidden_layers):
            penultimate = x
            x = spread_rows(layer(self.config, self.is_causal, self.dtype, name=f"layers_{index}")(x, c))
        return x, penultimate


class _TextEmbeddings(nn.Module):
    config: CLIPTextConfig
    dtype: DType = jnp.float32

    @nn.compact
    def __call__(self, ids: Int[Array, "b l"]) -> Float[Array, "b l d"]:
        config = self.config
        tokens = Embed(config.vocab_size, config.hidden_size, dtype=self.dtype, name="token_embedding")(ids)
        positions = Embed(
            config.max_position_embeddings, config.hidden_size, dtype=self.dtype, name="position_embedding"
        )(jnp.arange(ids.shape[1]))
        return tokens + positions[None]


class CLIPTextTransformer(nn.Module):
    """The ``text_model`` of transformers' CLIP classes."""

    config: CLIPTextConfig
    remat: bool = False
    dtype: DType = jnp.float32

    @nn.compact
    def __call__(self, ids: Int[Array, "b l"]) -> CLIPOutput:
        config = self.config
        x = _TextEmbeddings(config, self.dtype, name="embeddings")(ids)
        last, penultimate = _Encoder(config, True, self.remat, self.dtype, name="encoder")(x)
        last = layer_norm(config.layer_norm_eps, self.dtype, "final_layer_norm")(last)
        # Old configs have eos_token_id 2 for every vocabulary; their end token is the one with the largest id.
        legacy = config.eos_token_id == 2
        end = jnp.argmax(ids if legacy else ids == config.eos_token_id, axis=-1)
        pooled = jnp.take_along_axis(last, end[:, None, None], axis=1)[:, 0]  # [b l d] -> [b d]
        return CLIPOutput(last, penultimate, pooled)


class CLIPTextModel(nn.Module):
    """CLIPTextModel, or CLIPTextModelWithProjection if ``projection``; without it, the second output is None."""

    config: CLIPTextConfig
    projection: bool = False
    dtype: DType = jnp.float32

    @nn.compact
    def __call__(self, ids: Int[Array, "b l"]) -> tuple[CLIPOutput, Float[Array, "b p"] | None]:
        out = CLIPTextTransformer(self.config, dtype=self.dtype, name="text_model")(ids)
        if not self.projection:
            return out, None
        project = Dense(self.config.projection_dim, use_bias=False, dtype=self.dtype, name="text_projection")
        return out, project(out.pooled)


class _VisionEmbeddings(Given):
    config: CLIPVisionConfig
    dtype: DType = jnp.float32

    @nn.compact
    def __call__(self, images: Float[Array, "b h w c"]) -> Float[Array, "b l d"]:
        config = self.config
        batch = images.shape[0]
        # Patches, [b h w c] -> [b patches d].
        patch = (config.patch_size,) * 2
        patches = Conv(
            config.hidden_size, patch, patch, "VALID", use_bias=False, dtype=self.dtype, name="patch_embedding"
        )(images).reshape(batch, -1, config.hidden_size)
        # The class token comes first, so there is one position more than patches.
        first = self.param("class_embedding", nn.initializers.normal(0.02), (config.hidden_size,), jnp.float32)
        first = jnp.broadcast_to(first.astype(self.dtype), (batch, 1, config.hidden_size))
        count = (config.image_size // config.patch_size) ** 2 + 1
        positions = Embed(count, config.hidden_size, dtype=self.dtype, name="position_embedding")(jnp.arange(count))
        return jnp.concatenate([first, patches], axis=1) + positions[None]


class CLIPVisionTransformer(nn.Module):
    """The ``vision_model`` of transformers' CLIPModel, modulated by ``c`` if that is given."""

    config: CLIPVisionConfig
    remat: bool = False
    dtype: DType = jnp.float32

    @nn.compact
    def __call__(self, images: Float[Array, "b h w c"], c: Float[Array, "b e"] | None = None) -> CLIPOutput:
        config = self.config
        x = _VisionEmbeddings(config, self.dtype, name="embeddings")(images.astype(self.dtype))
        x = layer_norm(config.layer_norm_eps, self.dtype, "pre_layrnorm")(x)  # sic: transformers' spelling
        last, penultimate = _Encoder(config, False, self.remat, self.dtype, name="encoder")(x, c)
        pooled = layer_norm(config.layer_norm_eps, self.dtype, "post_layernorm")(last[:, 0])
        if c is not None:
            shift, scale = (array[:, 0] for array in _modulation(c, 2, pooled.shape[-1], self.dtype))
            pooled = pooled * (1 + scale) + shift
        return CLIPOutput(last, penultimate, pooled)


class _TimeEmbedder(nn.Module):
    features: int
    dtype: DType = jnp.float32

    @nn.compact
    def __call__(self, t: Num[Array, " b"]) -> Float[Array, "b d"]:
        def dense(name):
            return Dense(self.features, dtype=self.dtype, kernel_init=nn.initializers.normal(0.02), name=name)

        x = sinusoidal_embedding(t, TIME_FEATURES).astype(self.dtype)
        return dense("mlp_2")(nn.silu(dense("mlp_0")(x)))


class CLIPModel(Given):
    """transformers' CLIPModel, or the SPO authors' HFTimeConditionedCLIPModel if ``config.time_conditioned``."""

    config: CLIPConfig
    remat: bool = False
    dtype: DType = jnp.float32

    def setup(self):
        """Makes the towers and projections."""
        config = self.config
        self.text_model = CLIPTextTransformer(config.text, self.remat, self.dtype)
        self.vision_model = CLIPVisionTransformer(config.vision, self.remat, self.dtype)
        self.text_projection = Dense(config.projection_dim, use_bias=False, dtype=self.dtype)
        self.visual_projection = Dense(config.projection_dim, use_bias=False, dtype=self.dtype)
        self.logit_scale = self.param("logit_scale", nn.initializers.constant(2.6592), (), jnp.float32)
        if config.time_conditioned:
            self.t_embedder = _TimeEmbedder(config.vision.hidden_size, self.dtype)

    def encode_text(self, ids: Int[Array, "b l"]) -> Float[Array, "b p"]:
        """Returns projected text features, not normalised."""
        return self.text_projection(self.text_model(ids).pooled)

    def encode_image(self, pixels: Float[Array, "b h w c"], t: Num[Array, " b"] | None = None) -> Float[Array, "b p"]:
        """Returns projected image features, not normalised.

        Args:
          pixels: images, normalised with CLIP's mean and standard deviation.
          t: timesteps, given if and only if the model is time-conditioned.
        """
        if (t is not None) != self.config.time_conditioned:
            given = "None" if t is None else "given"
            raise ValueError(f"t is {given}, but {self.config.time_conditioned=}: give t if and only if that is True")
        c = None if t is None else self.t_embedder(t)
        return self.visual_projection(self.vision_model(pixels, c).pooled)

    def scale(self) -> Float[Array, ""]:
        """Returns exp(logit_scale), the factor of the cosine."""
        return jnp.exp(self.logit_scale.astype(jnp.float32))

    def __call__(self, ids: Int[Array, "b l"], pixels: Float[Array, "b h w c"], t: Num[Array, " b"] | None = None):
        """Returns the scaled cosine of the text and the image of each row, Float[b]; initialises all parameters."""
        text = self.encode_text(ids)
        image = self.encode_image(pixels, t)

        def normed(x):
            return x / jnp.linalg.norm(x.astype(jnp.float32), axis=-1, keepdims=True)

        return self.scale() * jnp.sum(normed(text) * normed(image), axis=-1)
