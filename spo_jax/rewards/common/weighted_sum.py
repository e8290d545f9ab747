"""The weighted sum of several scores that are computed on the devices."""

from collections.abc import Mapping, Sequence
from typing import Any

from spo_jax.core.errors import UserError
from spo_jax.core.typing import Array, Float, Int, Params, PyTree
from spo_jax.rewards.base import DeviceReward
from spo_jax.rewards.common.total import spell_sum


class WeightedSum(DeviceReward):
    """The sum of scores as they are, each times its weight.

    Nothing is normalised: a judge compares the softmax of two sums with a threshold, for which means do not matter, and
    the weights are the only scale.

    Args:
      terms: weights and rewards, which all read images or all read latents.
      where: flag or config field that names the sum, for messages.

    Raises:
      UserError: the rewards read different things.
    """

    def __init__(self, terms: Sequence[tuple[float, DeviceReward]], where: str):
        self.weights = [weight for weight, _ in terms]
        self.rewards = [reward for _, reward in terms]
        self.READS = self.rewards[0].READS
        if any(reward.READS != self.READS for reward in self.rewards):
            different = "some rewards of the sum read images and others latents, clean or noisy ones"
            raise UserError(f"{where}: {different}; expected one kind")
        self.params = {str(index): reward.params for index, reward in enumerate(self.rewards)}
        names = [name for reward in self.rewards for name in reward.meanings]
        self.meanings = {"sum": f"{spell_sum(zip(names, self.weights, strict=True))}, the scores as they are"}

    def describe(self) -> Mapping[str, Any]:
        """Returns what every reward says of itself."""
        return {str(index): reward.describe() for index, reward in enumerate(self.rewards)}

    def features(self, prompts: Sequence[str]) -> PyTree:
        """Computes the features of every reward."""
        return tuple(reward.features(prompts) for reward in self.rewards)

    def feature_shapes(self) -> PyTree:
        """Returns the shapes of one row of `features`."""
        return tuple(reward.feature_shapes() for reward in self.rewards)

    def score(
        self, params: Params, x: Float[Array, "b h w c"], features: PyTree, t: Int[Array, " b"]
    ) -> Float[Array, " b"]:
        """Adds the weighted scores up."""
        return sum(
            weight * reward.score(params[str(index)], x, features[index], t)
            for index, (weight, reward) in enumerate(zip(self.weights, self.rewards, strict=True))
        )

    def check(self, prompts: Sequence[str], size: tuple[int, int]) -> None:
        """Raises a `UserError` if one of the rewards cannot score these images and prompts."""
        for reward in self.rewards:
            reward.check(prompts, size)
