"""Configs become dataclasses, and what does not fit is named."""

import dataclasses

import pytest
from ml_collections import ConfigDict

from spo_jax.core.config import from_config, to_config
from spo_jax.core.errors import UserError


@dataclasses.dataclass(frozen=True)
class Inner:
    rate: float = 0.5
    sizes: tuple[int, ...] = (1, 2)


@dataclasses.dataclass(frozen=True)
class Outer:
    count: int
    name: str = "a"
    fast: bool = False
    limit: int | None = None
    inner: Inner = Inner()


def test_there_and_back():
    settings = Outer(3, "b", True, 7, Inner(0.25, (4,)))
    config = to_config(settings)
    assert isinstance(config, ConfigDict) and not config.is_locked
    assert from_config(Outer, config) == settings
    assert from_config(Outer, config.to_dict()) == settings
    assert from_config(Outer, {"count": 3}) == Outer(3)


def test_an_integer_is_a_float_and_a_list_a_tuple():
    assert from_config(Inner, {"rate": 2, "sizes": [3]}) == Inner(2.0, (3,))
    assert isinstance(from_config(Inner, {"rate": 2}).rate, float)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"coutn": 1}, r"unknown config field config\.coutn: did you mean 'count'"),
        ({"inner": {"rats": 1.0}}, r"unknown config field config\.inner\.rats: did you mean 'rate'"),
        ({"qqqqqq": 1}, r"unknown config field config\.qqqqqq$"),
        ({"count": "1"}, r"config\.count = '1': expected int"),
        ({"count": 1.5}, r"config\.count = 1.5: expected int"),
        ({"count": True}, r"config\.count = True: expected int"),
        ({"fast": 1}, r"config\.fast = 1: expected bool"),
        ({"name": None}, r"config\.name = None: expected str"),
        ({"inner": {"rate": "fast"}}, r"config\.inner\.rate = 'fast': expected float"),
        ({"inner": {"rate": False}}, r"config\.inner\.rate = False: expected float"),
        ({"inner": {"sizes": 3}}, r"config\.inner\.sizes = 3: expected a tuple"),
        ({"inner": 3}, r"config\.inner = 3: expected a group of fields"),
    ],
)
def test_what_does_not_fit_is_named(change, message):
    with pytest.raises(UserError, match=message):
        from_config(Outer, {"count": 1} | change)


def test_missing_fields_and_no_config_at_all():
    with pytest.raises(UserError, match=r"config field config\.count is missing"):
        from_config(Outer, {})
    with pytest.raises(UserError, match="expected a group of fields"):
        from_config(Outer, None)
