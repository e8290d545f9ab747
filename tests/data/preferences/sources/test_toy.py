"""Drawn preference pairs follow the ground truth, and are the same however many are asked for."""

import io

import numpy as np
import pytest
from PIL import Image
from spo_jax.data.preferences.check import check
from spo_jax.data.preferences.sources import toy as scene_pairs
from spo_jax.data.preferences.sources.toy import TIE, Scenes, draw_pairs

from spo_jax.core.errors import UserError
from spo_jax.toy import world
from spo_jax.toy.truth import aesthetic


def test_preferences_follow_the_ground_truth():
    pairs = draw_pairs(0, 60, world.TRAIN_PROMPTS, aesthetic)
    assert pairs.images.shape == (60, 2, 32, 32, 3) and np.abs(pairs.images).max() <= 1
    values = [aesthetic(pairs.images[:, i].astype(np.float32), pairs.prompts) for i in (0, 1)]
    gap = values[0] - values[1]
    clear = np.abs(gap) > 2 * TIE  # the pictures were rounded to float16 after they were labelled
    np.testing.assert_array_equal(pairs.labels[clear, 0], gap[clear] > 0)
    np.testing.assert_array_equal(pairs.labels.sum(1), 1)
    assert (pairs.labels[:, 0] == 0.5).any() and {0.0, 1.0} <= set(pairs.labels[:, 0].tolist())


def brightness(images, prompts):
    """Quicker than the true one."""
    return images.mean((1, 2, 3))


def test_splits_are_of_different_prompts_and_pictures(monkeypatch):
    monkeypatch.setattr(scene_pairs, "_BLOCK", 20)
    source = Scenes({"train": 30, "validation_unique": 25}, 3, brightness)
    train, held_out = list(source.rows("train")), list(source.rows("validation_unique"))
    assert (len(train), len(held_out)) == (30, 25) == (source.count("train"), source.count("validation_unique"))
    assert {raw.caption for raw in train} <= set(world.TRAIN_PROMPTS)
    assert {raw.caption for raw in held_out} <= set(world.HELD_OUT_PROMPTS)
    assert len({raw.images for raw in train + held_out}) == 55
    assert all(check(raw).are_different for raw in train)


def test_the_first_pairs_do_not_depend_on_their_number(monkeypatch):
    monkeypatch.setattr(scene_pairs, "_BLOCK", 4)
    few, many, other = (
        list(Scenes({"train": count}, seed, brightness).rows("train")) for count, seed in ((6, 0), (9, 0), (6, 1))
    )
    assert few == many[:6] and few != other


def test_stored_pictures_are_the_drawn_ones(monkeypatch):
    """To half a step of 255: they are rounded to bytes."""
    monkeypatch.setattr(scene_pairs, "_BLOCK", 3)
    drawn = draw_pairs((0, 0, 0), 3, world.TRAIN_PROMPTS, brightness)
    for raw, images, labels in zip(
        Scenes({"train": 3}, 0, brightness).rows("train"), drawn.images, drawn.labels, strict=True
    ):
        stored = np.stack([np.asarray(Image.open(io.BytesIO(data)), np.float32) for data in raw.images])
        # 1e-6: the sums and quotients are float32's.
        np.testing.assert_allclose(stored / 127.5 - 1, images.astype(np.float32), atol=0.5 / 127.5 + 1e-6)
        assert raw.labels == tuple(labels)


def test_no_pairs():
    with pytest.raises(UserError, match="0 pairs of scenes for train: expected at least 1"):
        Scenes({"train": 0}, 0, brightness)
