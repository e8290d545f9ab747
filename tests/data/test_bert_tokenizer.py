"""BERT's tokenizer with [DEC] and [ENC], on a vocabulary whose special tokens are not where bert-base-uncased has them.

The golden arrays compare it with the original on prompts of all kinds.
"""

import numpy as np
import pytest

from spo_jax.core.errors import UserError
from spo_jax.data.bert_tokenizer import BertTokenizer

WORDS = ["[PAD]", "a", "red", "[UNK]", "[MASK]", "[SEP]", "star", "[CLS]", "##s", "cafe", ".", "["]


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "vocab.txt").write_text("\n".join(WORDS) + "\n")
    return tmp_path


def test_prompts_are_padded_and_cut_to_one_length(folder):
    tokenizer = BertTokenizer(folder, 6)
    ids, mask = tokenizer(["A red star", "", "a a a a a a a"])
    start, end, pad = map(WORDS.index, ("[CLS]", "[SEP]", "[PAD]"))
    np.testing.assert_array_equal(ids, [[start, 1, 2, 6, end, pad], [start, end, *[pad] * 4], [start, 1, 1, 1, 1, end]])
    np.testing.assert_array_equal(mask.sum(axis=1), [5, 2, 6])
    assert (ids.dtype, mask.dtype, ids.shape) == (np.int32, bool, (3, 6))
    assert tokenizer.vocabulary == len(WORDS) + 2


def test_words_are_cut_and_lose_their_accents(folder):
    (ids,), _ = BertTokenizer(folder, 9)(["Stars café unknown"])
    expected = [WORDS.index(word) for word in ("[CLS]", "star", "##s", "cafe", "[UNK]", "[SEP]", "[PAD]")]
    assert ids.tolist()[:7] == expected


def test_special_tokens_in_a_prompt_are_meant_as_such_in_capitals_only(folder):
    (upper, lower), _ = BertTokenizer(folder, 9)(["[DEC] a [ENC][MASK]", "[dec] a"])
    start, end, mask, pad = map(WORDS.index, ("[CLS]", "[SEP]", "[MASK]", "[PAD]"))
    assert upper.tolist() == [start, len(WORDS), 1, len(WORDS) + 1, mask, end, pad, pad, pad]
    assert len(WORDS) not in lower and lower.tolist()[1] == WORDS.index("[")


@pytest.mark.parametrize("missing", ["[CLS]", "[SEP]", "[UNK]"])
def test_a_vocabulary_of_something_else_is_refused(folder, missing):
    (folder / "vocab.txt").write_text("\n".join(word for word in WORDS if word != missing) + "\n")
    with pytest.raises(UserError, match="not BERT's: it has no .CLS., .SEP. and .UNK.; fetch") as error:
        BertTokenizer(folder, 9)
    assert "\n" not in str(error.value)


def test_files_that_are_missing_or_damaged_are_named(folder):
    with pytest.raises(UserError, match="nothing: no tokenizer here: expected tokenizer.json or vocab.txt"):
        BertTokenizer(folder / "nothing", 9)
    (folder / "tokenizer_config.json").write_text("{")
    with pytest.raises(UserError, match="tokenizer_config.json"):
        BertTokenizer(folder, 9)


def test_a_text_encoder_needs_exactly_these_tokens(folder):
    tokenizer = BertTokenizer(folder, 9)
    tokenizer.check_fits(14, "ImageReward.pt")
    for other in (13, 15):
        with pytest.raises(UserError, match=f"has 14 tokens, .DEC. and .ENC. included, but ImageReward.pt has {other}"):
            tokenizer.check_fits(other, "ImageReward.pt")
