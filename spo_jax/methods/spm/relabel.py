"""New labels for a prepared split: a plain CLIP (PickScore) judges its clean images, once.

The scores are kept on disk and the labels are derived from them, so another margin costs nothing, and evaluation has
the plain model's accuracy at hand.
"""

import dataclasses
import functools
import hashlib
import os
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from spo_jax.core.errors import UserError
from spo_jax.core.rows import joined_rows
from spo_jax.core.typing import Array, Float, Params, UInt8
from spo_jax.data.preferences.loading import LoadedBatch
from spo_jax.methods.common.pair_scores import CaptionedPairs, kept_scores
from spo_jax.nn.clip import CLIPModel
from spo_jax.parallel.compiling import device_jit
from spo_jax.parallel.mesh import gathered, spread
from spo_jax.parallel.multihost import join_parts
from spo_jax.rewards.common.clip_score import encode_texts, normalise, unit_norm
from spo_jax.rewards.common.preference_model import PreferenceModel
from spo_jax.weights.digest import weights_digest

MARGIN = 0.1  # as published


def new_labels(scores: Float[np.ndarray, "n 2"], margin: float = MARGIN) -> Float[np.ndarray, "n 2"]:
    """Makes labels: (1, 0) where p₀ - p₁ > margin, (0, 1) where p₁ - p₀ > margin, and (½, ½) otherwise.

    Args:
      scores: scores of both images of each pair; p is their softmax.
      margin: least difference of the probabilities, at least 0 and below 1.
    """
    gap = np.tanh((scores[:, :1].astype(np.float64) - scores[:, 1:]) / 2)  # p₀ - p₁, without the softmax's rounding
    labels = np.where(gap > margin, (1, 0), np.where(-gap > margin, (0, 1), (0.5, 0.5)))
    return labels.astype(np.float32)


def clean_scores(
    folder: str | os.PathLike,
    preferences: CaptionedPairs,
    judge: PreferenceModel,
    *,
    pairs_per_device: int = 16,
    threads: int = 8,
    workers: int = 0,
) -> Float[np.ndarray, "n 2"]:
    """Scores the clean images of every pair as exp(logit_scale) · cos(image, prompt).

    Scores that are on disk already are not computed again. Images are read from their files directly in the size that
    the judge takes.

    Args:
      folder: folder for this split's scores and nothing else, visible to all processes.
      preferences: the prepared split.
      judge: a plain CLIP, without time conditioning.
      pairs_per_device: number of pairs that each device of the mesh in context judges at a time.
      threads: see `spo_jax.data.preferences.loading.batches`.
      workers: see `spo_jax.data.preferences.loading.batches`.

    Raises:
      UserError: the folder holds scores of other data or another model (the message says what differs) or cannot be
        written; or an image is damaged; or the judge is time-conditioned; or a score is not finite.
    """
    # The scores are bound to everything that determines them.
    clip = judge.clip
    params = judge.params
    if clip.config.time_conditioned:
        raise UserError("clean images are judged by a plain CLIP such as PickScore; this one is time-conditioned")
    tokens = judge.tokenizer(preferences.prompts)
    bound = {
        "preference model": weights_digest(params),
        # A model with the same weights may still end its texts at another token, or read other tokens.
        "config of the preference model": dataclasses.asdict(clip.config),
        "tokens of the prompts": hashlib.sha256(tokens.tobytes()).hexdigest(),
        "dtype of the model": str(jnp.dtype(clip.dtype)),
    }

    # Compute the missing scores; texts are encoded only if there are any.
    @functools.cache
    def texts() -> Float[np.ndarray, "u p"]:
        return encode_texts(judge.clip, judge.params, tokens)

    judge_batch = device_jit(functools.partial(_judge, clip))

    def compute(batch: LoadedBatch) -> Array:
        text = texts()[preferences.prompt[batch.rows]]
        return judge_batch(params, *join_parts((batch.images, text)))

    side = clip.config.vision.image_size
    how = {"pairs_per_device": pairs_per_device, "threads": threads, "workers": workers}
    return kept_scores(Path(folder), preferences, compute, bound, side=side, **how)


def _judge(
    clip: CLIPModel, params: Params, images: UInt8[Array, "n 2 s s 3"], text: Float[Array, "n p"]
) -> Float[Array, "n 2"]:
    images, text = spread((images, text))
    pixels = normalise(joined_rows(images).astype(jnp.float32) / 255)  # [n 2 s s 3] -> [2n s s 3]
    # Labels are made once, so these products are in float32 on every device (see `docs/parity.md`).
    with jax.default_matmul_precision("highest"):
        features = unit_norm(clip.apply({"params": params}, pixels, method="encode_image"))
    cosine = jnp.sum(features.reshape(len(images), 2, -1) * text[:, None], axis=-1)
    return gathered(clip.apply({"params": params}, method="scale") * cosine)
