"""A reward on the host, ``tests.methods.redness_on_host``: how red an image is, and how dark."""

ON_HOST = True


class Redness:
    """Red minus the mean of green and blue, and a second score."""

    meanings = {"darkness": "minus the mean, -1 to 1", "redness": "red minus the mean of green and blue, -2 to 2"}
    lower_is_better = ("darkness",)

    def check(self, prompts, size):
        """Accepts all."""

    def measure(self, images, prompts):
        """Scores images."""
        redness = (images[..., 0] - (images[..., 1] + images[..., 2]) / 2).mean((1, 2))
        return {"darkness": -images.mean((1, 2, 3)), "redness": redness}


def load(source, context):
    """Loads the reward, which has no weights."""
    del source, context
    return Redness()
