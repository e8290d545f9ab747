"""A prepared split as training and evaluation use it: images come from the loader, everything else from memory."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np

from spo_jax.core.errors import UserError
from spo_jax.core.typing import Array, Bool, Float, Int, UInt8
from spo_jax.data.preferences.loading import LoadedBatch
from spo_jax.methods.common.pair_scores import CaptionedPairs
from spo_jax.models.base import Pipeline


class Rows(NamedTuple):
    """A batch of preference pairs, as the programs take it.

    Attributes:
      images: pixels, or the latents that `spo_jax.methods.common.latents.LatentCache` holds for them.
      prompt_ids: tokens of the prompts for the diffusion model's e text encoders; None if it predicts nothing.
      ids: tokens of the prompts for the judge, which may have several text encoders.
      labels: (1, 0), (0, 1), or (½, ½) for a tie.
      weights: weights in proportion to 1 / (number of pairs with the same prompt); their sum does not matter.
    """

    images: UInt8[Array | np.ndarray, "n 2 s s 3"] | Float[Array | np.ndarray, "n 2 h w c"]
    prompt_ids: Int[Array | np.ndarray, "n e l"] | None
    ids: Int[Array | np.ndarray, "n ..."]
    labels: Float[Array | np.ndarray, "n 2"]
    weights: Float[Array | np.ndarray, " n"]


@runtime_checkable
class LabelledPairs(CaptionedPairs, Protocol):
    """The part of a prepared split (`spo_jax.data.preferences.format.Preferences`) that training needs.

    Attributes:
      labels: (1, 0), (0, 1), or (½, ½) for a tie.
      count: number of pairs that share each pair's caption.
      has_label: whether somebody judged the pair.
    """

    labels: Float[np.ndarray, "n 2"]
    count: Int[np.ndarray, " n"]
    has_label: Bool[np.ndarray, " n"]


@dataclasses.dataclass(frozen=True)
class Split:
    """Preference pairs with the tokens of their prompts for the models that read them.

    Attributes:
      pairs: the prepared split.
      labels: human labels, or new ones.
      relabelled: whether the labels are new ones.
      prompt_ids: tokens of each of the u captions for the diffusion model's e text encoders; None if it predicts
        nothing.
      ids: tokens of each of the u captions for the judge.
    """

    pairs: LabelledPairs
    labels: Float[np.ndarray, "n 2"]
    relabelled: bool
    prompt_ids: Int[np.ndarray, "u e l"] | None
    ids: Int[np.ndarray, "u ..."]

    @classmethod
    def of(
        cls,
        pairs: LabelledPairs,
        pipeline: Pipeline | None,
        tokenizer: Callable[[Sequence[str]], Int[np.ndarray, "u ..."]],
        labels: Float[np.ndarray, "n 2"] | None = None,
    ) -> "Split":
        """Tokenises the captions of a prepared split.

        Args:
          pairs: the prepared split.
          pipeline: the diffusion model; None if it predicts nothing.
          tokenizer: tokenizer of the judge.
          labels: new labels; None takes the human ones.
        """
        relabelled = labels is not None
        return cls(
            pairs,
            labels if relabelled else pairs.labels,
            relabelled,
            None if pipeline is None else pipeline.tokenize(pairs.prompts),
            tokenizer(pairs.prompts),
        )

    def feed(self, batch: LoadedBatch) -> Rows:
        """Adds tokens, labels and weights to a loaded batch, or to a process's part of one."""
        prompt = self.pairs.prompt[batch.rows]
        weights = 1 / np.maximum(self.pairs.count[batch.rows], 1)
        labels = self.labels[batch.rows].astype(np.float32)
        prompt_ids = None if self.prompt_ids is None else self.prompt_ids[prompt]
        return Rows(batch.images, prompt_ids, self.ids[prompt], labels, weights.astype(np.float32))

    def decided(self, most: int = 0) -> Int[np.ndarray, " m"]:
        """Returns the rows of the pairs on which accuracy is measured, as in the reference.

        These are the pairs with a human label, except those that new labels turned into ties.

        Args:
          most: use only the first N of them (0: all).

        Raises:
          UserError: there are no such pairs.
        """
        keep = self.pairs.has_label.copy()
        if self.relabelled:
            keep &= self.labels[:, 0] != self.labels[:, 1]
        rows = np.flatnonzero(keep).astype(np.int32)
        if not len(rows):
            raise UserError("config field eval_split: no pair of that split is decided: choose another one")
        return rows[: most or None]
