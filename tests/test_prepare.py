"""From a source to a prepared folder: which splits are prepared, from where, and what is refused."""

import numpy as np
import pytest
from PIL import Image

from spo_jax import prepare as prepare_module
from spo_jax.core.errors import UserError
from spo_jax.data.preferences.format import open_preferences
from spo_jax.data.prompts import load_prompts
from spo_jax.prepare import prepare
from spo_jax.toy import world


@pytest.fixture
def own(tmp_path):
    """A user's folder with two splits of two pairs."""
    folder = tmp_path / "own"
    folder.mkdir()
    for shade in (0, 255):
        Image.fromarray(np.full((8, 8, 3), shade, np.uint8)).save(folder / f"{shade}.png")
    line = '{"prompt": "a %s", "image_0": "0.png", "image_1": "255.png", "label": %s}\n'
    for split in ("train", "mine"):
        (folder / f"{split}.jsonl").write_text(line % ("star", 0) + line % ("moon", 1))
    return folder


def test_a_users_own_preferences_are_prepared_once(own, tmp_path, capsys):
    done = prepare("folder", tmp_path / "out", ["train", "mine"], source=str(own))
    expected = {"train": (2, False), "mine": (2, False)}
    assert {split: (prepared.pairs, prepared.kept) for split, prepared in done.items()} == expected
    preferences = open_preferences(tmp_path / "out", "mine")
    assert preferences.labels.tolist() == [[1, 0], [0, 1]] and preferences.prompts == ("a star", "a moon")
    assert preferences.images(1) == ((own / "0.png").read_bytes(), (own / "255.png").read_bytes())
    assert "train: 2 pairs, 0 rows rejected; prompts in " in capsys.readouterr().out
    assert prepare("folder", tmp_path / "out", ["train"], source=str(own))["train"].kept
    assert "train: 2 pairs prepared earlier, kept" in capsys.readouterr().out


def test_what_is_counted_is_one_pair_or_several(own, tmp_path, capsys):
    prepare("folder", tmp_path / "out", ["train"], source=str(own), limit=1)
    prepare("folder", tmp_path / "out", ["train"], source=str(own), limit=1)
    shown = capsys.readouterr().out
    assert "train: 1 pair, 0 rows rejected;" in shown and "train: 1 pair prepared earlier" in shown


def test_all_splits_of_a_users_folder_are_prepared_by_default(own, tmp_path):
    assert list(prepare("folder", tmp_path / "a", source=str(own))) == ["mine", "train"]


def test_a_part_of_a_users_folder_is_held_out(own, tmp_path):
    (own / "mine.jsonl").unlink()
    done = prepare("folder", tmp_path / "out", source=str(own), hold_out=0.5)
    assert {split: prepared.pairs for split, prepared in done.items()} == {"train": 1, "validation": 1}
    train, held_out = (open_preferences(tmp_path / "out", split).prompts for split in done)
    assert sorted(train + held_out) == ["a moon", "a star"]
    with pytest.raises(UserError, match="validation was prepared with hold_out = 0.5, but now it is 0.3"):
        prepare("folder", tmp_path / "out", ["validation"], source=str(own), hold_out=0.3)
    with pytest.raises(UserError, match="--hold-out = 1.0: expected"):
        prepare("folder", tmp_path / "out", source=str(own), hold_out=1.0)


def test_a_source_that_has_changed_is_not_mistaken_for_the_old_one(own, tmp_path):
    prepare("folder", tmp_path / "out", ["train"], source=str(own))
    lines = (own / "train.jsonl").read_text()
    (own / "train.jsonl").write_text(lines.replace("moon", "fish"))
    with pytest.raises(UserError, match="train was prepared with sha256 of train.jsonl = .* delete the folder"):
        prepare("folder", tmp_path / "out", ["train"], source=str(own))
    (own / "train.jsonl").write_text(lines)
    assert prepare("folder", tmp_path / "out", ["train"], source=str(own))["train"].kept


def test_a_split_that_fails_leaves_the_finished_ones(own, tmp_path):
    (own / "train.jsonl").write_text("nonsense\n" * 3)
    out = tmp_path / "out"
    with pytest.raises(
        UserError, match=r"split train: 3 of 3 rows \(100.00%\) cannot be used.*line 1: the line is not J"
    ):
        prepare("folder", out, ["mine", "train"], source=str(own))
    assert sorted(path.name for path in out.iterdir()) == [".lock", "mine", "rejected-train.jsonl"]
    assert open_preferences(out, "mine").digest


def test_pairs_of_the_toy_world_are_labelled_by_its_truth(tmp_path):
    out = tmp_path / "out"
    done = prepare("toy", out, pairs=60, held_out_pairs=20, seed=1)
    assert {split: prepared.pairs for split, prepared in done.items()} == {"train": 60, "validation_unique": 20}
    train, held_out = (open_preferences(out, split) for split in ("train", "validation_unique"))
    assert set(train.prompts) <= set(world.TRAIN_PROMPTS) and set(held_out.prompts) <= set(world.HELD_OUT_PROMPTS)
    assert {0.0, 0.5, 1.0} == set(train.labels[:, 0].tolist())
    assert train.count.tolist() == np.bincount(train.prompt)[train.prompt].tolist()
    assert load_prompts(out / "train" / "prompts.json") == list(train.prompts)


def test_the_same_seed_gives_the_same_pairs(tmp_path):
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        prepare("toy", tmp_path / name, ["train"], pairs=4, held_out_pairs=4, seed=seed)
    digests = [open_preferences(tmp_path / name, "train").digest for name in "abc"]
    assert digests[0] == digests[1] != digests[2]


def test_only_the_requested_splits_of_a_repository_are_fetched(tmp_path, monkeypatch):
    calls = []

    def resolve(*arguments, **options):
        calls.append((arguments, options))
        raise UserError("not fetched here")

    monkeypatch.setattr(prepare_module, "resolve", resolve)
    for splits in (["train"], []):
        with pytest.raises(UserError, match="not fetched here"):
            prepare("pick_a_pic", tmp_path / "out", splits, source="acme/pairs", revision="v2")
    (arguments, options), (_, usual) = calls
    assert arguments == ("acme/pairs", "v2") and options["repo_type"] == "dataset"
    assert "*/train-*.parquet" in options["allow_patterns"] and "*/test_unique-*.parquet" in usual["allow_patterns"]
    assert not any("unique" in pattern for pattern in options["allow_patterns"])
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("splits", "max_bad", "message"),
    [
        (["train", "test"], 0.01, "--splits: no split test in the source, only mine, train"),
        (["train"], 1.5, "--max-bad=1.5: expected a share between 0 and 1"),
        (["train"], float("nan"), "--max-bad=nan: expected a share between 0 and 1"),
    ],
)
def test_wrong_arguments_are_refused_before_anything_is_written(own, tmp_path, splits, max_bad, message):
    with pytest.raises(UserError, match=message):
        prepare("folder", tmp_path / "out", splits, max_bad, source=str(own))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("dataset", "options", "message"),
    [
        ("toy", {"source": "x"}, "--source: --dataset=toy does not take it, only --pairs, --held-out-pairs, --seed"),
        ("folder", {"max_pairs": 1}, "--max-pairs: --dataset=folder does not take it, only --source"),
        ("coyo", {}, "--dataset = 'coyo': expected 'folder', 'pick_a_pic', 'prepared', 'prompts', 'toy', or the "),
        ("toy", {"held_out_pairs": 0}, "--held-out-pairs = 0: expected 1 to "),
        ("folder", {}, "--source = '': expected a folder"),
    ],
)
def test_a_wrong_dataset_or_option_is_refused(tmp_path, dataset, options, message):
    with pytest.raises(UserError, match=message):
        prepare(dataset, tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


def test_the_module_is_callable(own, tmp_path):
    assert list(prepare_module("folder", tmp_path / "out", ["mine"], source=str(own))) == ["mine"]


def test_a_source_that_does_not_exist_is_refused(tmp_path):
    with pytest.raises(UserError, match="no such file or folder: /absent/data"):
        prepare("pick_a_pic", tmp_path / "out", source="/absent/data")


def test_a_revision_of_a_local_folder_is_refused(own, tmp_path):
    with pytest.raises(UserError, match=f"--revision=main is for hub ids, and --source={own} is a local folder"):
        prepare("pick_a_pic", tmp_path / "out", source=str(own), revision="main")


def test_an_output_folder_below_a_file_is_refused(own, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=f"cannot write to {tmp_path}/file/out: {tmp_path}/file is not a folder"):
        prepare("folder", tmp_path / "file" / "out", source=str(own))
