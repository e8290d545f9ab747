"""The header of a LoRA file for the web UIs says what is known of the run and its base model, and nothing else."""

import base64
import io

import pytest
from PIL import Image

from spo_jax import export
from spo_jax.work.export.metadata import kohya_metadata
from spo_jax.work.export.preview import preview_file, write_preview
from spo_jax.work.export.source import Base, Source
from tests.work.export.made_up import SD15, a_lora, a_record, images


def test_a_run_on_sd15_is_described_as_kohya_and_the_model_spec_have_it(tmp_path):
    record = a_record(tmp_path, dtype="bfloat16", optimizer={"warmup_steps": 2}, num_epochs=4)
    source = Source(tmp_path, a_lora(), 1.0, Base(SD15), None, record)
    found = kohya_metadata(source, "stars", images(4), author="A. Person")
    assert found.pop("modelspec.thumbnail").startswith("data:image/jpeg;base64,")
    assert found.pop("modelspec.description").startswith(f"A LoRA of {SD15}, trained by step-by-step preference")
    assert found == {
        "modelspec.sai_model_spec": "1.0.1",
        "modelspec.architecture": "stable-diffusion-v1/lora",
        "modelspec.implementation": "diffusers",
        "modelspec.title": "stars",
        "modelspec.author": "A. Person",
        "modelspec.date": "2026-11-26T02:00:00+00:00",
        "modelspec.license": "CreativeML OpenRAIL-M",
        "modelspec.prediction_type": "epsilon",
        "modelspec.resolution": "512x512",
        "ss_base_model_version": "sd_v1",
        "ss_v2": "False",
        "ss_output_name": "stars",
        "ss_network_module": "networks.lora",
        "ss_network_dim": "2",
        "ss_network_alpha": "2.0",
        "ss_sd_model_name": SD15,
        "ss_learning_rate": "6e-05",
        "ss_unet_lr": "6e-05",
        "ss_lr_scheduler": "constant_with_warmup",
        "ss_lr_warmup_steps": "2",
        "ss_optimizer": "AdamW(betas=(0.9, 0.999), eps=1e-08, weight_decay=0.0001)",
        "ss_max_grad_norm": "1.0",
        "ss_gradient_accumulation_steps": "1",
        "ss_gradient_checkpointing": "False",
        "ss_mixed_precision": "bf16",
        "ss_seed": "0",
        "ss_steps": "5",
        "ss_num_epochs": "4",
        "ss_training_comment": "method spo of spo_jax, 3 batches; trained without trigger words",
        "ss_training_started_at": "1795654800.0",
        "ss_training_finished_at": "1795658400.0",
    }


def test_what_is_not_known_is_left_out(tmp_path):
    """A file says nothing about its training, and modules of other widths are those of no published model."""
    bare = Source(tmp_path, a_lora(64), 1.0, Base(), None, None)
    assert kohya_metadata(bare, "x", []) == {
        "ss_output_name": "x",
        "ss_network_module": "networks.lora",
        "ss_network_dim": "2",
        "ss_network_alpha": "2.0",
    }
    record = a_record(tmp_path, max_batches=3)._replace(summary={})
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n')
    found = kohya_metadata(Source(tmp_path, a_lora(), 0.5, Base("me/model"), None, record), "x", [])
    assert not found.keys() & {"ss_steps", "ss_num_epochs", "ss_training_finished_at", "modelspec.date"}
    assert not found.keys() & {"modelspec.license", "modelspec.resolution", "modelspec.author", "modelspec.thumbnail"}
    assert found["ss_training_comment"].endswith("strength 0.5 is folded in")


def test_paths_of_the_machine_are_not_told(tmp_path):
    model = tmp_path / "secret" / "model"
    model.mkdir(parents=True)
    source = Source(tmp_path, a_lora(), 1.0, Base(str(model)), None, a_record(tmp_path, model=str(model)))
    found = kohya_metadata(source, "x", [])
    assert found["ss_sd_model_name"] == "model" and "secret" not in str(found)


@pytest.mark.parametrize(("count", "side", "size"), [(4, 40, 492), (5, 600, 512), (3, 40, 480)])
def test_the_preview_is_a_square_of_the_tuned_images(tmp_path, count, side, size):
    file = preview_file(tmp_path / "stars.safetensors")
    assert file.name == "stars.preview.png"
    write_preview(file, images(count, side))
    image = Image.open(file)
    assert image.size == (size, size)
    assert image.getpixel((size - 2, size - 2)) == ((3, 3, 3) if count > 3 else (0, 0, 0))


def test_the_thumbnail_is_small(tmp_path):
    found = kohya_metadata(Source(tmp_path, a_lora(), 1.0, Base(SD15), None, None), "x", images(4, 512))
    data = base64.b64decode(found["modelspec.thumbnail"].partition(",")[2])
    assert Image.open(io.BytesIO(data)).size == (256, 256)
    assert len(data) < 50_000


def test_author_and_licence_need_a_place(tmp_path):
    for name in ("author", "license"):
        with pytest.raises(Exception, match=f"--{name}=x: only --format=kohya and --card have a place for it"):
            export("absent", "diffusers", tmp_path / "x.safetensors", **{name: "x"})
