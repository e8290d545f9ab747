"""Adapters and images that several tests of the model families use."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from spo_jax.core.trees import flatten, unflatten
from spo_jax.core.typing import Params
from spo_jax.nn.lora import init_lora, merge
from spo_jax.toy import ASSETS
from spo_jax.weights.components import text_state
from spo_jax.weights.rules import to_state

FOLDER = ASSETS / "pipeline"
PROMPTS = ["a red star", "a blue moon", "an orange heart"]
# Settings of the images that are compared with diffusers'; errors of a step would show after four of them.
IMAGES = {"steps": 4, "guidance": 5.0}
RANK = 2
SCALE = 0.5


def unit(images: Any) -> np.ndarray:
    """Converts images near [-1, 1] to [0, 1]."""
    return np.clip(np.asarray(images) / 2 + 0.5, 0, 1)


def random_adapter(params: Params, std: float = 0.3) -> Params:
    """Draws an adapter of rank `RANK` on all attentions of a UNet, with weights that have a visible effect."""
    rng = np.random.default_rng(0)
    shapes = flatten(jax.eval_shape(lambda: init_lora(jax.random.key(0), params, RANK)))
    return unflatten({path: jnp.asarray(rng.normal(0, std, leaf.shape), jnp.float32) for path, leaf in shapes.items()})


def merged_states(pipeline: Any, adapter: Params | None) -> dict[str, dict[str, np.ndarray]]:
    """Returns the weights that files of a pipeline with a merged adapter must contain, under torch's names."""
    params = pipeline.params
    unet = params["unet"] if adapter is None else merge(params["unet"], adapter, SCALE)
    states = {"unet": to_state(unet), "vae": to_state(params["vae"])}
    return states | {name: text_state(params[name]) for name in params if name.startswith("text_encoder")}


def assert_same_states(found: dict[str, dict[str, Any]], expected: dict[str, dict[str, np.ndarray]]) -> None:
    """Asserts that two pipelines have the same weights under the same names."""
    assert found.keys() == expected.keys()
    for name, state in expected.items():
        assert found[name].keys() == state.keys()
        for key, array in state.items():
            np.testing.assert_array_equal(np.asarray(found[name][key]), array, err_msg=f"{name}, {key}")
