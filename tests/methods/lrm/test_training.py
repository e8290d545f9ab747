"""The training of a latent reward model: what its step computes, what it starts from, and what it writes."""

import dataclasses
import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from spo_jax.core.errors import UserError
from spo_jax.core.trees import flatten
from spo_jax.data.preferences.loading import LoadedBatch
from spo_jax.evaluate_spm import evaluate_spm
from spo_jax.methods.common.preference.rows import Split
from spo_jax.methods.common.preference.run import fresh_state
from spo_jax.methods.common.preference.settings import AccuracySettings
from spo_jax.methods.common.settings import LoadingSettings, OptimizerSettings
from spo_jax.methods.lrm.checks import check
from spo_jax.methods.lrm.inputs import draw
from spo_jax.methods.lrm.programs import LRMTraining
from spo_jax.methods.lrm.settings import LRMTrainSettings
from spo_jax.methods.lrm.start import config_of, load_start
from spo_jax.methods.spm.settings import SPMTrainSettings
from spo_jax.models import open_pipeline
from spo_jax.models.stable_diffusion import unet
from spo_jax.models.stable_diffusion.pipeline import StableDiffusion
from spo_jax.parallel.mesh import MeshSettings, make_mesh
from spo_jax.parallel.sharding import make, to_host
from spo_jax.prepare import prepare
from spo_jax.rewards import load_reward
from spo_jax.rewards.base import Context
from spo_jax.rewards.common.latent_weights import open_tokenizers, tokenized, write_model
from spo_jax.run.settings import LogSettings
from tests.e2e.micro import write_micro, write_micro_spm
from tests.methods.runs import assert_devices_agree, assert_resumes_to_the_bit
from tests.support.networks import SIDE, labelled_pairs

COUNT = 8
# A bias of keys adds the same to all logits of a query, which softmax does not see. AdamW makes steps of its rounding.
WITHOUT_GRADIENT = "k_proj/bias"


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """The folder of the smallest model."""
    return str(write_micro(tmp_path_factory.mktemp("models") / "micro"))


@pytest.fixture(scope="module")
def settings(model):
    return LRMTrainSettings(
        model=model,
        projection=12,
        batch_size=COUNT,
        chunk=COUNT,
        train_steps=3,
        posterior="mean",
        optimizer=OptimizerSettings(learning_rate=1e-2, weight_decay=0.0),
        eval=AccuracySettings(timesteps=(1, 501), batch=4),
        log=LogSettings(eval_every=2, checkpoint_every=2),
        loading=LoadingSettings(threads=1),
    )


class Built:
    """Everything that a step takes, on a mesh of its own."""

    def __init__(self, settings, mesh=None):
        self.mesh = make_mesh(mesh or MeshSettings(data=1))
        with jax.set_mesh(self.mesh):
            pipeline = open_pipeline(settings.model, mesh=self.mesh)
            self.start = load_start(settings, pipeline, jax.random.key(0), self.mesh)
            tokenizers = open_tokenizers([pipeline.folder / "tokenizer"], config_of(pipeline))
            tokenize = functools.partial(tokenized, tokenizers)
            self.training = LRMTraining(pipeline, self.start.model, settings, self.mesh, tokenize([""]))
            self.split = Split.of(labelled_pairs(COUNT), None, tokenize)
            images = np.random.default_rng(0).integers(0, 256, (COUNT, 2, SIDE, SIDE, 3), np.uint8)
            self.rows = self.training.feed(self.split.feed(LoadedBatch(images, np.arange(COUNT, dtype=np.int32))))
            self.key = make(lambda: jax.random.key(3), self.mesh)

    def trace(self):
        with jax.set_mesh(self.mesh):
            return self.training.trace(fresh_state(self.training.settings, self.copy(), self.mesh))["step"]

    def copy(self):
        return jax.tree.map(jnp.copy, self.start.params)  # the state takes over its arrays

    def trained(self, steps=2):
        """(weights on the host, metrics of every step)."""
        with jax.set_mesh(self.mesh):
            step = self.trace().lower().compile()
            state, seen = fresh_state(self.training.settings, self.copy(), self.mesh), []
            for _ in range(steps):
                state, metrics = step(state, self.training.frozen(), self.rows, self.key)
                seen.append(jax.device_get(metrics))
            return flatten(to_host(state.params)), seen


@pytest.fixture(scope="module")
def built(settings):
    return Built(settings)


def test_timesteps_are_the_published_ones():
    settings = LRMTrainSettings()
    assert [*settings.trained_timesteps] == [*range(1, 952, 50)] and settings.judged_timesteps == (0, 999)
    draws = draw(jax.random.key(0), 4000, (1, 1, 2), settings.trained_timesteps, True, True)
    t, counts = np.unique(draws.t, return_counts=True)
    np.testing.assert_array_equal(t, settings.trained_timesteps)
    assert (np.abs(counts - 200) < 5 * 200**0.5).all()
    assert (draws.noise[:, 0] != draws.noise[:, 1]).all()  # a pair has one timestep and two noises
    assert dataclasses.replace(settings, largest_timestep=500).judged_timesteps == (0, 500)


def test_settings_have_to_go_together():
    with pytest.raises(UserError, match="clip = 'a/b': expected empty"):
        LRMTrainSettings(init="runs/x/lrm", clip="a/b")


def test_a_model_of_another_family_has_no_first_half(monkeypatch):
    monkeypatch.setattr("spo_jax.methods.lrm.checks.kind_and_channels", lambda model: ("sd3", 16))
    with pytest.raises(UserError, match="model is of the kind 'sd3', whose network has no first half that judges: exp"):
        check(LRMTrainSettings(model="toy"))


def test_a_step_runs_the_first_half_and_decodes_nothing(built, monkeypatch):
    """All of its weights are trained, and the diffusion model's own UNet is no argument."""

    def fail(*_):
        raise AssertionError("not a part of the step")

    monkeypatch.setattr(unet._UpBlock, "__call__", fail)
    monkeypatch.setattr(StableDiffusion, "decode", fail)
    monkeypatch.setattr(StableDiffusion, "predict", fail)
    training, frozen = built.training, built.training.frozen()

    def scores(params, frozen, rows, key):
        return training.pair_scores(params, training.batch(frozen, rows, training.draws(key, COUNT, False)))

    with jax.set_mesh(built.mesh):
        assert jax.eval_shape(scores, built.start.params, frozen, built.rows, built.key).shape == (COUNT, 2)
    assert frozen.network == {} and frozen.text == {} and frozen.unconditional is None
    names = {name.split("/")[0] for name in flatten(built.start.params)}
    assert names == {"unet", "text_encoder", "visual_projection", "text_projection", "logit_scale"}


def test_it_starts_from_the_diffusion_model(built, model):
    pipeline = open_pipeline(model)
    for name, value in flatten(built.start.params["unet"]).items():
        np.testing.assert_array_equal(value, flatten(pipeline.params["unet"])[name])
    for name, value in flatten(built.start.params["text_encoder"]).items():
        np.testing.assert_array_equal(value, flatten(pipeline.params["text_encoder"])[name])
    assert 0.015 < np.std(built.start.params["visual_projection"]["kernel"]) < 0.025
    assert built.start.params["logit_scale"] == np.float32(2.6592)


@pytest.fixture(scope="module")
def written(built, tmp_path_factory):
    folder = tmp_path_factory.mktemp("written") / "lrm"
    pipeline = built.training.pipeline
    write_model(
        folder,
        config_of(pipeline),
        to_host(built.start.params),
        pipeline.folder,
        timesteps=(0, 500),
        guidance_scale=3.0,
    )
    return folder


def test_what_is_written_is_read_back(built, written, settings):
    reward = load_reward(f"lrm:{written}", Context(kind="sd", channels=4, timesteps=(401,)))
    found, expected = flatten(reward.params["model"]), flatten(built.start.params)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_array_equal(found[name], value, err_msg=name)
    assert reward.model.guidance_scale == 3.0
    with pytest.raises(UserError, match="judges at timesteps 0 to 500"):
        load_reward(f"lrm:{written}", Context(timesteps=(951,)))
    again = load_start(
        dataclasses.replace(settings, init=str(written)), built.training.pipeline, jax.random.key(1), None
    )
    np.testing.assert_array_equal(
        flatten(again.params)["visual_projection/kernel"], expected["visual_projection/kernel"]
    )


@pytest.mark.slow
def test_scores_in_training_are_those_of_the_reward(built, tmp_path):
    folder, pipeline = tmp_path / "lrm", built.training.pipeline
    arguments = {"timesteps": (0, 999), "guidance_scale": built.training.settings.guidance_scale}
    write_model(folder, config_of(pipeline), to_host(built.start.params), pipeline.folder, **arguments)
    reward = load_reward(f"lrm:{folder}", Context())
    with jax.set_mesh(built.mesh):
        draws = built.training.draws(built.key, COUNT, False)
        batch = jax.jit(built.training.batch)(built.training.frozen(), built.rows, draws)
        scores = jax.jit(built.training.pair_scores)(built.start.params, batch)
    prompts = [built.split.pairs.prompts[row] for row in built.split.pairs.prompt]
    features = reward.features(prompts)
    for member in range(2):
        theirs = jax.jit(reward.score)(reward.params, jnp.asarray(batch.x[:, member]), features, jnp.asarray(batch.t))
        np.testing.assert_allclose(scores[:, member], theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("layout", [MeshSettings(8, 1), MeshSettings(2, 4)], ids=["data=8", "data=2, fsdp=4"])
def test_eight_devices_and_chunks_equal_one(built, settings, layout):
    weights, rows = built.trained()
    found, seen = Built(dataclasses.replace(settings, chunk=1), layout).trained()
    for name, value in weights.items():
        if not name.endswith(WITHOUT_GRADIENT):
            np.testing.assert_allclose(found[name], value, rtol=0, atol=2e-4, err_msg=name)  # a fiftieth of a step
    for ours, theirs in zip(seen, rows, strict=True):
        np.testing.assert_allclose(ours["loss"], theirs["loss"], rtol=1e-4)


@pytest.fixture(scope="module")
def run_settings(settings, tmp_path_factory):
    data = tmp_path_factory.mktemp("data")
    prepare("toy", data, pairs=10, held_out_pairs=6, seed=0)
    return dataclasses.replace(settings, data_dir=str(data), batch_size=4, chunk=4)


@pytest.fixture(scope="module")
def micro_spm(tmp_path_factory):
    return str(write_micro_spm(tmp_path_factory.mktemp("models") / "spm"))


def test_measuring_a_judge_needs_one_for_these_latents(run_settings, written, tmp_path):
    """Before its weights are read, and before anything is compiled."""
    run_settings = dataclasses.replace(run_settings, mesh=MeshSettings(data=1))
    with pytest.raises(UserError, match="expected --spm, --lrm or both"):
        evaluate_spm(run_settings, "", tmp_path)
    with pytest.raises(UserError, match="^--lrm: .* judges latents of 16 channels .* but the model's have 4"):
        evaluate_spm(run_settings, "", tmp_path, lrm="toy_people")
    with pytest.raises(UserError, match="^--lrm: .* judges at timesteps 0 to 500, but it is measured at timestep 501"):
        evaluate_spm(run_settings, "", tmp_path, lrm=str(written))
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_one_command_measures_both_kinds_of_judges(run_settings, written, micro_spm, tmp_path):
    """Whatever kind of config names the pairs; a judge's numbers do not depend on which others are measured."""
    evaluation = AccuracySettings(timesteps=(1, 401), batch=6)
    own = dataclasses.replace(run_settings, eval=evaluation, mesh=MeshSettings(data=1))
    shared = {
        "mesh": own.mesh,
        "model": own.model,
        "data_dir": own.data_dir,
        "posterior": own.posterior,
        "loading": own.loading,
    }
    clips = SPMTrainSettings(init=micro_spm, eval=evaluation, chunk=4, batch_size=4, **shared)
    both = evaluate_spm(own, micro_spm, tmp_path / "both", lrm=str(written))
    assert list(both) == ["step-aware preference model", "latent reward model"]
    found = json.loads((tmp_path / "both" / "accuracy.json").read_text())
    assert found.keys() == {*both, "chance"} and found["latent reward model"].keys() == {"1", "401"}
    for alone in (
        evaluate_spm(clips, "", tmp_path / "lrm", lrm=str(written)),
        evaluate_spm(clips, micro_spm, tmp_path / "spm"),
    ):
        for line, measured in alone.items():
            for t, values in measured.items():
                np.testing.assert_array_equal(values, both[line][t])


@pytest.mark.slow
def test_a_run_resumes_to_the_bit_and_learns(run_settings, tmp_path):
    whole = assert_resumes_to_the_bit(run_settings, tmp_path)
    assert all(np.isfinite(row["loss"]) for row in whole.rows)


@pytest.mark.slow
def test_devices_agree(run_settings, tmp_path):
    changed = dataclasses.replace(run_settings, batch_size=8, chunk=8)
    assert_devices_agree(changed, tmp_path, without_gradient=WITHOUT_GRADIENT)
