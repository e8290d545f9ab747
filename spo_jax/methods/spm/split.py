"""A prepared split as training and evaluation feed it: pictures from the loader, everything else from memory."""

import dataclasses
from typing import Protocol, runtime_checkable

import numpy as np

from spo_jax.core.errors import UserError
from spo_jax.core.typing import Bool, Float, Int
from spo_jax.data.preferences.format.loading import LoadedBatch
from spo_jax.data.tokenizer import Tokenizer
from spo_jax.methods.spm.programs import Rows
from spo_jax.methods.spm.relabel import CaptionedPairs
from spo_jax.models.stable_diffusion.pipeline import Pipeline


@runtime_checkable
class LabelledPairs(CaptionedPairs, Protocol):
    """What training has to know of a prepared split: `spo_jax.data.preferences.format.Preferences`."""

    labels: Float[np.ndarray, "n 2"]
    count: Int[np.ndarray, " n"]
    has_label: Bool[np.ndarray, " n"]


@dataclasses.dataclass(frozen=True)
class Split:
    """Preference pairs with what both models' text encoders are given of their prompts.

    Attributes:
      labels: people's, or made anew. relabelled: which of the two.
      prompt_ids, ids: tokens of the captions, each once (see `spo_jax.methods.spm.programs.Rows`).
    """

    pairs: LabelledPairs
    labels: Float[np.ndarray, "n 2"]
    relabelled: bool
    prompt_ids: Int[np.ndarray, "u e l"]
    ids: Int[np.ndarray, "u l2"]

    @classmethod
    def of(
        cls,
        pairs: LabelledPairs,
        pipeline: Pipeline,
        tokenizer: Tokenizer,
        labels: Float[np.ndarray, "n 2"] | None = None,
    ) -> "Split":
        """Tokenises the captions. ``labels``: those made anew; None is people's."""
        tokenizers = [pipeline.tokenizer, *([pipeline.tokenizer_2] if pipeline.tokenizer_2 else [])]
        prompt_ids = np.stack([each(pairs.prompts) for each in tokenizers], axis=1)
        new = labels is not None
        return cls(pairs, labels if new else pairs.labels, new, prompt_ids, tokenizer(pairs.prompts))

    def feed(self, batch: LoadedBatch) -> Rows:
        """A loaded batch, or a process's part of one, with what belongs to its pairs."""
        prompt, weights = self.pairs.prompt[batch.rows], 1 / np.maximum(self.pairs.count[batch.rows], 1)
        labels = self.labels[batch.rows].astype(np.float32)
        return Rows(batch.images, self.prompt_ids[prompt], self.ids[prompt], labels, weights.astype(np.float32))

    def decided(self, most: int = 0) -> Int[np.ndarray, " m"]:
        """The pairs that accuracy is measured on, as in the reference: those that somebody judged, and of labels made
        anew those that did not become ties.

        Args:
          most: the first so many; 0 is all.

        Raises:
          UserError: there are none.
        """
        keep = self.pairs.has_label.copy()
        if self.relabelled:
            keep &= self.labels[:, 0] != self.labels[:, 1]
        rows = np.flatnonzero(keep).astype(np.int32)
        if not len(rows):
            raise UserError("config field eval_split: no pair of that split is decided; choose another one")
        return rows[: most or None]
