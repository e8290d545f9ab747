"""From a source to a prepared folder: which splits, from where, and what is refused."""

import numpy as np
import pytest
from PIL import Image
from spo_jax.data.preferences.format import open_preferences

from spo_jax import preparing
from spo_jax.core.errors import UserError
from spo_jax.data.prompts import load_prompts
from spo_jax.preparing import folder_source, pick_a_pic_source, prepare, scenes_source
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


def test_a_users_own_preferences(own, tmp_path, capsys):
    done = prepare(folder_source(str(own)), tmp_path / "out", ["train", "mine"])
    assert {split: (what.pairs, what.kept) for split, what in done.items()} == {"train": (2, False), "mine": (2, False)}
    preferences = open_preferences(tmp_path / "out", "mine")
    assert preferences.labels.tolist() == [[1, 0], [0, 1]] and preferences.prompts == ("a star", "a moon")
    assert preferences.images(1) == ((own / "0.png").read_bytes(), (own / "255.png").read_bytes())
    assert "train: 2 pairs, 0 rows rejected; prompts in " in capsys.readouterr().out
    assert prepare(folder_source(str(own)), tmp_path / "out", ["train"])["train"].kept
    assert "train: 2 pairs prepared earlier, kept" in capsys.readouterr().out


def test_without_splits_all_of_a_users_own(own, tmp_path):
    assert list(prepare(folder_source(str(own)), tmp_path / "a")) == ["mine", "train"]


def test_a_source_that_has_changed_is_not_taken_for_the_old_one(own, tmp_path):
    prepare(folder_source(str(own)), tmp_path / "out", ["train"])
    lines = (own / "train.jsonl").read_text()
    (own / "train.jsonl").write_text(lines.replace("moon", "fish"))
    with pytest.raises(UserError, match="train was prepared with sha256 of train.jsonl = .* delete the folder"):
        prepare(folder_source(str(own)), tmp_path / "out", ["train"])
    (own / "train.jsonl").write_text(lines)
    assert prepare(folder_source(str(own)), tmp_path / "out", ["train"])["train"].kept


def test_a_split_that_fails_leaves_the_finished_ones(own, tmp_path):
    (own / "train.jsonl").write_text("nonsense\n" * 3)
    out = tmp_path / "out"
    with pytest.raises(
        UserError, match=r"split train: 3 of 3 rows \(100.00%\) cannot be used.*line 1: the line is not J"
    ):
        prepare(folder_source(str(own)), out, ["mine", "train"])
    assert sorted(path.name for path in out.iterdir()) == [".lock", "mine", "rejected-train.jsonl"]
    assert open_preferences(out, "mine").digest


def test_scenes_are_labelled_by_the_ground_truth(tmp_path):
    out = tmp_path / "out"
    done = prepare(scenes_source(60, 20, seed=1), out)
    assert {split: what.pairs for split, what in done.items()} == {"train": 60, "validation_unique": 20}
    train, held_out = (open_preferences(out, split) for split in ("train", "validation_unique"))
    assert set(train.prompts) <= set(world.TRAIN_PROMPTS) and set(held_out.prompts) <= set(world.HELD_OUT_PROMPTS)
    assert {0.0, 0.5, 1.0} == set(train.labels[:, 0].tolist())
    assert train.count.tolist() == np.bincount(train.prompt)[train.prompt].tolist()
    assert load_prompts(out / "train" / "prompts.json") == list(train.prompts)


def test_the_same_seed_gives_the_same_pairs(tmp_path):
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        prepare(scenes_source(4, 4, seed), tmp_path / name, ["train"])
    digests = [open_preferences(tmp_path / name, "train").digest for name in "abc"]
    assert digests[0] == digests[1] != digests[2]


def test_of_a_repository_only_the_splits_that_were_asked_for_are_fetched(tmp_path, monkeypatch):
    asked = []

    def resolve(*arguments, **options):
        asked.append((arguments, options))
        raise UserError("not fetched here")

    monkeypatch.setattr(preparing, "resolve", resolve)
    for splits in (["train"], []):
        with pytest.raises(UserError, match="not fetched here"):
            prepare(pick_a_pic_source("acme/pairs", "v2"), tmp_path / "out", splits)
    (arguments, options), (_, usual) = asked
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
def test_refusals(own, tmp_path, splits, max_bad, message):
    with pytest.raises(UserError, match=message):
        prepare(folder_source(str(own)), tmp_path / "out", splits, max_bad)
    assert not (tmp_path / "out").exists()


def test_a_source_that_is_nowhere(tmp_path):
    with pytest.raises(UserError, match="no such file or folder: /absent/data"):
        prepare(pick_a_pic_source("/absent/data"), tmp_path / "out")


def test_a_revision_of_what_is_here(own, tmp_path):
    with pytest.raises(UserError, match=f"--revision=main: it is of a hub id, and --source={own} is here"):
        prepare(pick_a_pic_source(str(own), "main"), tmp_path / "out")


def test_an_output_below_a_regular_file(own, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=f"cannot write to {tmp_path}/file/out: {tmp_path}/file is not a folder"):
        prepare(folder_source(str(own)), tmp_path / "file" / "out")
