"""What the doctor says of models and of what is none."""

import numpy as np
import pytest

from spo_jax import toy
from spo_jax.core.errors import UserError
from spo_jax.weights import store
from spo_jax.work.doctor.model import examine_model


def test_the_toy_fits_here():
    section = examine_model("toy", "", "", False)
    assert section.title == "toy is a text-to-image model, a folder"
    assert section.facts["dtype on disk"] == "float16" and section.facts["image size"] == "32 x 32 pixels"
    assert section.facts["prediction"] == "epsilon" and section.facts["parameters"].startswith("3.3 million")
    assert [(finding.rule, finding.level) for finding in section.findings] == [
        ("gradspo_toy", "good"), ("lpo_toy", "good"), ("toy", "good"), ("", "note"),
    ]  # fmt: skip
    for numbers in section.data["trainings"]:
        assert numbers["fits"] and numbers["least"] < numbers["most"]


@pytest.mark.slow
def test_compiling_the_toy_agrees_with_its_size():
    (finding,) = examine_model("toy", "", "toy", True).findings
    assert finding.level == "good" and "about" not in finding.text


@pytest.mark.parametrize(
    ("path", "what", "advice"),
    [
        (toy.ASSETS / "spm", "a preference model for Stable Diffusion", "--config.spm.model"),
        (toy.ASSETS / "lrm_people", "a latent reward model", "--config.spo.reward=lrm:FOLDER"),
        (toy.ASSETS / "pipeline" / "vae", "AutoencoderKL of diffusers, a part of the pipeline", "--config.vae"),
        (toy.ASSETS / "pipeline" / "unet", "UNet2DConditionModel of diffusers", "the folder that holds all parts"),
        (toy.ASSETS, "a folder without a model", "no text-to-image model"),
    ],
)
def test_what_is_no_model_is_told_apart(path, what, advice):
    section = examine_model(str(path), "", "", False)
    assert what in section.title and advice in section.findings[0].text and not section.problems


@pytest.mark.parametrize("name", ["StableDiffusion3Pipeline", "FluxPipeline"])
def test_a_pipeline_of_another_family_is_a_problem(tmp_path, name):
    (tmp_path / "model_index.json").write_text(f'{{"_class_name": "{name}"}}')
    section = examine_model(str(tmp_path), "", "", False)
    assert section.title == f"{tmp_path} is a pipeline of class {name}, which is not supported yet"
    assert section.problems == 1
    assert "2.x and of SDXL are supported: StableDiffusionPipeline and" in section.findings[0].text


def test_a_lora(tmp_path):
    file = tmp_path / "lora.safetensors"
    store.write_state(file, {"unet.mid.to_q.lora_A.weight": np.ones((2, 500), np.float16)})
    section = examine_model(str(file), "", "", False)
    assert section.title == f"{file} is a LoRA" and "--lora" in section.findings[0].text
    assert section.facts["weights"] == "0.0 million in 1 tensor" and section.facts["dtype on disk"] == "float16"


def test_what_is_damaged_or_no_model_is_a_mistake(tmp_path):
    (tmp_path / "broken.safetensors").write_bytes(b"0123456789")
    with pytest.raises(UserError, match="broken.safetensors is damaged: "):
        examine_model(str(tmp_path / "broken.safetensors"), "", "", False)
    (tmp_path / "notes.md").touch()
    with pytest.raises(UserError, match="is a file that ends in .md: expected a model"):
        examine_model(str(tmp_path / "notes.md"), "", "", False)


def test_a_config_of_another_method_is_refused():
    with pytest.raises(UserError, match="--config=spm_toy: expected one of method 'spo', found 'spm'"):
        examine_model("toy", "", "spm_toy", False)


def test_json_has_plain_numbers():
    data = examine_model("toy", "", "", False).data
    assert data["parameters"] == 3_334_515 and data["image_size"] == (32, 32) and data["bytes"] > 10**6
