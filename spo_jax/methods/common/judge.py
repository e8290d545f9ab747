"""A reward that judges latents inside a program: of images, decoding them is its business."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from jax.sharding import Mesh

from spo_jax.core.errors import UserError
from spo_jax.core.typing import Array, Float, Int, Params, PyTree
from spo_jax.models.base import Decoder, Pipeline
from spo_jax.models.decoder import open_decoder
from spo_jax.rewards import load_reward
from spo_jax.rewards.base import Context, DeviceReward


@dataclasses.dataclass(frozen=True)
class Judge:
    """A reward bound to what it reads.

    Attributes:
      reward: scores images or latents.
      decoder: makes images of latents; None where the reward reads latents.
    """

    reward: DeviceReward
    decoder: Decoder | None

    @property
    def params(self) -> Params:
        """Weights of reward and decoder, an argument of programs."""
        decoder = {} if self.decoder is None else {"decoder": self.decoder.params}
        return {"reward": self.reward.params, **decoder}

    def features(self, prompts: Sequence[str]) -> PyTree:
        """What scoring needs of prompts, a row each, on the host."""
        return self.reward.features(prompts)

    def score(
        self, params: Params, latents: Float[Array, "n h w c"], features: PyTree, t: Int[Array, " n"]
    ) -> Float[Array, " n"]:
        """Scores of clean latents that were predicted at ``t``; ``params`` as the attribute."""
        x = latents if self.decoder is None else self.decoder.apply(params["decoder"], latents)
        return self.reward.score(params["reward"], x, features, t)


def open_judge(
    spec: str,
    options: Mapping[str, Any],
    pipeline: Pipeline,
    *,
    decoder: str,
    group: str,
    mesh: Mesh | None = None,
    abstract: bool = False,
) -> Judge:
    """Loads the judge of a pipeline's latents.

    Args:
      spec: as in `spo_jax.rewards.load_reward`.
      options: of the reward.
      decoder: as in `spo_jax.models.decoder.open_decoder`.
      group: the group of settings that names reward and decoder, for messages.

    Raises:
      UserError: reward or decoder cannot be loaded, or the reward is computed on the host.
    """
    context = Context(pipeline.kind, pipeline.dtype, mesh, options, abstract, f"{group}.reward")
    reward = load_reward(spec, context)
    if not isinstance(reward, DeviceReward):
        raise UserError(
            f"config field {group}.reward = {spec!r}: this reward is computed on the host and cannot judge inside a "
            "rollout; expected one that is computed on the devices, such as 'spm'"
        )
    if reward.READS == "latents":
        return Judge(reward, None)
    return Judge(reward, open_decoder(decoder, pipeline, mesh, abstract, f"{group}.decoder"))
