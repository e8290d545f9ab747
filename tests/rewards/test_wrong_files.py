"""Files that are not those of a reward: each is refused by its name before anything is loaded or fetched."""

import shutil
from pathlib import Path

import pytest

from benchmarks.reward_models import FAMILIES, make_peer, write_reward
from spo_jax import toy
from spo_jax.core.errors import UserError
from spo_jax.rewards import check_reward
from spo_jax.rewards.base import Context

WEIGHTS = {
    "pickscore": "model.safetensors",
    "aesthetic": "sac+logos+ava1-l14-linearMSE.pth",
    "hpsv21": "HPS_v2.1_compressed.pt",
    "image_reward": "ImageReward.pt",
}
CALLED = {
    "pickscore": "a CLIP",
    "aesthetic": "the head of LAION's aesthetic predictor",
    "hpsv21": "a CLIP of open_clip, such as HPSv2",
    "image_reward": "an ImageReward",
}
PAIRS = [(reward, other) for reward in WEIGHTS for other in WEIGHTS if reward != other]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A folder for each reward, as it is published."""
    folder = tmp_path_factory.mktemp("rewards")
    for name in WEIGHTS:
        write_reward(name, "tiny", make_peer(name, "tiny"), folder / name)
    return folder


def _refusal(spec):
    with pytest.raises(UserError) as caught:
        check_reward(spec, Context())
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("name", WEIGHTS)
def test_the_right_files_are_accepted(folders, name):
    check_reward(f"{name}:{folders / name}", Context())
    if name != "pickscore":  # a file alone is of the published size
        check_reward(f"{name}:{folders / name / WEIGHTS[name]}", Context())


@pytest.mark.parametrize(("name", "other"), PAIRS)
def test_weights_of_another_reward_are_named(folders, name, other):
    file = folders / other / WEIGHTS[other]
    assert _refusal(f"{name}:{file}") == f"{file} is {CALLED[other]}: expected {CALLED[name]}"


@pytest.mark.parametrize("name", WEIGHTS)
def test_a_damaged_file_is_named(folders, tmp_path, name):
    folder = shutil.copytree(folders / name, tmp_path / name)
    file = folder / WEIGHTS[name]
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    message = _refusal(f"{name}:{folder}")
    assert str(file) in message and "it is damaged or cut off; fetch it again" in message


@pytest.mark.parametrize("name", FAMILIES)
def test_a_pipeline_a_missing_file_and_a_wrong_suffix_are_named(tmp_path, name):
    pipeline = toy.ASSETS / "pipeline"
    assert str(pipeline) in _refusal(f"{name}:{pipeline}")
    assert _refusal(f"{name}:{tmp_path}/absent.pt").startswith(f"no such file or folder: {tmp_path}/absent.pt")
    (Path(tmp_path) / "weights.txt").write_text("")
    assert "expected a .safetensors, .bin" in _refusal(f"{name}:{tmp_path}/weights.txt")
