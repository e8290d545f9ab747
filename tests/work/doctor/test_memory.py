"""Memory of training: sizes of a model, ranges, and what is certain to fit."""

import dataclasses
import math

import pytest

import spo_jax
from spo_jax.methods.spo.memory import GIB, SD15, estimate
from spo_jax.toy import LATENT_JUDGES
from spo_jax.work.doctor.memory import Need, compiled, estimated, sizes_of
from spo_jax.work.doctor.weights_file import weights_files, weights_of


@pytest.fixture(scope="module")
def toy():
    return spo_jax.read_settings(spo_jax.load_config("toy"))


def test_the_sizes_of_the_toy_are_counted(toy):
    sizes = sizes_of(toy)
    pipeline = spo_jax.open_pipeline("toy", abstract=True)
    parts = sizes.network + sizes.vae + sizes.text
    assert parts == sum(math.prod(leaf.shape) for leaf in _leaves(pipeline.params)) and sizes.latent == 16 * 16 * 4
    assert sizes.adapter == 8_736  # 69,888 numbers at rank 8 are the 279,552 bytes of its LoRA file
    assert sizes.trained / SD15.trained == sizes.guided / SD15.guided < 0.01
    assert 0 < sizes.costly < sizes.products < sizes.kept


def test_each_judge_is_counted_as_what_it_is():
    """A judge of noisy latents is no preference model; the second judge is one, and both are in memory."""
    noisy = spo_jax.read_settings(spo_jax.load_config("lpo_toy"))
    files = weights_files(LATENT_JUDGES["toy_people"])
    sizes = sizes_of(noisy)
    assert sizes.latent_judge == pytest.approx(weights_of(files).parameters, rel=0.01)
    both = dataclasses.replace(noisy, spo=dataclasses.replace(noisy.spo, second_reward="spm:toy_people"))
    assert sizes_of(both).latent_judge == sizes.latent_judge and sizes_of(both).judge < SD15.judge / 1000


def _leaves(tree):
    return [tree] if hasattr(tree, "shape") else [leaf for part in tree.values() for leaf in _leaves(part)]


def test_a_range_is_wider_where_nothing_was_compiled():
    settings = spo_jax.read_settings(spo_jax.load_config("sd15_one_chip"))
    peak = estimate(settings, SD15, 1).peak
    tpu, gpu = (estimated(settings, SD15, 1, platform) for platform in ("tpu", "gpu"))
    assert gpu.least < tpu.least < peak < tpu.most < gpu.most
    assert tpu.fits(0.98 * 16 * GIB), "the chip that the config is for"
    assert estimated(settings, SD15, 1, "a new one") == gpu
    float32 = dataclasses.replace(settings, dtype="float32")
    assert estimated(float32, SD15, 1, "tpu").fits(16 * GIB) is False


@pytest.mark.parametrize(("memory", "fits"), [(16, True), (12, None), (9, False)])
def test_what_is_not_certain_is_not_said_to_fit(memory, fits):
    assert Need(10 * GIB, 14 * GIB).fits(memory * GIB) is fits


@pytest.mark.slow
def test_compiling_gives_one_number(toy):
    need = compiled(dataclasses.replace(toy, prompts_per_batch=8))
    assert need.least == need.most > 10 * 2**20
