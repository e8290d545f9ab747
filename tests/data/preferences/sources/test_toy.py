"""Drawn preference pairs follow the truth of the toy world, and the first ones do not depend on their number."""

import io

import numpy as np
import pytest
from PIL import Image

from spo_jax.core.errors import UserError
from spo_jax.data.preferences.check import check
from spo_jax.data.preferences.sources import toy as source
from spo_jax.data.preferences.sources.toy import TIE, Options, ToyPairs, draw_pairs, open_source
from spo_jax.toy import truth, world


@pytest.fixture
def brightness(monkeypatch):
    """Replaces the truth by the brightness of the images, which is quicker."""
    monkeypatch.setattr(truth, "aesthetic", lambda images, prompts: images.mean((1, 2, 3)))


def test_labels_follow_the_truth():
    pairs = draw_pairs(0, 60, world.TRAIN_PROMPTS)
    assert pairs.images.shape == (60, 2, 32, 32, 3) and np.abs(pairs.images).max() <= 1
    first, second = (truth.aesthetic(pairs.images[:, i].astype(np.float32), pairs.prompts) for i in (0, 1))
    difference = first - second
    clear = np.abs(difference) > 2 * TIE  # The images were rounded to float16 after they were labelled.
    np.testing.assert_array_equal(pairs.labels[clear, 0], difference[clear] > 0)
    np.testing.assert_array_equal(pairs.labels.sum(1), 1)
    assert (pairs.labels[:, 0] == 0.5).any() and {0.0, 1.0} <= set(pairs.labels[:, 0].tolist())


def test_splits_have_different_prompts_and_images(brightness, monkeypatch):
    monkeypatch.setattr(source, "_BLOCK", 20)
    pairs = ToyPairs({"train": 30, "validation_unique": 25}, 3)
    train = list(pairs.rows("train"))
    held_out = list(pairs.rows("validation_unique"))
    assert (len(train), len(held_out)) == (30, 25) == (pairs.count("train"), pairs.count("validation_unique"))
    assert {raw.caption for raw in train} <= set(world.TRAIN_PROMPTS)
    assert {raw.caption for raw in held_out} <= set(world.HELD_OUT_PROMPTS)
    assert len({raw.images for raw in train + held_out}) == 55
    assert all(check(raw).are_different for raw in train)


def test_the_first_pairs_do_not_depend_on_their_number(brightness, monkeypatch):
    monkeypatch.setattr(source, "_BLOCK", 4)
    few, many, other = (
        list(ToyPairs({"train": count}, seed).rows("train")) for count, seed in ((6, 0), (9, 0), (6, 1))
    )
    assert few == many[:6] and few != other


def test_stored_images_are_the_drawn_ones(brightness, monkeypatch):
    """They agree to half a step of 255, because they are rounded to bytes."""
    monkeypatch.setattr(source, "_BLOCK", 3)
    drawn = draw_pairs((0, 0, 0), 3, world.TRAIN_PROMPTS)
    rows = ToyPairs({"train": 3}, 0).rows("train")
    for raw, images, labels in zip(rows, drawn.images, drawn.labels, strict=True):
        stored = np.stack([np.asarray(Image.open(io.BytesIO(data)), np.float32) for data in raw.images])
        # 1e-6, because the sums and quotients are float32.
        np.testing.assert_allclose(stored / 127.5 - 1, images.astype(np.float32), atol=0.5 / 127.5 + 1e-6)
        assert raw.labels == tuple(labels)


def test_the_options_set_the_numbers_of_pairs_and_the_seed():
    opened = open_source(Options(pairs=10, held_out_pairs=6, seed=2), ("train",), fetch=print)
    assert opened.splits() == opened.usual_splits() == ("train", "validation_unique")
    assert (opened.count("train"), opened.count("validation_unique")) == (10, 6)
    assert opened.made_from("train") == {"dataset": "toy", "pairs": 10, "seed": 2}


@pytest.mark.parametrize("field", ["pairs", "held_out_pairs"])
def test_a_split_without_pairs_is_refused(field):
    with pytest.raises(UserError, match=f"--{field.replace('_', '-')} = 0: expected 1 to "):
        Options(**{field: 0})
