"""The formula of memory: what it counts, and what changes it."""

import dataclasses
import subprocess
import sys

import pytest

from spo_jax.methods.spo.memory import DISTILLED, GIB, SD15, SDXL, estimate
from spo_jax.methods.spo.plan import make_plan
from spo_jax.methods.spo.settings import SPOSettings, SPOTrainSettings
from spo_jax.parallel.settings import MeshSettings

SETTINGS = SPOTrainSettings(dtype="bfloat16", remat=True)


def changed(**fields):
    """The settings of SD 1.5 for one device, with other fields of `spo`."""
    return dataclasses.replace(SETTINGS, spo=dataclasses.replace(SETTINGS.spo, **fields))


def test_weights_and_state_are_counted():
    """UNet, preference model and autoencoder are taken by programs, and text encoders are not."""
    memory = estimate(SETTINGS, SD15)
    assert memory.weights == 2 * (SD15.network + SD15.judge + SD15.vae) and memory.idle == 2 * SD15.text
    assert memory.state == 4 * 3 * SD15.adapter * 4
    accumulating = dataclasses.replace(SETTINGS.optimizer, gradient_accumulation_steps=4)
    assert estimate(dataclasses.replace(SETTINGS, optimizer=accumulating), SD15).state == 4 * 4 * SD15.adapter * 4
    assert memory.pairs == 4 * 10 * 16 * 3 * SD15.latent
    resident = memory.weights + memory.idle + memory.state + memory.pairs
    assert memory.of_rollout == resident + memory.rollout
    assert memory.of_update == resident + 2 * memory.pairs + memory.update
    assert memory.peak == max(memory.of_rollout, memory.of_update)


@pytest.mark.parametrize("objective", ["spo", "gradspo"])
@pytest.mark.parametrize(
    "fields",
    [{}, {"num_inner_step": 3}, {"branch_at_last_step": False}, {"divert_start_step": 19, "num_inner_step": 3}]
    + [{"num_inner_step": 2, "branch_at_last_step": last} for last in (True, False)],
    ids=str,
)
def test_pairs_are_those_of_the_plan(fields, objective):
    """Two parents are kept of each pair unless every step branches; GradSPO has one x_t and one noise a judgement."""
    settings = changed(objective=objective, **fields)
    plan = make_plan(settings.spo)
    kept = (3 if plan.shares_parent else 4) * len(plan.segment)
    if objective == "gradspo":
        kept = 2 * (len(plan.judged_at) + 1)
    assert estimate(settings, SD15).pairs == 4 * 10 * kept * SD15.latent


def test_separate_trajectories_have_parents_of_their_own():
    assert estimate(changed(shared_parent=False), SD15).pairs == 4 * 10 * 16 * 4 * SD15.latent


def test_a_distilled_decoder_leaves_the_autoencoder_idle():
    memory, exact = estimate(changed(decoder="madebyollin/taesd"), SD15), estimate(SETTINGS, SD15)
    assert exact.weights - memory.weights == 2 * (SD15.vae - DISTILLED) and memory.idle - exact.idle == 2 * SD15.vae
    one = {"num_candidates": 2, "divert_start_step": 18, "decode_chunk": 8}
    images = 2 * 2  # there are no more: one prompt has two pools of two candidates
    for decoder, each in (("vae", SD15.decoded), ("madebyollin/taesd", SD15.distilled)):
        settings = dataclasses.replace(changed(**one, decoder=decoder), prompts_per_batch=1)
        assert estimate(settings, SD15).rollout == int(max(images * each, 2 * SD15.guided))


@pytest.mark.parametrize(
    ("field", "value", "program"),
    [("train_chunk", 5, "of_update"), ("num_candidates", 2, "of_rollout"), ("decode_chunk", 4, "of_rollout")],
)
def test_smaller_pieces_take_less(field, value, program):
    settings = changed(decode_chunk=8 if field == "decode_chunk" else 1)
    smaller = dataclasses.replace(settings, spo=dataclasses.replace(settings.spo, **{field: value}))
    assert getattr(estimate(smaller, SD15), program) < getattr(estimate(settings, SD15), program)


def test_devices_share_batches_and_cut_weights():
    """Every device has all pairs; `mesh.fsdp` cuts the weights, and -1 is all devices."""
    settings = dataclasses.replace(
        SETTINGS, prompts_per_batch=80, spo=SPOSettings(train_batch_size=80), mesh=MeshSettings(-1, 1)
    )
    whole, alone = estimate(settings, SD15, 8), estimate(SETTINGS, SD15)
    assert whole.rollout == alone.rollout and whole.pairs == 8 * alone.pairs and whole.weights == alone.weights
    assert whole.update < alone.update
    for mesh in (MeshSettings(1, 8), MeshSettings(1, -1)):
        cut = estimate(dataclasses.replace(settings, mesh=mesh), SDXL, 8)
        assert cut.weights == pytest.approx(estimate(settings, SDXL, 8).weights / 8, abs=1)


def test_float32_takes_twice_as_much():
    wide = estimate(dataclasses.replace(SETTINGS, dtype="float32"), SD15)
    narrow = estimate(SETTINGS, SD15)
    assert wide.weights == 2 * narrow.weights and wide.update == pytest.approx(2 * narrow.update, abs=2)
    assert wide.state == narrow.state


def test_inner_steps_give_every_candidate_a_parent():
    inner = estimate(changed(num_inner_step=3), SDXL)
    assert (
        inner.pairs * 3 == estimate(SETTINGS, SDXL).pairs * 4 and inner.update > 1.9 * estimate(SETTINGS, SDXL).update
    )


def test_sdxl_does_not_fit_what_sd15_fits():
    """One chip of 16 GiB holds the published batch of SD 1.5."""
    assert estimate(SETTINGS, SD15).peak < 15.7 * GIB < estimate(SETTINGS, SDXL).peak


def test_without_checkpointing_activations_are_kept():
    kept = estimate(dataclasses.replace(SETTINGS, remat=False), SD15)
    assert kept.update > 8 * estimate(SETTINGS, SD15).update and kept.rollout == estimate(SETTINGS, SD15).rollout


def test_what_remat_keeps_is_added_for_every_latent():
    at_once = SETTINGS.spo.chunk(8) / 8
    for keeps, more in (("costly", SD15.costly), ("products", SD15.products)):
        kept = estimate(dataclasses.replace(SETTINGS, remat_keeps=keeps), SD15, 8)
        assert kept.update == pytest.approx(estimate(SETTINGS, SD15, 8).update + at_once * more)
        assert kept.of_rollout == estimate(SETTINGS, SD15, 8).of_rollout


def test_it_needs_no_jax():
    code = "import sys, spo_jax.methods.spo.memory; sys.exit('jax' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_judge_of_noisy_latents_takes_no_decoder_and_no_clip():
    """The network predicts from one candidate of a pool, and judges some at a time."""
    noisy = changed(judged="noisy", divert_start_step=0, decode_chunk=8)
    memory, exact = estimate(noisy, SD15), estimate(SETTINGS, SD15)
    assert memory.weights == 2 * (SD15.network + SD15.latent_judge)
    assert memory.idle == 2 * (SD15.text + SD15.vae)
    assert memory.rollout == int(max(noisy.prompts_per_batch * SD15.guided, 8 * SD15.judged))
    more = estimate(changed(judged="noisy", divert_start_step=0, decode_chunk=80), SD15)
    assert more.rollout == int(80 * SD15.judged)
    assert memory.of_rollout < 0.6 * exact.of_rollout
    assert memory.of_update < exact.of_update
