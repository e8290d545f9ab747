"""Numbers and names in words."""

import pytest

from spo_jax.core.words import counted, duration, listed, readable, size, with_error


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("aesthetic", "aesthetic"),
        ("out_of_range", "out of range"),
        ("accuracy/colour", "accuracy: colour"),
        ("pair accuracy/t0501", "pair accuracy at t = 501"),
        ("t0000", "t = 0"),
        ("t0x", "t0x"),
        ("", ""),
    ],
)
def test_names_are_readable(name, text):
    assert readable(name) == text


def test_lists_are_joined_as_in_a_sentence():
    assert [listed(items) for items in ([], ["a"], ["a", "b"], ["a", "b", "c"])] == ["", "a", "a and b", "a, b and c"]


@pytest.mark.parametrize(
    ("value", "error", "digits", "text"),
    [
        (0.11534, 0.00931, 1, "0.115 ± 0.009"),
        (0.11534, 0.00931, 2, "0.1153 ± 0.0093"),
        (0.11534, 0.0096, 1, "0.12 ± 0.01"),  # rounding the error up costs it a place
        (5.3651, 12.34, 2, "5 ± 12"),
        (1234.5, 321.0, 1, "1234 ± 300"),
        (-0.0022, 0.0006, 1, "-0.0022 ± 0.0006"),
        (1.0, 0.0, 2, "1 ± 0"),
        (0.37912, None, 2, "0.3791"),
        (0.37912, float("nan"), 2, "0.3791"),
    ],
)
def test_a_value_is_written_to_the_place_of_its_error(value, error, digits, text):
    assert with_error(value, error, digits) == text


def test_a_sign_is_written_where_it_is_asked_for():
    assert with_error(0.5, 0.1, sign="+") == "+0.50 ± 0.10" and with_error(0.5, None, sign="+") == "+0.5"


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 bytes"),
        (1, "1 byte"),
        (1023, "1023 bytes"),
        (1024, "1 KiB"),
        (10239, "10 KiB"),
        (2**20 - 1, "1.0 MiB"),
        (4.3 * 2**30, "4.3 GiB"),
        (17 * 2**30, "17 GiB"),
        (3 * 2**40, "3 TiB"),
        (2**53, "8 PiB"),
        (2**63, "8192 PiB"),
        (-(2**31), "-2 GiB"),
    ],
)
def test_sizes(count, text):
    assert size(count) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0.0 s"),
        (0.42, "0.4 s"),
        (9.96, "10 s"),
        (59.6, "1 min"),
        (303, "5 min 3 s"),
        (4321, "1 h 12 min"),
        (3599.7, "1 h"),
        (2 * 86400 + 5 * 3600 + 1700, "2 d 5 h"),
        (86399, "1 d"),
    ],
)
def test_durations(seconds, text):
    assert duration(seconds) == text


def test_counted_nouns():
    counts = [counted(1, "batch"), counted(2, "batch"), counted(0, "image"), counted(3, "mesh"), counted(2, "box")]
    assert counts == ["1 batch", "2 batches", "0 images", "3 meshes", "2 boxes"]
