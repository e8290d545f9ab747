"""The CLIP of open_clip in torch, with its names and its layout, and folders of HPS with random weights."""

import gzip
import json
from collections import OrderedDict
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from spo_jax.toy.tokenizer import vocabulary
from tests.support.torch_networks import randomised

# Every width is another, so that a swapped one does not fit.
CONFIG = {
    "embed_dim": 12,
    "vision_cfg": {"image_size": 28, "layers": 2, "width": 24, "head_width": 6, "patch_size": 7},
    "text_cfg": {"context_length": 77, "vocab_size": len(vocabulary()[0]), "width": 16, "heads": 2, "layers": 3},
}


class Block(nn.Module):
    """open_clip's ResidualAttentionBlock."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.ln_1 = nn.LayerNorm(width)
        self.attn = nn.MultiheadAttention(width, heads, batch_first=True)
        self.ln_2 = nn.LayerNorm(width)
        parts = [("c_fc", nn.Linear(width, 4 * width)), ("gelu", nn.GELU()), ("c_proj", nn.Linear(4 * width, width))]
        self.mlp = nn.Sequential(OrderedDict(parts))

    def forward(self, x, mask):
        y = self.ln_1(x)
        x = x + self.attn(y, y, y, need_weights=False, attn_mask=mask)[0]
        return x + self.mlp(self.ln_2(x))


class Transformer(nn.Module):
    """open_clip's Transformer."""

    def __init__(self, width: int, layers: int, heads: int):
        super().__init__()
        self.resblocks = nn.ModuleList([Block(width, heads) for _ in range(layers)])

    def forward(self, x, mask=None):
        for block in self.resblocks:
            x = block(x, mask)
        return x


class VisionTransformer(nn.Module):
    """open_clip's VisionTransformer."""

    def __init__(self, output: int, image_size: int, layers: int, width: int, head_width: int, patch_size: int):
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, patch_size, patch_size, bias=False)
        self.class_embedding = nn.Parameter(torch.randn(width))
        self.positional_embedding = nn.Parameter(torch.randn((image_size // patch_size) ** 2 + 1, width))
        self.ln_pre = nn.LayerNorm(width)
        self.transformer = Transformer(width, layers, width // head_width)
        self.ln_post = nn.LayerNorm(width)
        self.proj = nn.Parameter(width**-0.5 * torch.randn(width, output))

    def forward(self, x):
        x = self.conv1(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.class_embedding.expand(len(x), 1, -1), x], dim=1) + self.positional_embedding
        return self.ln_post(self.transformer(self.ln_pre(x))[:, 0]) @ self.proj


class OpenCLIP(nn.Module):
    """open_clip's CLIP."""

    def __init__(self, embed_dim: int, vision_cfg: dict[str, Any], text_cfg: dict[str, Any]):
        super().__init__()
        width = text_cfg["width"]
        self.visual = VisionTransformer(embed_dim, **vision_cfg)
        self.transformer = Transformer(width, text_cfg["layers"], text_cfg["heads"])
        self.token_embedding = nn.Embedding(text_cfg["vocab_size"], width)
        self.positional_embedding = nn.Parameter(torch.randn(text_cfg["context_length"], width))
        self.ln_final = nn.LayerNorm(width)
        self.text_projection = nn.Parameter(width**-0.5 * torch.randn(width, embed_dim))
        self.logit_scale = nn.Parameter(torch.tensor(4.6))

    def encode_image(self, images):
        return functional.normalize(self.visual(images), dim=-1)

    def encode_text(self, ids):
        x = self.token_embedding(ids) + self.positional_embedding
        mask = torch.full((len(x[0]), len(x[0])), float("-inf")).triu(1)
        x = self.ln_final(self.transformer(x, mask))
        return functional.normalize(x[torch.arange(len(x)), ids.argmax(-1)] @ self.text_projection, dim=-1)


def open_clip_network(config: dict[str, Any] = CONFIG, seed: int = 0) -> OpenCLIP:
    """Makes a CLIP with random weights."""
    torch.manual_seed(seed)
    return randomised(OpenCLIP(**config), seed)


def write_hps(folder: Path, name: str = "HPS_v2.1_compressed.pt", dtype: torch.dtype = torch.float32) -> OpenCLIP:
    """Writes a folder as HPSv2's, with the vocabulary of the toy, and returns the network with the weights in it."""
    folder.mkdir(exist_ok=True)
    network = open_clip_network().to(dtype)
    torch.save({"state_dict": network.state_dict()}, folder / name)
    (folder / "ViT-H-14.json").write_text(json.dumps(CONFIG))
    lines = ["#version: 0.2", *(" ".join(pair) for pair in vocabulary()[1])]
    (folder / "bpe_simple_vocab_16e6.txt.gz").write_bytes(gzip.compress("\n".join(lines).encode()))
    return network.float()
