"""Rewards in PyTorch, computed as their originals do, with random weights in the layout of the published files.

`benchmarks.rewards` measures ours against these peers, and tests at true size compare the scores
(tests/rewards/test_full_size.py). PickScore, CLIPScore and the aesthetic predictor are transformers' CLIPModel and its
processor on Pillow; HPSv2 is in `benchmarks.open_clip_peer`, ImageReward in `benchmarks.blip_peer`. Nothing is made
slow: torch's fused attention, no gradients. Token ids are given, because they are compared elsewhere.

Layouts are torch's: pixels [b 3 h w].
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

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
