"""What both the training and the measuring of a preference model are made of: models, data and labels."""

from pathlib import Path

import jax.numpy as jnp
import numpy as np
from absl import logging
from jax.sharding import Mesh

from spo_jax.core.typing import Float, Key
from spo_jax.data.preferences.format import Preferences
from spo_jax.methods.spm.init import Start, load_start
from spo_jax.methods.spm.relabel import clean_scores, new_labels
from spo_jax.methods.spm.settings import SPMTrainSettings
from spo_jax.rewards.common.preference_model import load_plain_clip


def load_clip(settings: SPMTrainSettings, model: str, key: Key, mesh: Mesh, random: bool = False) -> Start:
    """A preference model, or a plain CLIP as one that its time conditioning does not change."""
    logging.info("reading %s", model)
    return load_start(
        model,
        key,
        tokenizer=settings.tokenizer or None,
        random=random,
        remat=settings.remat,
        dtype=jnp.dtype(settings.dtype),
        mesh=mesh,
    )


def relabelled(
    settings: SPMTrainSettings, folder: Path, mesh: Mesh, *splits: Preferences
) -> list[Float[np.ndarray, "n 2"] | None]:
    """Labels of each split: made anew where the settings ask for it, otherwise None.

    Args:
      folder: where scores are kept if the settings name no other folder.
    """
    relabel = settings.relabel
    loading = settings.loading
    if not relabel.model:
        return [None] * len(splits)
    logging.info("reading %s for labels", relabel.model)
    # float32, as in the reference: labels are made once, and small gaps decide about ties.
    judge = load_plain_clip(
        relabel.model, tokenizer=relabel.tokenizer or None, mesh=mesh, flag="--config.relabel.tokenizer"
    )
    folder = Path(relabel.folder or folder)
    labels = []
    for split in splits:
        scores = clean_scores(
            folder / split.split, split, judge, threads=loading.threads, workers=loading.workers
        )  # fmt: skip
        labels.append(new_labels(scores, relabel.margin))
    return labels
