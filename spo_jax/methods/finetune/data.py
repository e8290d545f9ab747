"""The data of plain fine-tuning: images with captions, and prompts of the images before and after."""

from typing import NamedTuple

from spo_jax.data.captioned_images import CaptionedImages, open_captioned_images
from spo_jax.data.prompts import load_prompts
from spo_jax.methods.finetune.settings import FinetuneSettings


class ImageData(NamedTuple):
    """The data of a run.

    Attributes:
      images: images to train on, with their captions.
      eval_prompts: prompts of the images before and after training.
    """

    images: CaptionedImages
    eval_prompts: list[str]

    @property
    def digests(self) -> list[str]:
        """The digest of the images."""
        return [self.images.digest]

    @property
    def parts(self) -> dict[str, list[str]]:
        """What every process has to read alike, by the field that names it."""
        return {"images": self.digests, "eval.prompts": self.eval_prompts}


def read_data(settings: FinetuneSettings) -> ImageData:
    """Lists the images and reads the prompts.

    Raises:
      UserError: there are no images, a caption is missing, or a file cannot be read.
    """
    return ImageData(open_captioned_images(settings.images), load_prompts(settings.eval.prompts))
