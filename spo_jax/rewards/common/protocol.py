"""The protocol of a reward, as evaluation and methods use it; rewards that are computed on the host need no jax."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np

from spo_jax.core.typing import DType, Float

# What a reward reads; a third kind are clean latents.
IMAGES = "images"
NOISY = "noisy latents"  # candidates of a rollout as they are
Scores = dict[str, Float[np.ndarray, " b"]]


@dataclasses.dataclass(frozen=True)
class Context:
    """The facts on which a reward may depend when it is loaded.

    Attributes:
      kind: `Pipeline.kind` of the model whose images are scored; None skips the check.
      dtype: dtype of weights and activations.
      mesh: `jax.sharding.Mesh` on which weights are placed; None places them on the first device.
      options: fields of the group in the settings that is named after the reward.
      abstract: whether to return shapes instead of weights.
      field: config field that names the reward, or a flag with its dashes; for error messages.
      variant: the text after an ``@`` in the reward's name; empty for none. It is one of the module's `VARIANTS`.
      noisy: whether noisy latents are judged.
      channels: channels of the latents that are judged; 0 if none are, or skips the check.
      timesteps: timesteps at which latents are judged; empty skips the check.
    """

    kind: str | None = None
    dtype: DType = np.float32
    mesh: Any = None
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    abstract: bool = False
    field: str = "eval.rewards"
    variant: str = ""
    noisy: bool = False
    channels: int = 0
    timesteps: Sequence[int] = ()

    @property
    def where(self) -> str:
        """The flag or config field that names the reward, as messages call it."""
        return self.field if self.field.startswith("--") else f"config field {self.field}"

    @property
    def flag(self) -> str:
        """The flag that sets the reward."""
        return self.field if self.field.startswith("--") else f"--config.{self.field}"


@runtime_checkable
class Reward(Protocol):
    """One reward, ready to score.

    A reward is a module of `spo_jax.rewards`, or a user's own module, with a function ``load(source, context)`` that
    returns an object with these members. ``source`` is the text after a colon in the reward's name, and may be empty.
    A reward without weights may also have a text ``version``: evaluations compute the scores that they keep again when
    it is another one. One with weights may have a function ``describe()``, which returns what else was read from its
    folder and decides on the scores, such as the network's config and a digest of the tokenizer, as JSON.
    A module whose reward can be computed in several ways lists them in a constant ``VARIANTS``: what each of them is,
    by name, or a range of whole numbers.

    A reward may also have a function ``embed(images)`` that returns a feature vector of length 1 of each image,
    Float[np.ndarray, "b p"]; evaluation measures with it how different images of one prompt are. And it may have
    ``signs``, the names of those of its scores that have no better direction, such as brightness: evaluation shows them
    beside the signs of reward hacking, and counts no wins by them and no gain.

    Attributes:
      meanings: one sentence for each score that `measure` returns, by name. Variants have other names than the default.
      lower_is_better: names of the scores for which a lower value is better.
    """

    meanings: Mapping[str, str]
    lower_is_better: Sequence[str]

    def check(self, prompts: Sequence[str], size: tuple[int, int]) -> None:
        """Raises a `UserError` if images of (height, width) for these prompts cannot be scored."""
        ...

    def measure(self, images: Float[np.ndarray, "b h w 3"], prompts: Sequence[str]) -> Scores:
        """Scores finished images near [-1, 1]; returns the scores by name, NaN for an image that is not finite."""
        ...
