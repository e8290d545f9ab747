"""Reference checkpoints in torch."""

from tests.support.torch_checkpoints import (  # noqa: F401
    clip,
    golden_models,
    sdxl_unet,
    shape_tree,
    text_encoder,
    text_encoder_2,
    torch_arrays,
    unet,
    vae,
)
