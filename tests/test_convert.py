"""The command that writes preference models as safetensors."""

import json
import re
import subprocess
import sys

import numpy as np
import pytest

from spo_jax.convert import convert_spm
from spo_jax.core.errors import UserError
from spo_jax.rewards.common.preference_model import TRAINED_ON, load_spm
from spo_jax.toy import ASSETS
from spo_jax.weights.store import read_file

torch = pytest.importorskip("torch")
TOKENIZER = str(ASSETS / "spm" / "tokenizer")


@pytest.fixture
def published(tmp_path):
    """The shipped model in the published form: a torch file with the network as ``model.``, and a config beside it."""
    state = read_file(ASSETS / "spm" / "model.safetensors")
    bare = {f"model.{key.removeprefix('model.')}": torch.tensor(value).float() for key, value in state.items()}
    folder = tmp_path / "published"
    folder.mkdir()
    torch.save(bare, folder / "sdxl_step-aware_preference_model.bin")
    config = json.loads((ASSETS / "spm" / "config.json").read_text())
    config.pop(TRAINED_ON)  # published files do not say it
    (folder / "config.json").write_text(json.dumps(config))
    return folder / "sdxl_step-aware_preference_model.bin", {key: value.numpy() for key, value in bare.items()}


def test_a_published_file_becomes_safetensors_with_its_names(published, tmp_path):
    file, expected = published
    convert_spm(str(file), tmp_path / "spm", TOKENIZER)
    written = read_file(tmp_path / "spm" / "model.safetensors")
    assert written.keys() == expected.keys()
    for name, value in expected.items():  # the shipped weights are float16, so nothing is lost
        assert written[name].dtype == (np.float16 if value.ndim else np.float32)
        np.testing.assert_array_equal(written[name], value)
    assert json.loads((tmp_path / "spm" / "config.json").read_text())[TRAINED_ON] == "sdxl"
    again = load_spm(tmp_path / "spm", judges="sdxl")
    shipped = load_spm("toy")
    np.testing.assert_array_equal(again.tokenizer(["a red star"]), shipped.tokenizer(["a red star"]))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["published", "spm"]  # no temporary folder is left


def test_the_weights_are_float32_if_requested(published, tmp_path):
    file, expected = published
    convert_spm(str(file), tmp_path / "new" / "spm", TOKENIZER, "float32")
    written = read_file(tmp_path / "new" / "spm" / "model.safetensors")
    assert {x.dtype.name for x in written.values()} == {"float32"} and written.keys() == expected.keys()


def test_mistakes_are_reported_before_anything_is_written(published, tmp_path):
    file, _ = published
    (tmp_path / "taken").mkdir()
    cases = [
        ((str(file), tmp_path / "taken", TOKENIZER), "taken exists already: choose another --out"),
        ((str(file), tmp_path / "spm"), "no tokenizer beside the preference model"),
        ((str(file), tmp_path / "spm", TOKENIZER, "float16", "sd"), "--trained-on=sd: .* trained on 'sdxl'"),
        ((str(tmp_path / "nothing"), tmp_path / "spm"), "no such file or folder"),
    ]
    for arguments, message in cases:
        with pytest.raises(UserError, match=message):
            convert_spm(*arguments)
        assert not (tmp_path / "spm").exists()


def test_weights_that_do_not_fit_in_float16_do_not_become_infinite(published, tmp_path):
    file, expected = published
    large = {name: torch.tensor(value) for name, value in expected.items()}
    large["model.text_projection.weight"][0, 0] = 1e5
    torch.save(large, file)
    with pytest.raises(UserError, match="a weight of 100000 does not fit float16; write float32"):
        convert_spm(str(file), tmp_path / "spm", TOKENIZER)
    convert_spm(str(file), tmp_path / "spm", TOKENIZER, "float32")


def test_the_command_refuses_a_hostile_pickle_in_one_line_and_does_not_run_it(tmp_path):
    class Hostile:
        def __reduce__(self):
            return (open, (str(tmp_path / "it was run"), "w"))

    (tmp_path / "config.json").write_text((ASSETS / "spm" / "config.json").read_text())
    torch.save({"model.logit_scale": Hostile()}, tmp_path / "spm.bin")
    flags = [f"--spm={tmp_path / 'spm.bin'}", f"--out={tmp_path / 'out'}", f"--tokenizer={TOKENIZER}"]
    done = subprocess.run([sys.executable, "-m", "spo_jax.convert", *flags], capture_output=True, text=True)
    assert done.returncode == 2 and not (tmp_path / "it was run").exists() and not (tmp_path / "out").exists()
    errors = [line for line in done.stderr.splitlines() if line.startswith("error:")]
    assert len(errors) == 1
    assert re.search(r"names \S*open in the place of .*, which plain weights do not need; no code was run", errors[0])
    assert "Traceback" not in done.stderr
