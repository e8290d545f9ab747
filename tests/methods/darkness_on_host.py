"""A reward on the host, ``tests.methods.darkness_on_host``: how dark an image is."""

ON_HOST = True


class Darkness:
    """Minus the mean of an image."""

    meanings = {"darkness": "minus the mean, -1 to 1"}
    lower_is_better = ()

    def check(self, prompts, size):
        """Accepts all."""

    def measure(self, images, prompts):
        """Scores images."""
        return {"darkness": -images.mean((1, 2, 3))}


def load(source, context):
    """Loads the reward, which has no weights."""
    del source, context
    return Darkness()
