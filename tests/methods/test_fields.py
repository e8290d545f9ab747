"""Where the settings of methods are declared: each field once, with a meaning, where its name says."""

import dataclasses
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
from ml_collections import ConfigDict

from spo_jax.core.config import describe, from_config, to_config
from spo_jax.core.errors import UserError
from spo_jax.core.lookup import module_names
from spo_jax.methods import load_method

METHODS = module_names("spo_jax.methods")
SHARED = {
    "spo_jax.methods.common.preference.settings",
    "spo_jax.methods.common.settings",
    "spo_jax.methods.common.trajectory_settings",
    "spo_jax.parallel.settings",
    "spo_jax.run.settings",
}


def _declared(kind: type) -> list[tuple[type, str]]:
    """(class, field) for everything that the settings class and its bases declare, groups excepted."""
    names = {field.name for field in dataclasses.fields(kind)}
    bases = [base for base in kind.__mro__ if dataclasses.is_dataclass(base)]
    own = [(base, name, kind) for base in bases for name, kind in base.__dict__.get("__annotations__", {}).items()]
    return [(base, name) for base, name, kind in own if name in names and not dataclasses.is_dataclass(kind)]


def _declared_everywhere(kind: type) -> list[tuple[type, str]]:
    """The same, with what its groups declare."""
    groups = [field.type for field in dataclasses.fields(kind) if dataclasses.is_dataclass(field.type)]
    return [*_declared(kind), *(pair for group in groups for pair in _declared_everywhere(group))]


@pytest.mark.parametrize("method", METHODS)
def test_fields_are_declared_in_the_methods_settings_or_in_a_shared_group(method):
    modules = {base.__module__ for base, _ in _declared_everywhere(load_method(method).Settings)}
    assert modules <= SHARED | {f"spo_jax.methods.{method}.settings"}


@pytest.mark.parametrize("method", METHODS)
def test_a_field_is_declared_once(method):
    """Only the method's own name, and another default of a whole group, may be written again."""
    declared = Counter(name for _, name in _declared(load_method(method).Settings))
    assert [name for name, count in declared.items() if count > 1] in ([], ["method"])


@pytest.mark.parametrize("method", METHODS)
def test_every_field_says_what_it_means(method):
    rows = list(describe(load_method(method).Settings()))
    assert all(meaning.endswith((".", ")")) and len(meaning) > 10 for *_, meaning in rows)
    paths = [path for path, *_ in rows]
    assert len(paths) == len(set(paths)) and "seed" in paths


def _numbers(settings: Any, prefix: str = "") -> Iterator[tuple[str, dataclasses.Field]]:
    for field in dataclasses.fields(settings):
        value = getattr(settings, field.name)
        if dataclasses.is_dataclass(value):
            yield from _numbers(value, f"{prefix}{field.name}.")
        elif type(value) is int:
            yield prefix + field.name, field


@pytest.mark.parametrize("method", METHODS)
def test_every_whole_number_has_an_upper_limit(method):
    """A slip of the finger, such as a rank of 10**9, is refused before anything is read or allocated."""
    config = to_config(load_method(method).Settings())
    for path, field in _numbers(load_method(method).Settings()):
        assert "at_most" in field.metadata["bounds"], path
        given = ConfigDict(config.to_dict())
        group, _, name = path.rpartition(".")
        (given[group] if group else given)[name] = 10**10
        with pytest.raises(UserError, match=f"field.* {path} = 10000000000"):
            from_config(load_method(method).Settings, given)
