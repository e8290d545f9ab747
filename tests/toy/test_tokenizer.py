"""The toy tokenizer is a CLIP tokenizer in which every word of the toy world is one token."""

import json

import pytest
from tokenizers import Tokenizer as FastTokenizer
from transformers import CLIPTokenizer

from spo_jax.core.errors import UserError
from spo_jax.toy import world
from spo_jax.toy.tokenizer import END, MAX_LENGTH, START, learn_merges, unknown_words, vocabulary, write_tokenizer


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("tokenizer")
    write_tokenizer(path)
    return path


def _slow_tokens(word, merges):
    """Encodes a word into byte pairs as CLIP's original Python does it, the earliest merge first."""
    ranks = {pair: rank for rank, pair in enumerate(merges)}
    pieces = [*word[:-1], word[-1] + "</w>"]
    while len(pieces) > 1:
        at = min(range(len(pieces) - 1), key=lambda i: ranks.get((pieces[i], pieces[i + 1]), len(ranks)))
        if (pieces[at], pieces[at + 1]) not in ranks:
            break
        pieces[at : at + 2] = [pieces[at] + pieces[at + 1]]
    return pieces


def test_every_word_is_one_token_by_the_slow_rule_and_in_the_vocabulary():
    vocab, merges = vocabulary()
    words = {word for prompt in world.PROMPTS for word in prompt.split()}
    assert {word: _slow_tokens(word, merges) for word in words} == {word: [f"{word}</w>"] for word in words}
    assert {f"{word}</w>" for word in words} <= set(vocab)


def test_the_vocabulary_has_clips_layout():
    vocab, merges = vocabulary()
    assert sorted(vocab.values()) == list(range(512 + len(merges) + 2)), "a repeated token would leave a gap"
    assert vocab["!"] == 0 and vocab["!</w>"] == 256 and vocab["a</w>"] == 320
    assert (vocab[START], vocab[END]) == (len(vocab) - 2, len(vocab) - 1)


def test_words_that_share_letters_do_not_break_each_other():
    words = ["red", "green", "reed", "greed"]
    merges = learn_merges(words)
    assert [_slow_tokens(word, merges) for word in words] == [[f"{word}</w>"] for word in words]


def test_transformers_reads_the_folder(folder):
    tokenizer = CLIPTokenizer.from_pretrained(folder)
    vocab, _ = vocabulary()
    assert tokenizer.model_max_length == MAX_LENGTH == 16
    encoded = tokenizer(list(world.PROMPTS), padding="max_length")["input_ids"]
    for prompt, ids in zip(world.PROMPTS, encoded, strict=True):
        expected = [vocab[START], *(vocab[f"{word}</w>"] for word in prompt.split()), vocab[END]]
        assert ids == expected + [vocab[END]] * (MAX_LENGTH - 5)
        assert tokenizer.decode(ids, skip_special_tokens=True).strip() == prompt


def test_capitals_and_spaces_do_not_matter_and_any_text_can_be_encoded(folder):
    tokenizer = CLIPTokenizer.from_pretrained(folder)
    assert tokenizer("A  RED star")["input_ids"] == tokenizer("a red star")["input_ids"]
    text = "größe 42: 猫!"
    ids = tokenizer(text)["input_ids"]
    assert tokenizer.decode(ids, skip_special_tokens=True).replace(" ", "") == text.replace(" ", "")
    cut = tokenizer("a red star " * 20, truncation=True)["input_ids"]
    assert len(cut) == MAX_LENGTH and cut[-1] == vocabulary()[0][END]


def test_vocab_and_merges_alone_give_the_same_ids(folder, tmp_path):
    """Older versions of transformers read these two files and not tokenizer.json."""
    for name in ("vocab.json", "merges.txt", "tokenizer_config.json", "special_tokens_map.json"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    texts = [*world.PROMPTS, "", "a photo of 2 cats!"]
    old = CLIPTokenizer.from_pretrained(tmp_path)
    new = CLIPTokenizer.from_pretrained(folder)
    assert old(texts)["input_ids"] == new(texts)["input_ids"]
    library = FastTokenizer.from_file(str(folder / "tokenizer.json"))
    assert [library.encode(text).ids for text in texts] == new(texts)["input_ids"]


def test_the_output_is_always_the_same(folder, tmp_path):
    write_tokenizer(tmp_path)
    names = sorted(path.name for path in folder.iterdir())
    assert names == sorted(
        ["merges.txt", "special_tokens_map.json", "tokenizer.json", "tokenizer_config.json", "vocab.json"]
    )
    assert [(tmp_path / name).read_bytes() for name in names] == [(folder / name).read_bytes() for name in names]
    assert json.loads((folder / "tokenizer_config.json").read_text())["tokenizer_class"] == "CLIPTokenizer"


def test_an_unwritable_folder_is_an_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write"):
        write_tokenizer(tmp_path / "file" / "tokenizer")


def test_words_that_no_prompt_of_the_toy_world_has_are_found():
    assert not [word for prompt in world.PROMPTS for word in unknown_words(prompt)]
    assert unknown_words("A Red STAR, a zebra-moon; 2 zebras on Ünd!") == ["zebra", "2", "zebras", "on", "ünd"]
