"""A run of Diffusion-DPO: its pairs and labels, and its batches."""

import contextlib
import functools
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import jax
from absl import logging
from jax.sharding import Mesh

from spo_jax.core.files import local_path
from spo_jax.core.progress import stage
from spo_jax.core.typing import Key, Params
from spo_jax.core.words import counted
from spo_jax.data.preferences.format import filtered_by
from spo_jax.methods.base import Programs, Result
from spo_jax.methods.common.adapter import AdapterRun
from spo_jax.methods.common.checks import reward_options
from spo_jax.methods.common.model import open_model
from spo_jax.methods.common.pair_inputs import FrozenParams
from spo_jax.methods.common.pair_scores import reward_scores
from spo_jax.methods.common.state import TrainState
from spo_jax.methods.common.timed import timed_step
from spo_jax.methods.diffusion_dpo.data import PairData
from spo_jax.methods.diffusion_dpo.labels import Labels, peoples_labels, smoothed_labels
from spo_jax.methods.diffusion_dpo.programs import DPO, Batch
from spo_jax.methods.diffusion_dpo.settings import DPOTrainSettings
from spo_jax.parallel.sizes import even_chunk
from spo_jax.rewards import check_direction, load_reward
from spo_jax.rewards.base import Context, Reward
from spo_jax.run.loop import Progress, Row
from spo_jax.run.trend import trend

CHARTS = {
    "loss": ("Loss", "mean over a batch's pairs; log 2 = 0.693 at first, for dpo and smpo"),
    "implicit_accuracy": (
        "Implicit accuracy",
        "share of a batch's pairs ordered right before the step; a half at the reference",
    ),
    "margin": ("Margin", "how much better than the reference it predicts winners, minus the same for losers"),
    "mse_change": (
        "Error minus the reference's",
        "both growing above 0: it unlearns winners too, and images decay",
    ),
    "mse": ("Error of the prediction", "mean squared, of winners and losers"),
    "mse_reference": ("Error of the reference", "its noise is that of the timesteps drawn"),
    "label_weight": ("Smoothed label", "mean over a batch's pairs; gamma where the reward is certain"),
    "grad_norm": ("Gradient norm", "global norm before clipping"),
    "learning_rate": ("Learning rate", ""),
    "seconds": ("Seconds per batch", "where the time goes"),
    "pairs_per_second": ("Pairs per second", ""),
}
_PROGRESS = Progress(
    title="DPO",
    shown=lambda rows: {
        "accuracy": trend(rows, "implicit_accuracy").shown(".1%"), "loss": trend(rows, "loss").shown(".4f")
    },
    watched=("loss", "grad_norm"),
    hint="Lower optimizer.learning_rate or dpo.beta, or use float32",
)  # fmt: skip


def setup(settings: DPOTrainSettings, mesh: Mesh, data: PairData | None = None, folder: Path | None = None) -> "DPORun":
    """Loads the model, and labels the pairs by a reward if the objective needs it; see `spo_jax.methods.base.Method`.

    Raises:
      UserError: the model or a reward cannot be loaded, or they do not fit; or a folder cannot be used.
    """
    pipeline = open_model(settings, mesh, data is None)
    dpo = DPO(pipeline=pipeline, settings=settings, mesh=mesh)
    if data is None:
        return DPORun(dpo)
    dpo.check_cache(data.train)
    if not settings.dpo.reward:
        return DPORun(dpo, data, peoples_labels(data.train))
    spec = settings.dpo.reward
    context = Context(
        pipeline.kind, pipeline.dtype, mesh, reward_options(settings, spec), field="dpo.reward"
    )  # fmt: skip
    with stage(f"reading {spec} for labels"):
        reward = load_reward(spec, context)
    check_direction(spec, reward, 1.0, context.where)
    scores = reward_scores(
        (local_path(settings.dpo.scores) if settings.dpo.scores else folder / "labels") / settings.train_split,
        data.train,
        reward,
        spec,
        context.where,
        side=dpo.side,
        threads=settings.loading.threads,
        workers=settings.loading.workers,
    )
    return DPORun(dpo, data, smoothed_labels(scores, settings.dpo), reward)


class DPORun(AdapterRun):
    """A run of Diffusion-DPO; see `spo_jax.methods.base.Run`.

    All arguments except ``dpo`` are None in an abstract run.

    Args:
      dpo: the method bound to its models.
      data: the pairs and the prompts of the evaluation.
      labels: winners and weights of the pairs.
      reward: the reward that made the labels; None if people did.
    """

    METHOD = "Diffusion-DPO"
    progress = _PROGRESS
    charts = CHARTS

    def __init__(
        self,
        dpo: DPO,
        data: PairData | None = None,
        labels: Labels | None = None,
        reward: Reward | None = None,
    ):
        shared = {} if reward is None else {dpo.settings.dpo.reward: reward}
        super().__init__(dpo.settings, dpo.pipeline, dpo.mesh, data and data.eval_prompts, shared, reward)
        self.dpo = dpo
        self.total = self.settings.train_steps
        self._data = data
        self._labels = labels

    @functools.cached_property
    def _frozen(self) -> FrozenParams:
        """What the program reads and training does not change."""
        return self.dpo.frozen()

    def trace(self, state: TrainState, keep_unused: bool = False) -> dict[str, jax.stages.Traced]:
        """Traces the program ``update``."""
        return self.dpo.trace(state, keep_unused)

    def loop_trips(self, program: str) -> tuple[float, ...]:
        """Returns how many steps an inversion takes on average, up to the highest of the timesteps in memory."""
        settings = self.settings
        if settings.dpo.inversion == "none":
            return ()
        pairs = even_chunk(settings.batch_size, settings.chunk, self.mesh.size)
        return (settings.dpo.inversion_steps * pairs / (pairs + 1) + 0.5,)  # the largest of so many uniform numbers

    def idle_params(self) -> Params:
        """Returns the weights that stay on the devices although the program does not take them: there are none."""
        return {}

    def batches(self, start: int) -> Generator[Batch, None, None]:
        """Yields this process's parts of the batches, on its devices.

        Raises:
          UserError: an image is damaged, or latents cannot be kept.
        """
        pairs = self._data.train
        labels = self._labels
        if left := len(pairs) - len(labels.rows):
            logging.info(
                "%s of %s are ties or have no label, and are left out", f"{left:,}", counted(len(pairs), "pair")
            )
        with stage(f"reading the tokens of {counted(len(pairs.prompts), 'caption')}"):
            ids = self.pipeline.tokenize(pairs.prompts)
        jax.block_until_ready(self._frozen)  # encoded before the loop, in which nothing compiles
        with contextlib.closing(self.dpo.loaded(pairs, labels.rows, start)) as loaded:
            for batch in loaded:
                rows = batch.rows
                prompts = ids[pairs.prompt[rows]]
                yield self.dpo.feed(Batch(batch.images, prompts, labels.second_wins[rows], labels.weight[rows]))

    def step(
        self, programs: Programs, batches: Iterator[Batch], number: int, state: TrainState, key: Key
    ) -> tuple[TrainState, Row]:
        """Trains on the next batch; the state counts the steps, and everything random follows from that count."""
        del number

        def train(batch: Batch) -> tuple[TrainState, Any]:
            return programs["update"](state, self._frozen, batch, key)

        after, metrics, speed = timed_step("update", batches, train, self.settings.batch_size)
        return after, {**{name: float(value) for name, value in metrics.items()}, **speed}

    def finish(self, state: TrainState, folder: Path) -> Result:
        """Draws and scores the images after training, and says on how many pairs it trained.

        Raises:
          UserError: a score is not finite.
        """
        result = super().finish(state, folder)
        used = len(self._labels.rows)
        counts = {"pairs": used, "pairs_left_out": len(self._data.train) - used}
        return result._replace(summary={**result.summary, **counts, **filtered_by(self._data.train)})
