"""The step-wise resampler: one rollout that branches into pools of candidates.

Steps before ``divert_start_step`` are plain stochastic DDIM. From there on every branching step takes one parent per
prompt and draws k children of it; they walk ``num_inner_step`` plain steps on their own (none for SD 1.5); the next
branching step runs the UNet on all k·b of them, which gives the clean predictions that are judged AND the prediction
from which one of them, picked uniformly at random, continues.

The pick does not look at scores, so judging is not part of the loop: `rollout` returns what is to be judged, and one
decoder and one preference model in the program serve all judgements (`judge`). All randomness comes in as arrays
(`Draws`), which is also how the rollout is replayed from the reference's noises.
"""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from spo_jax.core.errors import UserError
from spo_jax.core.typing import Array, Float, Int, Key
from spo_jax.diffusion.ddim import predict_x0, step_moments
from spo_jax.diffusion.schedule import Schedule
from spo_jax.parallel.mesh import devices_in_context, spread

# (latents [... b h w c], timestep) to guided noise prediction; leading axes before b are copies of the prompts.
Denoise = Callable[[Float[Array, "*k b h w c"], Int[Array, ""]], Float[Array, "*k b h w c"]]
# (latents [n h w c], timesteps [n], prompt row of each [n]) to scores [n].
Score = Callable[[Float[Array, "n h w c"], Int[Array, " n"], Int[Array, " n"]], Float[Array, " n"]]


@dataclasses.dataclass(frozen=True)
class ResamplerConfig:
    """Settings of the rollout; defaults are the published ones of SD 1.5.

    Attributes:
      num_steps: sampler steps T.
      eta: stochasticity of the steps, 1 as in DDPM.
      divert_start_step: the first branching step.
      num_candidates: pool size k.
      num_inner_step: plain steps of every branch before it is judged (SDXL: 3).
      branch_at_last_step: whether the last step may branch; in the SDXL recipe it never does.
    """

    num_steps: int = 20
    eta: float = 1.0
    divert_start_step: int = 4
    num_candidates: int = 4
    num_inner_step: int = 0
    branch_at_last_step: bool = True

    def __post_init__(self):
        last = self.num_steps - 1 - (not self.branch_at_last_step)
        checks = {
            "num_steps": (self.num_steps >= 1, "at least 1"),
            "eta": (self.eta > 0, "more than 0: a deterministic step has no likelihood"),
            "divert_start_step": (0 <= self.divert_start_step <= last, f"0 to {last}"),
            "num_candidates": (self.num_candidates >= 2, "at least 2"),
            "num_inner_step": (self.num_inner_step >= 0, "0 or more"),
        }
        for field, (good, expected) in checks.items():
            if not good:
                raise UserError(f"config field spo.{field} = {getattr(self, field)}: expected {expected}")


@dataclasses.dataclass(frozen=True)
class Plan:
    """Which step does what, known before anything runs.

    Attributes:
      branches: for every step after the first diverted one, whether it branches; bool[T-1-d].
      segment: judgement that each recorded transition belongs to; int[r], r = T - d.
      judged_at: steps whose clean predictions are judged; the last judgement, of the final latents, is not listed.
      shares_parent: every pool of transitions has one parent, so x_t is kept once per pair.
    """

    branches: np.ndarray
    segment: np.ndarray
    judged_at: np.ndarray
    shares_parent: bool


def make_plan(config: ResamplerConfig) -> Plan:
    """The plan of a rollout. SD 1.5: 16 judgements of one step each; SDXL: 4 segments of 4 steps."""
    first, last = config.divert_start_step, config.num_steps - 1
    steps = np.arange(first + 1, last + 1)
    branches = (steps - first) % (config.num_inner_step + 1) == 0
    if not config.branch_at_last_step and len(branches):
        branches[-1] = False
    segment = np.concatenate([[0], np.cumsum(branches)]).astype(int)
    return Plan(branches, segment, steps[branches], shares_parent=bool(branches.all()))


def judged_timesteps(config: ResamplerConfig, schedule: Schedule) -> Int[np.ndarray, " s"]:
    """The timestep that the judge is told at every judgement; the finished pictures are judged as they are, at 0."""
    return np.append(schedule.timesteps[make_plan(config).judged_at], 0).astype(np.int32)


class Draws(NamedTuple):
    """All randomness of a rollout.

    Attributes:
      init_latents: x_T. shared: noise of the steps before the first diverted one.
      pool: noise of the pools from the first diverted step on. choice: who continues, for the steps after it.
    """

    init_latents: Float[Array, "b h w c"]
    shared: Float[Array, "d b h w c"]
    pool: Float[Array, "r k b h w c"]
    choice: Int[Array, "r-1 b"]


class Trajectory(NamedTuple):
    """What a rollout leaves behind.

    Attributes:
      parents: x_t of the recorded transitions; one per pool where the plan shares parents, else one per candidate.
      children: x_{t'} of all candidates. timesteps: t of each transition.
      judged: clean latents to be judged. judged_timesteps: the timestep that the judge is told.
    """

    parents: Float[Array, "r *k b h w c"]
    children: Float[Array, "r k b h w c"]
    timesteps: Int[np.ndarray, " r"]
    judged: Float[Array, "s k b h w c"]
    judged_timesteps: Int[np.ndarray, " s"]


def draw(key: Key, config: ResamplerConfig, batch: int, latent_shape: tuple[int, int, int]) -> Draws:
    """Draws the randomness of a rollout of ``batch`` prompts from one key, whatever the number of devices."""
    init, shared, pool, choice = jax.random.split(key, 4)
    first, k = config.divert_start_step, config.num_candidates
    records = config.num_steps - first
    return Draws(
        init_latents=spread(jax.random.normal(init, (batch, *latent_shape))),
        shared=spread(jax.random.normal(shared, (first, batch, *latent_shape)), axis=1),
        pool=spread(jax.random.normal(pool, (records, k, batch, *latent_shape)), axis=2),
        choice=spread(jax.random.randint(choice, (records - 1, batch), 0, k), axis=1),
    )


def rollout(denoise: Denoise, config: ResamplerConfig, schedule: Schedule, draws: Draws) -> Trajectory:
    """Runs the sampler: one scan over the shared steps, one over the pools, so two copies of the UNet in a program.

    Args:
      denoise: guided prediction of the current policy.
      schedule: cut into ``config.num_steps`` steps.
    """
    plan, first = make_plan(config), config.divert_start_step
    timesteps = jnp.asarray(schedule.timesteps)

    def moments(x, t):
        x0, eps = predict_x0(schedule, x, denoise(x, t), t)
        return x0, *step_moments(schedule, x0, eps, t, config.eta)

    def shared_step(carry, inputs):
        x, _, _, _ = carry
        t, noise = inputs
        _, mean, std = moments(x, t)
        return (mean + std * noise, x, mean, std), None

    # The first diverted step is the last of this scan: its children are drawn below, its own noise goes unused.
    x = draws.init_latents
    noises = jnp.concatenate([draws.shared, jnp.zeros_like(x)[None]])
    start = (x, x, jnp.zeros_like(x), jnp.zeros((1,) * x.ndim))
    (_, parent, mean, std), _ = jax.lax.scan(shared_step, start, (timesteps[: first + 1], noises))
    pool = mean[None] + std[None] * draws.pool[0]

    def pool_step(pool, inputs):
        t, noise, choice, branch = inputs
        x0, mean, std = moments(pool, t)
        picked = lambda candidates: _pick(candidates, choice)  # noqa: E731
        if plan.shares_parent:
            parent, mean = picked(pool), picked(mean)[None]
        else:
            keep_or_pick = lambda all_: jnp.where(branch, picked(all_)[None], all_)  # noqa: E731
            parent, mean = keep_or_pick(pool), keep_or_pick(mean)
        children = mean + std * noise
        return children, (parent, children, x0)

    inputs = (timesteps[first + 1 :], draws.pool[1:], draws.choice, jnp.asarray(plan.branches))
    final, (parents, children, x0) = jax.lax.scan(pool_step, pool, inputs)
    parent = parent if plan.shares_parent else jnp.broadcast_to(parent[None], pool.shape)
    judged = [x0[step - first - 1] for step in plan.judged_at]
    return Trajectory(
        parents=jnp.concatenate([parent[None], parents]),
        children=jnp.concatenate([pool[None], children]),
        timesteps=schedule.timesteps[first:],
        judged=jnp.stack([*judged, final]),
        judged_timesteps=judged_timesteps(config, schedule),
    )


def _pick(candidates: Float[Array, "k b h w c"], choice: Int[Array, " b"]) -> Float[Array, "b h w c"]:
    """Candidate ``choice[j]`` of every prompt j."""
    return jnp.take_along_axis(candidates, choice[None, :, None, None, None], axis=0)[0]


def judge(score: Score, trajectory: Trajectory, chunk: int) -> Float[Array, "s k b"]:
    """Scores all judged latents, ``chunk`` at a time on every device, for decoded pictures are large.

    The scores do not depend on ``chunk`` but for float rounding.
    """
    judged = jnp.moveaxis(trajectory.judged, 2, 0)
    b, s, k = judged.shape[:3]
    devices = devices_in_context()
    each = b * s * k // devices
    chunk = min(chunk, each)

    def cut(x):  # [b s k …] -> [chunks, devices · chunk …]; prompts are cut over devices, and stay where they are
        x = x.reshape(devices, each, *x.shape[3:])
        x = jnp.concatenate([x, jnp.repeat(x[:, :1], -each % chunk, axis=1)], axis=1)
        x = jnp.moveaxis(x.reshape(devices, -1, chunk, *x.shape[2:]), 1, 0)
        return spread(x.reshape(len(x), -1, *x.shape[3:]), axis=1)

    t = jnp.broadcast_to(jnp.asarray(trajectory.judged_timesteps)[None, :, None], (b, s, k))
    rows = jnp.broadcast_to(jnp.arange(b)[:, None, None], (b, s, k))
    scores = jax.lax.map(lambda chunk: score(*chunk), (cut(judged), cut(t), cut(rows)))
    scores = jnp.moveaxis(scores.reshape(-1, devices, chunk), 0, 1).reshape(devices, -1)[:, :each]
    return jnp.moveaxis(scores.reshape(b, s, k), 0, 2)
