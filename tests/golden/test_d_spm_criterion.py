"""Loss and gradients of the preference model's training (d).

The reference's in-batch-negatives variant is not part of the published recipe and is not implemented. Gradients are
compared in the reference's layout; 1e-3 relative per tensor, for they pass through two towers in float32.
"""

import jax
import jax.numpy as jnp
import numpy as np

from spo_jax.core.trees import flatten, unflatten
from spo_jax.models.clip import CLIPModel
from spo_jax.spm.loss import preference_loss
from spo_jax.spm.model import init_time_conditioning
from spo_jax.spm.score import unit_norm
from spo_jax.weights.rules import to_state

CASE = "in_batch_negatives_False"


def batch_of(golden):
    d = golden.arrays("d_spm_criterion.npz")
    pixels = jnp.concatenate([golden.nhwc(d[f"batch/pixel_values_{i}"]) for i in (0, 1)])
    labels = jnp.stack([jnp.asarray(d["batch/label_0"]), jnp.asarray(d["batch/label_1"])], axis=1)
    weights = 1 / jnp.asarray(d["batch/num_example_per_prompt"], jnp.float32)
    return d, pixels, labels, weights


def criterion(params, clip, d, pixels, labels, weights):
    variables, t = {"params": params}, jnp.asarray(d["batch/timesteps"])
    text = unit_norm(clip.apply(variables, jnp.asarray(d["batch/input_ids"]), method="encode_text"))
    image = unit_norm(clip.apply(variables, pixels, jnp.tile(t, 2), method="encode_image"))
    scores = clip.apply(variables, method="scale") * (image.reshape(2, -1, image.shape[-1]) * text[None]).sum(-1)
    loss, per_pair = preference_loss(scores.T, labels, weights)
    return loss, (per_pair, scores)


def test_loss_and_gradients(golden):
    d, pixels, labels, weights = batch_of(golden)
    gradient = jax.jit(jax.value_and_grad(criterion, has_aux=True), static_argnums=1)
    (loss, (per_pair, scores)), grads = gradient(golden.spm.params, golden.spm.clip, d, pixels, labels, weights)
    np.testing.assert_allclose(loss, d[f"{CASE}/loss"], rtol=1e-4)
    assert golden.relative_error(per_pair, d["text_loss_per_example"]) < 1e-3
    assert golden.relative_error(scores, np.stack([d["scores_0"], d["scores_1"]])) < 1e-4
    np.testing.assert_allclose(weights / weights.sum(), d["weight_per_example"], rtol=1e-6)
    ours = to_state(grads)
    wanted = [key for key in d if key.startswith(f"{CASE}/grad/")]
    assert wanted
    for key in wanted:
        assert golden.relative_error(ours[key.split("/grad/")[1]], d[key]) < 1e-3, key


def test_identity_start(golden):
    """Freshly added time conditioning leaves plain CLIP's features, at every timestep."""
    d, pixels, *_ = batch_of(golden)
    clip = golden.spm.clip
    plain = CLIPModel(type(clip.config)(**{**vars(clip.config), "time_conditioned": False}))
    flat = {k: v for k, v in flatten(golden.spm.params).items() if "adaLN" not in k and "t_embedder" not in k}
    params = init_time_conditioning(jax.random.key(0), unflatten(flat), clip)
    count = len(d["batch/timesteps"])
    for t in (jnp.asarray(d["batch/timesteps"]), jnp.zeros(count, int), jnp.full(count, 951)):
        ours = clip.apply({"params": params}, pixels[:count], t, method="encode_image")
        np.testing.assert_array_equal(
            ours, plain.apply({"params": unflatten(flat)}, pixels[:count], method="encode_image")
        )
        assert golden.relative_error(ours, d["init_adaln/image_features"]) < 1e-4
