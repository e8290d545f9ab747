"""Reference networks and checkpoints in torch for the tests of the model families."""

from tests.torch_checkpoints import (  # noqa: F401
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
from tests.torch_networks import reference, unets  # noqa: F401
