"""A run that trains a step-aware preference model: its data and models, and what it writes."""

from pathlib import Path

import jax.numpy as jnp
from jax.sharding import Mesh

from spo_jax import toy
from spo_jax.core import run_files
from spo_jax.core.typing import Params
from spo_jax.methods.common.model import open_model
from spo_jax.methods.common.preference.data import PairData
from spo_jax.methods.common.preference.rows import Split
from spo_jax.methods.common.preference.run import JudgeRun, progress_of
from spo_jax.methods.common.state import TrainState
from spo_jax.methods.spm.init import Start
from spo_jax.methods.spm.parts import load_clip, relabelled
from spo_jax.methods.spm.programs import SPMTraining
from spo_jax.methods.spm.settings import SPMTrainSettings
from spo_jax.nn.shapes import clip_shapes
from spo_jax.parallel.multihost import is_writer
from spo_jax.parallel.sharding import make, to_host
from spo_jax.rewards.common.preference_model import abstract_clip, read_tokenizer, write_spm
from spo_jax.run.loop import run_keys
from spo_jax.run.report.steps import NextStep, command

SPM_LINE = "step-aware preference model"
PLAIN_LINE = "plain CLIP on the same images"


def setup(settings: SPMTrainSettings, mesh: Mesh, data: PairData | None = None, folder: Path | None = None) -> "SPMRun":
    """Loads the models, and makes new labels if the settings ask for them; see `spo_jax.methods.base.Method`.

    Raises:
      UserError: a model is missing or does not fit, or a folder of latents or scores cannot be used.
    """
    # Load the models.
    abstract = data is None
    pipeline = open_model(settings, mesh, abstract, trained=False)
    if abstract:
        clip = abstract_clip(settings.init, jnp.dtype(settings.dtype), settings.remat)
        return SPMRun(SPMTraining(pipeline, clip, settings, mesh))
    init_key, _ = make(lambda: run_keys(settings.seed), mesh)
    start = load_clip(settings, settings.init, init_key, mesh, random=settings.init_random)
    training = SPMTraining(pipeline, start.clip, settings, mesh)

    # Check the settings and the folder of latents before hours of work.
    training.check_timesteps(settings.eval.timesteps)
    training.check_cache(data.train)

    tokenizer = read_tokenizer(start.tokenizer, start.clip.config, settings.init)

    # Make the labels last, because this may take hours.
    labels = relabelled(settings, folder / "labels", mesh, *data)
    train, held_out = (Split.of(pairs, pipeline, tokenizer, new) for pairs, new in zip(data, labels, strict=True))
    return SPMRun(training, start, train, held_out, folder)


class SPMRun(JudgeRun):
    """A run that trains a preference model; see `spo_jax.methods.base.Run`.

    All arguments except ``training`` are None in an abstract run.

    Args:
      training: the method bound to its models.
      start: the weights to start from.
      train: pairs to train on.
      held_out: pairs to measure on.
      folder: the run's folder, which keeps the measurements.
    """

    LINE = SPM_LINE
    progress = progress_of("SPM")

    def __init__(
        self,
        training: SPMTraining,
        start: Start | None = None,
        train: Split | None = None,
        held_out: Split | None = None,
        folder: Path | None = None,
    ):
        super().__init__(training, None if start is None else start.params, train, held_out, folder)
        self._start = start

    def shapes(self) -> Params:
        """Returns the shapes of the weights."""
        return clip_shapes(self.training.clip)

    def before_line(self) -> str:
        """Names the measurement before the first step, when the model gives the scores of a plain CLIP."""
        return PLAIN_LINE if self._start.is_plain else super().before_line()

    def ordered(self) -> str:
        """Says in words by what held-out pairs are ordered."""
        return "as PickScore orders the clean images" if self._split.relabelled else super().ordered()

    def export(self, state: TrainState, folder: Path) -> None:
        """Writes the preference model to ``spm/``; only one of the processes does so.

        Raises:
          UserError: a weight does not fit the dtype of the export.
        """
        params = to_host(state.params)
        if is_writer():
            write_spm(
                folder / run_files.SPM,
                self._start.clip.config,
                params,
                self._start.tokenizer,
                self.settings.export_dtype,
                self.training.pipeline.kind,
            )

    def next_step(self, folder: Path) -> NextStep:
        """Says how SPO uses the preference model."""
        model = self.settings.model
        config = toy.NAME if model == toy.NAME else {"sdxl": "sdxl"}.get(self.training.pipeline.kind, "sd15")
        flags = [f"--config={config}", f"--config.spm.model={folder / run_files.SPM}"]
        flags += [] if model == toy.NAME else [f"--config.model={model}"]
        text = "SPO learns from what this preference model prefers, and takes prompts besides it."
        return NextStep("Use it as the judge", text, command("train", *flags, "--out=runs/spo"))
