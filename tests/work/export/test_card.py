"""The page of a LoRA says what is known, marks the judge's own score, and tells nothing of the machine."""

import re
from pathlib import Path

import huggingface_hub
import numpy as np
import pytest
import yaml
from PIL import Image

from spo_jax import export_card
from spo_jax.core.errors import UserError
from spo_jax.models.lora import read_lora, write_lora
from spo_jax.run.report.images import write_sheet
from spo_jax.run.verdict import verdict
from spo_jax.weights.store import read_metadata
from spo_jax.work.export import card, metadata
from spo_jax.work.export.card import write_card
from spo_jax.work.export.page import Naming
from spo_jax.work.export.source import Base, Source
from tests.work.export.made_up import SD15, SUMMARY, a_lora, a_record, images


def score(change, reward, meaning="what it means"):
    values = {"before": 1.0, "before_se": 0.1, "after": 1.0 + change, "after_se": 0.1, "change": change}
    return values | {"change_se": 0.01, "count": 32, "meaning": meaning, "lower_is_better": False, "reward": reward}


@pytest.fixture(autouse=True)
def configs(monkeypatch):
    """Stands for the base model's configs, which take seconds to read; `test_metadata.py` reads them."""
    monkeypatch.setattr(metadata, "base_facts", lambda base: {"size": (512, 512), "prediction": "epsilon"})


@pytest.fixture
def run(tmp_path):
    """The record of a run on SD 1.5 whose judge is one of its scores, with images."""
    (tmp_path / "run").mkdir()
    judge = tmp_path / "home" / "judge"
    judge.mkdir(parents=True)
    settings = {"prompts": str(tmp_path / "home" / "my prompts.txt"), "spm": {"model": str(judge)}}
    record = a_record(tmp_path / "run", **settings, eval={"rewards": "spm,my.own", "steps": 30})
    scores = {
        "spm_score": score(0.5, "spm", f"score of the preference model {judge} at timestep 0"),
        "red|ness": score(-0.2, "my.own"),
    }
    pairs = [pair._replace(prompt=f'a "{pair.prompt}": <b>|</b>\n# no heading') for pair in images(10)]
    write_sheet(tmp_path / "run" / "before_after.png", pairs)
    summary = {**SUMMARY, "scores": scores, "images": 32, "verdict": verdict(scores), "method": "spo"}
    summary |= {"wall_seconds": 7200.0, "versions": {"spo_jax": "9.9", "device": "4 x TPU v5e"}}
    return record._replace(summary=summary)


def written(tmp_path, record, lora=None, strength=1.0, base=SD15, **naming) -> tuple[dict, str, Path]:
    """The page's front matter, its text, and the folder."""
    out = tmp_path / "card"
    source = Source(tmp_path, lora or a_lora(), strength, Base(base), None, record)
    names = write_card(source, out, Naming("stars", **naming))
    assert names == sorted(path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file())
    content = (out / "README.md").read_text()
    parsed = huggingface_hub.ModelCard(content)  # reads the front matter as the hub's client does
    front = yaml.safe_load(content.split("---\n")[1])
    assert parsed.data.to_dict() == front
    return front, content.split("---\n", 2)[2], out


def test_the_front_matter_is_what_the_hub_reads(tmp_path, run):
    front, _, out = written(tmp_path, run)
    assert front.pop("widget") == [
        {"text": pair.prompt, "output": {"url": f"images/{number:02d}.png"}}
        for number, pair in enumerate(run.pairs()[:8])
    ]
    assert front == {
        "base_model": SD15,
        "base_model_relation": "adapter",
        "library_name": "diffusers",
        "license": "creativeml-openrail-m",
        "pipeline_tag": "text-to-image",
        "tags": ["text-to-image", "diffusers", "lora", "stable-diffusion", "spo", "spo_jax"],
    }
    np.testing.assert_array_equal(np.asarray(Image.open(out / "images/01.png")), run.pairs()[1].after)


def test_the_judges_own_score_is_marked(tmp_path, run):
    _, text, _ = written(tmp_path, run)
    assert "| spm score **(the judge itself)** | 1.00 ± 0.10 | 1.50 ± 0.10 | +0.500 ± 0.010 | ▲ better |" in text
    assert r"| red\|ness | 1.00 ± 0.10 | 0.80 ± 0.10 | -0.200 ± 0.010 | ▼ worse |" in text
    assert "**spm score** is the score of the very judge that this LoRA was trained to please." in text
    assert f"> {run.summary['verdict'].replace('|', chr(92) + '|')}" in text
    assert "over 32 pairs of images of the same prompt and noise, drawn by DDIM in 30 steps with guidance 5." in text
    assert "| length | 3 batches, 2 h on 4 x TPU v5e |" in text and "spo_jax) 9.9 |" in text
    others = {name: score | {"reward": "my.own"} for name, score in run.summary["scores"].items()}
    (tmp_path / "again").mkdir()
    _, text, _ = written(tmp_path / "again", run._replace(summary={**run.summary, "scores": others}))
    assert "judge itself" not in text and "None of these scores is that of the judge" in text


def test_paths_of_the_machine_are_not_told(tmp_path, run):
    _, text, out = written(tmp_path, run, base=str(tmp_path / "home" / "judge"))
    for file in out.rglob("*"):
        assert file.suffix == ".png" or file.is_dir() or str(tmp_path).encode() not in file.read_bytes()
    assert "| judge | spm (judge) |" in text and "| training prompts | my prompts.txt |" in text
    assert "| base model | judge, a local model |" in text and 'from_pretrained("PATH_OR_HUB_ID_OF_THE_BASE' in text
    assert "score of the preference model judge at timestep 0" in text


def test_settings_that_change_what_is_learned_are_told(tmp_path, run):
    _, text, _ = written(tmp_path, run)
    rows = re.findall(r"^\| `([\w.]+)` \| `(.*)` \| `.*` \| .+ \|$", text, re.MULTILINE)
    assert dict(rows) == {"model": f"'{SD15}'", "prompts": "'my prompts.txt'", "spm.model": "'judge'"}


def test_a_folded_strength_is_told(tmp_path, run):
    _, text, _ = written(tmp_path, run, strength=0.75)
    assert "hold the LoRA at 0.75 of the strength at which it was trained" in text
    assert "The images and scores on this page are of the full strength" in " ".join(text.split())


def test_what_a_file_does_not_say_is_called_unknown(tmp_path):
    front, text, out = written(tmp_path, None, lora=a_lora(64), base="")
    assert front.keys() == {"library_name", "pipeline_tag", "tags"}
    assert front["tags"] == ["text-to-image", "diffusers", "lora", "spo_jax"]
    for sentence in (
        "| base model | not known |",
        "| trigger words | not known |",
        "| method, data and settings | not known: this page was made from a LoRA file alone |",
        "Not known: a LoRA file does not say how it was evaluated.",
        "Not known. The terms of the base model pass on to what is made from it",
    ):
        assert sentence in text
    assert "bibtex" not in text and "![" not in text and "## Settings" not in text
    assert {path.name for path in out.iterdir()} == {
        "README.md", "pytorch_lora_weights.safetensors", "stars.safetensors"
    }  # fmt: skip


def test_scores_of_a_run_that_has_not_finished_are_unknown(tmp_path, run):
    _, text, _ = written(tmp_path, run._replace(summary={}))
    assert "Not known: the run has not finished, or this is one of its earlier checkpoints." in text
    assert "![" not in text


def test_names_and_licence_of_the_user(tmp_path, run):
    front, text, out = written(tmp_path, run, author="me", licence="mit", repo="me/stars")
    assert front["license"] == "mit" and "\nmit.\n" in text
    assert 'pipe.load_lora_weights("me/stars")' in text and "--lora=me/stars" in text
    metadata = read_metadata(out / "stars.safetensors")
    assert metadata["modelspec.author"] == "me" and metadata["modelspec.license"] == "mit"
    assert metadata["modelspec.title"] == metadata["ss_output_name"] == "stars"


def test_nothing_is_left_of_a_card_that_failed(tmp_path, run, monkeypatch):
    def fail(*_):
        raise UserError("no page")

    monkeypatch.setattr(card, "page", fail)
    with pytest.raises(UserError, match="no page"):
        written(tmp_path, run)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["home", "run"]


def test_the_command_writes_what_diffusers_and_sample_find(tmp_path, capsys):
    """Of a LoRA file, into a folder that has other files, which stay."""
    write_lora(tmp_path / "lora.safetensors", a_lora())
    out = tmp_path / "my LoRA!"
    assert export_card(tmp_path / "lora.safetensors", out, scale=0.5) == out
    read = read_lora(out)  # finds pytorch_lora_weights.safetensors
    np.testing.assert_array_equal(
        read.modules()["down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_q"][1], np.full((2, 320), 0.5)
    )
    assert "wrote " in capsys.readouterr().out and (out / "my-LoRA.safetensors").is_file()
    (out / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="my LoRA! exists already"):
        export_card(tmp_path / "lora.safetensors", out)
    export_card(tmp_path / "lora.safetensors", out, overwrite=True, name="other")
    assert (out / "notes.txt").read_text() == "mine" and (out / "other.safetensors").is_file()


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"private": True}, "--private goes with --push-to=USER/NAME only"),
        ({"push_to": "me"}, "--push-to=me: expected USER/NAME"),
        ({"name": "a:b"}, "--name=a:b: expected letters, digits, -, _ and . only"),
        ({"scale": 0.0}, "--scale=0: expected a strength other than 0, of at most 100"),
        ({"scale": float("nan")}, "--scale=nan: expected a strength"),
        ({}, "--run=absent: no run here"),
    ],
)
def test_mistakes_are_found_before_anything_is_written(tmp_path, how, message):
    with pytest.raises(UserError, match=f"^{message}"):
        export_card("absent", tmp_path / "out", **how)
    assert not list(tmp_path.iterdir())
