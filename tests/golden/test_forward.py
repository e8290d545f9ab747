"""Forward passes of every network (h): 1e-4 relative to the largest value, float32 on both sides."""

import functools

import jax
import jax.numpy as jnp
import pytest

TOLERANCE = 1e-4


def apply(module, params, *args, method=None):
    return jax.jit(functools.partial(module.apply, method=method))({"params": params}, *args)


@pytest.mark.parametrize("kind", ["sd15", "sdxl"])
def test_unet(golden, kind):
    h, p = golden.arrays("h_forward.npz"), golden.pipeline(kind)
    extra = [jnp.asarray(h[f"sdxl/unet/{name}"]) for name in ("text_embeds", "time_ids")] if kind == "sdxl" else []
    x, states = golden.nhwc(h[f"{kind}/unet/sample"]), jnp.asarray(h[f"{kind}/unet/encoder_hidden_states"])
    out = apply(p.unet, p.unet_params, x, jnp.asarray(h[f"{kind}/unet/timesteps"]), states, *extra)
    assert golden.relative_error(out, golden.nhwc(h[f"{kind}/unet/out"])) < TOLERANCE


def test_unet_scalar_timestep_and_oblong_latents(golden):
    h, p = golden.arrays("h_forward.npz"), golden.pipeline("sd15")
    x, states = golden.nhwc(h["sd15/unet/sample"]), jnp.asarray(h["sd15/unet/encoder_hidden_states"])
    out = apply(p.unet, p.unet_params, x, jnp.full(2, 501), states)
    assert golden.relative_error(out, golden.nhwc(h["sd15/unet/out_scalar_t501"])) < TOLERANCE
    oblong = golden.nhwc(h["sd15/unet/sample_12x8"])
    out = apply(p.unet, p.unet_params, oblong, jnp.full(1, 251), states[:1])
    assert golden.relative_error(out, golden.nhwc(h["sd15/unet/out_12x8_t251"])) < TOLERANCE


@pytest.mark.parametrize("kind", ["sd15", "sdxl"])
def test_vae(golden, kind):
    h, p = golden.arrays("h_forward.npz"), golden.pipeline(kind)
    latents = golden.nhwc(h[f"{kind}/vae/latents_scaled"]) / p.vae.config.scaling_factor
    out = apply(p.vae, p.vae_params, latents, method="decode")
    assert golden.relative_error(out, golden.nhwc(h[f"{kind}/vae/decoded"])) < TOLERANCE
    if kind == "sd15":
        mean, logvar = apply(p.vae, p.vae_params, golden.nhwc(h["sd15/vae/images"]), method="encode")
        assert golden.relative_error(mean, golden.nhwc(h["sd15/vae/enc_mean"])) < TOLERANCE
        assert golden.relative_error(logvar, golden.nhwc(h["sd15/vae/enc_logvar"])) < TOLERANCE
        assert golden.relative_error(jnp.exp(logvar / 2), golden.nhwc(h["sd15/vae/enc_std"])) < TOLERANCE


def test_text_encoders(golden):
    h = golden.arrays("h_forward.npz")
    out, embeds = apply(*golden.pipeline("sd15").encoders["text_encoder"], jnp.asarray(h["sd15/text/input_ids"]))
    assert embeds is None
    assert golden.relative_error(out.last, h["sd15/text/last_hidden_state"]) < TOLERANCE
    assert golden.relative_error(out.pooled, h["sd15/text/pooler_output"]) < TOLERANCE
    encoders, ids = golden.pipeline("sdxl").encoders, jnp.asarray(h["sdxl/text/input_ids"])
    for name, key in (("text_encoder", "text1"), ("text_encoder_2", "text2")):
        out, embeds = apply(*encoders[name], ids)
        assert golden.relative_error(out.penultimate, h[f"sdxl/{key}/hidden_states_-2"]) < TOLERANCE
    assert golden.relative_error(embeds, h["sdxl/text2/text_embeds"]) < TOLERANCE


def test_preference_model(golden):
    h, spm = golden.arrays("h_forward.npz"), golden.spm
    pixels, t = golden.nhwc(h["spm/pixel_values"]), jnp.asarray(h["spm/timesteps"])
    image = apply(spm.clip, spm.params, pixels, t, method="encode_image")
    assert golden.relative_error(image, h["spm/image_features"]) < TOLERANCE
    text = apply(spm.clip, spm.params, jnp.asarray(h["spm/input_ids"]), method="encode_text")
    assert golden.relative_error(text, h["spm/text_features"]) < TOLERANCE
