"""A run of SPO: its data and models, and its batches, each of which is a rollout followed by an update."""

import math
import time
from collections.abc import Generator, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh

from spo_jax.core.errors import UserError
from spo_jax.core.typing import Key
from spo_jax.methods.base import Programs, Result
from spo_jax.methods.common.first_ratio import CHART, FIRST_ERROR, warn_of_rounding
from spo_jax.methods.common.model import open_model
from spo_jax.methods.common.online import PromptFeatures
from spo_jax.methods.common.online_run import OnlineRun, batch_key, program_keys
from spo_jax.methods.common.prompts import PromptData
from spo_jax.methods.spo.objectives import objective_of
from spo_jax.methods.spo.plan import make_plan
from spo_jax.methods.spo.programs import SPO, open_rollout_judge
from spo_jax.methods.spo.row import MetricTimesteps, flat_row
from spo_jax.methods.spo.settings import SPOTrainSettings
from spo_jax.methods.spo.state import SPOState, sampling_params, with_mean
from spo_jax.parallel.multihost import is_writer
from spo_jax.run.loop import Progress, Row
from spo_jax.run.trend import trend

CHARTS = {
    "loss": ("Loss", "mean over the pairs of a batch; log 2 = 0.693 while policy and reference agree"),
    "margin": ("Margin", "log ratio of the winner minus that of the loser; above 0: it came to prefer winners"),
    "ratio": ("Likelihood ratio to the reference", "above 1: the policy makes this step more likely than before"),
    FIRST_ERROR: CHART,
    "clip_fraction": ("Share of clipped ratios", "pairs whose ratio left the trust region and gives no gradient"),
    "ratio_at": ("Likelihood ratio by timestep", "mean of winners and losers; near 1 unless rounding moves it"),
    "clip_fraction_at": ("Share of clipped ratios by timestep", "winners and losers together"),
    "valid_share": ("Share of valid pairs", "pools whose best and worst candidate differ clearly enough to learn from"),
    "judge_score": ("Judge's score by timestep", "mean score that the judge gives the candidates"),
    "valid_share_at": ("Share of valid pairs by timestep", ""),
    "judge_gap": ("Gap of the judge's scores by timestep", "mean difference of best and worst candidate of a pool"),
    "judges": (
        "Both judges at the last steps",
        "mean gaps of their scores in a pool, and how often their winner is one",
    ),
    "grad_norm": ("Gradient norm", "global norm before clipping"),
    "valid_pairs": ("Valid pairs per batch", ""),
    "train_batches": ("Training batches per batch of prompts", "as many as the valid pairs fill"),
    "seconds": ("Seconds per batch", "where the time goes"),
    "pairs_per_second": ("Pairs per second", ""),
}


def _shown_margin(rows: Sequence[Mapping[str, int | float | None]]) -> str:
    """Shows the latest margin for the bar; there is none before the first valid pair."""
    now = trend(rows, "margin").now
    return "no valid pair yet" if math.isnan(now) else f"{now:+.4f}"


_PROGRESS = Progress(
    title="SPO",
    shown=lambda rows: {"judge": trend(rows, "judge_score").shown(".2f"), "margin": _shown_margin(rows)},
    watched=("loss", "grad_norm", "judge_score"),
    hint="Lower optimizer.learning_rate, or use float32",
)


def setup(
    settings: SPOTrainSettings, mesh: Mesh, data: PromptData | None = None, folder: Path | None = None
) -> "SPORun":
    """Loads model and judge; see `spo_jax.methods.base.Method`.

    Raises:
      UserError: the model, the judge or another reward cannot be loaded, or they do not fit.
    """
    del folder
    abstract = data is None
    pipeline = open_model(settings, mesh, abstract)
    judge = open_rollout_judge(settings, pipeline, mesh, abstract)
    return SPORun(SPO(settings, pipeline, judge, mesh), data)


class SPORun(OnlineRun):
    """A run of SPO; see `spo_jax.methods.base.Run`.

    Args:
      spo: the method bound to its models.
      data: the prompts; None makes an abstract run.
    """

    METHOD = "SPO"
    progress = _PROGRESS
    charts = CHARTS

    def __init__(self, spo: SPO, data: PromptData | None = None):
        spec = spo.settings.spo.second_reward or spo.settings.spo.reward
        super().__init__(spo, data, {spec: spo.judge.reward}, spo.judge.reward)
        self._timesteps = MetricTimesteps.of(self.settings.spo, spo.process)

    @property
    def spo(self) -> SPO:
        """The method bound to its models."""
        return self.model

    def init_state(self, key: Key) -> SPOState:
        """Returns the state of a fresh adapter, with a full copy on every device."""
        state = super().init_state(key)
        return with_mean(state) if self.settings.spo.ema_decay else state

    def trace(self, state: SPOState, keep_unused: bool = False) -> dict[str, jax.stages.Traced]:
        """Traces the programs ``collect`` and ``update``."""
        return self.spo.trace(state, keep_unused)

    def loop_trips(self, program: str) -> tuple[int, ...]:
        """Returns how often the loops of ``update`` run for one training batch: over batches, and over its chunks."""
        settings = self.settings.spo
        chunks = -(-settings.train_batch_size // settings.chunk(self.mesh.size))
        return (1, chunks) if program == "update" else ()

    def most_train_batches(self) -> int:
        """Returns the number of training batches in a batch whose pairs are all valid."""
        settings = self.settings.spo
        pairs = self.settings.prompts_per_batch * objective_of(settings).count(make_plan(settings))
        return -(-pairs // settings.train_batch_size)

    def batches(self, start: int) -> Generator[PromptFeatures, None, None]:
        """Yields the features of each batch's prompts, on the devices."""
        for _, features in self.prompt_batches(start):
            yield features

    def step(
        self, programs: Programs, batches: Iterator[PromptFeatures], number: int, state: SPOState, key: Key
    ) -> tuple[SPOState, Row]:
        """Runs a rollout and the updates on its pairs; ``state`` is donated."""
        inputs = next(batches)
        fresh = not int(state.step)
        key = batch_key(key, number)
        state, row = run_batch(programs, self._frozen, inputs, self._timesteps, state, key)
        if not fresh:  # later, the policy is no longer the reference
            row.pop(FIRST_ERROR, None)
        elif is_writer():
            warn_of_rounding(row.get(FIRST_ERROR, 0.0), "spo.eps", self.settings.spo.eps)
        return state, row

    def export(self, state: SPOState, folder: Path) -> None:
        """Writes ``lora.safetensors`` if any pair was valid so far; only one of the processes does so."""
        if int(state.step):
            super().export(state, folder)

    def finish(self, state: SPOState, folder: Path) -> Result:
        """Draws and scores the images after training.

        Raises:
          UserError: no pair was valid in the whole run, or a score is not finite.
        """
        if not int(state.step):
            raise UserError(
                f"no pair was valid in {self.total} batches, so nothing was learned: lower config field spo.threshold, "
                "or use a judge that tells candidates apart (curve judge_gap)"
            )
        return super().finish(state, folder)


def run_batch(
    programs: Programs,
    frozen: Any,
    inputs: PromptFeatures,
    timesteps: MetricTimesteps,
    state: SPOState,
    key: Key,
) -> tuple[SPOState, Row]:
    """Runs a rollout and the updates on its pairs.

    Args:
      programs: the compiled programs ``collect`` and ``update``.
      frozen: weights that training does not change.
      inputs: features of the batch's prompts.
      timesteps: timesteps of the metrics that are vectors.
      state: the current state, which is donated.
      key: the batch's own key.

    Returns:
      The next state, and the batch's row.
    """
    collect_key, update_key = program_keys(key)
    begin = time.perf_counter()
    pairs, rollout = jax.block_until_ready(programs["collect"](sampling_params(state), frozen, inputs, collect_key))
    middle = time.perf_counter()
    state, update = jax.block_until_ready(programs["update"](state, frozen, inputs, pairs, update_key))
    end = time.perf_counter()
    row = flat_row({**rollout, **update}, timesteps)
    speed = {
        "seconds/rollout": middle - begin,
        "seconds/update": end - middle,
        # The rollout's speed counts all pairs, valid or not; the update's counts only those it trained on.
        "pairs_per_second/rollout": len(pairs.valid) / (middle - begin),
        "pairs_per_second/update": row["valid_pairs"] / (end - middle),
    }
    return state, {**row, **speed}
