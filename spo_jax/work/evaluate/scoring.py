"""Scores the images, one reward in memory at a time; scores that are there already are not computed again."""

import dataclasses
import itertools
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
from spo_jax.rewards import load_reward
from spo_jax.rewards.base import Context, Reward
from spo_jax.rewards.common import total
from spo_jax.run.lock import RunLock
from spo_jax.run.versions import library_versions
from spo_jax.weights.digest import weights_digest
from spo_jax.work.evaluate.lineup import LIBRARIES, Lineup
from spo_jax.work.evaluate.request import Request
from spo_jax.work.evaluate.store import ScoreFile, Store, joint_key, read_pixels

FLAG = "--rewards"
DIVERSITY = "diversity"
_SAVED = 50  # images whose scores are computed between two writings, two chunks of `spo_jax.rewards.base`


@dataclasses.dataclass(frozen=True)
class Judge:
    """A reward as it is known before its weights are read.

    Attributes:
      spec: its name.
      meanings: a sentence for each of its scores.
      lower_is_better: those of its scores that improve by falling.
      embeds: whether it has features of images, of which diversity is computed.
    """

    spec: str
    meanings: Mapping[str, str]
    lower_is_better: Sequence[str]
    embeds: bool


def read_judges(request: Request, lineup: Lineup) -> list[Judge]:
    """Reads the rewards without their weights, and refuses those that cannot score these images.

    Raises:
      UserError: a reward cannot be read, belongs to another kind of model, or cannot score these prompts or images of
        this size; or two give a score of the same name.
    """
    judges: list[Judge] = []
    for spec in request.rewards:
        with stage(f"looking at the reward {spec}"):
            reward = load_reward(spec, Context(lineup.kind, abstract=True, field=FLAG))
        reward.check(request.prompts, lineup.size)
        judges.append(Judge(spec, dict(reward.meanings), tuple(reward.lower_is_better), hasattr(reward, "embed")))
    for first, second in itertools.combinations(judges, 2):
        if both := first.meanings.keys() & second.meanings.keys():
            raise UserError(
                f"{FLAG}: {first.spec} and {second.spec} both give a score {', '.join(sorted(both))}; keep one of them"
            )
    total.signed_weights(judges, request.weights)
    return judges


class Scorer:
    """Scores the images of all contestants.

    Args:
      request: what is evaluated.
      lineup: the contestants.
      store: the folder.
      lock: its lock.
      mesh: the devices.
      files: by name of the contestant, the file of each image, in the order of `Request.places`.
      keys: the same for the keys under which scores are kept (`image_key`).
    """

    def __init__(
        self,
        request: Request,
        lineup: Lineup,
        store: Store,
        lock: RunLock,
        mesh: Mesh,
        files: Mapping[str, Sequence[Path]],
        keys: Mapping[str, Sequence[str]],
    ):
        self._request = request
        self._lineup = lineup
        self._store = store
        self._lock = lock
        self._mesh = mesh
        self._files = files
        self._keys = keys
        count = request.protocol.images_per_prompt
        self._shape = (len(request.prompts), count)

    def measure(self, judges: Sequence[Judge]) -> dict[str, dict[str, Float[np.ndarray, "prompts images"]]]:
        """Returns the scores by name of the contestant and name of the score; diversity is one of them.

        Raises:
          UserError: a reward cannot be loaded, an image is damaged, or a score is not finite.
        """
        found: dict[str, dict[str, Any]] = {name: {} for name in self._files}
        diverse = next((judge for judge in judges if judge.embeds), None) if self._shape[1] > 1 else None
        for judge in judges:
            reward, identity = self._load(judge)
            opened = {name: self._store.scores(identity, name) for name in self._files}
            missing = {name: self._missing(name, opened[name]) for name in self._files}
            done = self._count - sum(map(len, missing.values()))
            with bar(f"scores of {judge.spec}", self._count, "image", initial=done) as shown:
                for name, rows in missing.items():
                    self._score(reward, judge, name, rows, opened[name], shown)
            for name, scores in opened.items():
                found[name] |= self._arrays(judge, scores, name)
            if judge is diverse:
                with stage(f"measuring diversity by the features of {judge.spec}"):
                    for name, scores in opened.items():
                        found[name][DIVERSITY] = self._diversity(reward, scores, name)
            del reward
        return found

    @property
    def _count(self) -> int:
        return len(self._files) * self._shape[0] * self._shape[1]

    def _load(self, judge: Judge) -> tuple[Reward, dict[str, Any]]:
        """Loads a reward; also returns what decides on its scores besides image and prompt."""
        with stage(f"reading the reward {judge.spec}"):
            reward = load_reward(judge.spec, Context(self._lineup.kind, mesh=self._mesh, field=FLAG))
            params = getattr(reward, "params", {})
            weights = weights_digest(params) if params else ""
        versions = library_versions()
        return reward, {
            "spec": judge.spec,
            "weights": weights,
            "versions": {name: versions[name] for name in LIBRARIES},
        }

    def _missing(self, name: str, scores: ScoreFile) -> list[int]:
        return [row for row, key in enumerate(self._keys[name]) if key not in scores.scores]

    def _score(
        self, reward: Reward, judge: Judge, name: str, rows: Sequence[int], scores: ScoreFile, shown: tqdm
    ) -> None:
        """Scores some images of a contestant, and writes the scores now and then."""
        shown.set_postfix_str(name, refresh=False)
        for part in equal_parts(rows, _SAVED):
            # All parts have one size, for which programs are compiled; the last one is filled up.
            filled = [*part, *[part[-1]] * (len(equal_parts(rows, _SAVED)[0]) - len(part))]
            for same, images in self._of_one_size(name, filled):
                measured = reward.measure(images, [self._prompt(row) for row in same])
                self._check_finite(judge, name, same, measured)
                for index, row in enumerate(same):
                    scores.scores[self._keys[name][row]] = {key: float(measured[key][index]) for key in measured}
            self._lock.check()
            scores.save()
            shown.update(len(part))

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

    def _arrays(self, judge: Judge, scores: ScoreFile, name: str) -> dict[str, Float[np.ndarray, "prompts images"]]:
        values = [scores.scores[key] for key in self._keys[name]]
        return {score: np.array([value[score] for value in values]).reshape(self._shape) for score in judge.meanings}

    def _diversity(self, reward: Any, scores: ScoreFile, name: str) -> Float[np.ndarray, "prompts images"]:
        """Returns the mean distance between the images of a prompt, the same for each of them."""
        keys = np.array(self._keys[name]).reshape(self._shape)
        joint = [joint_key(row) for row in keys]
        for prompt, key in enumerate(joint):
            if key not in scores.diversity:
                first = prompt * self._shape[1]
                groups = self._of_one_size(name, range(first, first + self._shape[1]))
                features = [reward.embed(images) for _, images in groups]
                scores.diversity[key] = mean_distance(np.concatenate(features))
        scores.save()
        return np.repeat([[scores.diversity[key]] for key in joint], self._shape[1], axis=1)


def equal_parts(rows: Sequence[int], most: int) -> list[list[int]]:
    """Cuts rows into as few parts as possible of at most ``most``, all of one size but the last."""
    size = -(-len(rows) // max(1, -(-len(rows) // most)))
    return [list(rows[start : start + size]) for start in range(0, len(rows), max(1, size))]


def to_float(pixels: UInt8[np.ndarray, "*b c"]) -> Float[np.ndarray, "*b c"]:
    """Converts 8 bits to [-1, 1], as rewards take images; `spo_jax.core.images.to_uint8` restores them."""
    return pixels.astype(np.float32) / 127.5 - 1


def mean_distance(features: Float[np.ndarray, "n p"]) -> float:
    """Returns the mean of 1 - cosine over all pairs of features of length 1."""
    features = np.asarray(features, np.float64)
    count = len(features)
    cosines = features @ features.T
    return float(1 - (cosines.sum() - np.trace(cosines)) / (count * (count - 1)))


def with_total(
    scores: dict[str, dict[str, Float[np.ndarray, "prompts images"]]], judges: Sequence[Judge], weights: Sequence[float]
) -> dict[str, str]:
    """Adds the weighted total to the scores of every contestant, normalised by those of the first one.

    Returns:
      The meaning of the total by its name; empty without weights.
    """
    signed = total.signed_weights(judges, weights)
    if not signed:
        return {}
    add = total.fit_total(signed, next(iter(scores.values())))
    for values in scores.values():
        values[total.NAME] = add(values)
    return {total.NAME: total.meaning(signed)}
