"""``python -m spo_jax.export`` with ``--card``, ``--push-to`` and ``--scales``, on a run of micro models."""

import subprocess
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from spo_jax import compare_strengths
from spo_jax.core.errors import UserError
from spo_jax.core.files import read_json
from spo_jax.models import open_pipeline, sampler
from spo_jax.models.lora import read_lora
from spo_jax.weights.store import read_metadata
from spo_jax.work.export.strengths import text_table
from tests.support.commands import ROOT, command_line
from tests.support.hub_for_uploads import environment, serving

NAMES = {
    "README.md", "before_after.png", "images/00.png", "images/01.png", "pytorch_lora_weights.safetensors",
    "stars.preview.png", "stars.safetensors",
}  # fmt: skip


@pytest.mark.slow
def test_a_card_is_uploaded_as_it_lies_on_the_disk(micro_run, tmp_path):
    """The command in a Python of its own, because the hub's client reads its environment once."""
    line = command_line("export", f"--run={micro_run}", "--card", f"--out={tmp_path / 'card'}", "--push-to=me/stars")
    with serving() as hub:
        env = environment(hub, tmp_path)
        done = subprocess.run(line, cwd=ROOT, env=env, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert f"uploaded to http://127.0.0.1:{hub.server_port}/me/stars" in done.stdout
        files = {path.relative_to(tmp_path / "card").as_posix() for path in (tmp_path / "card").rglob("*.*")}
        assert files == hub.repos["me/stars"]["files"].keys() == NAMES
        for name, content in hub.repos["me/stars"]["files"].items():
            assert (tmp_path / "card" / name).read_bytes() == content
        # What cannot be uploaded stays on the disk.
        line = command_line("export", f"--run={micro_run}", "--card", f"--out={tmp_path / 'x'}", "--push-to=you/x")
        done = subprocess.run(line, cwd=ROOT, env=env, capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.splitlines()[-1].startswith("error: cannot upload to you/x: the token")
    assert (tmp_path / "x" / "README.md").is_file()


def test_diffusers_finds_the_lora_of_a_card(micro, micro_run, tmp_path, succeed):
    from diffusers import StableDiffusionPipeline

    out = tmp_path / "stars"
    process = succeed("export", f"--run={micro_run}", "--card", f"--out={out}", "--license=mit", "--author=me")
    assert process.stdout.startswith(f"wrote {out}: README.md, before_after.png")
    pipe = StableDiffusionPipeline.from_pretrained(micro.sd, local_files_only=True)
    pipe.load_lora_weights(out)
    assert pipe.get_active_adapters() == ["default_0"]
    shapes = open_pipeline(micro.sd, abstract=True).params["unet"]
    ours = read_lora(micro_run / "lora.safetensors").modules()
    for name in ("pytorch_lora_weights.safetensors", "stars.safetensors"):
        for module, halves in read_lora(out / name, shapes).modules().items():
            for ours_half, half in zip(ours[module], halves, strict=True):
                np.testing.assert_array_equal(half, ours_half)
    metadata = read_metadata(out / "stars.safetensors")
    assert metadata["ss_output_name"] == "stars" and metadata["ss_steps"].isdigit()
    assert float(metadata["ss_training_started_at"]) < float(metadata["ss_training_finished_at"])
    text = (out / "README.md").read_text()
    assert "spm score **(the judge itself)**" in text and "\nlicense: mit\n" in text
    assert str(micro.sd) not in text and str(micro.spm) not in text


def test_strengths_are_compared_with_the_base_model(micro_run, tmp_path, monkeypatch):
    """At strength 1 as after the run, at 0 as before it; and all of them in one compiled program."""
    traces = []
    plain = sampler._sample
    monkeypatch.setattr(sampler, "_sample", lambda *args: traces.append(1) or plain(*args))
    out = tmp_path / "strengths"
    result = compare_strengths(micro_run, [1, 0.5, 0, 2], out, rewards=["spm"])
    assert len(traces) == 1
    assert result == read_json(out / "strengths.json") and result["images"] == 2
    found = {entry["strength"]: entry["scores"]["spm_score"] for entry in result["strengths"]}
    assert list(found) == [0, 0.5, 1, 2]
    run = read_json(micro_run / "summary.json")["scores"]["spm_score"]
    for name in ("after", "change", "change_se"):
        assert found[1][name] == pytest.approx(run[name], rel=1e-4, abs=1e-5)
    assert found[0]["after"] == pytest.approx(run["before"], rel=1e-4) and found[0]["change"] == 0
    assert len({found[scale]["after"] for scale in found}) == 4 and all(score["is_judge"] for score in found.values())
    # A column of 128 pixels for each strength, with gaps of 4; a header; two images, each below its prompt.
    assert Image.open(out / "strengths.png").size == (4 * 132 - 4, 33 + 2 * (18 + 128))
    table = text_table(result)
    assert "spm score, the judge that the LoRA was trained to please: score of the preference model" in table
    assert table.count("change ") == 3
    with pytest.raises(UserError, match="strengths.png exists already"):
        compare_strengths(micro_run, [1], out)


@pytest.mark.slow
def test_strengths_are_drawn_without_scores(micro, micro_run, tmp_path, succeed):
    """Of a LoRA file, with other prompts."""
    (tmp_path / "prompts.txt").write_text("a red star\n")
    flags = [f"--model={micro.sd}", f"--prompts={tmp_path / 'prompts.txt'}", "--count=1", f"--out={tmp_path / 'out'}"]
    process = succeed("export", f"--run={micro_run / 'lora.safetensors'}", "--scales=0.5", *flags)
    assert process.stdout == f"wrote {tmp_path / 'out/strengths.png'} and {tmp_path / 'out/strengths.json'}\n"
    result = read_json(tmp_path / "out" / "strengths.json")
    assert [entry["scores"] for entry in result["strengths"]] == [{}, {}]
    assert result["prompts"] == str(tmp_path / "prompts.txt")
    prompts = ["a red star", "a blue heart"]
    result = compare_strengths(micro_run, "0.5", tmp_path / "listed", prompts=prompts, count=2)
    assert result["prompts"] == prompts
    assert Image.open(tmp_path / "listed" / "strengths.png").size == (2 * 132 - 4, 33 + 2 * (18 + 128))


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--scales=a"], "--scales=a: expected numbers separated by commas, such as 0.5,0.75,1"),
        (["--scales=0"], "--scales: expected strengths other than 0, such as --scales=0.5,0.75,1"),
        (["--scales=1000"], "--scales=1000: expected a strength other than 0, of at most 100"),
        (["--scales=1", "--rewards=nonsense"], "--rewards = 'nonsense': expected '"),
        (["--scales=1", "--prompts=absent.txt"], "no prompt file absent.txt"),
        (["--scales=1", "--count=0"], "--count=0: expected a number from 1 to 50000"),
        (["--scales=1", "--format=kohya"], "--format does not go with --scales"),
        (["--card", "--scales=1"], "--scales does not go with --card"),
        (["--card", "--format=kohya"], "--format does not go with --card"),
        (["--scales=1", "--scale=0"], "--scale does not go with --scales"),
        (["--count=3"], "--count goes with --card or --scales only"),
        (["--push-to=me/x"], "--push-to goes with --card or --scales only"),
        (["--card", "--push-to=x"], "--push-to=x: expected USER/NAME"),
    ],
)
def test_flags_are_checked_before_jax_is_imported(micro_run, tmp_path, command, flags, message):
    process = command("export", f"--run={micro_run}", f"--out={tmp_path / 'out'}", *flags)
    assert process.returncode == 2 and process.stderr.startswith(f"error: {message}"), process.stderr
    assert "importing JAX" not in process.stderr and not list(tmp_path.iterdir())


def test_a_judge_that_is_missing_is_named(micro_run, tmp_path):
    with pytest.raises(UserError, match="no such file or folder: absent"):
        compare_strengths(micro_run, [1], Path(tmp_path), rewards="spm:absent")
