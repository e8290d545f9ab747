"""What every step of a rollout does, which is known before anything is traced. The module imports no jax."""

import dataclasses

import numpy as np

from spo_jax.core.typing import Int
from spo_jax.methods.spo.settings import ResamplerSettings


@dataclasses.dataclass(frozen=True)
class Plan:
    """What every step of a rollout does, which is known before it runs.

    T is the number of steps, d the first step that branches, and r = T - d the number of recorded transitions.

    Attributes:
      branches: for every step after d, whether it brings the pool back to one parent and branches; bool[T-1-d].
      segment: for each recorded transition, the judgement to which it belongs; int[r].
      judged_at: steps whose clean predictions are judged; the last judgement, of the final latents, is not listed.
      shares_parent: whether every pool of transitions has a single parent, so that x_t is kept once per pair.
    """

    branches: np.ndarray
    segment: np.ndarray
    judged_at: np.ndarray
    shares_parent: bool

    @property
    def branched(self) -> np.ndarray:
        """The recorded transitions at which all candidates have one parent; int, ascending."""
        return np.flatnonzero(np.append(True, self.branches))


def make_plan(settings: ResamplerSettings) -> Plan:
    """Makes the plan of a rollout: 16 judgements of one step each for SD 1.5, and 4 segments of 4 steps for SDXL."""
    first = settings.divert_start_step
    last = settings.num_steps - 1
    steps = np.arange(first + 1, last + 1)
    judges = (steps - first) % (settings.num_inner_step + 1) == 0
    if not settings.branch_at_last_step and len(judges):
        judges[-1] = False
    branches = judges & settings.shared_parent
    segment = np.concatenate([[0], np.cumsum(judges)]).astype(int)
    return Plan(branches, segment, steps[judges], shares_parent=bool(branches.all()))


def judged_timesteps(settings: ResamplerSettings, timesteps: Int[np.ndarray, " t"]) -> Int[np.ndarray, " s"]:
    """Returns the timestep of every judgement; the last one judges the finished images, at 0.

    Noisy candidates are judged at the timestep of the step that drew them, the last ones too.

    Args:
      settings: settings of the rollout.
      timesteps: the timesteps of its steps, descending.
    """
    if settings.judged == "noisy":
        return recorded_timesteps(settings, timesteps)
    return np.append(timesteps[make_plan(settings).judged_at], 0).astype(np.int32)


def recorded_timesteps(settings: ResamplerSettings, timesteps: Int[np.ndarray, " t"]) -> Int[np.ndarray, " r"]:
    """Returns the timestep of every recorded transition, descending; arguments as of `judged_timesteps`."""
    return timesteps[settings.divert_start_step :]
