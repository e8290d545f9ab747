"""Scores are bound to everything that is read of a reward."""

import json
import shutil
from unittest import mock

import numpy as np
import pytest

from spo_jax.core.errors import UserError
from spo_jax.parallel.mesh import make_mesh
from spo_jax.parallel.settings import MeshSettings
from spo_jax.work.evaluate.judges import Judge, read_judges
from spo_jax.work.evaluate.lineup import Lineup
from spo_jax.work.evaluate.request import Request
from tests.rewards import clips

MESH = make_mesh(MeshSettings())


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clip")
    clips.write_clip(folder)
    return folder


def judge_of(spec: str) -> Judge:
    request = mock.Mock(spec=Request, prompts=["a red star"], rewards=[spec], images={}, weights=())
    entrant = mock.Mock()
    entrant.entry.name = "base"
    lineup = mock.Mock(spec=Lineup, entrants=[entrant], size=(32, 32), kind="sd")
    return read_judges(request, lineup, MESH)[0]


def edit(file, change):
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(content))


EDITS = {
    "config": ("config.json", lambda content: content["text_config"].update(layer_norm_eps=1e-3)),
    "length": ("tokenizer_config.json", lambda content: content.update(model_max_length=8)),
    "merges": ("tokenizer.json", lambda content: content["model"]["merges"].pop()),
}


@pytest.mark.parametrize(
    ("name", "what"), [*(("pickscore", what) for what in EDITS), ("sum:1*clip_score@logits:{}+1*pickscore", "length")]
)
def test_a_folder_with_the_same_weights_is_another_reward_if_what_lies_beside_them_was_changed(
    published, tmp_path, name, what
):
    folder = shutil.copytree(published, tmp_path / "clip")
    judge = judge_of(f"{name.format(folder)}:{folder}")
    reward = judge.load("sd", MESH)
    reward.measure(np.zeros((1, 32, 32, 3), np.float32), ["a red star"])
    assert judge.load("sd", MESH).describe() == reward.describe()  # which does not depend on what was computed
    name, change = EDITS[what]
    edit(folder / name, change)
    with pytest.raises(UserError, match="was replaced since this evaluation began"):
        judge.load("sd", MESH)


OWN = """
from spo_jax.rewards.base import DeviceReward


class Bright(DeviceReward):
    READS = "images"
    params = {}
    meanings = {"NAME": "brightness"}

    def features(self, prompts):
        return ()

    def feature_shapes(self):
        return ()

    def score(self, params, x, features, t):
        return x.mean((1, 2, 3))


def load(source, context):
    return Bright()
"""


@pytest.mark.parametrize("spec", ["my_{}.bright", "sum:1*my_{}.bright+0.5*my_{}.bright"], ids=["alone", "in a sum"])
def test_a_users_own_reward_is_another_one_if_its_file_was_changed(tmp_path, monkeypatch, spec):
    monkeypatch.syspath_prepend(tmp_path)
    name = "sum" if spec.startswith("sum") else "alone"
    file = tmp_path / f"my_{name}" / "bright.py"
    file.parent.mkdir()
    file.write_text(OWN)
    before = judge_of(spec.format(name, name)).identity["code"]
    assert before
    file.write_text(OWN.replace("(1, 2, 3)", "(3, 2, 1)"))
    assert judge_of(spec.format(name, name)).identity["code"] != before
