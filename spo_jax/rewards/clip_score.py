"""CLIPScore: how well an image fits its prompt, by OpenAI's CLIP ViT-L/14. Several definitions go by this name.

| spec | score | prompt and image |
|---|---|---|
| ``clip_score`` | exp(logit_scale) · cos / 100 | transformers' tokenizer and processor; Flow-GRPO, DiffusionNFT |
| ``clip_score@logits`` | exp(logit_scale) · cos | the same; torchmetrics and most tables, about 25 to 35 |
| ``clip_score@cosine`` | cos | OpenAI's tokenizer and transform; ImageReward's CLIPScore |
| ``clip_score@hessel`` | 2.5 · max(cos, 0) | the same, with "A photo depicts " before the prompt |
| ``clip_score@hessel_no_prefix`` | 2.5 · max(cos, 0) | the same without it |

The scale of OpenAI's CLIPs is 100, so that the first one is nearly the cosine too. Hessel et al. (arXiv 2104.08718)
publish the prefix in their code, and read ViT-B/32: ``clip_score@hessel:openai/clip-vit-base-patch32``.

OpenAI's tokenizer repairs text, resolves HTML entities and lowers it before it is cut into tokens; transformers' only
lowers it. OpenAI's transform rounds the offset of the crop half to even, transformers' processor rounds it down. Plain
English and square images make no difference.

``clip_score`` reads ``openai/clip-vit-large-patch14``, and ``clip_score:SOURCE`` any CLIPModel of transformers: a
folder, a weights file, a hub id, or one file of a hub repository. The tokenizer lies in the folder, in its
``tokenizer/`` or ``processor/``, or is the published one.
"""

from spo_jax.nn.clip_config import CLIP_L
from spo_jax.rewards.common.clip_files import PublishedCLIP, check_clip
from spo_jax.rewards.common.protocol import Context, Reward

PUBLISHED = PublishedCLIP("openai/clip-vit-large-patch14", "openai/clip-vit-large-patch14", CLIP_L)
PREFIX = "A photo depicts "  # of Hessel et al.
VARIANTS = {
    "logits": "exp(logit_scale) · cos(image, prompt), about 25 to 35",
    "cosine": "cos(image, prompt) by OpenAI's tokenizer and transform",
    "hessel": "2.5 · max(cos(image, prompt), 0) by OpenAI's tokenizer and transform, after 'A photo depicts'",
    "hessel_no_prefix": "2.5 · max(cos(image, prompt), 0) by OpenAI's tokenizer and transform",
}


def load(source: str, context: Context) -> Reward:
    """Loads the model.

    Args:
      source: where it is read from; empty for the published one.
      context: where and how to load it, and the definition as its variant.

    Raises:
      UserError: it cannot be read, or is another model.
    """
    # These import jax, which `check` does without.
    from spo_jax.rewards.common.clip_pixels import openai_pixels, transformers_pixels
    from spo_jax.rewards.common.clip_reward import CLIPReward, bare_cosine, load_clip, scaled_cosine

    variant = context.variant
    formula = {
        "": lambda cosine, scale: scale * cosine / 100,
        "logits": scaled_cosine,
        "cosine": bare_cosine,
        "hessel": lambda cosine, scale: 2.5 * cosine.clip(min=0),
        "hessel_no_prefix": lambda cosine, scale: 2.5 * cosine.clip(min=0),
    }[variant]
    of_transformers = variant in ("", "logits")
    model = load_clip(source, context, PUBLISHED, "hf_fast" if of_transformers else "openai")
    return CLIPReward(
        f"clip_score_{variant}" if variant else "clip_score",
        f"CLIPScore: {VARIANTS.get(variant, 'exp(logit_scale) · cos(image, prompt) / 100, about 0.25 to 0.35')}",
        clip=model.clip,
        params=model.params,
        tokenizer=model.tokenizer,
        pixels=transformers_pixels if of_transformers else openai_pixels,
        formula=formula,
        prefix=PREFIX if variant == "hessel" else "",
    )


def check(source: str, context: Context) -> None:
    """Refuses a model that is missing or something else, as far as that shows without the network."""
    del context
    check_clip(source, PUBLISHED)
