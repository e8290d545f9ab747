"""A part of the pairs is held out: whole prompts where they fit, always the same ones, and none in both parts."""

import pytest

from spo_jax.core.errors import UserError
from spo_jax.data.preferences.check import RawPair
from spo_jax.data.preferences.own.held_out import HeldOut


class Captions:
    """A source of pairs that have nothing but captions."""

    def __init__(self, *captions, splits=("mine",)):
        self._captions = captions
        self._splits = splits

    def splits(self):
        return self._splits

    def usual_splits(self):
        return self._splits

    def count(self, split):
        return len(list(self.rows(split)))

    def made_from(self, split):
        return {"source": split}

    def rows(self, split):
        assert split == self._splits[0]
        return (RawPair(f"line {number}", caption=caption) for number, caption in enumerate(self._captions, 1))


def parts(source, share):
    """Returns the captions of both parts."""
    held_out = HeldOut(source, share)
    found = [[row.caption for row in held_out.rows(split)] for split in ("train", "validation")]
    assert [held_out.count(split) for split in held_out.splits()] == [len(part) for part in found]
    return found


def test_whole_prompts_are_held_out():
    """A prompt in both parts could bring the same image into both."""
    captions = [f"prompt {number % 20}" for number in range(100)]
    train, validation = parts(Captions(*captions), 0.2)
    assert len(validation) == 20 and not set(train) & set(validation)
    assert [caption for caption in captions if caption in set(train)] == train  # in their order


def test_the_choice_follows_from_the_prompts_and_hardly_changes_with_more_votes():
    captions = [f"prompt {number}" for number in range(40)]
    _, first = parts(Captions(*captions), 0.25)
    _, again = parts(Captions(*reversed(captions)), 0.25)
    train, _ = parts(Captions(*captions, *(f"prompt {number}" for number in range(40, 44))), 0.25)
    assert len(first) == 10 and set(again) == set(first)
    assert len(set(first) & set(train)) <= 2


@pytest.mark.parametrize("captions", [["a star"] * 40, ["a star"] * 20 + ["a moon"] * 20, ["a"] * 39 + ["b"]])
def test_single_pairs_are_held_out_where_prompts_are_too_few(captions):
    train, validation = parts(Captions(*captions), 0.2)
    assert len(validation) == 8 and len(train) == 32


@pytest.mark.parametrize(("pairs", "share", "held_out"), [(2, 0.01, 1), (2, 0.99, 1), (3, 0.5, 2), (50, 0.99, 49)])
def test_neither_part_is_empty(pairs, share, held_out):
    _, validation = parts(Captions(*map(str, range(pairs))), share)
    assert len(validation) == held_out


def test_broken_rows_belong_to_a_part_too():
    """They are rejected there, with their reasons, like all others."""
    train, validation = parts(Captions(None, None, "\ud800", "a star", "a moon"), 0.4)
    assert len(train) == 3 and len(validation) == 2


def test_rows_that_cannot_be_read_are_not_held_out():
    class Broken(Captions):
        def rows(self, split):
            return (
                RawPair(row.where, caption=row.caption, problem="broken" if row.caption == "x" else "")
                for row in super().rows(split)
            )

    train, validation = parts(Broken("x", "a star", "x", "a moon", "x"), 0.5)
    assert len(train) == 4 and len(validation) == 1 and "x" not in validation
    with pytest.raises(UserError, match="the source has 1 pair"):
        HeldOut(Broken("x", "x", "a moon"), 0.5)


def test_the_share_is_part_of_what_a_split_is_made_from():
    assert HeldOut(Captions("a", "b"), 0.5).made_from("train") == {"source": "mine", "hold_out": 0.5}


def test_several_splits_and_single_pairs_are_refused():
    with pytest.raises(UserError, match="--hold-out=0.2: the source has several splits already .mine, test.: leave"):
        HeldOut(Captions("a", "b", splits=("mine", "test")), 0.2)
    with pytest.raises(UserError, match="--hold-out=0.2: the source has 1 pair: expected at least 2"):
        HeldOut(Captions("a"), 0.2)
