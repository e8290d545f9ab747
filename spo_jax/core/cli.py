"""Runs the commands: parses flags and configs, and reports a user's mistake in one line, without a traceback."""

import contextlib
import difflib
import errno
import functools
import importlib.util
import itertools
import logging as stdlib_logging
import os
import re
import shlex
import sys
import traceback
import types
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn

from absl import app, flags, logging
from ml_collections import ConfigDict, config_flags

from spo_jax.core import renamed
from spo_jax.core.errors import Interrupted, Preempted, UserError
from spo_jax.core.memory import ELSEWHERE, is_out_of_memory, out_of_memory
from spo_jax.core.progress import LogHandler
from spo_jax.core.signals import INTERRUPTED, Interruption

# Of XLA only errors are shown, because its warnings begin with lines about its own logging. Those of the libraries of
# tokenizers and of the hub advise about accounts and about packages that are not needed.
_QUIET = {
    "TF_CPP_MIN_LOG_LEVEL": "2",
    "TRANSFORMERS_VERBOSITY": "error",
    "TRANSFORMERS_NO_ADVISORY_WARNINGS": "1",
    "HF_HUB_VERBOSITY": "error",
}

flags.disclaim_key_flags()  # so that --help of a command lists the flags defined here as its own


def run_command(main: Callable[[Sequence[str]], None], argv: Sequence[str] | None = None) -> None:
    """Parses absl flags and runs ``main``; never returns.

    The exit status is 0 if the command finished, 1 if the program has a fault (with a traceback), 2 if the user made a
    mistake (with one line on stderr), 75 if the run was preempted and saved (EX_TEMPFAIL: start it again), and 130 if
    it was interrupted. After Ctrl-C a command ends within seconds, also if it is inside compiled code.

    Args:
      main: the command; it may raise `UserError`, `Preempted` and `Interrupted`.
      argv: the command line, with the program's name first; None takes ``sys.argv``.
    """

    def guarded(argv: Sequence[str]) -> None:
        if len(argv) > 1:
            raise UserError(f"unexpected argument {argv[1]!r}: flags have the form --name=value")
        _log_quietly()
        main(argv)

    def reporting(argv: Sequence[str]) -> None:
        interruption = Interruption()
        try:
            with interruption, _naming_long_names():
                guarded(argv)
        except UserError as error:
            stop(str(error))
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            stop(out_of_memory(error, ELSEWHERE))
        except Preempted as preempted:
            print(f"{preempted}; to resume: {resuming_command()}", file=sys.stderr)
            sys.exit(75)
        except Interrupted as interrupted:
            interruption.report(f"{interrupted}; to resume: {resuming_command()}")
            sys.exit(INTERRUPTED)
        except KeyboardInterrupt:
            interruption.report()
            sys.exit(INTERRUPTED)

    app.run(reporting, argv=argv, flags_parser=functools.partial(_parse_flags, command=main.__module__))


@contextlib.contextmanager
def _naming_long_names() -> Iterator[None]:
    """Refuses a name that is too long for the file system, which only a flag or a field can have brought."""
    try:
        yield
    except OSError as error:
        if error.errno != errno.ENAMETOOLONG:
            raise
        name = os.fspath(error.filename or "")
        raise UserError(f"{name[:60]}…: the file system allows no names of {len(name)} characters") from error


def _log_quietly() -> None:
    """Shows what this package logs, and only warnings of libraries, in lines that do not cut progress bars."""
    for name, value in _QUIET.items():
        os.environ.setdefault(name, value)
    stdlib_logging.root.handlers = [LogHandler()]
    stdlib_logging.root.setLevel(stdlib_logging.WARNING)
    stdlib_logging.getLogger("matplotlib").setLevel(stdlib_logging.ERROR)  # it says that it builds a list of fonts
    logging.get_absl_logger().setLevel(stdlib_logging.INFO)
    logging.get_absl_logger().addFilter(_is_ours_or_warns)


def _is_ours_or_warns(record: stdlib_logging.LogRecord) -> bool:
    """Selects log records; other libraries use absl's logger, too."""
    package = Path(__file__).parents[1]
    return record.levelno >= stdlib_logging.WARNING or Path(record.pathname).is_relative_to(package)


def resuming_command() -> str:
    """Returns the command line that continues this one: itself, with ``--resume``."""
    python = Path(sys.executable).name
    spec = sys.modules["__main__"].__spec__
    if spec is not None:
        program = [python, "-m", spec.name]
    else:
        program = [python, sys.argv[0]] if sys.argv[0].endswith(".py") else [sys.argv[0]]
    resumes = any(re.fullmatch(r"--?(auto-)?resume(=true)?", argument, re.IGNORECASE) for argument in sys.argv[1:])
    return shlex.join([*program, *sys.argv[1:], *([] if resumes else ["--resume"])])


def stop(message: str) -> NoReturn:
    """Ends the command with one line on stderr and status 2."""
    print(f"error: {' '.join(message.split())}", file=sys.stderr)
    sys.exit(2)


def stop_renamed(command: str) -> NoReturn:
    """Ends a command that was renamed, with one line that gives the new name."""
    stop(f"python -m spo_jax.{command} is now python -m spo_jax.{renamed.COMMANDS[command]}")


@contextlib.contextmanager
def printing() -> Iterator[None]:
    """Lets the reader of what is printed, such as ``head``, end before everything has been read."""
    try:
        yield
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # so that Python does not complain at exit


def callable_module(name: str, function: Callable[..., Any]) -> None:
    """Makes the module ``name`` callable as ``function``.

    With this, ``spo_jax.train(settings, out)`` works in a notebook, although ``spo_jax.train`` is also the module that
    ``python -m spo_jax.train`` runs.

    Args:
      name: the module's ``__name__``.
      function: the function to call.
    """

    class CallableModule(types.ModuleType):
        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            return function(*args, **kwargs)

    sys.modules[name].__class__ = CallableModule


# The flag --config


def define_config(default: str | None = None, example: str = "configs/toy.py") -> flags.FlagHolder:
    """Defines the flag ``--config=FILE.py`` or ``--config=NAME``; ``--config.FIELD=VALUE`` overrides its fields.

    A file that is missing or fails raises a `UserError` while the flags are parsed.

    Args:
      default: config to use if the flag is not given; None makes the flag required.
      example: a config for the message that a required flag is missing.

    Returns:
      The flag; its value is what the file's ``get_config()`` returns.
    """
    holder = config_flags.DEFINE_config_file(
        "config", default, "Read the settings from this file, or from the shipped config of this name, such as sd15."
    )
    flag = flags.FLAGS["config"]
    flag.parser = _ConfigFileParser(flag.parser, example)
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
    known = sorted({file.stem for folder in folders for file in folder.glob("[!_]*.py")})
    what = "a folder" if Path(path).is_dir() else "no such file"
    raise UserError(f"--config={path}: {what}; expected a file, or a name: {', '.join(known)}")


def _config_folders() -> list[Path]:
    package = Path(importlib.util.find_spec("spo_jax").origin).parent
    return [folder for folder in (package / "configs", package.parent / "configs") if folder.is_dir()]


class _ConfigFileParser(flags.ArgumentParser):
    """Wraps ml_collections' own parser.

    That one reports a missing file only when a field is read, and a faulty file with a traceback.
    """

    def __init__(self, inner: flags.ArgumentParser, example: str):
        self._inner = inner
        self.example = example
        self.fields: list[str] = []

    def parse(self, path: str) -> Any:
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


# Parsing


def _parse_flags(argv: Sequence[str], command: str) -> list[str]:
    """Parses flags with absl, but reports mistakes in one line, and prints help for this command's flags alone.

    Args:
      argv: the command line.
      command: name of the module that holds the command.
    """
    if {"--help", "-help", "-h"} & set(argv[1:]):
        _print_help(command)
        sys.exit(0)
    try:
        with _naming_long_names():
            _refuse_renamed(argv)
            return flags.FLAGS(argv)
    except UserError as error:
        stop(str(error))
    except flags.Error as error:
        stop(f"{_missing(str(error)) or _without_config(str(error)) or error} (--help lists the flags)")
    except (AttributeError, KeyError) as error:
        stop(_no_such_field(error, argv))


def _print_help(command: str) -> None:
    """Prints what a command does, and its flags.

    What pip installs as a command is a script without a docstring, which imports the command's module.
    """
    main = sys.modules["__main__"]
    is_script = main.__doc__ is None
    doc = (sys.modules[command] if is_script else main).__doc__
    home = sys.argv[0] if command == "__main__" or not is_script else command  # absl calls __main__ by its path
    with printing():
        print(doc or "", *(flags.FLAGS.module_help(name) for name in (home, __name__)), sep="\n")


def _missing(message: str) -> str:
    """Says what a required flag is for, in place of absl's message that it is not None; empty for other messages."""
    match = re.search(r"Flag --(\S+) must have a value other than None", message)
    if not match:
        return ""
    name = match[1]
    parser = flags.FLAGS[name].parser
    if isinstance(parser, _ConfigFileParser):
        return f"--{name} is missing, for example --{name}={parser.example}"
    return f"--{name} is missing: {flags.FLAGS[name].help}"


def _without_config(message: str) -> str:
    """Says that ``--config.FIELD`` needs ``--config``, and ``--GROUP.FIELD`` the prefix; empty for other messages."""
    match = re.search(r"Unknown command line flag '(config\.)?([\w.]+)'", message)
    if not match or "config" not in flags.FLAGS or not (match[1] or "." in match[2]):
        return ""
    parser = flags.FLAGS["config"].parser
    if match[1]:
        return f"--config.{match[2]} needs a config, for example --config={parser.example} --config.{match[2]}=VALUE"
    return f"unknown flag --{match[2]}: did you mean --config.{match[2]}?" if match[2] in parser.fields else ""


def _refuse_renamed(argv: Sequence[str]) -> None:
    """Refuses values that were renamed, such as ``--model=embedded``, unless a file has that name."""
    for argument, following in itertools.pairwise([*argv[1:], ""]):
        flag, given, value = argument.partition("=")
        if not given and not following.startswith("-"):  # --model embedded
            value = following
        field = flag.lstrip("-").removeprefix("config.")
        new = renamed.renamed_value(field, value)
        if new is not None:
            flag = flag.replace(field, renamed.FIELDS.get(field, field))
            stop(f"{argument}: {value!r} is now {new!r}, expected {flag}={new}")


def _no_such_field(error: BaseException, argv: Sequence[str]) -> str:
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
