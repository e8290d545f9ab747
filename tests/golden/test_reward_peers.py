"""The torch peers of the rewards compute what the originals do: pixels, and scores of every prompt and image.

Both are torch on a CPU, but versions and attention kernels may differ: 1e-5 of the largest score.
"""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from benchmarks.blip_peer import ImageRewardPeer
from benchmarks.open_clip_peer import HPSPeer
from benchmarks.reward_peers import AestheticPeer, CLIPPeer, CLIPScorePeer


@pytest.fixture(scope="module")
def images(reward_inputs):
    return [Image.fromarray(reward_inputs.bytes(name)[0]) for name in reward_inputs.names]


def _clip(build, folder):
    peer = build(json.loads((folder / "config.json").read_text()))
    state = load_file(folder / "model.safetensors")
    peer.clip.load_state_dict({name: value for name, value in state.items() if "position_ids" not in name})
    return peer


def _hps(folder, name):
    peer = HPSPeer(json.loads((folder / "ViT-H-14.json").read_text()))
    peer.load_state_dict(torch.load(folder / name)["state_dict"])
    return peer


def _image_reward(folder):
    state = torch.load(folder / "ImageReward.pt")
    text, vision = (json.loads((folder / name).read_text()) for name in ("med_config.json", "vit_config.json"))
    sizes = {"width": vision["embed_dim"], "heads": vision["num_heads"], "layers": vision["depth"]}
    bert = {"width": text["hidden_size"], "heads": text["num_attention_heads"], "layers": text["num_hidden_layers"]}
    bert |= {"mlp": text["intermediate_size"], "positions": text["max_position_embeddings"]}
    bert["vocab_size"] = len(state["blip.text_encoder.embeddings.word_embeddings.weight"])
    sides = {"patch_size": vision["patch_size"], "image_size": vision["image_size"]}
    peer = ImageRewardPeer({"vision": sizes | sides, "text": bert})
    peer.load_state_dict(state)
    return peer


def _compare(peer, images, folder, pixels, scores, inputs=("input_ids",)):
    golden = np.load(folder / "golden.npz")
    peer.eval()
    with torch.inference_mode():
        found = peer.pixels(images)
        rows = [torch.as_tensor(golden[name]).long()[: len(scores(golden))] for name in inputs]
        whole = [peer(found, *(row[prompt].expand(len(found), -1) for row in rows)) for prompt in range(len(rows[0]))]
    np.testing.assert_allclose(found.numpy(), golden[pixels], atol=1e-5)
    expected = scores(golden)
    assert np.abs(torch.stack(whole).numpy() - expected).max() < 1e-5 * np.abs(expected).max()


def test_pickscore(reward_inputs, images):
    folder = reward_inputs.needs("pickscore")
    _compare(_clip(CLIPPeer, folder), images, folder, "pixel_values", lambda golden: golden["scores"])


def test_clip_score(reward_inputs, images):
    folder = reward_inputs.needs("clipscore")
    peer = _clip(CLIPScorePeer, folder)
    _compare(peer, images, folder, "pixel_values", lambda golden: golden["logits_over_100"].T)


@pytest.mark.parametrize(("name", "prefix"), [("HPS_v2_compressed.pt", "v2"), ("HPS_v2.1_compressed.pt", "v21")])
def test_hps(reward_inputs, images, name, prefix):
    folder = reward_inputs.needs("hpsv2")
    scores = f"{prefix}_scores_antialias_true"
    _compare(_hps(folder, name), images, folder, "pixels_antialias_true", lambda golden: 100 * golden[scores])


def test_image_reward(reward_inputs, images):
    folder = reward_inputs.needs("imagereward")
    inputs = ("input_ids", "attention_mask")
    _compare(_image_reward(folder), images, folder, "pixel_values", lambda golden: golden["rewards"], inputs)


def test_aesthetic(reward_inputs, images):
    folder = reward_inputs.needs("aesthetic")
    peer = AestheticPeer(json.loads((folder / "clip" / "config.json").read_text()))
    state = load_file(folder / "clip" / "model.safetensors")
    peer.clip.load_state_dict({name: value for name, value in state.items() if "position_ids" not in name})
    peer.head.load_state_dict(torch.load(folder / "sac+logos+ava1-l14-linearMSE.pth"))
    golden = np.load(folder / "golden.npz")
    with torch.inference_mode():
        scores = peer.eval()(peer.pixels(images), None)
    assert np.abs(scores.numpy() - golden["scores"]).max() < 1e-5 * np.abs(golden["scores"]).max()
