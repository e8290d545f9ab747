"""Advantages: how much better an image is than others, of its prompt where enough are known and else of the batch."""

from typing import NamedTuple

import jax.numpy as jnp

from spo_jax.core.typing import Array, Bool, Float, Int

# Added to the standard deviation by which rewards are divided; without a history, the original adds less.
_EPSILON = 1e-6
_EPSILON_WITHOUT_HISTORY = 1e-8


class History(NamedTuple):
    """The latest rewards of every prompt, a ring for each, in arrays whose shapes never change.

    Attributes:
      rewards: the rings, of s places each; a place that was never written holds 0.
      count: number of rewards that each prompt had so far.
    """

    rewards: Float[Array, "p s"]
    count: Int[Array, " p"]

    @property
    def filled(self) -> Int[Array, " p"]:
        """The number of rewards in each ring."""
        return jnp.minimum(self.count, self.rewards.shape[1])


def empty_history(prompts: int, size: int) -> History:
    """Returns the history before the first batch.

    Args:
      prompts: number of prompts.
      size: number of rewards that are kept of each.
    """
    return History(jnp.zeros((prompts, size)), jnp.zeros(prompts, jnp.int32))


def remember(history: History, prompt: Int[Array, " n"], rewards: Float[Array, " n"]) -> History:
    """Appends the rewards of a batch, in its order, and forgets the oldest of each prompt."""
    size = history.rewards.shape[1]
    same = prompt[:, None] == prompt[None]  # [n n]
    before = jnp.tril(same, -1).sum(1)  # rewards of the same prompt earlier in the batch
    stays = before >= same.sum(1) - size  # others would be forgotten within the batch
    place = (history.count[prompt] + before) % size
    rings = history.rewards.at[jnp.where(stays, prompt, len(history.count)), place].set(rewards, mode="drop")
    return History(rings, history.count.at[prompt].add(1))


def statistics(
    history: History, prompt: Int[Array, " n"]
) -> tuple[Float[Array, " n"], Float[Array, " n"], Int[Array, " n"]]:
    """Computes mean, population standard deviation and number of what the rings of some prompts hold."""
    filled = history.filled[prompt]
    there = jnp.arange(history.rewards.shape[1])[None] < filled[:, None]  # [n s]
    values = jnp.where(there, history.rewards[prompt], 0)
    number = jnp.maximum(filled, 1)
    mean = values.sum(1) / number
    variance = jnp.where(there, jnp.square(values - mean[:, None]), 0).sum(1) / number
    return mean, jnp.sqrt(variance), filled


def advantages(
    history: History, prompt: Int[Array, " n"], rewards: Float[Array, " n"], min_count: int
) -> tuple[History, Float[Array, " n"], Bool[Array, " n"]]:
    """Computes A = (r - mean) / (std + ε), and remembers the rewards first.

    Mean and standard deviation are those of the prompt's ring if it holds ``min_count`` rewards, this batch's among
    them, and those of the batch otherwise. With rings of size 0 they are always those of the batch.

    Args:
      history: rewards of earlier batches.
      prompt: number of each image's prompt.
      rewards: reward of each image.
      min_count: number of rewards from which on a prompt has statistics of its own.

    Returns:
      The next history, the advantages, and whether each is relative to its own prompt.
    """
    mean, std = rewards.mean(), rewards.std()
    if not history.rewards.shape[1]:
        return history, (rewards - mean) / (std + _EPSILON_WITHOUT_HISTORY), jnp.zeros(len(rewards), bool)
    history = remember(history, prompt, rewards)
    own_mean, own_std, filled = statistics(history, prompt)
    own = filled >= min_count
    mean, std = jnp.where(own, own_mean, mean), jnp.where(own, own_std, std)
    return history, (rewards - mean) / (std + _EPSILON), own
