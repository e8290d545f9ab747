"""How large the comparison is: budgets, seeds and images, and the hours that it takes."""

import dataclasses
from typing import NamedTuple

import numpy as np

from benchmarks.compare_methods.contestants import RATES, Groups
from spo_jax.core.words import counted, duration

_CHECKPOINTS = 16  # that a run saves, if it has so many batches
_POINTS = (1, 2, 3, 4, 6, 8, 12, 16)  # sixteenths of a run that can be measured, spaced geometrically
STEPS = 20  # DDIM steps of every image that is measured
GUIDANCE = 5.0

# What two cores of a virtual machine do when nothing else runs. `Plan.hours` only has to be about right.
FORWARDS_PER_SECOND = 950.0  # evaluations of the UNet while training
DRAWN_PER_SECOND = 1500.0  # evaluations of the UNet while drawing
RUN_SECONDS = 25.0  # of each run: reading, tracing, compiling and its report


@dataclasses.dataclass(frozen=True)
class Plan:
    """The size of a comparison.

    Attributes:
      budget: evaluations of the UNet (for one latent, without guidance) that a run's computations are worth.
      trial_share: the share of them that a trial of the tuning takes.
      seeds: seeds of the runs that are reported.
      tuning_seed: seed of the trials.
      points: number of checkpoints of a run that are measured.
      per_prompt: images of each held-out prompt that are reported.
      guard_per_prompt: further images of each held-out prompt, by which the guard chooses a run's best checkpoint.
      votes_per_prompt: images of each training prompt that are voted on after a trial.
    """

    budget: float = 40_000.0
    trial_share: float = 0.3
    seeds: tuple[int, ...] = (0, 1, 2)
    tuning_seed: int = 100
    points: int = 5
    per_prompt: int = 16
    guard_per_prompt: int = 4
    votes_per_prompt: int = 4

    def steps(self, length: "Length") -> list[int]:
        """Returns the numbers of batches after which a run is measured, each of which has a checkpoint."""
        which = np.linspace(0, len(_POINTS) - 1, self.points).round().astype(int) if self.points > 1 else [-1]
        saved = length.batches // length.every
        nearest = {max(1, round(_POINTS[index] / _POINTS[-1] * saved)) for index in which}
        return [length.every * number for number in sorted(nearest)]

    def hours(self, runs: int, trials: int, prompts: tuple[int, int]) -> float:
        """Estimates the hours of runs and trials on two cores that do nothing else.

        Args:
          runs: number of runs.
          trials: number of trials.
          prompts: number of held-out prompts and of training prompts.
        """
        held_out, train = prompts
        trained = runs * self.budget + trials * self.budget * self.trial_share
        images = runs * self.points * held_out * (self.per_prompt + self.guard_per_prompt)
        images += trials * train * self.votes_per_prompt
        seconds = trained / FORWARDS_PER_SECOND + images * 2 * STEPS / DRAWN_PER_SECOND + (runs + trials) * RUN_SECONDS
        return seconds / 3600


# SPO gains most before 16,000 evaluations and loses it again afterwards. The trials are those of the comparison.
ABLATIONS = Plan(budget=16_000.0, trial_share=0.75, points=4)
QUICK = Plan(budget=30_000.0, trial_share=0.4, seeds=(0,), points=4, per_prompt=8, votes_per_prompt=2)


class Length(NamedTuple):
    """The length of a run.

    Attributes:
      batches: number of its batches, a multiple of ``every``.
      every: number of batches between two checkpoints.
    """

    batches: int
    every: int


def length_of(budget: float, per_batch: float, checkpoints: int = _CHECKPOINTS) -> Length:
    """Returns the length of a run that a budget allows.

    Args:
      budget: work of the run.
      per_batch: work of a batch.
      checkpoints: number of checkpoints, of which there are fewer if there are fewer batches, and may be a few more.
    """
    allowed = max(1.0, budget / per_batch)
    every = max(1, round(allowed / checkpoints))
    return Length(every * max(1, round(allowed / every)), every)


def text_of(plan: Plan, groups: Groups, prompts: tuple[int, int], tune: bool) -> str:
    """Says what will be done and how long it takes.

    Args:
      plan: the plan.
      groups: contestants by the labels that they learn from.
      prompts: as in `Plan.hours`.
      tune: whether settings are chosen by trials.
    """
    lines = []
    hours = 0.0
    for labels, contestants in groups:
        trials = sum(len(RATES) * len(one.variants) for one in contestants) if tune else 0
        runs = len(contestants) * len(plan.seeds)
        hours += (own := plan.hours(runs, trials, prompts))
        names = ", ".join(one.name for one in contestants)
        parts = [*([counted(trials, "trial")] if trials else []), counted(runs, "run")]
        lines.append(f"{labels}: {' and '.join(parts)} of {names}, about {duration(own * 3600)}")
    images = plan.points * prompts[0] * (plan.per_prompt + plan.guard_per_prompt)
    lines.append(
        f"a run is worth {plan.budget:,.0f} evaluations of the UNet, a trial {plan.budget * plan.trial_share:,.0f}; "
        f"of each run {counted(plan.points, 'checkpoint')} and {counted(images, 'image')} are measured"
    )
    whole = duration(hours * 3600)
    lines.append(f"about {whole} in all on two cores that do nothing else; what is done already is kept")
    return "\n".join(lines) + "\n"
