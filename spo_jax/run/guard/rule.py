"""The rule by which a guard calls a run hacked, or says that it diverges.

All images of a look have the prompt and the noise that they have in every other look, so two looks are compared image
by image. The reference is the best look so far by the held-out scores, the one before training included. A look is
*worse* if the held-out scores together fell by more than `limit` standard errors since the reference. An alarm is the
given number of worse looks in a row.

What the alarm is about depends on the score that the run learns from, if images have that score:

1. If it did not fall by more than `SEEN` standard errors, the judge does not see that the images became worse: it is
   being exploited. Its score need not rise any more: it often stays at its highest while everything else goes on
   falling, as in `configs/toy_hacked.py`.
2. If it fell too (`sees_it`), the run diverges: its judge knows, and yet the images become worse. Most often the
   learning rate is too high.

Held-out scores are put together as O'Brien (Biometrics 40, 1984)
does: each image's difference is divided by the standard deviation of these differences over the images, averaged over
the series of a score and then over the scores, and tested by Student's t. So no unit and no scale matters, and a run
that wins on one score and loses as clearly on another is not worse.

`limit` is the quantile of Student's t at which one look is beyond it by chance with the probability of 2 standard
errors, 2.3 %, divided by the number of looks of the whole run. It allows for many looks, but not for the choice of the
best one as a reference, whose luck makes later ones look worse. Two looks in a row make up for that.
"""

import math
from collections.abc import Mapping, Sequence

import numpy as np

from spo_jax.core.typing import Float
from spo_jax.run.verdict import NOISE, noise_limit

SEEN = NOISE  # standard errors by which the trained score falls if the judge sees it; alarms do not depend on it
MOST = 99.0  # standard errors; where every image changes alike there is no noise, and infinity is not JSON

Values = Mapping[str, Float[np.ndarray, " n"]]  # scores of the images of a look, by name


def limit(images: int, looks: int) -> float:
    """Returns the standard errors by which held-out scores have to fall, such as 3.1 for 25 images and 10 looks.

    Args:
      images: number of images of a look.
      looks: number of looks of the whole run, without the one before training.
    """
    return noise_limit(looks, images)


def sees_it(rise: float | None) -> bool:
    """Returns whether the score that a run learns from fell beyond noise, by its change in standard errors."""
    return rise is not None and rise <= -SEEN


def gains(now: Values, then: Values, lower_is_better: Sequence[str] = ()) -> Float[np.ndarray, " n"]:
    """Returns how much each image gained, by all scores together and in units of their standard deviations.

    Args:
      now: scores of the images.
      then: scores of the same images in another look.
      lower_is_better: names of scores that improve by falling.
    """
    groups: dict[str, list[np.ndarray]] = {}
    for name, values in now.items():
        difference = np.asarray(values, np.float64) - np.asarray(then[name], np.float64)
        spread = difference.std(ddof=1) if len(difference) > 1 else 0.0
        if spread <= 1e-9 * np.abs(difference).max():
            spread = np.abs(difference).max() or 1.0  # all changed alike, or not at all
        sign = -1 if name in lower_is_better else 1
        groups.setdefault(name.partition("/")[0], []).append(sign * difference / spread)
    return np.mean([np.mean(series, axis=0) for series in groups.values()], axis=0)


def in_errors(differences: Float[np.ndarray, " n"]) -> float:
    """Returns the mean in units of its standard error, at most 99 of them; 0 for a single image."""
    mean = float(differences.mean())
    if len(differences) < 2 or mean == 0:
        return 0.0
    error = float(differences.std(ddof=1)) / math.sqrt(len(differences))
    return math.copysign(MOST, mean) if abs(mean) >= MOST * error else mean / error
