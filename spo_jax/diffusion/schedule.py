"""Noise schedules, read from the ``scheduler_config.json`` of any Stable Diffusion model.

The reference converts any scheduler that a pipeline ships to DDIM (``DDIMScheduler.from_config``), and so do we: only
the fields that define the diffusion process are read.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from spo_jax.core.config import JSONConfig, limited
from spo_jax.core.errors import UserError
from spo_jax.core.typing import Float, Num


@dataclasses.dataclass(frozen=True)
class ScheduleConfig(JSONConfig):
    """The config of diffusers' DDIMScheduler, with the same fields and defaults.

    ``timestep_spacing`` may be absent, because diffusers' samplers differ in their default; DDIM's is "leading".
    """

    num_train_timesteps: int = limited(1000, at_least=2, at_most=100_000)
    # A smaller beta vanishes beside 1 in float32, and a step of no noise divides by its standard deviation.
    beta_start: float = limited(0.0001, at_least=1e-7, below=1)
    beta_end: float = limited(0.02, at_least=1e-7, below=1)
    beta_schedule: str = "linear"
    trained_betas: tuple[float, ...] | None = limited(None, at_least=1e-7, at_most=1)
    set_alpha_to_one: bool = True
    steps_offset: int = limited(0, at_least=0, at_most=100_000)
    prediction_type: str = "epsilon"
    timestep_spacing: str | None = None
    rescale_betas_zero_snr: bool = False

    FIXED = {"clip_sample": (False, None), "thresholding": (False, None)}  # latent models have neither
    # Fields of other samplers' configs that do not change the process as DDIM runs it. PNDM, Euler, DPM++ and DDIM all
    # appear in published folders.
    IGNORED = frozenset({
        "skip_prk_steps", "interpolation_type", "use_karras_sigmas", "sample_max_value", "clip_sample_range",
        "dynamic_thresholding_ratio", "algorithm_type", "solver_order", "solver_type", "lower_order_final",
        "euler_at_final", "lambda_min_clipped", "variance_type", "use_exponential_sigmas", "use_beta_sigmas",
        "final_sigmas_type", "timestep_type", "sigma_min", "sigma_max", "use_lu_lambdas", "use_flow_sigmas",
        "flow_shift", "disable_corrector", "predict_x0", "solver_p", "time_shift_type", "use_dynamic_shifting",
    })  # fmt: skip

    def _check(self, where: str, raw: Mapping[str, Any]) -> None:
        self._one_of(where, "beta_schedule", ("linear", "scaled_linear"))
        self._one_of(where, "prediction_type", ("epsilon", "v_prediction", "sample"))
        if self.trained_betas is not None and len(self.trained_betas) != self.num_train_timesteps:
            raise UserError(
                f"{where}: trained_betas has {len(self.trained_betas)} entries: expected {self.num_train_timesteps} as "
                "in num_train_timesteps"
            )
        if "timestep_spacing" in raw:
            self._one_of(where, "timestep_spacing", ("leading", "trailing", "linspace"))


def alphas_cumprod(config: ScheduleConfig) -> Float[np.ndarray, " T"]:
    """Computes ᾱ_t = Π (1 - β) with float32 factors and a float64 product, as torch does on the CPU."""
    count = config.num_train_timesteps
    if config.trained_betas is not None:
        betas = np.asarray(config.trained_betas, np.float32)
    elif config.beta_schedule == "linear":
        betas = np.linspace(config.beta_start, config.beta_end, count, dtype=np.float64).astype(np.float32)
    else:
        betas = np.linspace(config.beta_start**0.5, config.beta_end**0.5, count).astype(np.float32) ** 2
    if config.rescale_betas_zero_snr:
        betas = _zero_terminal_snr(betas)
    return np.cumprod(1 - betas, dtype=np.float64).astype(np.float32)


def _zero_terminal_snr(betas: Float[np.ndarray, " T"]) -> Float[np.ndarray, " T"]:
    """Shifts and scales √ᾱ so that its last value is 0 and its first unchanged (arXiv 2305.08891, algorithm 1)."""
    roots = np.sqrt(np.cumprod(1 - betas, dtype=np.float32))
    first = roots[0]
    last = roots[-1]
    cumprod = ((roots - last) * first / (first - last)) ** 2
    return np.concatenate([1 - cumprod[:1], 1 - cumprod[1:] / cumprod[:-1]]).astype(np.float32)


def spaced_timesteps(config: ScheduleConfig, steps: int, spacing: str) -> Float[np.ndarray, " s"]:
    """Computes the timesteps of the sampling steps, descending and not rounded.

    Args:
      config: the noise schedule.
      steps: number of sampling steps.
      spacing: ``leading``, ``trailing`` or ``linspace``, whose timesteps are fractions.

    Raises:
      UserError: there are more steps than training timesteps, or none.
    """
    count = config.num_train_timesteps
    if not 1 <= steps <= count:
        raise UserError(f"number of sampling steps: {steps}, expected 1 to {count}")
    if spacing == "leading":
        return np.arange(steps)[::-1] * float(count // steps) + config.steps_offset
    if spacing == "trailing":
        return np.round(np.arange(count, 0, -count / steps)) - 1
    return np.linspace(0, count - 1, steps)[::-1]


def check_timesteps(
    config: ScheduleConfig, steps: int, spacing: str, alphas: Float[np.ndarray, " T"], timesteps: Num[np.ndarray, " s"]
) -> None:
    """Checks that all timesteps exist and that each of them carries what the network needs to predict the image.

    Args:
      config: the noise schedule.
      steps: number of sampling steps, for messages.
      spacing: spacing of the timesteps, for messages.
      alphas: ᾱ of every training timestep.
      timesteps: timesteps of the sampling steps, descending.

    Raises:
      UserError: a timestep lies outside of the process, or has no signal although the network predicts the noise.
    """
    # diffusers fails with an index error at the upper end and reads the last alpha at -1; here both would be silent.
    if timesteps[0] > len(alphas) - 1 or timesteps[-1] < 0:
        raise UserError(
            f"number of sampling steps: {steps}: with {spacing} spacing and steps_offset "
            f"{config.steps_offset} they run from timestep {timesteps[0]:g} to {timesteps[-1]:g}, expected within "
            f"{len(alphas) - 1} to 0; choose another number of steps"
        )
    silent = timesteps[alphas[np.round(timesteps).astype(int)] == 0]
    if config.prediction_type == "epsilon" and len(silent):
        raise UserError(
            f"scheduler config: prediction_type 'epsilon' with rescale_betas_zero_snr: latents are pure noise at "
            f"timestep {silent[0]:g}, and the noise says nothing about the image; expected prediction_type "
            "'v_prediction', or rescale_betas_zero_snr false"
        )
