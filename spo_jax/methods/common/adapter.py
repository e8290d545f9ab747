"""The base class of runs that train a LoRA: its first state, the images before and after, and its file."""

from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

import jax
import optax
from jax.sharding import Mesh

from spo_jax.core import run_files
from spo_jax.core.typing import Key, Params
from spo_jax.methods.base import Images, Result
from spo_jax.methods.common.before_after import BeforeAfter, load_rewards
from spo_jax.methods.common.judged import learns_from
from spo_jax.methods.common.looks import make_guard
from spo_jax.methods.common.next_steps import adapter_steps
from spo_jax.methods.common.optimizer import make_optimizer
from spo_jax.methods.common.settings import AdapterSettings
from spo_jax.methods.common.state import TrainState, init_state
from spo_jax.models.base import Pipeline
from spo_jax.models.lora import write_lora
from spo_jax.nn.lora import init_lora
from spo_jax.parallel.mesh import replicated
from spo_jax.parallel.multihost import is_writer
from spo_jax.parallel.sharding import make, shapes_of, to_host
from spo_jax.rewards.base import Reward
from spo_jax.rewards.common import total
from spo_jax.run.folder import State
from spo_jax.run.guard.guard import Guard
from spo_jax.run.loop import Row


class AdapterRun:
    """The part of a `spo_jax.methods.base.Run` that does not depend on how the LoRA is trained.

    A subclass sets `METHOD`, ``total``, ``progress`` and ``charts``, and defines ``trace``, ``batches`` and ``step``.

    Args:
      settings: settings of the run.
      pipeline: the model; it has shapes instead of weights in an abstract run.
      mesh: mesh over which weights and batches are laid.
      eval_prompts: prompts of the images before and after training; None for an abstract run.
      shared: rewards that are loaded already, by their names in the settings.
      judge: the reward from which the run learns; None if there is none.

    Attributes:
      METHOD: name of the method in the metadata of the LoRA file.
      guard: the guard against hacking; None if the settings ask for none.
      charts: the subclass's charts, after those of the evaluation.

    Raises:
      UserError: a reward cannot be loaded, or cannot score images of this model or these prompts.
    """

    METHOD: ClassVar[str]
    exports_at_checkpoints: ClassVar[bool] = True

    def __init__(
        self,
        settings: AdapterSettings,
        pipeline: Pipeline,
        mesh: Mesh,
        eval_prompts: Sequence[str] | None = None,
        shared: dict[str, Reward] | None = None,
        judge: Reward | None = None,
    ):
        self.settings = settings
        self.pipeline = pipeline
        self.mesh = mesh
        self.guard: Guard | None = None
        if eval_prompts is not None:
            shared = {} if shared is None else shared
            own = settings.eval
            rewards = load_rewards(own.reward_names, pipeline, mesh, settings, shared)
            self._evaluation = BeforeAfter(pipeline, own, settings.lora.scale, eval_prompts, rewards)
            self.charts = {**self._evaluation.charts, **self.charts}
            if own.guard != "off":
                others = load_rewards(own.guard_names, pipeline, mesh, settings, shared, "eval.guard_rewards")
                on_images = judge if getattr(judge, "READS", "images") == "images" else None
                self.guard, charts = make_guard(settings, self._evaluation, others, on_images)
                first = next(iter(charts))  # the others are much like those of the evaluation
                self.charts = {first: charts[first], **self.charts, **charts}

    @property
    def lower_is_better(self) -> Sequence[str]:
        """Names of the scores of the images that improve by falling."""
        return [name for reward in self._evaluation.rewards for name in reward.lower_is_better]

    @property
    def judge_scores(self) -> Sequence[str]:
        """Names of the scores of the images from which the run learns; the total is one if it has one of them in it."""
        rewards = zip(self.settings.eval.reward_names, self._evaluation.rewards, strict=True)
        names = [name for spec, reward in rewards if learns_from(spec, self.settings) for name in reward.meanings]
        weights = self._evaluation.weights
        return [*names, total.NAME] if any(weights.get(name) for name in names) else names

    @property
    def optimizer(self) -> optax.GradientTransformation:
        """The optimizer that the settings describe, for a run that trains once on each of its batches."""
        return make_optimizer(self.settings.optimizer, self.total)

    def init_state(self, key: Key) -> TrainState:
        """Returns the state of a fresh adapter, with a full copy on every device."""
        network = self.pipeline.params[self.pipeline.TRAINED]
        shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), network)
        rank = self.settings.lora.rank
        return make(lambda key: init_state(init_lora(key, shapes, rank), self.optimizer), self.mesh, key)

    def state_shapes(self) -> State:
        """Returns the shapes of the state, which has a full copy on every device."""
        return shapes_of(jax.eval_shape(self.init_state, jax.random.key(0)), replicated(self.mesh))

    def idle_params(self) -> Params:
        """Returns the weights that stay on the devices although no program takes them.

        They are those of the text encoders and of the autoencoder.
        """
        params = self.pipeline.params
        return {name: tree for name, tree in params.items() if name != self.pipeline.TRAINED}

    def begin(self, state: State, resuming: bool) -> Row:
        """Draws and scores the images before training, with the fresh adapter even if the run is resumed.

        Raises:
          UserError: a score is not finite.
        """
        del resuming
        return self._evaluation.start(state.params)

    def evaluate(self, number: int, state: State) -> tuple[Row, Images]:
        """Draws a grid of the first evaluation images, and adds their mean scores to the row."""
        row, grid = self._evaluation.evaluate(number, state.params)
        return row, {"samples": grid}

    def export(self, state: State, folder: Path) -> None:
        """Writes ``lora.safetensors``; only one of the processes does so.

        Raises:
          UserError: the file cannot be written.
        """
        if is_writer():
            metadata = {"base_model": self.settings.model, "method": self.METHOD}
            write_lora(folder / run_files.LORA, self.settings.lora.adapter(to_host(state.params)), metadata=metadata)

    def finish(self, state: State, folder: Path) -> Result:
        """Draws and scores the images after training.

        Raises:
          UserError: a score is not finite.
        """
        summary, pairs = self._evaluation.finish(state.params)
        steps = adapter_steps(self.settings, self.pipeline, self._evaluation.prompts[0], folder / run_files.LORA)
        return Result(summary, pairs, steps=steps)
