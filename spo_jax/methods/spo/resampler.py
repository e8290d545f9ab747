"""The step-wise resampler: one rollout that branches into pools of candidates.

Steps before ``divert_start_step`` are plain stochastic DDIM. From there on, every branching step takes one parent per
prompt and draws k children of it. The children take ``num_inner_step`` plain steps on their own (none for SD 1.5). The
next branching step evaluates the network on all k·b of them, which gives the clean predictions that are judged AND the
prediction from which one of them, picked uniformly at random, continues.

The pick does not depend on scores, so judging is not part of the loop: `rollout` returns the latents to be judged, and
a single judge in the program serves all judgements (`spo_jax.methods.spo.judging.judge`). All randomness is passed in
as arrays (`Draws`), so the rollout can also be replayed from the reference's noises.

If candidates are judged as they are (`ResamplerSettings.judged`), a step brings the pool back to one parent before the
network is evaluated: `spo_jax.methods.spo.noisy`.

Two ablations of the paper differ. If the best candidate becomes the next parent (`ResamplerSettings.next_parent`),
pools are judged inside the loop. Without a shared parent (`ResamplerSettings.shared_parent`) no pool is brought back to
one candidate: all k go on alone, and are judged at the same steps.
"""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from spo_jax.core.typing import Array, Float, Int, Key
from spo_jax.diffusion.process import Process
from spo_jax.methods.spo.settings import ResamplerSettings
from spo_jax.parallel.mesh import spread

# Function from (latents [... b h w c], timestep) to guided prediction; the axes before b hold copies of the prompts.
Denoise = Callable[[Float[Array, "*k b h w c"], Int[Array, ""]], Float[Array, "*k b h w c"]]
# Function from (clean latents of a pool [k b h w c], timestep) to scores [k b].
JudgePool = Callable[[Float[Array, "k b h w c"], Int[Array, ""]], Float[Array, "k b"]]


@dataclasses.dataclass(frozen=True)
class Plan:
    """What every step of a rollout does, which is known before it runs.

    T is the number of steps, d the first step that branches, and r = T - d the number of recorded transitions.

    Attributes:
      branches: for every step after d, whether it brings the pool back to one parent and branches; bool[T-1-d].
      segment: for each recorded transition, the judgement to which it belongs; int[r].
      judged_at: steps whose clean predictions are judged; the last judgement, of the final latents, is not listed.
      shares_parent: whether every pool of transitions has a single parent, so that x_t is kept once per pair.
    """

    branches: np.ndarray
    segment: np.ndarray
    judged_at: np.ndarray
    shares_parent: bool

    @property
    def branched(self) -> np.ndarray:
        """The recorded transitions at which all candidates have one parent; int, ascending."""
        return np.flatnonzero(np.append(True, self.branches))


def make_plan(settings: ResamplerSettings) -> Plan:
    """Makes the plan of a rollout: 16 judgements of one step each for SD 1.5, and 4 segments of 4 steps for SDXL."""
    first = settings.divert_start_step
    last = settings.num_steps - 1
    steps = np.arange(first + 1, last + 1)
    judges = (steps - first) % (settings.num_inner_step + 1) == 0
    if not settings.branch_at_last_step and len(judges):
        judges[-1] = False
    branches = judges & settings.shared_parent
    segment = np.concatenate([[0], np.cumsum(judges)]).astype(int)
    return Plan(branches, segment, steps[judges], shares_parent=bool(branches.all()))


def judged_timesteps(settings: ResamplerSettings, process: Process) -> Int[np.ndarray, " s"]:
    """Returns the timestep of every judgement; the last one judges the finished images, at 0.

    Noisy candidates are judged at the timestep of the step that drew them, the last ones too.
    """
    if settings.judged == "noisy":
        return recorded_timesteps(settings, process)
    return np.append(process.timesteps[make_plan(settings).judged_at], 0).astype(np.int32)


def recorded_timesteps(settings: ResamplerSettings, process: Process) -> Int[np.ndarray, " r"]:
    """Returns the timestep of every recorded transition, descending."""
    return process.timesteps[settings.divert_start_step :]


class Draws(NamedTuple):
    """All randomness of a rollout; see `Plan` for d and r.

    Attributes:
      init_latents: x_T.
      shared: noise of the d steps before the first step that branches.
      pool: noise of the pools from that step on.
      choice: index of the candidate that continues, for each step after that one; not read where the best continues.
    """

    init_latents: Float[Array, "b h w c"]
    shared: Float[Array, "d b h w c"]
    pool: Float[Array, "r k b h w c"]
    choice: Int[Array, "r-1 b"]


class Trajectory(NamedTuple):
    """The result of a rollout.

    Attributes:
      parents: x_t of the recorded transitions; one per pool if the plan shares parents, otherwise one per candidate.
      children: x_{t'} of all candidates.
      timesteps: timestep t of each transition.
      judged: latents to be judged, clean ones or the children.
      judged_timesteps: the timestep of each judgement.
    """

    parents: Float[Array, "r *k b h w c"]
    children: Float[Array, "r k b h w c"]
    timesteps: Int[np.ndarray, " r"]
    judged: Float[Array, "s k b h w c"]
    judged_timesteps: Int[np.ndarray, " s"]


def draw(key: Key, settings: ResamplerSettings, batch: int, latent_shape: tuple[int, int, int]) -> Draws:
    """Draws the randomness of a rollout, which does not depend on the number of devices.

    Args:
      key: key of the rollout.
      settings: settings of the rollout.
      batch: number of prompts.
      latent_shape: (h, w, c).
    """
    init, shared, pool, choice = jax.random.split(key, 4)
    first = settings.divert_start_step
    k = settings.num_candidates
    records = settings.num_steps - first
    return Draws(
        init_latents=spread(jax.random.normal(init, (batch, *latent_shape))),
        shared=spread(jax.random.normal(shared, (first, batch, *latent_shape)), axis=1),
        pool=spread(jax.random.normal(pool, (records, k, batch, *latent_shape)), axis=2),
        choice=spread(jax.random.randint(choice, (records - 1, batch), 0, k), axis=1),
    )


def rollout(denoise: Denoise, settings: ResamplerSettings, process: Process, draws: Draws) -> Trajectory:
    """Runs the sampler in two scans, one over the shared steps and one over the pools.

    A program therefore contains two copies of the network.

    Args:
      denoise: guided prediction of the current policy.
      settings: settings of the rollout; the next parent is random.
      process: the diffusion process, divided into ``settings.num_steps`` steps.
      draws: all randomness.
    """
    return roll(denoise, settings, process, draws)[0]


def roll(
    denoise: Denoise,
    settings: ResamplerSettings,
    process: Process,
    draws: Draws,
    judge_pool: JudgePool | None = None,
) -> tuple[Trajectory, Float[Array, "pools k b"] | None]:
    """Runs the sampler like `rollout`; with a judge of pools, the best candidate of a pool is the next parent.

    Args:
      denoise: see `rollout`.
      settings: see `rollout`.
      process: see `rollout`.
      draws: see `rollout`.
      judge_pool: scores of a pool; None picks the next parents by ``draws.choice``.

    Returns:
      The rollout, and all scores but those of the final latents; None without a judge.
    """
    plan = make_plan(settings)
    first = settings.divert_start_step
    timesteps = jnp.asarray(process.timesteps)

    def moments(x: Array, t: Array) -> tuple[Array, Array, Array]:
        x0, noise = process.split(x, denoise(x, t), t)
        return x0, *process.step(x0, noise, t, settings.eta)

    # 1. The shared steps, one chain per prompt. The last step of this scan is the first one that branches: its children
    # are drawn below, and its noise here is not used.
    def shared_step(carry, inputs):
        x, _, _, _ = carry
        t, noise = inputs
        _, mean, std = moments(x, t)
        return (mean + std * noise, x, mean, std), None

    x = draws.init_latents  # [b h w c]
    noises = jnp.concatenate([draws.shared, jnp.zeros_like(x)[None]])  # [d+1 b h w c]
    start = (x, x, jnp.zeros_like(x), jnp.zeros((1,) * x.ndim))
    (_, parent, mean, std), _ = jax.lax.scan(shared_step, start, (timesteps[: first + 1], noises))

    # 2. The pools, with k candidates per prompt.
    pool = mean[None] + std[None] * draws.pool[0]  # [b h w c] -> [k b h w c]

    def pool_step(pool, inputs):
        t, noise, choice, branch = inputs
        x0, mean, std = moments(pool, t)
        scores = None
        if judge_pool is not None:
            nothing = jnp.zeros(pool.shape[:2])
            scores = jax.lax.cond(branch, lambda: judge_pool(x0, t), lambda: nothing)
            choice = jnp.argmax(scores, axis=0)
        if plan.shares_parent:
            parent = pick(pool, choice)
            mean = pick(mean, choice)[None]
        else:
            parent = jnp.where(branch, pick(pool, choice)[None], pool)
            mean = jnp.where(branch, pick(mean, choice)[None], mean)
        children = mean + std * noise
        return children, (parent, children, x0, scores)

    inputs = (timesteps[first + 1 :], draws.pool[1:], draws.choice, jnp.asarray(plan.branches))
    final, (parents, children, x0, scores) = jax.lax.scan(pool_step, pool, inputs)

    # 3. The record: the transitions, and the latents to be judged.
    parent = parent if plan.shares_parent else jnp.broadcast_to(parent[None], pool.shape)
    judged = [x0[step - first - 1] for step in plan.judged_at]
    trajectory = Trajectory(
        parents=jnp.concatenate([parent[None], parents]),
        children=jnp.concatenate([pool[None], children]),
        timesteps=recorded_timesteps(settings, process),
        judged=jnp.stack([*judged, final]),
        judged_timesteps=judged_timesteps(settings, process),
    )
    return trajectory, None if scores is None else scores[plan.judged_at - first - 1]


def pick(candidates: Float[Array, "k b h w c"], choice: Int[Array, " b"]) -> Float[Array, "b h w c"]:
    """Picks candidate ``choice[j]`` of every prompt j."""
    return jnp.take_along_axis(candidates, choice[None, :, None, None, None], axis=0)[0]
