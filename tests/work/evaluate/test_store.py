"""The folder of an evaluation keeps images with what made them, and scores with what they are of."""

import errno
import json

import numpy as np
import pytest
from PIL import Image

from spo_jax.core import files
from spo_jax.core.errors import UserError
from spo_jax.work.evaluate.digests import Digests, fingerprint
from spo_jax.work.evaluate.store import Recipe, Store, check_folder, image_key, joint_key, read_pixels

PROMPTS = ["a red star", "ein Stern – ★", "a blue moon"]
PIXELS = np.arange(4 * 5 * 3, dtype=np.uint8).reshape(4, 5, 3)
SIGNS = {"saturation": 0.25, "out_of_range": 0.0}
RECIPE = Recipe.of({"model": "abc", "steps": 20, "versions": {"jax": "1"}})


@pytest.fixture
def store(tmp_path):
    store = Store(tmp_path / "out", PROMPTS)
    store.begin()
    store.begin_images("spo", RECIPE)
    return store


def test_an_image_is_there_once_it_is_written(store):
    assert store.signs("spo", RECIPE, 1, 0) is None
    file = store.write_image("spo", RECIPE, 1, 0, PIXELS, SIGNS)
    assert file == store.image_file("spo", RECIPE, 1, 0)
    assert file.relative_to(store.folder).as_posix() == f"images/spo/{RECIPE.fingerprint}/0001-0.png"
    assert store.signs("spo", RECIPE, 1, 0) == SIGNS
    np.testing.assert_array_equal(read_pixels(file), PIXELS)
    assert Image.open(file).text["prompt"] == PROMPTS[1]
    for name, recipe, prompt, image in (("dpo", RECIPE, 1, 0), ("spo", RECIPE, 0, 0), ("spo", RECIPE, 1, 1)):
        assert store.signs(name, recipe, prompt, image) is None


def test_a_file_that_was_not_written_for_this_place_is_no_image_of_it(store):
    file = store.write_image("spo", RECIPE, 1, 0, PIXELS, SIGNS)
    file.rename(store.image_file("spo", RECIPE, 2, 0))  # another prompt
    assert store.signs("spo", RECIPE, 2, 0) is None
    Image.fromarray(PIXELS).save(file)  # an image of nobody knows what
    assert store.signs("spo", RECIPE, 1, 0) is None
    file.write_bytes(b"")
    assert store.signs("spo", RECIPE, 1, 0) is None


def test_another_recipe_has_other_images_and_says_what_differs(store):
    store.write_image("spo", RECIPE, 0, 0, PIXELS, SIGNS)
    other = Recipe.of(RECIPE.values | {"steps": 30})
    assert store.signs("spo", other, 0, 0) is None
    assert store.begin_images("spo", other) == "steps is 20 there and 30 now"
    assert store.begin_images("spo", other) == ""  # it has begun
    store.write_image("spo", other, 0, 0, PIXELS, SIGNS)
    assert store.signs("spo", RECIPE, 0, 0) == SIGNS
    assert json.loads((store.image_file("spo", other, 0, 0).parent / "recipe.json").read_text()) == other.values


def test_what_a_killed_evaluation_has_left_of_its_last_file_is_removed(store):
    file = store.write_image("spo", RECIPE, 0, 0, PIXELS, SIGNS)
    scores = store.scores({"spec": "toy"}, "spo")
    scores.scores["key"] = {"toy": 1.0}
    scores.save()
    (kept,) = store.folder.glob("scores/*/spo.json")
    results = store.folder / "results.md"
    results.write_text("whole")
    left = [whole.with_name(f".{whole.name}.ab12{whole.suffix}") for whole in (file, kept, results)]
    for half in left:
        half.write_bytes(b"half")
    (store.folder / ".results.md.swp").write_text("of an editor")
    Store(store.folder, PROMPTS).begin()
    assert not any(half.exists() for half in left) and file.exists() and kept.exists() and results.exists()
    assert (store.folder / ".results.md.swp").exists()


def test_an_evaluation_that_was_killed_while_it_wrote_its_first_file_begins_again(tmp_path):
    (tmp_path / ".evaluation.json.ab12.json").write_text('{"form')
    (tmp_path / ".lock").touch()
    Store(tmp_path, PROMPTS).begin()
    assert [file.name for file in sorted(tmp_path.iterdir())] == [".lock", "evaluation.json"]


def test_prompts_may_become_more_or_fewer_but_not_others(store):
    Store(store.folder, PROMPTS[:1]).begin()
    Store(store.folder, [*PROMPTS, "more"]).begin()
    Store(store.folder, PROMPTS).begin()
    assert json.loads((store.folder / "evaluation.json").read_text())["prompts"] == [*PROMPTS, "more"]
    with pytest.raises(UserError) as refused:
        check_folder(store.folder, [PROMPTS[0], "a green cross"])
    assert str(refused.value) == (
        f"--out={store.folder} holds an evaluation of other prompts (4 prompts; prompt 1 is 'ein Stern – ★' there and "
        "'a green cross' here): choose another --out"
    )


def test_a_folder_of_something_else(tmp_path):
    (tmp_path / "notes.txt").write_text("hello")
    with pytest.raises(UserError, match="holds something else than an evaluation: choose another folder"):
        Store(tmp_path, PROMPTS)
    (tmp_path / "evaluation.json").write_text("{}")
    with pytest.raises(UserError, match="evaluation.json is not of an evaluation that this version can continue"):
        Store(tmp_path, PROMPTS)
    with pytest.raises(UserError, match="notes.txt is a file: expected a folder"):
        Store(tmp_path / "notes.txt", PROMPTS)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["evaluation.json", "notes.txt"]


def test_a_full_disk_leaves_nothing_half_written(store, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(UserError, match=r"cannot write .*0000-0.png: No space left on device"):
        store.write_image("spo", RECIPE, 0, 0, PIXELS, SIGNS)
    assert [file.name for file in store.image_file("spo", RECIPE, 0, 0).parent.iterdir()] == ["recipe.json"]


def test_scores_are_kept_by_reward_image_and_prompt(store):
    reward = {"spec": "spm@401:runs/my judge", "weights": "abc"}
    scores = store.scores(reward, "spo")
    scores.scores["key"] = {"spm_score": 0.5}
    scores.diversity["joint"] = 0.1
    scores.save()
    again = store.scores(reward, "spo")
    assert (again.scores, again.diversity) == ({"key": {"spm_score": 0.5}}, {"joint": 0.1})
    assert not store.scores(reward | {"weights": "abd"}, "spo").scores and not store.scores(reward, "dpo").scores
    (file,) = store.folder.glob("scores/*/spo.json")
    assert file.parent.name.startswith("spm@401-runs-my-judge-")
    file.write_text('{"scores": 3}')
    with pytest.raises(UserError, match="spo.json is damaged: delete it, and its scores are computed again"):
        store.scores(reward, "spo")


def test_scores_are_written_every_few_seconds_and_at_the_end(store, monkeypatch):
    now = [0.0]
    monkeypatch.setattr("spo_jax.work.evaluate.store.time.monotonic", lambda: now[0])
    scores = store.scores({"spec": "toy"}, "spo")
    scores.save()
    assert not list(store.folder.glob("scores/*/*"))  # nothing to write
    written = []
    for number in range(20):
        scores.scores[str(number)] = {"toy": 1.0}
        now[0] += 2
        scores.save(every=5.0)
        written.append(len(store.scores({"spec": "toy"}, "spo").scores))
    assert written == [number // 3 * 3 for number in range(1, 21)]
    scores.save()
    assert len(store.scores({"spec": "toy"}, "spo").scores) == 20


def test_a_key_depends_on_the_bytes_of_an_image_and_on_its_prompt(store):
    file = store.write_image("spo", RECIPE, 0, 0, PIXELS, SIGNS)
    other = store.write_image("spo", RECIPE, 0, 1, PIXELS ^ 1, SIGNS)
    keys = [image_key(file, "a"), image_key(file, "b"), image_key(other, "a")]
    assert len(set(keys)) == 3 and image_key(file, "a") == keys[0]
    assert joint_key(keys) != joint_key(keys[::-1])


def test_a_damaged_image_of_ours(store):
    file = store.write_image("spo", RECIPE, 0, 0, PIXELS, SIGNS)
    file.write_bytes(file.read_bytes()[:-20])
    with pytest.raises(UserError, match=r"0000-0.png cannot be decoded .*or delete it if this command drew it"):
        read_pixels(file)
    file.unlink()
    with pytest.raises(UserError, match="0000-0.png is missing"):
        image_key(file, "a")


# Digests


def write_model(folder):
    for name in ("model_index.json", "unet/config.json", "unet/diffusion_pytorch_model.safetensors"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(name)
    return folder


def test_the_digest_of_a_model_is_that_of_what_is_read(tmp_path):
    model = write_model(tmp_path / "a")
    digest = Digests(tmp_path / "digests.json").of_model(model)
    assert Digests(tmp_path / "digests.json").of_model(write_model(tmp_path / "b")) == digest  # wherever it lies
    (model / "README.md").write_text("hello")
    (model / "safety_checker").mkdir()
    (model / "safety_checker" / "config.json").write_text("{}")
    assert Digests(tmp_path / "digests.json").of_model(model) == digest
    (model / "unet" / "config.json").write_text("{}")
    assert Digests(tmp_path / "digests.json").of_model(model) != digest


def test_a_file_is_read_once(tmp_path):
    """Its size and the time of its change tell that it is the same."""
    file = tmp_path / "lora.safetensors"
    file.write_bytes(b"abc")
    digests = Digests(tmp_path / "digests.json")
    first = digests.of_lora(file)
    digests.save()
    content = json.loads((tmp_path / "digests.json").read_text())
    content[str(file.resolve())][2] = "kept"
    (tmp_path / "digests.json").write_text(json.dumps(content))
    kept = Digests(tmp_path / "digests.json")
    assert kept.of_lora(file) == fingerprint({"lora": "kept"}) != first
    file.write_bytes(b"abcd")
    assert kept.of_lora(file) not in (first, fingerprint({"lora": "kept"}))
    (tmp_path / "digests.json").write_text("{")
    file.write_bytes(b"abc")
    assert Digests(tmp_path / "digests.json").of_lora(file) == first


def test_alpha_of_peft_belongs_to_a_lora(tmp_path):
    file = tmp_path / "adapter_model.safetensors"
    file.write_bytes(b"abc")
    digest = Digests(tmp_path / "digests.json").of_lora(file)
    (tmp_path / "adapter_config.json").write_text('{"lora_alpha": 8}')
    assert Digests(tmp_path / "digests.json").of_lora(file) != digest


def test_a_file_in_the_cache_of_the_hub_has_its_digest_for_a_name(tmp_path):
    blob = tmp_path / "blobs" / ("ab" * 32)
    blob.parent.mkdir()
    blob.write_bytes(b"abc")
    file = tmp_path / "lora.safetensors"
    file.symlink_to(blob)
    assert Digests(tmp_path / "digests.json").of_lora(file) == fingerprint({"lora": "ab" * 32})
