"""Rewards with random weights, in the files that are published of them, at their true sizes or tiny.

The files are read by `spo_jax.rewards.load_reward`, and the same weights are in a peer of `benchmarks.reward_peers`.
This module imports no jax, so that the process of a peer can use it.
"""

import itertools
import string
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import safetensors.torch
import torch
import transformers
from torch import Tensor, nn

from benchmarks.blip_peer import ImageRewardPeer
from benchmarks.open_clip_peer import HPSPeer
from benchmarks.reward_peers import AestheticPeer, CLIPPeer, CLIPScorePeer, randomised
from spo_jax.core.byte_characters import byte_characters
from spo_jax.core.files import write_json, write_text
from spo_jax.nn.clip_config import CLIP_H, CLIP_L

SIZES = ("true", "tiny")
_END_OF_WORD = "</w>"


class Family(NamedTuple):
    """How a reward is built and written.

    Attributes:
      peer: class of the peer.
      config: its config by size.
      write: writes the weights of a peer of this config into a folder; returns the path that the reward's spec names.
    """

    peer: Callable[[Any], nn.Module]
    config: dict[str, Any]
    write: Callable[[nn.Module, Any, Path], Path]


def make_peer(name: str, size: str) -> nn.Module:
    """Builds the peer of a reward, whose random weights are those of 16 bits, because files are written with these.

    Args:
      name: name of the reward.
      size: one of `SIZES`.
    """
    family = FAMILIES[name]
    return randomised(family.peer(family.config[size])).half().float()


def write_reward(name: str, size: str, peer: nn.Module, folder: Path) -> str:
    """Writes a peer's weights as they are published; returns the spec by which `load_reward` reads them."""
    return f"{name}:{FAMILIES[name].write(peer, FAMILIES[name].config[size], folder)}"


# Files


def _write_clip(peer: CLIPPeer, config: Any, folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "config.json", config)
    state = {name: value.contiguous() for name, value in _half(peer.state()).items()}
    safetensors.torch.save_file(state, folder / "model.safetensors", {"format": "pt"})
    write_clip_tokenizer(folder, config["text_config"]["vocab_size"])
    return folder


def _write_aesthetic(peer: AestheticPeer, config: Any, folder: Path) -> Path:
    _write_clip(peer, config, folder / "clip")
    torch.save(peer.head.state_dict(), folder / "sac+logos+ava1-l14-linearMSE.pth")
    return folder


def _write_hps(peer: HPSPeer, config: Any, folder: Path) -> Path:
    write_json(folder / "ViT-H-14.json", config)
    torch.save({"state_dict": _half(peer.state())}, folder / "HPS_v2.1_compressed.pt")
    write_clip_tokenizer(folder, config["text_cfg"]["vocab_size"])
    return folder / "HPS_v2.1_compressed.pt"


def _write_image_reward(peer: ImageRewardPeer, config: Any, folder: Path) -> Path:
    vision, text = config["vision"], config["text"]
    med = {"hidden_size": text["width"], "num_attention_heads": text["heads"], "num_hidden_layers": text["layers"]}
    med |= {"intermediate_size": text["mlp"], "max_position_embeddings": text["positions"], "layer_norm_eps": 1e-12}
    write_json(folder / "med_config.json", med | {"vocab_size": text["vocab_size"], "hidden_act": "gelu"})
    vit = {"image_size": vision["image_size"], "patch_size": vision["patch_size"], "embed_dim": vision["width"]}
    write_json(folder / "vit_config.json", vit | {"depth": vision["layers"], "num_heads": vision["heads"]})
    torch.save(_half(peer.state()), folder / "ImageReward.pt")
    write_bert_tokenizer(folder / "bert-base-uncased", text["vocab_size"] - 2)  # [DEC] and [ENC] follow its lines
    return folder


def _half(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.half() if value.is_floating_point() else value for name, value in state.items()}


# Tokenizers of the published sizes, whose words are made up


def write_clip_tokenizer(folder: Path, vocabulary: int) -> None:
    """Writes a byte-pair vocabulary with this number of tokens in CLIP's order; its merges join letters."""
    characters = byte_characters()
    merges = list(itertools.islice(_pairs(), vocabulary - 2 * len(characters) - 2))
    tokens = [*characters, *(character + _END_OF_WORD for character in characters), *map("".join, merges)]
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    write_json(folder / "vocab.json", {token: index for index, token in enumerate(tokens)})
    write_text(folder / "merges.txt", "#version: 0.2\n" + "".join(f"{one} {two}\n" for one, two in merges))


def _pairs() -> Iterator[tuple[str, str]]:
    """Yields merges: two letters, then three, and so on; each joins what an earlier one made and a letter."""
    for length in itertools.count(1):
        for start in itertools.product(string.ascii_lowercase, repeat=length):
            for letter in string.ascii_lowercase:
                yield "".join(start), letter


def write_bert_tokenizer(folder: Path, lines: int) -> None:
    """Writes a vocabulary of WordPiece with this number of lines: special tokens, letters, and pieces of letters."""
    specials = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    signs = [*string.ascii_lowercase, *string.digits, *string.punctuation]
    pieces = ("".join(letters) for length in (2, 3, 4) for letters in itertools.product(signs[:26], repeat=length))
    words = [*specials, *signs, *(f"##{sign}" for sign in signs)]
    words += itertools.islice(pieces, max(0, lines - len(words)))
    write_text(folder / "vocab.txt", "".join(f"{word}\n" for word in words[:lines]))


def peer_tokens(name: str, folder: Path, prompts: list[str]) -> tuple[Tensor, ...]:
    """Returns the ids of plain prompts, and for ImageReward their mask, by transformers' tokenizers."""
    if name == "image_reward":
        tokenizer = transformers.BertTokenizer(str(folder / "bert-base-uncased" / "vocab.txt"))
        settings = {"max_length": 35, "padding": "max_length", "truncation": True, "return_tensors": "pt"}
        batch = tokenizer(prompts, **settings)
        return batch["input_ids"], batch["attention_mask"]
    folder = folder / "clip" if name == "aesthetic" else folder
    tokenizer = transformers.CLIPTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"))
    return (tokenizer(prompts, padding="max_length", max_length=77, truncation=True, return_tensors="pt")["input_ids"],)


# Sizes

_TINY_TOWER = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
_VOCABULARY = 600


def _tiny(config: dict[str, Any]) -> dict[str, Any]:
    text = config["text_config"] | _TINY_TOWER | {"vocab_size": _VOCABULARY, "projection_dim": 24}
    vision = config["vision_config"] | _TINY_TOWER | {"image_size": 28, "patch_size": 14, "projection_dim": 24}
    return config | {"text_config": text, "vision_config": vision, "projection_dim": 24}


_CLIP_H = {"true": CLIP_H, "tiny": _tiny(CLIP_H)}
_CLIP_L = {"true": CLIP_L, "tiny": _tiny(CLIP_L)}
_HPS = {
    "true": {
        "embed_dim": 1024,
        "vision_cfg": {"image_size": 224, "layers": 32, "width": 1280, "head_width": 80, "patch_size": 14},
        "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 1024, "heads": 16, "layers": 24},
    },
    "tiny": {
        "embed_dim": 24,
        "vision_cfg": {"image_size": 28, "layers": 2, "width": 32, "head_width": 16, "patch_size": 14},
        "text_cfg": {"context_length": 77, "vocab_size": _VOCABULARY, "width": 32, "heads": 2, "layers": 2},
    },
}
_IMAGE_REWARD = {
    "true": {
        "vision": {"width": 1024, "heads": 16, "layers": 24, "patch_size": 16, "image_size": 224},
        "text": {"width": 768, "heads": 12, "layers": 12, "mlp": 3072, "vocab_size": 30524, "positions": 512},
    },
    "tiny": {
        "vision": {"width": 32, "heads": 2, "layers": 2, "patch_size": 16, "image_size": 32},
        "text": {"width": 32, "heads": 2, "layers": 2, "mlp": 64, "vocab_size": 200, "positions": 64},
    },
}

FAMILIES = {
    "pickscore": Family(CLIPPeer, _CLIP_H, _write_clip),
    "clip_score": Family(CLIPScorePeer, _CLIP_L, _write_clip),
    "aesthetic": Family(AestheticPeer, _CLIP_L, _write_aesthetic),
    "hpsv21": Family(HPSPeer, _HPS, _write_hps),
    "image_reward": Family(ImageRewardPeer, _IMAGE_REWARD, _write_image_reward),
}
