"""Judges of finished pictures, by the name that configs use."""

import dataclasses
import functools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from spo_jax.core.typing import Float
from spo_jax.parallel.chunks import in_chunks
from spo_jax.parallel.mesh import gathered
from spo_jax.rewards.common.clip_score import score_images, text_features
from spo_jax.rewards.common.preference_model import SPM
from spo_jax.toy import truth

_CHUNK = 25


@dataclasses.dataclass(frozen=True)
class Judge:
    """Per-picture scores by name.

    Attributes:
      measure: (pictures [b h w 3] near [-1, 1], prompts) to {name: float[b]}.
      meanings: a sentence per name. lower_is_better: names.
      check: of (prompts, (height, width)), before anything is drawn: raises a `UserError` if it cannot judge them.
    """

    measure: Callable[[Float[np.ndarray, "b h w 3"], Sequence[str]], dict[str, Float[np.ndarray, " b"]]]
    meanings: dict[str, str]
    lower_is_better: tuple[str, ...] = ()
    check: Callable[[Sequence[str], tuple[int, int]], None] = lambda prompts, size: None


def make_judge(reward: str, spm: SPM) -> Judge:
    """``scenes``: the ground truth of the embedded world. ``spm``: the preference model at timestep 0, that is the
    judge that training listened to, which shows that the objective moved and not that people agree."""
    if reward == "scenes":
        return Judge(truth.measure, truth.MEANINGS, ("out_of_range",), truth.check)
    meaning = "score of the preference model that training used, at timestep 0"
    return Judge(functools.partial(_spm_score, spm), {"spm_score": meaning})


def _spm_score(spm: SPM, images: np.ndarray, prompts: Sequence[str]) -> dict[str, np.ndarray]:
    encode = jax.jit(lambda params, ids: gathered(text_features(spm.clip, params, ids)))
    text = in_chunks(functools.partial(encode, spm.params), spm.tokenizer(prompts), _CHUNK)

    @jax.jit
    def score(params, images, text):
        return gathered(score_images(spm.clip, params, images, jnp.zeros(len(images), jnp.int32), text))

    rows = np.arange(len(images))
    return {"spm_score": in_chunks(lambda row: score(spm.params, images[row], text[row]), rows, _CHUNK)}
