"""What an evaluation found: contestants, their scores of every image, and what made them."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from spo_jax.core.typing import Float

CUSTOM = "custom"  # the protocol of an evaluation whose flags name none
ImagePath = Callable[[int, int], Path]  # (prompt, image) to the PNG


@dataclasses.dataclass(frozen=True)
class Contestant:
    """A model, or a model with a LoRA at one strength, or images that somebody else has drawn.

    Attributes:
      name: its name, which no other contestant has.
      what: what it is, as a phrase: "LoRA runs/spo/lora.safetensors at 0.5".
      group: the name that all strengths of a LoRA share; the contestant's own name where there is one strength.
      strength: strength of the LoRA; None without one.
      guidance: guidance weight with which it draws; None for images from elsewhere, of which it is not known.
    """

    name: str
    what: str = ""
    group: str = ""
    strength: float | None = None
    guidance: float | None = None


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """Scores of all contestants on the same prompts.

    Attributes:
      protocol: ``name``, ``about`` and the other fields of the protocol, as they were used. ``statistic`` ("mean" or
        "median") and ``group_size`` (0 for none) say how scores are summed up.
      overridden: names of the fields that differ from the published protocol.
      prompts: the prompts.
      groups: the group of each prompt, "" for none, as the style in the HPSv2 benchmark.
      contestants: the contestants; the others are compared with the first one.
      scores: by name of the contestant and name of the score, a value for each prompt and image; NaN where an image is
        not drawn or not scored yet.
      meanings: by name of the score, a sentence for readers.
      lower_is_better: names of scores that improve by falling.
      signs: names of scores that are signs of reward hacking, and no rewards.
      trained_on: by name of the contestant, the score that it was trained on, if that is known; several stand between
        commas.
      images: by name of the contestant, the function that returns the file of a prompt's image.
      about: facts for the record: command, date, device, versions, seed.
      metadata: by prompt, what else its line of the prompt file says; empty if nothing is known. Some benchmarks need
        it beside the images (see `spo_jax.work.evaluate.layouts`).
    """

    protocol: Mapping[str, Any]
    overridden: Sequence[str]
    prompts: Sequence[str]
    groups: Sequence[str]
    contestants: Sequence[Contestant]
    scores: Mapping[str, Mapping[str, Float[np.ndarray, "prompts images"]]]
    meanings: Mapping[str, str] = dataclasses.field(default_factory=dict)
    lower_is_better: Sequence[str] = ()
    signs: Sequence[str] = ()
    trained_on: Mapping[str, str] = dataclasses.field(default_factory=dict)
    images: Mapping[str, ImagePath] = dataclasses.field(default_factory=dict)
    about: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    metadata: Sequence[Mapping[str, Any]] = ()

    @property
    def from_elsewhere(self) -> list[str]:
        """Names of the contestants whose images somebody else has drawn, from noise that is not known."""
        return [each.name for each in self.contestants if each.guidance is None]

    @property
    def score_names(self) -> list[str]:
        """Names of all scores, rewards first, then signs, each in the order in which they were measured."""
        found = list(dict.fromkeys(name for scores in self.scores.values() for name in scores))
        return [name for name in found if name not in self.signs] + [name for name in found if name in self.signs]

    @property
    def rewards(self) -> list[str]:
        """Names of the scores that are rewards."""
        return [name for name in self.score_names if name not in self.signs]

    def is_trained_on(self, contestant: str, score: str) -> bool:
        """Says whether a contestant is known to be trained on a score."""
        return score in self.trained_on.get(contestant, "").split(",")

    @property
    def images_per_prompt(self) -> int:
        """Images of each prompt."""
        return next((values.shape[1] for scores in self.scores.values() for values in scores.values()), 0)
