"""The threshold by which pairs are kept: one for all timesteps, or a higher one where steps are noisier (LPO).

LPO's threshold rises from the last step to the first, with the noise of the step. Its code has tables of that noise for
DDIM with η = 1 in 20 steps on Stable Diffusion's schedule, at t = 1, 51, … 951, in four decimals, and looks a timestep
up in them whatever the number of steps is. So do we.

Its linear rule counts from t = 1 to t = 951 and is not cut off beyond: at t = 0, where finished images are judged, the
threshold is lower by 1/950 of the way, and in 50 steps, at t = 981, it is higher by 3 % of it. That too is as in LPO's
code, but no threshold is below 0, where ties would be pairs.
"""

import numpy as np

from spo_jax.core.typing import Float, Int
from spo_jax.methods.spo.settings import SPOSettings

SIGMA = np.array(
    [
        0.0206, 0.0406, 0.1673, 0.2144, 0.2509, 0.2836, 0.3144, 0.3442, 0.3732, 0.4016,
        0.4293, 0.4565, 0.4829, 0.5087, 0.5336, 0.5576, 0.5807, 0.6029, 0.6241, 0.6444,
    ]
)  # fmt: skip
VARIANCE = np.array(
    [
        0.0004, 0.0016, 0.0280, 0.0460, 0.0630, 0.0804, 0.0988, 0.1185, 0.1393, 0.1613,
        0.1843, 0.2084, 0.2332, 0.2588, 0.2847, 0.3109, 0.3372, 0.3635, 0.3895, 0.4153,
    ]
)  # fmt: skip
SPAN = 50  # timesteps for which an entry of the table stands


def threshold_at(settings: SPOSettings, timesteps: Int[np.ndarray, " s"]) -> float | Float[np.ndarray, " s"]:
    """Returns the threshold at timesteps; a number if it is the same for all.

    Args:
      settings: settings of SPO.
      timesteps: timesteps of judgements, all below 1000.
    """
    if settings.threshold_rule == "constant":
        return settings.threshold
    low, high = settings.threshold, settings.threshold_high
    rising = low + (high - low) * _share(settings.threshold_rule, np.asarray(timesteps))
    return np.maximum(rising, 0).astype(np.float32)


def _share(rule: str, timesteps: Int[np.ndarray, " s"]) -> Float[np.ndarray, " s"]:
    """Returns how far timesteps are on the way from the last of 20 steps, 0, to the first, 1."""
    if rule == "linear":
        return (timesteps - 1) / (SPAN * (len(SIGMA) - 1))
    table = SIGMA if rule == "sigma" else VARIANCE
    return (table[timesteps // SPAN] - table[0]) / (table[-1] - table[0])
