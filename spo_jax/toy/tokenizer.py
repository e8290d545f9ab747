"""The tokenizer of the toy pipeline: CLIP's own format, in which every word of the toy world is one token."""

import os
import re
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from spo_jax.core.byte_characters import byte_characters
from spo_jax.core.files import write_json, write_text
from spo_jax.toy import world

MAX_LENGTH = 16  # tokens of a prompt, including the start and end tokens
START = "<|startoftext|>"
END = "<|endoftext|>"
_WORD_END = "</w>"
# CLIP's own pattern: contractions, runs of letters, single digits, and runs of anything else except white space.
_SPLIT = r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"


def learn_merges(words: list[str]) -> list[tuple[str, str]]:
    """Learns the byte-pair merges, in order, after which every word is one token.

    As in training a tokenizer, the most frequent pair is merged first; the alphabet breaks ties. Merging each word
    from its left end instead would let the merges of one word break another apart (the "re" of "red" splits "green").
    """
    spellings = [[*word[:-1], word[-1] + _WORD_END] for word in sorted(set(words))]
    merges = []
    while any(len(spelling) > 1 for spelling in spellings):
        pairs = Counter(pair for spelling in spellings for pair in zip(spelling, spelling[1:], strict=False))
        best = min(pairs, key=lambda pair: (-pairs[pair], pair))
        merges.append(best)
        spellings = [_apply(best, spelling) for spelling in spellings]
    return merges


def _apply(pair: tuple[str, str], spelling: list[str]) -> list[str]:
    """Merges every occurrence of ``pair`` in a word's spelling."""
    merged: list[str] = []
    for piece in spelling:
        # A piece that was just merged cannot be the left half again: it is longer than the pair's left half.
        if merged and (merged[-1], piece) == pair:
            merged[-1] += piece
        else:
            merged.append(piece)
    return merged


def vocabulary() -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Builds the vocabulary of the toy world in CLIP's layout.

    Returns:
      (token -> id, merges). The tokens are the bytes, the bytes that end a word, the merges, and last the start and
      end tokens.
    """
    characters = list(byte_characters())
    merges = learn_merges([word for prompt in world.PROMPTS for word in prompt.split()])
    tokens = characters + [character + _WORD_END for character in characters]
    tokens += ["".join(pair) for pair in merges]
    tokens += [START, END]
    return {token: index for index, token in enumerate(tokens)}, merges


def unknown_words(prompt: str) -> list[str]:
    """Returns the words of a prompt that are in no prompt of the toy world, so that no network has learned them."""
    known = {word for known_prompt in world.PROMPTS for word in known_prompt.split()}
    return [word for word in dict.fromkeys(re.findall(r"[^\W_]+", prompt.lower())) if word not in known]


def hint_at_vocabulary(prompts: Iterable[str]) -> str:
    """Names the words of prompts that the toy cannot draw, in a sentence; empty if it knows all of them."""
    words = list(dict.fromkeys(word for prompt in dict.fromkeys(prompts) for word in unknown_words(prompt)))
    if not words:
        return ""
    unknown = ", ".join(words[:10]) + (f" and {len(words) - 10} more" if len(words) > 10 else "")
    return (
        f"the toy knows shapes and colours only, as in 'a red star' or 'an orange heart'; it does not know: {unknown}"
    )


def _fast_form(vocab: dict[str, int], merges: list[tuple[str, str]]) -> dict[str, Any]:
    """Builds the content of tokenizer.json: the same tokenizer for the `tokenizers` library."""
    # Parts that appear inside the components below.
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    bytes_only = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    split = {"type": "Split", "pattern": {"Regex": _SPLIT}, "behavior": "Removed", "invert": True}
    spaces = {"type": "Replace", "pattern": {"Regex": r"\s+"}, "content": " "}

    # The file itself.
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": vocab[token], "content": token} | flags for token in (START, END)],
        "normalizer": {"type": "Sequence", "normalizers": [{"type": "NFC"}, spaces, {"type": "Lowercase"}]},
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [split, bytes_only]},
        "post_processor": {
            "type": "RobertaProcessing",
            "sep": [END, vocab[END]],
            "cls": [START, vocab[START]],
            "trim_offsets": False,
            "add_prefix_space": False,
        },
        "decoder": bytes_only | {"add_prefix_space": True},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": END,
            "continuing_subword_prefix": "",
            "end_of_word_suffix": _WORD_END,
            "fuse_unk": False,
            "vocab": vocab,
            # "a b" rather than ["a", "b"], because both old and new versions of the library read it.
            "merges": [" ".join(pair) for pair in merges],
        },
    }


def write_tokenizer(folder: str | os.PathLike) -> None:
    """Writes a CLIP tokenizer folder that diffusers and transformers can load; the bytes are always the same.

    Both the old (slow) and the new tokenizer classes can read it.

    Raises:
      UserError: a file cannot be written.
    """
    folder = Path(folder)
    vocab, merges = vocabulary()
    special = {"bos_token": START, "eos_token": END, "pad_token": END, "unk_token": END}
    settings = {"add_prefix_space": False, "do_lower_case": True, "errors": "replace"}
    settings |= special
    settings |= {"model_max_length": MAX_LENGTH, "tokenizer_class": "CLIPTokenizer"}

    write_json(folder / "vocab.json", vocab)
    write_text(folder / "merges.txt", "\n".join(["#version: 0.2", *map(" ".join, merges)]) + "\n")
    write_json(folder / "special_tokens_map.json", special)
    write_json(folder / "tokenizer_config.json", settings)
    write_json(folder / "tokenizer.json", _fast_form(vocab, merges))
