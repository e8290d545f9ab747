"""Scores the images, one reward in memory at a time; scores that are there already are not computed again."""

import contextlib
import gc
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jax.sharding import Mesh
from tqdm import tqdm

from spo_jax.core.errors import UserError
from spo_jax.core.progress import bar, stage
from spo_jax.core.typing import Float, UInt8
from spo_jax.core.words import excerpt
from spo_jax.rewards.base import Reward
from spo_jax.rewards.common.own import measured
from spo_jax.run.lock import RunLock
from spo_jax.work.evaluate.judges import Judge
from spo_jax.work.evaluate.request import Request
from spo_jax.work.evaluate.store import ScoreFile, Store, joint_key, read_pixels

DIVERSITY = "diversity"
_PART = 50  # images whose scores are computed together, two chunks of `spo_jax.rewards.base`
# Seconds between two writings. A file is written whole, and those of thousands of images would be written for longer
# than small rewards compute.
_EVERY = 5.0

Values = dict[str, Float[np.ndarray, "prompts images"]]


class Scorer:
    """Scores the images of all contestants.

    Args:
      request: what is evaluated.
      kind: `Pipeline.kind` of the model.
      store: the folder.
      lock: its lock.
      mesh: the devices.
      files: by name of the contestant, the file of each image, in the order of `Request.places`.
      keys: the same for the keys under which scores are kept (`spo_jax.work.evaluate.store.image_key`).
    """

    def __init__(
        self,
        request: Request,
        kind: str,
        store: Store,
        lock: RunLock,
        mesh: Mesh,
        files: Mapping[str, Sequence[Path]],
        keys: Mapping[str, Sequence[str]],
    ):
        self._request = request
        self._kind = kind
        self._store = store
        self._lock = lock
        self._mesh = mesh
        self._files = files
        self._keys = keys
        self._shape = (len(request.prompts), request.protocol.images_per_prompt)

    def measure(self, judges: Sequence[Judge]) -> dict[str, Values]:
        """Returns the scores by name of the contestant and name of the score; diversity is one of them.

        Raises:
          UserError: a reward cannot be loaded, an image is damaged, or a score is not finite.
        """
        found: dict[str, Values] = {name: {} for name in self._files}
        # A single image of a prompt differs from no other.
        diverse = next((judge for judge in judges if judge.embeds), None) if self._shape[1] > 1 else None
        for judge in judges:
            opened = {name: self._store.scores(judge.identity, name) for name in self._files}
            self._complete(judge, opened, with_diversity=judge is diverse)
            for name, scores in opened.items():
                values = [scores.scores[key] for key in self._keys[name]]
                for score in judge.meanings:
                    found[name][score] = np.array([value[score] for value in values]).reshape(self._shape)
                if judge is diverse:
                    distances = [[scores.diversity[key]] for key in self._joint_keys(name)]
                    found[name][DIVERSITY] = np.repeat(distances, self._shape[1], axis=1)
        return found

    def _joint_keys(self, name: str) -> list[str]:
        """Returns the key of each prompt's images together."""
        keys, count = self._keys[name], self._shape[1]
        return [joint_key(keys[start : start + count]) for start in range(0, len(keys), count)]

    def _complete(self, judge: Judge, opened: Mapping[str, ScoreFile], with_diversity: bool) -> None:
        """Computes what is missing of a reward's scores; without anything missing, it is not loaded."""
        missing = {
            name: [row for row, key in enumerate(self._keys[name]) if key not in scores.scores]
            for name, scores in opened.items()
        }
        alone = {
            name: [prompt for prompt, key in enumerate(self._joint_keys(name)) if key not in scores.diversity]
            for name, scores in opened.items()
            if with_diversity
        }
        if not any([*missing.values(), *alone.values()]):
            return
        with stage(f"reading the reward {judge.spec}"):
            reward = judge.load(self._kind, self._mesh)
        if any(missing.values()):
            total = sum(map(len, self._keys.values()))
            done = total - sum(map(len, missing.values()))
            with bar(f"scores of {judge.spec}", total, "image", initial=done) as shown:
                for name, rows in missing.items():
                    self._score(reward, judge, name, rows, opened[name], shown)
        if any(alone.values()):
            with stage(f"measuring diversity by the features of {judge.spec}"):
                for name, prompts in alone.items():
                    self._measure_diversity(reward, name, prompts, opened[name])
        # Its programs hold the reward, and the reward them: without this, its weights would stay beside the next one's.
        del reward
        gc.collect()

    def _score(
        self, reward: Reward, judge: Judge, name: str, rows: Sequence[int], scores: ScoreFile, shown: tqdm
    ) -> None:
        """Scores some images of a contestant, and writes the scores now and then."""
        shown.set_postfix_str(name, refresh=False)
        with self._saving(scores):
            for part in equal_parts(rows, len(self._keys[name]), _PART):
                for same, images in self._of_one_size(name, part):
                    found = measured(reward, images, [self._prompt(row) for row in same])
                    self._check_finite(judge, name, same, found)
                    for index, row in enumerate(same):
                        scores.scores[self._keys[name][row]] = {key: float(found[key][index]) for key in found}
                self._lock.check()
                scores.save(_EVERY)
                shown.update(len(set(part)))

    @contextlib.contextmanager
    def _saving(self, scores: ScoreFile) -> Iterator[None]:
        """Writes the scores at the end, also if it is an error or Ctrl-C."""
        try:
            yield
        finally:
            self._lock.check()
            scores.save()

    def _measure_diversity(self, reward: Any, name: str, prompts: Sequence[int], scores: ScoreFile) -> None:
        """Measures how far the images of a prompt are from each other, for some prompts."""
        joint, count = self._joint_keys(name), self._shape[1]
        with self._saving(scores):
            for part in equal_parts(prompts, len(joint), max(1, _PART // count)):
                rows = [prompt * count + image for prompt in part for image in range(count)]
                features = {}
                for same, images in self._of_one_size(name, rows):
                    features |= dict(zip(same, np.asarray(reward.embed(images)), strict=True))
                for prompt in part:
                    of_prompt = [features[prompt * count + image] for image in range(count)]
                    scores.diversity[joint[prompt]] = mean_distance(np.stack(of_prompt))
                self._lock.check()
                scores.save(_EVERY)

    def _of_one_size(self, name: str, rows: Sequence[int]) -> Iterator[tuple[list[int], Float[np.ndarray, "b h w 3"]]]:
        """Yields images of one size together, which all are unless they were made elsewhere."""
        groups: dict[tuple[int, ...], list[tuple[int, UInt8[np.ndarray, "h w 3"]]]] = {}
        for row in rows:
            image = read_pixels(self._files[name][row])
            groups.setdefault(image.shape, []).append((row, image))
        for group in groups.values():
            yield [row for row, _ in group], to_float(np.stack([image for _, image in group]))

    def _prompt(self, row: int) -> str:
        return self._request.prompts[self._request.places[row][0]]

    def _check_finite(
        self, judge: Judge, name: str, rows: Sequence[int], measured: Mapping[str, Float[np.ndarray, " b"]]
    ) -> None:
        for score, values in measured.items():
            if not np.isfinite(values).all():
                row = rows[int(np.argmin(np.isfinite(values)))]
                raise UserError(
                    f"{score} of {self._files[name][row]} ({excerpt(self._prompt(row))}) is not finite: the weights of "
                    f"the reward {judge.spec} are damaged, or the image is beyond what it can score"
                )


def equal_parts(rows: Sequence[int], total: int, most: int) -> list[list[int]]:
    """Cuts rows into parts of one size, for which programs are compiled.

    The size is that which cuts all rows into as few parts of at most ``most`` as possible. It does not depend on how
    many rows are missing, so that scores that were cut off go on with the same programs and batches, to the bit.

    Args:
      rows: the rows that are missing.
      total: number of all rows.
      most: largest size of a part.

    Returns:
      The parts; the last one is filled up with its last row.
    """
    if not rows:
        return []
    size = -(-total // -(-total // most))
    parts = [list(rows[start : start + size]) for start in range(0, len(rows), size)]
    parts[-1] += [parts[-1][-1]] * (size - len(parts[-1]))
    return parts


def to_float(pixels: UInt8[np.ndarray, "*b c"]) -> Float[np.ndarray, "*b c"]:
    """Converts 8 bits to [-1, 1], as rewards take images; `spo_jax.core.images.to_uint8` restores them."""
    return pixels.astype(np.float32) / 127.5 - 1


def mean_distance(features: Float[np.ndarray, "n p"]) -> float:
    """Returns the mean of 1 - cosine over all pairs of features of length 1."""
    features = np.asarray(features, np.float64)
    count = len(features)
    cosines = features @ features.T
    return float(1 - (cosines.sum() - np.trace(cosines)) / (count * (count - 1)))
