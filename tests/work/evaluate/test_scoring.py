"""Scores are cut into parts of one shape, and diversity is the mean distance of features."""

from pathlib import Path
from unittest import mock

import numpy as np
import pytest
from jax.sharding import Mesh

from spo_jax.core.errors import UserError
from spo_jax.core.images import to_uint8
from spo_jax.run.lock import RunLock
from spo_jax.work.evaluate.drawing import noise_row
from spo_jax.work.evaluate.judges import Judge, with_total
from spo_jax.work.evaluate.request import Request
from spo_jax.work.evaluate.scoring import Scorer, equal_parts, mean_distance, to_float
from spo_jax.work.evaluate.store import Store


class CutOff(BaseException):
    """As Ctrl-C, which would end the tests if it got through."""


class Interrupted:
    """A reward whose third call is cut off."""

    meanings = {"a": ""}
    lower_is_better = ()
    calls = 0

    def check(self, prompts, size):
        pass

    def measure(self, images, prompts):
        self.calls += 1
        if self.calls == 3:
            raise CutOff
        return {"a": np.zeros(len(images), np.float32)}


@pytest.mark.parametrize("lost", [False, True])
def test_what_was_scored_before_an_interruption_is_written_once_unless_the_folder_is_lost(tmp_path, monkeypatch, lost):
    pixels = np.zeros((8, 8, 3), np.uint8)
    monkeypatch.setattr("spo_jax.work.evaluate.scoring.read_pixels", lambda file: pixels)
    reward, writings = Interrupted(), []
    monkeypatch.setattr(Judge, "load", lambda *_: reward)
    monkeypatch.setattr("spo_jax.work.evaluate.store.write_json", lambda path, content: writings.append(content))

    def check():
        if lost and reward.calls == 3:
            raise UserError("taken over")

    prompts = [str(number) for number in range(150)]
    protocol, places = mock.Mock(images_per_prompt=1), [(number, 0) for number in range(150)]
    request = mock.Mock(spec=Request, prompts=prompts, protocol=protocol, places=places)
    lock = mock.Mock(spec=RunLock, check=check)
    store, files = Store(tmp_path, prompts), {"base": [Path(prompt) for prompt in prompts]}
    scorer = Scorer(request, "kind", store, lock, mock.Mock(spec=Mesh), files, {"base": prompts})
    with pytest.raises(UserError if lost else CutOff):
        scorer.measure([Judge("a", {"spec": "a"}, {"a": ""}, (), False)])
    assert [len(content["scores"]) for content in writings] == ([] if lost else [100])


@pytest.mark.parametrize(("count", "sizes"), [(0, []), (3, [3]), (50, [50]), (51, [26, 26]), (130, [44, 44, 44])])
def test_parts_have_one_size(count, sizes):
    parts = equal_parts(range(count), count, 50)
    assert [len(part) for part in parts] == sizes and sum(parts, [])[:count] == list(range(count))
    assert set(sum(parts, [])) == set(range(count))
    assert equal_parts(range(count)[sum(sizes[:1]) :], count, 50) == parts[1:]  # after the first one was saved


def test_diversity_is_the_mean_distance_of_all_pairs():
    rng = np.random.default_rng(0)
    features = rng.normal(size=(5, 8))
    features /= np.linalg.norm(features, axis=1, keepdims=True)
    pairs = [1 - features[i] @ features[j] for i in range(5) for j in range(i)]
    assert mean_distance(features.astype(np.float32)) == pytest.approx(np.mean(pairs), abs=1e-6)
    assert mean_distance(features[[0, 0, 0]]) == pytest.approx(0, abs=1e-12)


def test_eight_bits_survive_their_conversion():
    pixels = np.arange(256, dtype=np.uint8).reshape(16, 16, 1).repeat(3, 2)
    np.testing.assert_array_equal(to_uint8(to_float(pixels)), pixels)
    assert to_float(pixels).min() == -1 and to_float(pixels).max() == 1


def test_noise_depends_neither_on_the_number_of_prompts_nor_on_that_of_images():
    places = [(prompt, image) for prompt in range(30) for image in range(4)]
    assert len({noise_row(place, "per_image") for place in places}) == len(places)
    assert [noise_row((prompt, 0), "per_image") for prompt in range(5)] == list(range(5))  # as spo_jax.sample
    assert {noise_row((prompt, 1), "same") for prompt in range(5)} == {noise_row((0, 1), "per_image")}


def test_the_total_is_normalised_by_the_first_contestant():
    judges = [Judge("a", {}, {"a": "", "more": ""}, (), False), Judge("b", {}, {"b": ""}, ("b",), False)]
    base = {"a": np.array([[1.0, 3.0]]), "b": np.array([[10.0, 30.0]])}
    scores = {"base": dict(base), "spo": {"a": base["a"] + 1, "b": base["b"] + 5}}
    assert list(with_total(scores, judges, (1.0, 2.0))) == ["total"]
    np.testing.assert_allclose(scores["base"]["total"].mean(), 0, atol=1e-12)
    np.testing.assert_allclose(scores["spo"]["total"].mean(), 1 / 1 - 2 * 5 / 10)  # b improves by falling
    assert with_total(scores, judges, ()) == {}


def test_a_total_needs_its_name():
    with pytest.raises(UserError, match="a reward has a score total"):
        with_total({"base": {}}, [Judge("a", {}, {"total": ""}, (), False)], (1.0,))
