"""A reward that judges latents inside a program, and decodes them first if it reads images."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from jax.sharding import Mesh

from spo_jax.core.errors import UserError
from spo_jax.core.progress import stage
from spo_jax.core.typing import Array, Float, Int, Params, PyTree
from spo_jax.models.base import Decoder, Pipeline
from spo_jax.models.decoder import open_decoder
from spo_jax.rewards import check_direction, check_reads, load_reward, no_judge
from spo_jax.rewards.base import Context, DeviceReward


@dataclasses.dataclass(frozen=True)
class Judge:
    """A reward with the decoder that makes its input.

    Attributes:
      reward: the reward, which reads images or latents.
      decoder: decoder of latents to images; None if the reward reads latents, clean or noisy ones.
    """

    reward: DeviceReward
    decoder: Decoder | None

    @property
    def params(self) -> Params:
        """The weights of reward and decoder, which are an argument of programs."""
        decoder = {} if self.decoder is None else {"decoder": self.decoder.params}
        return {"reward": self.reward.params, **decoder}

    def features(self, prompts: Sequence[str]) -> PyTree:
        """Computes the features of prompts that `score` takes, one row each, on the host."""
        return self.reward.features(prompts)

    def feature_shapes(self) -> PyTree:
        """Returns the shapes of one row of `features`."""
        return self.reward.feature_shapes()

    def score(
        self, params: Params, latents: Float[Array, "n h w c"], features: PyTree, t: Int[Array, " n"]
    ) -> Float[Array, " n"]:
        """Scores latents inside a program.

        Args:
          params: the attribute `params`.
          latents: clean latents, as the diffusion model predicted them, or noisy ones.
          features: rows of `features`.
          t: timesteps from which the latents were predicted; 0 for finished latents. For noisy ones, those of the
            steps that drew them.
        """
        x = latents if self.decoder is None else self.decoder.apply(params["decoder"], latents)
        return self.reward.score(params["reward"], x, features, t)


def open_judge(
    spec: str,
    options: Mapping[str, Any],
    pipeline: Pipeline,
    *,
    decoder: str,
    group: str,
    field: str = "reward",
    mesh: Mesh | None = None,
    abstract: bool = False,
    noisy: bool = False,
    timesteps: Sequence[int] = (),
) -> Judge:
    """Loads the judge of a pipeline's latents.

    Args:
      spec: name of the reward, as `spo_jax.rewards.load_reward` takes it.
      options: options of the reward.
      pipeline: the model whose latents are judged.
      decoder: the decoder, as `spo_jax.models.decoder.open_decoder` takes it.
      group: group of the settings that names reward and decoder, for messages.
      field: field of the group that names the reward.
      mesh: mesh on which weights are placed; None places them on the first device.
      abstract: whether to return shapes instead of weights.
      noisy: whether noisy latents are judged, instead of clean ones.
      timesteps: timesteps at which latents are judged.

    Raises:
      UserError: reward or decoder cannot be loaded, the reward is computed on the host, reads something else than it
        would see, or a lower score of it is better.
    """
    context = Context(
        pipeline.kind,
        pipeline.dtype,
        mesh,
        options,
        abstract,
        f"{group}.{field}",
        noisy=noisy,
        channels=pipeline.latent_shape[-1],
        timesteps=timesteps,
    )
    with stage(f"reading the judge {spec}"):
        reward = load_reward(spec, context)
    if not isinstance(reward, DeviceReward):
        raise no_judge(spec, context.where)
    check_reads(spec, reward.READS, noisy, context.where)
    check_direction(spec, reward, 1.0, context.where)
    return Judge(reward, open_decoder_for(spec, reward.READS, decoder, group, pipeline, mesh, abstract))


def open_decoder_for(
    spec: str, reads: str, decoder: str, group: str, pipeline: Pipeline, mesh: Mesh | None, abstract: bool
) -> Decoder | None:
    """Opens the decoder of the images that rewards read; returns None if they read latents.

    Args:
      spec: names of the rewards, for messages.
      reads: what they read, ``images`` or ``latents``.
      decoder: see `open_judge`.
      group: see `open_judge`.
      pipeline: see `open_judge`.
      mesh: see `open_judge`.
      abstract: see `open_judge`.

    Raises:
      UserError: the decoder cannot be loaded, or the rewards read latents and a distilled one is named.
    """
    if reads != "images":
        if decoder != "vae":
            raise UserError(
                f"config field {group}.decoder = {decoder!r}: expected 'vae', because the reward {spec} reads latents "
                "and nothing is decoded"
            )
        return None
    return open_decoder(decoder, pipeline, mesh, abstract, f"{group}.decoder")
