"""The reader of dicts into dataclasses: settings of runs and configs of networks; what does not fit is named."""

import dataclasses
from typing import ClassVar

import pytest
from ml_collections import ConfigDict

from spo_jax.core.config import (
    JSONConfig,
    Settings,
    check_divisors,
    describe,
    freeze,
    from_config,
    seed_setting,
    setting,
    to_config,
    typed,
)
from spo_jax.core.errors import UserError

INFINITY = float("inf")
NAN = float("nan")


@dataclasses.dataclass(frozen=True)
class Inner(Settings):
    GROUP: ClassVar = "inner."

    rate: float = setting(0.5, "Rate of something.", above=0, below=1)
    sizes: tuple[int, ...] = setting((1, 2), "Sizes of something.")
    power: float = setting(2.0, "Power of something.")


@dataclasses.dataclass(frozen=True)
class Outer(Settings):
    count: int = setting(3, "Number of things.", at_least=1)
    name: str = setting("a", "Name of the thing.", choices=("a", "b"))
    fast: bool = setting(False, "Whether it is fast.")
    limit: int | None = setting(None, "Limit of something (none: no limit).")
    seed: int = seed_setting(0, "Seed of something.")
    inner: Inner = Inner()


@dataclasses.dataclass(frozen=True)
class Plain:
    """Dataclasses of other kinds are read too, and may have fields without a default."""

    count: int
    inner: Inner = Inner()


# Reading


def test_there_and_back():
    settings = Outer(4, "b", True, 7, 1, Inner(0.25, (4,)))
    config = to_config(settings)
    assert isinstance(config, ConfigDict) and not config.is_locked
    assert from_config(Outer, config) == settings
    assert from_config(Outer, config.to_dict()) == settings
    assert from_config(Outer, {"count": 4}) == Outer(4)
    assert from_config(Plain, {"count": 4}) == Plain(4)


def test_an_integer_is_a_float_and_a_list_a_tuple():
    found = from_config(Outer, {"inner": {"power": 2, "sizes": [3]}})
    assert found.inner == Inner(power=2.0, sizes=(3,))
    assert isinstance(found.inner.power, float)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"coutn": 1}, "config field coutn is not a field of Outer: did you mean count?"),
        ({"inner": {"rats": 1.0}}, "config field inner.rats is not a field of Inner: did you mean rate?"),
        ({"qqqqqq": 1}, "config field qqqqqq is not a field of Outer"),
        ({"learning_rate": 1.0}, "config field learning_rate is now optimizer.learning_rate"),
        ({"count": "1"}, "config field count = '1': expected int"),
        ({"count": 1.5}, "config field count = 1.5: expected int"),
        ({"count": True}, "config field count = True: expected int"),
        ({"fast": 1}, "config field fast = 1: expected bool"),
        ({"name": None}, "config field name = None: expected str"),
        ({"limit": "no"}, "config field limit = 'no': expected int | None"),
        ({"inner": {"rate": "fast"}}, "config field inner.rate = 'fast': expected float"),
        ({"inner": {"rate": False}}, "config field inner.rate = False: expected float"),
        ({"inner": {"sizes": 3}}, "config field inner.sizes = 3: expected tuple[int, ...]"),
        ({"inner": {"sizes": []}}, "config field inner.sizes = (): expected tuple[int, ...]"),
        ({"inner": 3}, "config field inner = 3: expected a group of fields"),
        ({"count": 0}, "config field count = 0: expected 1 or more"),
        ({"inner": {"rate": 1.0}}, "config field inner.rate = 1.0: expected more than 0 to below 1"),
    ],
)
def test_what_does_not_fit_is_named(change, message):
    with pytest.raises(UserError) as caught:
        from_config(Outer, change)
    assert str(caught.value) == message


def test_missing_fields_and_no_config_at_all():
    with pytest.raises(UserError, match="config field count is missing"):
        from_config(Plain, {})
    with pytest.raises(UserError, match="the config is None: expected a group of fields"):
        from_config(Outer, None)


@pytest.mark.parametrize(
    ("value", "kind", "expected"),
    [
        (1, float, 1.0),
        ([1, [2, 3]], tuple[int, tuple[int, int]], (1, (2, 3))),
        ([1, 2], tuple[int, int] | int, (1, 2)),
        (5, tuple[int, int] | int, 5),
        (None, str | None, None),
    ],
)
def test_values_are_given_the_declared_type(value, kind, expected):
    found = typed(value, kind, "x")
    assert found == expected and type(found) is type(expected)


@pytest.mark.parametrize(("value", "kind"), [([1, 2, 3], tuple[int, int]), ([1, "2"], tuple[int, ...]), (1, str)])
def test_values_of_another_type_are_refused(value, kind):
    with pytest.raises(UserError, match="file.json: size = .*: expected "):
        typed(value, kind, "file.json: size")


def test_freeze_reaches_inner_lists():
    assert freeze([1, [2, [3]], {"a": [4]}]) == (1, (2, (3,)), {"a": [4]})


# Ranges


@dataclasses.dataclass(frozen=True)
class Ranges(Settings):
    GROUP: ClassVar = "group."

    at_least: int = setting(1, "", at_least=1)
    above: int = setting(1, "", above=0)
    between: float = setting(0.5, "", at_least=0, at_most=1)
    below: float = setting(0.5, "", at_least=0, below=1)
    choice: str = setting("a", "", choices=("a", "b"))
    any_float: float = setting(0.0, "")
    seed: int = seed_setting(0, "")


@pytest.mark.parametrize(
    ("field", "value", "expected"),
    [
        ("at_least", 0, "1 or more"),
        ("above", 0, "more than 0"),
        ("between", 1.5, "0 to 1"),
        ("below", 1.0, "0 to below 1"),
        ("below", -0.1, "0 to below 1"),
        ("choice", "c", "'a' or 'b'"),
        ("any_float", INFINITY, "a finite number"),
        ("any_float", NAN, "a finite number"),
        ("between", NAN, "0 to 1"),
        ("seed", -1, "0 to 4294967295"),
        ("seed", 2**32, "0 to 4294967295"),
    ],
)
def test_values_out_of_range_are_refused(field, value, expected):
    with pytest.raises(UserError) as caught:
        Ranges(**{field: value})
    assert str(caught.value) == f"config field group.{field} = {value!r}: expected {expected}"


def test_bounds_are_inclusive_or_not():
    Ranges(at_least=1, above=1, between=0.0, below=0.0, seed=2**32 - 1)
    Ranges(between=1.0)


def test_replacing_a_field_checks_it():
    with pytest.raises(UserError, match="group.at_least = 0"):
        dataclasses.replace(Ranges(), at_least=0)


def test_settings_may_require_more():
    @dataclasses.dataclass(frozen=True)
    class Pair(Settings):
        low: int = setting(0, "")
        high: int = setting(1, "")

        def __post_init__(self):
            super().__post_init__()
            self.require(self.low < self.high, "low", f"less than {self.high}")

    Pair(1, 2)
    with pytest.raises(UserError, match="^config field low = 2: expected less than 2$"):
        Pair(2, 2)


# Listing


def test_every_field_is_described():
    fields = {name: rest for name, *rest in describe(Outer(name="b"))}
    assert list(fields) == [
        "count", "name", "fast", "limit", "seed", "inner.rate", "inner.sizes", "inner.power"
    ]  # fmt: skip
    assert fields["count"] == ["int", "3", "1 or more", "Number of things."]
    assert fields["name"] == ["str", "'b'", "'a' or 'b'", "Name of the thing."]
    assert fields["limit"][:3] == ["int | None", "None", ""]
    assert fields["inner.rate"] == ["float", "0.5", "more than 0 to below 1", "Rate of something."]
    assert fields["inner.sizes"][0] == "tuple[int, ...]"
    assert fields["inner.power"][2] == "a finite number"


# Configs of networks, as diffusers and transformers write them


@dataclasses.dataclass(frozen=True)
class Network(JSONConfig):
    width: int = 8
    size: int | tuple[int, int] = 16
    activation: str = "silu"
    inner: Plain | None = None

    FIXED = {"dropout": (0.0, None), "kinds": (("a", "b"),)}
    IGNORED = frozenset({"library_version"})

    def _check(self, where, raw):
        self._one_of(where, "activation", ("silu", "gelu"))
        check_divisors(where, "width", (self.width,), (32,))


def test_a_network_s_config_is_read():
    raw = {
        "_class_name": "Net",
        "library_version": "1",
        "width": 4,
        "size": [8, 16],
        "dropout": 0.0,
        "kinds": ["a", "b"],
    }
    assert Network.from_dict(raw) == Network(width=4, size=(8, 16))
    assert Network.from_dict({"dropout": None}) == Network()


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        ({"widht": 4}, "net/config.json: widht is not a field of Network: did you mean width?"),
        ({"attention": 4}, "net/config.json: attention is not a field of Network"),
        ({"width": 4.5}, "net/config.json: width = 4.5: expected int"),
        ({"size": "8"}, "net/config.json: size = '8': expected int | tuple[int, int]"),
        ({"dropout": 0.1}, "net/config.json: dropout = 0.1 is not implemented (known: 0.0, None)"),
        ({"kinds": ["a", "c"]}, "net/config.json: kinds = ('a', 'c') is not implemented (known: ('a', 'b'))"),
        ({"activation": "relu"}, "net/config.json: activation = 'relu' is not implemented (known: 'silu', 'gelu')"),
        ({"width": 5}, "net/config.json: width = 5 is not implemented for 32 channels, which it does not divide"),
        ({"width": 0}, "net/config.json: width = 0 is not implemented for 32 channels, which it does not divide"),
    ],
)
def test_a_network_that_is_not_implemented_is_refused(raw, message):
    with pytest.raises(UserError) as caught:
        Network.from_dict(raw, "net/config.json")
    assert str(caught.value) == message
