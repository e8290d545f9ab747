"""Guided predictions of any pipeline, for copies of prompts that are folded into one batch."""

import ast
import collections
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from spo_jax.core.rows import take_rows
from spo_jax.models.base import Guidance, Pipeline, bind_denoise, count_rows, denoise, repeat_rows

ROOT = Path(__file__).resolve().parent.parent.parent
SCALE = 5.0
PARAMS = {"w": jnp.float32(2)}
CONDITION = {"prompt": jnp.array([[1.0], [2.0], [3.0]])}
UNCONDITIONAL = {"prompt": jnp.array([[-1.0]])}


def network(x, t, prompt, lora=0.0):
    """Depends on every input, and on no other row."""
    t = np.broadcast_to(t, len(x)).reshape(-1, 1, 1, 1)
    return 2 * x * np.sin(t / 100) + np.asarray(prompt).reshape(-1, 1, 1, 1) ** 2 + lora


class OneLine(Pipeline):
    """A pipeline whose network is one line, and which records the rows of each call."""

    FAMILY = TRAINED = "network"
    folder = Path()
    params = {"network": PARAMS}
    kind = "one line"
    dtype = jnp.float32
    latent_shape = (4, 4, 1)
    image_size = (4, 4)
    downscale = 1
    text_params = {}
    token_shape = (1, 1)

    def __init__(self):
        self.calls = []

    def predict(self, params, lora, x, t, condition, lora_scale=1.0):
        self.calls.append((condition["prompt"].ravel().tolist(), t.ravel().tolist()))
        t = t.reshape(-1, 1, 1, 1)
        prompt = condition["prompt"].reshape(-1, 1, 1, 1)
        update = 0.0 if lora is None else lora["a"] * lora_scale
        return params["w"] * x * jnp.sin(t / 100) + prompt**2 + update


@pytest.fixture
def pipeline():
    return OneLine()


def expected(x, t, lora=0.0, unconditional=UNCONDITIONAL):
    """Computes each copy of the prompts by itself."""
    with_prompt = network(x, t, CONDITION["prompt"], lora)
    without = network(x, t, unconditional["prompt"], lora)
    return without + SCALE * (with_prompt - without)


@pytest.fixture
def x():
    """Two candidates for each of three prompts."""
    return np.random.default_rng(0).normal(size=(2, 3, 4, 4, 1)).astype(np.float32)


def test_copies_of_prompts_are_folded_into_one_batch(pipeline, x):
    """The copies of a prompt are side by side, and the unconditional row is used for all of them."""
    guidance = Guidance(CONDITION, UNCONDITIONAL, SCALE)
    found = denoise(pipeline, PARAMS, None, guidance, jnp.asarray(x), jnp.int32(501))
    for candidate, ours in zip(x, found, strict=True):
        np.testing.assert_allclose(ours, expected(candidate, 501), rtol=1e-5, atol=1e-5)
    ((prompts, timesteps),) = pipeline.calls
    assert [prompt for prompt in prompts if prompt > 0] == [1, 1, 2, 2, 3, 3]
    assert prompts.count(-1) == 6 and timesteps == [501] * 12


def test_without_copies_each_row_has_its_timestep(pipeline, x):
    t = np.array([1, 501, 901])
    guidance = Guidance(CONDITION, UNCONDITIONAL, SCALE)
    found = denoise(pipeline, PARAMS, None, guidance, jnp.asarray(x[0]), jnp.asarray(t))
    np.testing.assert_allclose(found, expected(x[0], t), rtol=1e-5, atol=1e-5)


def test_each_prompt_may_have_its_unconditional_row(pipeline, x):
    unconditional = {"prompt": jnp.array([[-1.0], [-2.0], [-3.0]])}
    found = denoise(pipeline, PARAMS, None, Guidance(CONDITION, unconditional, SCALE), jnp.asarray(x), jnp.int32(501))
    for candidate, ours in zip(x, found, strict=True):
        wanted = expected(candidate, 501, unconditional=unconditional)
        np.testing.assert_allclose(ours, wanted, rtol=1e-5, atol=1e-5)


def test_the_adapter_and_its_scale_reach_the_network(pipeline, x):
    bound = bind_denoise(pipeline, PARAMS, {"a": 0.5}, Guidance(CONDITION, UNCONDITIONAL, SCALE), lora_scale=3.0)
    np.testing.assert_allclose(
        bound(jnp.asarray(x[0]), jnp.int32(1)), expected(x[0], 1, lora=1.5), rtol=1e-5, atol=1e-5
    )


def test_rows_are_repeated_side_by_side():
    """The copies of a prompt stay on its device."""
    condition = (jnp.arange(3.0).reshape(3, 1, 1), None, jnp.arange(18.0).reshape(3, 6))
    assert take_rows(condition, np.array([2, 0]))[0].ravel().tolist() == [2, 0]
    repeated = repeat_rows(condition, 2)
    assert repeated[0].ravel().tolist() == [0, 0, 1, 1, 2, 2]
    assert repeated[1] is None and repeated[2].shape == (6, 6)
    assert (count_rows(condition), count_rows(repeated)) == (3, 6)


OWN = ("spo_jax/models/stable_diffusion", "spo_jax/methods/lrm", "spo_jax/build_toy")  # know the family


def test_nothing_asks_a_pipeline_for_more_than_the_protocol_has():
    """So that a family which is written to the protocol can be drawn with, evaluated, shown and trained."""
    asked = collections.defaultdict(set)
    for file in (ROOT / "spo_jax").rglob("*.py"):
        name = file.relative_to(ROOT).as_posix()
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))) if not name.startswith(OWN) else ():
            if isinstance(node, ast.Attribute) and ast.unparse(node.value).split(".")[-1] == "pipeline":
                asked[node.attr].add(name)
    assert {"predict", "latent_shape_of"} <= asked.keys()
    unknown = {member: files for member, files in asked.items() if not hasattr(OneLine, member)}
    assert unknown == {"facts": {"spo_jax/work/doctor/model.py"}}  # where it is optional


def test_the_families_have_the_members_of_a_pipeline(toy, sdxl):
    assert isinstance(toy.pipeline, Pipeline) and isinstance(sdxl, Pipeline)
