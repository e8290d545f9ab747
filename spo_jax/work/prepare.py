"""The work of `spo_jax.prepare` that needs jax: scores of pairs, by which they are filtered."""

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import numpy as np
from absl import logging
from jax.sharding import Mesh

from spo_jax.core.errors import UserError
from spo_jax.core.memory import explaining_memory
from spo_jax.core.progress import stage
from spo_jax.core.typing import Float, UInt8
from spo_jax.data.preferences.check import Pair
from spo_jax.data.preferences.filtering.rule import DECIDED_FLAG, RESOLUTION_FLAG, Rule
from spo_jax.data.preferences.images import decode, decode_rgb
from spo_jax.parallel.mesh import make_mesh
from spo_jax.rewards import load_reward
from spo_jax.rewards.base import Context, DeviceReward, Reward
from spo_jax.rewards.common.own import measured
from spo_jax.work.identity import reward_identity

_PAIRS = 50  # per device, four chunks of `spo_jax.rewards.base`
_IMAGES = 25  # per device, one chunk
_MANY_SIZES = 8


class RewardScorer:
    """Scores the images of pairs by the rewards of a rule on all devices; see `PairScorer`.

    Images of one size are scored together, as many at a time as the devices take, and the last ones are filled up, so
    that there is one compiled program for each reward and size.

    Args:
      rule: names rewards and scores.
      resolution: side to which the shorter side of an image is brought, of which the middle square is scored; 0 scores
        each image in its own size.

    Raises:
      UserError: a reward cannot be loaded, or has not the score that the rule names.
    """

    def __init__(self, rule: Rule, resolution: int = 0):
        self._resolution = resolution
        self._mesh: Mesh = make_mesh()
        self._rewards: dict[str, Reward] = {}
        self._sizes: set[tuple[int, ...]] = set()
        self._threads = ThreadPoolExecutor()
        with jax.set_mesh(self._mesh):
            for spec in rule.rewards:
                with stage(f"reading the reward {spec}"), explaining_memory(_advice):
                    self._rewards[spec] = load_reward(spec, Context(mesh=self._mesh, field=DECIDED_FLAG))
        self._columns = [(spec, *_score_of(spec, self._rewards[spec], score)) for spec, score in rule.columns]
        self.identity: Mapping[str, Any] = {
            spec: reward_identity(spec, reward, DECIDED_FLAG) for spec, reward in self._rewards.items()
        }
        self.pairs_at_a_time = _PAIRS * self._mesh.size

    def __call__(self, pairs: Sequence[Pair]) -> Float[np.ndarray, "n c 2"]:
        """Returns the scores of both images by the columns of the rule, of which a higher one is better.

        Raises:
          UserError: a reward cannot score these images or prompts, or there is not enough memory.
        """
        images = list(self._threads.map(self._pixels, [image for pair in pairs for image in pair.images]))
        prompts = [pair.caption for pair in pairs for _ in pair.images]
        scores = np.empty((len(images), len(self._columns)), np.float32)
        with jax.set_mesh(self._mesh), explaining_memory(_advice):
            for rows in self._of_one_size(images):
                of_size = np.stack([images[row] for row in rows])
                scores[rows] = self._scores(of_size, [prompts[row] for row in rows])
        return np.swapaxes(scores.reshape(len(pairs), 2, -1), 1, 2)  # [n·2 c] -> [n c 2]

    def _pixels(self, image: bytes) -> UInt8[np.ndarray, "h w 3"]:
        return decode(image, self._resolution) if self._resolution else decode_rgb(image)

    def _of_one_size(self, images: Sequence[UInt8[np.ndarray, "_ _ 3"]]) -> Iterator[list[int]]:
        """Yields the rows of images that have one size."""
        groups: dict[tuple[int, ...], list[int]] = {}
        for row, image in enumerate(images):
            groups.setdefault(image.shape, []).append(row)
        before = len(self._sizes)
        self._sizes |= groups.keys()
        if before <= _MANY_SIZES < len(self._sizes):
            logging.warning(
                "images have more than %d sizes, and a program is compiled for each: %s=512 scores them in one size",
                _MANY_SIZES,
                RESOLUTION_FLAG,
            )
        yield from groups.values()

    def _scores(self, images: UInt8[np.ndarray, "n h w 3"], prompts: Sequence[str]) -> Float[np.ndarray, "n c"]:
        """Scores images of one size."""
        found = {spec: self._measured(spec, images, prompts) for spec in self._rewards}
        return np.stack([sign * found[spec][name] for spec, name, sign in self._columns], axis=1)

    def _measured(
        self, spec: str, images: UInt8[np.ndarray, "n h w 3"], prompts: Sequence[str]
    ) -> dict[str, Float[np.ndarray, " n"]]:
        reward = self._rewards[spec]
        try:
            reward.check(prompts, images.shape[1:3])
        except UserError as error:
            raise UserError(f"{DECIDED_FLAG}: the reward {spec} cannot score these pairs: {error}") from error
        parts = []
        chunk = _IMAGES * self._mesh.size
        for start in range(0, len(images), chunk):
            rows = np.arange(start, start + chunk)
            # Filled up where it is compiled; a scorer on the host would only have more to do.
            rows = rows.clip(max=len(images) - 1) if isinstance(reward, DeviceReward) else rows[rows < len(images)]
            parts.append(measured(reward, images[rows].astype(np.float32) / 127.5 - 1, [prompts[row] for row in rows]))
        return {name: np.concatenate([part[name] for part in parts])[: len(images)] for name in reward.meanings}


def _score_of(spec: str, reward: Reward, score: str) -> tuple[str, int]:
    """Returns the name of a reward's score, and the sign with which a higher value is better.

    Raises:
      UserError: the reward has no such score, or several, or the score has no better direction.
    """
    names = list(reward.meanings)
    if not score and len(names) > 1:
        raise UserError(
            f"{DECIDED_FLAG}: the reward {spec} has several scores: expected the name of one, such as "
            f"{spec}#{names[0]} (others: {', '.join(names[1:])})"
        )
    score = score or names[0]
    if score not in names:
        raise UserError(f"{DECIDED_FLAG}: the reward {spec} has no score {score!r}: expected {' or '.join(names)}")
    if score in getattr(reward, "signs", ()):
        raise UserError(f"{DECIDED_FLAG}: the score {score} of {spec} has no better direction, so nobody wins by it")
    return score, -1 if score in reward.lower_is_better else 1


def _advice() -> str:
    return f"score smaller images, with {RESOLUTION_FLAG}=256"
