"""The tokenisations of other codes, on the vocabulary of the toy, against OpenAI's own algorithm and by their rules."""

import gzip
import html
import json
import shutil

import ftfy
import numpy as np
import pytest
import regex

from spo_jax.core.byte_characters import byte_characters, spell_bytes
from spo_jax.core.errors import UserError
from spo_jax.data.original_tokenizer import FORMS, open_tokenizer
from spo_jax.data.tokenizer import Tokenizer
from spo_jax.toy.tokenizer import vocabulary, write_tokenizer
from tests.support import fuzzing

NAME = "bpe_simple_vocab_16e6.txt.gz"
PROMPTS = [
    "a red star",
    "",
    "  A  Blue\tmoon,\n12 of them!!! ",
    "it’s a ﬁne “star” &amp;amp; <b>moon</b> &lt;",
    "don'T ＡＢＣ cafÃ© 猫と星 \x07 a\u200bb",
    "<|endoftext|> red <end_of_text> star <start_of_text><|startoftext|> !<end_of_text>",
    "green heart " * 60,
]


def original_ids(prompt, start, end, length):
    """OpenAI's SimpleTokenizer, with its own merging of byte pairs, and ``tokenize(truncate=True)``."""
    vocab, merges = vocabulary()
    ranks = {pair: rank for rank, pair in enumerate(merges)}
    special = {start: len(vocab) - 2, end: len(vocab) - 1}
    text = html.unescape(html.unescape(ftfy.fix_text(prompt))).strip()
    text = regex.sub(r"\s+", " ", text).strip().lower()
    pattern = (
        rf"{regex.escape(start)}|{regex.escape(end)}|'s|'t|'re|'ve|'m|'ll|'d|[\p{{L}}]+|[\p{{N}}]|[^\s\p{{L}}\p{{N}}]+"
    )
    ids = [special[start]]
    for word in regex.findall(pattern, text, regex.IGNORECASE):
        if word in special:
            ids.append(special[word])
            continue
        *parts, last = spell_bytes(word)
        parts.append(last + "</w>")
        while known := [pair for pair in zip(parts, parts[1:], strict=False) if pair in ranks]:
            place = [*zip(parts, parts[1:], strict=False)].index(min(known, key=ranks.get))
            parts[place : place + 2] = ["".join(parts[place : place + 2])]
        ids += [vocab[part] for part in parts]
    ids = [*ids, special[end]]
    if len(ids) > length:
        ids = [*ids[: length - 1], special[end]]
    return ids + [0] * (length - len(ids))


@pytest.fixture
def folder(tmp_path):
    write_tokenizer(tmp_path / "tokenizer")
    return tmp_path / "tokenizer"


def write_bpe(folder, lines, ending=""):
    folder.mkdir(exist_ok=True)
    (folder / NAME).write_bytes(gzip.compress(("\n".join(["#version: 0.2", *lines]) + ending).encode()))
    return folder


def merge_lines():
    return [" ".join(pair) for pair in vocabulary()[1]]


@pytest.mark.parametrize(
    ("form", "start", "end"),
    [("open_clip", "<start_of_text>", "<end_of_text>"), ("openai", "<|startoftext|>", "<|endoftext|>")],
)
def test_ids_are_those_of_openai(folder, form, start, end):
    tokenizer = open_tokenizer(folder, form)
    ids = tokenizer(PROMPTS)
    assert ids.dtype == np.int32 and tokenizer.length == 16
    for prompt, ours in zip(PROMPTS, ids, strict=True):
        assert ours.tolist() == original_ids(prompt, start, end, 16), prompt


def test_forms_agree_on_plain_english_but_for_the_padding(folder):
    plain = ["a red star", "a blue moon, and a green heart"]
    fast = open_tokenizer(folder)(plain)
    for form in FORMS:
        ids = open_tokenizer(folder, form)(plain)
        is_slow = form.startswith("hf_slow")
        np.testing.assert_array_equal(ids, fast if is_slow else np.where(ids == 0, 0, fast), form)
        assert (ids[:, -1] == (fast[0, -1] if is_slow else 0)).all()


def words(folder, form, prompt):
    return [word for word, _ in open_tokenizer(folder, form)._encode(prompt)]


def test_forms_clean_a_prompt_in_their_own_ways(folder):
    """Each is a sentence of the table in the module's docstring."""
    assert words(folder, "open_clip", "it’s < &amp;lt; red") == ["it", "'s", "<", "<", "red"]
    assert words(folder, "hf_slow_ftfy", "it’s &gt; red") == ["it", "'s", ">", "red"]
    assert words(folder, "hf_slow_ftfy", "< &gt;") == ["<", "&", "gt", ";"]  # with a "<", ftfy leaves HTML alone
    assert words(folder, "hf_slow_noftfy", "it’s 赤red\x07\u0378") == ["it", "’", "s", "赤", "red"]
    assert words(folder, "openai", "赤red") == ["赤red"]


def test_a_special_token_is_recognised_in_the_spelling_of_its_code(folder):
    end = Tokenizer(folder).vocabulary - 1
    for form, spelling in (
        ("open_clip", "<end_of_text>"),
        ("openai", "<|endoftext|>"),
        ("hf_slow_ftfy", "<|endoftext|>"),
    ):
        ids = open_tokenizer(folder, form)([f"red {spelling} star"])[0].tolist()
        assert ids[2] == end and ids[4] == end
    assert end not in open_tokenizer(folder, "open_clip")(["red <|endoftext|> star"])[0, 1:5]
    # The original codes see words only, so that it is not recognised after other signs; transformers cuts it out.
    assert end not in open_tokenizer(folder, "openai")(["!<|endoftext|> star"])[0, 1:5]
    assert open_tokenizer(folder, "hf_slow_ftfy")(["!<|endoftext|> star"])[0, 2] == end


def test_a_padding_token_is_special_in_the_forms_of_transformers(folder):
    """That of SDXL's second tokenizer is "!", which is id 0 also where a prompt has one."""
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        content = json.loads((folder / name).read_text())
        (folder / name).write_text(json.dumps(content | {"pad_token": "!"}))
    ids = open_tokenizer(folder, "hf_slow_ftfy")(["red!star", "red！"])
    vocab = vocabulary()[0]
    assert ids[0].tolist()[1:4] == [vocab["red</w>"], 0, vocab["star</w>"]] and ids[0, -1] == 0
    assert ids[1, 2] == vocab["!</w>"]  # a wide one becomes "!" later


@pytest.mark.parametrize("ending", ["", "\n"])
def test_openais_file_is_the_same_vocabulary(folder, tmp_path, ending):
    """A new line at its end would be a token for the original readers."""
    write_bpe(tmp_path / "bpe", merge_lines(), ending)
    for form in ("hf_fast", *FORMS):
        packed = open_tokenizer(tmp_path / "bpe", form)
        assert packed.length == 77 and packed.vocabulary == Tokenizer(folder).vocabulary
        np.testing.assert_array_equal(packed(PROMPTS[:4])[:, :10], open_tokenizer(folder, form)(PROMPTS[:4])[:, :10])


def test_merges_beyond_those_of_clip_are_not_read(tmp_path):
    many = [f"{a} {b}" for a in byte_characters() for b in byte_characters()]
    assert Tokenizer(write_bpe(tmp_path / "bpe", many)).vocabulary == 49408


def test_what_is_cut_off_are_the_words_that_do_not_fit(folder):
    tokenizer = open_tokenizer(folder, "open_clip")
    assert tokenizer.cut_off(["red " * 14, "Red " * 14 + " it’s A star", "red " * 13 + "xyz star"]) == [
        "",
        "it 's a star",
        "xyz star",
    ]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda path: path.write_bytes(path.read_bytes()[:100]), "cannot read .* as a gzipped vocabulary: .*fetch it"),
        (lambda path: path.write_bytes(b"a b\n"), "cannot read .* as a gzipped vocabulary: Not a gzipped file"),
        (lambda path: path.write_bytes(gzip.compress(b"#\na b\nab")), "line 3: expected a merge, .*, found 1"),
        (lambda path: path.write_bytes(gzip.compress(b"#\n\xff")), "cannot read .* as a gzipped vocabulary: 'utf-8'"),
        (lambda path: path.write_bytes(gzip.compress(b"#\nred star")), "cannot read the tokenizer: "),
    ],
    ids=["cut off", "not packed", "not merges", "not text", "unknown tokens"],
)
def test_a_damaged_file_is_refused_in_one_line(tmp_path, damage, message):
    folder = write_bpe(tmp_path / "bpe", merge_lines())
    damage(folder / NAME)
    with pytest.raises(UserError, match=f"{folder}.*{message}|{message}") as error:
        open_tokenizer(folder, "openai")
    assert "\n" not in str(error.value) and str(folder) in str(error.value)


def test_vocabularies_of_other_networks_are_refused(folder):
    def change(function):
        content = json.loads((folder / "tokenizer.json").read_text())
        function(content["model"]["vocab"], content)
        (folder / "tokenizer.json").write_text(json.dumps(content))

    original = (folder / "tokenizer.json").read_text()
    change(lambda vocab, content: vocab.update(extra=len(vocab)))
    with pytest.raises(UserError, match="its end token is not the last of the vocabulary"):
        open_tokenizer(folder, "open_clip")
    open_tokenizer(folder, "hf_slow_ftfy")  # transformers adds tokens that it learns
    (folder / "tokenizer.json").write_text(original)
    change(lambda vocab, content: vocab.update({"other": vocab.pop("á")}) if "á" in vocab else vocab.pop("Ā"))
    with pytest.raises(UserError, match="damaged or not CLIP's: 1 of its 512 bytes are no tokens"):
        open_tokenizer(folder, "open_clip")


def test_files_damaged_at_random_are_read_or_refused(tmp_path):
    folder = write_bpe(tmp_path / "bpe", merge_lines())
    packed = (folder / NAME).read_bytes()
    plain = gzip.decompress(packed)

    def read():
        tokenizer = open_tokenizer(folder, "open_clip")
        ids = tokenizer(PROMPTS)
        assert 0 <= ids.min() <= ids.max() < tokenizer.vocabulary

    for case in fuzzing.cases(20):
        whole = case.random() < 0.5
        damaged = fuzzing.damaged(case, packed) if whole else gzip.compress(fuzzing.damaged(case, plain))
        (folder / NAME).write_bytes(damaged)
        fuzzing.read_or_refused(case, read, megabytes=128, seconds=20)


def test_a_folder_may_hold_either_form(folder, tmp_path):
    """transformers' files come first: they say which tokens are special."""
    write_bpe(folder, ["a b"])
    assert Tokenizer(folder).vocabulary == len(vocabulary()[0])
    shutil.rmtree(folder)
    folder.mkdir()
    with pytest.raises(UserError, match="no tokenizer here"):
        Tokenizer(folder)
