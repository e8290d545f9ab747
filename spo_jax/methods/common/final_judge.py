"""Rewards that judge finished images, inside a program if they are computed on the devices and between two if not."""

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from jax.sharding import Mesh

from spo_jax.core.errors import UserError
from spo_jax.core.progress import stage
from spo_jax.core.rows import take_rows
from spo_jax.core.typing import Array, Float, Int, Params, PyTree
from spo_jax.core.words import listed
from spo_jax.methods.common.checks import reward_options
from spo_jax.methods.common.decoding import images_at_a_time
from spo_jax.methods.common.judge import open_decoder_for
from spo_jax.methods.common.trajectory_settings import TrajectoryTrainSettings
from spo_jax.models.base import Decoder, Pipeline
from spo_jax.parallel.agreement import decided
from spo_jax.parallel.chunks import cut, joined
from spo_jax.parallel.mesh import devices_in_context
from spo_jax.parallel.sizes import even_chunk
from spo_jax.rewards import check_direction, check_reads, load_reward
from spo_jax.rewards.base import Context, DeviceReward, Reward, Scores
from spo_jax.rewards.common.own import measured


@dataclasses.dataclass(frozen=True)
class SomeScores:
    """A reward of which only some scores count; see `spo_jax.rewards.common.protocol.Reward`.

    Attributes:
      reward: the reward.
      names: names of the scores that count.
    """

    reward: Reward
    names: Sequence[str]

    @property
    def meanings(self) -> dict[str, str]:
        """The sentences about the scores that count."""
        return {name: self.reward.meanings[name] for name in self.names}

    @property
    def lower_is_better(self) -> list[str]:
        """Those of the scores that improve by falling."""
        return [name for name in self.names if name in self.reward.lower_is_better]

    def check(self, prompts: Sequence[str], size: tuple[int, int]) -> None:
        """Refuses images and prompts that the reward refuses."""
        self.reward.check(prompts, size)

    def measure(self, images: Float[np.ndarray, "b h w 3"], prompts: Sequence[str]) -> Scores:
        """Scores finished images, and returns the scores that count."""
        scores = measured(self.reward, images, prompts)
        return {name: scores[name] for name in self.names}


@dataclasses.dataclass(frozen=True)
class FinalJudge:
    """Rewards of finished images, with the decoder that makes their input.

    Attributes:
      rewards: the rewards, of which all scores count.
      decoder: decoder of latents to images; None if the rewards read latents.
    """

    rewards: Sequence[Reward]
    decoder: Decoder | None

    @property
    def names(self) -> list[str]:
        """The names of the scores."""
        return [name for reward in self.rewards for name in reward.meanings]

    @property
    def loaded(self) -> list[Reward]:
        """The rewards with all of their scores, also those that do not count."""
        return [reward.reward if isinstance(reward, SomeScores) else reward for reward in self.rewards]

    @property
    def on_host(self) -> bool:
        """Whether a reward is computed on the host, so that all of them get the images there."""
        return not all(isinstance(reward, DeviceReward) for reward in self.rewards)

    @property
    def params(self) -> Params:
        """The weights that programs take."""
        decoder = {} if self.decoder is None else {"decoder": self.decoder.params}
        rewards = [] if self.on_host else self.rewards
        return {"rewards": {str(index): reward.params for index, reward in enumerate(rewards)}, **decoder}

    def features(self, prompts: Sequence[str]) -> PyTree:
        """Computes the features of prompts that scores inside a program need, one row each."""
        return () if self.on_host else tuple(reward.features(prompts) for reward in self.rewards)

    def feature_shapes(self) -> PyTree:
        """Returns the shapes of one row of `features`."""
        return () if self.on_host else tuple(reward.feature_shapes() for reward in self.rewards)

    def finish(
        self,
        params: Params,
        latents: Float[Array, "n h w c"],
        features: PyTree,
        row: Int[Array, " n"],
        per_device: int,
    ) -> Float[Array, "n r"] | Float[Array, "n H W 3"]:
        """Scores finished latents inside a program, or decodes them for rewards on the host, some at a time.

        Args:
          params: the attribute `params`.
          latents: finished latents.
          features: rows of `features`, for the prompts of the batch.
          row: row of each one's prompt.
          per_device: number of images that a device decodes at a time; 0 for as many as suit the platform.
        """

        def finish(part: tuple[Array, Array]) -> Array:
            x, row = part
            if self.decoder is not None:
                x = self.decoder.apply(params["decoder"], x)
            if self.on_host:
                return x.astype(jnp.float32)
            t = jnp.zeros(len(x), jnp.int32)
            scores = [
                reward.score(params["rewards"][str(index)], x, take_rows(features[index], row), t)
                for index, reward in enumerate(self.rewards)
            ]
            return jnp.stack(scores, axis=1)

        per_device = images_at_a_time(per_device, latents.shape)
        chunk = even_chunk(len(row), per_device, devices_in_context())
        return joined(jax.lax.map(finish, cut((latents, row), chunk)))

    def measure(self, images: Float[np.ndarray, "n H W 3"], prompts: Sequence[str]) -> Float[np.ndarray, "n r"]:
        """Scores finished images on the host; in a run of several processes, one of them asks rewards on the host."""

        def scores(reward: Reward) -> list[list[float]]:
            return [np.asarray(values, np.float64).tolist() for values in measured(reward, images, prompts).values()]

        columns = []
        for reward in self.rewards:
            device = isinstance(reward, DeviceReward)  # then all processes compute it together
            columns += scores(reward) if device else decided(lambda reward=reward: scores(reward))
        return np.asarray(columns, np.float32).T


def open_final_judge(
    settings: TrajectoryTrainSettings,
    pipeline: Pipeline,
    mesh: Mesh | None = None,
    abstract: bool = False,
    prompts: Sequence[str] = (),
) -> FinalJudge:
    """Loads the rewards of finished images that a run learns from.

    Args:
      settings: settings of the run.
      pipeline: the model whose images are judged.
      mesh: mesh on which weights are placed; None places them on the first device.
      abstract: whether to return shapes instead of weights.
      prompts: all training prompts, which rewards on the host may refuse.

    Raises:
      UserError: a reward or the decoder cannot be loaded; a score is not known, or a lower one is better; or the
        rewards read different things.
    """
    own, group = settings.own, settings.own.GROUP
    where = f"config field {group}reward"
    rewards = []
    for spec in own.reward_names:
        context = Context(
            pipeline.kind, pipeline.dtype, mesh, reward_options(settings, spec), abstract, f"{group}reward"
        )
        with stage(f"reading the reward {spec}"):
            rewards.append((spec, load_reward(spec, context)))
    kept = chosen(rewards, own.score_names, own.locate("score"))
    for spec, reward in kept:
        if isinstance(reward, DeviceReward):
            check_direction(spec, reward, 1.0, where)
        elif reward.lower_is_better:
            raise UserError(
                f"{where} = {spec!r}: a lower {listed(reward.lower_is_better)} is better, and training prefers high "
                f"scores; name another one in {group}score"
            )
    judge = FinalJudge(tuple(reward for _, reward in kept), None)
    if judge.on_host:
        logging.info("%s = %r is computed on the host: the images of every batch go there", where, own.reward)
        for _, reward in kept:
            reward.check(prompts, pipeline.image_size)
    for spec, reward in kept:
        check_reads(spec, getattr(reward, "READS", "images"), False, where)
    reads = {getattr(reward, "READS", "images") for _, reward in kept}
    if len(reads) > 1 or (judge.on_host and reads != {"images"}):
        raise UserError(f"{where} = {own.reward!r}: some rewards read images and others latents; expected one kind")
    decoder = open_decoder_for(
        own.reward, reads.pop(), own.decoder, group.removesuffix("."), pipeline, mesh, abstract
    )  # fmt: skip
    return dataclasses.replace(judge, decoder=decoder)


def chosen(rewards: Sequence[tuple[str, Reward]], names: Sequence[str], where: str) -> list[tuple[str, Reward]]:
    """Leaves the scores of the given names, or the first score of every reward.

    Args:
      rewards: names of rewards, and the rewards.
      names: names of scores; empty for the first of every reward.
      where: the config field that names the scores, and its value.

    Raises:
      UserError: a name is not known; a reward has no score that counts; or two rewards have one of the same name.
    """
    known = [name for _, reward in rewards for name in reward.meanings]
    for name in names:
        if name not in known:
            raise UserError(f"{where} names {name!r}: expected one of the scores {', '.join(known)}")
    kept = []
    for spec, reward in rewards:
        own = [name for name in reward.meanings if name in names] if names else list(reward.meanings)[:1]
        if len(own) == len(reward.meanings):
            kept.append((spec, reward))
        elif own:
            kept.append((spec, SomeScores(reward, own)))
        else:
            raise UserError(f"{where} names no score of {spec!r}: expected one of {', '.join(reward.meanings)} as well")
    counted = [name for _, reward in kept for name in reward.meanings]
    if twice := sorted({name for name in counted if counted.count(name) > 1}):
        raise UserError(f"{where}: several rewards give a score {', '.join(twice)}; keep one of them")
    return kept
