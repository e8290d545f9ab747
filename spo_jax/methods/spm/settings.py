"""Every setting of the training of a step-aware preference model; config files fill them, commands read them."""

import dataclasses
import math
from typing import Any, ClassVar

from spo_jax.core.config import check_seed
from spo_jax.core.errors import UserError
from spo_jax.parallel.mesh import MeshSettings
from spo_jax.run.loop import SaveSettings


def _require(holds: bool, field: str, value: Any, expected: str) -> None:
    if not holds:
        raise UserError(f"config field {field} = {value!r}: expected {expected}")


def _check_numbers(settings: Any, group: str, **least: float | int) -> None:
    """Every field named has to be finite and at least so large."""
    for field, bound in least.items():
        value = getattr(settings, field)
        _require(math.isfinite(value) and value >= bound, f"{group}{field}", value, f"{bound:g} or more, and finite")


@dataclasses.dataclass(frozen=True)
class RelabelSettings:
    """Labels made anew by a plain preference model on the clean pictures, as published for SDXL.

    Attributes:
      model: folder or hub id of a plain CLIP (PickScore); empty keeps people's labels.
      margin: pairs whose probabilities differ by no more become ties.
      tokenizer: folder or hub id, when ``model`` does not hold one.
      folder: where the scores are kept, for other runs; empty is the run's own.
    """

    model: str = ""
    margin: float = 0.1
    tokenizer: str = ""
    folder: str = ""

    def __post_init__(self):
        _require(0 <= self.margin < 1, "relabel.margin", self.margin, "0 to below 1")
        for field in dataclasses.fields(self):
            value, expected = getattr(self, field.name), f"{field.default!r}, for it says nothing without relabel.model"
            _require(bool(self.model) or value == field.default, f"relabel.{field.name}", value, expected)


@dataclasses.dataclass(frozen=True)
class LoadingSettings:
    """Who reads pictures: ``threads`` in each of ``workers`` processes, 0 of which is this process alone."""

    threads: int = 8
    workers: int = 0

    def __post_init__(self):
        _check_numbers(self, "loading.", threads=0, workers=0)


@dataclasses.dataclass(frozen=True)
class SPMLogSettings(SaveSettings):
    """As `SaveSettings`, in optimiser steps; ``eval_every``: accuracies between those of the start and the end."""

    checkpoint_every: int = 1000
    eval_every: int = 1000


@dataclasses.dataclass(frozen=True)
class SPMEvalSettings:
    """Pair accuracy on pairs that people have decided (``has_label``).

    Attributes:
      timesteps: what the pictures are noised to; 0 is the clean picture itself. None may be twice.
      pairs: the first so many of the split; 0 is all.
      batch: pairs at a time, over all devices. seed: of the noises.
    """

    timesteps: tuple[int, ...] = (0, 251, 501, 701, 951)
    pairs: int = 0
    batch: int = 64
    seed: int = 1234

    def __post_init__(self):
        known = self.timesteps and all(type(t) is int and t >= 0 for t in self.timesteps)
        once = known and len(set(self.timesteps)) == len(self.timesteps)
        _require(bool(once), "eval.timesteps", self.timesteps, "whole numbers from 0 on, none of them twice")
        _check_numbers(self, "eval.", pairs=0, batch=1)
        check_seed("eval.seed", self.seed)


@dataclasses.dataclass(frozen=True)
class SPMTrainSettings:
    """A run; defaults are the published ones of SD 1.5, but for the model.

    Attributes:
      model, revision, base, vae: the frozen diffusion model, as in `spo_jax.methods.spo.settings.TrainSettings`.
      dtype: of frozen weights and of all networks' activations, ``float32`` or ``bfloat16``; the weights that train
        and the optimiser are float32.
      remat: gradient checkpointing of the preference model.
      init: folder, file or hub id of a plain CLIP in transformers' layout (PickScore), or of a step-aware preference
        model to go on with. init_random: take its config alone, with random weights.
      tokenizer: folder or hub id, when ``init`` does not hold one.
      data_dir: what ``python -m spo_jax.prepare`` has made. train_split, eval_split: of it.
      resolution: side of the pictures in pixels; 0 is the diffusion model's own.
      cache_latents: folder for the pictures' latents, made once and used by later epochs and runs; empty is none.
      posterior: latents are a draw from the autoencoder's posterior (``sample``, as published) or its ``mean``.
      batch_size: pairs of an optimiser step, over all devices.
      chunk: most pairs that a device has in memory at a time; gradients of a batch add up, but for float rounding.
      num_steps: optimiser steps; the learning rate rises for ``warmup_steps`` of them and falls linearly to 0.
      weight_decay: of all weights alike, as published.
      guidance_scale: of the clean predictions that are judged.
      timestep_power: t = floor(1000 u^power), u uniform; 1 is published, more means more of the low ones.
      flip: half of the pairs are seen mirrored, both pictures alike; not with ``cache_latents``.
      export_dtype: of the weights in ``spm/``, ``float32`` or ``float16``.
    """

    model: str = "embedded"
    revision: str = ""
    base: str = ""
    vae: str = ""
    dtype: str = "float32"
    remat: bool = False
    init: str = "embedded"
    init_random: bool = False
    tokenizer: str = ""
    data_dir: str = "data"
    train_split: str = "train"
    eval_split: str = "validation_unique"
    resolution: int = 0
    cache_latents: str = ""
    posterior: str = "sample"
    batch_size: int = 64
    chunk: int = 16
    num_steps: int = 8000
    learning_rate: float = 3e-6
    warmup_steps: int = 500
    weight_decay: float = 0.3
    adam_beta1: float = 0.9
    adam_beta2: float = 0.999
    adam_epsilon: float = 1e-8
    max_grad_norm: float = 1.0
    guidance_scale: float = 5.0
    timestep_power: float = 1.0
    flip: bool = False
    seed: int = 0
    export_dtype: str = "float32"
    relabel: RelabelSettings = RelabelSettings()
    loading: LoadingSettings = LoadingSettings()
    mesh: MeshSettings = MeshSettings()
    log: SPMLogSettings = SPMLogSettings()
    eval: SPMEvalSettings = SPMEvalSettings()

    # See `spo_jax.run.folder.RunSettings`. The data's digest is compared, so folders may move.
    FREE_FIELDS: ClassVar = (
        "log", "eval", "mesh", "chunk", "remat", "loading", "export_dtype", "data_dir", "cache_latents",
        "relabel.folder",
    )  # fmt: skip

    @property
    def data(self) -> str:
        """What the run learns from, for messages."""
        return f"the preference pairs of {self.train_split} in {self.data_dir}"

    def __post_init__(self):
        choices = (
            ("dtype", ("float32", "bfloat16")),
            ("posterior", ("sample", "mean")),
            ("export_dtype", ("float32", "float16")),
        )
        for field, allowed in choices:
            value = getattr(self, field)
            _require(value in allowed, field, value, " or ".join(map(repr, allowed)))
        least = {"batch_size": 1, "chunk": 1, "num_steps": 1, "warmup_steps": 0, "resolution": 0, "weight_decay": 0}
        _check_numbers(self, "", **least, adam_beta1=0, adam_beta2=0)
        for field in ("learning_rate", "adam_epsilon", "max_grad_norm", "timestep_power"):
            value = getattr(self, field)
            _require(math.isfinite(value) and value > 0, field, value, "more than 0, and finite")
        for field in ("adam_beta1", "adam_beta2"):
            _require(getattr(self, field) < 1, field, getattr(self, field), "less than 1")
        _require(math.isfinite(self.guidance_scale), "guidance_scale", self.guidance_scale, "a finite number")
        expected = f"less than num_steps = {self.num_steps}"
        _require(self.warmup_steps < self.num_steps, "warmup_steps", self.warmup_steps, expected)
        check_seed("seed", self.seed)
        expected = "False, for the latents of mirrored pictures are not in the cache of config field cache_latents"
        _require(not (self.flip and self.cache_latents), "flip", self.flip, expected)
