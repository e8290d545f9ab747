"""LAION's aesthetic score (version 2): how much people like an image, without its prompt; about 5 to 7.

The features of OpenAI's CLIP ViT-L/14, scaled to length 1, go through five linear layers without activations. These are
one affine map, into which they are folded in float64 when they are read.

``aesthetic`` reads the head from ``trl-lib/ddpo-aesthetic-predictor`` and the CLIP from
``openai/clip-vit-large-patch14``. ``aesthetic:SOURCE`` reads the head, which was published as
``sac+logos+ava1-l14-linearMSE.pth``, from a file, here or in a hub repository, or from the folder in which it lies. If
there is a folder ``clip`` beside it, that is the CLIP.

Images are prepared by transformers' processor, as in the evaluations of DDPO and LPO. ``aesthetic@openai`` crops as the
original does, with OpenAI's code: the offset rounds half to even instead of down. For square images the two are the
same; for others the crops can differ by one pixel.
"""

from spo_jax.rewards.common.aesthetic_files import CLIP, find_files
from spo_jax.rewards.common.clip_files import check_clip
from spo_jax.rewards.common.preference_files import local_model
from spo_jax.rewards.common.protocol import Context, Reward
from spo_jax.weights.kinds import AESTHETIC_HEAD, check_file_is

VARIANTS = {"openai": "cropped as OpenAI's code does, in the original; transformers' processor rounds down instead"}


def load(source: str, context: Context) -> Reward:
    """Loads head and CLIP.

    Args:
      source: where they are read from; empty for the published ones.
      context: where and how to load them.

    Raises:
      UserError: they cannot be read, are something else, or do not fit.
    """
    # These import jax, which `check` does without.
    from spo_jax.rewards.common.aesthetic_reward import load_aesthetic
    from spo_jax.rewards.common.clip_pixels import openai_pixels, transformers_pixels

    meaning = "LAION's aesthetic score of the image without its prompt, about 5 to 7"
    if context.variant:
        return load_aesthetic(source, context, "laion_aesthetic_openai", f"{meaning}; OpenAI's crop", openai_pixels)
    return load_aesthetic(source, context, "laion_aesthetic", meaning, transformers_pixels)


def check(source: str, context: Context) -> None:
    """Refuses files that are missing or something else, as far as that shows without the network."""
    del context
    head, clip = find_files(source)
    path = local_model(head)
    if path is not None:
        check_file_is(AESTHETIC_HEAD, path)
    check_clip(clip, CLIP)
