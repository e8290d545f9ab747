"""A run of Diffusion-DPO on micro models: what it trains on, its rows, resuming, devices, and labels of a reward."""

import dataclasses

import numpy as np
import pytest

from spo_jax.core.errors import UserError
from spo_jax.methods import load_method
from spo_jax.methods.base import Method, Run
from spo_jax.methods.common.settings import LoadingSettings, OptimizerSettings
from spo_jax.methods.diffusion_dpo.data import PairData, read_data
from spo_jax.methods.diffusion_dpo.labels import peoples_labels
from spo_jax.methods.diffusion_dpo.method import CHARTS
from spo_jax.methods.diffusion_dpo.settings import DPOSettings, DPOTrainSettings
from spo_jax.prepare import prepare
from tests.e2e.micro import write_micro, write_micro_sdxl
from tests.methods.runs import TINY_EVAL, assert_devices_agree, assert_resumes_to_the_bit, train

REWARD = "tests.e2e.redness"


@pytest.fixture(scope="module")
def settings(tmp_path_factory):
    """Three batches of eight from the pairs of the toy world, on a model for images of 16 pixels."""
    folder = tmp_path_factory.mktemp("dpo")
    prepare("toy", folder / "data", pairs=10, held_out_pairs=2, seed=0)
    return DPOTrainSettings(
        model=str(write_micro(folder / "model")),
        data_dir=str(folder / "data"),
        batch_size=8,
        chunk=8,
        train_steps=3,
        dpo=DPOSettings(beta=50.0),
        optimizer=OptimizerSettings(learning_rate=1e-2, warmup_steps=1),
        loading=LoadingSettings(threads=1),
        eval=TINY_EVAL,
    )


def with_(settings, **fields):
    """The settings with other fields of the group ``dpo``."""
    return dataclasses.replace(settings, dpo=dataclasses.replace(settings.dpo, **fields))


def test_an_interrupted_run_is_resumed_to_the_bit(settings, tmp_path):
    assert_resumes_to_the_bit(settings, tmp_path, stop=2)


@pytest.mark.slow
@pytest.mark.parametrize("fields", [{}, {"inversion": "ddim", "inversion_steps": 3}], ids=["drawn", "inverted"])
def test_eight_devices_are_one(settings, tmp_path, fields):
    # A fresh adapter's margins are 0 up to rounding, whose sign decides which pairs are ordered right.
    apart = ("implicit_accuracy",)
    assert_devices_agree(with_(settings, **fields), tmp_path, decided_by_rounding=apart)


@pytest.mark.slow
@pytest.mark.parametrize(
    "fields",
    [
        {"objective": "mapo", "beta": 0.1},
        {"objective": "ipo", "beta": 2.0},
        {"objective": "hinge", "beta": 2.0},
        {"objective": "smpo", "reward": REWARD, "inversion": "renoise", "inversion_steps": 2},
    ],
    ids=lambda fields: fields["objective"],
)
def test_every_objective_trains(settings, tmp_path, fields):
    trained = train(with_(settings, **fields), tmp_path)
    assert isinstance(trained.run, Run)
    for row in trained.rows:
        assert np.isfinite(list(row.values())).all()
        assert {name.partition("/")[0] for name in row} <= CHARTS.keys()  # every curve has a title
    assert trained.rows[0]["loss"] != trained.rows[2]["loss"]


@pytest.mark.slow
def test_chunks_and_kept_latents_do_not_change_a_run(settings, tmp_path):
    whole = train(settings, tmp_path / "whole")
    kept = dataclasses.replace(settings, chunk=2, cache_latents=str(tmp_path / "latents"))
    for found, wanted in zip(train(kept, tmp_path / "kept").rows, whole.rows, strict=True):
        for name, value in wanted.items():
            np.testing.assert_allclose(found[name], value, rtol=1e-4, atol=1e-5, err_msg=name)


@pytest.mark.slow
def test_sdxl_trains(settings, tmp_path):
    """Its size conditions are those of uncropped images."""
    model = str(write_micro_sdxl(tmp_path / "sdxl"))
    trained = train(dataclasses.replace(settings, model=model), tmp_path)
    assert np.isfinite([row["loss"] for row in trained.rows]).all()


def test_it_is_a_method():
    assert isinstance(load_method("diffusion_dpo"), Method)


# Data


def unlabelled(pairs, labels):
    """The pairs with other labels: 0 the first image wins, 1 the second, a half a tie, None nobody judged them."""
    second = np.array([0.5 if label is None else label for label in labels], np.float32)
    has_label = np.array([label is not None for label in labels])
    return dataclasses.replace(pairs, labels=np.stack([1 - second, second], axis=1), has_label=has_label)


def test_ties_and_pairs_without_a_label_are_left_out(settings):
    pairs = read_data(settings).train
    labels = peoples_labels(unlabelled(pairs, [0, 1, 0.5, None, 1, 0, 0.5, None, None, 0]))
    np.testing.assert_array_equal(labels.rows, [0, 1, 4, 5, 9])
    np.testing.assert_array_equal(labels.second_wins[labels.rows], [False, True, True, False, False])
    np.testing.assert_array_equal(labels.weight, 1)


def test_a_split_that_decides_nothing_is_refused(settings, monkeypatch):
    pairs = read_data(settings).train
    ties = unlabelled(pairs, [0.5] * 4 + [None] * 6)
    monkeypatch.setattr("spo_jax.methods.diffusion_dpo.data.open_preferences", lambda *_: ties)
    with pytest.raises(UserError, match="none of its 10 pairs has a winner .6 without a label, 4 ties.: choose"):
        read_data(settings)
    smoothed = with_(settings, objective="smpo", reward=REWARD)
    assert isinstance(read_data(smoothed), PairData)  # a reward decides


def test_a_split_that_is_missing_is_refused(settings, tmp_path):
    with pytest.raises(UserError, match="no folder .*missing with prepared preference pairs; `python -m"):
        read_data(dataclasses.replace(settings, data_dir=str(tmp_path / "missing")))
    with pytest.raises(UserError, match="config field train_split = 'test': .*available: train, validation_unique"):
        read_data(dataclasses.replace(settings, train_split="test"))


# Settings


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"objective": "smpo"}, "dpo.reward = '': expected a reward such as 'pickscore'"),
        ({"reward": "pickscore"}, "dpo.reward = 'pickscore': expected '', because dpo.objective = 'dpo'"),
        ({"objective": "smpo", "reward": "pickscore", "score_min": 1.0}, "dpo.score_max = 0.0: expected at least"),
        ({"beta": 0.0}, "dpo.beta = 0.0: expected"),
        ({"inversion": "edict"}, "dpo.inversion = 'edict': expected"),
    ],
)
def test_settings_that_do_not_fit_are_refused(fields, message):
    with pytest.raises(UserError, match=message):
        DPOSettings(**fields)
