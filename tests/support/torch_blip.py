"""Small BLIPs of transformers with random weights, and the same weights in the layout of ImageReward's file.

transformers renamed the modules of Salesforce's BLIP, so a table gives the weights their first names back.
"""

import dataclasses
import json
import re
from pathlib import Path

import torch
import transformers

from spo_jax.nn.blip_config import BertConfig, BLIPConfig, ViTConfig
from tests.support.torch_networks import randomised

# transformers' names of the vision transformer -> those of Salesforce.
RENAMES = (
    (r"^embeddings\.class_embedding$", "cls_token"),
    (r"^embeddings\.position_embedding$", "pos_embed"),
    (r"^embeddings\.patch_embedding\.", "patch_embed.proj."),
    (r"^encoder\.layers\.(\d+)\.self_attn\.qkv\.", r"blocks.\1.attn.qkv."),
    (r"^encoder\.layers\.(\d+)\.self_attn\.projection\.", r"blocks.\1.attn.proj."),
    (r"^encoder\.layers\.(\d+)\.layer_norm", r"blocks.\1.norm"),
    (r"^encoder\.layers\.(\d+)\.mlp\.", r"blocks.\1.mlp."),
    (r"^post_layernorm\.", "norm."),
)


def networks_of_transformers(config: BLIPConfig, spread: float) -> tuple[torch.nn.Module, torch.nn.Module]:
    """Makes transformers' vision model and text model of BLIP, with random weights, biases and norms."""
    vision = transformers.BlipVisionConfig(
        hidden_size=config.vision.embed_dim,
        intermediate_size=int(config.vision.embed_dim * config.vision.mlp_ratio),
        num_hidden_layers=config.vision.depth,
        num_attention_heads=config.vision.num_heads,
        image_size=config.vision.image_size,
        patch_size=config.vision.patch_size,
        layer_norm_eps=config.vision.layer_norm_eps,
        initializer_range=spread,
    )
    text = transformers.BlipTextConfig(
        vocab_size=config.text.vocab_size,
        hidden_size=config.text.hidden_size,
        encoder_hidden_size=config.vision.embed_dim,
        intermediate_size=config.text.intermediate_size,
        num_hidden_layers=config.text.num_hidden_layers,
        num_attention_heads=config.text.num_attention_heads,
        max_position_embeddings=config.text.max_position_embeddings,
        layer_norm_eps=config.text.layer_norm_eps,
        initializer_range=spread,
        is_decoder=True,  # there, only a decoder has cross-attention; it is called as an encoder below
    )
    torch.manual_seed(0)
    return transformers.BlipVisionModel(vision), transformers.BlipTextModel(text, add_pooling_layer=False)


def salesforce_state(vision: torch.nn.Module, text: torch.nn.Module) -> dict[str, torch.Tensor]:
    """The weights of both under Salesforce's names."""
    state = {}
    for name, value in vision.state_dict().items():
        pattern, replacement = next((p, r) for p, r in RENAMES if re.search(p, name))
        value = value.reshape(1, 1, -1) if "class_embedding" in name else value
        state[f"visual_encoder.{re.sub(pattern, replacement, name)}"] = value
    return state | {f"text_encoder.{name}": value for name, value in text.state_dict().items()}


# The special tokens are elsewhere than in the published vocabulary, whose last line is not a special token either.
WORDS = ["[PAD]", "a", "red", "blue", "[UNK]", "[MASK]", "[SEP]", "star", "on", "[CLS]", "the", "sea", "##s", "s", "."]
CONFIG = BLIPConfig(
    ViTConfig(image_size=16, patch_size=8, embed_dim=24, depth=2, num_heads=3, mlp_ratio=2.0),
    BertConfig(
        vocab_size=len(WORDS) + 2,
        hidden_size=16,
        intermediate_size=40,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=40,
    ),
)


class TorchImageReward(torch.nn.Module):
    """ImageReward as the original computes it, of transformers' networks and the original's head."""

    def __init__(self, config: BLIPConfig, spread: float):
        super().__init__()
        self.vision, self.text = networks_of_transformers(config, spread)
        widths = [config.text.hidden_size, 1024, 128, 64, 16, 1]
        pairs = zip(widths[:-1], widths[1:], strict=True)
        names = ("0", "2", "4", "6", "7")
        self.head = torch.nn.ModuleDict({name: torch.nn.Linear(*pair) for name, pair in zip(names, pairs, strict=True)})

    def forward(self, ids: torch.Tensor, mask: torch.Tensor, pixels: torch.Tensor) -> torch.Tensor:
        image = self.vision(pixels).last_hidden_state
        states = self.text(ids, attention_mask=mask, encoder_hidden_states=image, is_decoder=False).last_hidden_state
        raw = states[:, 0]
        for layer in self.head.values():
            raw = layer(raw)
        return (raw[:, 0] - 0.16717362830052426) / 1.0333394966054072

    def file_state(self) -> dict[str, torch.Tensor]:
        """The content of ImageReward.pt: with the projections that are not used, and a buffer."""
        state = {f"blip.{name}": value for name, value in salesforce_state(self.vision, self.text).items()}
        state |= {f"mlp.layers.{name}": value for name, value in self.head.state_dict().items()}
        for name, width in (("vision", self.vision.config.hidden_size), ("text", self.text.config.hidden_size)):
            state |= {f"blip.{name}_proj.weight": torch.zeros(256, width), f"blip.{name}_proj.bias": torch.zeros(256)}
        places = self.text.config.max_position_embeddings
        return state | {"blip.text_encoder.embeddings.position_ids": torch.arange(places)[None]}


def write_image_reward(folder: Path, config: BLIPConfig = CONFIG) -> TorchImageReward:
    """Writes a small ImageReward with random weights as it is published, and returns the network that they are of."""
    theirs = randomised(TorchImageReward(config, 0.3))
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(theirs.file_state(), folder / "ImageReward.pt")
    med = dataclasses.asdict(config.text)
    med |= {"architectures": ["BertModel"], "encoder_width": config.text.hidden_size, "add_cross_attention": True}
    (folder / "med_config.json").write_text(json.dumps(med))
    (folder / "vit_config.json").write_text(json.dumps(dataclasses.asdict(config.vision)))
    (folder / "bert-base-uncased").mkdir(exist_ok=True)
    (folder / "bert-base-uncased" / "vocab.txt").write_text("\n".join(WORDS) + "\n")
    return theirs
