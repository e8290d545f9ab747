"""AutoencoderKL against diffusers', to 1e-4 of the largest value in float32, and its config."""

import dataclasses

import diffusers
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution

from spo_jax.models.stable_diffusion import presets
from spo_jax.nn import attention, convolution, layers
from spo_jax.nn.shapes import vae_shapes
from spo_jax.nn.vae import AutoencoderKL, VAEConfig, sample_posterior
from spo_jax.parallel.mesh import MeshSettings, make_mesh, over_batch
from spo_jax.parallel.sharding import abstract_weights
from tests.nn.config_checks import (
    check_defaults,
    check_fixed_fields_are_tried,
    check_unknown_field_is_refused,
    check_value_is_refused,
    diffusers_defaults,
)

TOLERANCE = 1e-4

CASES = {
    # As published, at a size that is not a multiple of the downscaling factor.
    "published": (dict(block_out_channels=(8, 12, 16), layers_per_block=2), (18, 13)),
    # Without the parts that the config can leave out, and with other numbers of channels.
    "bare": (
        dict(
            block_out_channels=(8, 16),
            use_quant_conv=False,
            use_post_quant_conv=False,
            mid_block_add_attention=False,
            latent_channels=3,
            in_channels=2,
            out_channels=1,
        ),
        (8, 12),
    ),
}


UNSUPPORTED = [
    # Values of fields that are fixed.
    ("act_fn", "relu"),
    ("shift_factor", 0.1),
    ("latents_mean", [0.0, 0.0, 0.0, 0.0]),
    ("latents_std", [1.0, 1.0, 1.0, 1.0]),
    ("down_block_types", ["AttnDownEncoderBlock2D"] * 4),
    ("up_block_types", ["UpBlock2D"] * 4),
    # Values that the types or the network do not allow.
    ("down_block_types", ["DownEncoderBlock2D"] * 3),
    ("up_block_types", ["UpDecoderBlock2D"] * 5),
    ("norm_num_groups", 48),
    ("layers_per_block", [2, 2, 2, 2]),
    ("layers_per_block", 10**12),
    ("block_out_channels", [128, 256, 512, -512]),
    ("block_out_channels", [32] * 9),
    ("scaling_factor", 0),
    ("scaling_factor", float("inf")),
]


@pytest.fixture(scope="module", params=CASES)
def vae(request, reference):
    """(theirs, ours, our parameters, a batch of two images)."""
    sizes, (height, width) = CASES[request.param]
    levels = len(sizes["block_out_channels"])
    blocks = dict(down_block_types=("DownEncoderBlock2D",) * levels, up_block_types=("UpDecoderBlock2D",) * levels)
    torch.manual_seed(0)
    theirs = reference.randomised(diffusers.AutoencoderKL(norm_num_groups=4, **blocks, **sizes))
    # Make the activations faint enough for the epsilon of the norms to matter, because it is in no config.
    for parameter in (*theirs.encoder.conv_in.parameters(), *theirs.decoder.conv_in.parameters()):
        parameter.data *= 1e-3
    ours = AutoencoderKL(VAEConfig.from_dict(dict(theirs.config)))
    params = jax.device_put(reference.tree(theirs, vae_shapes(ours)))
    return theirs, ours, params, reference.normal(0, 2, height, width, ours.config.in_channels)


def test_encode_matches_diffusers(vae, reference):
    theirs, ours, params, images = vae
    encode = reference.jit(lambda params, images: ours.apply({"params": params}, images, method="encode"))
    mean, logvar = encode(params, images)
    posterior = theirs.encode(reference.nchw(images)).latent_dist
    assert reference.relative_error(mean, reference.nhwc(posterior.mean)) < TOLERANCE
    assert reference.relative_error(logvar, reference.nhwc(posterior.logvar)) < TOLERANCE
    assert mean.shape[-1] == ours.config.latent_channels


def test_decode_matches_diffusers(vae, reference):
    theirs, ours, params, _ = vae
    latents = reference.normal(1, 2, 5, 3, ours.config.latent_channels)
    decode = reference.jit(lambda params, latents: ours.apply({"params": params}, latents, method="decode"))
    images = decode(params, latents)
    assert reference.relative_error(images, reference.nhwc(theirs.decode(reference.nchw(latents)).sample)) < TOLERANCE
    assert images.shape[1] == 5 * ours.config.downscale


@pytest.mark.parametrize("platform", ["cpu", "tpu"])
@pytest.mark.parametrize("method", ["encode", "decode"])
def test_images_stay_apart_where_weights_are_cut(method, platform, monkeypatch):
    """Every device gathers weights, which are small beside images, and never holds a part of another one's images."""
    for module in (layers, convolution, attention):
        monkeypatch.setattr(module, "platform_in_context", lambda: platform)
    vae = AutoencoderKL(VAEConfig(block_out_channels=(16, 32, 64), norm_num_groups=8))
    mesh = make_mesh(MeshSettings(data=1, fsdp=8))
    params = abstract_weights(vae_shapes(vae), jnp.float32, mesh)
    side, channels = (32, 3) if method == "encode" else (8, 4)
    x = jax.ShapeDtypeStruct((16, side, side, channels), jnp.float32, sharding=over_batch(mesh))
    with jax.set_mesh(mesh):
        program = jax.jit(lambda params, x: vae.apply({"params": params}, x, method=method)).lower(params, x).compile()
    assert "all-gather" in program.as_text()
    for level in (8, 16, 32):
        assert f"[2,{level},{level}," in program.as_text()  # a device's own images
        assert f"[16,{level},{level}," not in program.as_text()


def test_log_variance_is_clipped_as_in_diffusers(reference):
    """The last bias of the encoder pushes it beyond both ends of [-30, 20], where diffusers keeps it."""
    torch.manual_seed(0)
    theirs = reference.randomised(
        diffusers.AutoencoderKL(block_out_channels=(4,), norm_num_groups=2, latent_channels=2)
    )
    theirs.quant_conv.bias.data = torch.tensor([0.0, 0.0, 100.0, -100.0])
    ours = AutoencoderKL(VAEConfig.from_dict(dict(theirs.config)))
    variables = {"params": reference.tree(theirs, vae_shapes(ours))}
    images = reference.normal(0, 1, 4, 4, 3)
    _, logvar = reference.jit(lambda images: ours.apply(variables, images, method="encode"))(images)
    np.testing.assert_array_equal(logvar, jnp.broadcast_to(jnp.array([20.0, -30.0]), logvar.shape))
    np.testing.assert_array_equal(logvar, reference.nhwc(theirs.encode(reference.nchw(images)).latent_dist.logvar))


def test_sample_posterior_matches_diffusers_with_the_same_noise(reference):
    mean = reference.normal(0, 2, 3, 4, 2)
    logvar = reference.normal(1, 2, 3, 4, 2)
    key = jax.random.key(7)
    posterior = DiagonalGaussianDistribution(torch.cat([reference.nchw(mean), reference.nchw(logvar)], 1))
    noise = jax.random.normal(key, mean.shape)
    expected = posterior.mean + posterior.std * reference.nchw(noise)
    assert reference.relative_error(sample_posterior(key, mean, logvar), reference.nhwc(expected)) < 1e-6


@pytest.mark.parametrize(("field", "value"), UNSUPPORTED)
def test_unsupported_values_raise(field, value):
    check_value_is_refused(VAEConfig, presets.SD15_VAE, field, value)


def test_every_fixed_field_is_tried():
    check_fixed_fields_are_tried(VAEConfig, [field for field, _ in UNSUPPORTED])


def test_unknown_fields_raise():
    check_unknown_field_is_refused(VAEConfig, presets.SD15_VAE)


def test_missing_fields_have_the_defaults_of_diffusers():
    check_defaults(VAEConfig, diffusers_defaults(diffusers.AutoencoderKL))


def test_values_are_frozen_and_json_integers_are_floats():
    config = VAEConfig.from_dict(presets.SD15_VAE | {"scaling_factor": 1})
    assert config.block_out_channels == (128, 256, 512, 512)
    assert isinstance(config.scaling_factor, float)
    assert hash(config) == hash(dataclasses.replace(config))
    assert config.downscale == 8
