"""Noise schedules against diffusers' DDIMScheduler."""

import jax.numpy as jnp
import numpy as np
import pytest
from diffusers import DDIMScheduler

from spo_jax.core.errors import UserError
from spo_jax.diffusion.ddpm import make_ddpm
from spo_jax.diffusion.schedule import ScheduleConfig, alphas_cumprod

SD15 = dict(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, set_alpha_to_one=False, steps_offset=1)


def pair(**fields):
    """The same process in diffusers and here, read from diffusers' own config."""
    theirs = DDIMScheduler(clip_sample=False, **fields)
    return theirs, ScheduleConfig.from_dict(dict(theirs.config))


@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
@pytest.mark.parametrize("steps", [1, 7, 20, 50, 1000])
@pytest.mark.parametrize("offset", [0, 1])
def test_timesteps(spacing, steps, offset):
    theirs, config = pair(**SD15 | {"timestep_spacing": spacing, "steps_offset": offset})
    if spacing == "leading" and steps == 1000 and offset:  # diffusers starts at t = 1000, which does not exist
        with pytest.raises(UserError, match="steps: 1000: with leading spacing and steps_offset 1 they .* 1000 to 1,"):
            make_ddpm(config, steps)
        return
    theirs.set_timesteps(steps)
    process = make_ddpm(config, steps)
    assert process.timesteps.dtype == np.int32
    np.testing.assert_array_equal(process.timesteps, theirs.timesteps)


def test_timesteps_of_the_published_recipe():
    process = make_ddpm(ScheduleConfig.from_dict(SD15), 20)
    assert process.timesteps.tolist() == list(range(951, 0, -50))
    assert process.previous(jnp.asarray(process.timesteps)).tolist() == [*range(901, 0, -50), 0]


@pytest.mark.parametrize(
    "fields",
    [
        SD15,
        {},
        SD15 | {"rescale_betas_zero_snr": True},
        {"rescale_betas_zero_snr": True, "num_train_timesteps": 200},
        {"trained_betas": [0.1, 0.2, 0.05, 0.4], "num_train_timesteps": 4},
    ],
    ids=["scaled linear", "linear", "scaled linear, zero SNR", "linear, zero SNR", "given betas"],
)
def test_alphas(fields):
    theirs, config = pair(**fields)
    ours = alphas_cumprod(config)
    # Near zero SNR float32 rounding counts relatively more.
    np.testing.assert_allclose(ours, theirs.alphas_cumprod, rtol=2e-6, atol=1e-8)
    process = make_ddpm(config, 4)
    np.testing.assert_allclose(process.final_alpha_cumprod, theirs.final_alpha_cumprod, rtol=2e-6)
    if config.rescale_betas_zero_snr:
        assert ours[-1] == 0


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"beta_schedule": "squaredcos_cap_v2"},
            r"beta_schedule = 'squaredcos_cap_v2' is not implemented \(known: 'linear', 'scaled_linear'\)",
        ),
        ({"prediction_type": "flow"}, "prediction_type = 'flow' is not implemented"),
        ({"timestep_spacing": "karras"}, "timestep_spacing = 'karras' is not implemented"),
        ({"timestep_spacing": None}, "timestep_spacing = None is not implemented"),
        ({"clip_sample": True}, "clip_sample = True is not implemented"),
        ({"thresholding": True}, "thresholding = True is not implemented"),
        ({"new_field": 1}, "new_field is not a field of ScheduleConfig$"),
        ({"beta_strat": 1.0}, "beta_strat is not a field of ScheduleConfig: did you mean beta_start?"),
        ({"beta_start": "0.001"}, "beta_start = '0.001': expected float"),
        ({"num_train_timesteps": None}, "num_train_timesteps = None: expected int"),
        ({"trained_betas": ["much"]}, r"trained_betas = \('much',\): expected tuple\[float, ...\] | None"),
        ({"set_alpha_to_one": "no"}, "set_alpha_to_one = 'no': expected bool"),
    ],
)
def test_what_is_not_implemented_is_refused(fields, message):
    with pytest.raises(UserError, match=f"folder/x.json: {message}"):
        ScheduleConfig.from_dict(SD15 | fields, "folder/x.json")


def test_fields_of_other_samplers_are_ignored():
    raw = SD15 | {"_class_name": "PNDMScheduler", "skip_prk_steps": True, "use_karras_sigmas": True}
    assert ScheduleConfig.from_dict(raw) == ScheduleConfig.from_dict(SD15)


@pytest.mark.parametrize("steps", [0, 1001])
def test_an_impossible_number_of_steps_is_refused(steps):
    with pytest.raises(UserError, match=f"steps: {steps}, expected 1 to 1000"):
        make_ddpm(ScheduleConfig.from_dict(SD15), steps)


@pytest.mark.parametrize(
    ("fields", "steps"),
    [
        ({"timestep_spacing": "trailing"}, 61),  # rounding makes diffusers' range one longer
        ({"steps_offset": 60}, 20),
    ],
)
def test_timesteps_that_do_not_exist_are_refused(fields, steps):
    """An index beyond the end would be clamped, and one below 0 counted from the end, both silently."""
    with pytest.raises(UserError, match=f"steps: {steps}: with .* expected within .* to 0"):
        make_ddpm(ScheduleConfig.from_dict(SD15 | fields), steps)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("beta_start", -1),
        ("beta_start", 0),
        ("beta_start", float("nan")),
        ("beta_end", 1.5),
        ("num_train_timesteps", 0),
        ("num_train_timesteps", 10**12),
        ("steps_offset", -1),
        ("trained_betas", [0.1, 0.2]),
        ("trained_betas", [0.1] * 999 + [-0.1]),
    ],
)
def test_values_out_of_range_are_refused(field, value):
    """Betas below 0 would be NaN on the way to every image, and 10**12 of them do not fit into memory."""
    with pytest.raises(UserError, match=rf"^x.json: {field} (= .*|has 2 entries): expected"):
        ScheduleConfig.from_dict(SD15 | {field: value}, "x.json")


ZERO_SNR = SD15 | {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}


def test_noise_prediction_without_signal_is_refused():
    """x0 = (x - noise) / 0. Networks that predict v or the image may start there; leading spacing never does."""
    message = "scheduler config: prediction_type 'epsilon' with rescale_betas_zero_snr: .* at timestep 999, .*'v_pred"
    with pytest.raises(UserError, match=message):
        make_ddpm(ScheduleConfig.from_dict(ZERO_SNR), 20)
    for fields in ({"prediction_type": "v_prediction"}, {"prediction_type": "sample"}, {"timestep_spacing": "leading"}):
        make_ddpm(ScheduleConfig.from_dict(ZERO_SNR | fields), 20)


def test_the_default_spacing_is_ddim_s():
    config = ScheduleConfig.from_dict(SD15)
    assert make_ddpm(config, 20).timesteps.tolist() == list(range(951, 0, -50))
    assert config.timestep_spacing is None
