"""What a filter leaves of a split: records, counts, kept scores; a killed command continues with these."""

import json

import numpy as np
import pytest

from spo_jax.core.errors import UserError
from spo_jax.data.preferences.filtering.rule import read_rule
from spo_jax.data.preferences.filtering.stream import PairFilter, lines_of
from spo_jax.data.preferences.format import filtered_by, open_preferences
from spo_jax.data.preferences.images import decode_rgb
from spo_jax.data.preferences.sources.prepared import PreparedPairs


class Redness:
    """Scores pairs by the red of their images, and counts them."""

    pairs_at_a_time = 4

    def __init__(self, version="1"):
        self.identity = {"red": {"version": version}}
        self.scored = 0

    def __call__(self, pairs):
        self.scored += len(pairs)
        return np.array([[[decode_rgb(image)[..., 0].mean() for image in pair.images]] for pair in pairs], np.float32)


@pytest.fixture
def scorer():
    return Redness()


def filtered(scorer, decided=("red=0",), ties=("red=200",)):
    return PairFilter(read_rule(decided, ties), lambda: scorer)


def test_pairs_that_fulfil_the_rule_are_written_and_the_others_counted(make_source, prepare, data_dir, row, scorer):
    # The first image of row i has i of red and the second one 255 - i, give or take a shade.
    rows = [row(i) for i in range(12)] + [row(12, jpg_0=None)]
    done = prepare(make_source(rows), max_bad=0.5, keep=filtered(scorer))
    pairs = open_preferences(data_dir, "train")
    assert pairs.labels.tolist() == [[0, 1]] * 4 and done.pairs == 4 and done.rejected == 1
    assert [pairs.images(i)[0] for i in range(4)] == [row(i)["jpg_0"] for i in (1, 4, 7, 10)]
    assert done.filter["decided"] == {"pairs": 8, "kept": 4, "failed": {"red > 0": 4}}
    assert done.filter["ties"] == {"pairs": 4, "kept": 0, "failed": {"|red| < 200": 4}}
    assert lines_of(done.filter) == [
        "4 of 8 decided pairs kept; 4 fail red > 0", "0 of 4 ties kept; 4 fail |red| < 200"
    ]  # fmt: skip
    assert pairs.rule == "better than the loser: red > 0; ties: |red| < 200"
    assert filtered_by(pairs) == {"pairs_filtered_by": pairs.rule}
    info = json.loads((data_dir / "train" / "dataset_info.json").read_text())
    assert info["description"].endswith("(better than the loser: red > 0; ties: |red| < 200).")
    assert prepare(make_source(rows), max_bad=0.5, keep=filtered(scorer)).filter == done.filter  # as it is kept
    with pytest.raises(UserError, match="was prepared with filter = 'better than the loser: red > 0; .*now it is None"):
        prepare(make_source(rows), max_bad=0.5)


def test_kinds_without_conditions_stay(make_source, prepare, data_dir, row, scorer):
    done = prepare(make_source([row(i) for i in range(6)]), keep=filtered(scorer, ties=()))
    assert open_preferences(data_dir, "train").labels.tolist() == [[0, 1], [0.5, 0.5]] * 2
    assert lines_of(done.filter) == ["2 of 4 decided pairs kept; 2 fail red > 0", "2 of 2 ties kept"]


def test_a_rule_that_leaves_nothing_is_an_error_that_keeps_the_scores(make_source, prepare, data_dir, row, scorer):
    source = make_source([row(i) for i in range(6)])
    with pytest.raises(
        UserError, match="split train: the filter leaves no pair: 0 of 4 decided pairs kept; 4 fail red >"
    ):
        prepare(source, keep=filtered(scorer, ["red=300"]))
    assert sorted(path.name for path in data_dir.iterdir()) == [".lock", "scores-train"]
    assert prepare(source, keep=filtered(scorer)).pairs == 2 and scorer.scored == 6  # nothing is scored again


def test_a_killed_command_continues_with_the_scores_that_it_had(make_source, prepare, data_dir, row, scorer):
    source = make_source([row(i) for i in range(11)])
    whole = Redness()
    prepare(source, keep=filtered(whole))
    digest = open_preferences(data_dir, "train").digest
    (data_dir / "train").rename(data_dir.parent / "whole")
    for file in (data_dir / "scores-train").iterdir():
        file.unlink()

    class Killed(Redness):
        def __call__(self, pairs):
            if self.scored == 8:
                raise KeyboardInterrupt
            return super().__call__(pairs)

    with pytest.raises(KeyboardInterrupt):
        prepare(source, keep=filtered(Killed()))
    assert not (data_dir / "train").exists()
    scorer.pairs_at_a_time = 3  # another number of devices
    prepare(source, keep=filtered(scorer))
    assert scorer.scored == 3 and open_preferences(data_dir, "train").digest == digest


def test_scores_of_another_reward_are_not_taken_for_these(make_source, prepare, data_dir, row, scorer):
    source = make_source([row(i) for i in range(6)])
    prepare(source, keep=filtered(scorer))
    (data_dir / "train").rename(data_dir.parent / "whole")
    with pytest.raises(UserError, match="computed from something else: rewards.red.version is 1 there and 2 here"):
        prepare(source, keep=filtered(Redness("2")))


def test_a_score_that_is_not_finite_names_its_row(make_source, prepare, data_dir, row):
    class Broken(Redness):
        def __call__(self, pairs):
            return np.where(np.arange(len(pairs))[:, None, None] == 1, np.nan, super().__call__(pairs)).astype(
                np.float32
            )

    with pytest.raises(UserError, match="row 1: the scores of its images by red are not finite"):
        prepare(make_source([row(i) for i in range(4)]), keep=filtered(Broken()))
    # Nothing was scored, so that another reward may begin.
    assert prepare(make_source([row(i) for i in range(4)]), keep=filtered(Redness("2"))).pairs == 1


def test_a_prepared_split_is_filtered_as_its_source_is(make_source, prepare, data_dir, tmp_path, row, scorer):
    source = make_source([row(i) for i in range(12)])
    prepare(source, keep=filtered(scorer))
    direct = open_preferences(data_dir, "train")
    (data_dir / "train").rename(tmp_path / "direct")
    prepare(source)
    (tmp_path / "all").mkdir()
    (data_dir / "train").rename(tmp_path / "all" / "train")
    (data_dir / "scores-train").rename(tmp_path / "scores")
    prepare(PreparedPairs(tmp_path / "all"), keep=filtered(scorer))
    again = open_preferences(data_dir, "train")
    assert again.digest == direct.digest and again.count.tolist() == direct.count.tolist()
    # Filtered once more, both rules are named.
    (tmp_path / "twice").mkdir()
    (data_dir / "train").rename(tmp_path / "twice" / "train")
    (data_dir / "scores-train").rename(tmp_path / "scores-again")
    twice = PreparedPairs(tmp_path / "twice")
    prepare(twice, keep=filtered(scorer, ["red=245"], ()))
    pairs = open_preferences(data_dir, "train")
    assert pairs.rule == f"{again.rule}; then better than the loser: red > 245" and len(pairs) == 2


def test_a_folder_without_prepared_splits_is_refused(make_source, prepare, tmp_path, row):
    prepare(make_source([row(0)]))
    with pytest.raises(UserError, match=f"--source={tmp_path} holds no prepared splits .{tmp_path}/out has some.: exp"):
        PreparedPairs(tmp_path)
