"""Every checkpoint that others have released loads from the layout in which it lies on the hub.

The stand-ins have those layouts and names, and the networks of the toy and of a tiny SDXL with random weights.
``docs/published.md`` says where each layout was seen.
"""

import json
import shutil
from collections.abc import Callable
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from diffusers.training_utils import EMAModel
from diffusers.utils import convert_state_dict_to_diffusers
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict

from spo_jax.core.errors import UserError
from spo_jax.core.trees import flatten
from spo_jax.models import check_model, is_unet_alone, open_pipeline
from spo_jax.models.lora import read_lora
from spo_jax.models.stable_diffusion import parts
from spo_jax.models.stable_diffusion.config import UNetConfig
from spo_jax.parallel.sharding import shapes_of
from spo_jax.weights import hub
from spo_jax.weights.lora import find_lora
from spo_jax.weights.rules import to_state
from tests.models.helpers import FOLDER
from tests.support.commands import ROOT

# Where the UNet lies in each repository, and what else is beside it.
UNETS = {
    "mhdang/dpo-sd1.5-text2image-v1": ("unet", "sd"),
    "mhdang/dpo-sdxl-text2image-v1": ("unet", "sdxl"),
    "jacklishufan/diffusion-kto": ("unet", "sd"),
    "JaydenLu666/InPO-SD1.5": ("unet", "sd"),
    "JaydenLu666/InPO-SDXL": ("unet", "sdxl"),
    "JaydenLu666/SmPO-SD1.5": ("unet", "sd"),
    "JaydenLu666/SmPO-SDXL": ("unet", "sdxl"),
    "mapo-t2i/mapo-beta": ("", "sdxl"),
    "casiatao/LPO/lpo_sd15_merge": ("unet", "sd"),
    "casiatao/LPO/lpo_sdxl_merge/unet": ("", "sdxl"),
}
LORAS = {
    "SPO-Diffusion-Models/SPO-SD-v1-5_4k-p_10ep_LoRA": "spo-sd-v1-5_4k-p_10ep_lora_diffusers.safetensors",
    "JTTJ/GradSPO/sd1_5": "pytorch_lora_weights.safetensors",
}
PIPELINE = "SPO-Diffusion-Models/SPO-SD-v1-5_4k-p_10ep"
OTHERS = ("README.md", ".gitattributes", "01.gif", "data/pairs.parquet", "optimizer.bin")


@pytest.fixture
def models(tiny_sdxl: Path) -> dict[str, Path]:
    """The models to which the UNets belong, by kind."""
    return {"sd": FOLDER, "sdxl": tiny_sdxl}


@pytest.fixture
def on_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A hub in a folder: ``put(id)`` is the folder of a repository, and ``fetched`` lists what was asked for."""
    remote, cache = tmp_path / "remote", tmp_path / "cache"

    class Hub:
        fetched: list[str] = []

        def put(self, name: str) -> Path:
            for other in OTHERS:
                path = remote / "/".join(name.split("/")[:2]) / other
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text("not needed")
            return remote / name

    def fetch(repo: str, revision: Any, select: Callable, small: Any, patterns: Any, kind: str) -> Path:
        names = [str(p.relative_to(remote / repo)) for p in sorted((remote / repo).rglob("*")) if p.is_file()]
        if not names:
            raise UserError(f"{repo} is neither a local path nor a repository on the hub")
        wanted = select(names) if patterns is None else [n for n in names if any(fnmatchcase(n, p) for p in patterns)]
        for name in wanted:
            (cache / repo / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(remote / repo / name, cache / repo / name)
        Hub.fetched = sorted(wanted)
        (cache / repo).mkdir(parents=True, exist_ok=True)
        return cache / repo

    monkeypatch.setattr(hub, "_fetch", fetch)
    return Hub()


def random_unet(model: Path, seed: int = 1) -> UNet2DConditionModel:
    """Makes a UNet of the model's config with random weights, as diffusers' trainers save one."""
    torch.manual_seed(seed)
    return UNet2DConditionModel.from_config(json.loads((model / "unet" / "config.json").read_text()))


def assert_has(params: Any, unet: UNet2DConditionModel, tolerance: float = 0.0) -> None:
    """Asserts that all weights of our UNet are those of diffusers'."""
    found = to_state(params)
    expected = {name: value.numpy() for name, value in unet.state_dict().items()}
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, rtol=tolerance, atol=tolerance / 100, err_msg=name)


@pytest.mark.parametrize("name", UNETS)
def test_a_released_unet_is_found_and_nothing_else_is_fetched(
    on_hub: Any, models: dict, toy: Any, sdxl: Any, name: str
) -> None:
    inside, kind = UNETS[name]
    unet = random_unet(models[kind])
    unet.save_pretrained(on_hub.put(name) / inside)
    assert is_unet_alone(name)
    source = parts.open_unet(name)
    parts.check_unet(source, random_unet(models[kind]).config, models[kind])
    pipeline = toy.pipeline if kind == "sd" else sdxl
    assert_has(source.weights("unet", shapes_of(pipeline.params["unet"]), np.float32), unet)
    below = "/".join([*name.split("/")[2:], *([inside] if inside else [])])
    expected = {f"{below}/{file}".lstrip("/") for file in ("config.json", "diffusion_pytorch_model.safetensors")}
    assert set(on_hub.fetched) == expected


def test_a_unet_replaces_that_of_its_model_and_nothing_else(on_hub: Any, models: dict, sdxl: Any) -> None:
    unet = random_unet(models["sdxl"])
    unet.save_pretrained(on_hub.put("mapo-t2i/mapo-beta"))
    pipeline = open_pipeline(models["sdxl"], unet="mapo-t2i/mapo-beta")
    assert_has(pipeline.params["unet"], unet)
    for part in sdxl.params.keys() - {"unet"}:
        found = flatten(pipeline.params[part])
        for path, leaf in flatten(sdxl.params[part]).items():
            np.testing.assert_array_equal(leaf, found[path])


@pytest.mark.parametrize(
    ("options", "tolerance"),
    [
        ({}, 0.0),
        ({"safe_serialization": False}, 0.0),
        ({"variant": "fp16"}, 1e-3),
        ({"max_shard_size": "100KB"}, 0.0),
        ({"safe_serialization": False, "variant": "fp16"}, 1e-3),
    ],
    ids=["safetensors", "bin", "fp16", "shards", "fp16 bin"],
)
@pytest.mark.parametrize("inside", ["", "unet"])
def test_all_files_that_diffusers_writes_are_read(
    tmp_path: Path, toy: Any, inside: str, options: dict, tolerance: float
) -> None:
    unet = random_unet(FOLDER)
    (unet.half() if tolerance else unet).save_pretrained(tmp_path / inside, **options)
    assert is_unet_alone(str(tmp_path))
    check_model(str(FOLDER), unet=str(tmp_path))
    shapes = shapes_of(toy.pipeline.params["unet"])
    assert_has(parts.open_unet(tmp_path).weights("unet", shapes, np.float32), unet.float(), tolerance)


def test_an_average_of_weights_is_read_as_diffusers_saves_it(tmp_path: Path, toy: Any) -> None:
    """Trainers with ``--use_ema`` write ``unet_ema``, whose config has the settings of the average."""
    unet = random_unet(FOLDER)
    EMAModel(unet.parameters(), model_cls=UNet2DConditionModel, model_config=unet.config).save_pretrained(tmp_path)
    assert "optimization_step" in json.loads((tmp_path / "config.json").read_text())
    UNetConfig.from_dict(parts.open_unet(tmp_path).config("unet"))
    shapes = shapes_of(toy.pipeline.params["unet"])
    assert_has(parts.open_unet(tmp_path).weights("unet", shapes, np.float32), unet)


def test_the_unet_of_a_whole_pipeline_can_be_named(on_hub: Any, toy: Any) -> None:
    shutil.copytree(FOLDER, on_hub.put(PIPELINE), dirs_exist_ok=True)
    assert not is_unet_alone(PIPELINE) and not is_unet_alone(str(FOLDER))
    pipeline = open_pipeline("toy", unet=PIPELINE)
    assert {name.split("/")[0] for name in on_hub.fetched} == {"model_index.json", "unet"}
    assert pipeline.folder == toy.pipeline.folder


@pytest.mark.parametrize("name", LORAS)
def test_a_released_lora_is_read_as_its_trainer_writes_it(on_hub: Any, toy: Any, name: str) -> None:
    """Both trainers save with these calls of diffusers and peft, and alpha = rank."""
    unet = random_unet(FOLDER)
    unet.add_adapter(LoraConfig(r=4, lora_alpha=4, target_modules=["to_k", "to_q", "to_v", "to_out.0"]))
    layers = convert_state_dict_to_diffusers(get_peft_model_state_dict(unet))
    StableDiffusionPipeline.save_lora_weights(on_hub.put(name), unet_lora_layers=layers, weight_name=LORAS[name])
    path = find_lora(name)
    assert path.name == LORAS[name] and len(on_hub.fetched) == 1
    lora = read_lora(path, shapes_of(toy.pipeline.params["unet"]))
    assert (lora.alpha, lora.rank) == (4, 4)


def test_a_unet_of_another_kind_of_model_is_refused_by_name(tmp_path: Path, models: dict) -> None:
    random_unet(models["sdxl"]).save_pretrained(tmp_path / "unet")
    message = (
        "unet/config.json is a UNet of SDXL with text states 40 wide, but .* is Stable Diffusion with .* same kind"
    )
    for refuse in (
        lambda: check_model(str(FOLDER), unet=str(tmp_path)),
        lambda: open_pipeline(FOLDER, unet=tmp_path),
    ):
        with pytest.raises(UserError, match=message):
            refuse()
    with pytest.raises(
        UserError, match="is a UNet of Stable Diffusion with .*, but .* is SDXL with text states 40 wide"
    ):
        open_pipeline(models["sdxl"], unet="toy")


def test_weights_that_do_not_fit_their_config_are_refused(tmp_path: Path) -> None:
    random_unet(FOLDER).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    widths = [2 * width for width in config["block_out_channels"]]
    (tmp_path / "config.json").write_text(json.dumps(config | {"block_out_channels": widths}))
    with pytest.raises(UserError, match="conv_in"):
        open_pipeline(FOLDER, unet=tmp_path)


def test_what_is_no_unet_is_named(tmp_path: Path, on_hub: Any) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "file.safetensors").write_bytes(b"x")
    for source, message in {
        tmp_path / "empty": "is an empty folder: expected a UNet's folder, with config.json, or hub id",
        tmp_path / "file.safetensors": "file.safetensors' is a file: expected a UNet's folder",
        FOLDER / "vae": "is AutoencoderKL of diffusers, a part of the pipeline .*: expected a UNet's folder",
        FOLDER / "unett": "no such file or folder: .*did you mean .*unet",
    }.items():
        with pytest.raises(UserError, match=message):
            check_model("toy", unet=str(source))
        with pytest.raises(UserError, match=message):
            open_pipeline("toy", unet=source)
    (on_hub.put("acme/unets/one") / "unet").mkdir(parents=True)
    random_unet(FOLDER).save_pretrained(on_hub.put("acme/unets/one") / "unet")
    with pytest.raises(UserError, match="acme/unets on the hub has nothing of a UNet in two: found one/unet"):
        open_pipeline("toy", unet="acme/unets/two")
    with pytest.raises(UserError, match="acme/none is neither a local path nor a repository on the hub"):
        open_pipeline("toy", unet="acme/none")


def test_the_documents_name_every_released_checkpoint_that_was_tested() -> None:
    text = "".join((ROOT / "docs" / name).read_text(encoding="utf-8") for name in ("published.md", "results.md"))
    names = [name.removesuffix("/unet") for name in (*UNETS, *LORAS, PIPELINE)]
    assert [name for name in names if name not in text] == []
