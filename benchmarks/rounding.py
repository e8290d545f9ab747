"""Measures how far the likelihood ratio of a fresh LoRA, which is 1, is from 1: ``python -m benchmarks.rounding``.

The pairs of one rollout of SPO are trained on, one timestep at a time, by the run's own program ``update``, and by the
same program if XLA may leave out roundings to 16 bits (see `spo_jax.methods.spo.programs`). A change of the prediction
by 1 moves the mean of a step by ``weight`` standard deviations, so rounding is visible where that is large.

python -m benchmarks.rounding --config=toy --config.prompts_per_batch=4 --config.spo.train_batch_size=10
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from spo_jax.core.cli import run_command
from spo_jax.core.config_flag import define_config
from spo_jax.core.errors import UserError
from spo_jax.core.typing import Float, Int
from spo_jax.diffusion.process import Process
from spo_jax.methods import load_method, read_settings
from spo_jax.methods.spo.plan import recorded_timesteps
from spo_jax.methods.spo.settings import SPOTrainSettings
from spo_jax.methods.spo.update import FIRST_ERROR
from spo_jax.parallel.mesh import make_mesh


def weights(process: Process, t: Int[np.ndarray, " r"], eta: float) -> Float[np.ndarray, " r"]:
    """Computes by how many standard deviations the mean of a step moves if the prediction changes by 1."""

    def mean(prediction: float) -> tuple[jax.Array, jax.Array]:
        x = jnp.zeros((len(t), 1, 1, 1))
        steps = jnp.asarray(t)
        return process.step(*process.split(x, jnp.full_like(x, prediction), steps), steps, eta)

    (high, std), (low, _) = mean(1.0), mean(0.0)
    return np.abs((high - low) / std).reshape(-1)


def measure(settings: SPOTrainSettings) -> list[tuple[int, float, float, float]]:
    """Measures one rollout; returns (timestep, weight, error of the run's program, error with excess precision)."""
    method = load_method(settings.method)
    mesh = make_mesh(settings.mesh)
    with jax.set_mesh(mesh):
        run = method.setup(settings, mesh, method.read_data(settings))
        state = run.init_state(jax.random.key(0))
        traced = run.trace(state)
        collect = traced["collect"].lower().compile()
        lowered = traced["update"].lower()
        programs = [lowered.compile(), lowered.compile({"xla_allow_excess_precision": True})]
        inputs = next(run.batches(0))
        pairs, _ = collect(state.params, run.spo.frozen(), inputs, jax.random.key(1))
        timesteps = recorded_timesteps(settings.spo, run.spo.process.timesteps)

        def error(update: jax.stages.Compiled, t: int) -> float:
            fresh = run.init_state(jax.random.key(0))  # a program takes the state for itself
            at_t = pairs._replace(valid=pairs.t == t)
            _, metrics = update(fresh, run.spo.frozen(), inputs, at_t, jax.random.key(2))
            return float(metrics[FIRST_ERROR])

        errors = [[error(update, int(t)) for update in programs] for t in timesteps]
        found = weights(run.spo.process, timesteps, settings.spo.eta)
    return [(int(t), float(w), *both) for t, w, both in zip(timesteps, found, errors, strict=True)]


def run() -> None:
    """Runs the command."""
    config = define_config()

    def main(_: Sequence[str]) -> None:
        settings = read_settings(config.value)
        if not isinstance(settings, SPOTrainSettings):
            raise UserError(f"--config: expected one of method 'spo', found method {settings.method!r}")
        rows = measure(settings)
        print(f"| t | weight | {settings.dtype} | with excess precision |\n|---|---|---|---|")
        for t, weight, ours, without in rows:
            print(f"| {t} | {weight:.2f} | {ours:.4f} | {without:.4f} |")

    run_command(main)


if __name__ == "__main__":
    run()
