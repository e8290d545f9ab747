"""What is to be evaluated, after all checks that need neither jax nor a model."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from spo_jax.data.protocol import Protocol
from spo_jax.work.evaluate.entries import Entry


@dataclasses.dataclass(frozen=True)
class Request:
    """What is to be evaluated.

    Attributes:
      out: the folder of the evaluation.
      model: the model, as `spo_jax.models.open_pipeline` takes it, like ``revision``, ``base`` and ``vae``, which are
        empty for none.
      revision: revision of its hub id.
      base: where a single file's tokenizers and scheduler come from.
      vae: an autoencoder instead of the model's own.
      entries: the contestants, the model itself first.
      images: images that were made elsewhere, by name of the contestant, for each prompt.
      protocol: how images are drawn and scores are summed up.
      overridden: names of the protocol's fields that the user has changed.
      prompts: the prompts.
      groups: the group of each prompt, "" for none.
      metadata: what else the prompt file says of each prompt; empty if nothing.
      rewards: names of the rewards.
      weights: weights of the rewards in a total; empty for none.
      layouts: layouts of other benchmarks in which the images are written.
      batch: largest number of images to draw at a time.
      dtype: ``float32`` or ``bfloat16``.
      command: the command line; empty if Python asked.
    """

    out: Path
    model: str
    revision: str
    base: str
    vae: str
    entries: Sequence[Entry]
    images: Mapping[str, Sequence[Sequence[Path]]]
    protocol: Protocol
    overridden: Sequence[str]
    prompts: Sequence[str]
    groups: Sequence[str]
    metadata: Sequence[Mapping[str, Any]]
    rewards: Sequence[str]
    weights: Sequence[float]
    layouts: Sequence[str]
    batch: int
    dtype: str
    command: str

    @property
    def places(self) -> list[tuple[int, int]]:
        """The (prompt, image) of every image of a contestant, in the order in which they are drawn."""
        count = self.protocol.images_per_prompt
        return [(prompt, image) for prompt in range(len(self.prompts)) for image in range(count)]
