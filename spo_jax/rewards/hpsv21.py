"""HPS v2.1, the Human Preference Score (arXiv 2306.09341) of the weights that its authors released in 2024.

``hpsv21`` reads ``HPS_v2.1_compressed.pt`` from the hub, ``xswu/HPSv2``; ``hpsv21:SOURCE`` reads a folder, a file, a
hub id, or one file of a hub repository. Beside the weights may lie the model config of open_clip (``ViT-H-14.json``;
without it, that is the network) and the tokenizer (``bpe_simple_vocab_16e6.txt.gz`` or the files of transformers;
without it, that of ``laion/CLIP-ViT-H-14-laion2B-s32B-b79K``). HPS v2 is the reward ``hpsv2``: a network of the same
shape, so that weights of one are not recognised as those of the other unless their file has its published name.

The score is 100 · cos(image, text), as in the tables of the benchmark and of papers; the original's function ``score``
gives the cosine. The original computes in half precision on GPUs.

Which resize the original applies depends on the torchvision that is installed, because it resizes tensors and leaves
antialiasing at torchvision's default. So there are three variants, which are scores of their own:

| variant | as the original with | pixels |
|---|---|---|
| ``hpsv21@antialias``, the default | torchvision 0.17 or newer | bicubic, a = -0.5, antialiased, not clipped |
| ``hpsv21@no_antialias`` | torchvision up to 0.16 | bicubic, a = -0.75, four taps, not clipped |
| ``hpsv21@pil`` | the transform moved in front of ``ToTensor`` | Pillow's bicubic, antialiased, in bytes |

``antialias`` is the default because it is what the unchanged original computes with every torchvision since January
2024, LPO's evaluation (0.17.0) among them. Older numbers may be those of ``no_antialias``: compare figures of one
variant only. ``python -m benchmarks.resize_modes`` measures how far the variants differ.
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

    return load_hps("hpsv21", source, context)


def check(source: str, context: Context) -> None:
    """Refuses weights that are missing or something else, as far as that shows without the network."""
    del context
    hps_files.check_files(source, "hpsv21")
