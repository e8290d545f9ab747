"""The five definitions of CLIPScore, from features of transformers, to 1e-5 of the scale of each."""

import html

import ftfy
import numpy as np
import pytest
import torch
from PIL import Image

from spo_jax.core.errors import UserError
from spo_jax.rewards import load_reward
from spo_jax.rewards.base import Context
from spo_jax.rewards.common.clip_score import CLIP_MEAN, CLIP_STD
from tests.rewards import clips

# Transformers' and OpenAI's tokenizers disagree about the second one.
PROMPTS = ["a red star", "a &amp;amp; STAR’s moon", "a blue square"]
SCALE = 30


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    """The folder of a small CLIP like OpenAI's, and transformers' network."""
    folder = tmp_path_factory.mktemp("clip")
    return folder, clips.write_clip(folder, act="quick_gelu", scale=SCALE)


def openai_pixels(images: np.ndarray) -> torch.Tensor:
    """OpenAI's transform: Pillow's resize of the shorter side, and torchvision's crop."""
    rows = []
    for image in clips.bytes_of(images):
        pil = Image.fromarray(image)
        width, height = pil.size
        longer = int(clips.SIDE * max(pil.size) / min(pil.size))
        pil = pil.resize((longer, clips.SIDE) if width > height else (clips.SIDE, longer), Image.Resampling.BICUBIC)
        left, top = (round((length - clips.SIDE) / 2) for length in pil.size)
        unit = np.asarray(pil.crop((left, top, left + clips.SIDE, top + clips.SIDE)), np.float32) / 255
        rows.append((unit - np.float32(CLIP_MEAN)) / np.float32(CLIP_STD))
    return torch.from_numpy(np.stack(rows)).permute(0, 3, 1, 2)


def openai_tokens(folder, prompts) -> torch.Tensor:
    """OpenAI's cleaning before the tokenizer, which then has nothing left to do; padded with 0."""
    cleaned = [html.unescape(html.unescape(ftfy.fix_text(prompt))).strip() for prompt in prompts]
    ids = clips.tokens(folder, cleaned)
    end = ids.max()
    after = (ids == end).cumsum(1) > 1
    return ids.masked_fill(after, 0)


@pytest.mark.parametrize(
    ("variant", "of_openai", "prefix", "formula"),
    [
        ("", False, "", lambda cosine: SCALE * cosine / 100),
        ("@logits", False, "", lambda cosine: SCALE * cosine),
        ("@cosine", True, "", lambda cosine: cosine),
        ("@hessel", True, "A photo depicts ", lambda cosine: 2.5 * np.maximum(cosine, 0)),
        ("@hessel_no_prefix", True, "", lambda cosine: 2.5 * np.maximum(cosine, 0)),
    ],
)
def test_every_definition(clip, variant, of_openai, prefix, formula):
    """The crop's offset is half of 11 pixels, which the two rules round to 5 and 6."""
    folder, theirs = clip
    images = clips.draw_images(len(PROMPTS), clips.SIDE, clips.SIDE + 11)
    prompts = [prefix + prompt for prompt in PROMPTS]
    pixels = openai_pixels(images) if of_openai else clips.processed(images)
    ids = (openai_tokens if of_openai else clips.tokens)(folder, prompts)
    text, image = clips.features(theirs, ids, pixels)
    reward = load_reward(f"clip_score{variant}:{folder}", Context())
    (name,) = reward.meanings
    assert name == f"clip_score{variant}".replace("@", "_")
    np.testing.assert_array_equal(reward.tokenize(PROMPTS), ids)
    expected = formula((text * image).sum(1))
    np.testing.assert_allclose(reward.measure(images, PROMPTS)[name], expected, atol=1e-5 * formula(np.ones(1))[0])


@pytest.mark.parametrize("variant", ["hessel", "hessel_no_prefix"])
def test_a_negative_cosine_is_0_for_hessel(clip, variant):
    formula = load_reward(f"clip_score@{variant}:{clip[0]}", Context()).formula
    np.testing.assert_array_equal(formula(np.array([-0.5, 0.5], np.float32), np.float32(100)), [0, 1.25])


def test_other_definitions_are_refused():
    with pytest.raises(
        UserError, match="= 'clip_score@2.5': expected clip_score, clip_score@logits, clip_score@cosine,"
    ):
        load_reward("clip_score@2.5", Context())


def test_a_folder_without_a_tokenizer_is_named_when_the_published_one_cannot_be_fetched(tmp_path):
    clips.write_clip(tmp_path / "clip")
    for file in [*(tmp_path / "clip").glob("*token*"), *(tmp_path / "clip").glob("vocab*")]:
        file.unlink()
    message = r"/clip has no tokenizer \(tokenizer.json, or vocab.json .* tokenizer/\), so the published .*: HF"
    with pytest.raises(UserError, match=message):
        load_reward(f"clip_score:{tmp_path / 'clip'}", Context())
