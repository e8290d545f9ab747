"""ImageReward in PyTorch: Salesforce's BLIP, written out with its names, with a head on its first token."""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from benchmarks.reward_peers import CLIP_MEAN, CLIP_STD, Head


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
