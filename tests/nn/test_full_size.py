"""Networks at their true sizes against diffusers and transformers: SD 1.5, CLIP-H, BLIP, the transformers of SDXL.

The weights are random. The tolerance is 1e-4 of the largest value: both sides are float32, but sum thousands of terms
in a different order. Only one network is in memory at a time: torch's is freed before ours is compiled.

Run with ``pytest -m full tests/nn/test_full_size.py``.
"""

import gc
import re

import diffusers
import jax
import jax.numpy as jnp
import pytest
import torch
import transformers
from peft import LoraConfig

from spo_jax.core.trees import flatten, unflatten
from spo_jax.models.stable_diffusion import presets
from spo_jax.models.stable_diffusion.config import UNetConfig
from spo_jax.models.stable_diffusion.pipeline import unet_shapes
from spo_jax.models.stable_diffusion.unet import UNet2DConditionModel
from spo_jax.nn import clip_config
from spo_jax.nn import lora as lora_lib
from spo_jax.nn.blip import BLIP
from spo_jax.nn.blip_config import BLIPConfig
from spo_jax.nn.clip import CLIPModel, CLIPTextModel
from spo_jax.nn.clip_config import CLIPConfig, CLIPTextConfig
from spo_jax.nn.layers import SpatialTransformer
from spo_jax.nn.shapes import blip_shapes, clip_shapes, text_shapes, vae_shapes
from spo_jax.nn.vae import AutoencoderKL, VAEConfig
from spo_jax.weights import rules
from spo_jax.weights.rules import module_path
from tests.support.memory import within_memory  # noqa: F401  it holds for every test here
from tests.support.torch_blip import networks_of_transformers, salesforce_state

pytestmark = pytest.mark.full

TOLERANCE, GRADIENT_TOLERANCE = 1e-4, 1e-3
RANK, ALPHA = 4, 8.0
END = 49407
# Two prompts of 77 tokens: start, words, end, and more end tokens as padding.
IDS = jnp.full((2, 77), END).at[:, 0].set(END - 1).at[0, 1:6].set(jnp.arange(320, 325)).at[1, 1:30].set(4000)


def test_unet(reference):
    """The prediction with a LoRA, and the gradients of the LoRA, with every block recomputed."""
    x = reference.normal(1, 2, 16, 24, 4)
    t = jnp.array([999, 251])
    context = reference.normal(2, 2, 77, 768)
    weights = reference.normal(3, 2, 16, 24, 4)
    ours = UNet2DConditionModel(UNetConfig.from_dict(presets.SD15_UNET), remat=True)
    shapes = unet_shapes(ours)

    # Theirs, with an adapter from peft.
    torch.manual_seed(0)
    theirs = reference.randomised(diffusers.UNet2DConditionModel.from_config(presets.SD15_UNET))
    params = jax.device_put(reference.tree(theirs, shapes))
    targets = ["to_q", "to_k", "to_v", "to_out.0"]
    theirs.add_adapter(LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=targets, init_lora_weights=False))
    leaves = {name: p for name, p in theirs.named_parameters() if p.requires_grad}
    out = theirs(reference.nchw(x), reference.to_torch(t), reference.to_torch(context)).sample
    (reference.nchw(weights) * out).sum().backward()
    expected_out = reference.nhwc(out)
    adapter = {}
    expected = {}
    for name, parameter in leaves.items():
        module, leaf = re.fullmatch(r"(.+)\.(lora_[AB])\.default\.weight", name).groups()
        path = "/".join((*module_path(module), leaf))
        adapter[path] = jnp.asarray(parameter.detach().numpy().T)
        expected[path] = parameter.grad.numpy().T
    del theirs, leaves, out, parameter
    gc.collect()

    # Ours, with the same weights and the same adapter.

    def loss(adapter, params):
        variables = {"params": params, "lora": lora_lib.scaled(adapter, ALPHA / RANK)}
        out = ours.apply(variables, x, t, context)
        return jnp.sum(weights * out), out

    gradients, out = jax.jit(jax.grad(loss, has_aux=True))(unflatten(adapter), params)
    assert reference.relative_error(out, expected_out) < TOLERANCE
    gradients = flatten(gradients)
    assert len(gradients) == len(expected) == 256
    errors = {path: reference.relative_error(gradients[path], expected[path]) for path in expected}
    assert max(errors.values()) < GRADIENT_TOLERANCE, max(errors, key=errors.get)


@pytest.mark.filterwarnings("ignore::FutureWarning")  # diffusers warns about itself
@pytest.mark.parametrize("level", [1, 2], ids=["640 wide, 2 layers", "1280 wide, 10 layers"])
def test_a_transformer_of_sdxl(reference, level):
    """The UNet has 5 and 6 transformers of these two kinds; they hold most of its weights."""
    config = presets.SDXL_UNET
    width = config["block_out_channels"][level]
    heads = config["attention_head_dim"][level]  # the number of heads, despite its name
    layers = config["transformer_layers_per_block"][level]
    groups = config["norm_num_groups"]
    x = reference.normal(1, 2, 16, 12, width)
    context = reference.normal(2, 2, 77, config["cross_attention_dim"])
    torch.manual_seed(0)
    theirs = diffusers.Transformer2DModel(
        num_attention_heads=heads, attention_head_dim=width // heads, in_channels=width, num_layers=layers,
        norm_num_groups=groups, cross_attention_dim=config["cross_attention_dim"], use_linear_projection=True,
    )  # fmt: skip
    theirs = reference.randomised(theirs)
    expected = reference.nhwc(theirs(reference.nchw(x), reference.to_torch(context)).sample)
    # Compare what the transformer adds: the skip connection around it would hide half of an error.
    expected = expected - x
    assert width // heads == 64
    ours = SpatialTransformer(heads=heads, layers=layers, groups=groups, use_linear_projection=True)
    shapes = jax.eval_shape(ours.init, jax.random.key(0), x, context)["params"]
    params = jax.device_put(reference.tree(theirs, shapes))
    del theirs
    gc.collect()
    out = jax.jit(ours.apply)({"params": params}, x, context) - x
    assert reference.relative_error(out, expected) < TOLERANCE


def test_vae(reference):
    images = jnp.tanh(reference.normal(1, 1, 128, 128, 3))
    latents = reference.normal(2, 1, 16, 16, 4)
    torch.manual_seed(0)
    theirs = reference.randomised(diffusers.AutoencoderKL.from_config(presets.SD15_VAE))
    posterior = theirs.encode(reference.nchw(images)).latent_dist
    expected = [reference.nhwc(x) for x in (posterior.mean, posterior.logvar)]
    expected.append(reference.nhwc(theirs.decode(reference.nchw(latents)).sample))
    ours = AutoencoderKL(VAEConfig.from_dict(presets.SD15_VAE))
    params = jax.device_put(reference.tree(theirs, vae_shapes(ours)))
    del theirs, posterior
    gc.collect()
    encode, decode = (
        jax.jit(lambda params, x, method=method: ours.apply({"params": params}, x, method=method))
        for method in ("encode", "decode")
    )
    for out, target in zip((*encode(params, images), decode(params, latents)), expected, strict=True):
        assert reference.relative_error(out, target) < TOLERANCE


def test_clip_l(reference):
    torch.manual_seed(0)
    theirs = reference.randomised(transformers.CLIPTextModel(transformers.CLIPTextConfig(**presets.SD15_TEXT)))
    expected = theirs(reference.to_torch(IDS).long(), output_hidden_states=True)
    expected = expected.last_hidden_state, expected.hidden_states[-2], expected.pooler_output
    ours = CLIPTextModel(CLIPTextConfig.from_dict(presets.SD15_TEXT))
    params = jax.device_put(reference.tree(theirs, text_shapes(ours), prefix="text_model."))
    del theirs
    gc.collect()
    out, _ = jax.jit(ours.apply)({"params": params}, IDS)
    for state, target in zip(out, expected, strict=True):
        assert reference.relative_error(state, target) < TOLERANCE


def test_clip_h(reference):
    pixels = reference.normal(1, 2, 224, 224, 3)
    torch.manual_seed(0)
    theirs = reference.randomised(transformers.CLIPModel(transformers.CLIPConfig(**clip_config.CLIP_H)))
    expected = theirs(input_ids=reference.to_torch(IDS).long(), pixel_values=reference.nchw(pixels))
    # transformers replaces the pooled states of the towers by the projected features, which are not yet normalised.
    vision = expected.vision_model_output
    text = expected.text_model_output
    scores = expected.logits_per_image.diagonal()
    expected = text.last_hidden_state, text.pooler_output, vision.last_hidden_state, vision.pooler_output, scores
    ours = CLIPModel(CLIPConfig.from_dict(clip_config.CLIP_H))
    params = jax.device_put(reference.tree(theirs, clip_shapes(ours)))
    del theirs, vision, text
    gc.collect()

    def forward(params):
        bound = ours.bind({"params": params})
        states = bound.text_model(IDS).last, bound.encode_text(IDS)
        return *states, bound.vision_model(pixels).last, bound.encode_image(pixels), bound(IDS, pixels)

    for out, target in zip(jax.jit(forward)(params), expected, strict=True):
        assert reference.relative_error(out, target) < TOLERANCE


def test_blip(reference):
    """ImageReward's network, 445 M parameters, with texts of 35 tokens; 28 s on two cores, 4.1 GB at its peak."""
    config = BLIPConfig()
    pixels = reference.normal(1, 2, 224, 224, 3)
    ids = jax.random.randint(jax.random.key(0), (2, 35), 1000, config.text.vocab_size)
    visible = jnp.arange(35)[None] < jnp.array([[35], [9]])
    vision, text = map(reference.randomised, networks_of_transformers(config, 0.02))
    image = vision(reference.nchw(pixels)).last_hidden_state
    mask = reference.to_torch(visible).long()
    states = text(reference.to_torch(ids).long(), mask, encoder_hidden_states=image, is_decoder=False)
    expected = image.numpy(), states.last_hidden_state.numpy()
    ours = BLIP(config)
    arrays = {name: value.numpy() for name, value in salesforce_state(vision, text).items()}
    params = jax.device_put(rules.to_tree(arrays, blip_shapes(ours), "torch", ignore=[r"position_ids$"]))
    del vision, text, states, arrays
    gc.collect()

    def forward(params):
        bound = ours.bind({"params": params})
        image = bound.encode_image(pixels)
        return image, bound.text_encoder(ids, visible, image)[-1]

    for out, target in zip(jax.jit(forward)(params), expected, strict=True):
        assert reference.relative_error(out, target) < TOLERANCE
