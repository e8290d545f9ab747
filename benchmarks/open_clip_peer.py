"""HPSv2 in PyTorch: open_clip's network, written out with its names, and torchvision's resize of tensors."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from benchmarks.reward_peers import CLIP_MEAN, CLIP_STD


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
