"""Contestants are read from flags and from Python, and names, sources and strengths that cannot be used are refused."""

import pytest

from spo_jax.core.errors import UserError
from spo_jax.work.evaluate.entries import Entry, read_entries, split_strength


def names(entries):
    return [(entry.name, entry.group, entry.strength) for entry in entries]


def test_the_model_is_first_and_every_lora_comes_at_all_strengths():
    entries = read_entries(["spo=runs/spo:0.8", "dpo=a/b"], ["full=c"], {"mj": "d"}, [0.5, 0.8])
    assert names(entries) == [
        ("base", "base", None),
        ("spo@0.5", "spo", 0.5),
        ("spo", "spo", 0.8),  # not spo@0.8
        ("dpo@0.5", "dpo", 0.5),
        ("dpo@0.8", "dpo", 0.8),
        ("dpo", "dpo", 1.0),
        ("full", "full", None),
        ("mj", "mj", None),
    ]
    assert [entry.kind for entry in entries[-2:]] == ["merged", "images"]
    assert entries[1].what == "the LoRA runs/spo at 0.5"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("runs/spo", ("runs/spo", 1.0)),
        ("runs/spo:0.5", ("runs/spo", 0.5)),
        ("runs/spo:-1", ("runs/spo", -1.0)),
        ("owner/name/file.safetensors:1e-1", ("owner/name/file.safetensors", 0.1)),
        (r"C:\loras\spo.safetensors", (r"C:\loras\spo.safetensors", 1.0)),
        (r"C:\loras\spo.safetensors:2", (r"C:\loras\spo.safetensors", 2.0)),
        (":0.5", (":0.5", 1.0)),
    ],
)
def test_a_strength_is_taken_from_the_end(text, expected):
    assert split_strength(text, "--lora=a") == expected


def test_an_existing_file_may_end_like_a_strength(tmp_path):
    (tmp_path / "lora:2").write_bytes(b"")
    assert split_strength(str(tmp_path / "lora:2"), "--lora=a") == (str(tmp_path / "lora:2"), 1.0)
    with pytest.raises(UserError, match=r"^--lora=a=.*lora:2:strong: 'strong' is no strength: expected a number"):
        split_strength(str(tmp_path / "lora:2:strong"), "--lora=a")


@pytest.mark.parametrize(
    ("loras", "merged", "expected"),
    [
        (["spo=a", "spo=b"], [], "two contestants have the name spo: give each a name of its own"),
        (["spo=a"], ["SPO=b"], "two contestants have the name spo"),
        (["Base=a"], [], "two contestants have the name base, which is the model itself"),
        (["a"], [], "--lora=a: expected NAME=SOURCE, such as --lora=spo=runs/spo"),
        (["a="], [], "--lora=a: expected NAME=SOURCE"),
        (["=a"], [], "--lora==a: '' is no name of a contestant"),
        (["../a=b"], [], "'../a' is no name of a contestant"),
        (["a.=b"], [], "'a.' is no name of a contestant"),
        (["a@1=b"], [], "'a@1' is no name of a contestant"),
        (["a" * 65 + "=b"], [], "is no name of a contestant"),
        ("spo=a", [], "--lora=spo=a: expected a list of texts NAME=SOURCE"),
        (["a=b:0"], [], "--lora=a: strength=0: expected a strength other than 0"),
        (["a=b:101"], [], "--lora=a: strength=101: expected a strength other than 0, of at most 100"),
    ],
)
def test_what_is_refused(loras, merged, expected):
    with pytest.raises(UserError) as refused:
        read_entries(loras, merged)
    assert expected in str(refused.value)


def test_strengths_need_a_lora():
    with pytest.raises(UserError, match="--strengths goes with --lora=NAME=SOURCE only"):
        read_entries([], ["a=b"], [], [0.5])


def test_a_contestant_says_what_it_is():
    assert Entry("base", "base").what == "the model itself"
    assert Entry("a", "merged", "b").what == "the model b"
    assert Entry("a", "images", "b").what == "the images in b"
