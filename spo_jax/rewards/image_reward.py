"""ImageReward: BLIP, whose text encoder looks at the image in every layer, with a head on its first token.

``image_reward`` reads the published weights from the hub, ``THUDM/ImageReward``; ``image_reward:SOURCE`` reads a
folder, a file, a hub id, or one file of a hub repository (``owner/name/ImageReward.pt``). Beside the weights may lie
``med_config.json`` (sizes of the text encoder), ``vit_config.json`` (sizes of the vision transformer, which the
original has built in) and the tokenizer, in a folder ``bert-base-uncased``, in ``tokenizer`` or among the weights;
without these the published sizes are meant, and the tokenizer is that of bert-base-uncased on the hub.

The score is (head - 0.16717362830052426) / 1.0333394966054072: 0 is the mean of the authors' test images, 1 their
standard deviation. The preprocessing is that of OpenAI's CLIP (Pillow's bicubic resize of the shorter side to 224, bit
for bit, and a centre crop); a prompt has at most 35 tokens of BERT, and what is longer is cut off, as in the original.
"""

from spo_jax.rewards.common.image_reward_files import check_files
from spo_jax.rewards.common.protocol import Context, Reward


def load(source: str, context: Context) -> Reward:
    """Loads the reward.

    Args:
      source: folder, file, hub id or one file of a hub repository; if empty, the published weights.
      context: where and how to load it.

    Raises:
      UserError: the weights or their tokenizer are missing or something else.
    """
    from spo_jax.rewards.common.image_reward import abstract_image_reward, load_image_reward  # import jax

    if context.abstract:
        return abstract_image_reward(source, context)
    return load_image_reward(source, context)


def check(source: str, context: Context) -> None:
    """Refuses weights that are missing or something else, as far as that shows without the network."""
    del context
    check_files(source)
