"""LAION's aesthetic score against torch, where its files lie, and mistakes in naming them. 1e-5 of the scores."""

import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from spo_jax.core.errors import UserError
from spo_jax.rewards import check_reward, load_reward
from spo_jax.rewards.base import Context
from spo_jax.rewards.common.aesthetic_files import find_files
from spo_jax.weights import hub
from tests.rewards import clips

HEAD = "sac+logos+ava1-l14-linearMSE.pth"
WIDTH = 24


def write_head(path, width: int = WIDTH) -> torch.nn.Module:
    """Writes a head with random weights, and returns torch's network."""
    torch.manual_seed(width)
    linear, dropout = torch.nn.Linear, torch.nn.Dropout
    layers = torch.nn.Sequential(
        linear(width, 1024),
        dropout(),
        linear(1024, 128),
        dropout(),
        linear(128, 64),
        dropout(),
        linear(64, 16),
        linear(16, 1),
    )
    torch.save({f"layers.{name}": value for name, value in layers.state_dict().items()}, path)
    return layers.eval().requires_grad_(False)


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A folder with head and CLIP, and torch's networks."""
    folder = tmp_path_factory.mktemp("aesthetic")
    theirs = clips.write_clip(folder / "clip", WIDTH, "quick_gelu")
    return folder, theirs, write_head(folder / HEAD)


def test_scores_are_those_of_torch_and_no_prompt_matters(small):
    folder, theirs, layers = small
    images = clips.draw_images(3, 40, 43)
    _, features = clips.features(theirs, torch.tensor([[567, 568]]), clips.processed(images))
    expected = layers.double()(torch.from_numpy(features).double())[:, 0].numpy()
    reward = load_reward(f"aesthetic:{folder}", Context())
    assert reward.meanings.keys() == {"laion_aesthetic"}
    scores = reward.measure(images, ["a", "b", "c"])["laion_aesthetic"]
    np.testing.assert_allclose(scores, expected, rtol=1e-5)
    np.testing.assert_array_equal(scores, reward.measure(images, ["x"] * 3)["laion_aesthetic"])
    np.testing.assert_allclose(reward.embed(images), features, atol=1e-5)
    assert "text_model" not in reward.params


def test_the_crops_differ_where_the_longer_side_is_odd_by_three(small):
    """The offset is 1.5 pixels there, of which one rule makes 1 and the other 2; that of others is the same."""
    rewards = [load_reward(f"aesthetic{variant}:{small[0]}", Context()) for variant in ("", "@openai")]
    assert [list(reward.meanings) for reward in rewards] == [["laion_aesthetic"], ["laion_aesthetic_openai"]]
    image = jnp.broadcast_to(
        jnp.linspace(-1, 1, clips.SIDE + 3).reshape(1, 1, -1, 1), (1, clips.SIDE, clips.SIDE + 3, 3)
    )
    of_transformers, of_openai = (reward.pixels(image, clips.SIDE) for reward in rewards)
    np.testing.assert_array_equal(of_transformers[:, :, 1:], of_openai[:, :, :-1])
    of_transformers, of_openai = (reward.pixels(image[:, :, :-1], clips.SIDE) for reward in rewards)
    np.testing.assert_array_equal(of_transformers, of_openai)


def test_where_head_and_clip_lie(small, tmp_path):
    """In one folder, or the head alone, to which the published CLIP belongs."""
    folder = small[0]
    both = (str(folder / HEAD), str(folder / "clip"))
    assert find_files(str(folder)) == find_files(str(folder / HEAD)) == both
    published = "openai/clip-vit-large-patch14"
    assert find_files("") == ("trl-lib/ddpo-aesthetic-predictor/aesthetic-model.pth", published)
    assert find_files("owner/name/head.pth") == ("owner/name/head.pth", published)
    shutil.copy(folder / HEAD, tmp_path)
    assert find_files(str(tmp_path)) == (str(tmp_path / HEAD), published)


def test_the_published_files_come_from_the_hub(small, monkeypatch):
    folder = small[0]
    asked = []

    def resolve(name, allow_patterns=None):
        asked.append((name, allow_patterns))
        return folder / "clip" if name.startswith("openai") else folder

    monkeypatch.setattr(hub, "resolve", resolve)
    shutil.copy(folder / HEAD, folder / "aesthetic-model.pth")
    load_reward("aesthetic", Context())
    (folder / "aesthetic-model.pth").unlink()
    head = ("trl-lib/ddpo-aesthetic-predictor", ["aesthetic-model.pth"])
    assert asked == [head, ("openai/clip-vit-large-patch14", None)]  # the small file first


def test_an_abstract_reward_has_the_shapes_of_the_loaded_one(small):
    loaded = load_reward(f"aesthetic:{small[0]}", Context())
    abstract = load_reward(f"aesthetic:{small[0]}", Context(abstract=True))
    shapes = [jax.tree.map(lambda x: (x.shape, x.dtype), reward.params) for reward in (loaded, abstract)]
    assert shapes[0] == shapes[1]
    assert loaded.feature_shapes() is abstract.feature_shapes() is None


# Mistakes


@pytest.fixture
def folder(small, tmp_path):
    """A copy of head and CLIP, to be damaged."""
    return shutil.copytree(small[0], tmp_path / "aesthetic")


def refused(folder, message, *acts):
    """Whether loading ends in one line, or what is given in its place."""
    for act in acts or (load_reward,):
        with pytest.raises(UserError, match=message) as error:
            act(f"aesthetic:{folder}", Context())
        assert "\n" not in str(error.value)


def test_the_check_finds_what_is_missing(folder):
    check_reward(f"aesthetic:{folder}", Context())
    shutil.copy(folder / HEAD, folder / "other.pth")
    refused(folder, "expected one file with the head of the aesthetic predictor, found other.pth, sac", check_reward)
    (folder / "other.pth").unlink()
    (folder / "clip" / "model.safetensors").unlink()
    refused(folder, "clip holds no weights: expected model.safetensors", check_reward)
    (folder / HEAD).unlink()
    refused(folder, "expected one file with the head of the aesthetic predictor, found none", check_reward)
    refused(
        "owner/name", "owner/name: expected a file, the head of the aesthetic predictor: OWNER/NAME/FILE", check_reward
    )


def test_a_head_of_another_clip_is_refused(folder):
    write_head(folder / HEAD, WIDTH + 1)
    refused(folder, r"of another shape or type: layers.0.weight float32\(1024, 25\), expected \(1024, 24\)")


def test_other_heads_are_refused(folder):
    torch.save({"weight": torch.zeros(1, WIDTH), "bias": torch.zeros(1)}, folder / HEAD)
    refused(folder, "10 missing: layers.0.bias.*2 unknown: bias, weight")


def test_a_clip_in_place_of_the_head_is_refused(folder):
    (folder / HEAD).unlink()
    shutil.copy(folder / "clip" / "model.safetensors", folder / "head.safetensors")
    refused(folder, "head.safetensors is a CLIP: expected the head of LAION's aesthetic", check_reward, load_reward)


def test_a_truncated_head_is_refused(folder):
    whole = (folder / HEAD).read_bytes()
    (folder / HEAD).write_bytes(whole[: len(whole) // 2])
    refused(folder, "linearMSE.pth is not a torch zip file", check_reward, load_reward)
