"""ImageReward against transformers' BLIP with the original's head, from images and prompts to scores.

The tolerance is 1e-4 of the largest score: both sides are float32, and the original does not fold its head.
"""

import shutil
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from PIL import Image

from spo_jax.core.errors import UserError
from spo_jax.nn.blip import BLIP
from spo_jax.nn.blip_config import BLIPConfig
from spo_jax.nn.shapes import blip_shapes
from spo_jax.parallel.mesh import make_mesh
from spo_jax.rewards import check_reward, load_reward
from spo_jax.rewards.base import Context, Reward
from spo_jax.rewards.common.affine_head import head_shapes
from spo_jax.rewards.common.clip_score import CLIP_MEAN, CLIP_STD
from spo_jax.weights import rules
from tests.support.torch_blip import CONFIG, WORDS, TorchImageReward, write_image_reward

PROMPTS = ["a red star", "Blue stars on the [MASK] sea.", "a unicorn", "", "a red star " * 20]


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """The folder of a small ImageReward, the reward, and torch's network."""
    folder = tmp_path_factory.mktemp("rewards") / "imagereward"
    theirs = write_image_reward(folder)
    return SimpleNamespace(folder=folder, theirs=theirs, reward=load_reward(f"image_reward:{folder}", Context()))


def _images(height: int, width: int) -> np.ndarray:
    """Images whose values are bytes, as a file would hold them."""
    size = (len(PROMPTS), height, width, 3)
    return np.random.default_rng(0).integers(0, 256, size).astype(np.float32) / 127.5 - 1


def _pixels(image: np.ndarray, side: int) -> torch.Tensor:
    """The original's transform: Pillow's resize of the shorter side and a centre crop, then normalisation."""
    pil = Image.fromarray(np.round((image + 1) * 127.5).astype(np.uint8))
    width, height = pil.size
    scale = side / min(width, height)
    resized = pil.resize((int(width * scale), int(height * scale)), Image.Resampling.BICUBIC)
    left, top = (round((length - side) / 2) for length in resized.size)
    unit = np.asarray(resized.crop((left, top, left + side, top + side)), np.float32) / 255
    return torch.from_numpy((unit - np.float32(CLIP_MEAN)) / np.float32(CLIP_STD)).permute(2, 0, 1)


def test_scores_match_torch(small):
    """At this size, the offset of the crop is 3.5 pixels, which the original rounds to 4."""
    images = _images(20, 29)
    tokens = small.reward.features(PROMPTS)
    pixels = torch.stack([_pixels(image, CONFIG.vision.image_size) for image in images])
    ids, mask = (torch.from_numpy(tokens[name]).long() for name in ("ids", "mask"))
    expected = small.theirs(ids, mask, pixels).numpy()
    scores = small.reward.measure(images, PROMPTS)["image_reward"]
    assert np.abs(scores - expected).max() < 1e-4 * np.abs(expected).max()
    assert np.ptp(expected) > 0.1 * np.abs(expected).max()  # so prompts and images matter
    assert isinstance(small.reward, Reward) and small.reward.meanings.keys() == {"image_reward"}


def test_the_features_for_diversity_have_length_1(small):
    images = _images(16, 16)
    unit = small.reward.embed(images)
    pixels = torch.stack([_pixels(image, CONFIG.vision.image_size) for image in images])
    classes = small.theirs.vision(pixels).last_hidden_state[:, 0].numpy()
    np.testing.assert_allclose(unit, classes / np.linalg.norm(classes, axis=1, keepdims=True), atol=1e-5)


@pytest.mark.slow
def test_several_devices_give_the_same_scores(small):
    images = _images(16, 16)
    alone = small.reward.measure(images, PROMPTS)["image_reward"]
    together = load_reward(f"image_reward:{small.folder}", Context(mesh=make_mesh()))
    np.testing.assert_allclose(together.measure(images, PROMPTS)["image_reward"], alone, atol=1e-4)


def test_an_abstract_reward_has_the_shapes_of_the_loaded_one(small):
    def shapes(tree):
        return jax.tree.map(lambda x: (x.shape, jnp.dtype(x.dtype)), tree)

    context = Context(dtype=jnp.bfloat16)
    reward = load_reward(f"image_reward:{small.folder}", context)
    abstract = load_reward(f"image_reward:{small.folder}", Context(dtype=jnp.bfloat16, abstract=True))
    assert shapes(abstract.params) == shapes(reward.params)
    assert reward.params["head"]["kernel"].dtype == jnp.float32
    assert shapes(abstract.feature_shapes()) == shapes(reward.features(["a prompt"]))


def test_the_published_sizes_are_those_of_transformers():
    """Every weight of the network, key for key; neither side allocates them."""
    with torch.device("meta"):
        theirs = TorchImageReward(BLIPConfig(), 0.02).file_state()
    arrays = {name: np.broadcast_to(np.float32(0), tuple(value.shape)) for name, value in theirs.items()}
    shapes = {"blip": blip_shapes(BLIP(BLIPConfig())), "mlp": head_shapes(768)}
    rules.to_tree(arrays, shapes, "torch", ignore=[r"_proj\.(weight|bias)$", r"position_ids$"])


def test_it_can_judge_a_rollout_of_any_model():
    check_reward("image_reward", Context(field="spo.reward"), judges=True)


# Mistakes


@pytest.fixture
def folder(small, tmp_path):
    """A copy of the small ImageReward, to be damaged."""
    return shutil.copytree(small.folder, tmp_path / "imagereward")


def _change(folder, **changes) -> None:
    state = torch.load(folder / "ImageReward.pt", weights_only=True)
    for name, value in changes.items():
        state.pop(name.replace("/", ".")) if value is None else state.update({name.replace("/", "."): value})
    torch.save(state, folder / "ImageReward.pt")


def _refused(folder, message, check=False):
    act = check_reward if check else load_reward
    with pytest.raises(UserError, match=message) as error:
        act(f"image_reward:{folder}", Context())
    assert "\n" not in str(error.value)


def test_another_order_of_the_vocabulary_is_described(small, folder):
    def described():
        return load_reward(f"image_reward:{folder}", Context()).describe()

    assert described() == small.reward.describe()
    (vocabulary,) = folder.rglob("vocab.txt")
    lines = vocabulary.read_text().splitlines()
    vocabulary.write_text("\n".join([*lines[:-2], lines[-1], lines[-2]]) + "\n")
    assert described()["tokenizer"] != small.reward.describe()["tokenizer"]


def test_a_source_that_is_missing_or_something_else_is_refused_at_once(folder):
    (folder / "empty").mkdir()
    _refused(folder / "nothing", "no such file or folder: .*/nothing", check=True)
    _refused(folder / "empty", "empty is an empty folder: expected a folder with ImageReward.pt", check=True)
    _refused(folder / "med_config.json", "med_config.json: expected a .safetensors, .bin, .pt", check=True)
    (folder / "med_config.json").write_text('{"hidden_sise": 3}')
    _refused(folder, "med_config.json: hidden_sise is not a field of BertConfig: did you mean hidden_size", check=True)


def test_every_used_weight_has_to_be_there_and_every_other_one_is_known(folder):
    name = "blip.text_encoder.encoder.layer.1.crossattention.self.key.weight"
    _change(folder, **{name: None, "blip.itm_head.weight": torch.zeros(2, 3)})
    _refused(folder, f"ImageReward.pt: weights do not fit .* 1 missing: {name}; 1 unknown: blip.itm_head.weight;")
    _change(folder, **{"mlp.layers.2.weight": torch.zeros(128, 1000)})
    _refused(folder, r"mlp.layers.2.weight float32\(128, 1000\), expected \(128, 1024\)")


def test_what_is_known_and_not_used_may_be_missing(folder, small):
    names = ("blip.vision_proj.weight", "blip.text_proj.bias", "blip.text_encoder.embeddings.position_ids")
    _change(folder, **dict.fromkeys(names))
    reward = load_reward(f"image_reward:{folder}", Context())
    images = _images(16, 16)
    expected = small.reward.measure(images, PROMPTS)["image_reward"]
    np.testing.assert_array_equal(reward.measure(images, PROMPTS)["image_reward"], expected)


def test_the_weights_of_something_else_are_named(folder):
    torch.save({"text_model.x": torch.zeros(1)}, folder / "ImageReward.pt")
    _refused(folder, "ImageReward.pt holds the weights of a CLIP: expected ImageReward's")
    torch.save({"state_dict": {"visual.proj": torch.zeros(1)}}, folder / "ImageReward.pt")
    _refused(folder, "ImageReward.pt holds the weights of a CLIP of open_clip, such as HPSv2: expected ImageReward's")


def test_a_file_that_is_cut_off_is_refused(folder):
    content = (folder / "ImageReward.pt").read_bytes()
    (folder / "ImageReward.pt").write_bytes(content[: len(content) // 2])
    _refused(folder, "ImageReward.pt is not a torch zip file: it is damaged or cut off; fetch it again")


def test_another_tokenizer_is_refused(folder):
    vocabulary = folder / "bert-base-uncased" / "vocab.txt"
    vocabulary.write_text("\n".join([*WORDS, "one more"]) + "\n")
    _refused(folder, f"tokenizer has 18 tokens, .DEC. and .ENC. included, but .*ImageReward.pt has {len(WORDS) + 2}")
    shutil.rmtree(folder / "bert-base-uncased")
    # One clause says what is missing, and why the hub is asked.
    _refused(folder, r"beside .*ImageReward.pt is no tokenizer \(vocab.txt, there or in bert-base-uncased/\), so")
    _refused(folder, "so the published one is fetched: HF_HUB_OFFLINE is set")


def test_the_tokenizer_may_lie_among_the_weights(folder):
    shutil.move(folder / "bert-base-uncased" / "vocab.txt", folder / "vocab.txt")
    reward = load_reward(f"image_reward:{folder / 'ImageReward.pt'}", Context())
    assert reward.tokenizer.folder == folder
