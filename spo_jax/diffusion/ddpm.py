"""The DDPM process with stochastic DDIM steps, on which Stable Diffusion was trained.

| here | DDIM (arXiv 2010.02502) | meaning |
|---|---|---|
| a_t, a_prev | α_t, α_{t-1} (the paper's α is a cumulative product) | ᾱ at t and at the previous timestep |
| eta | η | 0: deterministic, 1: as noisy as DDPM |
| std | σ_t, eq. 16 | standard deviation of the step |
| mean | eq. 12 without its noise term | mean of the step |

All arithmetic is float32, independent of the network's dtype: this is one of the float32 islands.
"""

import dataclasses

import jax.numpy as jnp
import numpy as np

from spo_jax.core.typing import Array, Float, Int
from spo_jax.diffusion.schedule import ScheduleConfig, alphas_cumprod, check_timesteps, spaced_timesteps


def _column(values: Float[Array, "*t"], like: Float[Array, "*b h w c"]) -> Float[Array, "..."]:
    """Reshapes one scalar, or one scalar per row, so that it broadcasts over images."""
    return values.reshape(values.shape + (1,) * (like.ndim - values.ndim))


@dataclasses.dataclass(frozen=True)
class DDPM:
    """The DDPM process, an implementation of `spo_jax.diffusion.process.Process`.

    Its arrays are host constants that programs close over.

    Attributes:
      alphas_cumprod: ᾱ_t for every training timestep, float32[num_train_timesteps].
      timesteps: t of each sampling step, descending, int32[steps].
      stride: num_train_timesteps // steps, the distance from a timestep to the previous one.
      prediction_type: what the network predicts: ``epsilon``, ``v_prediction`` or ``sample``.
      final_alpha_cumprod: ᾱ after the last step in diffusers' samplers; SPO's steps use `previous` instead.
    """

    alphas_cumprod: Float[np.ndarray, " T"]
    timesteps: Int[np.ndarray, " s"]
    stride: int
    prediction_type: str
    final_alpha_cumprod: float

    @property
    def num_train_timesteps(self) -> int:
        """Number of timesteps that the network was trained on."""
        return len(self.alphas_cumprod)

    def previous(self, t: Int[Array, "*b"]) -> Int[Array, "*b"]:
        """Returns the timestep that a step from ``t`` leads to, t' = max(t - stride, 0).

        The clamp makes the last step end at ᾱ_0, as in the reference, which never uses diffusers'
        ``final_alpha_cumprod``; the two are equal where ``set_alpha_to_one`` is false (SD 1.5, SDXL).
        """
        return jnp.maximum(t - self.stride, 0)

    def split(
        self, x: Float[Array, "*b h w c"], prediction: Float[Array, "*b h w c"], t: Int[Array, "*t"]
    ) -> tuple[Float[Array, "*b h w c"], Float[Array, "*b h w c"]]:
        """Splits noisy latents into the clean latents and the noise that a prediction implies.

        Args:
          x: latents at timestep ``t``.
          prediction: output of the network, of type `prediction_type`.
          t: one timestep for all rows, or one per row.

        Returns:
          (x0, noise) in float32. For epsilon, x0 = (x - sqrt(1-ᾱ) eps) / sqrt(ᾱ); the other types follow diffusers'
          DDIM.
        """
        a_t = _column(jnp.asarray(self.alphas_cumprod)[t], x)
        return split_prediction(self.prediction_type, x, prediction, jnp.sqrt(a_t), jnp.sqrt(1 - a_t))

    def step(
        self, x0: Float[Array, "*b h w c"], noise: Float[Array, "*b h w c"], t: Int[Array, "*t"], eta: float
    ) -> tuple[Float[Array, "*b h w c"], Float[Array, "..."]]:
        """Computes mean and standard deviation of p(x_{t'} | x_t), DDIM equations 12 and 16.

        Args:
          x0: clean latents.
          noise: predicted noise.
          t: one timestep for all rows, or one per row.
          eta: η, the stochasticity of the step.

        Returns:
          (mean, std), where std has one value per row and broadcasts over pixels.
        """
        alphas = jnp.asarray(self.alphas_cumprod)
        a_t = _column(alphas[t], x0)
        a_prev = _column(alphas[self.previous(t)], x0)
        variance = (1 - a_prev) / (1 - a_t) * (1 - a_t / a_prev)
        std = eta * jnp.sqrt(variance)
        # From pure noise (ᾱ_t = 0) with eta 1 nothing of the noise is left, and rounding may take the root's argument
        # below 0.
        mean = jnp.sqrt(a_prev) * x0 + jnp.sqrt(jnp.maximum(1 - a_prev - std**2, 0)) * noise
        return mean, std

    def add_noise(
        self, x0: Float[Array, "*b h w c"], noise: Float[Array, "*b h w c"], t: Int[Array, "*t"]
    ) -> Float[Array, "*b h w c"]:
        """Adds noise to clean latents, x_t = sqrt(ᾱ) x0 + sqrt(1-ᾱ) noise, as diffusers' ``add_noise``."""
        a_t = _column(jnp.asarray(self.alphas_cumprod)[t], x0)
        return jnp.sqrt(a_t) * x0 + jnp.sqrt(1 - a_t) * noise

    def denoised(
        self, x: Float[Array, "*b h w c"], noise: Float[Array, "*b h w c"], t: Int[Array, "*t"]
    ) -> Float[Array, "*b h w c"]:
        """Computes the clean latents of x_t whose noise is known, x0 = (x_t - sqrt(1-ᾱ) noise) / sqrt(ᾱ)."""
        a_t = _column(jnp.asarray(self.alphas_cumprod)[t], x)
        return (x - jnp.sqrt(1 - a_t) * noise) / jnp.sqrt(a_t)

    def noise_in(
        self, x: Float[Array, "*b h w c"], x0: Float[Array, "*b h w c"], t: Int[Array, "*t"]
    ) -> Float[Array, "*b h w c"]:
        """Computes the noise in x_t whose clean latents are known, (x_t - sqrt(ᾱ) x0) / sqrt(1-ᾱ)."""
        a_t = _column(jnp.asarray(self.alphas_cumprod)[t], x)
        return (x - jnp.sqrt(a_t) * x0) / jnp.sqrt(1 - a_t)

    def target(
        self, x0: Float[Array, "*b h w c"], noise: Float[Array, "*b h w c"], t: Int[Array, "*t"]
    ) -> Float[Array, "*b h w c"]:
        """Computes the prediction of a perfect network: the noise, v = sqrt(ᾱ) noise - sqrt(1-ᾱ) x0, or x0.

        As in diffusers' training scripts, and its ``get_velocity``.
        """
        if self.prediction_type == "epsilon":
            return noise
        if self.prediction_type == "v_prediction":
            a_t = _column(jnp.asarray(self.alphas_cumprod)[t], x0)
            return jnp.sqrt(a_t) * noise - jnp.sqrt(1 - a_t) * x0
        return x0


def split_prediction(
    prediction_type: str,
    x: Float[Array, "*b h w c"],
    prediction: Float[Array, "*b h w c"],
    root: Float[Array, "..."],
    noise_root: Float[Array, "..."],
) -> tuple[Float[Array, "*b h w c"], Float[Array, "*b h w c"]]:
    """Computes `DDPM.split` for latents ``x = root · x0 + noise_root · noise``.

    Only epsilon divides by ``root``, which is 0 where the signal-to-noise ratio is 0; `make_ddpm` refuses such a step.

    Args:
      prediction_type: what the network predicts.
      x: noisy latents.
      prediction: output of the network.
      root: √ᾱ, broadcastable to ``x``.
      noise_root: √(1-ᾱ), broadcastable to ``x``.

    Returns:
      (x0, noise) in float32.
    """
    x = x.astype(jnp.float32)
    prediction = prediction.astype(jnp.float32)
    if prediction_type == "epsilon":
        return (x - noise_root * prediction) / root, prediction
    if prediction_type == "v_prediction":
        return root * x - noise_root * prediction, root * prediction + noise_root * x
    return prediction, (x - root * prediction) / noise_root


def make_ddpm(config: ScheduleConfig, steps: int) -> DDPM:
    """Cuts the process into sampling steps, as ``DDIMScheduler.set_timesteps``.

    Args:
      config: the noise schedule.
      steps: number of sampling steps.

    Raises:
      UserError: there are more steps than training timesteps, or none; a step is at a timestep that does not exist, or
        at one without signal (zero terminal SNR) although the network predicts the noise.
    """
    spacing = config.timestep_spacing or "leading"
    timesteps = spaced_timesteps(config, steps, spacing).round().astype(np.int32)
    alphas = alphas_cumprod(config)
    check_timesteps(config, steps, spacing, alphas, timesteps)
    return DDPM(
        alphas_cumprod=alphas,
        timesteps=timesteps,
        stride=config.num_train_timesteps // steps,
        prediction_type=config.prediction_type,
        final_alpha_cumprod=1.0 if config.set_alpha_to_one else float(alphas[0]),
    )
