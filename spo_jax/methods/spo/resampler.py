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

Two ablations of the paper differ, each by a function that `roll` chooses before the loop. If the best candidate becomes
the next parent (`ResamplerSettings.next_parent`), pools are judged inside the loop: `best_of` instead of `drawn`.
Without a shared parent (`ResamplerSettings.shared_parent`) no pool is brought back to one candidate, all k go on alone,
and they are judged at the same steps: `go_on_unless_branching` instead of `go_on_from_one`, which inner steps need too.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from spo_jax.core.typing import Array, Float, Int, Key
from spo_jax.diffusion.process import Process
from spo_jax.methods.spo.packed import packed, unpacked
from spo_jax.methods.spo.plan import Plan, judged_timesteps, make_plan, recorded_timesteps
from spo_jax.methods.spo.settings import ResamplerSettings
from spo_jax.parallel.mesh import spread

# Function from (latents [... b h w c], timestep) to guided prediction; the axes before b hold copies of the prompts.
Denoise = Callable[[Float[Array, "*k b h w c"], Int[Array, ""]], Float[Array, "*k b h w c"]]
# Function from (clean latents of a pool [k b h w c], timestep) to scores [k b].
JudgePool = Callable[[Float[Array, "k b h w c"], Int[Array, ""]], Float[Array, "k b"]]
# Function from (drawn choice [b], clean latents of a pool [k b h w c], timestep, whether the step branches) to the
# candidates from which a branching step goes on [b] and the scores [k b], which are None where no one has judged.
Choose = Callable[[Array, Array, Array, Array], tuple[Int[Array, " b"], Float[Array, "k b"] | None]]


class Draws(NamedTuple):
    """All randomness of a rollout; see `spo_jax.methods.spo.plan.Plan` for d and r.

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


class Step(NamedTuple):
    """A step of the sampler: the latents that it starts from, and the normal distribution of the next ones.

    Attributes:
      x: x_t.
      mean: mean of x_{t'}.
      std: standard deviation of x_{t'}, which broadcasts over the mean.
    """

    x: Float[Array, "*k b h w c"]
    mean: Float[Array, "*k b h w c"]
    std: Float[Array, "..."]

    def draw(self, noise: Float[Array, "*#k b h w c"]) -> Float[Array, "*#k b h w c"]:
        """Returns the x_{t'} that standard normal noise leads to."""
        return self.mean + self.std * noise


# Function from (latents, timestep) to (the clean latents that the network predicts, the step from these latents).
Predict = Callable[[Float[Array, "*k b h w c"], Int[Array, ""]], tuple[Float[Array, "*k b h w c"], Step]]
# Function from (step from every candidate, candidate picked [b], whether the step branches) to the step that is taken.
GoOn = Callable[[Step, Int[Array, " b"], Array], Step]


class PoolStep(NamedTuple):
    """What is recorded of a step in the pools; latents are packed (`spo_jax.methods.spo.packed`).

    Attributes:
      parents: x_t, whose first axis has length 1 where all candidates have one parent.
      children: x_{t'} of all candidates.
      x0: the clean latents that the network predicts from every candidate of the pool before.
      scores: what the judge says of them; None where no one has judged.
    """

    parents: Float[Array, "#k b h wc"]
    children: Float[Array, "k b h wc"]
    x0: Float[Array, "k b h wc"]
    scores: Float[Array, "k b"] | None


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
    predict = predictor(denoise, process, settings.eta)
    choose = drawn if judge_pool is None else best_of(judge_pool)
    go_on = go_on_from_one if plan.shares_parent else go_on_unless_branching
    first = settings.divert_start_step
    timesteps = jnp.asarray(process.timesteps)

    start = shared_steps(predict, timesteps[: first + 1], draws)
    start = jax.tree.map(lambda x: x[None], start)  # [b h w c] -> [1 b h w c]
    pool = start.draw(draws.pool[0])  # [k b h w c]
    inputs = (timesteps[first + 1 :], draws.pool[1:], draws.choice, jnp.asarray(plan.branches))
    final, steps = jax.lax.scan(pool_step(predict, choose, go_on), pool, inputs)

    trajectory = recorded(plan, settings, process, start.x, pool, steps, final)
    return trajectory, None if steps.scores is None else steps.scores[plan.judged_at - first - 1]


def predictor(denoise: Denoise, process: Process, eta: float) -> Predict:
    """Returns the function that evaluates the network on latents."""

    def predict(x: Float[Array, "*k b h w c"], t: Int[Array, ""]) -> tuple[Float[Array, "*k b h w c"], Step]:
        x0, noise = process.split(x, denoise(x, t), t)
        return x0, Step(x, *process.step(x0, noise, t, eta))

    return predict


def shared_steps(predict: Predict, timesteps: Int[Array, " t"], draws: Draws) -> Step:
    """Takes the steps that all candidates share, one chain per prompt; returns the step from the first parent.

    Every round of the scan draws latents and evaluates the network on them. The first ones are x_T, drawn from a
    standard normal distribution, and the last ones the parent, which therefore needs no third copy of the network.
    """

    def step(before: Step, inputs: tuple[Array, Array]) -> tuple[Step, None]:
        t, noise = inputs
        _, after = predict(before.draw(noise), t)
        return after, None

    nothing = jnp.zeros_like(draws.init_latents)
    standard_normal = Step(x=nothing, mean=nothing, std=jnp.ones((1,) * nothing.ndim))
    noises = jnp.concatenate([draws.init_latents[None], draws.shared])  # [d+1 b h w c]
    return jax.lax.scan(step, standard_normal, (timesteps, noises))[0]


def pool_step(predict: Predict, choose: Choose, go_on: GoOn) -> Callable[[Array, Any], tuple[Array, PoolStep]]:
    """Returns the body of the scan over pools: a pool goes in, and the next one comes out.

    One evaluation of the network on all candidates gives what the judge sees of the pool, and the step that goes on.
    """

    def step(pool: Float[Array, "k b h w c"], inputs: Any) -> tuple[Float[Array, "k b h w c"], PoolStep]:
        t, noise, choice, branches = inputs
        x0, from_each = predict(pool, t)
        choice, scores = choose(choice, x0, t, branches)
        taken = go_on(from_each, choice, branches)
        children = taken.draw(noise)
        return children, PoolStep(packed(taken.x), packed(children), packed(x0), scores)

    return step


def drawn(choice: Int[Array, " b"], x0: Array, t: Array, branches: Array) -> tuple[Int[Array, " b"], None]:
    """Picks at random; a `Choose`. No one judges inside of the loop."""
    del x0, t, branches
    return choice, None


def best_of(judge_pool: JudgePool) -> Choose:
    """Returns the `Choose` that picks the best candidate by its score."""

    def choose(choice: Array, x0: Array, t: Array, branches: Array) -> tuple[Int[Array, " b"], Float[Array, "k b"]]:
        del choice
        nothing = jnp.zeros(x0.shape[:2])
        scores = jax.lax.cond(branches, lambda: judge_pool(x0, t), lambda: nothing)
        return jnp.argmax(scores, axis=0), scores

    return choose


def go_on_from_one(step: Step, choice: Int[Array, " b"], branches: Array) -> Step:
    """Brings the pool back to the candidate that was picked, at every step; a `GoOn`."""
    del branches
    return Step(pick(step.x, choice)[None], pick(step.mean, choice)[None], step.std)


def go_on_unless_branching(step: Step, choice: Int[Array, " b"], branches: Array) -> Step:
    """Brings the pool back to one candidate where the step branches; elsewhere every candidate goes on; a `GoOn`."""
    one = go_on_from_one(step, choice, branches)
    return Step(jnp.where(branches, one.x, step.x), jnp.where(branches, one.mean, step.mean), step.std)


def pick(candidates: Float[Array, "k b h w c"], choice: Int[Array, " b"]) -> Float[Array, "b h w c"]:
    """Picks candidate ``choice[j]`` of every prompt j."""
    return jnp.take_along_axis(candidates, choice[None, :, None, None, None], axis=0)[0]


def recorded(
    plan: Plan,
    settings: ResamplerSettings,
    process: Process,
    parent: Float[Array, "1 b h w c"],
    pool: Float[Array, "k b h w c"],
    steps: PoolStep,
    final: Float[Array, "k b h w c"],
) -> Trajectory:
    """Puts together the transitions and the latents to be judged.

    Args:
      plan: plan of the rollout.
      settings: settings of the rollout.
      process: the diffusion process.
      parent: the first parent.
      pool: its children.
      steps: all later steps, along a first axis of length r-1.
      final: children of the last step.
    """
    channels = final.shape[-1]
    parent = jnp.broadcast_to(packed(parent), steps.parents.shape[1:])
    parents = unpacked(jnp.concatenate([parent[None], steps.parents]), channels)
    judged = [steps.x0[step - settings.divert_start_step - 1] for step in plan.judged_at]
    return Trajectory(
        parents=parents[:, 0] if plan.shares_parent else parents,
        children=unpacked(jnp.concatenate([packed(pool)[None], steps.children]), channels),
        timesteps=recorded_timesteps(settings, process.timesteps),
        judged=unpacked(jnp.stack([*judged, packed(final)]), channels),
        judged_timesteps=judged_timesteps(settings, process.timesteps),
    )
