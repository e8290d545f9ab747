"""What contestants learn from is made once: a shipped preference model is taken, another one starts from a CLIP."""

import types
from pathlib import Path

import numpy as np
import pytest

from benchmarks.compare_methods import sources
from benchmarks.compare_methods.stages import Stages
from spo_jax.core.errors import UserError
from spo_jax.core.files import write_json
from spo_jax.toy import ASSETS, LATENT_JUDGES
from spo_jax.weights.digest import weights_digest
from spo_jax.weights.store import read_file

COSTS = {
    "programs": {"step": {"call": {"training": 20.0}, "train_batch": {}}},
    "train_batches": 1,
    "unet_forward": 2.0,
    "each": {},
}


@pytest.fixture
def made(tmp_path, monkeypatch):
    """Replaces what draws, counts and trains; returns a list of what was done."""
    done = []

    def people(folder, model):
        done.append(f"pairs for {model}")
        for name in ("people", "exact"):
            (folder / name / "train").mkdir(parents=True)

    def train_clip(folder):
        done.append("clip")
        folder.mkdir()
        (folder / "model.safetensors").touch()

    def train(settings, folder, resume):
        assert settings.data_dir == str(tmp_path / "data" / "exact") and resume.if_there
        done.append(f"{settings.method} from {settings.init.removeprefix(str(tmp_path))}")
        write_json(folder / "summary.json", {})

    def costs_of(settings):
        done.append(f"counted from {settings.init.removeprefix(str(tmp_path))}")
        return COSTS

    for name, stand_in in {"people": people, "train_clip": train_clip, "train": train}.items():
        monkeypatch.setattr(sources, name, stand_in)
    monkeypatch.setattr(sources.work, "costs_of", costs_of)
    monkeypatch.setattr(sources, "open_preferences", lambda *_: types.SimpleNamespace(digest="d"))
    monkeypatch.setattr(sources, "open_pipeline", lambda _: types.SimpleNamespace(params={"w": np.zeros(2)}))
    monkeypatch.setattr(sources, "_digest", lambda judge, *_: f"digest of {Path(judge).name}")
    return done


def labels_of(name, folder, judge=""):
    return sources.labels_of(name, "toy", folder / "data", Stages(folder / "out"), judge)


def test_the_shipped_preference_model_is_taken_and_its_training_counted(made, tmp_path):
    labels, about = labels_of("people", tmp_path)
    assert made == ["pairs for toy", "counted from toy_people"]
    assert labels.judge == "toy_people" and labels.pairs == str(tmp_path / "data" / "people")
    assert about["work"] == 10 * sources._judge_settings(tmp_path, "toy", "toy").train_steps


def test_one_that_is_not_shipped_is_trained_once_from_a_clip_that_is_made_first(made, tmp_path):
    labels, about = labels_of("exact", tmp_path)
    assert made == ["pairs for toy", "clip", "counted from /data/clip", "spm from /data/clip"]
    assert labels.judge == str(tmp_path / "out" / "judges" / "exact" / "spm") and about["model"] == "train"
    del made[:]
    assert labels_of("exact", tmp_path) == (labels, about) and made == []


def test_a_given_preference_model_is_neither_trained_nor_counted(made, tmp_path):
    labels, about = labels_of("exact", tmp_path, "runs/mine")
    assert made == ["pairs for toy"] and labels.judge == "runs/mine" and about["work"] is None


def test_a_latent_judge_takes_the_place_of_the_preference_model(made, tmp_path, monkeypatch):
    """The package's own for people's labels; its training is counted, and other contestants see no other facts."""
    monkeypatch.setattr(sources, "LATENT_JUDGES", {"toy_people": tmp_path})
    labels, _ = labels_of("people", tmp_path)
    del made[:]
    own, about = sources.with_latent_judge(labels, Stages(tmp_path / "out"))
    assert made == ["counted from "] and own.judge == about["model"] == "toy_people"
    assert own == labels._replace(judge=own.judge, facts=own.facts) and labels.judge == "toy_people"
    assert about["work"] == 10 * sources.read_settings(sources.load_config("lrm_toy")).train_steps


def test_a_latent_judge_that_is_not_shipped_is_trained_once(made, tmp_path):
    labels, _ = labels_of("exact", tmp_path)
    del made[:]
    own, about = sources.with_latent_judge(labels, Stages(tmp_path / "out"))
    assert made == ["counted from ", "lrm from "] and about["model"] == "train"
    assert own.judge == str(tmp_path / "out" / "judges" / "exact-latent" / "lrm")
    assert own.facts == labels.facts | {"judge": "digest of lrm"}
    assert sources.with_latent_judge(labels, Stages(tmp_path / "out")) == (own, about) and made[2:] == []


def test_a_judge_that_learned_from_something_else_is_not_taken_for_this_one(made, tmp_path, monkeypatch):
    """Other pairs may lie in a folder of the same name."""
    labels_of("exact", tmp_path)
    monkeypatch.setattr(sources, "open_preferences", lambda *_: types.SimpleNamespace(digest="other"))
    with pytest.raises(UserError, match="judges/exact holds a judge that learned otherwise: data is d there and"):
        labels_of("exact", tmp_path)
    monkeypatch.setattr(sources, "open_preferences", lambda *_: types.SimpleNamespace(digest="d"))
    monkeypatch.setattr(sources, "JUDGE_CONFIG", "spm_toy")
    with pytest.raises(UserError, match="learned otherwise: settings/"):
        labels_of("exact", tmp_path)


def test_a_judge_that_does_not_say_what_it_learned_from_is_taken_for_the_default_one(made, tmp_path, caplog):
    """Judges of earlier versions, whose training took half an hour; of another model it is not known."""
    labels, _ = labels_of("exact", tmp_path)
    kept = tmp_path / "out" / "judges" / "exact.json"
    for expected in (1, 0):
        if expected:
            kept.unlink()
        caplog.clear()
        assert labels_of("exact", tmp_path)[0] == labels
        assert caplog.text.count("does not say what it learned from") == expected
    kept.unlink()
    with pytest.raises(UserError, match="judges/exact holds a judge, and not what it learned from: move it away"):
        sources.labels_of("exact", str(tmp_path / "mine"), tmp_path / "data", Stages(tmp_path / "out"), "")


def test_digests_of_the_shipped_judges_are_of_all_their_weights():
    """A latent judge has a file for each of its parts."""
    assert sources._digest("toy_people") == weights_digest(read_file(ASSETS / "spm_people" / "model.safetensors"))
    assert sources._digest("toy_people", LATENT_JUDGES) not in (
        sources._digest("toy_people"),
        sources._digest(str(ASSETS / "lrm_people" / "unet")),
    )
