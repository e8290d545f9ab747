"""Rewards against PyTorch from prompts and images to scores, with random weights in the published files.

Marked ``full`` are the true sizes: CLIP ViT-H/14 and ViT-L/14 against transformers, HPSv2 against open_clip, and
ImageReward against BLIP written out in torch. The same at a tiny size is in the default suite.

Both sides are float32 and sum thousands of terms in another order, in up to 32 layers; 1e-4 of the largest value is
asserted, and about a tenth of that is found. The peers' own computation is held to the originals in tests/golden.

    pytest -m full tests/rewards/test_full_size.py
    pip install open_clip_torch    # for the comparison of HPSv2 with open_clip itself, skipped without
"""

import gc

import numpy as np
import pytest
import torch
from PIL import Image

from benchmarks.reward_models import FAMILIES, make_peer, peer_tokens, write_reward
from benchmarks.rewards import PROMPTS, make_images
from spo_jax.rewards import load_reward
from spo_jax.rewards.base import Context
from tests.support.memory import within_memory  # noqa: F401  it holds for every test here

TOLERANCE = 1e-4
SIZES = ["tiny", pytest.param("true", marks=pytest.mark.full)]


def relative_error(ours, theirs):
    return float(np.abs(ours - theirs).max() / np.abs(theirs).max())


def images_and_prompts(count=2):
    """Images that are not square, so that they are resized and cropped in both directions; the prompts differ."""
    images = make_images(count, 256)[:, :192]
    return images, list(PROMPTS[:count])


def floats(images):
    return images.astype(np.float32) / 127.5 - 1


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", FAMILIES)
def test_scores_from_files_are_those_of_torch(name, size, tmp_path):
    images, prompts = images_and_prompts()
    # Theirs, which is freed before ours is read.
    peer = make_peer(name, size)
    spec = write_reward(name, size, peer, tmp_path)
    with torch.inference_mode():
        pixels = peer.pixels([Image.fromarray(image) for image in images])
        expected = peer(pixels, *peer_tokens(name, tmp_path, prompts)).numpy()
        features = peer.image_features(pixels).numpy() if hasattr(peer, "image_features") else None
    del peer
    gc.collect()
    # Ours.
    reward = load_reward(spec, Context())
    (scores,) = reward.measure(floats(images), prompts).values()
    assert np.ptp(expected) > 10 * TOLERANCE * np.abs(expected).max()
    assert relative_error(scores, expected) < TOLERANCE
    if features is not None:
        assert relative_error(reward.embed(floats(images)), features) < TOLERANCE


@pytest.mark.parametrize("size", SIZES)
def test_hps_is_that_of_open_clip_itself(size, tmp_path):
    """With open_clip's network and torchvision's transform."""
    open_clip = pytest.importorskip("open_clip", reason="pip install open_clip_torch")
    from torchvision import transforms

    images, prompts = images_and_prompts()
    peer = make_peer("hpsv21", size)
    spec = write_reward("hpsv21", size, peer, tmp_path)
    (ids,) = peer_tokens("hpsv21", tmp_path, prompts)
    config = FAMILIES["hpsv21"].config[size]
    side = config["vision_cfg"]["image_size"]
    theirs = open_clip.CLIP(**config).eval().requires_grad_(False)
    theirs.load_state_dict(peer.state())
    del peer
    transform = transforms.Compose(
        [
            transforms.ToTensor(),
            transforms.Resize(side, interpolation=transforms.InterpolationMode.BICUBIC, antialias=True),
            transforms.CenterCrop(side),
            transforms.Normalize(open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD),
        ]
    )
    with torch.inference_mode():
        pixels = torch.stack([transform(Image.fromarray(image)) for image in images])
        image = theirs.encode_image(pixels, normalize=True)
        expected = 100 * (image * theirs.encode_text(ids, normalize=True)).sum(-1).numpy()
    del theirs
    gc.collect()
    (scores,) = load_reward(spec, Context()).measure(floats(images), prompts).values()
    assert relative_error(scores, expected) < TOLERANCE
