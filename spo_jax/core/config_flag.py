"""Config files and shipped configs, the flag ``--config``, whose fields are flags too, and what is said of mistakes."""

import difflib
import importlib.util
import os
import re
import runpy
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from absl import flags
from ml_collections import ConfigDict, config_flags

from spo_jax.core import renamed
from spo_jax.core.errors import UserError

flags.disclaim_key_flags()  # so that --help of a command lists the flag defined here as its own


def define_config(default: str | None = None, example: str = "configs/toy.py") -> flags.FlagHolder:
    """Defines the flag ``--config=FILE.py`` or ``--config=NAME``; ``--config.FIELD=VALUE`` overrides its fields.

    A file that is missing or fails raises a `UserError` while the flags are parsed.

    Args:
      default: config to use if the flag is not given; None makes the flag required.
      example: a config for the message that a required flag is missing.

    Returns:
      The flag; its value is what the file's ``get_config()`` returns.
    """
    name = Path(example).stem
    holder = config_flags.DEFINE_config_file(
        "config", default, f"Read the settings from this file, or from the shipped config of this name, such as {name}."
    )
    flag = flags.FLAGS["config"]
    flag.parser = ConfigFileParser(flag.parser, example)
    if default is None:
        flags.mark_flag_as_required("config")
    return holder


def find_config(path: str) -> Path:
    """Finds a config file.

    Args:
      path: a path, or the name of a shipped config such as ``sd15``, which is in the installed package or, in a
        checkout, beside the package. Where there is no folder ``configs``, ``configs/sd15.py`` is such a name as well.

    Raises:
      UserError: there is no such file.
    """
    if Path(path).is_file():
        if Path(path).suffix not in (".py", ""):
            raise UserError(f"--config={path}: expected a Python file with a function get_config()")
        return Path(path)
    name = Path(path).stem
    folders = _config_folders()
    new = renamed.CONFIG_FILES.get(name)
    if new is not None and (path == name or Path(path).parent.name == "configs"):
        shown = Path(path).with_stem(new)
        raise UserError(f"--config={path} is now --config={shown}")
    is_shipped = Path(path).parent == Path("configs") and not Path("configs").is_dir()
    if path == name or is_shipped:
        for folder in folders:
            if (folder / f"{name}.py").is_file():
                return folder / f"{name}.py"
    known = shipped_configs()
    what = "a folder" if Path(path).is_dir() else "no such file"
    raise UserError(f"--config={path}: {what}; expected a file, or a name: {', '.join(known)}")


def shipped_configs() -> list[str]:
    """Lists the names of the configs that the package ships."""
    return sorted({file.stem for folder in _config_folders() for file in folder.glob("[!_]*.py")})


def _config_folders() -> list[Path]:
    package = Path(importlib.util.find_spec("spo_jax").origin).parent
    return [folder for folder in (package / "configs", package.parent / "configs") if folder.is_dir()]


def load_config(path: str | os.PathLike) -> ConfigDict:
    """Reads a config file, as ``--config`` does, for use from Python.

    Args:
      path: a file with a function ``get_config()``, or the name of a shipped config such as ``toy`` or ``sd15``.

    Returns:
      The settings, unlocked so that fields can be changed before `spo_jax.read_settings` reads them.

    Raises:
      UserError: there is no such file, or it fails.
    """
    if not isinstance(path, str | os.PathLike):
        raise UserError(f"the config to load is {path!r}: expected a file, or a name: {', '.join(shipped_configs())}")
    path = os.fspath(path)
    file = str(find_config(path))
    try:
        config = runpy.run_path(file)["get_config"]()
    except (Exception, SystemExit) as error:  # the user's code may raise anything
        raise UserError(f"config {path}: {_explain(error, file)}") from error
    if not isinstance(config, ConfigDict):
        raise UserError(f"config {path}: get_config() returned a {type(config).__name__}, expected a ConfigDict")
    return ConfigDict(config).unlock()


class ConfigFileParser(flags.ArgumentParser):
    """Wraps ml_collections' own parser.

    That one reports a missing file only when a field is read, and a faulty file with a traceback.
    """

    def __init__(self, inner: flags.ArgumentParser, example: str):
        self._inner = inner
        self.example = example
        self.fields: list[str] = []

    def parse(self, path: str) -> Any:
        """Returns what ``get_config`` of the file returned.

        Raises:
          UserError: there is no such config, or its file has a fault.
        """
        given, colon, argument = path.partition(":")
        file = str(find_config(given))
        try:
            config = self._inner.parse(file + colon + argument)
            getattr(config, "keys", None)  # an OSError in the file is not raised until something is read
        except (Exception, SystemExit) as error:  # the user's code may raise anything
            raise UserError(f"--config={path}: {_explain(error, file)}") from error
        if config is None:
            raise UserError(f"--config={path}: get_config() returned nothing")
        self.fields = sorted(_fields(config)) if isinstance(config, ConfigDict) else []
        return config


def _fields(config: ConfigDict, prefix: str = "") -> Iterator[str]:
    """Lists the names of all fields, such as ``spo.beta``."""
    for name, value in config.items():
        if isinstance(value, ConfigDict):
            yield from _fields(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}"


def _chain(error: BaseException) -> list[BaseException]:
    """Lists the error, its cause, and so on inwards."""
    chain = [error]
    while inner := chain[-1].__cause__ or chain[-1].__context__:
        chain.append(inner)
    return chain


def _explain(error: BaseException, file: str) -> str:
    """Describes the innermost error that passed through ``file``, with its line."""
    for link in reversed(_chain(error)):
        lines = [frame.lineno for frame in traceback.extract_tb(link.__traceback__) if frame.filename == file]
        if lines:
            return f"line {lines[-1]}: {type(link).__name__}: {link}"
    innermost = _chain(error)[-1]  # no frame is in the file, as for a SyntaxError
    return f"{type(innermost).__name__}: {innermost}"


# Mistakes in its fields


def without_config(message: str) -> str:
    """Says that ``--config.FIELD`` needs ``--config``, and ``--GROUP.FIELD`` the prefix; empty for other messages."""
    match = re.search(r"Unknown command line flag '(config\.)?([\w.]+)'", message)
    if not match or "config" not in flags.FLAGS or not (match[1] or "." in match[2]):
        return ""
    parser = flags.FLAGS["config"].parser
    if match[1]:
        return f"--config.{match[2]} needs a config, for example --config={parser.example} --config.{match[2]}=VALUE"
    return f"unknown flag --{match[2]}: did you mean --config.{match[2]}?" if match[2] in parser.fields else ""


def no_such_field(error: BaseException, argv: Sequence[str]) -> str:
    """Names the override that failed, and the field that the user may have meant.

    Fields are compared by their whole names first, and then by the last parts of their names.
    """
    known = flags.FLAGS["config"].parser.fields
    given = [flag.removeprefix("--config.").split("=")[0] for flag in argv if flag.startswith("--config.")]
    unknown = next((field for field in given if field not in known), _chain(error)[-1].args[0])
    new = renamed.FIELDS.get(unknown)
    if new in known:
        return f"--config.{unknown} is now --config.{new}"
    by_end = {field.rsplit(".", 1)[-1]: field for field in known}
    near = difflib.get_close_matches(unknown, known, 1, 0.8)
    near = near or [by_end[end] for end in difflib.get_close_matches(unknown.rsplit(".", 1)[-1], by_end, 1)]
    hint = f"did you mean {near[0]}?" if near else "--help-config lists all fields"
    return f"--config has no field {unknown}: {hint}"
