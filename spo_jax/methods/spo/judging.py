"""Rollouts with what the judge says of their pools.

Scores do not steer a rollout whose next parents are random, so it is judged when it is complete: a program then holds a
single judge, which goes through the latents of all judgements in chunks. If the best candidate becomes the next parent,
the judge is part of the loop, and a second one judges the final latents. Where candidates are judged as they are, the
judge sees noise and all, and there are no final latents besides the last candidates; a second judge may see what is
predicted from the last pools (`spo_jax.methods.spo.second`).
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from spo_jax.core.typing import Array, Float, Int
from spo_jax.diffusion.process import Process
from spo_jax.methods.common.decoding import images_at_a_time
from spo_jax.methods.spo.noisy import roll_noisy
from spo_jax.methods.spo.packed import packed, unpacked
from spo_jax.methods.spo.pairs import Verdict, rank
from spo_jax.methods.spo.resampler import Denoise, Draws, Trajectory, roll, rollout
from spo_jax.methods.spo.second import JudgedTwice, combined, roll_predicting
from spo_jax.methods.spo.settings import SPOSettings
from spo_jax.methods.spo.thresholds import threshold_at
from spo_jax.parallel.mesh import devices_in_context, spread

# Function from (latents [n h w c], timesteps [n], row of each one's prompt [n]) to scores [n].
Score = Callable[[Float[Array, "n h w c"], Int[Array, " n"], Int[Array, " n"]], Float[Array, " n"]]


class JudgedRollout(NamedTuple):
    """A rollout and what the judge says of its pools.

    Attributes:
      trajectory: the rollout.
      scores: score of every candidate.
      verdict: winner, loser and validity of every pool.
      twice: the last pools as each of two judges judged them; None without a second one.
    """

    trajectory: Trajectory
    scores: Float[Array, "s k b"]
    verdict: Verdict
    twice: JudgedTwice | None = None


def judged_rollout(
    denoise: Denoise, score: Score, settings: SPOSettings, process: Process, draws: Draws, second: Score | None = None
) -> JudgedRollout:
    """Rolls the policy out and judges the pools; the arguments are those of `spo_jax.methods.spo.update.collect`."""
    twice = None
    if settings.judge_timestep == "zero":
        score = _as_if_finished(score)
    if second is not None:
        trajectory, predicted = roll_predicting(denoise, settings, process, draws)
        scores = judge(score, trajectory, settings.decode_chunk)
        late = _judge(second, predicted.latents, predicted.timesteps, settings.decode_chunk)
        twice = JudgedTwice(scores[-len(late) :], late, predicted)
        scores = combined(scores, late, settings.second_weight)
    elif settings.next_parent == "best":
        trajectory, scores = _best_first(denoise, score, settings, process, draws)
    else:
        if settings.judged == "noisy":
            trajectory, _ = roll_noisy(denoise, settings, process, draws)
        else:
            trajectory = rollout(denoise, settings, process, draws)
        scores = judge(score, trajectory, settings.decode_chunk)
    verdict = rank(scores, threshold_at(settings, trajectory.judged_timesteps))
    if settings.accept_last_step:
        verdict = verdict._replace(valid=verdict.valid.at[-1].set(True))
    return JudgedRollout(trajectory, scores, verdict, twice)


def _as_if_finished(score: Score) -> Score:
    """Returns scores that do not depend on the timestep: those of finished latents."""
    return lambda latents, t, row: score(latents, jnp.zeros_like(t), row)


def _best_first(
    denoise: Denoise, score: Score, settings: SPOSettings, process: Process, draws: Draws
) -> tuple[Trajectory, Float[Array, "s k b"]]:
    """Rolls the policy out from the best candidate of each pool to the next."""

    def judge_pool(pool: Float[Array, "k b h w c"], t: Int[Array, ""]) -> Float[Array, "k b"]:
        return _judge(score, pool[None], t[None], settings.decode_chunk)[0]

    if settings.judged == "noisy":
        return roll_noisy(denoise, settings, process, draws, judge_pool)
    trajectory, scores = roll(denoise, settings, process, draws, judge_pool)
    final = _judge(score, trajectory.judged[-1:], trajectory.judged_timesteps[-1:], settings.decode_chunk)
    return trajectory, jnp.concatenate([scores, final])


def judge(score: Score, trajectory: Trajectory, chunk: int) -> Float[Array, "s k b"]:
    """Scores all latents to be judged, in chunks, because decoded images are large.

    Args:
      score: scores of latents.
      trajectory: the rollout.
      chunk: number of latents that each device scores at a time, which changes the scores only by rounding; 0 for as
        many as suit the platform.
    """
    return _judge(score, trajectory.judged, trajectory.judged_timesteps, chunk)


def _judge(
    score: Score, latents: Float[Array, "s k b h w c"], timesteps: Int[Array | np.ndarray, " s"], chunk: int
) -> Float[Array, "s k b"]:
    chunk = images_at_a_time(chunk, latents.shape)
    channels = latents.shape[-1]
    latents = jnp.moveaxis(packed(latents), 2, 0)  # [s k b h w c] -> [b s k h w·c]
    b, s, k = latents.shape[:3]
    devices = devices_in_context()
    each = b * s * k // devices
    chunk = min(chunk, each)

    # Each device keeps its own prompts and cuts their latents into chunks.
    def cut(x: Array) -> Array:  # [b s k ...] -> [chunks devices·chunk ...]
        x = x.reshape(devices, each, *x.shape[3:])
        x = jnp.concatenate([x, jnp.repeat(x[:, :1], -each % chunk, axis=1)], axis=1)
        x = jnp.moveaxis(x.reshape(devices, -1, chunk, *x.shape[2:]), 1, 0)
        return spread(x.reshape(len(x), -1, *x.shape[3:]), axis=1)

    t = jnp.broadcast_to(jnp.asarray(timesteps)[None, :, None], (b, s, k))
    rows = jnp.broadcast_to(jnp.arange(b)[:, None, None], (b, s, k))

    def score_chunk(chunk: tuple[Array, Array, Array]) -> Array:
        latents, *rest = chunk
        return score(unpacked(latents, channels), *rest)

    scores = jax.lax.map(score_chunk, (cut(latents), cut(t), cut(rows)))
    # [chunks devices·chunk] -> [devices each] -> [s k b]
    scores = jnp.moveaxis(scores.reshape(-1, devices, chunk), 0, 1).reshape(devices, -1)[:, :each]
    return jnp.moveaxis(scores.reshape(b, s, k), 0, 2)
