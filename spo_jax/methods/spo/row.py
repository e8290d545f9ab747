"""The row of a batch: what its programs measured, by the names of the curves."""

from collections.abc import Iterator
from typing import NamedTuple

import jax
import numpy as np

from spo_jax.core.typing import Array, Float, Int
from spo_jax.diffusion.process import Process
from spo_jax.methods.spo.plan import judged_timesteps, recorded_timesteps
from spo_jax.methods.spo.settings import ResamplerSettings
from spo_jax.methods.spo.update import TIMESTEP_METRICS, UPDATE_METRICS

# Curves by timestep have at most this number of lines.
MOST_TIMESTEPS = 20


class MetricTimesteps(NamedTuple):
    """Timesteps of the metrics that are vectors.

    Attributes:
      judged: timesteps of the judgements.
      recorded: timesteps of the recorded transitions, which are trained on.
    """

    judged: Int[np.ndarray, " s"]
    recorded: Int[np.ndarray, " r"]

    @classmethod
    def of(cls, settings: ResamplerSettings, process: Process) -> "MetricTimesteps":
        """Returns those of a rollout."""
        return cls(judged_timesteps(settings, process.timesteps), recorded_timesteps(settings, process.timesteps))


def flat_row(metrics: dict[str, Array], timesteps: MetricTimesteps) -> dict[str, int | float]:
    """Makes the row of a batch: scalars stay as they are, vectors become one entry per timestep that has a value."""
    values = jax.device_get(metrics)
    if not values["valid_pairs"]:  # without training there is no loss, and zeros in the curve would look like one
        values = {name: value for name, value in values.items() if name not in UPDATE_METRICS}
    row = {}
    for name, value in values.items():
        if value.ndim == 0:
            row[name] = value.item()
        elif name in TIMESTEP_METRICS:
            # A timestep at which no pair was valid has no ratio.
            row |= {f"{name}/t{t:04d}": v.item() for t, v in _some(timesteps.recorded, value) if not np.isnan(v)}
        else:
            row |= {f"{name}/t{t:04d}": v.item() for t, v in _some(timesteps.judged, value)}
    return row


def _some(timesteps: Int[np.ndarray, " r"], values: Float[np.ndarray, " r"]) -> Iterator[tuple[np.int32, np.float32]]:
    """Pairs timesteps with their values: all, or `MOST_TIMESTEPS` that are evenly spread from the first to the last."""
    chosen = np.linspace(0, len(timesteps) - 1, min(len(timesteps), MOST_TIMESTEPS)).round().astype(int)
    return zip(timesteps[chosen], values[chosen], strict=True)
