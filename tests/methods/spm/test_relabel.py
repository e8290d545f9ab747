"""Scores of clean images equal transformers' from the same files; labels follow the rule at its edges.

Scores: 1e-5 of the largest one. Both sides compute in float32, pixels are equal to the bit before they are normalised,
and sums round in another order. On several devices the same holds.
"""

import dataclasses
import io
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from PIL import Image

from spo_jax.core.errors import UserError
from spo_jax.data.tokenizer import Tokenizer
from spo_jax.methods.spm import relabel
from spo_jax.methods.spm.relabel import clean_scores, new_labels
from spo_jax.parallel.mesh import make_mesh
from spo_jax.rewards.common.preference_model import load_plain_clip
from spo_jax.toy import ASSETS
from tests.support.pairs import noise_pairs
from tests.support.precisions import FULL, precisions

TOKENIZER = ASSETS / "spm" / "tokenizer"
PROMPTS = ("a red star", "a blue moon above a red star", "a green square")
SETTINGS = dict(pairs_per_device=2, threads=1)


@pytest.fixture(scope="module")
def theirs():
    """A tiny CLIPModel with random weights, biases and norms included."""
    torch.manual_seed(0)
    tower = dict(hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2)
    config = transformers.CLIPConfig(
        text_config=dict(**tower, vocab_size=569, max_position_embeddings=16, eos_token_id=568),
        vision_config=dict(**tower, image_size=14, patch_size=7),
        projection_dim=20,
    )
    model = transformers.CLIPModel(config).eval().requires_grad_(False)
    for parameter in model.parameters():
        if parameter.ndim == 1:
            parameter += 0.3 * torch.randn(parameter.shape)
    return model


@pytest.fixture(scope="module")
def folder(theirs, tmp_path_factory):
    folder = tmp_path_factory.mktemp("judge")
    theirs.save_pretrained(folder)
    shutil.copytree(TOKENIZER, folder, dirs_exist_ok=True)
    return folder


@pytest.fixture(scope="module")
def judge(folder):
    return load_plain_clip(folder)


@pytest.fixture(scope="module")
def pairs():
    return noise_pairs(5, 30, 41, PROMPTS)


@pytest.fixture(scope="module")
def scores(judge, pairs, tmp_path_factory):
    return clean_scores(tmp_path_factory.mktemp("scores"), pairs, judge, **SETTINGS)


def test_scores_are_transformers(theirs, judge, pairs, scores):
    processor = transformers.CLIPImageProcessorPil(size={"shortest_edge": 14}, crop_size={"height": 14, "width": 14})
    ids = judge.tokenizer(pairs.prompts)[pairs.prompt]
    expected = []
    for files, tokens in zip(pairs.files, ids, strict=True):
        images = [Image.open(io.BytesIO(data)) for data in files]
        pixels = torch.from_numpy(np.asarray(processor(images, return_tensors="np").pixel_values))
        found = theirs(input_ids=torch.from_numpy(tokens[None]).long(), pixel_values=pixels)
        expected.append(found.logits_per_text[0].numpy())
    assert scores.shape == (5, 2) and scores.dtype == np.float32
    assert np.abs(scores - expected).max() < 1e-5 * np.abs(expected).max()
    assert np.abs(scores[:, 0] - scores[:, 1]).min() > 1e-3  # so that a swapped pair would show


def test_eight_devices_give_the_same_scores(folder, pairs, scores, tmp_path):
    mesh = make_mesh()
    with jax.set_mesh(mesh):
        again = clean_scores(tmp_path, pairs, load_plain_clip(folder, mesh=mesh), pairs_per_device=1)
    assert np.abs(again - scores).max() < 1e-5 * np.abs(scores).max()


def test_images_are_encoded_in_full_precision(judge):
    """Labels are made once, and TPUs and NVIDIA GPUs multiply float32 in fewer bits unless asked."""
    images = jnp.zeros((2, 2, 14, 14, 3), jnp.uint8)
    found = precisions(lambda params: relabel._judge(judge.clip, params, images, jnp.zeros((2, 20))), judge.params)
    assert set(found) == {("dot_general", FULL), ("conv_general_dilated", FULL)}


def test_scores_are_kept(judge, pairs, tmp_path):
    first = clean_scores(tmp_path, pairs, judge, **SETTINGS)
    unreadable = dataclasses.replace(pairs, files=[(b"", b"")] * 5)
    np.testing.assert_array_equal(clean_scores(tmp_path, unreadable, judge, **SETTINGS), first)


def test_scores_of_other_data_or_another_model_are_refused(judge, pairs, tmp_path):
    clean_scores(tmp_path, pairs, judge, **SETTINGS)
    with pytest.raises(UserError, match="preferences is in memory there and other here"):
        clean_scores(tmp_path, dataclasses.replace(pairs, digest="other"), judge)
    params = {**judge.params, "logit_scale": judge.params["logit_scale"] + 1}
    with pytest.raises(UserError, match="preference model is [0-9a-f]{16} there"):
        clean_scores(tmp_path, pairs, dataclasses.replace(judge, params=params))


def test_scores_of_another_model_with_the_same_weights_are_refused(judge, pairs, tmp_path):
    clean_scores(tmp_path, pairs, judge, **SETTINGS)
    config = judge.clip.config
    text = dataclasses.replace(config.text, hidden_act="gelu")
    clip = judge.clip.clone(config=dataclasses.replace(config, text=text))
    with pytest.raises(UserError, match="config of the preference model.text.hidden_act is quick_gelu there and"):
        clean_scores(tmp_path, pairs, dataclasses.replace(judge, clip=clip))

    class Other(Tokenizer):
        def __call__(self, prompts):
            return super().__call__([f"{prompt} star" for prompt in prompts])

    with pytest.raises(UserError, match="tokens of the prompts is [0-9a-f]{16} there"):
        clean_scores(tmp_path, pairs, dataclasses.replace(judge, tokenizer=Other(TOKENIZER)))


def test_scores_that_are_not_finite_are_refused(judge, pairs, tmp_path):
    params = {**judge.params, "logit_scale": jnp.float32(np.inf)}
    with pytest.raises(UserError, match="the scores of pair 0 are .*use float32"):
        clean_scores(tmp_path, pairs, dataclasses.replace(judge, params=params), **SETTINGS)


def test_a_step_aware_model_does_not_judge_clean_images(toy, pairs, tmp_path):
    with pytest.raises(UserError, match="plain CLIP such as PickScore; this one is time-conditioned"):
        clean_scores(tmp_path, pairs, toy.spm)


def test_a_tokenizer_from_elsewhere(folder, tmp_path):
    for name in ("config.json", "model.safetensors"):
        shutil.copy(folder / name, tmp_path)
    with pytest.raises(UserError, match="no tokenizer beside .* with --config.relabel.tokenizer"):
        load_plain_clip(tmp_path, flag="--config.relabel.tokenizer")
    assert load_plain_clip(tmp_path, tokenizer=TOKENIZER).tokenizer.length == 16


def gap_of(difference):
    """The gap of scores at which the probabilities differ by ``difference``."""
    return 2 * np.arctanh(difference)


def test_the_rule_at_its_edges():
    """0.1 itself is a tie; 1e-5 is more than float32 loses of scores near 20."""
    gaps = [gap_of(0.1) + 1e-5, gap_of(0.1) - 1e-5, 0.0, -gap_of(0.1) + 1e-5, -gap_of(0.1) - 1e-5, 50.0]
    scores = np.stack([np.asarray(gaps) + 20, np.full(6, 20)], axis=1).astype(np.float32)
    expected = [(1, 0), (0.5, 0.5), (0.5, 0.5), (0.5, 0.5), (0, 1), (1, 0)]
    np.testing.assert_array_equal(new_labels(scores), np.asarray(expected, np.float32))


def test_labels_are_those_of_the_softmax():
    scores = np.random.default_rng(0).normal(21, 0.3, (500, 2)).astype(np.float32)
    p = torch.softmax(torch.from_numpy(scores), dim=-1).numpy()
    gap = p[:, 0] - p[:, 1]
    labels = new_labels(scores, margin=0.2)
    assert labels.dtype == np.float32
    np.testing.assert_array_equal(labels[:, 0] - labels[:, 1], np.where(np.abs(gap) > 0.2, np.sign(gap), 0))
    assert {tuple(label) for label in labels} == {(1, 0), (0, 1), (0.5, 0.5)}


def test_no_margin_leaves_only_equal_scores_as_ties():
    scores = np.asarray([[1, 1], [1, np.nextafter(np.float32(1), 2)]], np.float32)
    np.testing.assert_array_equal(new_labels(scores, margin=0.0), [[0.5, 0.5], [0, 1]])
