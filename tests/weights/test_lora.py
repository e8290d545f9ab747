"""LoRA files: both layouts load in diffusers with the right scale, and come back as they were."""

import json
import re
from pathlib import Path
from typing import Any

import jax
import numpy as np
import peft
import pytest
import torch
from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline, UNet2DConditionModel
from diffusers.utils import convert_state_dict_to_diffusers
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from safetensors.numpy import load_file, save_file

from spo_jax.core.errors import UserError
from spo_jax.core.trees import flatten, unflatten
from spo_jax.models import presets
from spo_jax.weights import kohya, store
from spo_jax.weights import lora as lora_files
from spo_jax.weights.lora import METADATA_KEY, LoRA, read_lora, write_lora
from spo_jax.weights.rules import module_name, module_path, torch_key

TARGETS = ("to_q", "to_k", "to_v", "to_out_0")
SHORT = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"


def _random_lora(shapes: dict[str, Any], rank: int = 4, alpha: float = 4.0, seed: int = 0) -> LoRA:
    """A LoRA on the attention layers of a tree of shapes, with weights large enough to be seen."""
    rng = np.random.default_rng(seed)
    flat = {}
    for path, leaf in flatten(shapes).items():
        module, _, name = path.rpartition("/")
        if name == "kernel" and module.endswith(TARGETS):
            flat[f"{module}/lora_A"] = rng.normal(0, 0.3, (leaf.shape[0], rank)).astype(np.float32)
            flat[f"{module}/lora_B"] = rng.normal(0, 0.3, (rank, leaf.shape[1])).astype(np.float32)
    return LoRA(unflatten(flat), alpha, rank)


def _assert_same(lora: LoRA, expected: LoRA) -> None:
    assert (lora.alpha, lora.rank) == (expected.alpha, expected.rank)
    assert flatten(lora.tree).keys() == flatten(expected.tree).keys()
    for path, leaf in flatten(expected.tree).items():
        read = flatten(lora.tree)[path]
        assert read.dtype == np.float32 and read.flags.c_contiguous
        assert read.tobytes() == leaf.tobytes(), path


def _deltas(lora: LoRA) -> dict[str, np.ndarray]:
    return {name: a @ b * (lora.alpha / lora.rank) for name, (a, b) in lora.modules().items()}


@pytest.fixture
def pipe(unet: Any) -> Any:
    """A Stable Diffusion pipeline around a fresh copy of the tiny UNet; the other parts play no role."""
    copy = UNet2DConditionModel.from_config(unet.config)
    copy.load_state_dict(unet.state_dict())
    none = dict(
        vae=None, text_encoder=None, tokenizer=None, scheduler=None, safety_checker=None, feature_extractor=None
    )
    return StableDiffusionPipeline(unet=copy.eval(), **none, requires_safety_checker=False)


def _forward(unet: Any) -> np.ndarray:
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn(2, 4, 8, 8, generator=generator)
    states = torch.randn(2, 7, unet.config.cross_attention_dim, generator=generator)
    with torch.no_grad():
        return unet(latents, torch.tensor([1, 501]), states).sample.numpy()


def _merged_forward(unet: Any, lora: LoRA) -> np.ndarray:
    merged = UNet2DConditionModel.from_config(unet.config)
    state = dict(unet.state_dict())
    for name, delta in _deltas(lora).items():
        state[f"{name}.weight"] = state[f"{name}.weight"] + torch.tensor(delta.T)
    merged.load_state_dict(state)
    return _forward(merged.eval())


@pytest.mark.parametrize("alpha", [4.0, 8.0, 3.0, 0.3])
@pytest.mark.parametrize("layout", ["diffusers", "kohya"])
def test_diffusers_applies_what_we_wrote(
    tmp_path: Path, unet: Any, pipe: Any, shape_tree: Any, layout: str, alpha: float
) -> None:
    lora = _random_lora(shape_tree(unet), rank=4, alpha=alpha)
    write_lora(tmp_path / "pytorch_lora_weights.safetensors", lora, layout)
    pipe.load_lora_weights(tmp_path)
    adapted = {n: m for n, m in pipe.unet.named_modules() if isinstance(m, peft.tuners.lora.LoraLayer)}
    assert adapted.keys() == lora.modules().keys() and len(adapted) == 32
    for name, module in adapted.items():
        assert module.scaling == pytest.approx({"default_0": alpha / 4}), name
    ours, theirs = _merged_forward(unet, lora), _forward(pipe.unet)
    assert np.abs(ours - theirs).max() < 1e-4 * np.abs(ours).max()
    assert np.abs(ours - _forward(unet)).max() > 1e-2  # the update is not negligible
    pipe.unload_lora_weights()
    assert np.array_equal(_forward(pipe.unet), _forward(unet))


def test_diffusers_applies_an_update_of_some_modules_only(
    tmp_path: Path, unet: Any, pipe: Any, shape_tree: Any
) -> None:
    flat = flatten(_random_lora(shape_tree(unet)).tree)
    lora = LoRA(unflatten({path: leaf for path, leaf in flat.items() if "attn2/to_k" in path}), 2.0, 4)
    for layout in ("diffusers", "kohya"):
        write_lora(tmp_path / f"{layout}.safetensors", lora, layout)
        pipe.load_lora_weights(tmp_path, weight_name=f"{layout}.safetensors")
        assert np.allclose(_merged_forward(unet, lora), _forward(pipe.unet), atol=1e-5)
        pipe.unload_lora_weights()


@pytest.mark.parametrize("alpha", [4.0, 8.0, 0.3, 7.0])
@pytest.mark.parametrize("layout", ["diffusers", "kohya"])
@pytest.mark.parametrize("name", ["unet", "sdxl_unet"])
def test_round_trip(tmp_path: Path, name: str, request: Any, shape_tree: Any, layout: str, alpha: float) -> None:
    shapes = shape_tree(request.getfixturevalue(name))
    lora = _random_lora(shapes, rank=3, alpha=float(np.float32(alpha)))
    path = tmp_path / "lora.safetensors"
    write_lora(path, lora, layout, {"prompts": "4k"})
    header = store.read_metadata(path)
    assert header["format"] == "pt" and header["prompts"] == "4k"
    _assert_same(read_lora(path, shapes), lora)
    _assert_same(read_lora(tmp_path, lora_shapes(lora)), lora)
    if layout == "diffusers":
        _assert_same(read_lora(path), lora)


def lora_shapes(lora: LoRA) -> dict[str, Any]:
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), lora.tree)


@pytest.mark.parametrize("layout", ["diffusers", "kohya"])
def test_a_lora_file_leaves_a_model_beside_it_alone(tmp_path: Path, unet: Any, shape_tree: Any, layout: str) -> None:
    """Whoever names the file like a model's must not lose the model's shards."""
    unet.save_pretrained(tmp_path, max_shard_size="200KB")
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    assert len(before) > 3
    path = tmp_path / "diffusion_pytorch_model.safetensors"
    write_lora(path, _random_lora(shape_tree(unet)), layout)
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before | {path: path.read_bytes()}


def test_keys_and_header_of_the_diffusers_layout(tmp_path: Path, unet: Any, shape_tree: Any) -> None:
    lora = _random_lora(shape_tree(unet), rank=4, alpha=8)
    write_lora(tmp_path / "x.safetensors", lora)
    state = load_file(tmp_path / "x.safetensors")
    assert state[f"unet.{SHORT}.lora.down.weight"].shape == (4, 16)
    assert state[f"unet.{SHORT}.lora.up.weight"].shape == (16, 4)
    assert len(state) == 64 and not any(key.endswith("alpha") for key in state)
    header = json.loads(store.read_metadata(tmp_path / "x.safetensors")[METADATA_KEY])
    assert header.keys() == {"unet.r", "unet.lora_alpha", "unet.target_modules", "unet.peft_type"}
    assert (header["unet.r"], header["unet.lora_alpha"], header["unet.peft_type"]) == (4, 8, "LORA")


def test_keys_of_the_kohya_layout(tmp_path: Path, unet: Any, shape_tree: Any) -> None:
    lora = _random_lora(shape_tree(unet), rank=4, alpha=8)
    write_lora(tmp_path / "x.safetensors", lora, "kohya")
    state = load_file(tmp_path / "x.safetensors")
    name = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_out_0"
    assert kohya.kohya_name(SHORT.replace("to_q", "to_out.0")) == name
    assert state[f"{name}.lora_down.weight"].shape == (4, 16) and state[f"{name}.lora_up.weight"].shape == (16, 4)
    assert state[f"{name}.alpha"].shape == () and state[f"{name}.alpha"] == 8
    assert len(state) == 96 and METADATA_KEY not in store.read_metadata(tmp_path / "x.safetensors")


def _peft_file(tmp_path: Path, unet: Any, config: LoraConfig, with_config: bool) -> tuple[Path, np.ndarray]:
    """A LoRA made and saved by PEFT and diffusers, and what their UNet computes with it."""
    model = UNet2DConditionModel.from_config(unet.config)
    model.load_state_dict(unet.state_dict())
    torch.manual_seed(0)
    model.add_adapter(config)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    layers = convert_state_dict_to_diffusers(get_peft_model_state_dict(model))
    metadata = {"unet_lora_adapter_metadata": config.to_dict()} if with_config else {}
    StableDiffusionPipeline.save_lora_weights(tmp_path, unet_lora_layers=layers, **metadata)
    return tmp_path / "pytorch_lora_weights.safetensors", _forward(model.eval())


@pytest.mark.parametrize(
    ("changes", "with_config", "alpha"),
    [
        ({}, False, 4.0),  # the published files: alpha = rank, and no metadata
        (dict(lora_alpha=8), True, 8.0),
        (dict(lora_alpha=8, use_rslora=True), True, 16.0),
        (dict(lora_alpha=8, alpha_pattern={"to_q": 2, "attn2.to_v": 1}), True, None),
        (dict(lora_alpha=8, rank_pattern={"attn1.to_q": 2, "to_k": 6}), True, None),
        (dict(rank_pattern={"attn1.to_q": 2}, alpha_pattern={"attn1.to_q": 2}), True, 4.0),
    ],
)
def test_reads_what_peft_wrote(
    tmp_path: Path, unet: Any, shape_tree: Any, changes: dict, with_config: bool, alpha: float | None
) -> None:
    basics = dict(r=4, lora_alpha=4, target_modules=["to_q", "to_k", "to_v", "to_out.0"])
    path, expected = _peft_file(tmp_path, unet, LoraConfig(**basics | changes), with_config)
    lora = read_lora(path, shape_tree(unet))
    assert len(lora.modules()) == 32
    if alpha is not None:
        assert (lora.alpha, lora.rank) == (alpha, 4)
    else:
        assert lora.alpha == lora.rank == (6 if "rank_pattern" in changes else 4)
    assert np.abs(_merged_forward(unet, lora) - expected).max() < 1e-4 * np.abs(expected).max()


def test_reads_files_of_a_single_model_and_of_peft(tmp_path: Path, unet: Any, shape_tree: Any) -> None:
    lora = _random_lora(shape_tree(unet), rank=4, alpha=8)
    model = UNet2DConditionModel.from_config(unet.config)
    model.add_adapter(LoraConfig(r=4, lora_alpha=8, target_modules=["to_q", "to_k", "to_v", "to_out.0"]))
    model.save_lora_adapter(tmp_path / "single")  # no "unet." before its keys
    halves = {"A": lambda pair: pair[0].T.copy(), "B": lambda pair: pair[1].T.copy()}
    state = {f"{name}.lora_{h}.weight": f(pair) for name, pair in lora.modules().items() for h, f in halves.items()}
    assert read_lora(tmp_path / "single").alpha == 8
    for prefix in ("", "unet.", "base_model.model."):
        folder = tmp_path / f"x{prefix}"
        folder.mkdir()
        save_file({prefix + key: array for key, array in state.items()}, folder / "adapter_model.safetensors")
        _assert_same(read_lora(folder, shape_tree(unet)), LoRA(lora.tree, 4.0, 4))
        (folder / "adapter_config.json").write_text(json.dumps({"r": 4, "lora_alpha": 8, "peft_type": "LORA"}))
        _assert_same(read_lora(folder), lora)


def test_kohya_files_of_others(tmp_path: Path, unet: Any, shape_tree: Any) -> None:
    shapes = shape_tree(unet)
    lora = _random_lora(shapes, rank=4, alpha=4)
    write_lora(tmp_path / "x.safetensors", lora, "kohya")
    state = load_file(tmp_path / "x.safetensors")
    # fp16, and one module with an alpha of its own: what differs goes into lora_B.
    odd = kohya.kohya_name(SHORT)
    halves = {key: array.astype(np.float16) for key, array in state.items()}
    halves[f"{odd}.alpha"] = np.float16(1)
    save_file({key: np.asarray(array, order="C") for key, array in halves.items()}, tmp_path / "y.safetensors")
    read = read_lora(tmp_path / "y.safetensors", shapes)
    assert read.alpha == 4
    for name, delta in _deltas(lora).items():
        scale = 0.25 if name == SHORT else 1.0
        assert np.allclose(_deltas(read)[name], delta * scale, atol=0.05), name
    # No alpha at all means a scale of one, as diffusers reads it.
    bare = {key: array for key, array in state.items() if not key.endswith("alpha")}
    save_file(bare, tmp_path / "z.safetensors")
    assert read_lora(tmp_path / "z.safetensors", shapes).alpha == 4


def test_kohya_names_are_resolved_against_the_model(unet: Any, sdxl_unet: Any, shape_tree: Any) -> None:
    for model in (unet, sdxl_unet):
        paths = {path.rpartition("/")[0] for path in flatten(shape_tree(model))}
        modules = [module_name(path.split("/")) for path in paths]
        names = kohya.module_names(modules)
        # conv_in, time_embedding.linear_1, to_out.0 and all: names that un-flattening at "_" would get wrong.
        assert sorted(names.values()) == sorted(modules * (2 if model is sdxl_unet else 1))  # and SGM's names
        assert names["lora_unet_time_embedding_linear_1"] == "time_embedding.linear_1"
        assert names["lora_unet_conv_in"] == "conv_in"
        assert all("/".join(module_path(name)) in paths for name in modules)
    with pytest.raises(ValueError, match=r"lora_unet_a_b could be a.b or a_b"):
        kohya.module_names(["a.b", "a_b"])


def test_names_at_true_size(shape_tree: Any) -> None:
    deep = ("CrossAttnDownBlock2D", "CrossAttnDownBlock2D"), ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D")
    sdxl = dict(
        block_out_channels=(320, 640, 1280),
        down_block_types=("DownBlock2D", *deep[0]),
        up_block_types=(*deep[1], "UpBlock2D"),
        transformer_layers_per_block=(1, 2, 10),
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=256,
        projection_class_embeddings_input_dim=2816,
        cross_attention_dim=2048,
        attention_head_dim=(5, 10, 20),
    )
    for config, keys, targets in (({"cross_attention_dim": 768}, 686, 128), (sdxl, 1680, 560)):
        with torch.device("meta"):
            unet = UNet2DConditionModel(**config)
        flat = flatten(shape_tree(unet))
        assert {torch_key(path.split("/")) for path in flat} == unet.state_dict().keys() and len(flat) == keys
        modules = {name.rpartition(".")[0] for name in unet.state_dict()}
        names = kohya.module_names(modules)
        attended = [name for name in modules if name.endswith(("to_q", "to_k", "to_v", "to_out.0"))]
        assert len(attended) == targets
        assert names["lora_unet_mid_block_attentions_0_transformer_blocks_0_ff_net_0_proj"] == (
            "mid_block.attentions.0.transformer_blocks.0.ff.net.0.proj"
        )
        for given in (None, modules):  # a LoRA on all attentions shows the model's blocks by itself
            written = kohya.file_names(attended, given)
            assert {name: names[flat] for name, flat in written.items()} == {name: name for name in attended}
            assert len(set(written.values())) == targets
    blocks = {re.match(r"lora_unet_(.*?)_transformer", flat)[1] for flat in written.values()}
    sgm = {f"input_blocks_{i}_1" for i in (4, 5, 7, 8)} | {f"output_blocks_{i}_1" for i in range(6)}
    assert blocks == sgm | {"middle_block_1"}


@pytest.mark.parametrize("layout", ["diffusers", "kohya"])
def test_the_published_lora_of_sdxl_fits(layout: str, shape_tree: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rank 64 on 560 targets, both layouts, of the true model: names and shapes, without allocating either."""
    with torch.device("meta"):
        unet = UNet2DConditionModel.from_config(presets.SDXL_UNET)
    shapes = shape_tree(unet)
    state, number = {}, np.zeros((), np.float16)
    attended = [
        (name, module.weight.shape)
        for name, module in unet.named_modules()
        if name.endswith((".to_q", ".to_k", ".to_v", ".to_out.0"))
    ]
    flat = kohya.file_names(name for name, _ in attended)
    for name, (out, features) in attended:
        halves = np.broadcast_to(number, (64, features)), np.broadcast_to(number, (out, 64))
        if layout == "kohya":
            state |= _pair(flat[name], *halves, style="lora_{}.weight") | {f"{flat[name]}.alpha": np.float32(64)}
        else:
            state |= _pair(f"unet.{name}", *halves)
    monkeypatch.setattr(store, "read_file", lambda path: state)
    monkeypatch.setattr(store, "read_metadata", lambda path: {"format": "pt"})

    class Accepted(Exception):
        """What was read, before it would be allocated in float32."""

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
    """diffusers drops SGM's names without a word where it does not know them, so the modules are counted too."""
    lora = _random_lora(shape_tree(sdxl_unet), rank=4, alpha=alpha)
    write_lora(tmp_path / "x.safetensors", lora, "kohya")
    state = load_file(tmp_path / "x.safetensors")
    name = "lora_unet_input_blocks_3_1_transformer_blocks_1_attn1_to_k"  # one layer a block: the first of level 1
    assert state[f"{name}.lora_down.weight"].shape == (4, 32)
    assert not [key for key in state if re.search("down_blocks|mid_block|up_blocks", key)]
    pipe = _sdxl_pipe(sdxl_unet)
    pipe.load_lora_weights(tmp_path, weight_name="x.safetensors")
    adapted = {n: m for n, m in pipe.unet.named_modules() if isinstance(m, peft.tuners.lora.LoraLayer)}
    assert adapted.keys() == lora.modules().keys() and len(adapted) == 2 * 4 * (2 + 2 + 4)
    for module_name_, module in adapted.items():
        a, b = lora.modules()[module_name_]
        assert module.scaling == pytest.approx({"default_0": alpha / 4})
        assert np.array_equal(module.lora_A["default_0"].weight.detach().numpy(), a.T)
        assert np.array_equal(module.lora_B["default_0"].weight.detach().numpy(), b.T)


def test_both_namings_of_sdxl_are_read(tmp_path: Path, sdxl_unet: Any, shape_tree: Any) -> None:
    shapes = shape_tree(sdxl_unet)
    lora = _random_lora(shapes, rank=4, alpha=8)
    write_lora(tmp_path / "x.safetensors", lora, "kohya")
    state = load_file(tmp_path / "x.safetensors")
    back = {flat: kohya.kohya_name(name) for name, flat in kohya.file_names(lora.modules()).items()}
    others = {back[key.partition(".")[0]] + "." + key.partition(".")[2]: array for key, array in state.items()}
    assert not state.keys() & others.keys()
    store.write_state(tmp_path / "y.safetensors", others)
    for name in ("x", "y"):
        _assert_same(read_lora(tmp_path / f"{name}.safetensors", shapes), lora)


def test_a_lora_on_some_blocks_of_sdxl_is_numbered_by_its_model() -> None:
    """The second attention of a level only exists if there is one; by itself the LoRA shows a single one."""
    up = "up_blocks.1.attentions.0.transformer_blocks.1.attn1.to_q"
    model = [up, "up_blocks.1.attentions.2.proj_in", "down_blocks.2.attentions.1.proj_in"]
    assert kohya.file_names([up], model)[up] == "lora_unet_output_blocks_3_1_transformer_blocks_1_attn1_to_q"
    middle = "mid_block.attentions.0.transformer_blocks.7.attn1.to_q"
    assert kohya.file_names([middle])[middle] == "lora_unet_middle_block_1_transformer_blocks_7_attn1_to_q"
    with pytest.raises(ValueError, match="no module of SDXL: nowhere.to_q"):
        kohya.file_names(["nowhere.to_q"], model)


@pytest.mark.parametrize("layout", ["diffusers", "kohya"])
def test_a_lora_of_the_other_architecture_is_named(
    tmp_path: Path, unet: Any, sdxl_unet: Any, shape_tree: Any, layout: str
) -> None:
    models = {"SD 1.x or 2.x": shape_tree(unet), "SDXL": shape_tree(sdxl_unet)}
    for ours, theirs in (("SDXL", "SD 1.x or 2.x"), ("SD 1.x or 2.x", "SDXL")):
        lora = _random_lora(models[theirs])
        write_lora(tmp_path / "x.safetensors", lora, layout)
        with pytest.raises(UserError, match=f"x.safetensors is a LoRA of {theirs}, and this model is {ours}: choose"):
            read_lora(tmp_path / "x.safetensors", models[ours])
        assert kohya.architecture(lora.modules()) == kohya.architecture(load_file(tmp_path / "x.safetensors")) == theirs
    assert kohya.architecture(["mid_block.attentions.0.transformer_blocks.0.attn1.to_q"]) is None


def test_a_kohya_file_needs_a_model(tmp_path: Path, unet: Any, shape_tree: Any) -> None:
    write_lora(tmp_path / "x.safetensors", _random_lora(shape_tree(unet)), "kohya")
    with pytest.raises(UserError, match=r"x.safetensors has kohya's names, which only make sense beside a model"):
        read_lora(tmp_path / "x.safetensors")


DOWN, UP = np.ones((4, 16), np.float32), np.ones((16, 4), np.float32)
PAIR = {f"unet.{SHORT}.lora.down.weight": DOWN, f"unet.{SHORT}.lora.up.weight": UP}
KOHYA = f"lora_unet_{SHORT.replace('.', '_')}"
KOHYA_PAIR = {f"{KOHYA}.lora_down.weight": DOWN, f"{KOHYA}.lora_up.weight": UP}


def _pair(name: str, down: np.ndarray = DOWN, up: np.ndarray = UP, style: str = "lora.{}.weight") -> dict:
    return {f"{name}.{style.format('down')}": down, f"{name}.{style.format('up')}": up}


@pytest.mark.parametrize(
    ("state", "message"),
    [
        (
            PAIR | _pair("text_encoder.text_model.encoder.layers.0.self_attn.q_proj"),
            "1 parts of a text encoder: text_encoder.text_model.encoder.layers.0.self_attn.q_proj$",
        ),
        (
            KOHYA_PAIR | _pair("lora_te_text_model_encoder_layers_0_mlp_fc1", style="lora_{}.weight"),
            "1 parts of a text encoder: lora_te_text_model_encoder_layers_0_mlp_fc1$",
        ),
        (
            PAIR | {"text_encoder.text_model.encoder.layers.0.mlp.fc1.lora_linear_layer.up.weight": UP},
            "1 parts of a text encoder: text_encoder.*lora_linear_layer.up.weight$",
        ),
        (PAIR | _pair("unet.conv_in"), "1 convolutions: conv_in$"),
        (
            KOHYA_PAIR | _pair("lora_unet_conv_in", np.ones((4, 4, 3, 3), np.float32), style="lora_{}.weight"),
            "1 convolutions: conv_in$",
        ),
        (PAIR | _pair("unet.mid_block.nowhere.to_q"), "1 modules that this model has not .*: mid_block.nowhere.to_q$"),
        (
            KOHYA_PAIR | _pair("lora_unet_input_blocks_4_1_proj_in", style="lora_{}.weight"),
            "1 modules that this model has not .*: lora_unet_input_blocks_4_1_proj_in$",
        ),
        (PAIR | {f"unet.{SHORT[:-1]}k.lora.down.weight": DOWN}, f"1 halves without their partner: {SHORT[:-1]}k$"),
        (_pair(f"unet.{SHORT}", DOWN[:, :8]), f"1 of another shape: {SHORT}$"),
        (_pair(f"unet.{SHORT}", DOWN[:2]), f"1 of another shape: {SHORT}$"),
        (
            PAIR | {f"unet.{SHORT}.lora_A.weight": DOWN},
            rf"no LoRA weights: unet.{SHORT}.lora_A.weight \(a second down\)",
        ),
        (PAIR | {f"unet.{SHORT}.alpha": np.float32(4)}, f"1 tensors that are no LoRA weights: unet.{SHORT}.alpha$"),
        (PAIR | {f"unet.{SHORT}.lora_magnitude_vector": UP}, "1 tensors that are no LoRA weights: .*magnitude_vector$"),
        (KOHYA_PAIR | {f"{KOHYA}.dora_scale": UP}, "1 tensors that are no LoRA weights: .*dora_scale$"),
        ({"lora_unet_x.hada_w1_a": UP}, "is not a LoRA file: none of its 1 tensors is half of a LoRA layer"),
        ({"conv_in.weight": UP}, "is not a LoRA file: none of its 1 tensors"),
    ],
)
def test_what_cannot_be_used_is_listed(tmp_path: Path, unet: Any, shape_tree: Any, state: dict, message: str) -> None:
    store.write_state(tmp_path / "x.safetensors", state)
    with pytest.raises(UserError, match=rf"^{tmp_path}/x.safetensors.*{message}"):
        read_lora(tmp_path / "x.safetensors", shape_tree(unet))


def test_only_the_targets_of_a_lora_tree_are_taken(tmp_path: Path, unet: Any, shape_tree: Any) -> None:
    targets = lora_shapes(_random_lora(shape_tree(unet), rank=8))
    ff = "down_blocks.0.attentions.0.transformer_blocks.0.ff.net.2"
    store.write_state(tmp_path / "x.safetensors", PAIR | _pair(f"unet.{ff}", np.ones((4, 64), np.float32)))
    assert len(read_lora(tmp_path / "x.safetensors", shape_tree(unet)).modules()) == 2
    with pytest.raises(UserError, match=rf"1 modules that this model has not \(or not as LoRA targets\): {ff}$"):
        read_lora(tmp_path / "x.safetensors", targets)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ("{", "cannot understand the adapter's config"),
        ("[1]", "cannot understand the adapter's config"),
        (json.dumps({"unet.lora_alpha": "much"}), "cannot understand the adapter's config"),
        (json.dumps({"unet.lora_alpha": 4, "unet.alpha_pattern": {"(": 3}}), "cannot understand the adapter's config"),
        (json.dumps({"unet.lora_alpha": 4, "unet.use_dora": True}), "is a DoRA, which is not supported"),
    ],
)
def test_a_broken_header_is_named(tmp_path: Path, config: str, message: str) -> None:
    store.write_state(tmp_path / "x.safetensors", PAIR, {METADATA_KEY: config})
    with pytest.raises(UserError, match=rf"x.safetensors.* ?{message}"):
        read_lora(tmp_path / "x.safetensors")


def test_a_folder_without_one_lora_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"expected pytorch_lora_weights.safetensors, found no safetensors file; name"):
        read_lora(tmp_path)
    for name in ("a", "b"):
        store.write_state(tmp_path / f"{name}.safetensors", PAIR)
    with pytest.raises(UserError, match=r"found a.safetensors, b.safetensors; name the LoRA file itself"):
        read_lora(tmp_path)


def test_a_lora_whose_halves_disagree_is_a_bug() -> None:
    good = {"lora_A": np.ones((5, 2)), "lora_B": np.ones((2, 3))}
    with pytest.raises(ValueError, match=r"a.0: lora_A \(5, 2\), lora_B \(2, 3\) are not of rank 4"):
        LoRA({"a_0": good}, 4.0, 4)
    with pytest.raises(ValueError, match="has lora_A and lora_B, and nothing else"):
        LoRA({"a_0": {"lora_A": np.ones((5, 2))}}, 4.0, 2)
    with pytest.raises(ValueError, match="expected diffusers or kohya"):
        write_lora("x.safetensors", LoRA({"a": good}, 4, 2), "webui")


def test_files_of_the_reference_are_read(golden_dir: Path) -> None:
    folder = golden_dir / "g_sd15"
    if not folder.is_dir():
        pytest.skip(f"no folder {folder}")
    lora = read_lora(folder / "lora_init.safetensors")
    assert (lora.rank, lora.alpha, len(lora.modules())) == (4, 4.0, 32)
