"""One stochastic DDIM step as a Gaussian: its moments, a sample of it, and the log-probability of a sample.

| here | DDIM (arXiv 2010.02502) | meaning |
|---|---|---|
| a_t, a_prev | α_t, α_{t-1} (the paper's α is a cumulative product) | ᾱ at t and at the previous timestep |
| eta | η | 0: deterministic, 1: as noisy as DDPM |
| std | σ_t, eq. 16 | standard deviation of the step |
| mean | eq. 12 without its noise term | mean of the step |

All arithmetic is float32, whatever the network's dtype: this is one of the float32 islands.
"""

import jax.numpy as jnp

from spo_jax.core.typing import Array, Float, Int
from spo_jax.diffusion.schedule import Schedule


def _column(values: Float[Array, "*t"], like: Float[Array, "*b h w c"]) -> Float[Array, "..."]:
    """Scalars, one or one per row, in a shape that broadcasts over images."""
    return values.reshape(values.shape + (1,) * (like.ndim - values.ndim))


def predict_x0(
    schedule: Schedule, x: Float[Array, "*b h w c"], prediction: Float[Array, "*b h w c"], t: Int[Array, "*t"]
) -> tuple[Float[Array, "*b h w c"], Float[Array, "*b h w c"]]:
    """The clean latents and the noise that ``prediction`` stands for.

    Args:
      x: latents at timestep ``t`` (one for all, or one per row).
      prediction: network output of ``schedule.prediction_type``.

    Returns:
      (x0, eps), float32; x0 = (x - sqrt(1-ᾱ) eps) / sqrt(ᾱ) for epsilon, as diffusers' DDIM for the other types.
    """
    a_t = _column(jnp.asarray(schedule.alphas_cumprod)[t], x)
    return split_prediction(schedule.prediction_type, x, prediction, jnp.sqrt(a_t), jnp.sqrt(1 - a_t))


def split_prediction(
    prediction_type: str,
    x: Float[Array, "*b h w c"],
    prediction: Float[Array, "*b h w c"],
    root: Float[Array, "..."],
    noise_root: Float[Array, "..."],
) -> tuple[Float[Array, "*b h w c"], Float[Array, "*b h w c"]]:
    """`predict_x0` of latents ``x = root · x0 + noise_root · eps``.

    Only epsilon divides by ``root``, which is 0 where the signal-to-noise ratio is; `make_schedule` refuses that.
    """
    x, prediction = x.astype(jnp.float32), prediction.astype(jnp.float32)
    if prediction_type == "epsilon":
        return (x - noise_root * prediction) / root, prediction
    if prediction_type == "v_prediction":
        return root * x - noise_root * prediction, root * prediction + noise_root * x
    return prediction, (x - root * prediction) / noise_root


def step_moments(
    schedule: Schedule,
    x0: Float[Array, "*b h w c"],
    eps: Float[Array, "*b h w c"],
    t: Int[Array, "*t"],
    eta: float,
) -> tuple[Float[Array, "*b h w c"], Float[Array, "..."]]:
    """Mean and standard deviation of p(x_{t'} | x_t), DDIM equations 12 and 16.

    Returns:
      (mean, std); std is one per row, broadcast over pixels.
    """
    alphas = jnp.asarray(schedule.alphas_cumprod)
    a_t, a_prev = _column(alphas[t], x0), _column(alphas[schedule.previous(t)], x0)
    variance = (1 - a_prev) / (1 - a_t) * (1 - a_t / a_prev)
    std = eta * jnp.sqrt(variance)
    # From pure noise (ᾱ_t = 0) with eta 1 nothing of eps is left, and rounding may take the root's argument below 0.
    mean = jnp.sqrt(a_prev) * x0 + jnp.sqrt(jnp.maximum(1 - a_prev - std**2, 0)) * eps
    return mean, std


def log_prob(
    x_prev: Float[Array, "*b h w c"], mean: Float[Array, "*#b h w c"], std: Float[Array, "..."]
) -> Float[Array, "*b"]:
    """log p(x_{t'} | x_t), the MEAN over pixels and channels: SPO's beta and eps are tuned to it, not to the sum."""
    gaussian = -jnp.square(x_prev - mean) / (2 * std**2) - jnp.log(std) - 0.5 * jnp.log(2 * jnp.pi)
    return gaussian.mean(axis=(-3, -2, -1))


def add_noise(
    schedule: Schedule, x0: Float[Array, "*b h w c"], noise: Float[Array, "*b h w c"], t: Int[Array, "*t"]
) -> Float[Array, "*b h w c"]:
    """x_t = sqrt(ᾱ) x0 + sqrt(1-ᾱ) noise (diffusers' ``add_noise``)."""
    a_t = _column(jnp.asarray(schedule.alphas_cumprod)[t], x0)
    return jnp.sqrt(a_t) * x0 + jnp.sqrt(1 - a_t) * noise
