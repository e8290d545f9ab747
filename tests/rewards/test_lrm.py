"""The latent reward model: what is read of its files, what is in its program, and judges that are refused."""

import json
import re
import shutil
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from spo_jax.core.errors import UserError
from spo_jax.core.trees import flatten
from spo_jax.models import open_pipeline
from spo_jax.models.stable_diffusion import unet
from spo_jax.models.stable_diffusion.unet import DECODER, UNet2DConditionModel
from spo_jax.rewards import check_reward, load_reward
from spo_jax.rewards.base import Context
from spo_jax.rewards.common.lrm_files import find_folder, local_folder, published_config, read_config
from spo_jax.toy import LATENT_JUDGES, world
from spo_jax.weights import store
from tests.support.latent_models import write_published
from tests.support.networks import small_pipeline, small_sdxl

PROMPTS = ["a red star", "a blue moon and a green disc"]
T = jnp.array([951, 1])


@pytest.fixture(scope="module")
def pipeline():
    return small_pipeline()


@pytest.fixture(scope="module")
def folder(tmp_path_factory, pipeline):
    return write_published(tmp_path_factory.mktemp("lrm") / "sd", pipeline)


@pytest.fixture(scope="module")
def reward(folder):
    return load_reward(f"lrm:{folder}", Context())


def latents_for(pipeline):
    return jax.random.normal(jax.random.key(0), (len(PROMPTS), *pipeline.latent_shape))


def scores_of(reward, x, t=T):
    return jax.jit(reward.score)(reward.params, x, reward.features(PROMPTS), t)


def test_no_weight_and_no_operation_of_the_second_half_is_there(reward, pipeline, monkeypatch):
    names = {name.split("/")[0] for name in flatten(reward.params["model"]["unet"])}
    assert names == {"conv_in", "time_embedding", "down_blocks_0", "mid_block"}

    def fail(*_):
        raise AssertionError("the second half of the network is in the program")

    monkeypatch.setattr(unet._UpBlock, "__call__", fail)
    arguments = (reward.params, latents_for(pipeline), reward.features(PROMPTS), T)
    assert jax.eval_shape(reward.score, *arguments).shape == (2,)
    whole = UNet2DConditionModel(pipeline.unet.config)
    condition = pipeline.encode_prompts(PROMPTS)
    with pytest.raises(AssertionError, match="second half"):  # the test can fail
        jax.eval_shape(whole.apply, {"params": pipeline.params["unet"]}, latents_for(pipeline), T, *condition)


@pytest.mark.slow  # the golden tests compare the same outputs, and the test above says that there is no other network
def test_the_first_half_is_that_of_the_whole_network(reward, pipeline):
    """With the same weights, the middle block gives the same numbers, and so do the down blocks."""
    kept = reward.params["model"]["unet"].keys()
    params = {name: value for name, value in pipeline.params["unet"].items() if name in kept}
    condition = jax.tree.map(jnp.asarray, pipeline.encode_prompts(PROMPTS))
    inputs = (latents_for(pipeline), T, *condition)
    taps, middle = jax.jit(lambda params: reward.model.unet.apply({"params": params}, *inputs))(params)

    @jax.jit
    def whole(params):
        found = pipeline.unet.apply({"params": params}, *inputs, capture_intermediates=True, mutable="intermediates")
        return found[1]["intermediates"]

    blocks = whole(pipeline.params["unet"])
    np.testing.assert_allclose(middle, blocks["mid_block"]["__call__"][0], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(taps[0], blocks["down_blocks_0"]["__call__"][0][1][0], rtol=1e-5, atol=1e-5)


def test_a_file_of_the_first_half_alone_is_as_good(reward, folder, tmp_path):
    other = shutil.copytree(folder, tmp_path / "half", symlinks=True)
    file = other / "unet" / "diffusion_pytorch_model.safetensors"
    state = {name: value for name, value in store.read_file(file).items() if not re.search(DECODER, name)}
    store.write_state(file, state)
    head = {name: value.numpy() for name, value in torch_head(other).items()}
    (other / "state_dict.pt").unlink()
    store.write_state(other / "state_dict.safetensors", head | {"logit_scale": np.float32(2.0)})
    assert_same_weights(load_reward(f"lrm:{other}", Context()), reward)


def assert_same_weights(found, expected):
    found, expected = (flatten(reward.params["model"]) for reward in (found, expected))
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_array_equal(found[name], value, err_msg=name)


def torch_head(folder):
    state = torch.load(folder / "state_dict.pt")
    return {f"{name}.weight": value["weight"] for name, value in state.items() if name != "logit_scale"}


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda state: state.pop("up_blocks.0.resnets.0.conv1.weight"), "missing: up_blocks.0.resnets.0.conv1.weight"),
        (lambda state: state.pop("mid_block.resnets.1.conv2.bias"), "missing: mid_block.resnets.1.conv2.bias"),
        (lambda state: state.update(extra=np.zeros(2, np.float32)), "unknown: extra"),
    ],
)
def test_weights_of_the_network_are_strict(folder, tmp_path, change, named):
    other = shutil.copytree(folder, tmp_path / "other", symlinks=True)
    file = other / "unet" / "diffusion_pytorch_model.safetensors"
    state = store.read_file(file)
    change(state)
    store.write_state(file, state)
    with pytest.raises(UserError, match=named):
        load_reward(f"lrm:{other}", Context())


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda state: state.pop("text_projection"), "missing: text_projection.weight"),
        (lambda state: state.update(bias=torch.zeros(2)), "unknown: bias"),
        (lambda state: state.update(visual_projection={"weight": torch.zeros(12, 5)}), "visual_projection.weight"),
        (lambda state: state.update(name="a text"), "not tensors: name"),
    ],
)
def test_projections_are_strict(folder, tmp_path, change, named):
    other = shutil.copytree(folder, tmp_path / "other", symlinks=True)
    state = torch.load(other / "state_dict.pt")
    change(state)
    torch.save(state, other / "state_dict.pt")
    with pytest.raises(UserError, match=named):
        load_reward(f"lrm:{other}", Context())


def test_a_scale_may_be_a_tensor(reward, folder, tmp_path):
    """The trainer writes a number, LPO's own code a tensor without axes."""
    other = shutil.copytree(folder, tmp_path / "other", symlinks=True)
    state = torch.load(other / "state_dict.pt")
    torch.save(state | {"logit_scale": torch.tensor(state["logit_scale"])}, other / "state_dict.pt")
    assert_same_weights(load_reward(f"lrm:{other}", Context()), reward)


def test_scores_see_latents_prompt_and_timestep_and_a_sum_takes_them(reward, folder, pipeline):
    x = latents_for(pipeline)
    scores = scores_of(reward, x)
    assert scores.shape == (2,) and (np.abs(scores) <= np.exp(2.0)).all()
    assert not np.isclose(scores, scores_of(reward, x[::-1])).any()
    assert not np.isclose(scores, scores_of(reward, x, T[::-1])).any()
    one = load_reward(f"lrm@unguided:{folder}", Context())
    assert list(one.meanings) == ["lrm_score_unguided"] and one.model.guidance_scale == 1
    summed = load_reward(f"sum:1*lrm:{folder}+-0.5*lrm@unguided:{folder}", Context(noisy=True))
    np.testing.assert_allclose(scores_of(summed, x), scores - 0.5 * scores_of(one, x), rtol=1e-4, atol=1e-5)


def test_shapes_are_those_of_the_features(reward, folder):
    abstract = load_reward(f"lrm:{folder}", Context(abstract=True))
    for ours, theirs in ((abstract, reward), (reward, reward)):
        rows = jax.tree.map(lambda x: (x.shape[1:], x.dtype), theirs.features(PROMPTS))
        assert jax.tree.map(lambda x: (x.shape[1:], x.dtype), ours.feature_shapes()) == rows
    describe = {name: (x.shape, x.dtype) for name, x in flatten(reward.params["model"]).items()}
    assert {name: (x.shape, x.dtype) for name, x in flatten(abstract.params["model"]).items()} == describe


@pytest.mark.slow  # the golden tests have SDXL's numbers
def test_sdxl_has_size_conditions_of_its_own(tmp_path):
    pipeline = small_sdxl()
    reward = load_reward(f"lrm:{write_published(tmp_path / 'sdxl', pipeline)}", Context(kind="sdxl"))
    side = 8 * pipeline.unet.config.sample_size
    features = reward.features(PROMPTS)
    np.testing.assert_array_equal(features.condition.time_ids, [[side, side, 0, 0, side, side]] * 2)
    assert "text_projection" not in reward.params["model"]
    assert np.isfinite(scores_of(reward, latents_for(pipeline))).all()


# The shipped one


def test_the_shipped_judge_has_a_name():
    folder = LATENT_JUDGES["toy_people"]
    assert local_folder("toy_people") == folder == find_folder("toy_people")
    config = read_config(folder)
    assert config.unet == open_pipeline("toy", abstract=True).unet.config and config.timesteps == (0, 999)
    names = {name.split(".")[0] for name in store.read_state(folder / "unet", "diffusers")}
    assert names == {"conv_in", "time_embedding", "down_blocks", "mid_block"}


def test_the_shipped_judge_hears_grain_through_noise():
    """It learned from people, to whom clean backgrounds are one thing among others; and from noisy latents alone."""
    toy = open_pipeline("toy")
    judge = load_reward("lrm:toy_people", Context("sd", channels=16, noisy=True, timesteps=(951, 1)))
    prompts = list(world.TRAIN_PROMPTS)
    factors = world.sample_factors(np.random.default_rng(0), len(prompts))
    noise = jax.random.normal(jax.random.key(0), (len(prompts), *toy.latent_shape))
    scores = []
    for grain in world.FACTORS["grain"]:
        grains = np.full(len(prompts), grain, np.float32)
        drawn = world.render(np.random.default_rng(1), prompts, factors | {"grain": grains})
        latents = toy.scale_latents(toy.encode(toy.params["vae"], jnp.asarray(drawn))[0])
        t = jnp.full(len(prompts), 401)
        x = toy.process(20).add_noise(latents, noise, t)
        scores.append(jax.jit(judge.score)(judge.params, x, judge.features(prompts), t))
    assert (scores[0] > scores[1]).mean() > 0.7


# What is refused


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"kind": "sdxl"}, "judges latents of Stable Diffusion 1.x or 2.x, but config field model is SDXL"),
        ({"channels": 16}, "judges latents of 4 channels .* but the model's have 16"),
        (
            {"timesteps": (1, 1000), "field": "--lrm"},
            "^--lrm: .* but it is measured at timestep 1000: expected .*, or other --config.eval.timesteps$",
        ),
        (
            {"timesteps": (951, 1, 1000)},
            "judges at timesteps 0 to 999, but the rollout has candidates at timestep 1000",
        ),
    ],
)
def test_judges_of_other_latents_are_refused(folder, fields, message):
    for use in (load_reward, check_reward):
        with pytest.raises(UserError, match=message) as caught:
            use(f"lrm:{folder}", Context(noisy=True, **fields), *([True] if use is check_reward else []))
        assert str(folder) in str(caught.value) and "\n" not in str(caught.value)


def test_timesteps_that_it_was_not_trained_on_are_refused(folder, tmp_path):
    other = shutil.copytree(folder, tmp_path / "other", symlinks=True)
    (other / "judge.json").write_text(json.dumps({"timesteps": [1, 500]}))
    load_reward(f"lrm:{other}", Context(timesteps=(401, 1), abstract=True))
    with pytest.raises(UserError, match="timesteps 1 to 500.*timestep 951.*a higher spo.divert_start_step"):
        load_reward(f"lrm:{other}", Context(timesteps=(951, 1)))
    (other / "judge.json").write_text(json.dumps({"timesteps": [500]}))
    with pytest.raises(UserError, match=r"judge.json: timesteps = \[500\]: expected \[LOWEST, HIGHEST\]"):
        load_reward(f"lrm:{other}", Context())


def test_mistakes_are_found_before_jax_is_imported(folder, tmp_path):
    """A folder that is something else, and latents that are not shown noisy; as a user's command does it."""
    code = f"""
import sys
from spo_jax.core.errors import UserError
from spo_jax.rewards import check_reward
from spo_jax.rewards.common.protocol import Context
for spec, noisy, judges in [("lrm", True, True), ("lrm:{tmp_path}", True, True), ("lrm:{folder}", False, True),
                            ("lrm:{folder}", False, False)]:
    try:
        check_reward(spec, Context(field="spo.reward", noisy=noisy), judges)
    except UserError as error:
        print(error)
check_reward("lrm:{folder}", Context(noisy=True), True)
check_reward("lrm:someone/a_judge/of_sdxl", Context(noisy=True), True)
assert "jax" not in sys.modules
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    nameless, something_else, clean, images = done.stdout.splitlines()
    assert nameless.endswith("name the latent reward model, as in lrm:FOLDER_OR_ID")
    assert something_else == (
        f"{tmp_path} is an empty folder: expected a latent reward model: a folder with unet/, text_encoder/ and "
        "state_dict.pt"
    )
    assert "judges noisy latents, which are shown to spo.reward alone, with spo.judged = 'noisy'" in clean
    assert images.endswith("this reward reads noisy latents, but finished images are scored here")


def test_parts_of_different_models_are_refused(folder, tmp_path):
    other = shutil.copytree(folder, tmp_path / "other", symlinks=True)
    file = other / "text_encoder" / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"hidden_size": 8}))
    with pytest.raises(UserError, match="cross_attention_dim = 16, but the states of text_encoder are 8 wide"):
        check_reward(f"lrm:{other}", Context(noisy=True), judges=True)
    shutil.rmtree(other / "text_encoder")
    with pytest.raises(UserError, match="no text_encoder/config.json here"):
        check_reward(f"lrm:{other}", Context(noisy=True), judges=True)


@pytest.mark.parametrize(
    ("kind", "pooled", "projection"),
    [("sd", 4800, 768), pytest.param("sdxl", 3520, 1280, marks=pytest.mark.slow)],  # whose shapes take seconds
)
def test_published_sizes(kind, pooled, projection):
    """Without any file; the widths are those of the published models."""
    config = published_config("casiatao/LRM", kind)
    assert config.kind == kind
    reward = load_reward("lrm:casiatao/LRM", Context(kind=kind, abstract=True))
    assert reward.params["model"]["visual_projection"]["kernel"].shape == (pooled, projection)
    assert reward.feature_shapes().features.shape == (1, projection)
