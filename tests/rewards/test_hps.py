"""HPS v2 and v2.1 from files in open_clip's layout, against open_clip's network and torch's resizes.

Scores differ by 1e-4 of 100: pixels are resized in another order of sums.
"""

import dataclasses
import json
import shutil

import jax
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch.nn import functional

from spo_jax.core.errors import UserError
from spo_jax.core.images import to_uint8
from spo_jax.data.original_tokenizer import open_tokenizer
from spo_jax.rewards import check_reward, load_reward
from spo_jax.rewards.base import Context
from spo_jax.rewards.common import hps
from spo_jax.rewards.common.clip_score import CLIP_MEAN, CLIP_STD
from spo_jax.toy.tokenizer import write_tokenizer
from tests.support.open_clip_networks import CONFIG, write_hps

PROMPTS = ["a red star", "it’s a blue moon", "", "green heart " * 60]
SIDE = CONFIG["vision_cfg"]["image_size"]
FILE = "HPS_v2.1_compressed.pt"


@pytest.fixture(scope="module")
def network(tmp_path_factory):
    folder = tmp_path_factory.mktemp("hps")
    network = write_hps(folder)
    network.folder = folder
    return network


@pytest.fixture
def folder(network, tmp_path):
    return shutil.copytree(network.folder, tmp_path / "hps")


@pytest.fixture(scope="module")
def images():
    """Images [b h w 3] with values beyond [-1, 1], wider than high, 31 pixels longer than the crop once resized."""
    return np.random.default_rng(0).normal(0, 0.7, (4, 60, 126, 3)).astype(np.float32)


def original_pixels(images, mode):
    """HPSv2's transform in torch: bytes to a tensor, the resize, torchvision's crop; nothing is clipped."""
    size = (SIDE, int(SIDE * images.shape[2] / images.shape[1]))
    uint8 = to_uint8(images)
    if mode == "pil":
        small = np.stack([Image.fromarray(image).resize(size[::-1], Image.Resampling.BICUBIC) for image in uint8])
        x = torch.from_numpy(small).permute(0, 3, 1, 2) / 255
    else:
        x = torch.from_numpy(uint8).permute(0, 3, 1, 2) / 255
        x = functional.interpolate(x, size, mode="bicubic", align_corners=False, antialias=mode == "antialias")
    left = round((size[1] - SIDE) / 2)
    mean, std = (torch.tensor(x).reshape(3, 1, 1) for x in (CLIP_MEAN, CLIP_STD))
    return (x[..., left : left + SIDE] - mean) / std


@pytest.fixture(scope="module")
def rewards(network):
    specs = ("hpsv21", "hpsv21@antialias", "hpsv21@no_antialias", "hpsv21@pil")
    return {spec: load_reward(f"{spec}:{network.folder}", Context()) for spec in specs}


@pytest.fixture(scope="module")
def scores(rewards, images):
    return {spec: reward.measure(images, PROMPTS) for spec, reward in rewards.items()}


@pytest.mark.parametrize("mode", ["antialias", "no_antialias", "pil"])
def test_the_score_is_100_times_the_cosine_of_open_clip(network, images, rewards, scores, mode):
    ids = torch.from_numpy(open_tokenizer(network.folder, "open_clip")(PROMPTS))
    expected = 100 * (network.encode_image(original_pixels(images, mode)) * network.encode_text(ids)).sum(-1)
    found = scores[f"hpsv21@{mode}"]
    assert found.keys() == rewards[f"hpsv21@{mode}"].meanings.keys() == {f"hpsv21_{mode}"}
    np.testing.assert_allclose(found[f"hpsv21_{mode}"], expected, atol=1e-2)


def test_variants_differ_and_the_default_is_antialiased(scores):
    default = scores["hpsv21"]["hpsv21"]
    np.testing.assert_array_equal(default, scores["hpsv21@antialias"]["hpsv21_antialias"])
    assert np.abs(default - scores["hpsv21@no_antialias"]["hpsv21_no_antialias"]).max() > 0.1
    assert np.abs(default - scores["hpsv21@pil"]["hpsv21_pil"]).max() > 1e-3


def test_images_have_the_features_of_open_clip(network, images, rewards):
    theirs = network.encode_image(original_pixels(images, "antialias"))
    np.testing.assert_allclose(rewards["hpsv21"].embed(images), theirs, atol=1e-4)


def test_v2_is_read_from_half_precision_and_computed_in_float32(tmp_path, images):
    network = write_hps(tmp_path / "v2", "HPS_v2_compressed.pt", torch.float16)
    reward = load_reward(f"hpsv2:{tmp_path / 'v2'}", Context())
    ids = torch.from_numpy(open_tokenizer(tmp_path / "v2", "open_clip")(PROMPTS))
    expected = 100 * (network.encode_image(original_pixels(images, "antialias")) * network.encode_text(ids)).sum(-1)
    np.testing.assert_allclose(reward.measure(images, PROMPTS)["hpsv2"], expected, atol=1e-2)
    assert "HPS v2: 100 · cos" in reward.meanings["hpsv2"]


def test_an_abstract_reward_has_the_shapes_of_the_loaded_one(network, rewards):
    loaded = rewards["hpsv21"]
    abstract = load_reward(f"hpsv21:{network.folder}", Context(abstract=True))
    shapes = jax.tree.map(lambda x: (x.shape, x.dtype), loaded.params)
    assert jax.tree.map(lambda x: (x.shape, x.dtype), abstract.params) == shapes
    assert abstract.feature_shapes() == loaded.feature_shapes()


def test_an_abstract_source_that_is_not_here_needs_no_files(monkeypatch):
    published = hps.PUBLISHED_SIZES
    assert published.vision.num_hidden_layers == 32 and published.vision.patch_size == 14
    towers = {name: dataclasses.replace(getattr(published, name), num_hidden_layers=1) for name in ("text", "vision")}
    monkeypatch.setattr(hps, "PUBLISHED_SIZES", dataclasses.replace(published, **towers))
    assert load_reward("hpsv21", Context(abstract=True)).feature_shapes().shape == (1, 1024)


@pytest.mark.slow
def test_a_source_that_is_not_here_has_the_published_sizes():
    reward = load_reward("hpsv21", Context(abstract=True))
    assert reward.feature_shapes().shape == (1, 1024)
    assert reward.clip.config.vision.num_hidden_layers == 32 and reward.clip.config.vision.patch_size == 14


def test_files_of_the_hub_are_named_like_the_published_ones(folder):
    """A file may have any name but that of the other version; the tokenizer may lie in its folder."""
    (folder / FILE).rename(folder / "mine.pt")
    shutil.rmtree(folder / "tokenizer", ignore_errors=True)
    (folder / "bpe_simple_vocab_16e6.txt.gz").unlink()
    write_tokenizer(folder / "tokenizer")
    config = json.loads((folder / "tokenizer" / "tokenizer_config.json").read_text())
    (folder / "tokenizer" / "tokenizer_config.json").write_text(json.dumps(config | {"model_max_length": 77}))
    for name in ("hpsv2", "hpsv21"):
        check_reward(f"{name}:{folder / 'mine.pt'}", Context())
        assert load_reward(f"{name}:{folder / 'mine.pt'}", Context()).tokenize(["a red star"]).shape == (1, 77)


def rewrite(change):
    """Returns a function that changes the state dict of a folder's file."""

    def damage(folder):
        state = torch.load(folder / FILE)["state_dict"]
        change(state)
        torch.save({"state_dict": state}, folder / FILE)

    return damage


def transformers_layout(folder):
    torch.save({"text_model.final_layer_norm.weight": torch.ones(2)}, folder / FILE)


def other_tokenizer(folder):
    (folder / "bpe_simple_vocab_16e6.txt.gz").unlink()
    write_tokenizer(folder)
    file = folder / "tokenizer.json"
    content = json.loads(file.read_text())
    content["model"]["vocab"]["<|endoftext|>"] += 1
    content["added_tokens"][1]["id"] += 1
    content["post_processor"]["sep"][1] += 1
    file.write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: (folder / FILE).write_bytes((folder / FILE).read_bytes()[:9000]), "damaged or cut off"),
        (transformers_layout, "HPS_v2.1_compressed.pt is a CLIP: expected a CLIP of open_clip, such as HPSv2"),
        (rewrite(lambda state: state.pop("visual.proj")), "1 missing: visual_projection.weight"),
        (rewrite(lambda state: state.update({"visual.more.weight": torch.ones(2)})), "1 unknown: visual.more.weight"),
        (
            rewrite(lambda state: state.update({"visual.transformer.resblocks.0.attn.in_proj_bias": torch.ones(71)})),
            "3 missing: vision_model.encoder.layers.0.self_attn.k_proj.bias, .*1 unknown: .*in_proj_bias",
        ),
        (rewrite(lambda state: state.update({"text_projection": torch.ones(12, 16)})), "1 of another shape or type"),
        (other_tokenizer, "this tokenizer has .* tokens, but .*HPS_v2.1_compressed.pt has .*different models"),
        (lambda folder: (folder / "ViT-H-14.json").unlink(), "this tokenizer has .* but .* has vocab_size = 49408"),
        (lambda folder: (folder / "bpe_simple_vocab_16e6.txt.gz").unlink(), "HPS_v2.1_compressed.pt is no tokenizer"),
    ],
    ids=[
        "truncated", "PickScore", "missing", "unknown", "fused", "shape", "other tokenizer", "no config",
        "no tokenizer",
    ],
)  # fmt: skip
def test_bad_files_are_refused_in_one_line(folder, damage, message):
    damage(folder)
    with pytest.raises(UserError, match=message) as error:
        load_reward(f"hpsv21:{folder}", Context())
    assert "\n" not in str(error.value) and str(folder) in str(error.value)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("hpsv2:{folder}", "a folder without a model: expected a folder with HPS_v2_compressed.pt"),
        (
            "hpsv2:{folder}/HPS_v2.1_compressed.pt",
            "has the name of the weights of HPS v2.1: expected HPS v2, or name it ",
        ),
        (
            "hpsv21:xswu/HPSv2/HPS_v2_compressed.pt",
            "has the name of the weights of HPS v2: expected HPS v2.1, or name ",
        ),
        ("hpsv21:{folder}/none.pt", "no such file or folder"),
        ("hpsv21:{folder}/ViT-H-14.json", "expected a .safetensors"),
        ("hpsv21@bilinear:{folder}", "expected hpsv21, hpsv21@antialias, hpsv21@no_antialias, hpsv21@pil"),
    ],
)
def test_mistakes_are_found_without_reading_weights(network, spec, message):
    with pytest.raises(UserError, match=message) as error:
        check_reward(spec.format(folder=network.folder), Context())
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda config: config.pop("text_cfg"), "ViT-H-14.json: text_cfg is missing"),
        (
            lambda config: config["vision_cfg"].update(timm_model_name="x"),
            "timm_model_name is not a field of OpenCLIPV",
        ),
        (lambda config: config["vision_cfg"].update(head_width=7), "head_width = 7 is not implemented for 24 channels"),
        (lambda config: config["text_cfg"].update(heads=0), "heads = 0: expected 1 to"),
        (lambda config: config.update(embed_dim="12"), "embed_dim = '12': expected"),
    ],
)
def test_a_config_beside_the_weights_is_read_strictly(folder, change, message):
    config = json.loads((folder / "ViT-H-14.json").read_text())
    change(config)
    (folder / "ViT-H-14.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=message) as error:
        check_reward(f"hpsv21:{folder}", Context())
    assert "\n" not in str(error.value)


def test_a_config_of_the_hub_and_weights_in_safetensors_are_read(network, folder, rewards):
    """open_clip's repositories have the model config in a field."""
    config = json.loads((folder / "ViT-H-14.json").read_text())
    (folder / "ViT-H-14.json").unlink()
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": config, "preprocess_cfg": {}}))
    save_file(network.state_dict(), folder / "hps.safetensors")
    reward = load_reward(f"hpsv21:{folder / 'hps.safetensors'}", Context())
    jax.tree.map(np.testing.assert_array_equal, reward.params, rewards["hpsv21"].params)


def test_a_checkpoint_of_training_on_several_devices_is_read(network, folder, rewards):
    """torch's wrapper puts a prefix before every name, and old versions of open_clip write the causal mask."""
    mask = torch.full((77, 77), float("-inf")).triu(1)
    state = {f"module.{name}": x for name, x in {**network.state_dict(), "attn_mask": mask}.items()}
    torch.save({"state_dict": state, "epoch": 3, "optimizer": {"param_groups": []}}, folder / FILE)
    check_reward(f"hpsv21:{folder}", Context())
    reward = load_reward(f"hpsv21:{folder}", Context())
    jax.tree.map(np.testing.assert_array_equal, reward.params, rewards["hpsv21"].params)
