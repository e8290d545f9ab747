"""A reward that needs no weights, for tests that name it by its dotted path: how bright images are, on the host."""

from types import SimpleNamespace

import numpy as np


def _embed(images):
    colours = images.mean((1, 2)) + 2  # so that none is zero
    return colours / np.linalg.norm(colours, axis=1, keepdims=True)


def load(source, context):
    """Returns the reward; a source is added to the name of its score."""
    name = f"brightness{source}"
    return SimpleNamespace(
        meanings={name: "mean of the pixels"},
        lower_is_better=(),
        check=lambda prompts, size: None,
        measure=lambda images, prompts: {name: images.mean((1, 2, 3))},
        embed=_embed,
    )
