"""Runs the commands: parses flags and configs, and reports a user's mistake in one line, without a traceback."""

import contextlib
import difflib
import errno
import functools
import inspect
import itertools
import logging as stdlib_logging
import os
import re
import shlex
import sys
import types
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn

from absl import app, flags, logging

from spo_jax.core import config_flag, renamed
from spo_jax.core.beside import leave
from spo_jax.core.compiled_programs import keep_compiled_programs
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


# The command in the first line of a command's docstring, and the colon before it.
_EXAMPLE = re.compile(r":\s+``(python -m [^`]+)``\.?")
_NO_DEFAULT = re.compile(r"\s*\(default: '(None|false|)'\)")


def run_command(
    main: Callable[[Sequence[str]], None], argv: Sequence[str] | None = None, interrupted: str = "interrupted"
) -> None:
    """Parses absl flags and runs ``main``; never returns.

    The exit status is 0 if the command finished, 1 if the program has a fault (with a traceback), 2 if the user made a
    mistake (with one line on stderr), 75 if the run was preempted and saved (EX_TEMPFAIL: start it again), and 130 if
    it was interrupted. After Ctrl-C a command ends within seconds, also if it is inside compiled code.

    What a command of the package compiles is kept for its next start (`keep_compiled_programs`), unless its module
    imports jax at the top, as those of `spo_jax.build_toy` do.

    Args:
      main: the command; it may raise `UserError`, `Preempted` and `Interrupted`.
      argv: the command line, with the program's name first; None takes ``sys.argv``.
      interrupted: what to say after Ctrl-C.
    """

    def guarded(argv: Sequence[str]) -> None:
        if len(argv) > 1:
            raise UserError(f"unexpected argument {argv[1]!r}: flags have the form --name=value")
        _log_quietly()
        if _is_ours(main.__code__.co_filename):  # benchmarks time the compiler
            keep_compiled_programs()
        main(argv)

    def reporting(argv: Sequence[str]) -> None:
        interruption = Interruption(interrupted)
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
        except Interrupted as ended:
            interruption.report(f"{ended}; to resume: {resuming_command()}")
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
    return record.levelno >= stdlib_logging.WARNING or _is_ours(record.pathname)


def _is_ours(file: str) -> bool:
    return Path(file).is_relative_to(Path(__file__).parents[1])


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
    tell_error(message)
    leave(2)


def tell_error(message: str) -> None:
    """Writes an error as one line to stderr, at once and whole, so that lines of several processes do not mix."""
    sys.stderr.write(f"error: {' '.join(message.split())}\n")
    sys.stderr.flush()


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
    ``python -m spo_jax.train`` runs. `inspect.signature` and the help of a notebook show those of the function; the
    module's docstring stays the text of ``--help``.

    Args:
      name: the module's ``__name__``.
      function: the function to call.
    """

    class CallableModule(types.ModuleType):
        __signature__ = inspect.signature(function)

        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            return function(*args, **kwargs)

        def getdoc(self) -> str | None:
            """Returns what IPython shows."""
            return inspect.getdoc(function)

    signature = CallableModule.__signature__
    itself = inspect.Parameter("self", inspect.Parameter.POSITIONAL_ONLY)
    CallableModule.__call__.__signature__ = signature.replace(parameters=[itself, *signature.parameters.values()])
    sys.modules[name].__class__ = CallableModule


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
    except flags.UnrecognizedFlagError as error:
        hint = config_flag.without_config(str(error))
        stop(f"{hint or _unknown(error.flagname, command)} (--help lists the flags)")
    except flags.Error as error:
        stop(f"{_missing(str(error)) or error} (--help lists the flags)")
    except (AttributeError, KeyError) as error:
        stop(config_flag.no_such_field(error, argv))


def _print_help(command: str) -> None:
    """Prints an example of a command, what the command does, and its flags."""
    doc = _docstring(command)
    summary, _, rest = doc.partition("\n")
    example = _EXAMPLE.search(summary)
    if example:
        summary = f"Example: {example[1]}\n\n{summary[: example.start()]}."
    listed = "\n".join(_help_of(name) for name in _homes(command))
    with printing():
        print(f"{summary}\n{rest.rstrip()}".replace("``", ""), "Flags:", listed, sep="\n\n")


def _docstring(command: str) -> str:
    """Returns the docstring of a command's module; what pip installs is a script without one that imports it."""
    return sys.modules["__main__"].__doc__ or sys.modules[command].__doc__ or ""


def _homes(command: str) -> tuple[str, str]:
    """Returns the names under which absl keeps a command's flags: the command's module, and that of ``--config``."""
    is_script = sys.modules["__main__"].__doc__ is None
    home = sys.argv[0] if command == "__main__" or not is_script else command  # absl calls __main__ by its path
    return home, config_flag.__name__


def _help_of(home: str) -> str:
    """Returns absl's help for the flags of a module, without its name and without defaults that mean nothing."""
    lines = flags.FLAGS.module_help(home).strip("\n").split("\n")
    return "\n".join(line for line in lines[1:] if not _NO_DEFAULT.fullmatch(line))


def _unknown(name: str, command: str) -> str:
    """Says that there is no such flag, and which one the user may have meant."""
    known = [flag.name for home in _homes(command) for flag in flags.FLAGS.get_key_flags_for_module(home)]
    if "config" in known:
        known += [f"config.{field}" for field in getattr(flags.FLAGS["config"].parser, "fields", ())]
    near = difflib.get_close_matches(name, known, 1)
    return f"unknown flag --{name}" + (f": did you mean --{near[0]}?" if near else "")


def _missing(message: str) -> str:
    """Says what a required flag is for, in place of absl's message that it is not None; empty for other messages."""
    match = re.search(r"Flag --(\S+) must have a value other than None", message)
    if not match:
        return ""
    name = match[1]
    parser = flags.FLAGS[name].parser
    if isinstance(parser, config_flag.ConfigFileParser):
        return f"--{name} is missing, for example --{name}={parser.example}"
    return f"--{name} is missing: {flags.FLAGS[name].help}"


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
