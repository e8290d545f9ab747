"""Pair accuracy: the reference's rule for right and wrong, and every pair measured once with its own label."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from spo_jax.core.errors import UserError
from spo_jax.data.preferences.images import decode
from spo_jax.data.preferences.loading import LoadedBatch
from spo_jax.data.tokenizer import Tokenizer
from spo_jax.methods.common.preference.accuracy import Evaluator, accuracy_figure, agreement, summarised, write_figure
from spo_jax.methods.common.preference.rows import Split
from spo_jax.methods.common.preference.settings import AccuracySettings
from spo_jax.methods.common.settings import OptimizerSettings
from spo_jax.methods.spm.programs import SPMTraining
from spo_jax.methods.spm.settings import SPMTrainSettings
from spo_jax.parallel.mesh import MeshSettings, make_mesh
from spo_jax.run.report.charts import as_svg
from tests.e2e.micro import TOKENIZER as FOLDER
from tests.support.networks import labelled_pairs, small_clip, small_pipeline

TOKENIZER = Tokenizer(FOLDER)
FIRST, SECOND, TIE = (1.0, 0.0), (0.0, 1.0), (0.5, 0.5)


@pytest.mark.parametrize(
    ("scores", "label", "wanted"),
    [
        ((2.0, 1.0), FIRST, 1.0),
        ((1.0, 2.0), FIRST, 0.0),
        ((1.0, 2.0), SECOND, 1.0),
        ((1.0, 1.0), FIRST, 0.0),  # the model does not say
        ((2.0, 1.0), TIE, 0.5),
        ((1.0, 2.0), TIE, 0.5),
        ((1.0, 1.0), TIE, 0.0),
    ],
)
def test_the_rule(scores, label, wanted):
    found = agreement(np.array([scores], np.float32), np.array([label], np.float32))
    np.testing.assert_array_equal(found, [wanted])


def test_a_measurement_is_summarised_with_its_standard_error():
    values = np.array([1, 0, 1, 1], np.float32)  # of standard deviation 1/2
    assert summarised({0: values}) == {"0": {"accuracy": 0.75, "standard_error": 0.25, "pairs": 4}}
    assert summarised({0: values[:1]}) == {"0": {"accuracy": 1.0, "standard_error": None, "pairs": 1}}


class FirstPixel(SPMTraining):
    """Scores images by their first pixel; above t = 500 with the opposite sign."""

    def scores(self, params, frozen, rows, t, number, key):
        return self.clean_scores(params, rows) * jnp.where(t > 500, -1.0, 1.0)

    def clean_scores(self, params, rows):
        return rows.images[:, :, 0, 0, 0].astype(jnp.float32)


@functools.cache
def models_on(devices):
    mesh = make_mesh(MeshSettings(data=devices))
    with jax.set_mesh(mesh):
        return mesh, small_pipeline(mesh), small_clip(mesh)[0]


def evaluator(count, labels=None, devices=2, training=FirstPixel, run=None, **fields):
    mesh, pipeline, clip = models_on(devices)
    settings = SPMTrainSettings(eval=AccuracySettings(**fields), **(run or {}))
    with jax.set_mesh(mesh):
        bound = training(pipeline, clip, settings, mesh)
        pairs = labelled_pairs(count)
        split = Split.of(pairs, pipeline, TOKENIZER, labels)
        return mesh, pairs, Evaluator(bound, bound.frozen(), split, mesh)


def first_pixels(pairs):
    return np.array(
        [[decode(data, 16)[0, 0, 0] for data in pairs.images(row)] for row in range(len(pairs))], np.float32
    )


def test_every_judged_pair_is_measured_once_with_its_own_label():
    """9 pairs of 10, in batches of 4 over 2 devices: the last one is filled up."""
    mesh, pairs, measured = evaluator(10, timesteps=(0, 400, 900), batch=4)
    with jax.set_mesh(mesh):
        found = measured.measure({})
    right = agreement(first_pixels(pairs), pairs.labels)[:9]
    wrong = agreement(-first_pixels(pairs), pairs.labels)[:9]
    assert 0 < right.sum() < 9 and list(found) == [0, 400, 900]
    np.testing.assert_array_equal(found[0], right)
    np.testing.assert_array_equal(found[400], right)
    np.testing.assert_array_equal(found[900], wrong)


def test_scores_that_are_not_finite_are_refused():
    class Broken(FirstPixel):
        def clean_scores(self, params, rows):
            return super().clean_scores(params, rows) * jnp.nan

    mesh, _, measured = evaluator(6, timesteps=(0,), batch=4, training=Broken)
    with jax.set_mesh(mesh), pytest.raises(UserError, match="scores at t = 0 are not finite"):
        measured.measure({})


def test_ties_among_new_labels_are_left_out():
    labels = np.array([FIRST, TIE, SECOND, TIE, FIRST, FIRST], np.float32)
    mesh, pairs, measured = evaluator(6, labels, timesteps=(0,), batch=2)
    np.testing.assert_array_equal(measured.rows, [0, 2, 4])  # of the 5 pairs that have a human label
    with jax.set_mesh(mesh):
        found = measured.measure({})
    np.testing.assert_array_equal(found[0], agreement(first_pixels(pairs), labels)[[0, 2, 4]])


def test_the_fingerprint_changes_with_everything_that_changes_the_measurement():
    tie = np.array([FIRST, TIE, SECOND], np.float32)
    cases = [{}, {"labels": tie}, {"labels": tie[::-1].copy()}, {"run": {"guidance_scale": 1.0}}, {"seed": 5}]
    cases += [{"run": {"posterior": "mean"}}, {"run": {"resolution": 8}}]
    found = [evaluator(3, **{"timesteps": (0,), "batch": 2, **case})[2].fingerprint for case in cases]
    assert len(set(found)) == len(found)
    other = {"optimizer": OptimizerSettings(learning_rate=1.0), "chunk": 2, "train_steps": 9}
    assert evaluator(3, timesteps=(0,), batch=2, run=other)[2].fingerprint == found[0]


def test_only_the_first_pairs_are_measured_if_asked():
    assert evaluator(6, timesteps=(0,), batch=2, pairs=2)[2].rows.tolist() == [0, 1]


def test_nothing_to_measure_is_an_error():
    with pytest.raises(UserError, match="eval_split: no pair of that split is decided"):
        evaluator(3, np.full((3, 2), 0.5, np.float32), timesteps=(0,), batch=2)
    with pytest.raises(UserError, match="eval.timesteps: 1000 is not below the model's 1000"):
        evaluator(3, timesteps=(1000,), batch=2)


def test_scores_noised_and_clean_follow_their_keys():
    """With the true programs: equal numbers give equal scores; another batch number gives others; at t = 0 no noise."""
    mesh = make_mesh(MeshSettings(data=1))
    settings = SPMTrainSettings(chunk=2)
    with jax.set_mesh(mesh):
        pipeline, (clip, params) = small_pipeline(mesh), small_clip(mesh)
        training = SPMTraining(pipeline, clip, settings, mesh)
        split = Split.of(labelled_pairs(4), pipeline, TOKENIZER)
        images = np.random.default_rng(0).integers(0, 256, (4, 2, 16, 16, 3), np.uint8)
        rows = training.feed(split.feed(LoadedBatch(images, np.arange(4, dtype=np.int32))))
        frozen, key = training.frozen(), jax.random.key(0)
        noised = jax.jit(training.scores)
        one, same, other, later = (
            np.asarray(noised(params, frozen, rows, t, number, key))
            for t, number in ((300, 0), (300, 0), (300, 1), (301, 0))
        )
        np.testing.assert_array_equal(one, same)
        assert (one != other).all() and (one != later).all()
        clean = jax.jit(training.clean_scores)(params, rows)
        assert clean.shape == (4, 2) and (np.asarray(clean) != one).all()


def test_the_plot_shows_every_line_and_chance(tmp_path):
    values = {0: np.array([1.0, 1, 0], np.float32), 501: np.array([1.0, 0, 0], np.float32)}
    figure = accuracy_figure({"SPM": values, "plain CLIP": values})
    svg = as_svg(figure)
    assert svg == as_svg(accuracy_figure({"SPM": values, "plain CLIP": values}))
    assert [text.get_text() for text in figure.axes[0].get_legend().get_texts()] == ["chance", "SPM", "plain CLIP"]
    write_figure(tmp_path / "accuracy", figure)
    assert (tmp_path / "accuracy.png").stat().st_size > 1000 and (tmp_path / "accuracy.svg").read_bytes() == svg
