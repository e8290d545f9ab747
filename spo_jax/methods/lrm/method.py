"""A run that trains a latent reward model: its data and models, and what it writes."""

import functools
from pathlib import Path

from jax.sharding import Mesh

from spo_jax import toy
from spo_jax.core import run_files
from spo_jax.core.progress import stage
from spo_jax.core.typing import Params
from spo_jax.methods.common.model import open_model
from spo_jax.methods.common.preference.data import PairData
from spo_jax.methods.common.preference.rows import Split
from spo_jax.methods.common.preference.run import JudgeRun, progress_of
from spo_jax.methods.common.state import TrainState
from spo_jax.methods.lrm.programs import LRMTraining
from spo_jax.methods.lrm.settings import LRMTrainSettings
from spo_jax.methods.lrm.start import config_of, load_start, network_of
from spo_jax.parallel.multihost import is_writer
from spo_jax.parallel.sharding import make, to_host
from spo_jax.rewards.common.latent_model import model_shapes
from spo_jax.rewards.common.latent_weights import open_tokenizers, tokenized, write_model
from spo_jax.run.loop import run_keys
from spo_jax.run.report.steps import NextStep, command


def setup(settings: LRMTrainSettings, mesh: Mesh, data: PairData | None = None, folder: Path | None = None) -> "LRMRun":
    """Loads the models; see `spo_jax.methods.base.Method`.

    Raises:
      UserError: a model is missing or does not fit, or a folder of latents cannot be used.
    """
    abstract = data is None
    pipeline = open_model(settings, mesh, abstract, trained=False)
    if abstract:
        return LRMRun(LRMTraining(pipeline, network_of(settings, pipeline), settings, mesh))
    init_key, _ = make(lambda: run_keys(settings.seed), mesh)
    with stage("reading the networks to train"):
        start = load_start(settings, pipeline, init_key, mesh)
    base = pipeline.base or pipeline.folder
    names = ("tokenizer", "tokenizer_2")[: len(start.model.text)]
    tokenizers = open_tokenizers([base / name for name in names], config_of(pipeline))
    tokenize = functools.partial(tokenized, tokenizers)
    training = LRMTraining(pipeline, start.model, settings, mesh, tokenize([""]))
    # Check the settings and the folder of latents before hours of work.
    training.check_timesteps((*settings.eval.timesteps, settings.largest_timestep))
    training.check_cache(data.train)
    train, held_out = (Split.of(pairs, None, tokenize) for pairs in data)
    return LRMRun(training, start.params, train, held_out, folder)


class LRMRun(JudgeRun):
    """A run that trains a latent reward model; see `spo_jax.methods.base.Run`."""

    LINE = "latent reward model"
    progress = progress_of("LRM")

    def shapes(self) -> Params:
        """Returns the shapes of the weights."""
        model = self.training.model
        width = self.settings.projection if model.projects_text else model.text[-1].config.projection_dim
        return model_shapes(model, width)

    def export(self, state: TrainState, folder: Path) -> None:
        """Writes the latent reward model to ``lrm/``; only one of the processes does so.

        Raises:
          UserError: a weight does not fit the dtype of the export.
        """
        params = to_host(state.params)
        if is_writer():
            pipeline = self.training.pipeline
            write_model(
                folder / run_files.LRM,
                config_of(pipeline),
                params,
                pipeline.base or pipeline.folder,
                self.settings.export_dtype,
                timesteps=self.settings.judged_timesteps,
                guidance_scale=self.settings.guidance_scale,
            )

    def next_step(self, folder: Path) -> NextStep:
        """Says how LPO uses the model."""
        model = self.settings.model
        config = "lpo_toy" if model == toy.NAME else {"sdxl": "lpo_sdxl"}.get(self.training.pipeline.kind, "lpo_sd15")
        flags = [f"--config={config}", f"--config.spo.reward=lrm:{folder / run_files.LRM}"]
        flags += [] if model == toy.NAME else [f"--config.model={model}"]
        flags.append("--out=runs/lpo")
        text = "LPO learns from what this model prefers of noisy latents, and takes prompts besides it."
        return NextStep("Use it as the judge", text, command("train", *flags))
