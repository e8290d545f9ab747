"""Settings that several methods share; each of these fields is declared once, here or in `spo_jax.run.settings`."""

import dataclasses
from typing import ClassVar

from spo_jax import toy
from spo_jax.core.config import MAX_BATCH, MAX_COUNT, MAX_GUIDANCE, MAX_STEPS, Settings, seed_setting, setting
from spo_jax.core.typing import Params
from spo_jax.rewards.common.total import read_weights
from spo_jax.run.settings import RunSettings
from spo_jax.weights.lora import LoRA


@dataclasses.dataclass(frozen=True)
class ModelSettings(Settings):
    """The text-to-image model."""

    model: str = setting(
        toy.NAME, "Stable Diffusion or SDXL: a diffusers folder, a hub id, a checkpoint in one file, or 'toy'."
    )
    revision: str = setting("", "Revision of the hub id (empty: its main branch).")
    base: str = setting(
        "",
        "Folder or hub id from which a checkpoint in one file takes its tokenizers and scheduler (empty: the published "
        "model of its architecture).",
    )
    vae: str = setting("", "Folder or hub id of the autoencoder to use (empty: the model's own).")
    dtype: str = setting(
        "float32",
        "Dtype of frozen weights and of activations; trained weights, losses and the optimizer's state are float32.",
        choices=("float32", "bfloat16"),
        memory="bfloat16",
    )
    remat: bool = setting(
        False, "Recompute activations in the backward pass (gradient checkpointing) to save memory.", memory="True"
    )
    remat_keeps: str = setting(
        "inputs",
        "What blocks of a UNet keep with remat: their inputs alone, also what is costly to compute again (attention to "
        "many tokens and first convolutions), or also the products of all projections. More takes memory and saves "
        "time.",
        choices=("inputs", "costly", "products"),
        memory="inputs",
    )

    @property
    def recomputed(self) -> bool | str:
        """What blocks that are computed again keep, as `spo_jax.nn.remat.recomputed` takes it."""
        return self.remat and self.remat_keeps


@dataclasses.dataclass(frozen=True)
class OptimizerSettings(Settings):
    """AdamW or Adafactor with decoupled weight decay, preceded by clipping to a global norm."""

    GROUP: ClassVar = "optimizer."

    name: str = setting(
        "adamw",
        "Optimizer: adamw, or adafactor, whose state takes a row and a column of each matrix (the fields adam_* have "
        "no effect on it).",
        choices=("adamw", "adafactor"),
    )
    learning_rate: float = setting(6e-5, "Peak learning rate.", above=0, at_most=10)
    schedule: str = setting(
        "constant", "Learning rate after the warm-up: constant, or linear to 0.", choices=("constant", "linear")
    )
    warmup_steps: int = setting(
        0, "Number of optimizer steps over which the learning rate rises from 0.", at_least=0, at_most=MAX_COUNT
    )
    adam_beta1: float = setting(0.9, "Decay of the gradients' running mean.", at_least=0, below=1)
    adam_beta2: float = setting(0.999, "Decay of the squared gradients' running mean.", at_least=0, below=1)
    adam_epsilon: float = setting(
        1e-8, "Number added to the root of the squared gradients' running mean.", above=0, at_most=1
    )
    weight_decay: float = setting(
        1e-4, "Decoupled weight decay, applied to all trained weights.", at_least=0, at_most=1000
    )
    max_grad_norm: float = setting(1.0, "Global norm to which gradients are clipped.", above=0)
    gradient_accumulation_steps: int = setting(
        1, "Training batches whose gradients are averaged per step.", at_least=1, at_most=MAX_COUNT
    )

    def check_warmup(self, batches: int) -> None:
        """Refuses a warm-up that a run of this number of training batches does not finish.

        Raises:
          UserError: the warm-up is too long.
        """
        steps = batches // self.gradient_accumulation_steps
        self.require(self.warmup_steps < steps, "warmup_steps", f"less than the {steps} optimizer steps of the run")


@dataclasses.dataclass(frozen=True)
class LoRASettings(Settings):
    """The adapter, which changes all attention projections, as published."""

    GROUP: ClassVar = "lora."

    rank: int = setting(4, "Rank r of the adapter.", at_least=1, at_most=4096)
    alpha: float = setting(
        0.0,
        "Alpha of the adapter; its scale is alpha / rank (0: the rank, so that the scale is 1).",
        at_least=0,
        at_most=10**6,
    )

    @property
    def scale(self) -> float:
        """The scale of the adapter's update, alpha / r."""
        return (self.alpha or self.rank) / self.rank

    def adapter(self, tree: Params) -> LoRA:
        """Returns a trained tree, whose arrays are on the host, as the LoRA that a file holds."""
        return LoRA(tree, self.scale * self.rank, self.rank)


@dataclasses.dataclass(frozen=True)
class EvalSettings(Settings):
    """Images before and after training, drawn from the same prompts and noise by DDIM with eta 0."""

    GROUP: ClassVar = "eval."

    prompts: str = setting("toy:held_out", "Prompt file, or toy:held_out; repeated until there are enough images.")
    images: int = setting(100, "Number of images before and after training.", at_least=1, at_most=50_000)
    grid_images: int = setting(
        16, "Number of images in each grid that is drawn during training.", at_least=1, at_most=1024
    )
    batch: int = setting(25, "Number of images to draw at a time.", at_least=1, at_most=MAX_BATCH, memory="lower")
    seed: int = seed_setting(1234, "Seed of the initial noise.")
    steps: int = setting(20, "Number of sampling steps.", at_least=1, at_most=MAX_STEPS)
    guidance_scale: float = setting(
        5.0, "Classifier-free guidance scale.", at_least=-MAX_GUIDANCE, at_most=MAX_GUIDANCE
    )
    rewards: str = setting(
        "toy",
        "Rewards that score the images, separated by commas: names in spo_jax.rewards (NAME or NAME:SOURCE), or dotted "
        "paths of your own.",
    )
    weights: str = setting(
        "",
        "Weights of the rewards in one more score, total: numbers separated by commas, one per reward, such as 1,0.5 "
        "(empty: no total).",
    )

    guard: str = setting(
        "off",
        "What happens if held-out scores fall beyond noise, while the score that is trained on does not (the judge is "
        "hacked) or does too (the run diverges): off (nobody looks), warn, or stop, which ends the run and exports the "
        "best weights by the held-out scores.",
        choices=("off", "warn", "stop"),
    )
    guard_rewards: str = setting(
        "", "Held-out rewards, from which the run does not learn, separated by commas; the guard scores with them."
    )
    guard_every: int = setting(
        0,
        "Batches between two looks of the guard (0: as log.eval_every, whose images it then shares).",
        at_least=0,
        at_most=MAX_COUNT,
    )
    guard_images: int = setting(
        25, "Number of images of a look: the first of those before and after training.", at_least=2, at_most=50_000
    )
    guard_looks: int = setting(2, "Worse looks in a row that are an alarm.", at_least=1, at_most=1000)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require(bool(self.reward_names), "rewards", "at least one reward, such as 'spm'")
        if self.guard != "off":
            expected = f"at least one reward that is not trained on, such as 'toy', for eval.guard = {self.guard!r}"
            self.require(bool(self.guard_names), "guard_rewards", expected)
        read_weights(self.weights, self.reward_names, "config field eval.weights")

    @property
    def reward_names(self) -> tuple[str, ...]:
        """The names of the rewards, in order."""
        return names_in(self.rewards)

    @property
    def guard_names(self) -> tuple[str, ...]:
        """The names of the guard's rewards, in order."""
        return names_in(self.guard_rewards)

    @property
    def reward_weights(self) -> tuple[float, ...]:
        """The weight of each reward in the total, in order; empty if there is no total."""
        return read_weights(self.weights, self.reward_names, "config field eval.weights")


def names_in(rewards: str) -> tuple[str, ...]:
    """Splits names that are separated by commas."""
    return tuple(name.strip() for name in rewards.split(",") if name.strip())


@dataclasses.dataclass(frozen=True)
class LoadingSettings(Settings):
    """Threads and processes that read images."""

    GROUP: ClassVar = "loading."

    threads: int = setting(
        8, "Threads in each process that reads images (0: none besides its own).", at_least=0, at_most=256
    )
    workers: int = setting(0, "Processes that read images (0: this one).", at_least=0, at_most=256)


@dataclasses.dataclass(frozen=True)
class PairSettings(Settings):
    """Prepared preference pairs, for methods that learn from them."""

    # The folders of the data may change, because a resumed run compares the data's digest.
    FREE_FIELDS: ClassVar = ("loading", "data_dir", "cache_latents", "chunk")

    data_dir: str = setting("data", "Folder of prepared preference pairs (python -m spo_jax.prepare).")
    train_split: str = setting("train", "Split to train on.")
    resolution: int = setting(
        0, "Side of the images in pixels (0: the diffusion model's native size).", at_least=0, at_most=4096
    )
    cache_latents: str = setting(
        "", "Folder that keeps the images' latents for later epochs and other runs (empty: they are not kept)."
    )
    posterior: str = setting(
        "sample",
        "Whether latents are a draw from the autoencoder's posterior (sample, as published) or its mean.",
        choices=("sample", "mean"),
    )
    batch_size: int = setting(
        64, "Number of pairs in a batch, over all devices.", at_least=1, at_most=MAX_BATCH, memory="lower"
    )
    chunk: int = setting(
        16,
        "Number of pairs that a device has in memory at a time; changes results only by rounding.",
        at_least=1,
        at_most=MAX_BATCH,
        memory="lower",
    )
    loading: LoadingSettings = LoadingSettings()

    @property
    def data(self) -> str:
        """The training data in words, for messages."""
        return f"the preference pairs of {self.train_split} in {self.data_dir}"


@dataclasses.dataclass(frozen=True)
class AdapterSettings(ModelSettings, RunSettings):
    """Base of the settings of every method that trains a LoRA."""

    FREE_FIELDS: ClassVar = (*RunSettings.FREE_FIELDS, "eval", "remat_keeps")

    lora: LoRASettings = LoRASettings()
    optimizer: OptimizerSettings = OptimizerSettings()
    eval: EvalSettings = EvalSettings()


@dataclasses.dataclass(frozen=True)
class PromptSettings(Settings):
    """Training prompts, for methods that draw their own images."""

    LENGTH: ClassVar = ("num_epochs", "max_batches")

    prompts: str = setting("toy:train", "Prompt file (.txt, .csv, .json or .jsonl), toy:train or toy:held_out.")
    prompts_per_batch: int = setting(
        10, "Number of prompts in a batch, over all devices.", at_least=1, at_most=MAX_BATCH, memory="lower"
    )
    num_epochs: int = setting(10, "Number of passes over the prompts.", at_least=1, at_most=MAX_COUNT)
    max_batches: int = setting(0, "Stop after this number of batches (0: no limit).", at_least=0, at_most=MAX_COUNT)

    def total_batches(self, prompts: int) -> int:
        """Returns the number of batches of the whole run, which skips a last batch that would not be full.

        Args:
          prompts: number of training prompts.
        """
        total = max(self.num_epochs * prompts // self.prompts_per_batch, 1)
        return min(total, self.max_batches) if self.max_batches else total


@dataclasses.dataclass(frozen=True)
class JudgeSettings(Settings):
    """The preference model, wherever a reward is named `spm` without a source of its own."""

    GROUP: ClassVar = "spm."

    model: str = setting(
        toy.NAME,
        "Preference model: folder, weights file, hub id, one file of a hub repository (owner/name/file), 'toy' or "
        "'toy_people'.",
    )
    tokenizer: str = setting("", "Folder or hub id of its tokenizer, if the model holds none.")


@dataclasses.dataclass(frozen=True)
class OnlineSettings(PromptSettings, AdapterSettings):
    """Base of the settings of every method that draws its own images and learns from what a judge says of them."""

    FREE_FIELDS: ClassVar = (*AdapterSettings.FREE_FIELDS, "max_batches", "num_epochs")

    spm: JudgeSettings = JudgeSettings()

    def __post_init__(self) -> None:
        super().__post_init__()
        expected = "'constant', because the number of training batches is not known before a run"
        self.optimizer.require(self.optimizer.schedule == "constant", "schedule", expected)

    @property
    def data(self) -> str:
        """The training data in words, for messages."""
        return f"the prompts in {self.prompts}"
