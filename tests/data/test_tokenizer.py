"""Old and new CLIP tokenizer folders give the token ids of transformers."""

import shutil

import numpy as np
import pytest
from transformers import CLIPTokenizer

from spo_jax.core.errors import UserError
from spo_jax.data.tokenizer import CLIP_LENGTH, Tokenizer
from spo_jax.toy.tokenizer import write_tokenizer

PROMPTS = ["a red star", "", "Ünd möre, 12 of them!", "star " * 100]


@pytest.fixture
def folder(tmp_path):
    write_tokenizer(tmp_path / "tokenizer")
    return tmp_path / "tokenizer"


def test_ids_are_those_of_transformers(folder):
    tokenizer = Tokenizer(folder)
    ids = tokenizer(PROMPTS)
    theirs = CLIPTokenizer.from_pretrained(folder)
    expected = theirs(PROMPTS, padding="max_length", truncation=True, max_length=16)["input_ids"]
    assert ids.dtype == np.int32 and ids.shape == (4, tokenizer.length) == (4, 16)
    np.testing.assert_array_equal(ids, expected)
    assert (ids[:, 0] == theirs.bos_token_id).all() and (ids[:, -1] == theirs.eos_token_id).all()


def test_what_is_cut_off_is_the_rest_of_the_prompt(folder):
    """16 tokens are 14 and the marks; the text is the user's own, with its case and spaces."""
    tokenizer = Tokenizer(folder)
    fits = "a  Red star " * 4 + "a red"
    long = fits + "  Star,\na BLUE moon ☾"
    assert tokenizer.cut_off([fits, long, ""]) == ["", "Star,\na BLUE moon ☾", ""]
    np.testing.assert_array_equal(tokenizer([fits]), tokenizer([long]))


@pytest.mark.parametrize("kept", [("vocab.json", "merges.txt", "tokenizer_config.json"), ("tokenizer.json",)])
def test_old_and_new_folders_give_the_same_ids(folder, kept, tmp_path):
    """Without tokenizer_config.json, the length is CLIP's."""
    (tmp_path / "part").mkdir()
    for name in kept:
        shutil.copy(folder / name, tmp_path / "part" / name)
    part = Tokenizer(tmp_path / "part")
    whole = Tokenizer(folder)
    assert part.length == (16 if "tokenizer_config.json" in kept else CLIP_LENGTH)
    np.testing.assert_array_equal(part(PROMPTS[:2])[:, :16], whole(PROMPTS[:2]))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: shutil.rmtree(folder), "no tokenizer here"),
        (lambda folder: [path.unlink() for path in folder.iterdir()], "no tokenizer here: expected tokenizer.json"),
        (lambda folder: [path.write_text("{") for path in folder.iterdir()], "cannot read the tokenizer"),
        (lambda folder: (folder / "tokenizer.json").write_text("{}"), "cannot read the tokenizer"),
        (lambda folder: [(folder / name).unlink() for name in ("tokenizer.json", "merges.txt")], "cannot read"),
    ],
    ids=["no folder", "empty", "all truncated", "empty tokenizer.json", "no merges"],
)
def test_a_folder_without_a_readable_tokenizer_is_an_error(folder, damage, message):
    damage(folder)
    with pytest.raises(UserError, match=f"{folder}: .*{message}|{folder}: {message}"):
        Tokenizer(folder)
