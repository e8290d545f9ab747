"""HPS v2, the Human Preference Score (arXiv 2306.09341) of the weights that its authors released in 2023.

``hpsv2`` reads ``HPS_v2_compressed.pt`` from the hub, ``xswu/HPSv2``. Everything else is as in
`spo_jax.rewards.hpsv21`: sources, the files beside the weights, the score 100 · cos(image, text), and the variants
``hpsv2@antialias`` (the default), ``hpsv2@no_antialias`` and ``hpsv2@pil``. Papers since 2024 mostly mean HPS v2.1,
whose scale is another.
"""

from spo_jax.rewards.common import hps_files
from spo_jax.rewards.common.protocol import Context, Reward

VARIANTS = hps_files.VARIANTS


def load(source: str, context: Context) -> Reward:
    """Loads the reward.

    Args:
      source: folder, file, hub id or one file of a hub repository; empty for the published weights.
      context: where and how to load it.

    Raises:
      UserError: a file is missing or damaged, or holds the weights of something else.
    """
    from spo_jax.rewards.common.hps import load_hps  # imports jax, which `check` does without

    return load_hps("hpsv2", source, context)


def check(source: str, context: Context) -> None:
    """Refuses weights that are missing or something else, as far as that shows without the network."""
    del context
    hps_files.check_files(source, "hpsv2")
