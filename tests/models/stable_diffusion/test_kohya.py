"""kohya's names are found from the model's own names; for SDXL they are SGM's, which diffusers and web UIs know."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
from diffusers import StableDiffusionXLPipeline, UNet2DConditionModel
from safetensors.numpy import load_file

from spo_jax.core.errors import UserError
from spo_jax.core.trees import flatten
from spo_jax.models.lora import read_lora, write_lora
from spo_jax.models.stable_diffusion import kohya
from spo_jax.weights import store
from spo_jax.weights.lora import read as lora_files
from spo_jax.weights.rules import module_name, module_path, torch_key
from tests.models.stable_diffusion.published import published_unet
from tests.weights.loras import assert_same, pair, random_lora


def test_names_are_resolved_with_the_model(unet: Any, sdxl_unet: Any, shape_tree: Any) -> None:
    for model in (unet, sdxl_unet):
        paths = {path.rpartition("/")[0] for path in flatten(shape_tree(model))}
        modules = [module_name(path.split("/")) for path in paths]
        names = kohya.module_names(modules)
        # Among them are conv_in, time_embedding.linear_1 and to_out.0, which splitting at "_" would get wrong.
        assert sorted(names.values()) == sorted(modules * (2 if model is sdxl_unet else 1))  # SDXL also has SGM's.
        assert names["lora_unet_time_embedding_linear_1"] == "time_embedding.linear_1"
        assert names["lora_unet_conv_in"] == "conv_in"
        assert all("/".join(module_path(name)) in paths for name in modules)
    with pytest.raises(ValueError, match=r"lora_unet_a_b could be a.b or a_b"):
        kohya.module_names(["a.b", "a_b"])


def test_names_at_the_published_sizes(shape_tree: Any) -> None:
    for kind, keys, targets in (("sd15", 686, 128), ("sdxl", 1680, 560)):
        unet = published_unet(kind)
        flat = flatten(shape_tree(unet))
        assert {torch_key(path.split("/")) for path in flat} == unet.state_dict().keys() and len(flat) == keys
        modules = {name.rpartition(".")[0] for name in unet.state_dict()}
        names = kohya.module_names(modules)
        attended = [name for name in modules if name.endswith(("to_q", "to_k", "to_v", "to_out.0"))]
        assert len(attended) == targets
        assert names["lora_unet_mid_block_attentions_0_transformer_blocks_0_ff_net_0_proj"] == (
            "mid_block.attentions.0.transformer_blocks.0.ff.net.0.proj"
        )
        for given in (None, modules):  # A LoRA on all attentions shows the model's blocks by itself.
            written = kohya.file_names(attended, given)
            assert {name: names[flat] for name, flat in written.items()} == {name: name for name in attended}
            assert len(set(written.values())) == targets
    blocks = {re.match(r"lora_unet_(.*?)_transformer", flat)[1] for flat in written.values()}
    sgm = {f"input_blocks_{i}_1" for i in (4, 5, 7, 8)} | {f"output_blocks_{i}_1" for i in range(6)}
    assert blocks == sgm | {"middle_block_1"}


@pytest.mark.parametrize("layout", ["diffusers", "kohya"])
def test_the_published_lora_of_sdxl_fits(layout: str, shape_tree: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """It has rank 64 and 560 targets. Names and shapes are those of the published model; nothing is allocated."""
    unet = published_unet("sdxl")
    shapes = shape_tree(unet)
    state = {}
    number = np.zeros((), np.float16)
    attended = [
        (name, module.weight.shape)
        for name, module in unet.named_modules()
        if name.endswith((".to_q", ".to_k", ".to_v", ".to_out.0"))
    ]
    flat = kohya.file_names(name for name, _ in attended)
    for name, (out, features) in attended:
        halves = np.broadcast_to(number, (64, features)), np.broadcast_to(number, (out, 64))
        if layout == "kohya":
            state |= pair(flat[name], *halves, style="lora_{}.weight") | {f"{flat[name]}.alpha": np.array(64.0)}
        else:
            state |= pair(f"unet.{name}", *halves)
    monkeypatch.setattr(lora_files, "find_lora", Path)
    monkeypatch.setattr(store, "read_file", lambda path: state)
    monkeypatch.setattr(store, "read_metadata", lambda path: {"format": "pt"})

    class Accepted(Exception):
        """Carries the modules that were read, before they would be allocated in float32."""

    def unify(modules: dict) -> None:
        raise Accepted(modules)

    monkeypatch.setattr(lora_files, "_unify", unify)
    with pytest.raises(Accepted) as accepted:
        read_lora("lora.safetensors", shapes)
    modules = accepted.value.args[0]
    assert modules.keys() == {name for name, _ in attended} and len(modules) == 560
    assert {module.rank for module in modules.values()} == {64}
    assert {module.scale for module in modules.values()} == {1.0}
    assert sum(module.down.size + module.up.size for module in modules.values()) == 64 * 1_451_520


def _sdxl_pipe(unet: Any) -> Any:
    copy = UNet2DConditionModel.from_config(unet.config)
    copy.load_state_dict(unet.state_dict())
    names = ("vae", "text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2", "scheduler")
    return StableDiffusionXLPipeline(unet=copy.eval(), **dict.fromkeys(names), add_watermarker=False)


@pytest.mark.parametrize("alpha", [3.0, 8.0])
def test_diffusers_applies_sgm_names(tmp_path: Path, sdxl_unet: Any, shape_tree: Any, alpha: float) -> None:
    """The modules are counted as well, because diffusers drops unknown names silently."""
    lora = random_lora(shape_tree(sdxl_unet), rank=4, alpha=alpha)
    write_lora(tmp_path / "x.safetensors", lora, "kohya")
    state = load_file(tmp_path / "x.safetensors")
    # The blocks have one layer each, so this is the first attention of level 1.
    name = "lora_unet_input_blocks_3_1_transformer_blocks_1_attn1_to_k"
    assert state[f"{name}.lora_down.weight"].shape == (4, 32)
    assert not [key for key in state if re.search("down_blocks|mid_block|up_blocks", key)]
    pipe = _sdxl_pipe(sdxl_unet)
    pipe.load_lora_weights(tmp_path, weight_name="x.safetensors")
    adapted = {n: m for n, m in pipe.unet.named_modules() if isinstance(m, peft.tuners.lora.LoraLayer)}
    assert adapted.keys() == lora.modules().keys() and len(adapted) == 2 * 4 * (2 + 2 + 4)
    for module_name_, module in adapted.items():
        a, b = lora.folded().modules()[module_name_]
        assert module.scaling == {"default_0": 1.0}
        assert np.array_equal(module.lora_A["default_0"].weight.detach().numpy(), a.T)
        assert np.array_equal(module.lora_B["default_0"].weight.detach().numpy(), b.T)


def test_both_kinds_of_names_of_sdxl_are_read(tmp_path: Path, sdxl_unet: Any, shape_tree: Any) -> None:
    shapes = shape_tree(sdxl_unet)
    lora = random_lora(shapes, rank=4, alpha=8)
    write_lora(tmp_path / "x.safetensors", lora, "kohya")
    state = load_file(tmp_path / "x.safetensors")
    back = {flat: kohya.kohya_name(name) for name, flat in kohya.file_names(lora.modules()).items()}
    others = {back[key.partition(".")[0]] + "." + key.partition(".")[2]: array for key, array in state.items()}
    assert not state.keys() & others.keys()
    store.write_state(tmp_path / "y.safetensors", others)
    for name in ("x", "y"):
        assert_same(read_lora(tmp_path / f"{name}.safetensors", shapes), lora.folded())


def test_a_lora_on_some_blocks_of_sdxl_is_numbered_by_its_model() -> None:
    """The model shows how many attentions a level has; the LoRA by itself shows only one."""
    up = "up_blocks.1.attentions.0.transformer_blocks.1.attn1.to_q"
    model = [up, "up_blocks.1.attentions.2.proj_in", "down_blocks.2.attentions.1.proj_in"]
    assert kohya.file_names([up], model)[up] == "lora_unet_output_blocks_3_1_transformer_blocks_1_attn1_to_q"
    middle = "mid_block.attentions.0.transformer_blocks.7.attn1.to_q"
    assert kohya.file_names([middle])[middle] == "lora_unet_middle_block_1_transformer_blocks_7_attn1_to_q"
    with pytest.raises(ValueError, match="SDXL does not have these modules: nowhere.to_q"):
        kohya.file_names(["nowhere.to_q"], model)


@pytest.mark.parametrize("layout", ["diffusers", "kohya"])
def test_a_lora_of_the_other_architecture_is_named(
    tmp_path: Path, unet: Any, sdxl_unet: Any, shape_tree: Any, layout: str
) -> None:
    models = {"SD 1.x or 2.x": shape_tree(unet), "SDXL": shape_tree(sdxl_unet)}
    for ours, theirs in (("SDXL", "SD 1.x or 2.x"), ("SD 1.x or 2.x", "SDXL")):
        lora = random_lora(models[theirs])
        write_lora(tmp_path / "x.safetensors", lora, layout)
        with pytest.raises(UserError, match=f"x.safetensors is a LoRA of {theirs}, and this model is {ours}: choose"):
            read_lora(tmp_path / "x.safetensors", models[ours])
        assert kohya.architecture(lora.modules()) == kohya.architecture(load_file(tmp_path / "x.safetensors")) == theirs
    assert kohya.architecture(["mid_block.attentions.0.transformer_blocks.0.attn1.to_q"]) is None


def test_a_kohya_file_needs_a_model(tmp_path: Path, unet: Any, shape_tree: Any) -> None:
    write_lora(tmp_path / "x.safetensors", random_lora(shape_tree(unet)), "kohya")
    with pytest.raises(UserError, match=r"x.safetensors has kohya's names, which can only be read with a model"):
        read_lora(tmp_path / "x.safetensors")


SD, SDXL = "down_blocks.0.attentions.0.transformer_blocks.0", "down_blocks.1.attentions.0.transformer_blocks.1"
SGM = "https://github.com/Stability-AI/generative-models"


@pytest.mark.parametrize(
    ("block", "text_width", "prediction", "expected"),
    [
        (SD, 768, "epsilon", ("sd_v1", "stable-diffusion-v1", "diffusers")),
        (SD, 768, None, ("sd_v1", "stable-diffusion-v1", "diffusers")),
        (SD, 768, "v_prediction", ("sd_v1_v", "stable-diffusion-v1", "diffusers")),
        (SD, 1024, "epsilon", ("sd_v2", "stable-diffusion-v2-512", "diffusers")),
        (SD, 1024, "v_prediction", ("sd_v2_v", "stable-diffusion-v2-768-v", "diffusers")),
        (SD, 1024, None, None),
        (SDXL, 2048, None, ("sdxl_base_v1-0", "stable-diffusion-xl-v1-base", SGM)),
        (SD, 64, "epsilon", None),
    ],
)
def test_the_kind_of_base_model_has_the_names_of_kohya_and_of_the_model_spec(
    block: str, text_width: int, prediction: str | None, expected: tuple | None
) -> None:
    """As sd-scripts writes them: get_model_version_str_for_sd1_sd2, MODEL_VERSION_SDXL_BASE_V1_0, sai_model_spec.py."""
    widths = {f"{block}.attn1.to_k": 320, f"{block}.attn2.to_q": 320, f"{block}.attn2.to_k": text_width}
    assert kohya.base_version(widths, prediction) == expected
