"""Parts that both the training and the evaluation of a preference model need: its weights and its labels."""

from pathlib import Path

import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from spo_jax.core.files import local_path
from spo_jax.core.progress import stage
from spo_jax.core.typing import Float, Key
from spo_jax.data.preferences.format import Preferences
from spo_jax.methods.spm.init import Start, load_start
from spo_jax.methods.spm.relabel import clean_scores, new_labels
from spo_jax.methods.spm.settings import SPMTrainSettings
from spo_jax.rewards.common.preference_model import load_plain_clip


def load_clip(settings: SPMTrainSettings, model: str, key: Key, mesh: Mesh, random: bool = False) -> Start:
    """Loads a preference model, or a plain CLIP with time conditioning that leaves its scores unchanged.

    Args:
      settings: settings of the run.
      model: folder, file or hub id.
      key: key for the weights that ``model`` does not hold.
      mesh: mesh on which the weights are placed.
      random: whether to take only the config of ``model`` and draw all weights.

    Raises:
      UserError: the model is missing or does not fit.
    """
    with stage(f"reading {model}"):
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
    """Makes new labels for each split if the settings ask for them.

    Args:
      settings: settings of the run.
      folder: folder that keeps the scores, if the settings do not name another one.
      mesh: mesh on which the weights of the judge are placed.
      *splits: the prepared splits.

    Returns:
      The labels of each split; None for each if the human labels are kept.

    Raises:
      UserError: the judge cannot be loaded, or the folder of scores cannot be used.
    """
    relabel = settings.relabel
    loading = settings.loading
    if not relabel.model:
        return [None] * len(splits)
    # The judge computes in float32, as in the reference: labels are made once, and small gaps decide about ties.
    with stage(f"reading {relabel.model} for labels"):
        judge = load_plain_clip(
            relabel.model, tokenizer=relabel.tokenizer or None, mesh=mesh, flag="--config.relabel.tokenizer"
        )
    folder = local_path(relabel.folder or folder)
    labels = []
    for split in splits:
        scores = clean_scores(
            folder / split.split, split, judge, threads=loading.threads, workers=loading.workers
        )  # fmt: skip
        labels.append(new_labels(scores, relabel.margin))
    return labels
