"""Every setting of a training run, as frozen dataclasses; config files fill them, commands read them."""

import dataclasses
import math
from typing import ClassVar

from spo_jax.core.config import check_seed
from spo_jax.core.errors import UserError
from spo_jax.core.typing import Params
from spo_jax.methods.spo.resampler import ResamplerConfig
from spo_jax.methods.spo.update import UpdateConfig
from spo_jax.parallel.mesh import MeshSettings
from spo_jax.parallel.sharding import to_host
from spo_jax.run.loop import SaveSettings
from spo_jax.weights.lora import LoRA


def _check_finite(field: str, value: float) -> None:
    if not math.isfinite(value):
        raise UserError(f"config field {field} = {value}: expected a finite number")


@dataclasses.dataclass(frozen=True)
class SPOSettings(ResamplerConfig, UpdateConfig):
    """Rollout and update together.

    Attributes:
      threshold: a pair is kept if softmax over the best and the worst score differs by more.
      guidance_scale: classifier-free guidance w, in sampling and in training alike.
      decode_chunk: pictures that a device decodes and judges at a time: their memory.
      decoder: ``vae`` for the pipeline's own, or folder or hub id of a distilled one (AutoencoderTiny).
    """

    threshold: float = 0.3
    guidance_scale: float = 5.0
    decode_chunk: int = 4
    decoder: str = "vae"

    def __post_init__(self):
        ResamplerConfig.__post_init__(self)
        UpdateConfig.__post_init__(self)
        _check_finite("spo.guidance_scale", self.guidance_scale)
        if not 0 <= self.threshold < 1:
            raise UserError(f"config field spo.threshold = {self.threshold}: expected 0 to below 1")
        if self.decode_chunk < 1:
            raise UserError(f"config field spo.decode_chunk = {self.decode_chunk}: expected at least 1")


@dataclasses.dataclass(frozen=True)
class LoRASettings:
    """The adapter: ``rank`` r, and ``alpha`` (0 means rank, that is scale 1). Targets are the published ones."""

    rank: int = 4
    alpha: float = 0.0

    def __post_init__(self):
        _check_finite("lora.alpha", self.alpha)
        if self.rank < 1 or self.alpha < 0:
            raise UserError(f"config fields lora.rank = {self.rank}, lora.alpha = {self.alpha}: expected positive")

    @property
    def scale(self) -> float:
        """alpha / r."""
        return (self.alpha or self.rank) / self.rank

    def adapter(self, tree: Params) -> LoRA:
        """The trained tree, from wherever it lies, as what LoRA files hold."""
        return LoRA(to_host(tree), self.scale * self.rank, self.rank)


@dataclasses.dataclass(frozen=True)
class SPMSettings:
    """The preference model: folder, hub id or ``embedded``; and its tokenizer's, when it lies elsewhere."""

    model: str = "embedded"
    tokenizer: str = ""


@dataclasses.dataclass(frozen=True)
class LogSettings(SaveSettings):
    """How often (in batches of prompts) grids are drawn and checkpoints saved; 0 is never, but at the end."""

    sample_every: int = 50
    sample_pictures: int = 16

    AT_LEAST_ONE: ClassVar = (*SaveSettings.AT_LEAST_ONE, "sample_pictures")


@dataclasses.dataclass(frozen=True)
class EvalSettings:
    """Pictures before and after, the same prompts and noise, with DDIM and eta 0.

    Attributes:
      prompts: as ``TrainSettings.prompts``; repeated until there are ``pictures``.
      reward: ``scenes`` (ground truth of the embedded world) or ``spm`` (the preference model at timestep 0).
    """

    prompts: str = "embedded:held_out"
    pictures: int = 100
    batch: int = 25
    seed: int = 1234
    steps: int = 20
    guidance_scale: float = 5.0
    reward: str = "scenes"

    def __post_init__(self):
        if self.reward not in ("scenes", "spm"):
            raise UserError(f"config field eval.reward = {self.reward!r}: expected 'scenes' or 'spm'")
        _check_finite("eval.guidance_scale", self.guidance_scale)
        check_seed("eval.seed", self.seed)
        for field in ("pictures", "batch", "steps"):
            if getattr(self, field) < 1:
                raise UserError(f"config field eval.{field} = {getattr(self, field)}: expected 1 or more")


@dataclasses.dataclass(frozen=True)
class TrainSettings:
    """A run.

    Attributes:
      model: Stable Diffusion or SDXL: folder, hub id (at ``revision``), ``embedded``, or a checkpoint in one file.
      base: folder or hub id that lends a checkpoint in one file its tokenizers and scheduler; empty is the published
        model of its architecture.
      vae: folder or hub id of an autoencoder instead of the model's own; empty is its own.
      dtype: of frozen weights and activations, ``float32`` or ``bfloat16``; LoRA and optimiser are float32.
      remat: gradient checkpointing of the UNet.
      prompts: prompt file, or ``embedded:train`` or ``embedded:held_out``.
      prompts_per_batch: prompts of a rollout, over all devices. num_epochs: passes over the prompts.
      max_batches: stop after so many batches; 0 is no limit.
    """

    model: str = "embedded"
    revision: str = ""
    base: str = ""
    vae: str = ""
    dtype: str = "float32"
    remat: bool = False
    seed: int = 0
    prompts: str = "embedded:train"
    prompts_per_batch: int = 10
    num_epochs: int = 10
    max_batches: int = 0
    mesh: MeshSettings = MeshSettings()
    lora: LoRASettings = LoRASettings()
    spm: SPMSettings = SPMSettings()
    spo: SPOSettings = SPOSettings()
    log: LogSettings = LogSettings()
    eval: EvalSettings = EvalSettings()

    # See `spo_jax.run.folder.RunSettings`.
    FREE_FIELDS: ClassVar = ("log", "eval", "max_batches", "num_epochs", "mesh", "spo.decode_chunk", "spo.train_chunk")

    @property
    def data(self) -> str:
        """What the run learns from, for messages."""
        return f"the prompts in {self.prompts}"

    def __post_init__(self):
        if self.dtype not in ("float32", "bfloat16"):
            raise UserError(f"config field dtype = {self.dtype!r}: expected 'float32' or 'bfloat16'")
        check_seed("seed", self.seed)
        for field, least in (("prompts_per_batch", 1), ("num_epochs", 1), ("max_batches", 0)):
            if getattr(self, field) < least:
                raise UserError(f"config field {field} = {getattr(self, field)}: expected {least} or more")

    def total_batches(self, prompts: int) -> int:
        """Batches of the whole run; a rest of prompts smaller than a batch is left out at the very end."""
        total = max(self.num_epochs * prompts // self.prompts_per_batch, 1)
        return min(total, self.max_batches) if self.max_batches else total
