"""Trains the toy's latent reward model in the way that a user trains one: from the preferences of simulated people.

``spo_jax.build_toy.people`` draws and labels the pairs, and ``spo_jax.train`` runs with ``configs/lrm_toy.py``, which
starts from the first half of the pipeline itself.
"""

import dataclasses
from pathlib import Path

from spo_jax import load_config
from spo_jax.build_toy.people import pairs_of_people
from spo_jax.core.run_files import LRM
from spo_jax.methods import read_settings
from spo_jax.run.folder import Resume
from spo_jax.train import train


def train_latent_judge(pipeline: Path, earlier: Path, work: Path) -> Path:
    """Draws pairs and trains on them; what ``work`` already has is taken or continued.

    Args:
      pipeline: the toy's pipeline.
      earlier: an earlier checkpoint of it, as a pipeline.
      work: folder of the pairs and the run.

    Returns:
      The folder of the trained model.
    """
    settings = read_settings(load_config("lrm_toy"))
    pairs = pairs_of_people(work / "people", settings.eval_split, model=str(pipeline), earlier=str(earlier))
    settings = dataclasses.replace(settings, model=str(pipeline), data_dir=str(pairs))
    train(settings, work / "lrm_people", Resume(if_there=True))
    return work / "lrm_people" / LRM
