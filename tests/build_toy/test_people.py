"""Pairs as people give them: what is drawn is kept, prompts and labels belong to their images, mistakes are refused.

The sampler is replaced by one that paints what it was asked for, because the toy's takes minutes for some hundred
images.
"""

import dataclasses
import io
import json
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

from spo_jax.build_toy import earlier, people_images, people_pairs
from spo_jax.build_toy.people import pairs_of_people, people
from spo_jax.build_toy.people_images import EARLIER, RECIPES, draw_images, make_plan
from spo_jax.core.errors import UserError
from spo_jax.data.preferences.format import open_preferences
from spo_jax.data.preferences.sources.toy import TIE
from spo_jax.models import open_pipeline
from spo_jax.models.sampler import Sampler
from spo_jax.toy import ASSETS, annotators, truth, world
from spo_jax.toy.annotators import labels_of

COUNTS = {"train": 40, "validation_unique": 12}
SIDE = world.SIZE


class Painter(Sampler):
    """A sampler that paints scenes by the noise that it is given; its first column holds how it was asked."""

    drawn = 0
    most = None  # images after which it fails

    def __init__(self, pipeline, *, steps, guidance, batch):
        self._by = pipeline
        self._steps = steps
        self._batch = batch
        self.latent_shape = (8, 8, 16)

    def stream(self, prompts, latents, *, guidance):
        for start in range(0, len(prompts), self._batch):
            rows = np.arange(start, min(start + self._batch, len(prompts)))
            noise = latents(rows)
            images = []
            for row, own in zip(rows, noise, strict=True):
                rng = np.random.default_rng(np.abs(own[:2, :2, 0] * 1e4).astype(int).reshape(-1))
                image, _ = world.draw(rng, [prompts[row]])
                images.append(image[0])
                Painter.drawn += 1
                if Painter.most is not None and Painter.drawn > Painter.most:
                    raise KeyboardInterrupt
            images = np.stack(images)
            images[:, :, 0, 0] = self._steps / 100
            images[:, :, 0, 1] = guidance / 100
            images[:, :, 0, 2] = self._by.base == Path("earlier")
            yield images


@pytest.fixture
def painter(monkeypatch):
    monkeypatch.setattr(people_images, "Sampler", Painter)
    monkeypatch.setattr(people_images, "BATCH", 7)
    monkeypatch.setattr(Painter, "drawn", 0)
    monkeypatch.setattr(Painter, "most", None)
    return Painter


@pytest.fixture
def models(toy):
    return {"model": toy.pipeline, "earlier": dataclasses.replace(toy.pipeline, base=Path("earlier"))}


def asked(pixels):
    """What an image of the painter was asked for: model, steps, guidance."""
    column = pixels[:, 0].astype(np.float64).mean(0) / 127.5 - 1
    return ("earlier" if column[2] > 0.5 else "model", round(column[0] * 100), round(column[1] * 200) / 2)


def test_recipes_have_their_shares_and_first_pairs_do_not_depend_on_their_number():
    plan = make_plan(0, 0, 4000, world.TRAIN_PROMPTS)
    counts = np.bincount(plan.recipe.reshape(-1), minlength=len(RECIPES))
    shares = [EARLIER if recipe.by == "earlier" else 1 - EARLIER for recipe in RECIPES]
    np.testing.assert_allclose(counts / 8000, np.array(shares) / (len(RECIPES) / 2), atol=0.01)
    fewer = make_plan(0, 0, 50, world.TRAIN_PROMPTS)
    np.testing.assert_array_equal(fewer.recipe, plan.recipe[:50])
    assert fewer.prompts == plan.prompts[:50] and fewer.seed == plan.seed
    assert make_plan(0, 1, 50, world.TRAIN_PROMPTS).seed != plan.seed


def test_every_image_is_drawn_by_its_recipe_from_noise_of_its_own(painter, models, tmp_path):
    plan = make_plan(3, 0, 40, world.TRAIN_PROMPTS)
    images = draw_images(tmp_path / "images.npy", plan, models, {}, "")
    for pair, recipe in zip(images, plan.recipe, strict=True):
        assert [asked(pixels) for pixels in pair] == [tuple(RECIPES[index]) for index in recipe]
    assert len(np.unique(images.reshape(80, -1), axis=0)) == 80
    for side in range(2):  # the prompt is that of the pair
        right = truth.accuracy(images[:, side].astype(np.float32) / 127.5 - 1, plan.prompts)
        assert right["all"].mean() > 0.9


def test_drawing_continues_where_it_was_stopped(painter, models, tmp_path):
    plan = make_plan(3, 0, 40, world.TRAIN_PROMPTS)
    whole = draw_images(tmp_path / "whole.npy", plan, models, {}, "")
    painter.drawn, painter.most = 0, 33
    with pytest.raises(KeyboardInterrupt):
        draw_images(tmp_path / "images.npy", plan, models, {}, "")
    painter.drawn, painter.most = 0, None
    np.testing.assert_array_equal(draw_images(tmp_path / "images.npy", plan, models, {}, ""), whole)
    assert 80 - 33 <= painter.drawn <= 80 - 33 + people_images.BATCH
    painter.drawn = 0
    draw_images(tmp_path / "images.npy", plan, models, {}, "")
    assert painter.drawn == 0
    with pytest.raises(UserError, match="was computed from something else: model is nothing there and another here"):
        draw_images(tmp_path / "images.npy", plan, models, {"model": "another"}, "")


@pytest.fixture
def made(painter, models, tmp_path, monkeypatch):
    monkeypatch.setattr(people_pairs, "_open_models", lambda *arguments: models)
    monkeypatch.setattr(people_pairs, "_digest", lambda pipeline: str(pipeline.base))
    return people_pairs.make_pairs(tmp_path, COUNTS, 5, "toy", ""), tmp_path


def test_both_sets_hold_the_same_images_with_labels_of_their_own(made):
    measured, out = made
    assert measured == json.loads((out / "figures.json").read_text())
    for split, count in COUNTS.items():
        people, exact = (open_preferences(out / kind, split) for kind in ("people", "exact"))
        assert len(people) == len(exact) == count
        prompts = [exact.prompts[index] for index in exact.prompt]
        assert prompts == [people.prompts[index] for index in people.prompt]
        assert set(prompts) <= set(world.TRAIN_PROMPTS if split == "train" else world.HELD_OUT_PROMPTS)
        assert all(people.images(row) == exact.images(row) for row in range(count))
        pixels = [
            [np.asarray(Image.open(io.BytesIO(file)), np.float32) for file in exact.images(r)] for r in range(count)
        ]
        images = np.asarray(pixels) / np.float32(127.5) - 1
        first, second = (truth.aesthetic(images[:, side], prompts).astype(np.float64) for side in (0, 1))
        np.testing.assert_array_equal(exact.labels, labels_of(first - second, TIE))
        assert (people.labels != exact.labels).any()
        assert measured[split]["ties"]["value"] == pytest.approx((people.labels[:, 0] == 0.5).mean())


def test_a_second_start_keeps_everything(made, painter):
    _, out = made
    before = {path: path.read_bytes() for path in sorted(out.rglob("*")) if path.is_file()}
    painter.drawn = 0
    people_pairs.make_pairs(out, COUNTS, 5, "toy", "")
    assert painter.drawn == 0
    assert {path: path.read_bytes() for path in sorted(out.rglob("*")) if path.is_file()} == before


def test_both_splits_are_judged_by_the_same_people(made, painter, monkeypatch, tmp_path):
    drawn = []
    draw = annotators.draw_annotators
    monkeypatch.setattr(annotators, "draw_annotators", lambda *a, **k: drawn.append(draw(*a, **k)) or drawn[-1])
    people_pairs.make_pairs(tmp_path / "other", COUNTS, 5, "toy", "")
    assert len(drawn) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"pairs": 0}, "--pairs=0: expected 1 to "),
        ({"held_out_pairs": -3}, "--held-out-pairs=-3: expected 1 to "),
        ({"model": "no/such/model/anywhere"}, "no/such/model/anywhere"),
        ({"earlier": "no/such/model/anywhere"}, "no/such/model/anywhere"),
    ],
)
def test_mistakes_are_found_before_anything_is_written(tmp_path, arguments, message):
    with pytest.raises(UserError, match=message):
        people(tmp_path / "out", **arguments)
    assert not list(tmp_path.iterdir())


def test_pairs_that_are_there_are_not_drawn_again(tmp_path, monkeypatch):
    asked = []

    def drawn(out, **arguments):
        asked.append(arguments)
        (out / "people" / "validation_unique").mkdir(parents=True)

    monkeypatch.setattr("spo_jax.build_toy.people.people", drawn)
    for _ in range(2):
        assert pairs_of_people(tmp_path, "validation_unique", pairs=7) == tmp_path / "people"
    assert asked == [{"pairs": 7}]


def test_the_earlier_checkpoint_is_a_pipeline(toy, tmp_path, monkeypatch):
    monkeypatch.setattr(earlier.base, "encode_scenes", lambda *arguments, **settings: None)
    negated = {name: jax.tree.map(lambda leaf: -leaf, toy.pipeline.params[name]) for name in ("unet", "text_encoder")}
    monkeypatch.setattr(earlier.base, "train_base", lambda *arguments, **settings: negated)
    earlier.write_earlier(tmp_path / "work" / "earlier", toy.pipeline)
    written = open_pipeline(tmp_path / "work" / "earlier")
    assert [path.name for path in (tmp_path / "work").iterdir()] == ["earlier"]
    for name, tree in {**negated, "vae": toy.pipeline.params["vae"]}.items():
        jax.tree.map(np.testing.assert_array_equal, written.params[name], tree)


@pytest.mark.slow
def test_the_command_draws_with_the_shipped_model(succeed, tmp_path):
    flags = ["--pairs=3", "--held-out-pairs=2", f"--earlier={ASSETS}/pipeline"]
    done = succeed("build_toy.people", f"--out={tmp_path}/people", *flags)
    assert "two annotators agree" in done.stdout
    for kind in ("people", "exact"):
        assert len(open_preferences(tmp_path / "people" / kind, "train")) == 3
