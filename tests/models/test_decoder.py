"""Decoders of latents: the pipeline's own autoencoder, or a distilled one, which decodes as diffusers' does."""

import dataclasses

import jax
import numpy as np
import pytest
import torch
from diffusers import AutoencoderTiny

from spo_jax.core.errors import UserError
from spo_jax.models.decoder import open_decoder
from spo_jax.models.stable_diffusion.unet import UNet2DConditionModel
from spo_jax.nn.shapes import vae_shapes
from spo_jax.nn.tiny_vae import TAESD, TinyVAEConfig
from spo_jax.nn.tiny_vae import AutoencoderTiny as OurAutoencoderTiny
from spo_jax.parallel.sharding import shapes_of


def write_distilled(folder, channels):
    torch.manual_seed(0)
    model = AutoencoderTiny(
        encoder_block_out_channels=(8, 8), decoder_block_out_channels=(8, 8), num_encoder_blocks=(1, 1),
        num_decoder_blocks=(1, 1), latent_channels=channels,
    )  # fmt: skip
    model.save_pretrained(folder)
    return model


@pytest.fixture(scope="module")
def distilled(tmp_path_factory):
    """A distilled decoder for the toy's latents, in diffusers, and its folder."""
    folder = tmp_path_factory.mktemp("decoders") / "distilled"
    return write_distilled(folder, 16), folder


def test_the_default_is_the_pipelines_own_decoder(toy):
    decoder = open_decoder("vae", toy.pipeline)
    assert decoder.params is toy.pipeline.params["vae"] and decoder.apply == toy.pipeline.decode


def test_a_distilled_decoder_is_that_of_diffusers(toy, distilled):
    theirs, folder = distilled
    decoder = open_decoder(str(folder), toy.pipeline)
    latents = np.random.default_rng(0).normal(size=(2, 4, 4, 16)).astype(np.float32)
    ours = jax.jit(decoder.apply)(decoder.params, latents)
    expected = theirs.decode(torch.from_numpy(latents).permute(0, 3, 1, 2)).sample.permute(0, 2, 3, 1)
    np.testing.assert_allclose(ours, expected.detach(), atol=1e-5)


def test_an_abstract_decoder_has_the_shapes_of_the_loaded_one(toy, distilled):
    folder = str(distilled[1])
    abstract = open_decoder(folder, toy.pipeline, abstract=True)
    assert abstract.params == shapes_of(open_decoder(folder, toy.pipeline).params)


def test_an_abstract_decoder_that_is_not_local_is_taesd(toy):
    """It decodes latents of 4 channels."""
    network = UNet2DConditionModel(dataclasses.replace(toy.pipeline.unet.config, in_channels=4))
    decoder = open_decoder("madebyollin/taesd", dataclasses.replace(toy.pipeline, unet=network), abstract=True)
    assert decoder.params == vae_shapes(OurAutoencoderTiny(TinyVAEConfig.from_dict(TAESD)))


def test_a_decoder_of_other_latents_is_refused(toy, tmp_path):
    write_distilled(tmp_path / "four", 4)
    message = "field spo.decoder = .*: it decodes latents of 4 channels, but the model makes 16; choose"
    with pytest.raises(UserError, match=message):
        open_decoder(str(tmp_path / "four"), toy.pipeline, field="spo.decoder")


def test_a_folder_without_a_config_is_refused(toy, tmp_path):
    with pytest.raises(UserError, match="missing file: .*config.json"):
        open_decoder(str(tmp_path), toy.pipeline)
    with pytest.raises(UserError, match="no such file or folder: ./no/such/decoder"):
        open_decoder("./no/such/decoder", toy.pipeline)
