"""A reward, a method and a source of pairs from a folder outside the package, named by dotted paths.

The rewards are those of docs/development.md; the method and the source are in ``house/``. They are used through the
package's Python functions, as a notebook would use them, on models with random weights.
"""

import re
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.numpy import load_file

import spo_jax
from spo_jax.core.errors import UserError
from spo_jax.core.files import read_json
from spo_jax.data.preferences.format import open_preferences
from spo_jax.rewards import check_reward
from spo_jax.rewards.base import Context
from spo_jax.rewards.common.own import measured
from spo_jax.run.metrics import read_metrics
from tests.e2e.micro import write_micro, write_micro_spm
from tests.support.commands import ROOT

HERE = Path(__file__).parent
EVAL = {"images": 2, "batch": 2, "steps": 2, "grid_images": 2, "prompts": "toy:held_out"}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return write_micro(tmp_path_factory.mktemp("models") / "micro")


@pytest.fixture(scope="module")
def spm(tmp_path_factory):
    return write_micro_spm(tmp_path_factory.mktemp("models") / "spm")


@pytest.fixture
def house(tmp_path, monkeypatch):
    """The current folder holds the user's own modules, which are forgotten afterwards."""
    shutil.copytree(HERE / "house", tmp_path, dirs_exist_ok=True)
    (tmp_path / "my_rewards").mkdir()
    (tmp_path / "my_rewards" / "redness.py").write_text(_reward_of_the_documents("Redness"))
    (tmp_path / "my_rewards" / "taste.py").write_text(_reward_of_the_documents("Taste"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    yield tmp_path
    for name in [name for name in sys.modules if name.split(".")[0] in ("my_methods", "my_rewards", "my_sources")]:
        del sys.modules[name]


def _reward_of_the_documents(name: str) -> str:
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "development.md").read_text(), re.DOTALL)
    (block,) = [block for block in blocks if f"class {name}" in block]
    return block


def _load_reward(name: str) -> object:
    return spo_jax.load_reward(name, Context())


def test_they_are_as_short_as_the_documents_say():
    lines = [line for line in _reward_of_the_documents("Redness").splitlines() if line.strip()]
    assert len(lines) <= 10
    assert len((HERE / "house" / "my_methods" / "denoising.py").read_text().splitlines()) <= 150


def test_a_method_and_a_reward_run_through_train(house, model):
    """Trained, resumed, sampled with and exported like everything else."""
    images = np.random.default_rng(0).integers(0, 256, (6, 16, 16, 3), np.uint8)
    np.savez(house / "images.npz", images=images, captions=[f"image {index}" for index in range(6)])
    config = spo_jax.default_config("my_methods.denoising")
    config.update({"model": str(model), "train_steps": 2, "mesh": {"data": 2}, "eval": EVAL, "lora": {"rank": 2}})
    config.eval.rewards = "my_rewards.redness"
    config.optimizer.learning_rate = 1e-2
    settings = spo_jax.read_settings(config)
    assert type(settings).__module__ == "my_methods.denoising"

    summary = spo_jax.train(settings, "runs/own")

    assert summary["method"] == "my_methods.denoising" and summary["batches"] == 2
    assert summary["scores"]["redness"]["change"] != 0
    assert read_json(Path("runs/own/summary.json"))["scores"] == summary["scores"]
    assert [row["step"] for row in read_metrics("runs/own/metrics.jsonl") if "loss" in row] == [1, 2]
    report = Path("runs/own/report.html").read_text()
    assert "red minus the mean of green and blue" in report and "Redness of 2 evaluation images" in report
    assert report.count('<figure class="pair small">') == 2 and "runs/own/lora.safetensors" in report
    assert "eval_redness" in read_metrics("runs/own/metrics.jsonl")[-1]
    assert Image.open("runs/own/before_after.png").height > 2 * 16
    config.train_steps = 3
    more = spo_jax.read_settings(config)
    spo_jax.train(more, "runs/own", spo_jax.Resume(required=True, changed=True))
    lora = load_file("runs/own/lora.safetensors")
    assert all(np.abs(value).max() > 0 for name, value in lora.items() if ".up." in name)

    spo_jax.export("runs/own", "kohya", "own.safetensors")
    spo_jax.sample(model=str(model), lora="own.safetensors", prompt="a red star", out="samples", steps=2)
    assert [Image.open(file).size for file in Path("samples").glob("*.png")] == [(16, 16)]


def test_spo_learns_from_a_reward_outside_the_package(house, model, spm):
    config = spo_jax.default_config("spo")
    config.update({"model": str(model), "max_batches": 1, "prompts_per_batch": 2, "mesh": {"data": 1}, "eval": EVAL})
    config.eval.rewards = f"my_rewards.redness,spm:{spm}"  # beside one of ours, and in a sum with it
    config.eval.weights = "1,0.5"
    spo = {"reward": "my_rewards.redness", "num_steps": 3, "divert_start_step": 1, "num_candidates": 2}
    config.spo.update(spo | {"threshold": 0.0, "decode_chunk": 4, "train_batch_size": 4, "train_chunk": 4})
    summary = spo_jax.train(spo_jax.read_settings(config), "runs/spo")
    assert set(summary["scores"]) == {"redness", "spm_score", "total"}
    assert summary["scores"]["total"]["before"] == pytest.approx(0, abs=1e-6)
    assert summary["scores"]["total"]["meaning"].startswith("1 × redness + 0.5 × spm_score, each in standard dev")
    (row,) = [row for row in read_metrics("runs/spo/metrics.jsonl") if "loss" in row]
    assert np.isfinite(row["loss"])
    assert read_json(Path("runs/spo/run.json"))["judge_scores"] == ["redness", "total"]


class _Brightest(torch.nn.Module):
    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        return (pixels.amax((1, 2, 3)) + 1) / 2


@pytest.fixture
def taste(house):
    torch.jit.save(torch.jit.script(_Brightest()), str(house / "taste.pt"))
    return house / "my_rewards" / "taste.py"


def test_a_scorer_in_torch_scores_images(taste):
    reward = spo_jax.load_reward("my_rewards.taste:taste.pt", Context())
    images = np.full((2, 8, 8, 3), -1, np.float32)
    images[1, 3, 4, 2] = 1.5
    images.setflags(write=False)  # as arrays of jax are
    assert measured(reward, images, ["a", "b"])["taste"].tolist() == [0, 1]
    with pytest.raises(UserError, match="computed on the host and cannot judge"):
        check_reward("my_rewards.taste:taste.pt", Context(), judges=True)
    with pytest.raises(UserError, match="^--rewards: there is no file 'other.pt' with my network"):
        check_reward("my_rewards.taste:other.pt", Context(field="--rewards"))


@pytest.mark.parametrize(
    ("right", "wrong", "message"),
    [
        ("def load(source, context)", "def load(source)", "taste.load takes (source): expected load(source, context)"),
        ("def check(self, prompts, size)", "def check(self, prompts)", "Taste.check takes (prompts): expected check("),
        ("def measure(self, images, ", "def measure(self, ", "Taste.measure takes (prompts): expected measure(images"),
        ("lower_is_better = ()", "", "taste.load returns an object of type Taste without lower_is_better: expected a"),
        ("lower_is_better = ()", "lower_is_better = ['other']", "lower_is_better of my_rewards.taste.load is ['oth"),
        ("lower_is_better", "signs = 'taste'; lower_is_better", "Taste.signs of my_rewards.taste.load is 'taste': exp"),
        ('{"taste": "how', '{"taste", "how', "expected a sentence for each score, by name"),
        ("return Taste(source)", "Taste(source)", "taste.load returns None without meanings, lower_is_better, check"),
    ],
)
def test_a_reward_of_another_form_is_refused_before_it_scores(taste, right, wrong, message):
    text = taste.read_text()
    taste.write_text(text.replace(right, wrong))
    assert taste.read_text() != text
    with pytest.raises(UserError, match=re.escape(message)) as error:
        _load_reward("my_rewards.taste:taste.pt")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("right", "wrong", "message"),
    [
        (".flatten()", "[:1]", "Taste.measure returned taste of shape (1,): expected 2 numbers, one for each image"),
        ('return {"taste"', 'return {"tasty"', "returned scores tasty: expected those in its meanings, taste"),
        ("return {", "found = {", "Taste.measure returned None: expected a dict with taste"),
        (".numpy()", ".requires_grad_()", "as an object of type Tensor that numpy cannot read (Can't call numpy()"),
        (".numpy()", ".numpy().astype(str)", "of dtype <U32: expected 2 numbers"),
    ],
)
def test_scores_of_another_form_are_refused(taste, right, wrong, message):
    text = taste.read_text()
    taste.write_text(text.replace(right, wrong))
    assert taste.read_text() != text
    reward = _load_reward("my_rewards.taste:taste.pt")
    with pytest.raises(UserError, match=re.escape(message)) as error:
        measured(reward, np.zeros((2, 8, 8, 3), np.float32), ["a", "b"])
    assert "\n" not in str(error.value)


def test_pairs_of_a_source_outside_the_package(house):
    prepared = spo_jax.prepare("my_sources.stripes", "data", stripes=3)
    assert prepared["train"].pairs == 3
    assert open_preferences("data", "train").prompts == ("stripes 1", "stripes 2", "stripes 3")
    with pytest.raises(UserError, match="--source: --dataset=my_sources.stripes does not take it, only --stripes"):
        spo_jax.prepare("my_sources.stripes", "other", source="x")


@pytest.mark.parametrize(
    ("find", "name", "message"),
    [
        (spo_jax.default_config, "my_methods.nothing", "field method = 'my_methods.nothing': no module of that name"),
        (spo_jax.default_config, "my_rewards.redness", "my_rewards.redness has no Settings, read_data, setup"),
        (_load_reward, "my_rewards.nothing", "field eval.rewards = 'my_rewards.nothing': no module of that name"),
        (_load_reward, "my_sources.stripes", "expected a module with a function load"),
    ],
)
def test_a_module_that_is_none_is_refused(house, find, name, message):
    with pytest.raises(UserError, match=re.escape(message)):
        find(name)


HUNGRY = """
import jax.numpy as jnp

from spo_jax.rewards.base import DeviceReward


class Hungry(DeviceReward):
    meanings = {"hungry": "takes 32 TiB"}

    def score(self, params, x, features, t):
        return x.mean((1, 2, 3)) + jnp.cumsum(jnp.broadcast_to(x.mean(), 2**43))[-1]


def load(source, context):
    return Hungry()
"""


def test_too_little_memory_ends_a_run_with_the_fields_to_lower(house, model):
    """A reward asks for more than any machine has."""
    (house / "my_rewards" / "hungry.py").write_text(HUNGRY)
    config = spo_jax.default_config("spo")
    config.update({"model": str(model), "mesh": {"data": 1}, "eval": EVAL, "prompts_per_batch": 2})
    config.spo.reward = "my_rewards.redness"
    config.eval.rewards = "my_rewards.hungry"

    amount = r"\([\d.]+ [GT]iB more were asked for\)"
    message = rf"^out of memory on a device while scoring the images {amount}: in the config"
    with pytest.raises(UserError, match=message) as caught:
        spo_jax.train(spo_jax.read_settings(config), "runs/hungry")

    chosen = "spo.decode_chunk (now as suits the platform)"
    for field in (chosen, "spo.train_chunk (now 10)", "remat = True", "prompts_per_batch (now 2)"):
        assert field in str(caught.value)
