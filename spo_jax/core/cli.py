"""What every command does with a user's mistake: one line, status 2, no traceback."""

import logging as stdlib_logging
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from absl import app, flags, logging
from ml_collections import config_flags

from spo_jax.core.errors import UserError


def run_command(main: Callable[[Sequence[str]], None], argv: Sequence[str] | None = None) -> None:
    """Parses absl flags and runs ``main``; never returns.

    Exit status: 0 done, 1 a fault of ours (with traceback), 2 a user's mistake (one line on stderr), 130 interrupted.
    """

    def guarded(argv):
        if len(argv) > 1:
            raise UserError(f"unexpected argument {argv[1]!r}: flags have the form --name=value")
        logging.set_verbosity(logging.INFO)
        logging.use_absl_handler()
        # jax tells at INFO which accelerators it did not find.
        stdlib_logging.getLogger("jax").setLevel(stdlib_logging.WARNING)
        main(argv)

    def reporting(argv):
        try:
            guarded(argv)
        except UserError as error:
            _stop(str(error))
        except KeyboardInterrupt:
            print("interrupted", file=sys.stderr)
            sys.exit(130)

    app.run(reporting, argv=argv, flags_parser=_parse_flags)


def define_config() -> flags.FlagHolder:
    """The required flag ``--config=FILE.py``, whose fields ``--config.FIELD=VALUE`` overrides.

    The holder's value is what the file's ``get_config()`` returns. A file that is missing or fails is a `UserError`
    while the flags are parsed.
    """
    holder = config_flags.DEFINE_config_file("config", None, "Config file, e.g. configs/tiny.py.")
    flag = flags.FLAGS["config"]
    flag.parser = _ConfigFileParser(flag.parser)
    flags.mark_flag_as_required("config")
    return holder


class _ConfigFileParser(flags.ArgumentParser):
    """ml_collections' own tells of a missing file only when a field is read, and of a faulty one with a traceback."""

    def __init__(self, inner: flags.ArgumentParser):
        self._inner = inner

    def parse(self, path: str) -> Any:
        file = path.split(":", 1)[0]
        if not Path(file).is_file():
            raise UserError(f"--config={path}: no such file")
        try:
            return self._inner.parse(path)
        except Exception as error:  # whatever the user's code raises
            raise UserError(f"--config={path}: {_told_of(error, file)}") from error


def _told_of(error: BaseException, file: str) -> str:
    """The line of ``file`` that failed, and what was first raised there."""
    while error.__context__ is not None:
        error = error.__context__
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == file]
    return (f"line {lines[-1]}: " if lines else "") + f"{type(error).__name__}: {_message(error)}"


def _message(error: BaseException) -> str:
    # str of a KeyError is the repr of its message.
    return str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)


def _parse_flags(argv: Sequence[str]) -> list[str]:
    """absl's parser, but that its complaints look like all others."""
    try:
        return flags.FLAGS(argv)
    except UserError as error:
        _stop(str(error))
    except flags.Error as error:
        _stop(f"{error} (--help lists the flags)")
    except (AttributeError, KeyError, TypeError, ValueError) as error:  # ml_collections', for a field that is not there
        _stop(f"cannot override --config: {_message(error)}")


def _stop(message: str) -> NoReturn:
    print(f"error: {' '.join(message.split())}", file=sys.stderr)
    sys.exit(2)
