"""The rewards of an evaluation: looked at before anything is drawn, loaded again when there is something to score."""

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jax.sharding import Mesh

from spo_jax.core.errors import UserError
from spo_jax.core.progress import stage
from spo_jax.core.typing import Float
from spo_jax.rewards import load_reward
from spo_jax.rewards.base import Context, Reward
from spo_jax.rewards.common import total
from spo_jax.work.evaluate.elsewhere import sizes
from spo_jax.work.evaluate.lineup import Lineup
from spo_jax.work.evaluate.request import Request
from spo_jax.work.identity import reward_identity

_FLAG = "--rewards"


@dataclasses.dataclass(frozen=True)
class Judge:
    """What is kept of a reward without its weights.

    Attributes:
      spec: its name.
      identity: everything that decides on its scores besides image and prompt, as JSON.
      meanings: a sentence for each of its scores.
      lower_is_better: those of its scores that improve by falling.
      embeds: whether it has features of images, of which diversity is computed.
      signs: those of its scores that have no better direction.
    """

    spec: str
    identity: Mapping[str, Any]
    meanings: Mapping[str, str]
    lower_is_better: Sequence[str]
    embeds: bool
    signs: Sequence[str] = ()

    def load(self, kind: str, mesh: Mesh) -> Reward:
        """Loads the reward onto the devices; it computes in float32.

        Raises:
          UserError: it cannot be loaded, or is another one than at the beginning, to which the scores would be bound.
        """
        reward = _load(self.spec, kind, mesh)
        if reward_identity(self.spec, reward, _FLAG) != self.identity:
            raise UserError(
                f"the reward {self.spec} was replaced since this evaluation began: start it again, and the new one "
                "scores; what is finished stays"
            )
        return reward


def read_judges(request: Request, lineup: Lineup, mesh: Mesh) -> list[Judge]:
    """Loads every reward once, one at a time, so that one that cannot score shows before hours of drawing.

    Raises:
      UserError: a reward cannot be loaded, belongs to another kind of model, or cannot score these prompts or images of
        this size; or two give a score of the same name.
    """
    sizes_of = {lineup.entrants[0].entry.name: {lineup.size}}
    sizes_of |= {name: sizes(itertools.chain(*files)) for name, files in request.images.items()}
    judges = [_read(spec, request, lineup.kind, mesh, sizes_of) for spec in request.rewards]
    for first, second in itertools.combinations(judges, 2):
        if both := first.meanings.keys() & second.meanings.keys():
            raise UserError(
                f"{_FLAG}: {first.spec} and {second.spec} both give a score {', '.join(sorted(both))}; keep one of them"
            )
    total.signed_weights(judges, request.weights)
    return judges


def _read(
    spec: str, request: Request, kind: str, mesh: Mesh, sizes_of: Mapping[str, set[tuple[int, int]]]
) -> Judge:  # fmt: skip
    with stage(f"looking at the reward {spec}"):
        reward = _load(spec, kind, mesh)
        for name, size in ((name, size) for name, found in sizes_of.items() for size in found):
            try:
                reward.check(request.prompts, size)
            except UserError as error:
                raise UserError(f"the reward {spec} cannot score the images of {name}: {error}") from error
        identity = reward_identity(spec, reward, _FLAG)
    return Judge(
        spec, identity, dict(reward.meanings), tuple(reward.lower_is_better), hasattr(reward, "embed"), _signs(reward)
    )


def _signs(reward: Reward) -> tuple[str, ...]:
    """Returns the scores of a reward that have no better direction, which most rewards do not speak of."""
    return tuple(getattr(reward, "signs", ()))


def _load(spec: str, kind: str, mesh: Mesh) -> Reward:
    return load_reward(spec, Context(kind, mesh=mesh, field=_FLAG))


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
