"""Settings of Diffusion-DPO and its relatives; the defaults of the group ``dpo`` are those published for SD 1.5."""

import dataclasses
from typing import ClassVar

from spo_jax.core.config import MAX_COUNT, MAX_STEPS, Settings, setting
from spo_jax.methods.common.settings import AdapterSettings, OptimizerSettings, PairSettings


@dataclasses.dataclass(frozen=True)
class DPOSettings(Settings):
    """The objective, the noise of the pairs, and the labels that a reward smooths."""

    GROUP: ClassVar = "dpo."

    objective: str = setting(
        "dpo",
        "Loss of a pair: dpo, ipo, hinge, smpo (dpo with labels that a reward smooths) or mapo (without a reference); "
        "docs/equations.md has the formulas.",
        choices=("dpo", "ipo", "hinge", "smpo", "mapo"),
    )
    beta: float = setting(
        5000.0,
        "Factor of the margin; for dpo and smpo with the ½ of the paper (beta_dpo of diffusers' script for SD 1.5 is "
        "half of it). MaPO's is 0.1.",
        above=0,
        at_most=10**9,
    )
    inversion: str = setting(
        "none",
        "Where the noise of a pair comes from: none (drawn, shared by both images), ddim (DDIM inversion of each, "
        "as InPO) or renoise (with one ReNoise pass a step, as SmPO).",
        choices=("none", "ddim", "renoise"),
    )
    inversion_steps: int = setting(
        10,
        "Number of sampling steps over the whole schedule that an inversion walks up.",
        at_least=1,
        at_most=MAX_STEPS,
    )
    inversion_eta: float = setting(
        0.1, "Share of the step's own noise that the inversion ddim adds.", at_least=0, at_most=1
    )
    reward: str = setting(
        "", "Reward that labels the pairs for smpo, such as pickscore; it is computed once for each image."
    )
    scores: str = setting("", "Folder that keeps the reward's scores for other runs (empty: in the run's own folder).")
    gamma: float = setting(
        10.0, "Factor of the smoothed label of smpo, 2 p - 1 for the winner's probability p.", above=0, at_most=10**6
    )
    score_min: float = setting(0.0, "Score that smpo maps to 0 before it takes the probability.")
    score_max: float = setting(
        0.0, "Score that smpo maps to 1 (equal to score_min: both are the smallest and the largest of the split)."
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.objective == "smpo":
            self.require(bool(self.reward), "reward", "a reward such as 'pickscore', from which smpo makes its labels")
            self.require(self.score_max >= self.score_min, "score_max", f"at least score_min, {self.score_min:g}")
        else:
            expected = f"'', because dpo.objective = {self.objective!r} takes the labels of the data"
            self.require(not self.reward, "reward", expected)
            self.require(not self.scores, "scores", "'', because it has no effect without dpo.reward")

    @property
    def has_reference(self) -> bool:
        """Whether the loss compares with the base model."""
        return self.objective != "mapo"


@dataclasses.dataclass(frozen=True)
class DPOTrainSettings(PairSettings, AdapterSettings):
    """All settings of a run of Diffusion-DPO."""

    FREE_FIELDS: ClassVar = (*AdapterSettings.FREE_FIELDS, *PairSettings.FREE_FIELDS, "dpo.scores")
    LENGTH: ClassVar = ("train_steps",)
    BATCHES: ClassVar = {"batch_size": "pairs"}

    method: str = setting("diffusion_dpo", "Training method: diffusion_dpo learns from preference pairs of images.")
    train_steps: int = setting(2000, "Number of batches of the whole run.", at_least=1, at_most=MAX_COUNT)
    caption_dropout: float = setting(
        0.2, "Share of pairs that are trained without their caption, for guidance.", at_least=0, at_most=1
    )
    dpo: DPOSettings = DPOSettings()
    optimizer: OptimizerSettings = OptimizerSettings(learning_rate=1e-5, weight_decay=1e-2)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.optimizer.check_warmup(self.train_steps)
