"""The base of runs that learn from finished images: a batch is a rollout, its scores, and an update."""

import time
from collections.abc import Generator, Iterator, Mapping, Sequence
from typing import ClassVar, NamedTuple

import jax
import numpy as np

from spo_jax.core.typing import Array, Float, Int, Key
from spo_jax.methods.base import Programs
from spo_jax.methods.common.first_ratio import CHART, FIRST_ERROR, warn_of_rounding
from spo_jax.methods.common.online import PromptFeatures
from spo_jax.methods.common.online_run import OnlineRun, batch_key, program_keys
from spo_jax.methods.common.prompts import PromptData
from spo_jax.methods.common.state import State
from spo_jax.methods.common.trajectory_model import Drawn, TrajectoryModel
from spo_jax.parallel.mesh import replicated
from spo_jax.parallel.multihost import is_writer
from spo_jax.parallel.sharding import place, to_host
from spo_jax.run.loop import Progress, Row
from spo_jax.run.trend import trend

CHARTS = {
    "reward": ("Reward", "mean of the images of a batch; it should rise, and is noisy because the prompts differ"),
    "loss": ("Loss", "mean over the steps of a batch"),
    "ratio": ("Likelihood ratio", "mean over the steps; above 1: the policy makes them more likely than before"),
    "clip_fraction": ("Share of clipped ratios", "steps whose ratio left the trust region and may give no gradient"),
    FIRST_ERROR: CHART,
    "grad_norm": ("Gradient norm", "global norm before clipping"),
    "train_batches": ("Training batches per batch of prompts", ""),
    "seconds": ("Seconds per batch", "where the time goes"),
    "images_per_second": ("Images drawn per second", ""),
}


class Batch(NamedTuple):
    """The prompts of a batch.

    Attributes:
      features: their features, on the devices.
      prompts: their texts.
      numbers: number of each text, the same wherever the run draws it.
    """

    features: PromptFeatures
    prompts: Sequence[str]
    numbers: Int[np.ndarray, " b"]


def numbered(prompts: Sequence[str]) -> Int[np.ndarray, " p"]:
    """Returns a number for each prompt: where its text comes first."""
    first: dict[str, int] = {}
    return np.asarray([first.setdefault(prompt, index) for index, prompt in enumerate(prompts)], np.int32)


class TrajectoryRun(OnlineRun):
    """The part of a run that does not depend on how it learns from scores; see `spo_jax.methods.base.Run`.

    A subclass sets `METHOD`, ``charts``, `REFERENCE_RATIO` and `CLIP`.

    Args:
      model: the method bound to its models.
      data: the prompts; None makes an abstract run.

    Attributes:
      REFERENCE_RATIO: whether ratios are to the frozen base, so that they are 1 only before the first update of the
        whole run; otherwise they are to the policy that drew the batch, and 1 before the first update of each.
      CLIP: the field of the method's own settings with half the width of the clip of ratios.
    """

    REFERENCE_RATIO: ClassVar[bool]
    CLIP: ClassVar[str]
    charts: Mapping[str, tuple[str, str]] = CHARTS

    def __init__(self, model: TrajectoryModel, data: PromptData | None = None):
        judge = model.judge
        shared = dict(zip(model.settings.own.reward_names, judge.loaded, strict=True))
        on_images = judge.rewards[0] if len(judge.rewards) == 1 else None
        super().__init__(model, data, shared, on_images)
        title = self.METHOD.upper()
        self.progress = Progress(
            title,
            lambda rows: {"reward": trend(rows, "reward").shown(".3g")},
            ("loss", "grad_norm", "reward", "ratio"),
            "Lower optimizer.learning_rate, or use float32; if only the reward is not finite, look at what it computes",
        )

    def trace(self, state: State, keep_unused: bool = False) -> dict[str, jax.stages.Traced]:
        """Traces the programs ``rollout`` and ``update``."""
        return self.model.trace(state, keep_unused)

    def most_train_batches(self) -> int:
        """Returns the number of training batches in a batch of the run, which is always the same."""
        own = self.settings.own
        return own.passes * self.settings.items // own.train_batch_size

    def batches(self, start: int) -> Generator[Batch, None, None]:
        """Yields the prompts of each batch, with their features on the devices."""
        prompts = self._data.prompts
        numbers = numbered(prompts)
        for rows, features in self.prompt_batches(start):
            yield Batch(features, [prompts[row] for row in rows], numbers[rows])

    def step(
        self, programs: Programs, batches: Iterator[Batch], number: int, state: State, key: Key
    ) -> tuple[State, Row]:
        """Runs a rollout, has its images scored, and learns from the scores; ``state`` is donated."""
        batch = next(batches)
        fresh = not int(state.step)
        rollout_key, update_key = program_keys(batch_key(key, number))
        times = [time.perf_counter()]
        drawn = jax.block_until_ready(programs["rollout"](state.params, self._frozen, batch.features, rollout_key))
        times.append(time.perf_counter())
        scores = self._scores(drawn, batch.prompts)
        times.append(time.perf_counter())
        prompt = place(batch.numbers, replicated(self.mesh))
        inputs = (self._frozen, batch.features, prompt, drawn.trajectories, scores, update_key)
        state, metrics = jax.block_until_ready(programs["update"](state, *inputs))
        times.append(time.perf_counter())
        row = self._row(jax.device_get(metrics))
        if self.REFERENCE_RATIO and not fresh:  # later, the policy is no longer the reference
            row.pop(FIRST_ERROR)
        elif fresh and is_writer():
            own = self.settings.own
            warn_of_rounding(row[FIRST_ERROR], own.GROUP + self.CLIP, getattr(own, self.CLIP))
        seconds = dict(zip(("rollout", "reward", "update"), np.diff(times).tolist(), strict=True))
        if not self.model.judge.on_host:
            del seconds["reward"]
        speed = {"images_per_second": len(batch.prompts) * self.settings.own.copies / seconds["rollout"]}
        return state, {**row, **{f"seconds/{name}": value for name, value in seconds.items()}, **speed}

    def _scores(self, drawn: Drawn, prompts: Sequence[str]) -> Array:
        """Returns the scores of a rollout's images, on the devices; rewards on the host are asked for them."""
        if not self.model.judge.on_host:
            return drawn.finished
        of_images = [prompt for prompt in prompts for _ in range(self.settings.own.copies)]
        return place(self.model.judge.measure(to_host(drawn.finished), of_images), replicated(self.mesh))

    def _row(self, metrics: Mapping[str, Float[np.ndarray, "..."]]) -> Row:
        """Makes the row of a batch; of several rewards, each has a curve of its own."""
        row = {}
        for name, value in metrics.items():
            if value.ndim == 0:
                row[name] = value.item()
            elif len(value) == 1:
                row[name] = value[0].item()
            else:
                names = [score.replace("/", "_") for score in self.model.judge.names]
                row |= {f"{name}/{score}": of.item() for score, of in zip(names, value, strict=True)}
        return row
