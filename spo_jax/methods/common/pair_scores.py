"""Scores of the clean images of preference pairs, computed once and kept on disk."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np

from spo_jax.core.errors import UserError
from spo_jax.core.rows import joined_rows
from spo_jax.core.typing import Array, Float, Int
from spo_jax.data.array_file import ArrayFile
from spo_jax.data.preferences.loading import ImagePairs, LoadedBatch
from spo_jax.methods.common.precompute import fill
from spo_jax.rewards.base import Reward
from spo_jax.rewards.common.own import measured
from spo_jax.weights.digest import weights_digest

FILE = "scores.npy"


@runtime_checkable
class CaptionedPairs(ImagePairs, Protocol):
    """The part of a prepared split that judging needs.

    Attributes:
      prompts: the captions of the split, each of them once.
      prompt: for each pair, the position of its caption in `prompts`.
    """

    prompts: tuple[str, ...]
    prompt: Int[np.ndarray, " n"]


def kept_scores(
    folder: Path,
    preferences: CaptionedPairs,
    compute: Callable[[LoadedBatch], Array],
    bound: Mapping[str, Any],
    *,
    side: int,
    pairs_per_device: int = 16,
    threads: int = 8,
    workers: int = 0,
    whole: bool = False,
) -> Float[np.ndarray, "n 2"]:
    """Scores both images of every pair; scores that are on disk already are not computed again.

    Args:
      folder: folder for this split's scores and nothing else, visible to all processes.
      preferences: the prepared split.
      compute: as in `spo_jax.methods.common.precompute.fill`.
      bound: what determines the scores besides the pairs, by readable names.
      side: side of the images in pixels.
      pairs_per_device: number of pairs that each device of the mesh in context judges at a time.
      threads: see `spo_jax.data.preferences.loading.batches`.
      workers: see `spo_jax.data.preferences.loading.batches`.
      whole: as in `fill`.

    Raises:
      UserError: the folder holds scores of other data or another judge (the message says what differs) or cannot be
        written; or an image is damaged; or a score is not finite.
    """
    bound = {"preferences": preferences.digest, **bound}
    file = ArrayFile(Path(folder) / FILE, (len(preferences), 2), np.dtype(np.float32), bound)
    fill(
        file,
        preferences,
        compute,
        side=side,
        pairs_per_device=pairs_per_device,
        title="scores of clean images",
        threads=threads,
        workers=workers,
        whole=whole,
    )
    scores = np.array(file.open())
    if not np.isfinite(scores).all():
        row = int(np.flatnonzero(~np.isfinite(scores).all(axis=1))[0])
        raise UserError(f"{file.path}: the scores of pair {row} are {scores[row]}; remove the folder, and use float32")
    return scores


def reward_scores(
    folder: Path,
    preferences: CaptionedPairs,
    reward: Reward,
    spec: str,
    where: str,
    *,
    side: int,
    threads: int = 8,
    workers: int = 0,
) -> Float[np.ndarray, "n 2"]:
    """Scores both images of every pair by a reward, as an evaluation scores finished images.

    Args:
      folder: as in `kept_scores`.
      preferences: the prepared split.
      reward: the reward.
      spec: its name.
      where: flag or config field that names it, for messages.
      side: side of the images in pixels.
      threads: as in `kept_scores`.
      workers: as in `kept_scores`.

    Raises:
      UserError: as `kept_scores`; or the reward has several scores, or cannot score these images or prompts.
    """
    names = list(reward.meanings)
    if len(names) > 1:
        raise UserError(f"{where} = {spec!r} has {len(names)} scores ({', '.join(names)}): expected a reward with one")
    reward.check(preferences.prompts, (side, side))
    params = getattr(reward, "params", None)
    describe = getattr(reward, "describe", dict)
    bound = {
        "reward": {"name": spec, "version": getattr(reward, "version", "")},
        "weights of the reward": weights_digest(params) if params else "none",
        "read with them": dict(describe()),
        "side": side,
    }

    def compute(batch: LoadedBatch) -> Float[np.ndarray, "n 2"]:
        images = joined_rows(batch.images).astype(np.float32) / 127.5 - 1  # [n 2 …] -> [2n …]
        prompts = [preferences.prompts[caption] for caption in np.repeat(preferences.prompt[batch.rows], 2)]
        return measured(reward, images, prompts)[names[0]].astype(np.float32).reshape(-1, 2)

    more = {"threads": threads, "workers": workers, "whole": True}
    return kept_scores(folder, preferences, compute, bound, side=side, **more)
