"""Commands in documents and docstrings, and the flags that their modules define."""

import dataclasses
import functools
import importlib
import re
import shlex
from typing import NamedTuple

from spo_jax.core.lookup import module_names
from tests.support.commands import ROOT

MODULE = r"python -m ((?:spo_jax|benchmarks)\.[\w.]*[a-z])"
LINE = re.compile(rf"^ *(?:\w+=\S+ )*{MODULE}((?: .*)?)$", re.MULTILINE)  # of a code block, or of a docstring
INLINE = re.compile(rf"`{MODULE}((?:\s[^`]*)?)`")
DEFINED = re.compile(r"\.DEFINE_\w+\(\s*\"([\w-]+)\"")
SOURCES = "spo_jax.data.preferences.sources"


class Command(NamedTuple):
    """A command of a document: its module and the words after it."""

    module: str
    words: tuple[str, ...]


def commands_in(text: str) -> list[Command]:
    """Finds the commands of a text; what follows a pipe, a semicolon or a comment is not theirs."""
    text = text.replace("\\\n", "")
    found = [*LINE.findall(text), *INLINE.findall(text)]
    return [Command(module, tuple(shlex.split(re.split(r"\s[|&>#]|;", rest)[0]))) for module, rest in found]


@functools.cache
def defined_flags(module: str) -> set[str]:
    """Reads the flags of a module from its source, or from those of a package."""
    path = ROOT / module.replace(".", "/")
    files = sorted(path.glob("*.py")) if path.is_dir() else [path.with_suffix(".py")]
    if module.startswith("benchmarks."):
        files.append(ROOT / "benchmarks" / "common.py")
    known = {flag for file in files for flag in DEFINED.findall(file.read_text(encoding="utf-8"))}
    if module == "spo_jax.prepare":
        options = [importlib.import_module(f"{SOURCES}.{name}").Options for name in module_names(SOURCES)]
        known |= {field.name.replace("_", "-") for option in options for field in dataclasses.fields(option)}
    return known | {"help"}
