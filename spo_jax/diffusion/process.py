"""What methods need to know of a diffusion process, and the log-probability of one of its steps."""

from typing import Protocol, runtime_checkable

import jax.numpy as jnp
import numpy as np

from spo_jax.core.typing import Array, Float, Int


@runtime_checkable
class Process(Protocol):
    """A noising process cut into sampling steps, seen from the network's side.

    Rollouts and log-probabilities touch a process only through these methods, so a process of another kind needs no
    change there. `spo_jax.diffusion.ddpm.DDPM` is one.

    Attributes:
      timesteps: t of each sampling step, descending.
      num_train_timesteps: number of timesteps the network was trained on.
    """

    timesteps: Int[np.ndarray, " s"]

    @property
    def num_train_timesteps(self) -> int: ...

    def split(
        self, x: Float[Array, "*b h w c"], prediction: Float[Array, "*b h w c"], t: Int[Array, "*t"]
    ) -> tuple[Float[Array, "*b h w c"], Float[Array, "*b h w c"]]:
        """The clean latents and the noise that a network's ``prediction`` at ``t`` stands for: (x0, noise)."""
        ...

    def step(
        self, x0: Float[Array, "*b h w c"], noise: Float[Array, "*b h w c"], t: Int[Array, "*t"], eta: float
    ) -> tuple[Float[Array, "*b h w c"], Float[Array, "..."]]:
        """Mean and standard deviation of p(x_{t'} | x_t), where t' is the timestep after ``t`` in sampling order."""
        ...

    def add_noise(
        self, x0: Float[Array, "*b h w c"], noise: Float[Array, "*b h w c"], t: Int[Array, "*t"]
    ) -> Float[Array, "*b h w c"]:
        """Noisy latents x_t."""
        ...


def log_prob(
    x_prev: Float[Array, "*b h w c"], mean: Float[Array, "*#b h w c"], std: Float[Array, "..."]
) -> Float[Array, "*b"]:
    """log p(x_{t'} | x_t), the MEAN over pixels and channels: SPO's beta and eps are tuned to it, not to the sum."""
    gaussian = -jnp.square(x_prev - mean) / (2 * std**2) - jnp.log(std) - 0.5 * jnp.log(2 * jnp.pi)
    return gaussian.mean(axis=(-3, -2, -1))
