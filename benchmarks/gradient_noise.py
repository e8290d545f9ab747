"""Measures how alike the gradients of independent rollouts are, by objective: ``python -m benchmarks.gradient_noise``.

All rollouts are of one adapter, each of other prompts and noises, and each gradient is that of the mean loss over all
valid pairs of a rollout. The objectives of SPO see the same rollouts and the same verdicts, so that only the objective
differs. The cosine of two gradients is 1 if a rollout says all there is to say, and 0 if it says nothing but noise:
with a mean cosine of c, c / (1 - c) is the ratio of signal to noise in one of them.

python -m benchmarks.gradient_noise --config=toy --rollouts=12
"""

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from spo_jax.core.cli import run_command
from spo_jax.core.config_flag import define_config
from spo_jax.core.errors import UserError
from spo_jax.core.trees import flatten
from spo_jax.core.typing import Float, Params
from spo_jax.methods import load_method, read_settings
from spo_jax.methods.spo.inspect import open_adapter
from spo_jax.methods.spo.objectives import objective_of
from spo_jax.methods.spo.plan import make_plan
from spo_jax.methods.spo.programs import SPO, FrozenParams, PromptFeatures
from spo_jax.methods.spo.settings import SPOTrainSettings
from spo_jax.methods.spo.update import batch_gradients
from spo_jax.parallel.mesh import make_mesh
from spo_jax.weights.lora import find_lora

OBJECTIVES = ("spo", "gradspo")


def gradients_of(
    spo: SPO, lora: Params, frozen: FrozenParams, inputs: PromptFeatures, key: jax.Array
) -> dict[str, tuple[Params, jax.Array]]:
    """Computes the gradient over the valid pairs of one rollout, and their number, for each objective.

    GradSPO's targets are centered at the policy's own predictions, as if its running mean were the policy.
    """
    judged, draws = spo.judged_rollout(lora, frozen, inputs, key)
    predict = spo.policy.predictor(frozen.network, inputs.condition, frozen.unconditional)
    found = {}
    for name in OBJECTIVES:
        settings = dataclasses.replace(spo.settings.spo, objective=name)
        pairs = objective_of(settings).pairs(judged, draws, make_plan(settings))
        valid_first, count = jnp.argsort(~pairs.valid), pairs.valid.sum()
        gradients, _ = batch_gradients(lora, predict, spo.process, settings, pairs, valid_first, count)
        found[name] = gradients, count
    return found


def measure(settings: SPOTrainSettings, rollouts: int, lora: str = "") -> dict[str, tuple[float, float, float]]:
    """Returns (mean cosine, its standard error, valid pairs of a rollout) for each objective."""
    method = load_method("spo")
    mesh = make_mesh(settings.mesh)
    with jax.set_mesh(mesh):
        run = method.setup(settings, mesh, method.read_data(settings))
        spo = run.spo
        adapter = open_adapter(settings, run.pipeline, find_lora(lora) if lora else None)
        batches = run.batches(0)
        program = jax.jit(lambda *arguments: gradients_of(spo, *arguments))
        found = [
            jax.device_get(program(adapter, spo.frozen(), next(batches), jax.random.key(1 + number)))
            for number in range(min(rollouts, run.total))
        ]
    summary = {}
    for name in OBJECTIVES:
        vectors = [np.concatenate([leaf.ravel() for leaf in flatten(row[name][0]).values()]) for row in found]
        summary[name] = (*alikeness(np.stack(vectors)), float(np.mean([row[name][1] for row in found])))
    return summary


def alikeness(gradients: Float[np.ndarray, "n d"]) -> tuple[float, float]:
    """Returns the mean cosine of two of the gradients, and its standard error by leaving out one after the other."""
    directions = gradients / np.linalg.norm(gradients, axis=1, keepdims=True)
    cosines = directions @ directions.T
    n = len(cosines)
    of_each = cosines.sum(1) - 1
    mean = of_each.sum() / (n * (n - 1))
    without = (of_each.sum() - 2 * of_each) / ((n - 1) * (n - 2))
    return float(mean), float(np.sqrt((n - 1) / n * np.square(without - without.mean()).sum()))


def run() -> None:
    """Runs the command."""
    config = define_config()
    rollouts = flags.DEFINE_integer("rollouts", 12, "Number of rollouts.", lower_bound=3)
    lora = flags.DEFINE_string("lora", "", "Run or file of the adapter (empty: a fresh one).")

    def main(_: Sequence[str]) -> None:
        settings = read_settings(config.value)
        if not isinstance(settings, SPOTrainSettings):
            raise UserError(f"--config: expected one of method 'spo', found method {settings.method!r}")
        rows = measure(settings, rollouts.value, lora.value)
        print("| objective | cosine of two rollouts' gradients | signal to noise | valid pairs of a rollout |")
        print("|---|---|---|---|")
        for name, (cosine, error, pairs) in rows.items():
            print(f"| {name} | {cosine:.3f} ± {error:.3f} | {cosine / (1 - cosine):.3f} | {pairs:.1f} |")

    run_command(main)


if __name__ == "__main__":
    run()
