"""Turns scored pools into training pairs of a winner and a loser, with a mask instead of ragged arrays."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from spo_jax.core.rows import joined_rows
from spo_jax.core.typing import Array, Bool, Float, Int, Key
from spo_jax.methods.common.policy import Pairs
from spo_jax.methods.spo.packed import packed, unpacked
from spo_jax.methods.spo.plan import Plan
from spo_jax.methods.spo.resampler import Trajectory


class NoisePairs(NamedTuple):
    """Training pairs of two directions from one x_t, of GradSPO: towards the winner, and away from it.

    Attributes:
      x_t: the parent of winner and loser.
      noise: half the difference of the winner's and the loser's noise; the loser's is minus this. What both noises have
        in common says nothing about the preference, and is left out.
      t: timestep of the transition.
      row: row of the pair's prompt in the batch of prompts.
      valid: whether to train on the pair.
    """

    x_t: Float[Array, "n h w c"]
    noise: Float[Array, "n h w c"]
    t: Int[Array, " n"]
    row: Int[Array, " n"]
    valid: Bool[Array, " n"]


class Verdict(NamedTuple):
    """The outcome of judging every pool.

    Attributes:
      win: index of the best candidate.
      lose: index of the worst candidate.
      valid: whether the scores of the two differ enough to train on them.
    """

    win: Int[Array, "s b"]
    lose: Int[Array, "s b"]
    valid: Bool[Array, "s b"]


def rank(scores: Float[Array, "s k b"], threshold: float | Float[np.ndarray, " s"]) -> Verdict:
    """Finds the best and the worst candidate of every pool.

    A pair is valid if the two probabilities of the softmax over its two scores differ by strictly more than
    ``threshold``, which is one number or one for every judgement. Equal scores rank by index, as in a stable descending
    sort: if all are equal, the winner is 0, the loser k-1, and the pair is not valid.
    """
    k = scores.shape[1]
    win = jnp.argmax(scores, axis=1)
    lose = k - 1 - jnp.argmin(jnp.flip(scores, axis=1), axis=1)
    # [s k b] -> [s b]
    best, worst = (jnp.take_along_axis(scores, index[:, None], axis=1)[:, 0] for index in (win, lose))
    limit = threshold if np.ndim(threshold) == 0 else jnp.asarray(threshold)[:, None]
    return Verdict(win, lose, certainty(best, worst) > limit)


def certainty(best: Float[Array | np.ndarray, "*s"], worst: Float[Array | np.ndarray, "*s"]) -> Float[Array, "*s"]:
    """Computes the difference of the two probabilities in the softmax over two scores: 0 if they are equal, below 1."""
    probability = jax.nn.softmax(jnp.stack([best, worst]).astype(jnp.float32), axis=0)
    return probability[0] - probability[1]


def make_pairs(trajectory: Trajectory, verdict: Verdict, plan: Plan) -> Pairs:
    """Makes one pair per transition and prompt; transitions vary slowest.

    Args:
      trajectory: the rollout.
      verdict: outcome of every judgement; a transition takes that of its segment.
      plan: plan of the rollout.
    """
    win, lose, valid = (array[plan.segment] for array in verdict)  # [s b] -> [r b]
    records, b = win.shape
    both = jnp.stack([win, lose], axis=1)  # [r 2 b]

    def of_both(candidates: Array) -> Array:  # [r k b h w c] -> [r·b 2 h w c]
        taken = jnp.take_along_axis(packed(candidates), both[..., None, None], axis=1)
        return unpacked(joined_rows(jnp.moveaxis(taken, 1, 2)), candidates.shape[-1])

    x_t = joined_rows(trajectory.parents)[:, None] if plan.shares_parent else of_both(trajectory.parents)
    return Pairs(
        x_t=x_t,
        x_prev=of_both(trajectory.children),
        t=jnp.repeat(jnp.asarray(trajectory.timesteps), b),
        row=jnp.tile(jnp.arange(b), records),
        valid=valid.reshape(-1),
    )


def make_noise_pairs(
    trajectory: Trajectory, noise: Float[Array, "r k b h w c"], verdict: Verdict, plan: Plan
) -> NoisePairs:
    """Makes one pair per judgement and prompt, of the transition at which the judged candidates parted.

    Later transitions of a segment with inner steps start from an x_t of their own each, so that their noises cannot be
    compared.

    Args:
      trajectory: the rollout.
      noise: the noise of all candidates, `Draws.pool`.
      verdict: outcome of every judgement.
      plan: plan of the rollout, with shared parents.
    """
    branched = plan.branched  # [s], as many as there are judgements
    noise = noise[branched]
    win, lose = (
        jnp.take_along_axis(noise, index[:, None, :, None, None, None], axis=1)[:, 0]
        for index in (verdict.win, verdict.lose)
    )  # [s k b h w c] -> [s b h w c]
    parents = trajectory.parents[branched]
    b = win.shape[1]
    return NoisePairs(
        x_t=joined_rows(parents if plan.shares_parent else parents[:, 0]),
        noise=joined_rows((win - lose) / 2),
        t=jnp.repeat(jnp.asarray(trajectory.timesteps[branched]), b),
        row=jnp.tile(jnp.arange(b), len(branched)),
        valid=verdict.valid.reshape(-1),
    )


def shuffled_order(key: Key, valid: Bool[Array, " n"]) -> Int[Array, " n"]:
    """Returns a permutation that puts the valid pairs first, in random order."""
    return jnp.argsort(jax.random.uniform(key, valid.shape) + jnp.where(valid, 0.0, 2.0))
