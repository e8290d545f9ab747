"""Token ids of every tokenisation of CLIP, which have to be equal.

``hf_fast_mask`` is not compared, because no network here reads a mask.
"""

import pytest

from spo_jax.data.original_tokenizer import open_tokenizer

PREFIX = "A photo depicts "  # of the original CLIPScore
CASES = [
    ("hf_fast", "clip_tokenizer", "hf_fast"),
    ("open_clip", "clip_tokenizer", "open_clip"),
    ("openai", "clip_tokenizer", "openai"),
    ("openai_hessel_prefix", "clip_tokenizer", "openai"),
    ("hf_slow_ftfy", "clip_tokenizer", "hf_slow_ftfy"),
    ("hf_slow_noftfy", "clip_tokenizer", "hf_slow_noftfy"),
    ("hf_fast_pad_bang", "clip_tokenizer_pad_bang", "hf_fast"),
    ("hf_slow_ftfy_pad_bang", "clip_tokenizer_pad_bang", "hf_slow_ftfy"),
]
FILES = [("tokenizer.json",), ("vocab.json", "merges.txt", "special_tokens_map.json"), ("bpe_simple_vocab.txt.gz",)]


@pytest.fixture(scope="module")
def prompts(reward_inputs):
    return reward_inputs.prompts + reward_inputs.token_only


@pytest.mark.parametrize(("array", "tokenizer", "form"), CASES, ids=[case[0] for case in CASES])
def test_ids_are_those_of_the_original(golden, reward_inputs, prompts, array, tokenizer, form):
    prefix = PREFIX if array.endswith("prefix") else ""
    ids = open_tokenizer(reward_inputs.needs(tokenizer), form)([prefix + prompt for prompt in prompts])
    assert_same(ids, golden.arrays("rewards/clip_tokenizer/golden_tokens.npz")[array], prompts)


@pytest.mark.parametrize("form", ["hf_fast", "open_clip", "openai", "hf_slow_ftfy", "hf_slow_noftfy"])
@pytest.mark.parametrize("files", FILES, ids=lambda files: files[0])
def test_ids_do_not_depend_on_the_file_of_the_vocabulary(golden, reward_inputs, prompts, form, files, tmp_path):
    for name in files:
        (tmp_path / name).write_bytes((reward_inputs.needs("clip_tokenizer") / name).read_bytes())
    ids = open_tokenizer(tmp_path, form)(prompts)
    assert_same(ids, golden.arrays("rewards/clip_tokenizer/golden_tokens.npz")[form], prompts)


def assert_same(ours, theirs, prompts):
    assert ours.shape == theirs.shape
    wrong = [prompt for prompt, a, b in zip(prompts, ours, theirs, strict=True) if (a != b).any()]
    assert not wrong
