"""Measures what a latent judge, an image judge and both know of late pools: ``python -m benchmarks.two_judges``.

The last `spo.second_steps` pools of rollouts are judged by `spo.reward` and by `spo.second_reward`, and what is
predicted from their candidates is scored by a reward that stands for the truth. The table says, by timestep of the
prediction and for all of them, how often the winner of a pool is truly better than its loser, and how many pools pass
the threshold: by the latent judge alone, by both with `spo.second_weight`, and by the image judge alone. All see the
same pools.

python -m benchmarks.two_judges --config=lpo_toy --config.spo.second_reward=spm:toy_people --config.spo.second_steps=9
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from spo_jax.core.cli import run_command
from spo_jax.core.config_flag import define_config
from spo_jax.core.errors import UserError
from spo_jax.core.typing import Float, Int, Params
from spo_jax.methods import load_method, read_settings
from spo_jax.methods.spo.inspect import open_adapter
from spo_jax.methods.spo.pairs import rank
from spo_jax.methods.spo.programs import SPO, FrozenParams, PromptFeatures
from spo_jax.methods.spo.second import combined
from spo_jax.methods.spo.settings import SPOSettings, SPOTrainSettings
from spo_jax.methods.spo.thresholds import threshold_at
from spo_jax.parallel.mesh import make_mesh
from spo_jax.rewards import load_reward
from spo_jax.rewards.base import Context
from spo_jax.weights.lora import find_lora


class Pools(NamedTuple):
    """Pools that both judges have judged, of k candidates for each of n prompts, at p timesteps.

    Attributes:
      first: scores by the latent judge.
      second: scores by the image judge.
      truth: scores of the predictions by the truth.
      drawn_at: timesteps of the steps that drew them.
      timesteps: timesteps of the predictions; 0 for finished images.
    """

    first: Float[np.ndarray, "p k n"]
    second: Float[np.ndarray, "p k n"]
    truth: Float[np.ndarray, "p k n"]
    drawn_at: Int[np.ndarray, " p"]
    timesteps: Int[np.ndarray, " p"]


class Row(NamedTuple):
    """What a weight of the image judge gives.

    Attributes:
      right: share of pools whose winner is truly better than their loser; equal ones count a half.
      error: its standard error.
      valid: share of pools that pass the threshold.
    """

    right: float
    error: float
    valid: float

    def __str__(self) -> str:
        return f"{self.right:.1%} ± {self.error:.1%} ({self.valid:.0%})"


def draw_pools(settings: SPOTrainSettings, rollouts: int, truth: str, score: str, lora: str = "") -> Pools:
    """Draws rollouts, and scores their last pools by both judges and by the truth."""
    method = load_method("spo")
    mesh = make_mesh(settings.mesh)
    with jax.set_mesh(mesh):
        data = method.read_data(settings)
        run = method.setup(settings, mesh, data)
        judge = load_reward(truth, Context(mesh=mesh, field="--truth"))
        if score not in judge.meanings:
            raise UserError(f"--score={score}: expected one of {', '.join(judge.meanings)}")
        adapter = open_adapter(settings, run.pipeline, find_lora(lora) if lora else None)
        program = jax.jit(lambda *inputs: _judged_twice(run.spo, *inputs))
        found = []
        for number, (rows, inputs) in enumerate(run.prompt_batches(0)):
            if number == rollouts:
                break
            key = jax.random.key(1 + number)
            twice, images = jax.device_get(program(adapter, run.spo.frozen(), inputs, key))
            shape = twice.first.shape  # [p k b]
            prompts = [data.prompts[row] for row in rows] * (shape[0] * shape[1])
            values = judge.measure(images, prompts)[score].reshape(shape)
            found.append((twice.first, twice.second, values))
    steps = run.spo.process.timesteps
    scores = (np.concatenate(parts, axis=2) for parts in zip(*found, strict=True))
    return Pools(*scores, steps[-shape[0] :], np.append(steps, 0)[-shape[0] :])


def _judged_twice(
    spo: SPO, lora: Params, frozen: FrozenParams, inputs: PromptFeatures, key: jax.Array
) -> tuple[Any, jax.Array]:
    """Returns the last pools, and the images that the second judge saw, [p·k·b h w 3]."""
    judged, _ = spo.judged_rollout(lora, frozen, inputs, key)
    latents = judged.twice.seen.latents
    flat = latents.reshape(-1, *latents.shape[3:])
    chunks = flat.reshape(latents.shape[0], -1, *flat.shape[1:])
    images = jax.lax.map(lambda chunk: spo.judge.decoder.apply(frozen.judge["decoder"], chunk), chunks)
    return judged.twice, images.reshape(-1, *images.shape[2:])


def row_of(pools: Pools, weight: float, thresholds: float | Float[np.ndarray, " p"]) -> Row:
    """Compares winners and losers by the weighted sum of both judges with the truth."""
    scores = combined(jnp.asarray(pools.first), jnp.asarray(pools.second), weight)
    verdict = jax.device_get(rank(scores, thresholds))
    win, lose = (np.take_along_axis(pools.truth, index[:, None], 1) for index in (verdict.win, verdict.lose))
    right = (np.sign(win - lose) + 1) / 2
    return Row(float(right.mean()), float(right.std(ddof=1) / np.sqrt(right.size)), float(verdict.valid.mean()))


def table(settings: SPOSettings, pools: Pools) -> list[str]:
    """Returns the lines of the table."""
    thresholds = np.broadcast_to(threshold_at(settings, pools.drawn_at), len(pools.drawn_at)).astype(np.float32)
    weights = (0.0, settings.second_weight, 1.0)
    each = [(f"t = {t}", slice(row, row + 1)) for row, t in enumerate(pools.timesteps)]
    lines = [
        f"| pools predicted from | latent judge | both, w = {settings.second_weight:g} | image judge |",
        "|---|---|---|---|",
    ]
    for name, rows in [*each, ("all", slice(None))]:
        part = Pools(*(x[rows] for x in pools))
        shown = [str(row_of(part, weight, thresholds[rows])) for weight in weights]
        lines.append(f"| {name} | {' | '.join(shown)} |")
    return lines


def run() -> None:
    """Runs the command."""
    config = define_config()
    rollouts = flags.DEFINE_integer("rollouts", 6, "Number of rollouts.", lower_bound=1)
    lora = flags.DEFINE_string("lora", "", "Run or file of the adapter (empty: a fresh one, which is the base model).")
    truth = flags.DEFINE_string("truth", "toy", "Reward that stands for the truth.")
    score = flags.DEFINE_string("score", "aesthetic", "Its score.")

    def main(_: Sequence[str]) -> None:
        settings = read_settings(config.value)
        if not isinstance(settings, SPOTrainSettings) or not settings.spo.second_reward:
            raise UserError("--config: expected one of method 'spo' with spo.second_reward")
        pools = draw_pools(settings, rollouts.value, truth.value, score.value, lora.value)
        p, k, n = pools.first.shape
        print(f"{n} pools of {k} candidates at each of {p} steps: winners truly better (pools above the threshold)")
        print("\n".join(table(settings.spo, pools)))

    run_command(main)


if __name__ == "__main__":
    run()
