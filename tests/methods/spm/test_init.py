"""The weights from which training starts: those of a plain CLIP, or of a preference model that is trained further."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from spo_jax.core.errors import UserError
from spo_jax.core.trees import flatten, unflatten
from spo_jax.methods.spm.init import load_start
from spo_jax.nn.clip import CLIPModel
from spo_jax.rewards.common.clip_score import pixel_values, score_images, text_features, unit_norm
from spo_jax.rewards.common.preference_model import load_spm, write_spm
from spo_jax.toy import ASSETS
from spo_jax.weights.store import read_file, write_state
from tests.support.networks import CLIP, small_clip

TOKENIZER = ASSETS / "spm" / "tokenizer"
KEY = jax.random.key(0)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """The folder of a time-conditioned CLIP, and its weights."""
    folder = tmp_path_factory.mktemp("clip")
    _, params = small_clip()
    write_spm(folder / "spm", CLIP, params, TOKENIZER, trained_on="sdxl")
    return folder / "spm", params


@pytest.fixture(scope="module")
def plain_folder(model, tmp_path_factory):
    """The same without time conditioning, as transformers writes CLIP."""
    folder = tmp_path_factory.mktemp("plain")
    (folder / "config.json").write_text((model[0] / "config.json").read_text())
    state = read_file(model[0] / "model.safetensors")
    kept = {name.removeprefix("model."): value for name, value in state.items()}
    write_state(
        folder / "model.safetensors",
        {name: value for name, value in kept.items() if "adaLN" not in name and "t_embedder" not in name},
    )
    return folder


def test_before_training_scores_are_plain_clips_at_every_timestep(plain_folder):
    """Up to float32 rounding, because XLA fuses the two programs differently; the identity itself is exact."""
    start = load_start(plain_folder, KEY, tokenizer=TOKENIZER)
    assert start.is_plain
    plain = CLIPModel(type(CLIP)(CLIP.text, CLIP.vision, CLIP.projection_dim))
    images = jax.random.uniform(jax.random.key(1), (3, 8, 8, 3), minval=-1.0)
    ids = jnp.array([[0, 5, 568], [0, 7, 568], [0, 9, 568]])
    flat = flatten(start.params)
    weights = unflatten({k: v for k, v in flat.items() if "adaLN" not in k and "t_embedder" not in k})

    @jax.jit
    def plain_scores(params):
        features = unit_norm(plain.apply({"params": params}, pixel_values(images, 8), method="encode_image"))
        text = text_features(plain, params, ids)
        return text, jnp.exp(params["logit_scale"]) * jnp.sum(features * text, axis=-1)

    text, wanted = plain_scores(weights)
    assert np.ptp(wanted) > 1e-2
    score = jax.jit(lambda params, t: score_images(start.clip, params, images, t, text))
    for t in (0, 1, 500, 999):
        np.testing.assert_allclose(score(start.params, jnp.full(3, t)), wanted, rtol=1e-5)


def test_training_continues_from_a_preference_model(model):
    folder, params = model
    start = load_start(folder, KEY)
    assert not start.is_plain and start.tokenizer == folder / "tokenizer"
    found, wanted = flatten(start.params), flatten(params)
    assert found.keys() == wanted.keys()
    for name in wanted:
        np.testing.assert_array_equal(found[name], wanted[name])


def test_random_weights_take_only_the_config(model):
    start, again = (load_start(model[0], jax.random.key(seed), random=True) for seed in (0, 1))
    one, other = flatten(start.params), flatten(again.params)
    assert not start.is_plain and {x.dtype for x in one.values()} == {np.dtype(np.float32)}
    name = "vision_model/encoder/layers_0/mlp/fc1/kernel"
    assert (np.asarray(one[name]) != np.asarray(other[name])).mean() > 0.9
    assert not np.asarray(one["vision_model/adaLN_modulation_1/kernel"]).any()  # at rest, as with a plain CLIP


def test_incomplete_time_conditioning_is_refused(model, tmp_path):
    folder = tmp_path / "spm"
    folder.mkdir()
    (folder / "config.json").write_text((model[0] / "config.json").read_text())
    state = read_file(model[0] / "model.safetensors")
    write_state(folder / "model.safetensors", {k: v for k, v in state.items() if "t_embedder" not in k})
    with pytest.raises(UserError, match="t_embedder"):
        load_start(folder, KEY, tokenizer=TOKENIZER)


def test_files_are_written_as_they_were_published(model):
    """Names with the authors' prefix, torch's layouts, a tokenizer, and the kind of pipeline it was trained on."""
    folder, params = model
    state = read_file(folder / "model.safetensors")
    assert all(name.startswith("model.") for name in state)
    for name in ("t_embedder.mlp.0.weight", "vision_model.encoder.layers.0.adaLN_modulation.1.bias", "logit_scale"):
        assert f"model.{name}" in state
    kernel = params["vision_model"]["encoder"]["layers_0"]["mlp"]["fc1"]["kernel"]
    np.testing.assert_array_equal(state["model.vision_model.encoder.layers.0.mlp.fc1.weight"], np.asarray(kernel).T)
    spm = load_spm(folder, judges="sdxl")
    np.testing.assert_array_equal(
        spm.params["visual_projection"]["kernel"], params["visual_projection"]["kernel"]
    )  # fmt: skip
    with pytest.raises(UserError, match="trained on"):
        load_spm(folder, judges="sd")


def test_half_precision_halves_the_file(model, tmp_path):
    write_spm(tmp_path / "half", CLIP, model[1], TOKENIZER, np.float16)
    sizes = [(folder / "model.safetensors").stat().st_size for folder in (tmp_path / "half", model[0])]
    assert sizes[0] < 0.6 * sizes[1]
    kinds = {name: value.dtype for name, value in read_file(tmp_path / "half" / "model.safetensors").items()}
    assert kinds.pop("model.logit_scale") == np.float32  # half of its digits would move every score
    assert set(kinds.values()) == {np.dtype(np.float16)}
