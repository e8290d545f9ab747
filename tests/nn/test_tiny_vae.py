"""AutoencoderTiny (TAESD) against diffusers', to 1e-4 of the largest value in float32, and its config."""

import diffusers
import jax
import pytest
import torch

from spo_jax.nn.shapes import vae_shapes
from spo_jax.nn.tiny_vae import TAESD, AutoencoderTiny, TinyVAEConfig
from tests.nn.config_checks import (
    check_defaults,
    check_fixed_fields_are_tried,
    check_unknown_field_is_refused,
    check_value_is_refused,
    diffusers_defaults,
)

TOLERANCE = 1e-4
UNSUPPORTED = [
    # Values of fields that are fixed.
    ("act_fn", "silu"),
    ("upsample_fn", "bilinear"),
    ("upsampling_scaling_factor", 4),
    ("shift_factor", 0.5),
    # Values that the network does not allow.
    ("encoder_block_out_channels", [64, 64, 64]),
    ("decoder_block_out_channels", [64, 64, 64, 32]),
    ("decoder_block_out_channels", [10**9] * 4),
    ("num_decoder_blocks", [3, 3, 3, 0]),
]


@pytest.fixture(scope="module")
def vae(reference):
    """(theirs, ours, our parameters) with three levels and different numbers of blocks in encoder and decoder."""
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


def test_encode_matches_diffusers(vae, reference):
    theirs, ours, params = vae
    images = reference.normal(0, 2, 10, 7, 3)
    latents = reference.jit(lambda params, x: ours.apply({"params": params}, x, method="encode"))(params, images)
    assert latents.shape == (2, 3, 2, 5)
    expected = theirs.encode(reference.nchw(images)).latents
    assert reference.relative_error(latents, reference.nhwc(expected)) < TOLERANCE


def test_decode_matches_diffusers(vae, reference):
    """This includes large latents, which TAESD squashes at 3."""
    theirs, ours, params = vae
    latents = 4 * reference.normal(1, 2, 3, 2, 5)
    images = reference.jit(lambda params, x: ours.apply({"params": params}, x, method="decode"))(params, latents)
    assert images.shape == (2, 12, 8, 3)
    expected = theirs.decode(reference.nchw(latents)).sample
    assert reference.relative_error(images, reference.nhwc(expected)) < TOLERANCE


@pytest.mark.parametrize(("field", "value"), UNSUPPORTED)
def test_unsupported_values_raise(field, value):
    check_value_is_refused(TinyVAEConfig, TAESD, field, value)


def test_every_fixed_field_is_tried():
    check_fixed_fields_are_tried(TinyVAEConfig, [field for field, _ in UNSUPPORTED])


def test_unknown_fields_raise():
    check_unknown_field_is_refused(TinyVAEConfig, TAESD)


def test_missing_fields_have_the_defaults_of_diffusers():
    check_defaults(TinyVAEConfig, diffusers_defaults(diffusers.AutoencoderTiny))
