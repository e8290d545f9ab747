"""The interface between methods and diffusion processes, and the log-probability of a step."""

from typing import Protocol, runtime_checkable

import jax.numpy as jnp
import numpy as np

from spo_jax.core.typing import Array, Float, Int


@runtime_checkable
class Process(Protocol):
    """A noising process that is cut into sampling steps.

    Rollouts and log-probabilities use a process only through these methods, so another kind of process needs no change
    there. `spo_jax.diffusion.ddpm.DDPM` is an implementation.

    Attributes:
      timesteps: t of each sampling step, descending.
    """

    timesteps: Int[np.ndarray, " s"]

    @property
    def num_train_timesteps(self) -> int:
        """The number of timesteps that the network was trained on."""
        ...

    def split(
        self, x: Float[Array, "*b h w c"], prediction: Float[Array, "*b h w c"], t: Int[Array, "*t"]
    ) -> tuple[Float[Array, "*b h w c"], Float[Array, "*b h w c"]]:
        """Splits noisy latents into (x0, noise): the clean latents and the noise that a prediction at ``t`` implies."""
        ...

    def step(
        self, x0: Float[Array, "*b h w c"], noise: Float[Array, "*b h w c"], t: Int[Array, "*t"], eta: float
    ) -> tuple[Float[Array, "*b h w c"], Float[Array, "..."]]:
        """Computes (mean, std) of p(x_{t'} | x_t), where t' is the timestep after ``t`` in sampling order."""
        ...

    def add_noise(
        self, x0: Float[Array, "*b h w c"], noise: Float[Array, "*b h w c"], t: Int[Array, "*t"]
    ) -> Float[Array, "*b h w c"]:
        """Adds noise to clean latents, which gives x_t."""
        ...

    def denoised(
        self, x: Float[Array, "*b h w c"], noise: Float[Array, "*b h w c"], t: Int[Array, "*t"]
    ) -> Float[Array, "*b h w c"]:
        """Computes the clean latents of x_t whose noise is known: `add_noise` solved for x0."""
        ...

    def noise_in(
        self, x: Float[Array, "*b h w c"], x0: Float[Array, "*b h w c"], t: Int[Array, "*t"]
    ) -> Float[Array, "*b h w c"]:
        """Computes the noise in x_t whose clean latents are known: `add_noise` solved for the noise."""
        ...

    def previous(self, t: Int[Array, "*b"]) -> Int[Array, "*b"]:
        """Returns the timestep to which a sampling step from ``t`` leads."""
        ...

    def target(
        self, x0: Float[Array, "*b h w c"], noise: Float[Array, "*b h w c"], t: Int[Array, "*t"]
    ) -> Float[Array, "*b h w c"]:
        """Computes the prediction of a perfect network at x_t, which plain training compares with."""
        ...


def log_prob(
    x_prev: Float[Array, "*b h w c"], mean: Float[Array, "*#b h w c"], std: Float[Array, "..."]
) -> Float[Array, "*b"]:
    """Computes log p(x_{t'} | x_t) as the MEAN over pixels and channels.

    SPO's beta and eps are tuned to the mean, not to the sum.

    Args:
      x_prev: latents x_{t'} after the step.
      mean: mean of the step.
      std: standard deviation of the step, broadcastable to ``mean``.
    """
    gaussian = -jnp.square(x_prev - mean) / (2 * std**2) - jnp.log(std) - 0.5 * jnp.log(2 * jnp.pi)
    return gaussian.mean(axis=(-3, -2, -1))
