"""Prepared splits return every pair aligned with its columns, and report what is damaged or missing."""

import itertools
import pickle
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from spo_jax.core.errors import UserError
from spo_jax.core.files import read_json, write_json
from spo_jax.data.preferences.format import FORMAT, PROMPTS, RECORD, open_preferences
from spo_jax.data.preferences.loading import ImagePairs, batches
from spo_jax.data.preferences.writer import Prepared, prepare_split, preparing
from spo_jax.data.prompts import load_prompts


def test_all_columns_are_aligned_with_the_images(make_source, prepare, data_dir, row):
    """The rows fill several shards, and a rejected one is in the middle of a shard."""
    rows = [row(i) for i in range(7)]
    rows[3]["jpg_1"] = b"damaged"
    assert prepare(make_source(rows), max_bad=0.5) == Prepared(6, 1, kept=False)
    good = rows[:3] + rows[4:]
    preferences = open_preferences(data_dir, "train")
    assert len(preferences) == 6
    for index, want in enumerate(good):
        assert preferences.images(index) == (want["jpg_0"], want["jpg_1"])
        assert preferences.prompts[preferences.prompt[index]] == want["caption"]
        assert preferences.labels[index].tolist() == [want["label_0"], want["label_1"]]
    assert preferences.count.tolist() == [want["num_example_per_prompt"] for want in good]
    assert preferences.has_label.tolist() == [want["has_label"] for want in good] and not preferences.has_label.all()
    assert preferences.are_different.all()
    assert (preferences.prompt.dtype, preferences.labels.dtype) == (np.int32, np.float32)
    assert len(set(preferences.prompts)) == len(preferences.prompts) == 3


def test_tensorflow_datasets_reads_it_without_tensorflow(make_source, prepare, data_dir, row):
    import tensorflow_datasets as tfds

    prepare(make_source([row(0), row(1)]))
    record = tfds.builder_from_directory(data_dir / "train").as_data_source("train")[1]
    assert record["jpg_0"].shape == (10, 12, 3) and record["image_1_uid"] == b"uid-1-1"
    assert record["caption"].decode() == row(1)["caption"]
    assert not any(name.split(".")[0] == "tensorflow" for name in sys.modules)


def test_pairs_of_a_prompt_are_counted_if_the_source_does_not_say(make_source, prepare, data_dir, row):
    """Only accepted pairs count, and a number that a row does have is kept."""
    rows = [row(0, caption=caption, num_example_per_prompt=None) for caption in "abaab"]
    rows[3]["label_0"] = 7.0
    rows[4]["num_example_per_prompt"] = 9
    prepare(make_source(rows), max_bad=0.5)
    assert open_preferences(data_dir, "train").count.tolist() == [2, 2, 2, 9]


def test_load_prompts_reads_the_prompts(make_source, prepare, data_dir, row):
    prepare(make_source([row(i) for i in range(6)]))
    captions = load_prompts(data_dir / "train" / "prompts.json")
    assert captions == [f"a pícture of {i}" for i in range(4)]
    assert tuple(captions) == open_preferences(data_dir, "train").prompts


def test_a_pickled_copy_and_many_threads_read_the_same(make_source, prepare, data_dir, row):
    prepare(make_source([row(i) for i in range(20)]), shard=3)
    preferences = open_preferences(data_dir, "train")
    preferences.images(0)  # its files are open now and must not be pickled
    copy = pickle.loads(pickle.dumps(preferences))
    assert copy.digest == preferences.digest
    with ThreadPoolExecutor(8) as pool:
        many = list(pool.map(copy.images, list(range(20)) * 5))
    assert many == [(row(i)["jpg_0"], row(i)["jpg_1"]) for i in range(20)] * 5


def test_grain_loads_it(make_source, prepare, data_dir, row):
    prepare(make_source([row(i) for i in range(4)]))
    preferences = open_preferences(data_dir, "train")
    assert isinstance(preferences, ImagePairs)
    options = {"side": 8, "batch_size": 2, "shuffle": False, "threads": 2}
    second = next(itertools.islice(batches(preferences, np.arange(4, dtype=np.int32), **options), 1, None))
    assert second.rows.tolist() == [2, 3]
    # JPEG keeps a plain reddish grey to within a few of its 8-bit steps.
    assert abs(int(second.images[1, 0, 4, 4, 0]) - 3) < 5 and abs(int(second.images[1, 1, 4, 4, 0]) - 252) < 5


def test_the_digest_depends_on_the_content_alone(make_source, prepare, tmp_path, row):
    digests = []
    changes = [{}, {}, {"jpg_1": row(9)["jpg_0"]}, {"caption": "b"}, {"label_0": 0.0, "label_1": 1.0}]
    for number, change in enumerate([*changes, {"has_label": False}, {"num_example_per_prompt": 1}]):
        source = make_source([row(0) | change, row(1)])
        with preparing(tmp_path / str(number)):
            # The number of rows per file does not matter.
            prepare_split(source, "train", tmp_path / str(number), shard=1 + number % 2)
        digests.append(open_preferences(tmp_path / str(number), "train").digest)
    assert digests[0] == digests[1] and len(set(digests)) == 6


def test_opening_a_missing_folder_split_or_row_is_an_error(make_source, prepare, data_dir, row):
    with pytest.raises(
        UserError, match=f"no folder {data_dir} with prepared preference pairs; `python -m spo_jax.prepa"
    ):
        open_preferences(data_dir, "train")
    prepare(make_source([row(0)]))
    with pytest.raises(
        UserError, match=r"no prepared split test_unique \(available: train\); `python -m spo_jax.prepare` creates"
    ):
        open_preferences(data_dir, "test_unique")
    expected = (
        r"config field eval_split = 'val': .*no prepared split val \(available: train\); choose one with "
        "--config.eval_split=train, or `python -m spo_jax.prepare` creates it"
    )
    with pytest.raises(UserError, match=expected):
        open_preferences(data_dir, "val", "eval_split")
    with pytest.raises(IndexError):
        open_preferences(data_dir, "train").images(-1)


def test_a_folder_that_prepare_did_not_finish_is_an_error(data_dir):
    (data_dir / "train").mkdir(parents=True)
    with pytest.raises(
        UserError, match=f"{data_dir}/train: it has no prepared.json, so `python -m spo_jax.prepare` did not"
    ):
        open_preferences(data_dir, "train")


@pytest.mark.parametrize("name", ["index.npz", "prompts.json", "preference_pairs-train.array_record-00000-of-00001"])
def test_truncated_and_missing_files_are_errors(make_source, prepare, data_dir, row, name):
    prepare(make_source([row(0)]))
    path = data_dir / "train" / name
    size = path.stat().st_size
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(UserError, match=f"{path} has {size - 10} bytes, expected {size}: the split was damaged after"):
        open_preferences(data_dir, "train")
    path.unlink()
    with pytest.raises(UserError, match=f"missing file: {path}: the split was damaged after it was prepared; delete"):
        open_preferences(data_dir, "train")


def test_a_record_damaged_later_is_an_error(make_source, prepare, data_dir, row):
    """The size of the file is right, but the checksums of array_record fail."""
    prepare(make_source([row(0), row(1)]), shard=1)
    path = data_dir / "train" / "preference_pairs-train.array_record-00001-of-00002"
    content = bytearray(path.read_bytes())
    content[: len(content) // 2] = b"\x55" * (len(content) // 2)
    path.write_bytes(content)
    preferences = open_preferences(data_dir, "train")
    assert preferences.images(0)[0] == row(0)["jpg_0"]
    with pytest.raises(
        UserError, match=f"{data_dir}/train: pair 1 cannot be read .*the split was damaged after it was prepared"
    ):
        preferences.images(1)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (RECORD, {"format": FORMAT}, "has no list of files and digest"),
        (RECORD, {"format": FORMAT, "files": [1], "digest": "a"}, "has no list of files and digest"),
        (PROMPTS, {"a": 1}, "is not a list of captions"),
        (PROMPTS, [1], "is not a list of captions"),
    ],
)
def test_a_damaged_record_is_refused(data_dir, make_source, row, prepare, name, content, message):
    prepare(make_source([row(0)]))
    file = data_dir / "train" / name
    if name == RECORD:
        write_json(file, content)
    else:
        record = read_json(data_dir / "train" / RECORD)
        write_json(file, content)
        write_json(data_dir / "train" / RECORD, record | {"files": {}})
    with pytest.raises(UserError, match=f"{name} {message}: the split was damaged"):
        open_preferences(data_dir, "train")
