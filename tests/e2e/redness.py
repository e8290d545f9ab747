"""A reward on the devices, ``tests.e2e.redness``: how red an image is."""

from spo_jax.rewards.base import DeviceReward


class Redness(DeviceReward):
    """Red minus the mean of green and blue."""

    meanings = {"redness": "red minus the mean of green and blue, -2 to 2"}

    def score(self, params, x, features, t):
        """Scores images."""
        return (x[..., 0] - (x[..., 1] + x[..., 2]) / 2).mean((1, 2))


def load(source, context):
    """Loads the reward, which has no weights."""
    del source, context
    return Redness()
