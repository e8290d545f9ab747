"""Forward passes of every network (h): 1e-4 relative to the largest value, float32 on both sides."""

import functools

import jax
import jax.numpy as jnp
import pytest

TOLERANCE = 1e-4


@functools.cache
def program(module, method):
    return jax.jit(functools.partial(module.apply, method=method))


def apply(module, params, *args, method=None):
    return program(module, method)({"params": params}, *args)


@pytest.mark.parametrize("kind", ["sd15", "sdxl"])
def test_unet(golden, kind):
    h = golden.arrays("h_forward.npz")
    pipeline = golden.pipeline(kind)
    extra = [jnp.asarray(h[f"sdxl/unet/{name}"]) for name in ("text_embeds", "time_ids")] if kind == "sdxl" else []
    x = golden.nhwc(h[f"{kind}/unet/sample"])
    states = jnp.asarray(h[f"{kind}/unet/encoder_hidden_states"])
    t = jnp.asarray(h[f"{kind}/unet/timesteps"])
    out = apply(pipeline.unet, pipeline.params["unet"], x, t, states, *extra)
    assert golden.relative_error(out, golden.nhwc(h[f"{kind}/unet/out"])) < TOLERANCE


def test_unet_scalar_timestep_and_oblong_latents(golden):
    h = golden.arrays("h_forward.npz")
    pipeline = golden.pipeline("sd15")
    x = golden.nhwc(h["sd15/unet/sample"])
    states = jnp.asarray(h["sd15/unet/encoder_hidden_states"])
    out = apply(pipeline.unet, pipeline.params["unet"], x, jnp.full(2, 501, jnp.int32), states)
    assert golden.relative_error(out, golden.nhwc(h["sd15/unet/out_scalar_t501"])) < TOLERANCE
    oblong = golden.nhwc(h["sd15/unet/sample_12x8"])
    out = apply(pipeline.unet, pipeline.params["unet"], oblong, jnp.full(1, 251, jnp.int32), states[:1])
    assert golden.relative_error(out, golden.nhwc(h["sd15/unet/out_12x8_t251"])) < TOLERANCE


@pytest.mark.parametrize("kind", ["sd15", "sdxl"])
def test_vae(golden, kind):
    h = golden.arrays("h_forward.npz")
    pipeline = golden.pipeline(kind)
    params = pipeline.params["vae"]
    out = jax.jit(pipeline.decode)(params, golden.nhwc(h[f"{kind}/vae/latents_scaled"]))
    assert golden.relative_error(out, golden.nhwc(h[f"{kind}/vae/decoded"])) < TOLERANCE
    if kind == "sd15":
        mean, logvar = jax.jit(pipeline.encode)(params, golden.nhwc(h["sd15/vae/images"]))
        assert golden.relative_error(mean, golden.nhwc(h["sd15/vae/enc_mean"])) < TOLERANCE
        assert golden.relative_error(logvar, golden.nhwc(h["sd15/vae/enc_logvar"])) < TOLERANCE
        assert golden.relative_error(jnp.exp(logvar / 2), golden.nhwc(h["sd15/vae/enc_std"])) < TOLERANCE


def test_text_encoders(golden):
    h = golden.arrays("h_forward.npz")
    sd15 = golden.pipeline("sd15")
    out, embeds = apply(sd15.text_encoder, sd15.params["text_encoder"], jnp.asarray(h["sd15/text/input_ids"]))
    assert embeds is None
    assert golden.relative_error(out.last, h["sd15/text/last_hidden_state"]) < TOLERANCE
    assert golden.relative_error(out.pooled, h["sd15/text/pooler_output"]) < TOLERANCE
    sdxl = golden.pipeline("sdxl")
    ids = jnp.asarray(h["sdxl/text/input_ids"])
    for name, key in (("text_encoder", "text1"), ("text_encoder_2", "text2")):
        out, embeds = apply(getattr(sdxl, name), sdxl.params[name], ids)
        assert golden.relative_error(out.penultimate, h[f"sdxl/{key}/hidden_states_-2"]) < TOLERANCE
    assert golden.relative_error(embeds, h["sdxl/text2/text_embeds"]) < TOLERANCE


def test_preference_model(golden):
    h = golden.arrays("h_forward.npz")
    spm = golden.spm
    pixels = golden.nhwc(h["spm/pixel_values"])
    image = apply(spm.clip, spm.params, pixels, jnp.asarray(h["spm/timesteps"]), method="encode_image")
    assert golden.relative_error(image, h["spm/image_features"]) < TOLERANCE
    text = apply(spm.clip, spm.params, jnp.asarray(h["spm/input_ids"]), method="encode_text")
    assert golden.relative_error(text, h["spm/text_features"]) < TOLERANCE
