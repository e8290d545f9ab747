"""Settings of SPO; the defaults are those published for SD 1.5."""

import dataclasses
from typing import ClassVar

from spo_jax.core.config import MAX_BATCH, MAX_GUIDANCE, MAX_STEPS, Settings, setting
from spo_jax.methods.common.settings import OnlineSettings
from spo_jax.parallel.sizes import padded_chunk


@dataclasses.dataclass(frozen=True)
class ResamplerSettings(Settings):
    """The rollout."""

    GROUP: ClassVar = "spo."

    num_steps: int = setting(20, "Number of sampling steps T.", at_least=1, at_most=MAX_STEPS)
    eta: float = setting(
        1.0, "Stochasticity of the steps, 1 as in DDPM; not 0, because steps without noise have no likelihood.", above=0
    )
    divert_start_step: int = setting(4, "First step that branches, counted from 0.", at_least=0, at_most=MAX_STEPS)
    num_candidates: int = setting(4, "Number of candidates k in every pool.", at_least=2, at_most=1024)
    num_inner_step: int = setting(
        0,
        "Number of plain steps that every candidate takes before it is judged (SDXL: 3).",
        at_least=0,
        at_most=MAX_STEPS,
    )
    branch_at_last_step: bool = setting(True, "Whether the last step may branch (in the recipe for SDXL it may not).")
    shared_parent: bool = setting(
        True,
        "Whether a pool is brought back to one parent after it was judged; if not, the k candidates are trajectories "
        "of their own from divert_start_step on, and winner and loser differ by all their steps.",
    )
    judged: str = setting(
        "clean",
        "What the judge sees: clean, the network's clean prediction from every candidate, or noisy, the candidates "
        "themselves at the timestep of the step that drew them, for which the network is evaluated on one candidate of "
        "a pool only and nothing is decoded (LPO; the judge has to read noisy latents, as lrm does).",
        choices=("clean", "noisy"),
    )
    next_parent: str = setting(
        "random",
        "Candidate that becomes the next parent: a random one, or the best by its score.",
        choices=("random", "best"),
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        last = self.num_steps - 1 - (not self.branch_at_last_step)
        self.require(self.divert_start_step <= last, "divert_start_step", f"0 to {last}")
        expected = f"'random' for {self.GROUP}shared_parent = False, where no candidate becomes a parent"
        self.require(self.shared_parent or self.next_parent == "random", "next_parent", expected)
        if self.judged == "noisy":
            for field, value in (("num_inner_step", 0), ("branch_at_last_step", True), ("shared_parent", True)):
                expected = f"{value} for {self.GROUP}judged = 'noisy', where every step draws a pool and judges it"
                self.require(getattr(self, field) == value, field, expected)


@dataclasses.dataclass(frozen=True)
class UpdateSettings(Settings):
    """The objective and its training batches."""

    GROUP: ClassVar = "spo."

    objective: str = setting(
        "spo",
        "Objective: spo compares how likely the drawn steps of winner and loser are; gradspo compares predictions with "
        "targets that half the difference of both members' noises moves.",
        choices=("spo", "gradspo"),
    )
    grad_scale: float = setting(
        0.5, "Factor g by which noises move the targets of the objective gradspo.", above=0, at_most=1000
    )
    ema_decay: float = setting(
        0.0,
        "Decay of a running mean of the adapter, which draws the rollouts in place of the trained one and is the "
        "center of gradspo's targets (GradSPO: 0.9; 0: no mean, the trained adapter itself).",
        at_least=0,
        below=1,
    )
    beta: float = setting(10.0, "Factor of the log ratios inside the sigmoid.", above=0, at_most=10**6)
    eps: float = setting(
        0.1, "Likelihood ratios are clipped to 1 ± eps; below 1, so that they stay positive.", above=0, below=1
    )
    train_batch_size: int = setting(
        10, "Number of pairs in a training batch, over all devices.", at_least=1, at_most=MAX_BATCH, memory="lower"
    )
    train_chunk: int = setting(
        10,
        "Number of pairs that a device has in memory at a time; changes results only by rounding.",
        at_least=1,
        at_most=MAX_BATCH,
        memory="lower",
    )

    def chunk(self, devices: int) -> int:
        """Returns the number of pairs in memory at a time, on all devices together.

        A batch that has to be cut is cut into equal parts.

        Args:
          devices: number of devices.
        """
        return padded_chunk(self.train_batch_size, self.train_chunk, devices)


@dataclasses.dataclass(frozen=True)
class SPOSettings(ResamplerSettings, UpdateSettings):
    """Settings of rollout, judgement and update together."""

    threshold: float = setting(
        0.3,
        "A pair is kept if the softmax probabilities of its best and worst score differ by more than this (0: all "
        "pairs but ties).",
        at_least=0,
        below=1,
    )
    threshold_rule: str = setting(
        "constant",
        "The threshold by timestep: constant; or from threshold at the last step up to threshold_high at the first, as "
        "the standard deviation of the step's noise (sigma, LPO), its variance, or the timestep (linear).",
        choices=("constant", "sigma", "variance", "linear"),
    )
    threshold_high: float = setting(
        0.5, "Threshold at the first step, if it depends on the timestep.", at_least=0, below=1
    )
    accept_last_step: bool = setting(
        False, "Keep all pairs that are judged by finished images, whatever their scores (GradSPO on SD 1.5)."
    )
    judge_timestep: str = setting(
        "step",
        "Timestep that the judge is told: that of the step whose prediction it sees, or zero, as if every prediction "
        "were a finished image.",
        choices=("step", "zero"),
    )
    guidance_scale: float = setting(
        5.0,
        "Classifier-free guidance scale w, in sampling and in training (1: none, at half the cost).",
        at_least=-MAX_GUIDANCE,
        at_most=MAX_GUIDANCE,
    )
    reward: str = setting(
        "spm",
        "Reward that judges candidates: a name in spo_jax.rewards (NAME or NAME:SOURCE), or a dotted path of your own.",
    )
    second_reward: str = setting(
        "",
        "Reward that judges the pools of the last steps besides spo.reward, by the clean predictions from their "
        "candidates; it reads images, or clean latents (for spo.judged = 'noisy'; empty: none).",
    )
    second_steps: int = setting(
        1,
        "Number of last steps whose pools the second reward judges; nothing is decoded at the others (1: the finished "
        "images alone, which need no prediction).",
        at_least=1,
        at_most=MAX_STEPS,
    )
    second_weight: float = setting(
        0.5,
        "Weight w of the second reward: there, candidates are compared by (1 - w) times the score of spo.reward plus w "
        "times its own, both as they are.",
        at_least=0,
        at_most=1,
    )
    decode_chunk: int = setting(
        0,
        "Number of images that a device decodes and judges at a time, or of noisy latents that it judges (0: as suits "
        "the platform, which is 8 on TPUs up to 768 px and otherwise 4).",
        at_least=0,
        at_most=MAX_BATCH,
        memory="lower",
    )
    decoder: str = setting(
        "vae", "Decoder of the judged images: vae, or the folder or hub id of a distilled one (AutoencoderTiny)."
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        expected = f"True for {self.GROUP}objective = 'gradspo', whose winner and loser are steps from one x_t"
        self.require(self.shared_parent or self.objective != "gradspo", "shared_parent", expected)
        rises = self.threshold_rule == "constant" or self.threshold <= self.threshold_high
        self.require(rises, "threshold_high", f"at least {self.GROUP}threshold = {self.threshold:g}")
        if self.judged == "noisy":
            expected = f"'step' for {self.GROUP}judged = 'noisy', because noisy latents are judged at their timestep"
            self.require(self.judge_timestep == "step", "judge_timestep", expected)
        if self.second_reward:
            expected = f"none for {self.GROUP}judged = 'clean', where {self.GROUP}reward judges images at every step"
            self.require(self.judged == "noisy", "second_reward", expected)
            expected = f"'random' for {self.GROUP}second_reward, which judges when the rollout is complete"
            self.require(self.next_parent == "random", "next_parent", expected)
            pools = self.num_steps - self.divert_start_step
            self.require(self.second_steps <= pools, "second_steps", f"1 to {pools}, the number of pools")
        else:
            for name in ("second_steps", "second_weight"):
                default = getattr(type(self), name)
                expected = f"{default}, or a judge in {self.GROUP}second_reward, which this is about"
                self.require(getattr(self, name) == default, name, expected)

    @property
    def reward_names(self) -> tuple[str, ...]:
        """The rewards by which candidates are judged."""
        return (self.reward, self.second_reward) if self.second_reward else (self.reward,)


@dataclasses.dataclass(frozen=True)
class SPOTrainSettings(OnlineSettings):
    """All settings of a run of SPO."""

    FREE_FIELDS: ClassVar = (*OnlineSettings.FREE_FIELDS, "spo.decode_chunk", "spo.train_chunk")
    BATCHES: ClassVar = {"prompts_per_batch": "prompts", "spo.train_batch_size": "pairs"}

    spo: SPOSettings = SPOSettings()
