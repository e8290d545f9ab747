"""PickScore, the preference model of Pick-a-Pic (arXiv 2305.01569): exp(logit_scale) · cos(image, text) of a CLIP.

It is CLIP ViT-H/14, fine-tuned on the choices of people between two images of a prompt. Scores of people's images and
of good models are about 20 to 23; the difference of two scores is the logit of the probability that the first one is
preferred. Papers that divide by 26 or 100 mean the same score.

``pickscore`` reads ``yuvalkirstain/PickScore_v1``, and ``pickscore:SOURCE`` any CLIPModel of transformers: a folder, a
weights file, a hub id, or one file of a hub repository. The tokenizer lies in the folder, in its ``tokenizer/`` or
``processor/``, or is that of ``laion/CLIP-ViT-H-14-laion2B-s32B-b79K``, as in the original. So is the processor: the
shorter side to 224 with Pillow's bicubic, and a centre crop whose offset rounds down.
"""

from spo_jax.nn.clip_config import CLIP_H
from spo_jax.rewards.common.clip_files import PublishedCLIP, check_clip
from spo_jax.rewards.common.protocol import Context, Reward

PUBLISHED = PublishedCLIP("yuvalkirstain/PickScore_v1", "laion/CLIP-ViT-H-14-laion2B-s32B-b79K", CLIP_H)


def load(source: str, context: Context) -> Reward:
    """Loads the model.

    Args:
      source: where it is read from; empty for the published one.
      context: where and how to load it.

    Raises:
      UserError: it cannot be read, or is another model.
    """
    # These import jax, which `check` does without.
    from spo_jax.rewards.common.clip_pixels import transformers_pixels
    from spo_jax.rewards.common.clip_reward import CLIPReward, load_clip, scaled_cosine

    model = load_clip(source, context, PUBLISHED)
    return CLIPReward(
        "pickscore",
        "PickScore: how likely people prefer the image for its prompt, about 20 to 23",
        clip=model.clip,
        params=model.params,
        tokenizer=model.tokenizer,
        pixels=transformers_pixels,
        formula=scaled_cosine,
    )


def check(source: str, context: Context) -> None:
    """Refuses a model that is missing or something else, as far as that shows without the network."""
    del context
    check_clip(source, PUBLISHED)
