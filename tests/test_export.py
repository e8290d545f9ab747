"""The function of the command export writes single files and SDXL's names, and checks its arguments first.

`tests/e2e/test_sample_and_export.py` exports runs.
"""

import jax
import numpy as np
import pytest

from spo_jax.core.errors import UserError
from spo_jax.core.trees import flatten, unflatten
from spo_jax.export import export
from spo_jax.models import open_pipeline
from spo_jax.models.lora import read_lora, write_lora
from spo_jax.models.stable_diffusion.single_file import read_single_file
from spo_jax.weights.lora import LoRA
from spo_jax.weights.rules import module_name
from spo_jax.weights.store import read_file, read_state
from spo_jax.work.export import source as work
from spo_jax.work.export.files import export as write_files
from tests.models.helpers import RANK, SCALE, random_adapter

MODULE = "mid_block/attentions_0/transformer_blocks_1/attn2/to_v"


def take(tree, path):
    """Returns the subtree at a path."""
    for part in path.split("/"):
        tree = tree[part]
    return tree


@pytest.fixture(scope="module")
def adapter(tiny_sdxl):
    return random_adapter(open_pipeline(tiny_sdxl, abstract=True).params["unet"])


@pytest.fixture(scope="module")
def lora_file(adapter, tmp_path_factory):
    """A LoRA of the small SDXL pipeline in diffusers' layout."""
    file = tmp_path_factory.mktemp("lora") / "lora.safetensors"
    write_lora(file, LoRA(jax.tree.map(np.asarray, adapter), SCALE * RANK, RANK))
    return file


def test_a_single_file_holds_the_merged_model(adapter, tiny_sdxl, lora_file, tmp_path):
    out = tmp_path / "model.safetensors"
    export(lora_file, "single-file", out, model=str(tiny_sdxl), dtype="float16")
    halves = take(adapter, MODULE)
    update = np.asarray(halves["lora_A"]) @ np.asarray(halves["lora_B"]) * np.float32(SCALE)
    key = f"{module_name(MODULE.split('/'))}.weight"
    expected = read_state(tiny_sdxl / "unet", "diffusers")[key] + update.T
    found = read_single_file(out).components["unet"][key]
    assert found.dtype == np.float16
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-3)
    assert np.abs(update).max() > 0.1
    with pytest.raises(UserError, match="model.safetensors exists already: .*--overwrite"):
        export(lora_file, "single-file", out, model=str(tiny_sdxl))


def test_a_lora_of_sdxl_has_the_names_of_sgm(tiny_sdxl, lora_file, tmp_path):
    out = tmp_path / "kohya.safetensors"
    export(lora_file, "kohya", out, model=str(tiny_sdxl))
    assert "lora_unet_input_blocks_4_1_transformer_blocks_0_attn1_to_k.alpha" in read_file(out)
    with pytest.raises(UserError, match="kohya.safetensors is a LoRA of SDXL, and this model is SD 1.x or 2.x"):
        export(out, "diffusers", tmp_path / "x.safetensors", model="toy")


def test_blocks_of_a_runs_lora_are_numbered_from_the_named_model(adapter, tiny_sdxl, tmp_path, monkeypatch):
    """A LoRA on some of the attentions does not show by itself which model it is for."""
    some = {name: leaf for name, leaf in flatten(adapter).items() if "down_blocks_1/" in name and "blocks_0/" in name}
    lora = LoRA(jax.tree.map(np.asarray, unflatten(some)), RANK, RANK)
    monkeypatch.setattr(work, "_from_checkpoint", lambda folder, base: (lora, base, None))
    write_files(tmp_path, "kohya", tmp_path / "x.safetensors", work.Base(str(tiny_sdxl)))
    assert all(name.startswith("lora_unet_input_blocks_") for name in read_file(tmp_path / "x.safetensors"))


@pytest.mark.parametrize("form", ["diffusers", pytest.param("single-file", marks=pytest.mark.slow)])
def test_a_strength_is_folded_into_what_is_written(adapter, tiny_sdxl, lora_file, tmp_path, form):
    """At strength 1, the file does what the LoRA does at a quarter."""
    out = tmp_path / "quarter.safetensors"
    export(lora_file, form, out, model=str(tiny_sdxl), scale=0.25)
    halves = {name: np.asarray(half) for name, half in take(adapter, MODULE).items()}
    name = module_name(MODULE.split("/"))
    expected = halves["lora_A"] @ halves["lora_B"] * np.float32(SCALE / 4)
    if form == "diffusers":
        lora_a, lora_b = read_lora(out).modules()[name]
        found = lora_a @ lora_b
    else:
        plain = read_state(tiny_sdxl / "unet", "diffusers")[f"{name}.weight"]
        found = (read_single_file(out).components["unet"][f"{name}.weight"] - plain).T
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-5)
    assert np.abs(expected).max() > 1e-2


def test_arguments_are_checked_before_anything_is_read(tmp_path):
    absent = tmp_path / "absent"
    with pytest.raises(UserError, match="--dtype=float16: only --format=single-file has a choice"):
        export(absent, "merged", tmp_path / "merged", dtype="float16")
    with pytest.raises(UserError, match="--out=.*model: the name of a checkpoint has to end in .safetensors"):
        export(absent, "single-file", tmp_path / "model")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("form", "how", "message"),
    [
        ("webui", {}, "^--format=webui: expected diffusers, kohya, merged, single-file$"),
        ("Kohya", {}, "^--format=Kohya: expected diffusers"),
        ("kohya", {"scale": 0.0}, "^--scale=0: expected a strength other than 0, of at most 100$"),
        ("single-file", {"dtype": "fp16"}, "^--dtype=fp16: expected float32, float16$"),
        ("merged", {}, "lora.safetensors: 'merged' is a folder; --format=single-file writes one file$"),
    ],
)
def test_arguments_of_the_function_are_checked_as_flags_are(tmp_path, form, how, message):
    with pytest.raises(UserError, match=message):
        export("absent", form, tmp_path / "lora.safetensors", **how)
