"""AutoencoderTiny (TAESD) against diffusers': 1e-4 of the largest value, float32 on both sides."""

import diffusers
import jax
import pytest
import torch

from spo_jax.models.stable_diffusion.pipeline import vae_shapes
from spo_jax.nn.tiny_vae import AutoencoderTiny, TinyVAEConfig

TOLERANCE = 1e-4


@pytest.fixture(scope="module")
def vae(reference):
    """(theirs, ours, our parameters); three levels, with other numbers of blocks in the encoder and the decoder."""
    torch.manual_seed(0)
    theirs = diffusers.AutoencoderTiny(
        encoder_block_out_channels=(8,) * 3,
        decoder_block_out_channels=(6,) * 3,
        num_encoder_blocks=(1, 2, 1),
        num_decoder_blocks=(2, 1, 1),
        latent_channels=5,
    )
    theirs = reference.randomised(theirs)
    ours = AutoencoderTiny(TinyVAEConfig.from_dict(dict(theirs.config)))
    return theirs, ours, jax.device_put(reference.tree(theirs, vae_shapes(ours)))


def test_encode_is_diffusers(vae, reference):
    theirs, ours, params = vae
    images = reference.normal(0, 2, 10, 7, 3)
    latents = reference.jit(lambda params, x: ours.apply({"params": params}, x, method="encode"))(params, images)
    assert latents.shape == (2, 3, 2, 5)
    expected = theirs.encode(reference.nchw(images)).latents
    assert reference.relative_error(latents, reference.nhwc(expected)) < TOLERANCE


def test_decode_is_diffusers(vae, reference):
    """Latents far out too: TAESD squashes them at 3."""
    theirs, ours, params = vae
    latents = 4 * reference.normal(1, 2, 3, 2, 5)
    images = reference.jit(lambda params, x: ours.apply({"params": params}, x, method="decode"))(params, latents)
    assert images.shape == (2, 12, 8, 3)
    expected = theirs.decode(reference.nchw(latents)).sample
    assert reference.relative_error(images, reference.nhwc(expected)) < TOLERANCE
