"""A studio draws what `sample` draws, and scores what it predicts on the way as SPO judges a rollout.

Images agree with those of `sample` to one level of 255, which is the rounding of a PNG; predictions and scores to 1e-4,
because the same functions are compiled into other programs.
"""

import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

import spo_jax
from spo_jax.core.errors import UserError
from spo_jax.methods.common.judge import Judge
from spo_jax.models.base import Decoder, Guidance, bind_denoise
from spo_jax.models.lora import write_lora
from spo_jax.models.sampler import initial_latents
from spo_jax.rewards.base import DeviceReward
from spo_jax.rewards.common.spm_reward import SPMReward
from spo_jax.rewards.toy import ToyTruth
from spo_jax.weights.lora import LoRA
from spo_jax.work.studio import Studio, checked_judge
from tests.models.helpers import RANK, random_adapter
from tests.support.networks import small_pipeline, small_spm

PROMPTS = ["a red star", "a blue moon"]
STEPS = 3


class Brightness(DeviceReward):
    """Reads latents, and shows the timestep that it is given."""

    READS = "latents"
    meanings = {"brightness": "mean of the latents, times the timestep"}

    def score(self, params, x, features, t):
        return x.mean((1, 2, 3)) * t


def write_adapter(pipeline, path, std=0.3):
    tree = jax.tree.map(np.asarray, random_adapter(pipeline.params["unet"], std))
    write_lora(path, LoRA(tree, RANK / 2, RANK))  # alpha / r = 1/2 is folded into the file
    return path


@pytest.fixture(scope="module")
def studio():
    return Studio(small_pipeline(), SPMReward(small_spm()))


@pytest.fixture(scope="module")
def lora_file(studio, tmp_path_factory):
    return write_adapter(studio.pipeline, tmp_path_factory.mktemp("lora") / "lora.safetensors")


@pytest.fixture(scope="module")
def drawn(studio):
    return studio.draw(PROMPTS, seed=3, steps=STEPS)


def test_images_are_those_of_sample(toy, tmp_path):
    """With a LoRA at a strength; image 1 shows that a row's noise is the noise of that number."""
    lora = write_adapter(toy.pipeline, tmp_path / "lora.safetensors", std=0.2)
    how = {"seed": 3, "steps": STEPS, "guidance": 4.0}
    files = spo_jax.sample(
        model="toy", prompt=PROMPTS[0], count=2, lora=str(lora), lora_scale=0.7, out=tmp_path / "out", **how
    )
    studio = Studio(toy.pipeline)
    drawn = studio.draw([PROMPTS[0]] * 2, lora=studio.lora(lora), strength=0.7, predictions=False, **how)
    theirs = np.stack([np.asarray(Image.open(file)) for file in files]).astype(int)
    assert np.abs(theirs[0] - theirs[1]).max() > 20
    assert np.abs(spo_jax.to_uint8(drawn.images).astype(int) - theirs).max() <= 1
    assert drawn.predictions is None and drawn.scores is None and drawn.image_scores is None


def test_predictions_and_scores_are_those_of_spo(studio, drawn):
    """By SPO's own functions: the steps of the process without noise, and the judge of rollouts."""
    pipeline = studio.pipeline
    process = pipeline.process(STEPS)
    judge = Judge(studio.judge, Decoder(pipeline.params["vae"], pipeline.decode))
    guidance = Guidance(pipeline.encode_prompts(PROMPTS), pipeline.encode_unconditional(), 5.0)
    features = judge.features(PROMPTS)

    @jax.jit
    def follow(params, judge_params, features, x):
        denoise = bind_denoise(pipeline, params["unet"], None, guidance)
        predictions, scores = [], []
        for t in map(jnp.asarray, process.timesteps):
            x0, noise = process.split(x, denoise(x, t), t)
            x, _ = process.step(x0, noise, t, eta=0.0)
            predictions.append(pipeline.decode(params["vae"], x0))
            scores.append(judge.score(judge_params, x0, features, jnp.broadcast_to(t, len(x))))
        return jnp.stack(predictions), jnp.stack(scores)

    latents = initial_latents(3, 2, pipeline.latent_shape)
    predictions, scores = follow(pipeline.params, judge.params, features, latents)
    np.testing.assert_array_equal(drawn.timesteps, process.timesteps)
    np.testing.assert_allclose(drawn.predictions, predictions, atol=1e-4)
    np.testing.assert_allclose(drawn.scores, scores, atol=1e-4)
    finished = studio.judge.measure(drawn.images, PROMPTS)["spm_score"]
    np.testing.assert_allclose(drawn.image_scores, finished, atol=1e-4)
    assert np.abs(drawn.scores - drawn.scores[:1]).max() > 1e-2  # so that an exchange of steps would show


def test_a_judge_of_latents_reads_them_with_their_timestep(studio, drawn):
    looking = Studio(studio.pipeline, Brightness()).draw(PROMPTS, seed=3, steps=STEPS)
    np.testing.assert_allclose(looking.predictions, drawn.predictions, atol=1e-4)
    assert np.abs(looking.scores).min() > 0
    np.testing.assert_array_equal(looking.image_scores, 0)  # finished images are at t = 0


def test_what_a_person_changes_compiles_nothing(studio, lora_file):
    lora = studio.lora(lora_file)
    studio.draw(PROMPTS, lora=lora, steps=1)
    programs = [program._cache_size() for program in (studio._step, studio._look)]
    studio.draw(PROMPTS[::-1], lora=lora, steps=2, seed=9, guidance=2.5, strength=0.4)
    assert [program._cache_size() for program in (studio._step, studio._look)] == programs


def test_strength_scales_the_lora_and_zero_is_the_base_model(studio, drawn, lora_file):
    lora = studio.lora(lora_file)
    how = {"seed": 3, "steps": STEPS, "predictions": False}
    none, half, whole = (
        studio.draw(PROMPTS, lora=lora, strength=strength, **how).images for strength in (0.0, 0.5, 1.0)
    )
    np.testing.assert_allclose(none, drawn.images, atol=1e-5)
    assert 1e-2 < np.abs(half - none).max() < np.abs(whole - none).max()


def test_one_frame_for_each_step_and_no_step_that_nobody_asks_for(studio, monkeypatch):
    steps = []
    step = studio._step
    monkeypatch.setattr(studio, "_step", lambda *inputs: steps.append(inputs) or step(*inputs))
    frames = studio.frames("a red star", steps=4)
    first = next(frames)
    frames.close()
    assert (first.number, first.count, len(steps)) == (1, 4, 1)
    assert first.images is None and first.image_scores is None
    assert first.prediction.shape == (1, *studio.pipeline.image_size, 3)
    *_, last = studio.frames("a red star", steps=4)
    assert last.number == 4 and last.images.shape == first.prediction.shape and last.image_scores.shape == (1,)


def test_a_lora_is_read_again_only_if_its_file_changed(studio, lora_file, tmp_path):
    assert studio.lora("") is None
    path = shutil.copy(lora_file, tmp_path / "lora.safetensors")
    first = studio.lora(path)
    assert studio.lora(tmp_path) is first  # the folder that holds it
    write_adapter(studio.pipeline, path, std=1.0)
    assert studio.lora(path) is not first
    for number in range(9):
        studio.lora(shutil.copy(lora_file, tmp_path / f"{number}.safetensors"))
    assert len(studio._adapters) == 8


def test_threads_that_want_the_same_lora_read_it_once(studio, lora_file, tmp_path, monkeypatch):
    path = shutil.copy(lora_file, tmp_path / "lora.safetensors")
    read = []

    def slowly(pipeline, path):
        read.append(path)
        time.sleep(0.05)
        return {}, 1.0

    monkeypatch.setattr("spo_jax.work.studio.read_adapter", slowly)
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(studio.lora, [path] * 4))
    assert len(read) == 1 and all(adapter is found[0] for adapter in found)


class Noisy(DeviceReward):
    """A judge of LPO, which a studio has nothing to show."""

    READS = "noisy latents"
    meanings = {"noisy": "reads noisy latents"}


def load(source, context):
    """This module is a reward of a user's, which says in its class alone what it reads."""
    del source, context
    return Noisy()


def test_opening_the_toy_with_its_judge_gives_scores():
    studio = spo_jax.open_studio("toy", judge="spm:toy")
    assert "spm_score" in studio.judge.meanings
    assert spo_jax.open_studio(Path("toy")).judge is None
    brightness = Brightness()
    assert spo_jax.open_studio("toy", judge=brightness).judge is brightness


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"model": "nowhere/at/all"}, "nowhere/at/all"),
        ({"dtype": "float16"}, "--dtype=float16: expected one of float32, bfloat16"),
        ({"judge": "spn"}, r"^--judge = 'spn': expected .*'spm:SOURCE', .*or the dotted path"),
        ({"judge": "toy"}, r"^--judge = 'toy': this reward is computed on the host"),
        ({"judge": "spm"}, r"^--judge = 'spm': name the preference model, as in spm:FOLDER_OR_ID"),
        ({"judge": "spm:no/such/folder"}, "no/such/folder"),
        ({"judge": "tests.work.test_studio"}, "^--judge = 'tests.work.test_studio': this reward judges noisy latents"),
        ({"judge": Noisy()}, "^judge = 'Noisy': this reward judges noisy latents"),
    ],
)
def test_a_studio_that_cannot_be_opened_says_why(given, message):
    with pytest.raises(UserError, match=message):
        spo_jax.open_studio(**{"model": "toy"} | given)


@pytest.mark.parametrize(
    ("judge", "message"),
    [
        (5, "^judge is an object of type int without meanings, .*: expected a reward"),
        (ToyTruth(), "^judge = 'ToyTruth': this reward is computed on the host"),
    ],
)
def test_an_object_that_is_no_judge_is_refused(judge, message):
    """By a function without annotations, as users call `open_studio`: in tests, types of arguments are checked."""
    with pytest.raises(UserError, match=message):
        checked_judge(judge)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"prompts": []}, "expected at least one prompt"),
        ({"prompts": ["\ud800"]}, "expected text that can be written as UTF-8"),
        ({"seed": -1}, "--seed=-1: expected a number from 0 to"),
        ({"steps": 0}, "--steps=0: expected a number from 1 to 1000"),
        ({"guidance": float("nan")}, "--guidance=nan: expected a number from"),
        ({"strength": float("inf")}, "--lora-scale=inf: expected a finite number"),
        ({"size": (17, 16)}, "--height=17: expected a multiple of"),
        ({"prompts": ["a"] * 2000, "size": (512, 512)}, "2000 images of 512x512 pixels at a time are too many"),
    ],
)
def test_what_cannot_be_drawn_is_refused_before_anything_is_computed(studio, monkeypatch, given, message):
    monkeypatch.setattr(studio, "_step", None)
    with pytest.raises(UserError, match=message):
        studio.frames(**{"prompts": PROMPTS} | given)  # not at the first frame


def test_a_lora_that_does_not_fit_or_diverges_is_named(studio, lora_file, toy, tmp_path):
    with pytest.raises(UserError, match="no such file or folder: runs/missing"):
        studio.lora("runs/missing")
    with pytest.raises(UserError, match="modules this model does not have|was made for another model"):
        studio.lora(write_adapter(toy.pipeline, tmp_path / "toy.safetensors"))
    with pytest.raises(UserError, match="values that are not finite: check the guidance, the LoRA and its strength"):
        studio.draw(PROMPTS, lora=studio.lora(lora_file), strength=1e38, steps=2)
