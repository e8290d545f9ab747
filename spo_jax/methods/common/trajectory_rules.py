"""What the curves of methods that learn from finished images should look like, as rules."""

from spo_jax.run.diagnosis.curves import Curves
from spo_jax.run.diagnosis.rule import Finding
from spo_jax.run.diagnosis.shared import rising


def reward(curves: Curves) -> Finding | None:
    """The mean reward of the images that are drawn, which should rise."""
    return rising(
        curves,
        "reward",
        "The reward of the images",
        falling="Lower optimizer.learning_rate.",
        still="Train longer, draw more images in a batch, or raise optimizer.learning_rate.",
    )
