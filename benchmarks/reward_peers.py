"""Rewards in PyTorch, computed as their originals do, with random weights in the layout of the published files.

`benchmarks.rewards` measures ours against these peers, and tests at true size compare the scores
(tests/rewards/test_full_size.py). PickScore, CLIPScore and the aesthetic predictor are transformers' CLIPModel and its
processor on Pillow; HPSv2 is open_clip's network, written out with its names, and torchvision's tensor resize;
ImageReward is Salesforce's BLIP, written out with its names. Nothing is made slow: torch's fused attention, no
gradients. Token ids are given, because they are compared elsewhere.

Layouts are torch's: pixels [b 3 h w].
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
import transformers
from PIL import Image
from torch import Tensor, nn
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


def randomised(module: nn.Module, seed: int = 0) -> nn.Module:
    """Gives a module random weights, biases and norms included; returns it frozen and in evaluation mode.

    Matrices keep the size of what they multiply, so that the signal survives dozens of layers.
    """
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in module.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        if "norm" in name or ".ln_" in f".{name}":
            parameter.data = 0.1 * noise + (1 if name.endswith("weight") else 0)
        elif parameter.ndim < 2:
            parameter.data = parameter.data if parameter.ndim == 0 else 0.1 * noise
        else:
            parameter.data = noise / math.sqrt(parameter[0].numel())
    return module.eval().requires_grad_(False)


# CLIP of transformers: PickScore, CLIPScore, the aesthetic predictor


class CLIPPeer(nn.Module):
    """PickScore: exp(logit_scale) times the cosine of image and text."""

    def __init__(self, config: Mapping[str, Any]):
        super().__init__()
        self.clip = transformers.CLIPModel(transformers.CLIPConfig(**config))
        side = self.clip.config.vision_config.image_size
        self.processor = CLIPImageProcessorPil(size={"shortest_edge": side}, crop_size={"height": side, "width": side})

    def pixels(self, images: Sequence[Image.Image]) -> Tensor:
        """Resizes by Pillow, crops and normalises."""
        return self.processor(list(images), return_tensors="pt")["pixel_values"]

    def image_features(self, pixels: Tensor) -> Tensor:
        """Computes features of length 1."""
        pooled = self.clip.vision_model(pixel_values=pixels).pooler_output
        return F.normalize(self.clip.visual_projection(pooled), dim=-1)

    def forward(self, pixels: Tensor, ids: Tensor) -> Tensor:
        """Scores each image by its own prompt."""
        text = self.clip.text_projection(self.clip.text_model(input_ids=ids).pooler_output)
        cosine = (self.image_features(pixels) * F.normalize(text, dim=-1)).sum(-1)
        return self.of_cosine(cosine)

    def of_cosine(self, cosine: Tensor) -> Tensor:
        """Makes the score of the cosine."""
        return self.clip.logit_scale.exp() * cosine

    def state(self) -> dict[str, Tensor]:
        """Returns the weights as they are published."""
        return self.clip.state_dict()


class CLIPScorePeer(CLIPPeer):
    """CLIPScore as the logit over 100."""

    def of_cosine(self, cosine: Tensor) -> Tensor:
        """Makes the score of the cosine."""
        return super().of_cosine(cosine) / 100


class AestheticPeer(CLIPPeer):
    """LAION's aesthetic predictor v2: five linear layers without activations on the image features."""

    def __init__(self, config: Mapping[str, Any]):
        super().__init__(config)
        self.head = Head(self.clip.config.projection_dim)

    def forward(self, pixels: Tensor, ids: Tensor) -> Tensor:
        """Scores each image; the prompts have no influence."""
        del ids
        return self.head(self.image_features(pixels))[:, 0]


class Head(nn.Module):
    """The head of the aesthetic predictor and of ImageReward; its dropouts do nothing in evaluation."""

    def __init__(self, width: int):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(width, 1024), nn.Dropout(0.2), nn.Linear(1024, 128), nn.Dropout(0.2),
            nn.Linear(128, 64), nn.Dropout(0.1), nn.Linear(64, 16), nn.Linear(16, 1),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        """Applies the layers."""
        return self.layers(x)


# open_clip: HPSv2


class _Block(nn.Module):
    """open_clip's ResidualAttentionBlock."""

    def __init__(self, width: int, heads: int, mlp: int):
        super().__init__()
        self.ln_1 = nn.LayerNorm(width)
        self.attn = nn.MultiheadAttention(width, heads, batch_first=True)
        self.ln_2 = nn.LayerNorm(width)
        self.mlp = nn.Sequential()
        self.mlp.add_module("c_fc", nn.Linear(width, mlp))
        self.mlp.add_module("gelu", nn.GELU())
        self.mlp.add_module("c_proj", nn.Linear(mlp, width))

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        normed = self.ln_1(x)
        x = x + self.attn(normed, normed, normed, need_weights=False, attn_mask=mask)[0]
        return x + self.mlp(self.ln_2(x))


class _Transformer(nn.Module):
    def __init__(self, width: int, heads: int, layers: int):
        super().__init__()
        self.resblocks = nn.ModuleList(_Block(width, heads, 4 * width) for _ in range(layers))

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        for block in self.resblocks:
            x = block(x, mask)
        return x


class _Vision(nn.Module):
    """open_clip's VisionTransformer."""

    def __init__(self, config: Mapping[str, Any], width_out: int):
        super().__init__()
        width, patch = config["width"], config["patch_size"]
        self.conv1 = nn.Conv2d(3, width, patch, patch, bias=False)
        self.class_embedding = nn.Parameter(torch.zeros(width))
        self.positional_embedding = nn.Parameter(torch.zeros((config["image_size"] // patch) ** 2 + 1, width))
        self.ln_pre = nn.LayerNorm(width)
        self.transformer = _Transformer(width, width // config["head_width"], config["layers"])
        self.ln_post = nn.LayerNorm(width)
        self.proj = nn.Parameter(torch.zeros(width, width_out))

    def forward(self, pixels: Tensor) -> Tensor:
        x = self.conv1(pixels).flatten(2).transpose(1, 2)
        first = self.class_embedding.expand(len(x), 1, -1)
        x = self.ln_pre(torch.cat([first, x], 1) + self.positional_embedding)
        return self.ln_post(self.transformer(x)[:, 0]) @ self.proj


class HPSPeer(nn.Module):
    """HPSv2: 100 times the cosine of image and text in open_clip's ViT-H-14.

    Args:
      config: open_clip's config of the model, with ``embed_dim``, ``vision_cfg`` and ``text_cfg``.
    """

    def __init__(self, config: Mapping[str, Any]):
        super().__init__()
        text = config["text_cfg"]
        self.side = config["vision_cfg"]["image_size"]
        self.visual = _Vision(config["vision_cfg"], config["embed_dim"])
        self.token_embedding = nn.Embedding(text["vocab_size"], text["width"])
        self.positional_embedding = nn.Parameter(torch.zeros(text["context_length"], text["width"]))
        self.transformer = _Transformer(text["width"], text["heads"], text["layers"])
        self.ln_final = nn.LayerNorm(text["width"])
        self.text_projection = nn.Parameter(torch.zeros(text["width"], config["embed_dim"]))
        self.logit_scale = nn.Parameter(torch.tensor(math.log(100.0)))
        causal = torch.full((text["context_length"],) * 2, -math.inf).triu(1)
        self.register_buffer("attn_mask", causal, persistent=False)

    def pixels(self, images: Sequence[Image.Image]) -> Tensor:
        """Resizes tensors as torchvision 0.17 and later, with antialiasing; crops and normalises."""
        return torch.cat([self._pixels(image) for image in images])

    def _pixels(self, image: Image.Image) -> Tensor:
        x = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None].float() / 255
        height, width = x.shape[2:]
        size = [int(self.side * length / min(height, width)) for length in (height, width)]
        x = F.interpolate(x, size, mode="bicubic", align_corners=False, antialias=True)
        top, left = (round((length - self.side) / 2) for length in size)
        x = x[:, :, top : top + self.side, left : left + self.side]
        return (x - torch.tensor(CLIP_MEAN).view(1, 3, 1, 1)) / torch.tensor(CLIP_STD).view(1, 3, 1, 1)

    def forward(self, pixels: Tensor, ids: Tensor) -> Tensor:
        """Scores each image by its own prompt."""
        image = F.normalize(self.visual(pixels), dim=-1)
        x = self.transformer(self.token_embedding(ids) + self.positional_embedding, self.attn_mask)
        end = self.ln_final(x)[torch.arange(len(ids)), ids.argmax(-1)]
        return 100 * (image * F.normalize(end @ self.text_projection, dim=-1)).sum(-1)

    def state(self) -> dict[str, Tensor]:
        """Returns the weights as they are published."""
        return self.state_dict()


# BLIP: ImageReward


class _ViTBlock(nn.Module):
    """timm's Block, as BLIP has it."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.norm1 = nn.LayerNorm(width, eps=1e-6)
        self.attn = nn.Module()
        self.attn.qkv = nn.Linear(width, 3 * width)
        self.attn.proj = nn.Linear(width, width)
        self.norm2 = nn.LayerNorm(width, eps=1e-6)
        self.mlp = nn.Module()
        self.mlp.fc1 = nn.Linear(width, 4 * width)
        self.mlp.fc2 = nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.attn.qkv(self.norm1(x)).chunk(3, -1)
        x = x + self.attn.proj(_attend(q, k, v, self.heads))
        return x + self.mlp.fc2(F.gelu(self.mlp.fc1(self.norm2(x))))


class _ViT(nn.Module):
    """BLIP's VisionTransformer: all tokens after the final norm."""

    def __init__(self, config: Mapping[str, int]):
        super().__init__()
        width, patch, side = config["width"], config["patch_size"], config["image_size"]
        self.patch_embed = nn.Module()
        self.patch_embed.proj = nn.Conv2d(3, width, patch, patch)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.pos_embed = nn.Parameter(torch.zeros(1, (side // patch) ** 2 + 1, width))
        self.blocks = nn.ModuleList(_ViTBlock(width, config["heads"]) for _ in range(config["layers"]))
        self.norm = nn.LayerNorm(width, eps=1e-6)

    def forward(self, pixels: Tensor) -> Tensor:
        x = self.patch_embed.proj(pixels).flatten(2).transpose(1, 2)
        x = torch.cat([self.cls_token.expand(len(x), -1, -1), x], 1) + self.pos_embed
        for block in self.blocks:
            x = block(x)
        return self.norm(x)


class _Attention(nn.Module):
    """BERT's attention with its output: a residual connection and a norm after it."""

    def __init__(self, width: int, heads: int, of: int):
        super().__init__()
        self.heads = heads
        self.self = nn.Module()
        self.self.query = nn.Linear(width, width)
        self.self.key = nn.Linear(of, width)
        self.self.value = nn.Linear(of, width)
        self.output = nn.Module()
        self.output.dense = nn.Linear(width, width)
        self.output.LayerNorm = nn.LayerNorm(width, eps=1e-12)

    def forward(self, x: Tensor, of: Tensor, mask: Tensor | None = None) -> Tensor:
        q, k, v = self.self.query(x), self.self.key(of), self.self.value(of)
        return self.output.LayerNorm(x + self.output.dense(_attend(q, k, v, self.heads, mask)))


class _BertLayer(nn.Module):
    def __init__(self, width: int, heads: int, mlp: int, vision: int):
        super().__init__()
        self.attention = _Attention(width, heads, width)
        self.crossattention = _Attention(width, heads, vision)
        self.intermediate = nn.Module()
        self.intermediate.dense = nn.Linear(width, mlp)
        self.output = nn.Module()
        self.output.dense = nn.Linear(mlp, width)
        self.output.LayerNorm = nn.LayerNorm(width, eps=1e-12)

    def forward(self, x: Tensor, mask: Tensor, image: Tensor) -> Tensor:
        x = self.crossattention(self.attention(x, x, mask), image)
        return self.output.LayerNorm(x + self.output.dense(F.gelu(self.intermediate.dense(x))))


class _Bert(nn.Module):
    def __init__(self, config: Mapping[str, int], vision: int):
        super().__init__()
        width = config["width"]
        self.embeddings = nn.Module()
        self.embeddings.word_embeddings = nn.Embedding(config["vocab_size"], width)
        self.embeddings.position_embeddings = nn.Embedding(config["positions"], width)
        self.embeddings.LayerNorm = nn.LayerNorm(width, eps=1e-12)
        self.embeddings.register_buffer("position_ids", torch.arange(config["positions"])[None])
        self.encoder = nn.Module()
        self.encoder.layer = nn.ModuleList(
            _BertLayer(width, config["heads"], config["mlp"], vision) for _ in range(config["layers"])
        )

    def forward(self, ids: Tensor, mask: Tensor, image: Tensor) -> Tensor:
        words = self.embeddings.word_embeddings(ids)
        x = self.embeddings.LayerNorm(words + self.embeddings.position_embeddings.weight[: ids.shape[1]])
        for layer in self.encoder.layer:
            x = layer(x, mask[:, None, None].bool(), image)
        return x


class ImageRewardPeer(nn.Module):
    """ImageReward: BLIP, whose text encoder looks at the image, and a head.

    Args:
      config: sizes of ``vision`` (width, heads, layers, patch_size, image_size) and ``text`` (width, heads, layers,
        mlp, vocab_size, positions).
    """

    MEAN, STD = 0.16717362830052426, 1.0333394966054072

    def __init__(self, config: Mapping[str, Mapping[str, int]]):
        super().__init__()
        vision, text = config["vision"], config["text"]
        self.side = vision["image_size"]
        self.blip = nn.Module()
        self.blip.visual_encoder = _ViT(vision)
        self.blip.text_encoder = _Bert(text, vision["width"])
        self.blip.vision_proj = nn.Linear(vision["width"], 256)  # published, and not used
        self.blip.text_proj = nn.Linear(text["width"], 256)
        self.mlp = Head(text["width"])

    def pixels(self, images: Sequence[Image.Image]) -> Tensor:
        """Resizes by Pillow, crops as torchvision does and normalises."""
        return torch.stack([self._pixels(image) for image in images])

    def _pixels(self, image: Image.Image) -> Tensor:
        size = [int(self.side * length / min(image.size)) for length in image.size]
        left, top = (round((length - self.side) / 2) for length in size)
        image = image.resize(size, Image.Resampling.BICUBIC).crop((left, top, left + self.side, top + self.side))
        x = torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 255
        return (x - torch.tensor(CLIP_MEAN).view(3, 1, 1)) / torch.tensor(CLIP_STD).view(3, 1, 1)

    def forward(self, pixels: Tensor, ids: Tensor, mask: Tensor) -> Tensor:
        """Scores each image by its own prompt, whose padding ``mask`` is 0 at."""
        image = self.blip.visual_encoder(pixels)
        first = self.blip.text_encoder(ids, mask, image)[:, 0]
        return (self.mlp(first)[:, 0] - self.MEAN) / self.STD

    def state(self) -> dict[str, Tensor]:
        """Returns the weights as they are published."""
        return self.state_dict()


def _attend(q: Tensor, k: Tensor, v: Tensor, heads: int, mask: Tensor | None = None) -> Tensor:
    """Computes attention of several heads, [b l d]."""
    q, k, v = (x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2).flatten(2)
