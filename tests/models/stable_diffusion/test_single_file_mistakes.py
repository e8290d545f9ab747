"""Single files that cannot be read or written are refused with their kind and the reason."""

import random
import re
from pathlib import Path

import numpy as np
import pytest

from spo_jax.core.errors import UserError
from spo_jax.models.stable_diffusion.config import UNetConfig
from spo_jax.models.stable_diffusion.single_file import read_single_file, write_single_file
from spo_jax.nn.clip_config import CLIPTextConfig
from spo_jax.nn.vae import VAEConfig
from spo_jax.weights import store
from tests.support import fuzzing
from tests.weights.checkpoints import model_of, state_of


@pytest.mark.parametrize(
    ("drop", "add", "message"),
    [
        (
            "input_blocks.1.0.in_layers.2.bias",
            None,
            "1 missing: model.diffusion_model.input_blocks.1.0.in_la.*bias$",
        ),
        ("input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight", None, "1 missing: .*attn2.to_k.weight$"),
        ("decoder.up.0.block.2.conv1.weight", None, "1 missing: first_stage_model.decoder.up.0.block.2.conv1.weight$"),
        ("layers.1.mlp.fc2.bias", None, "1 missing: cond_stage_model.transformer.text_model.encoder.*1.mlp.fc2.bias$"),
        (
            None,
            "model.diffusion_model.input_blocks.1.1.adapter.weight",
            "1 unknown: .*blocks.1.1.adapter.weight$",
        ),
        (None, "model.diffusion_model.output_blocks.9.0.in_layers.0.weight", "1 unknown: .*output_blocks.9.0"),
        (None, "embedding_manager.weight", "1 unknown: embedding_manager.weight$"),
    ],
)
def test_missing_and_unknown_keys_are_named(tmp_path: Path, drop: str | None, add: str | None, message: str) -> None:
    path = tmp_path / "x.safetensors"
    write_single_file(path, "sd15", {name: state_of(part) for name, part in model_of("sd15").items()})
    state = {key: array for key, array in store.read_file(path).items() if drop is None or not key.endswith(drop)}
    assert (len(state) < len(store.read_file(path))) == (drop is not None)
    store.write_state(path, state | ({add: np.ones(3, np.float32)} if add else {}))
    with pytest.raises(
        UserError, match=rf"x.safetensors: not a whole checkpoint of sd15, or of another model: {message}"
    ):
        read_single_file(path)


def test_a_file_without_a_component_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    write_single_file(path, "sdxl", {name: state_of(part) for name, part in model_of("sdxl").items()})
    state = store.read_file(path)
    for prefix in ("first_stage_model.", "conditioner.embedders.1."):
        store.write_state(path, {key: array for key, array in state.items() if not key.startswith(prefix)})
        with pytest.raises(UserError, match=rf"not a whole checkpoint of sdxl.*missing: {prefix}"):
            read_single_file(path)
    store.write_state(path, {key: array for key, array in state.items() if key.startswith("model.")})
    with pytest.raises(UserError, match=r"does not have a known text encoder \(model.diffusion_model.\*\): expected a"):
        read_single_file(path)


SPECK = np.ones((2, 2), np.float32)


@pytest.mark.parametrize(
    ("key", "name"),
    [
        ("model.diffusion_model.joint_blocks.0.x_block.mlp.fc1.weight", "Stable Diffusion 3"),
        ("double_blocks.0.img_attn.qkv.weight", "Flux"),
        ("conditioner.embedders.0.model.ln_final.weight", "the SDXL refiner"),
        ("control_model.time_embed.0.weight", "a ControlNet"),
        ("edm_mean", r"Playground v2\.5"),
        ("lora_unet_mid_block_attentions_0_proj_in.lora_down.weight", "a LoRA, which spo_jax.sample takes as --lora"),
        ("unet.mid_block.attentions.0.to_q.lora.up.weight", r"a LoRA"),
        ("down_blocks.0.resnets.0.norm1.weight", "one component of a diffusers folder"),
        ("blocks.0.cross_attn.q_linear.weight", r"not a single-file checkpoint .* found blocks.0.\*"),
    ],
)
def test_other_architectures_are_named(tmp_path: Path, key: str, name: str) -> None:
    store.write_state(tmp_path / "x.safetensors", {key: SPECK})
    with pytest.raises(UserError, match=rf"x.safetensors is {name}"):
        read_single_file(tmp_path / "x.safetensors")


@pytest.mark.parametrize(("more", "name"), [(5, "an inpainting model"), (4, "an Instruct"), (2, "of an unknown")])
def test_unets_with_more_inputs_are_named(tmp_path: Path, more: int, name: str) -> None:
    path = tmp_path / "x.safetensors"
    write_single_file(path, "sd15", {name: state_of(part) for name, part in model_of("sd15").items()})
    wide = {"model.diffusion_model.input_blocks.0.0.weight": np.ones((32, 4 + more, 3, 3), np.float32)}
    store.write_state(path, store.read_file(path) | wide)
    with pytest.raises(UserError, match=rf"x.safetensors is {name}.* takes {4 + more} channels and returns 4"):
        read_single_file(path)


def test_tensors_of_other_shapes_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    write_single_file(path, "sd21", {name: state_of(part) for name, part in model_of("sd21").items()})
    odd = {"cond_stage_model.model.transformer.resblocks.0.attn.in_proj_weight": np.ones((5, 64), np.float32)}
    store.write_state(path, store.read_file(path) | odd)
    with pytest.raises(UserError, match=r"x.safetensors: its text_encoder has tensors of another shape"):
        read_single_file(path)


def test_infinite_numbers_are_not_written(tmp_path: Path) -> None:
    components = {name: state_of(part) for name, part in model_of("sd15").items()}
    components["unet"]["conv_in.bias"] = np.full(32, np.inf, np.float16)
    with pytest.raises(UserError, match=r"infinite numbers in float16, .*: model.*input_blocks.0.0.bias;"):
        write_single_file(tmp_path / "x.safetensors", "sd15", components)
    assert not list(tmp_path.iterdir())


def test_components_of_another_kind_raise(tmp_path: Path) -> None:
    components = {name: state_of(part) for name, part in model_of("sd15").items()}
    with pytest.raises(ValueError, match="kind 'sdxl' with"):
        write_single_file(tmp_path / "x.safetensors", "sdxl", components)
    components["unet"]["down_blocks.0.motion.weight"] = SPECK
    with pytest.raises(ValueError, match="without a place in the other layout: down_blocks.0.motion.weight"):
        write_single_file(tmp_path / "x.safetensors", "sd15", components)


def _damaged_state(case: random.Random, state: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Returns a state of which a few tensors are missing, or have other names, shapes or types."""
    state = dict(state)
    for _ in range(case.randint(1, 3)):
        key = case.choice(list(state))
        array = state.pop(key)
        kind = case.randrange(6)
        if kind == 0:  # another number in the name
            number = case.choice(("0", "7", "24", "999999999999", "00", "1" * 300))
            state[re.sub(r"\d+", number, key, count=1)] = array
        elif kind == 1:  # a part of the name is missing, or doubled
            parts = key.split(".")
            at = case.randrange(len(parts))
            state[".".join(parts[:at] + parts[at + 1 :] if case.random() < 0.5 else parts[:at] + parts[at:] * 2)] = (
                array
            )
        elif kind == 2:  # other numbers of axes, none and empty ones
            state[key] = case.choice((array.reshape(-1), array[None], array[..., None], array.flat[0], array[:0]))
            state[key] = np.asarray(state[key])
        elif kind == 3:
            state[key] = np.repeat(array, 2, axis=0) if array.ndim else array
        elif kind == 4:
            state[key] = array.astype(case.choice((np.int64, np.float16, np.float64)))
    return state


@pytest.mark.parametrize("kind", ["sd15", "sd21", "sdxl"])
def test_single_files_damaged_at_random_are_read_or_refused(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also those whose names count to a million million; what is read has configs that their readers take or refuse."""
    path = Path("x.safetensors")
    write_single_file(tmp_path / path, kind, {name: state_of(part) for name, part in model_of(kind).items()})
    whole = store.read_file(tmp_path / path)
    readers = {"unet": UNetConfig, "vae": VAEConfig, "text_encoder": CLIPTextConfig, "text_encoder_2": CLIPTextConfig}

    def read(state: dict[str, np.ndarray]) -> None:
        monkeypatch.setattr(store, "read_file", lambda _: state)
        configs = read_single_file(path).configs
        for name, reader in readers.items():
            if name in configs:
                reader.from_dict(configs[name], f"{path}: {name}")

    read(whole)
    for case in fuzzing.cases(4):
        state = _damaged_state(case, whole)
        fuzzing.read_or_refused(case, lambda state=state: read(state), megabytes=100)


def test_a_name_that_counts_to_a_million_million_is_refused_at_once(tmp_path: Path) -> None:
    """Before, the names of all blocks up to it were listed."""
    state = {
        "cond_stage_model.transformer.text_model.encoder.layers.999999999999.mlp.fc1.weight": SPECK,
        "model.diffusion_model.input_blocks.999999999999.0.op.weight": SPECK,
        "model.diffusion_model.input_blocks.3.0.op.weight": SPECK,
    }
    store.write_state(tmp_path / "x.safetensors", state)
    with pytest.raises(UserError, match="unknown: .*layers.999999999999"):
        read_single_file(tmp_path / "x.safetensors")
