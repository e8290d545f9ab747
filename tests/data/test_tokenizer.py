"""Old and new CLIP tokenizer folders give the token ids of transformers."""

import json
import shutil

import numpy as np
import pytest
from transformers import CLIPTokenizer

from spo_jax.core.errors import UserError
from spo_jax.data.tokenizer import CLIP_LENGTH, Tokenizer
from spo_jax.toy.tokenizer import write_tokenizer
from tests.support import fuzzing

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


def test_what_is_cut_off_begins_with_a_whole_word(folder):
    """Of "zebra" a few letters fit; scripts without spaces are cut anywhere."""
    tokenizer = Tokenizer(folder)
    fits = "red " * 12
    assert tokenizer.cut_off([f"{fits}zebra, 1girl", f"{fits}star star, a star", f"{fits}don't"]) == [
        "zebra, 1girl",
        ", a star",
        "don't",
    ]
    assert tokenizer.cut_off(["星" * 60])[0] in ["星" * length for length in range(1, 60)]


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
    with pytest.raises(UserError, match=f"{folder}: {message}|cannot read {folder}/"):
        Tokenizer(folder)


def change(name, function):
    """Returns a function that changes one JSON file of a folder."""

    def damage(folder):
        content = json.loads((folder / name).read_text())
        function(content)
        (folder / name).write_text(json.dumps(content))

    return damage


def keep_half(vocabulary):
    for token in list(vocabulary)[len(vocabulary) // 2 :]:
        del vocabulary[token]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (
            change("tokenizer_config.json", lambda c: c.update(model_max_length=-1)),
            "model_max_length = -1: expected a w",
        ),
        (change("tokenizer_config.json", lambda c: c.update(model_max_length=2)), "model_max_length = 2: expected a w"),
        (
            change("tokenizer_config.json", lambda c: c.update(model_max_length="9")),
            "model_max_length = '9': expected a",
        ),
        (change("tokenizer.json", lambda c: keep_half(c["model"]["vocab"])), "cannot read the tokenizer|is damaged"),
        (
            change("tokenizer.json", lambda c: c["model"]["vocab"].update(a=-1)),
            "tokenizer.json: model.vocab: expected an",
        ),
        (
            change("tokenizer.json", lambda c: c["model"]["vocab"].update(a="1")),
            "model.vocab: expected an object of who",
        ),
        (change("tokenizer.json", lambda c: c["model"].update(vocab=[1])), "model.vocab: expected an object of whole"),
        (change("tokenizer.json", lambda c: c["model"].update(merges=7)), "cannot read the tokenizer"),
        (change("vocab.json", lambda c: c.update(a=2**40)), "vocab.json: expected an object of whole numbers from 0"),
        (lambda folder: (folder / "vocab.json").write_text("[" * 10**5), "lists and objects deep"),
        (lambda folder: (folder / "merges.txt").write_bytes(b"\xff\xfe"), None),
    ],
)
def test_a_damaged_tokenizer_is_refused_in_one_line(folder, damage, message):
    damage(folder)
    if message is None:  # tokenizer.json is read in place of the older files
        (folder / "tokenizer.json").unlink()
    with pytest.raises(UserError, match=rf"{folder}.*({message or 'cannot read the tokenizer'})") as error:
        Tokenizer(folder)
    assert "\n" not in str(error.value)


def test_a_tokenizer_of_another_text_encoder_is_refused(folder):
    """An id without an embedding would silently have the last one."""
    tokenizer = Tokenizer(folder)
    tokenizer.check_fits(tokenizer.vocabulary, 16, "text_encoder/config.json")
    with pytest.raises(
        UserError, match="this tokenizer has 5.. tokens, but x.json has vocab_size = 100: they belong to"
    ):
        tokenizer.check_fits(100, 16, "x.json")
    with pytest.raises(UserError, match="has 16 tokens per prompt, but x.json has max_position_embeddings = 8"):
        tokenizer.check_fits(10**5, 8, "x.json")


@pytest.mark.parametrize("kept", [("vocab.json", "merges.txt", "tokenizer_config.json"), ("tokenizer.json",)])
def test_tokenizers_damaged_at_random_are_read_or_refused(folder, kept, tmp_path):
    """What is read gives ids of the vocabulary alone."""
    good = {name: (folder / name).read_bytes() for name in kept}
    part = tmp_path / "part"
    part.mkdir()

    def read():
        tokenizer = Tokenizer(part)
        ids = tokenizer(PROMPTS)
        assert ids.shape == (4, tokenizer.length) and 0 <= ids.min() <= ids.max() < tokenizer.vocabulary

    for case in fuzzing.cases(25):
        damaged = case.choice(kept)
        for name, content in good.items():
            (part / name).write_bytes(content)
        if damaged.endswith(".json") and case.random() < 0.8:
            text = fuzzing.damaged_json(case, json.loads(good[damaged]))
            (part / damaged).write_bytes(text.encode("utf-8", "surrogatepass"))
        else:
            (part / damaged).write_bytes(fuzzing.damaged(case, good[damaged]))
        fuzzing.read_or_refused(case, read, megabytes=64, seconds=20)
