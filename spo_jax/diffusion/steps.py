"""The steps of deterministic solvers, computed on the host: where each begins and ends, and how it extrapolates.

All of them solve the same equation, dx/dσ = eps for latents x / √ᾱ at noise level σ = √((1-ᾱ)/ᾱ), and differ only in
the numbers of one update (see `spo_jax.diffusion.solvers`). A solver is therefore a table:

| solver | diffusers | levels | extrapolation |
|---|---|---|---|
| ``ddim`` | ``DDIMScheduler``, eta 0 | ᾱ of the timesteps | none |
| ``euler`` | ``EulerDiscreteScheduler``, s_churn 0 | σ interpolated at the timesteps, which may be fractions | none |
| ``dpm++`` | ``DPMSolverMultistepScheduler``, its defaults | σ at the timesteps, one left out | of second order |

Euler's step in σ is DDIM's step in ᾱ. Euler and DPM-Solver++ end at σ = 0. Only the process is read from a model's
scheduler config; options of the sampler that it names are ignored.
"""

import dataclasses
from typing import NamedTuple

import numpy as np

from spo_jax.core.errors import UserError
from spo_jax.core.typing import Array, Float, Num
from spo_jax.diffusion import SOLVERS
from spo_jax.diffusion.ddpm import make_ddpm
from spo_jax.diffusion.schedule import ScheduleConfig, alphas_cumprod, check_timesteps, spaced_timesteps

_KARRAS_RHO = 7.0  # arXiv 2206.00364, eq. 5


class SolverRow(NamedTuple):
    """One step of a solver, as programs take it: a row of the columns of `SolverSteps`, which explains them."""

    timestep: Num[Array | np.ndarray, "*s"]
    signal: Float[Array | np.ndarray, "*s"]
    noise: Float[Array | np.ndarray, "*s"]
    next_signal: Float[Array | np.ndarray, "*s"]
    next_noise: Float[Array | np.ndarray, "*s"]
    extrapolation: Float[Array | np.ndarray, "*s"]


@dataclasses.dataclass(frozen=True)
class SolverSteps:
    """A solver's table with one row per step; its arrays are host constants that programs close over.

    Attributes:
      timesteps: timesteps that the network receives, descending; int32, or float32 if one lies between two training
        timesteps.
      signal: √ᾱ where a step begins.
      noise: √(1-ᾱ) where a step begins.
      next_signal: √ᾱ where it ends.
      next_noise: √(1-ᾱ) where it ends.
      extrapolation: share of the change of x0 since the previous step that is added.
      initial_scale: factor of the initial noise of unit variance (Euler begins at √(1-ᾱ) with some spacings).
      prediction_type: what the network predicts.
    """

    timesteps: Num[np.ndarray, " s"]
    signal: Float[np.ndarray, " s"]
    noise: Float[np.ndarray, " s"]
    next_signal: Float[np.ndarray, " s"]
    next_noise: Float[np.ndarray, " s"]
    extrapolation: Float[np.ndarray, " s"]
    initial_scale: float
    prediction_type: str

    @property
    def rows(self) -> SolverRow:
        """The columns of all steps, each with the axis s."""
        columns = (self.signal, self.noise, self.next_signal, self.next_noise, self.extrapolation)
        return SolverRow(self.timesteps, *columns)


def solver_steps(config: ScheduleConfig, solver: str, steps: int, karras: bool = False) -> SolverSteps:
    """Computes the table of a solver.

    Args:
      config: the noise schedule.
      solver: one of `spo_jax.diffusion.SOLVERS`.
      steps: number of sampling steps.
      karras: whether noise levels are spaced as in arXiv 2206.00364 (diffusers' ``use_karras_sigmas``); not for DDIM.

    Raises:
      UserError: as `make_ddpm`, or the solver is unknown or has no Karras levels.
    """
    if solver not in SOLVERS:
        raise UserError(f"solver {solver!r}: expected one of {', '.join(SOLVERS)}")
    if solver == "ddim":
        if karras:
            raise UserError("Karras noise levels are for the solvers euler and dpm++; DDIM has none")
        return _ddim_steps(config, steps)
    spacing = config.timestep_spacing or "linspace"  # the default of both classes in diffusers
    alphas = alphas_cumprod(config)
    levels = _training_levels(config, alphas)
    timesteps = (_euler_timesteps if solver == "euler" else _dpm_timesteps)(config, steps, spacing)
    check_timesteps(config, steps, spacing, alphas, timesteps)
    sigmas = np.interp(timesteps, np.arange(len(levels)), levels)
    if karras:
        # diffusers' Euler spaces the levels between its own first and last, its DPM-Solver++ over all of training.
        ends = (sigmas[0], sigmas[-1]) if solver == "euler" else (levels[-1], levels[0])
        sigmas = _karras(*ends, steps)
        timesteps = np.interp(np.log(sigmas), np.log(levels), np.arange(len(levels)))
        timesteps = timesteps if solver == "euler" else timesteps.round()
        check_timesteps(config, steps, spacing, alphas, timesteps)
    return _table(config, solver, spacing, timesteps, np.append(sigmas, 0.0))


def _ddim_steps(config: ScheduleConfig, steps: int) -> SolverSteps:
    """Computes DDIM's table.

    Unlike SPO's own steps, the last one leads to the schedule's final ᾱ, which is 1 if ``set_alpha_to_one``.
    """
    process = make_ddpm(config, steps)
    following = process.timesteps - process.stride
    alphas = process.alphas_cumprod.astype(np.float64)
    here = alphas[process.timesteps]
    there = np.where(following >= 0, alphas[np.maximum(following, 0)], process.final_alpha_cumprod)
    signal, noise, next_signal, next_noise = (
        np.sqrt(values).astype(np.float32) for values in (here, 1 - here, there, 1 - there)
    )
    return SolverSteps(
        timesteps=process.timesteps,
        signal=signal,
        noise=noise,
        next_signal=next_signal,
        next_noise=next_noise,
        extrapolation=np.zeros(steps, np.float32),
        initial_scale=1.0,
        prediction_type=config.prediction_type,
    )


def _training_levels(config: ScheduleConfig, alphas: Float[np.ndarray, " T"]) -> Float[np.ndarray, " T"]:
    """Computes σ at every training timestep, ascending."""
    alphas = alphas.astype(np.float64)
    if config.rescale_betas_zero_snr:
        alphas[-1] = 2.0**-24  # as in diffusers, because σ would be infinite
    return np.sqrt((1 - alphas) / alphas)


def _euler_timesteps(config: ScheduleConfig, steps: int, spacing: str) -> Float[np.ndarray, " s"]:
    return spaced_timesteps(config, steps, spacing)


def _dpm_timesteps(config: ScheduleConfig, steps: int, spacing: str) -> Float[np.ndarray, " s"]:
    """Computes timesteps for one more step and drops the last, which would be at timestep 0, as diffusers does."""
    if spacing == "trailing":
        return spaced_timesteps(config, steps, spacing)
    if not 1 <= steps < config.num_train_timesteps:
        raise UserError(f"number of sampling steps: {steps}, expected 1 to {config.num_train_timesteps - 1} with dpm++")
    return spaced_timesteps(config, steps + 1, spacing).round()[:-1]


def _karras(first: float, last: float, steps: int) -> Float[np.ndarray, " s"]:
    """Computes noise levels whose ρ-th roots are evenly spaced."""
    return np.linspace(first ** (1 / _KARRAS_RHO), last ** (1 / _KARRAS_RHO), steps) ** _KARRAS_RHO


def _table(
    config: ScheduleConfig,
    solver: str,
    spacing: str,
    timesteps: Float[np.ndarray, " s"],
    sigmas: Float[np.ndarray, " n"],
) -> SolverSteps:
    """Converts noise levels (one more than timesteps, the last one 0) to the numbers of the update."""
    signal = 1 / np.sqrt(sigmas**2 + 1)
    noise = sigmas * signal
    extrapolation = _second_order(signal, noise) if solver == "dpm++" else np.zeros(len(timesteps))
    # diffusers' init_noise_sigma: for Euler, latents of level σ have that spread, or √(σ²+1) with leading spacing.
    whole = solver == "dpm++" or spacing == "leading"
    columns = (signal[:-1], noise[:-1], signal[1:], noise[1:], extrapolation)
    return SolverSteps(
        timesteps.astype(np.int32 if (timesteps == timesteps.round()).all() else np.float32),
        *(column.astype(np.float32) for column in columns),
        initial_scale=1.0 if whole else float(noise[0]),
        prediction_type=config.prediction_type,
    )


def _second_order(signal: Float[np.ndarray, " n"], noise: Float[np.ndarray, " n"]) -> Float[np.ndarray, " s"]:
    """Computes the extrapolation of DPM-Solver++ 2M (arXiv 2211.01095, algorithm 2).

    It is (α' - σ' α/σ) h / (2 h_before), where h are the steps in log α/σ. The first step has no step before it, and
    the last one is also of first order, because h is infinite where it ends.
    """
    half_snr = np.log(signal[:-1] / noise[:-1])
    h = np.diff(half_snr)
    reach = signal[1:] - noise[1:] * signal[:-1] / noise[:-1]
    extrapolation = np.zeros(len(reach))
    extrapolation[1:-1] = reach[1:-1] * h[1:] / (2 * h[:-1])
    return extrapolation
