"""The rollout whose candidates are judged as they are, at their noise (LPO, arXiv 2502.01051).

Every step from ``divert_start_step`` on takes one parent per prompt, evaluates the network on it, draws k children of
it, and one of them is the next parent. Nothing is predicted from the others: they are judged, and that is all. So a
rollout evaluates the network once for every prompt and step, where `spo_jax.methods.spo.resampler.roll` does so for
every candidate. `spo_jax.methods.spo.second` adds another judge at the last steps.
"""

import jax
import jax.numpy as jnp

from spo_jax.core.typing import Array, Float
from spo_jax.diffusion.process import Process
from spo_jax.methods.spo.packed import packed, unpacked
from spo_jax.methods.spo.plan import judged_timesteps, recorded_timesteps
from spo_jax.methods.spo.resampler import Denoise, Draws, JudgePool, Step, Trajectory, pick, predictor
from spo_jax.methods.spo.settings import ResamplerSettings


def roll_noisy(
    denoise: Denoise,
    settings: ResamplerSettings,
    process: Process,
    draws: Draws,
    judge_pool: JudgePool | None = None,
) -> tuple[Trajectory, Float[Array, "s k b"] | None]:
    """Runs the sampler; with a judge of pools, the best candidate of a pool is the next parent.

    A program holds one copy of the network if the first step branches, otherwise two.

    Args:
      denoise: guided prediction of the current policy.
      settings: settings of the rollout, whose candidates are judged as they are.
      process: the diffusion process, divided into ``settings.num_steps`` steps.
      draws: all randomness.
      judge_pool: scores of noisy candidates at the timestep of their step; None picks the next parents by
        ``draws.choice``.

    Returns:
      The rollout, whose judged latents are the candidates, and their scores; None without a judge.
    """
    parents, children, scores = noisy_pools(denoise, settings, process, draws, judge_pool)
    return judged_as_they_are(parents, children, settings, process), scores


def judged_as_they_are(
    parents: Float[Array, "r b h w c"],
    children: Float[Array, "r k b h w c"],
    settings: ResamplerSettings,
    process: Process,
) -> Trajectory:
    """Returns a rollout whose judged latents are its candidates, with their noise."""
    return Trajectory(
        parents=parents,
        children=children,
        timesteps=recorded_timesteps(settings, process.timesteps),
        judged=children,
        judged_timesteps=judged_timesteps(settings, process.timesteps),
    )


def noisy_pools(
    denoise: Denoise,
    settings: ResamplerSettings,
    process: Process,
    draws: Draws,
    judge_pool: JudgePool | None = None,
    steps_left: int = 0,
) -> tuple[Float[Array, "r b h w c"], Float[Array, "r k b h w c"], Float[Array, "r k b"] | None]:
    """Draws a pool at every step that branches, but the last ``steps_left``.

    Args:
      denoise: see `roll_noisy`.
      settings: see `roll_noisy`.
      process: see `roll_noisy`.
      draws: see `roll_noisy`.
      judge_pool: see `roll_noisy`.
      steps_left: number of steps that are left for another scan.

    Returns:
      The parents, the children, and their scores; None without a judge.
    """
    first = settings.divert_start_step
    timesteps = jnp.asarray(process.timesteps)

    predict = predictor(denoise, process, settings.eta)

    def shared_step(x, inputs):
        t, noise = inputs
        _, step = predict(x, t)
        return step.draw(noise), None

    def pool_step(parent, inputs):
        t, noise, choice = inputs
        _, step = predict(parent, t)
        children = Step(parent, step.mean[None], step.std[None]).draw(noise)  # [b h w c] -> [k b h w c]
        scores = None
        if judge_pool is not None:
            scores = judge_pool(children, t)
            choice = jnp.argmax(scores, axis=0)
        return pick(children, choice), (packed(parent), packed(children), scores)

    x = draws.init_latents
    if first:
        x, _ = jax.lax.scan(shared_step, x, (timesteps[:first], draws.shared))
    # No one continues from the last pool.
    choices = jnp.concatenate([draws.choice, jnp.zeros((1, len(x)), draws.choice.dtype)])
    inputs = (timesteps[first:], draws.pool, choices)
    if steps_left:
        inputs = jax.tree.map(lambda x: x[:-steps_left], inputs)
    _, (parents, children, scores) = jax.lax.scan(pool_step, x, inputs)
    channels = x.shape[-1]
    return unpacked(parents, channels), unpacked(children, channels), scores
