"""What the authors of SPO have published, in the layout that the hub lists: one name is enough to fetch the right file.

The stand-ins are served on the loopback; `tests/weights/test_lora_of_others.py` reads LoRAs in such names.
"""

import pytest

from tests.support.commands import ROOT
from tests.weights import test_hub
from tests.weights.test_hub import CORE, _resolve_in_a_process, hub  # noqa: F401

OWNER = "SPO-Diffusion-Models"
CARD = {".gitattributes": "*.png filter=lfs", "README.md": "# card", "assets/1.png": "an image"}
LORAS = {
    f"{OWNER}/SPO-SD-v1-5_4k-p_10ep_LoRA": "spo-sd-v1-5_4k-p_10ep_lora_diffusers.safetensors",
    f"{OWNER}/SPO-SDXL_4k-p_10ep_LoRA": "spo_sdxl_10ep_4k-data_lora_diffusers.safetensors",
}
MERGED = f"{OWNER}/SPO-SD-v1-5_4k-p_10ep"
PARTS = {
    "model_index.json": "{}",
    "scheduler/scheduler_config.json": "{}",
    "text_encoder/config.json": "{}",
    "text_encoder/model.safetensors": "text encoder",
    "tokenizer/merges.txt": "#version: 0.2",
    "tokenizer/special_tokens_map.json": "{}",
    "tokenizer/tokenizer_config.json": "{}",
    "tokenizer/vocab.json": "{}",
    "unet/config.json": "{}",
    "unet/diffusion_pytorch_model.safetensors": "unet",
    "vae/config.json": "{}",
    "vae/diffusion_pytorch_model.safetensors": "vae",
}
CHECKER = {
    "feature_extractor/preprocessor_config.json": "{}",
    "safety_checker/config.json": "{}",
    "safety_checker/model.safetensors": "1 GB",
}
JUDGES = f"{OWNER}/Step-Aware_Preference_Models"
JUDGE_FILES = ("sd-v1-5_step-aware_preference_model.bin", "sdxl_step-aware_preference_model.bin")
MIRROR = "Kijai/spo-loras-comfyui"  # several files, so one of them has to be named
MIRRORED = ("spo-sd-v1-5_4k-p_10ep_lora_converted_fp32.safetensors", "spo-sdxl_lora_fp16.safetensors")


@pytest.fixture
def port(hub, monkeypatch):  # noqa: F811
    published = {name: {**CARD, file: "LoRA"} for name, file in LORAS.items()}
    published |= {MERGED: CARD | PARTS | CHECKER, JUDGES: CARD | dict.fromkeys(JUDGE_FILES, "judge")}
    published |= {MIRROR: CARD | dict.fromkeys(MIRRORED, "LoRA")}
    monkeypatch.setattr(test_hub, "REPOSITORIES", published)
    return hub.server_address[1]


def test_the_published_models_are_fetched_by_their_names(port, tmp_path):
    calls = [{"lora": name} for name in LORAS]
    calls += [{"id": MERGED, "components": [*CORE, "scheduler"]}]
    calls += [{"id": JUDGES, "allow_patterns": [JUDGE_FILES[0]]}]
    calls += [{"lora": MIRROR}, {"lora": f"{MIRROR}/{MIRRORED[0]}"}]
    *loras, merged, judge, unnamed, mirrored = _resolve_in_a_process(tmp_path, port, calls)
    assert [list(lora["files"]) for lora in loras] == [[file] for file in LORAS.values()]
    assert sorted(merged["files"]) == sorted(PARTS)  # not the safety checker, which has 1 GB
    assert list(judge["files"]) == [JUDGE_FILES[0]]
    assert MIRRORED[0] in unnamed["error"] and "name" in unnamed["error"]
    assert list(mirrored["files"]) == [MIRRORED[0]]


def test_the_document_names_what_was_tested():
    text = (ROOT / "docs" / "published.md").read_text(encoding="utf-8")
    assert [name for name in (*LORAS, MERGED, f"{JUDGES}/{JUDGE_FILES[0]}") if name not in text] == []
