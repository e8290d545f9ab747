"""Rewards on a CLIP against transformers, on all devices, and the mistakes in naming one.

Scores are float32 on both sides; logits of 20 times a cosine differ by 1e-5 of the scale.
"""

import copy
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

from spo_jax.core.errors import UserError
from spo_jax.core.images import to_uint8
from spo_jax.core.resizing import to_bytes
from spo_jax.nn.clip_config import CLIP_H, CLIPConfig
from spo_jax.parallel.mesh import make_mesh
from spo_jax.parallel.settings import MeshSettings
from spo_jax.rewards import check_reward, load_reward, pickscore
from spo_jax.rewards.base import Context, Reward
from spo_jax.rewards.common import clip_score
from spo_jax.rewards.common.clip_reward import clip_network
from spo_jax.toy import ASSETS
from spo_jax.weights import hub
from tests.rewards import clips
from tests.support.precisions import FULL, precisions

PROMPTS = ["a red star", "a blue moon over a green square", "a red star"]


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    """The folder of a small CLIP, and transformers' network."""
    folder = tmp_path_factory.mktemp("clip")
    return folder, clips.write_clip(folder)


@pytest.fixture(scope="module")
def reward(clip):
    return load_reward(f"pickscore:{clip[0]}", Context())


@pytest.fixture
def folder(clip, tmp_path):
    """A copy of the small CLIP, to be damaged."""
    return shutil.copytree(clip[0], tmp_path / "clip")


def change(folder, **tensors):
    """Changes tensors of a folder's weights; None removes one, and dots in names are written as /."""
    state = load_file(folder / "model.safetensors")
    for name, value in tensors.items():
        state.pop(name.replace("/", ".")) if value is None else state.update({name.replace("/", "."): value})
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize(("height", "width"), [(20, 37), (51, 32)])
def test_scores_and_features_are_those_of_transformers(clip, reward, height, width):
    """Images are made larger or left as they are, and cropped at offsets of 13.5 and 9.5, where the rules differ."""
    path, theirs = clip
    images = clips.draw_images(len(PROMPTS), height, width)
    text, image = clips.features(theirs, clips.tokens(path, PROMPTS), clips.processed(images))
    np.testing.assert_allclose(reward.features(PROMPTS), text, atol=1e-5)
    np.testing.assert_allclose(reward.embed(images), image, atol=1e-5)
    scores = reward.measure(images, PROMPTS)["pickscore"]
    np.testing.assert_allclose(scores, 20 * (text * image).sum(1), atol=2e-4)
    assert np.ptp(scores) > 0.1  # so images and prompts matter
    assert isinstance(reward, Reward) and reward.meanings.keys() == {"pickscore"}


def test_images_are_rounded_to_bytes_as_files_are(reward):
    """An image and what a PNG holds of it have equal scores; values out of range are clipped."""
    values = np.arange(256, dtype=np.uint8)
    square = jnp.asarray(values / np.float32(127.5) - 1).reshape(1, 16, 16, 1)
    np.testing.assert_array_equal(to_bytes(square).ravel(), values)
    images = np.random.default_rng(1).normal(0, 0.7, (2, 40, 40, 3)).astype(np.float32)
    np.testing.assert_array_equal(to_bytes(jnp.asarray(images)), to_uint8(images))
    read = to_uint8(images).astype(np.float32) / 127.5 - 1
    scores = reward.measure(images, PROMPTS[:2])["pickscore"]
    np.testing.assert_array_equal(scores, reward.measure(read, PROMPTS[:2])["pickscore"])


def test_many_images_are_scored_in_one_program_on_all_devices(clip, reward):
    """Weights are cut over some devices, images over all; on one device, 27 images are two chunks of one size."""
    images = clips.draw_images(27, 40, 40)
    prompts = [PROMPTS[index % 2] for index in range(27)]
    alone = load_reward(f"pickscore:{clip[0]}", Context())
    expected = alone.measure(images, prompts)["pickscore"]
    mesh = make_mesh(MeshSettings(data=4, fsdp=2))
    spread = load_reward(f"pickscore:{clip[0]}", Context(mesh=mesh))
    np.testing.assert_allclose(spread.measure(images, prompts)["pickscore"], expected, atol=2e-4)
    np.testing.assert_allclose(spread.embed(images), reward.embed(images), atol=1e-5)
    assert alone._score_finished._cache_size() == spread._score_finished._cache_size() == 1
    with jax.set_mesh(mesh):
        lowered = spread._score_finished.lower(spread.params, images[:8], spread.features(prompts[:8]))
    text = lowered.compile().as_text()
    assert "f32[1,32,32,3]" in text and "f32[8,32,32,3]" not in text  # a device prepares its own images only


def test_finished_images_and_prompts_are_measured_in_full_precision(reward):
    """TPUs and NVIDIA GPUs multiply float32 in fewer bits unless asked, which suffices inside a rollout."""
    reward = copy.copy(reward)
    reward.pixels = lambda images, side: images  # Pillow's resize is exact in any precision
    images = jnp.zeros((2, clips.SIDE, clips.SIDE, 3))
    ids = jnp.asarray(reward.tokenize(PROMPTS[:2]))
    text = jnp.asarray(reward.features(PROMPTS[:2]))
    of_prompts = precisions(lambda params: clip_score._encode_texts(reward.clip, params, ids), reward.params)
    of_scores = precisions(reward._score_finished, reward.params, images, text)
    of_features = precisions(reward._embed, reward.params, images)
    assert set(of_prompts) == {("dot_general", FULL)}
    assert set(of_scores) == set(of_features) == {("dot_general", FULL), ("conv_general_dilated", FULL)}
    in_a_rollout = precisions(reward.score, reward.params, images, text, jnp.zeros(2, jnp.int32))
    assert set(in_a_rollout) == {("dot_general", None), ("conv_general_dilated", None)}


def test_any_number_of_prompts_needs_few_programs(reward, monkeypatch):
    """Each is encoded as if it were alone; counts from 17 to 32 share a program, and larger ones that of 64."""
    prompts = [f"a red star {number}" for number in range(70)]
    shapes = set()
    encode = clip_score._encode_texts

    def encode_and_note(clip, params, ids):
        shapes.add(len(ids))
        return encode(clip, params, ids)

    monkeypatch.setattr(clip_score, "_encode_texts", encode_and_note)
    whole = reward.features(prompts)
    assert whole.shape == (70, 24) and shapes == {64}
    for count in (1, 17, 30):
        np.testing.assert_allclose(reward.features(prompts[:count]), whole[:count], atol=1e-5)
    assert shapes == {1, 32, 64}


def test_an_abstract_reward_has_the_shapes_of_the_loaded_one(clip, reward):
    abstract = load_reward(f"pickscore:{clip[0]}", Context(abstract=True))
    assert jax.tree.map(lambda x: (x.shape, x.dtype), abstract.params) == jax.tree.map(
        lambda x: (x.shape, x.dtype), reward.params
    )
    row = reward.features(PROMPTS[:1])
    assert (abstract.feature_shapes().shape, abstract.feature_shapes().dtype) == (row.shape, row.dtype)
    published, path = clip_network("", Context(abstract=True), pickscore.PUBLISHED)  # needs no network
    assert path is None and published.config == CLIPConfig.from_dict(CLIP_H)


def test_what_is_published_comes_from_the_hub(clip, monkeypatch, tmp_path):
    """Model and tokenizer have ids of their own; a tokenizer of the model's takes precedence."""
    bare = tmp_path / "bare"
    bare.mkdir()
    for name in ("config.json", "model.safetensors"):
        shutil.copy(clip[0] / name, bare)
    asked = []

    def resolve(name, allow_patterns=None):
        asked.append(str(name))
        return clips.TOKENIZER if "CLIP-ViT-H" in str(name) else bare

    monkeypatch.setattr(hub, "resolve", resolve)
    load_reward("pickscore", Context())
    assert asked == ["yuvalkirstain/PickScore_v1", "laion/CLIP-ViT-H-14-laion2B-s32B-b79K"]
    shutil.copytree(clips.TOKENIZER, bare / "processor")
    load_reward("pickscore", Context())
    assert asked[2:] == ["yuvalkirstain/PickScore_v1"]


# Weights


def test_one_file_is_enough_and_torchs_is_read(clip, reward, folder):
    """Beside it are its config and its tokenizer."""
    state = {name: torch.from_numpy(value) for name, value in load_file(folder / "model.safetensors").items()}
    torch.save(state, folder / "pickscore.pt")
    (folder / "model.safetensors").unlink()
    images = clips.draw_images(2, 40, 40)
    again = load_reward(f"pickscore:{folder}/pickscore.pt", Context()).measure(images, PROMPTS[:2])
    np.testing.assert_array_equal(again["pickscore"], reward.measure(images, PROMPTS[:2])["pickscore"])


def test_weights_of_16_bits_are_computed_in_32(clip, folder):
    """As transformers does if it is not told otherwise; positions that old versions saved are no weights."""
    half = {name: value.astype(np.float16) for name, value in load_file(folder / "model.safetensors").items()}
    positions = {f"{tower}_model.embeddings.position_ids": np.arange(17)[None] for tower in ("text", "vision")}
    save_file(half | positions, folder / "model.safetensors", metadata={"format": "pt"})
    reward = load_reward(f"pickscore:{folder}", Context())
    assert {x.dtype for x in jax.tree.leaves(reward.params) if x.ndim} == {np.dtype(np.float32)}
    theirs = clips.write_clip(folder.parent / "again").half().float()
    images = clips.draw_images(2, 40, 40)
    text, image = clips.features(theirs, clips.tokens(folder, PROMPTS[:2]), clips.processed(images))
    scale = np.exp(np.float32(half["logit_scale"]))
    expected = scale * (text * image).sum(1)
    np.testing.assert_allclose(reward.measure(images, PROMPTS[:2])["pickscore"], expected, atol=2e-4)


def refused(spec, message, *acts):
    """Whether loading ends in one line; with ``check_reward``, whether the check before does as well."""
    for act in (load_reward, *acts):
        with pytest.raises(UserError, match=message) as error:
            act(spec, Context())
        assert "\n" not in str(error.value)


def test_every_weight_has_to_be_there_and_no_other(folder):
    change(folder, **{"visual_projection/weight": None, "visual_projection/bias": np.ones(24, np.float32)})
    refused(f"pickscore:{folder}", "1 missing: visual_projection.weight; 1 unknown: visual_projection.bias; check")


@pytest.mark.parametrize(
    ("tensors", "what"),
    [
        ({"visual.proj": (4, 4), "positional_embedding": (4,)}, "a CLIP of open_clip, such as HPSv2"),
        ({"blip.visual_encoder.cls_token": (1, 1, 4), "mlp.layers.0.weight": (4, 4)}, "an ImageReward"),
        ({"layers.0.weight": (4, 4), "layers.0.bias": (4,)}, "the head of LAION's aesthetic predictor"),
    ],
)
def test_weights_of_another_reward_are_named(folder, tensors, what):
    arrays = {name: np.ones(shape, np.float32) for name, shape in tensors.items()}
    save_file(arrays, folder / "model.safetensors", metadata={"format": "pt"})
    refused(f"pickscore:{folder}", f"is {what}: expected a CLIP$", check_reward)


def test_a_preference_model_is_no_pickscore_and_the_other_way_round(folder):
    refused(f"pickscore:{ASSETS}/spm", "is a step-aware preference model: expected a CLIP", check_reward)
    refused(f"spm:{folder}", f"{folder} is a CLIP: expected a step-aware preference model")


def test_a_truncated_file_is_refused(folder):
    whole = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    refused(f"pickscore:{folder}", f"cannot read {folder}/model.safetensors as safetensors", check_reward)


@pytest.mark.parametrize("vocabulary", [568, 570])
def test_the_tokenizer_of_another_model_is_refused(tmp_path, vocabulary):
    """In both directions: tokens that the model does not know, and tokens that it never sees."""
    clips.write_clip(tmp_path, vocabulary=vocabulary)
    refused(f"pickscore:{tmp_path}", f"this tokenizer has 569 tokens, but .* has vocab_size = {vocabulary}: they")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: (folder / "model.safetensors").unlink(), "holds no weights: expected model.safetensors, found"),
        (lambda folder: (folder / "config.json").unlink(), "expected a preference model or a CLIP, with config.json"),
        (lambda folder: shutil.rmtree(folder), "no such file or folder: "),
    ],
)
def test_missing_files_are_found_by_the_check(folder, damage, message):
    check_reward(f"pickscore:{folder}", Context())
    damage(folder)
    with pytest.raises(UserError, match=message):
        check_reward(f"pickscore:{folder}", Context())


def test_a_file_that_is_no_weights_is_found_by_the_check(folder):
    with pytest.raises(UserError, match="config.json: expected a .safetensors, .bin, .pt, .pth or .ckpt file"):
        check_reward(f"pickscore:{folder}/config.json", Context())
