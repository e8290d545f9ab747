"""Models are opened by the family that claims them; abstract pipelines have the shapes of loaded ones."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from spo_jax.core.errors import UserError
from spo_jax.models import families, family_module, kind_and_channels, open_pipeline, resolve
from spo_jax.models.base import Pipeline
from spo_jax.models.stable_diffusion import presets
from spo_jax.models.stable_diffusion.config import UNetConfig
from spo_jax.parallel.mesh import MeshSettings, make_mesh
from spo_jax.parallel.sharding import shapes_of
from spo_jax.toy import ASSETS
from spo_jax.weights import hub
from tests.models.helpers import FOLDER

SD15 = "stable-diffusion-v1-5/stable-diffusion-v1-5"
SDXL = "stabilityai/stable-diffusion-xl-base-1.0"


@pytest.fixture
def no_network(monkeypatch):
    """Makes every download fail."""

    def fail(*arguments, **options):
        raise AssertionError(f"a download of {arguments} was tried")

    monkeypatch.setattr(hub, "_fetch", fail)


@pytest.fixture
def no_shapes(monkeypatch):
    """Replaces the shapes of networks by one kernel, because it takes seconds to find those of the published sizes."""
    shapes = {"kernel": jax.ShapeDtypeStruct((2, 2), jnp.float32)}
    monkeypatch.setattr(family_module("stable_diffusion", "pipeline"), "shapes_of_module", lambda *arguments: shapes)


def folder_of(path, class_name):
    path.mkdir()
    (path / "model_index.json").write_text(json.dumps({"_class_name": class_name}))
    return path


def test_families_are_the_subpackages():
    assert families() == ["stable_diffusion"]
    for family in families():
        pipeline = family_module(family, "pipeline")
        for name in ("load", "load_published"):
            assert hasattr(pipeline, name)
        for name in ("CLASSES", "COMPONENTS", "claims", "kind_and_channels"):
            assert hasattr(family_module(family, "sources"), name)
        assert hasattr(family_module(family, "save"), "write_merged_file")
        assert hasattr(family_module(family, "kohya"), "claims")


@pytest.mark.parametrize(
    ("model", "latents"),
    [
        ("toy", ("sd", 16)),
        (SD15, ("sd", 4)),
        ("someone/a-model", ("", 0)),
    ],
)
def test_latents_are_known_from_configs(model, latents, no_network):
    assert kind_and_channels(model) == latents


@pytest.mark.parametrize(
    ("class_name", "claimed"),
    [("StableDiffusionPipeline", True), ("StableDiffusionXLPipeline", True), ("FluxPipeline", False), (None, False)],
)
def test_a_family_claims_the_folders_of_its_classes(tmp_path, class_name, claimed):
    claims = family_module("stable_diffusion", "sources").claims
    assert claims(folder_of(tmp_path / "model", class_name)) is claimed


def test_a_family_claims_single_files_but_not_other_folders(tmp_path):
    claims = family_module("stable_diffusion", "sources").claims
    (tmp_path / "model.safetensors").write_bytes(b"")
    assert claims(tmp_path / "model.safetensors")
    assert not claims(tmp_path)


def test_models_that_no_family_claims_are_refused(tmp_path):
    with pytest.raises(UserError, match="model_index.json: _class_name is 'FluxPipeline', expected 'StableDiff"):
        open_pipeline(folder_of(tmp_path / "flux", "FluxPipeline"))
    with pytest.raises(UserError, match=f"{tmp_path} is .*: no model_index.json here; expected a diffusers pipeline"):
        open_pipeline(tmp_path)


@pytest.mark.parametrize("abstract", [False, True])
def test_a_path_that_does_not_exist_is_refused(abstract):
    with pytest.raises(UserError, match="no such file or folder: no/such/folder"):
        open_pipeline("no/such/folder", abstract=abstract)


def test_toy_is_the_shipped_pipeline(toy, no_network):
    assert resolve("toy") == FOLDER == ASSETS / "pipeline"
    assert toy.pipeline.folder == FOLDER and isinstance(toy.pipeline, Pipeline)


def test_an_abstract_pipeline_has_the_shapes_of_the_loaded_one(toy, no_network):
    abstract = open_pipeline("toy", abstract=True)
    assert abstract.params == shapes_of(toy.pipeline.params)
    assert (abstract.unet, abstract.vae, abstract.text_encoder) == (
        toy.pipeline.unet,
        toy.pipeline.vae,
        toy.pipeline.text_encoder,
    )
    for property_name in ("kind", "dtype", "latent_shape", "image_size", "downscale", "token_shape"):
        assert getattr(abstract, property_name) == getattr(toy.pipeline, property_name)


def test_an_abstract_pipeline_has_the_shardings_and_dtype_of_the_loaded_one():
    options = {"mesh": make_mesh(MeshSettings(data=2, fsdp=2)), "dtype": jnp.bfloat16}
    loaded = shapes_of(open_pipeline("toy", **options).params)
    assert open_pipeline("toy", **options, abstract=True).params == loaded
    specs = {str(leaf.sharding.spec) for leaf in jax.tree.leaves(loaded)}
    assert len(specs) > 1  # Some weights are divided, and others are not.


@pytest.mark.parametrize("model", [SD15, SDXL])
def test_published_pipelines_are_known_without_network(no_network, no_shapes, model):
    """`stable_diffusion/test_presets.py` checks the shapes of their weights."""
    pipeline = open_pipeline(model, abstract=True, dtype=jnp.bfloat16)
    if model == SD15:
        expected = ("sd", (64, 64, 4), (512, 512), (1, 77), presets.SD15_UNET, jnp.bfloat16)
    else:
        expected = ("sdxl", (128, 128, 4), (1024, 1024), (2, 77), presets.SDXL_UNET, jnp.float32)
    kind, latent_shape, image_size, token_shape, unet, vae_dtype = expected
    assert (pipeline.kind, pipeline.latent_shape, pipeline.image_size) == (kind, latent_shape, image_size)
    assert pipeline.unet.config == UNetConfig.from_dict(unet)
    assert pipeline.token_shape == token_shape and pipeline.zero_unconditional == (kind == "sdxl")
    assert pipeline.params["unet"] == {"kernel": jax.ShapeDtypeStruct((2, 2), jnp.bfloat16)}
    assert pipeline.vae.dtype == vae_dtype and pipeline.folder == Path(model)
    assert pipeline.process(20).timesteps.tolist()[:2] == [951, 901]


def test_a_published_autoencoder_is_known_without_network(no_network, no_shapes):
    """It is the one that is safe in 16 bits, so it is not float32."""
    options = {"abstract": True, "dtype": jnp.bfloat16}
    pipeline = open_pipeline(SDXL, vae="madebyollin/sdxl-vae-fp16-fix", **options)
    assert (pipeline.vae.config.scaling_factor, pipeline.vae.dtype) == (0.13025, jnp.bfloat16)


@pytest.mark.slow
@pytest.mark.parametrize(("model", "count"), [(SD15, 859_520_964), (SDXL, 2_567_463_684)])
def test_published_pipelines_have_the_published_sizes(no_network, model, count):
    pipeline = open_pipeline(model, abstract=True)
    assert sum(leaf.size for leaf in jax.tree.leaves(pipeline.params["unet"])) == count


def test_only_the_configs_of_other_hub_ids_are_downloaded(monkeypatch, toy):
    """An abstract pipeline needs no weights."""
    calls = []

    def fetch(model, revision=None, **options):
        calls.append((model, revision, options))
        return FOLDER

    monkeypatch.setattr(hub, "resolve", fetch)
    pipeline = open_pipeline("acme/model", revision="v1", abstract=True)
    assert pipeline.params == shapes_of(toy.pipeline.params)
    ((model, revision, options),) = calls
    assert (model, revision) == ("acme/model", "v1")
    assert set(options["allow_patterns"]) == {"model_index.json", "*/config.json", "scheduler/*.json"}


def test_the_components_of_all_families_are_downloaded(monkeypatch):
    calls = []
    monkeypatch.setattr(hub, "resolve", lambda *arguments, **options: calls.append((arguments, options)) or FOLDER)
    assert resolve("acme/model", "v1") == FOLDER
    ((arguments, options),) = calls
    assert arguments == ("acme/model", "v1")
    assert {"unet", "vae", "text_encoder", "tokenizer", "scheduler"} <= set(options["components"])
