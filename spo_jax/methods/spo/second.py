"""A second judge for the pools of the last steps, where detail is decided.

A judge of noisy latents says at every step which candidates are better, and costs no decoding. What tells two finished
images apart is small, and a judge that sees pixels may see more of it. So both judge the last pools
(`SPOSettings.second_steps`), the second one by the clean predictions from their candidates, decoded.

The rollout is two scans in a row. Up to the first pool that both judge, it is that of `spo_jax.methods.spo.noisy`, and
the network is evaluated for one candidate of a pool. After it, every step evaluates the network for all candidates, as
`spo_jax.methods.spo.resampler.roll` does, because the second judge sees what is predicted from them. With a single such
pool there is no second scan: the last candidates are finished as they are. A condition inside of one scan would carry
the larger step's buffers through all steps, and could not give the early steps a smaller network call.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from spo_jax.core.typing import Array, Float, Int
from spo_jax.diffusion.process import Process
from spo_jax.methods.spo.noisy import judged_as_they_are, noisy_pools
from spo_jax.methods.spo.packed import packed, unpacked
from spo_jax.methods.spo.resampler import Denoise, Draws, Trajectory, drawn, go_on_from_one, pool_step, predictor
from spo_jax.methods.spo.settings import SPOSettings


class Predicted(NamedTuple):
    """Clean latents of the last p pools, which the second judge sees.

    Attributes:
      latents: predictions from the candidates; of the last pool, the candidates themselves.
      timesteps: timesteps from which they were predicted; 0 for the last pool.
    """

    latents: Float[Array, "p k b h w c"]
    timesteps: Int[np.ndarray, " p"]


def roll_predicting(
    denoise: Denoise, settings: SPOSettings, process: Process, draws: Draws
) -> tuple[Trajectory, Predicted]:
    """Runs the sampler as `spo_jax.methods.spo.noisy.roll_noisy`, and predicts the clean latents of the last pools.

    Args:
      denoise: guided prediction of the current policy.
      settings: settings of the rollout, with a second reward.
      process: the diffusion process, divided into ``settings.num_steps`` steps.
      draws: all randomness.
    """
    left = settings.second_steps - 1
    parents, children, _ = noisy_pools(denoise, settings, process, draws, steps_left=left)
    last = children[-1]
    timesteps = process.timesteps[len(process.timesteps) - left :]
    predicted = []
    if left:
        predict_pools = pool_step(predictor(denoise, process, settings.eta), drawn, go_on_from_one)
        every_step_branches = np.ones(left, bool)
        inputs = (jnp.asarray(timesteps), draws.pool[-left:], draws.choice[-left:], every_step_branches)
        last, late = jax.lax.scan(predict_pools, last, inputs)
        channels = last.shape[-1]
        parents = unpacked(jnp.concatenate([packed(parents), late.parents[:, 0]]), channels)
        children = unpacked(jnp.concatenate([packed(children), late.children]), channels)
        predicted.append(unpacked(late.x0, channels))
    trajectory = judged_as_they_are(parents, children, settings, process)
    latents = jnp.concatenate([*predicted, last[None]])
    return trajectory, Predicted(latents, np.append(timesteps, 0).astype(np.int32))


class JudgedTwice(NamedTuple):
    """The last p pools, which both judges have judged.

    Attributes:
      first: scores by the judge of noisy candidates.
      second: scores by the second judge.
      seen: what the second judge saw.
    """

    first: Float[Array, "p k b"]
    second: Float[Array, "p k b"]
    seen: Predicted


def combined(
    first: Float[Array, "s k b"], second: Float[Array, "p k b"], weight: float
) -> Float[Array, "s k b"]:  # fmt: skip
    """Combines the scores of both judges where both have judged: (1 - w) first + w second.

    The scores are not brought to one scale. Judges that learned from preferences have scores whose differences are log
    odds, so that the sum is the pooled opinion of two experts, and the threshold is still about the probability that
    the best candidate is preferred to the worst. Divided by its spread within a pool, a judge would be as sure of a
    pool of equals as of any, and the threshold would mean nothing.

    Args:
      first: scores of all pools.
      second: scores of the last p pools.
      weight: w, from 0 to 1.
    """
    both = len(first) - len(second)
    late = (1 - weight) * first[both:] + weight * second
    return jnp.concatenate([first[:both], late])


def agreement(twice: JudgedTwice) -> dict[str, Float[Array, ""]]:
    """Measures both judges on the pools that both have judged: their mean gaps, and how often their winner is one."""

    def gap(scores: Float[Array, "p k b"]) -> Float[Array, ""]:
        return (scores.max(1) - scores.min(1)).mean()

    same = jnp.argmax(twice.first, axis=1) == jnp.argmax(twice.second, axis=1)
    return {
        "judges/first_gap": gap(twice.first),
        "judges/second_gap": gap(twice.second),
        "judges/agree": same.mean(dtype=jnp.float32),
    }
