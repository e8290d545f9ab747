"""Plain rollouts: whole trajectories with the log-probability of every step, and batches of their steps.

Unlike SPO's resampler nothing branches. A rollout is one scan over the timesteps. Trajectories of a prompt lie side by
side in the batch, so that they stay on the prompt's device.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from spo_jax.core.typing import Array, Float, Int, Key
from spo_jax.diffusion.process import Process, log_prob
from spo_jax.parallel.chunks import cut, joined
from spo_jax.parallel.mesh import devices_in_context, spread
from spo_jax.parallel.sizes import even_chunk

# Function from (x [n h w c], t [n], row [n]) to guided prediction; a row is that of the prompt.
PredictRows = Callable[[Float[Array, "n h w c"], Int[Array, " n"], Int[Array, " n"]], Float[Array, "n h w c"]]


class Noise(NamedTuple):
    """All randomness of a rollout.

    Attributes:
      start: x_T of every trajectory.
      steps: the noise of every step.
    """

    start: Float[Array, "n h w c"]
    steps: Float[Array, "s n h w c"]


class Trajectories(NamedTuple):
    """The result of a rollout of s steps.

    Attributes:
      latents: x_T, ..., x_0.
      log_probs: log p(x_{t'} | x_t) of every step under the policy that took it, the mean over pixels and channels.
    """

    latents: Float[Array, "s+1 n h w c"]
    log_probs: Float[Array, "s n"]


class Steps(NamedTuple):
    """Some recorded steps of m trajectories each.

    Attributes:
      x_t: latents before the step.
      x_prev: latents after it.
      t: timestep t.
      row: row of the prompt.
      log_probs: as in `Trajectories`.
    """

    x_t: Float[Array, "n m h w c"]
    x_prev: Float[Array, "n m h w c"]
    t: Int[Array, " n"]
    row: Int[Array, " n"]
    log_probs: Float[Array, "n m"]


def prompt_rows(prompts: int, copies: int) -> Int[Array, " n"]:
    """Returns the row of each trajectory's prompt."""
    return jnp.repeat(jnp.arange(prompts), copies)


def draw(
    key: Key, steps: int, prompts: int, copies: int, latent_shape: tuple[int, int, int], one_start: bool
) -> Noise:  # fmt: skip
    """Draws the randomness of a rollout, which does not depend on the number of devices.

    Args:
      key: key of the rollout.
      steps: number of sampling steps.
      prompts: number of prompts.
      copies: number of trajectories of a prompt.
      latent_shape: (h, w, c).
      one_start: whether the trajectories of a prompt start from the same latents.
    """
    start_key, steps_key = jax.random.split(key)
    start = jax.random.normal(start_key, (prompts, 1 if one_start else copies, *latent_shape))
    start = jnp.broadcast_to(start, (prompts, copies, *latent_shape)).reshape(-1, *latent_shape)
    noise = jax.random.normal(steps_key, (steps, prompts * copies, *latent_shape))
    return Noise(spread(start), spread(noise, axis=1))


def sample(
    predict: PredictRows, process: Process, eta: float, noise: Noise, row: Int[Array, " n"], per_device: int
) -> Trajectories:
    """Runs the sampler in one scan over the timesteps, which evaluates the network on some rows at a time.

    Args:
      predict: guided prediction of the current policy.
      process: the diffusion process, divided into the rollout's steps.
      eta: stochasticity of the steps; greater than 0.
      noise: all randomness.
      row: row of each trajectory's prompt.
      per_device: number of rows on which a device evaluates the network at a time; it changes results only by rounding.
    """
    chunk = even_chunk(len(row), per_device, devices_in_context())

    def predicted(x: Array, t: Array) -> Array:
        return joined(jax.lax.map(lambda part: predict(part[0], jnp.full(chunk, t), part[1]), cut((x, row), chunk)))

    def step(x: Array, inputs: tuple[Array, Array]) -> tuple[Array, tuple[Array, Array]]:
        t, noise = inputs
        x0, direction = process.split(x, predicted(x, t), t)
        mean, std = process.step(x0, direction, t, eta)
        x = mean + std * noise
        return x, (x, log_prob(x, mean, std))

    _, (latents, log_probs) = jax.lax.scan(step, noise.start, (jnp.asarray(process.timesteps), noise.steps))
    return Trajectories(jnp.concatenate([noise.start[None], latents]), log_probs)


def take_steps(
    trajectories: Trajectories,
    process: Process,
    members: int,
    copies: int,
    item: Int[Array, " n"],
    step: Int[Array, " n"],
) -> Steps:
    """Takes steps of a rollout, spread over the devices.

    Args:
      trajectories: the rollout, whole on every device.
      process: the process of the rollout.
      members: number of trajectories of an item, which lie side by side.
      copies: number of trajectories of a prompt.
      item: which trajectories, as the number of the group of ``members`` of them.
      step: number of the step, from 0 on.
    """
    index = item[:, None] * members + jnp.arange(members)[None]  # [n m]
    at = step[:, None]
    return spread(
        Steps(
            x_t=trajectories.latents[at, index],
            x_prev=trajectories.latents[at + 1, index],
            t=jnp.asarray(process.timesteps)[step],
            row=index[:, 0] // copies,
            log_probs=trajectories.log_probs[at, index],
        )
    )
