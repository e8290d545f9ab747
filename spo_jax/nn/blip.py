"""BLIP with cross-attention: a vision transformer, and a BERT whose every layer looks at all tokens of the image.

The modules are named as in Salesforce's BLIP, whose vision transformer has timm's names and whose text encoder has
those of transformers' BertModel. The text encoder has neither an embedding of token types nor a pooler.
"""

import jax.numpy as jnp
from flax import linen as nn

from spo_jax.core.typing import Array, Bool, DType, Float, Int
from spo_jax.nn.attention import dot_product_attention
from spo_jax.nn.blip_config import BertConfig, BLIPConfig, ViTConfig
from spo_jax.nn.clip import MLP, activation
from spo_jax.nn.given import Conv, Dense, Embed, Given
from spo_jax.nn.layers import layer_norm
from spo_jax.parallel.mesh import spread_rows

# The vision transformer


class _PatchEmbed(nn.Module):
    config: ViTConfig
    dtype: DType = jnp.float32

    @nn.compact
    def __call__(self, images: Float[Array, "b h w c"]) -> Float[Array, "b l d"]:
        patch = (self.config.patch_size,) * 2
        patches = Conv(self.config.embed_dim, patch, patch, "VALID", dtype=self.dtype, name="proj")(images)
        return patches.reshape(images.shape[0], -1, self.config.embed_dim)


class _FusedAttention(nn.Module):
    heads: int
    dtype: DType = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b l d"]) -> Float[Array, "b l d"]:
        q, k, v = jnp.split(Dense(3 * x.shape[-1], dtype=self.dtype, name="qkv")(x), 3, axis=-1)
        return Dense(x.shape[-1], dtype=self.dtype, name="proj")(dot_product_attention(q, k, v, self.heads))


class _Block(nn.Module):
    config: ViTConfig
    dtype: DType = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b l d"]) -> Float[Array, "b l d"]:
        config = self.config
        attention = _FusedAttention(config.num_heads, self.dtype, name="attn")
        mlp = MLP(int(config.embed_dim * config.mlp_ratio), "gelu", self.dtype, name="mlp")
        x = x + attention(layer_norm(config.layer_norm_eps, self.dtype, "norm1")(x))
        return x + mlp(layer_norm(config.layer_norm_eps, self.dtype, "norm2")(x))


class VisionTransformer(Given):
    """timm's VisionTransformer without a head: all tokens after the final norm, the class token first."""

    config: ViTConfig
    dtype: DType = jnp.float32

    @nn.compact
    def __call__(self, images: Float[Array, "b h w c"]) -> Float[Array, "b l d"]:
        config = self.config
        patches = _PatchEmbed(config, self.dtype, name="patch_embed")(images.astype(self.dtype))
        batch, count, width = patches.shape
        first = self.param("cls_token", nn.initializers.normal(0.02), (1, 1, width), jnp.float32)
        places = self.param("pos_embed", nn.initializers.normal(0.02), (1, count + 1, width), jnp.float32)
        first = jnp.broadcast_to(first.astype(self.dtype), (batch, 1, width))
        x = spread_rows(jnp.concatenate([first, patches], axis=1) + places.astype(self.dtype))
        for index in range(config.depth):
            x = spread_rows(_Block(config, self.dtype, name=f"blocks_{index}")(x))
        return layer_norm(config.layer_norm_eps, self.dtype, "norm")(x)


# The text encoder


class _TextEmbeddings(nn.Module):
    config: BertConfig
    dtype: DType = jnp.float32

    @nn.compact
    def __call__(self, ids: Int[Array, "b l"]) -> Float[Array, "b l d"]:
        config = self.config
        width = config.hidden_size
        words = Embed(config.vocab_size, width, dtype=self.dtype, name="word_embeddings")(ids)
        places = Embed(config.max_position_embeddings, width, dtype=self.dtype, name="position_embeddings")
        x = words + places(jnp.arange(ids.shape[1]))[None]
        return layer_norm(config.layer_norm_eps, self.dtype, "LayerNorm")(x)


class _HeadsOfAttention(nn.Module):
    """BertSelfAttention, which also serves as cross-attention: queries of ``x``, keys and values of ``context``."""

    config: BertConfig
    dtype: DType = jnp.float32

    @nn.compact
    def __call__(self, x, context, visible=None):
        def dense(name):
            return Dense(self.config.hidden_size, dtype=self.dtype, name=name)

        q = dense("query")(x)
        k = dense("key")(context)
        v = dense("value")(context)
        return dot_product_attention(q, k, v, self.config.num_attention_heads, visible=visible)


class _AddAndNorm(nn.Module):
    """BertSelfOutput and BertOutput: a projection is added to ``x``, and the norm comes after the sum."""

    config: BertConfig
    dtype: DType = jnp.float32

    @nn.compact
    def __call__(self, h, x):
        h = Dense(self.config.hidden_size, dtype=self.dtype, name="dense")(h)
        return layer_norm(self.config.layer_norm_eps, self.dtype, "LayerNorm")(h + x)


class _Attention(nn.Module):
    config: BertConfig
    dtype: DType = jnp.float32

    @nn.compact
    def __call__(self, x, context, visible=None):
        h = _HeadsOfAttention(self.config, self.dtype, name="self")(x, context, visible)
        return _AddAndNorm(self.config, self.dtype, name="output")(h, x)


class _Intermediate(nn.Module):
    config: BertConfig
    dtype: DType = jnp.float32

    @nn.compact
    def __call__(self, x):
        return activation("gelu")(Dense(self.config.intermediate_size, dtype=self.dtype, name="dense")(x))


class _Layer(nn.Module):
    config: BertConfig
    dtype: DType = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[Array, "b l d"], visible: Bool[Array, "b l"], image: Float[Array, "b m e"]
    ) -> Float[Array, "b l d"]:
        config = self.config
        x = _Attention(config, self.dtype, name="attention")(x, x, visible)
        x = _Attention(config, self.dtype, name="crossattention")(x, image)
        h = _Intermediate(config, self.dtype, name="intermediate")(x)
        return _AddAndNorm(config, self.dtype, name="output")(h, x)


class _Encoder(nn.Module):
    config: BertConfig
    dtype: DType = jnp.float32

    @nn.compact
    def __call__(self, x, visible, image):
        states = [x]
        for index in range(self.config.num_hidden_layers):
            x = spread_rows(_Layer(self.config, self.dtype, name=f"layer_{index}")(x, visible, image))
            states.append(x)
        return states


class TextEncoder(nn.Module):
    """BLIP's BertModel, as a text encoder that sees an image."""

    config: BertConfig
    dtype: DType = jnp.float32

    @nn.compact
    def __call__(
        self, ids: Int[Array, "b l"], visible: Bool[Array, "b l"], image: Float[Array, "b m e"]
    ) -> list[Float[Array, "b l d"]]:
        """Returns the embeddings and the output of every layer.

        Args:
          ids: token ids.
          visible: where ``ids`` are tokens and not padding.
          image: all tokens of the image.
        """
        x = spread_rows(_TextEmbeddings(self.config, self.dtype, name="embeddings")(ids))
        return _Encoder(self.config, self.dtype, name="encoder")(x, visible, image)


class BLIP(nn.Module):
    """The vision transformer and the text encoder under the names that they have in BLIP."""

    config: BLIPConfig
    dtype: DType = jnp.float32

    def setup(self):
        """Makes both parts."""
        self.visual_encoder = VisionTransformer(self.config.vision, self.dtype)
        self.text_encoder = TextEncoder(self.config.text, self.dtype)

    def encode_image(self, pixels: Float[Array, "b h w c"]) -> Float[Array, "b l d"]:
        """Returns all tokens of images that are normalised with CLIP's mean and standard deviation."""
        return self.visual_encoder(pixels)

    def __call__(
        self, ids: Int[Array, "b l"], visible: Bool[Array, "b l"], pixels: Float[Array, "b h w c"]
    ) -> Float[Array, "b d"]:
        """Returns the first token of texts that have seen their image.

        Args:
          ids: token ids.
          visible: where ``ids`` are tokens and not padding.
          pixels: images, normalised with CLIP's mean and standard deviation.
        """
        return self.text_encoder(ids, visible, self.encode_image(pixels))[-1][:, 0]
