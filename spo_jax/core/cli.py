"""What every command does with a user's mistake: one line, status 2, no traceback."""

import difflib
import logging as stdlib_logging
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from absl import app, flags, logging
from ml_collections import ConfigDict, config_flags

from spo_jax.core.errors import Preempted, UserError
from spo_jax.core.trees import flatten


def run_command(main: Callable[[Sequence[str]], None], argv: Sequence[str] | None = None) -> None:
    """Parses absl flags and runs ``main``; never returns.

    Exit status: 0 done, 1 a fault of ours (with traceback), 2 a user's mistake (one line on stderr), 75 preempted and
    saved (EX_TEMPFAIL: start it again), 130 interrupted.
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
        except Preempted as stop:
            print(stop, file=sys.stderr)
            sys.exit(75)
        except KeyboardInterrupt:
            print("interrupted", file=sys.stderr)
            sys.exit(130)

    app.run(reporting, argv=argv, flags_parser=_parse_flags)


def define_config(default: str | None = None) -> flags.FlagHolder:
    """The flag ``--config=FILE.py``, required without a default; ``--config.FIELD=VALUE`` overrides its fields.

    The holder's value is what the file's ``get_config()`` returns. A file that is missing or fails is a `UserError`
    while the flags are parsed.
    """
    holder = config_flags.DEFINE_config_file("config", default, "Config file, e.g. configs/tiny.py.")
    flag = flags.FLAGS["config"]
    flag.parser = _ConfigFileParser(flag.parser)
    if default is None:
        flags.mark_flag_as_required("config")
    return holder


class _ConfigFileParser(flags.ArgumentParser):
    """ml_collections' own tells of a missing file only when a field is read, and of a faulty one with a traceback."""

    def __init__(self, inner: flags.ArgumentParser):
        self._inner = inner
        self.fields: list[str] = []

    def parse(self, path: str) -> Any:
        file = path.split(":", 1)[0]
        if not Path(file).is_file():
            raise UserError(f"--config={path}: no such file")
        try:
            config = self._inner.parse(path)
            getattr(config, "keys", None)  # an OSError of the file's is kept back until something is read
        except (Exception, SystemExit) as error:  # whatever the user's code raises
            raise UserError(f"--config={path}: {_told_of(error, file)}") from error
        if config is None:
            raise UserError(f"--config={path}: get_config() returned nothing")
        self.fields = list(flatten(config.to_dict(), ".")) if isinstance(config, ConfigDict) else []
        return config


def _chain(error: BaseException) -> list[BaseException]:
    """The error, what it was made from, and so on inwards."""
    chain = [error]
    while inner := chain[-1].__cause__ or chain[-1].__context__:
        chain.append(inner)
    return chain


def _told_of(error: BaseException, file: str) -> str:
    """The innermost error that went through ``file``, and the line."""
    for link in reversed(_chain(error)):
        lines = [frame.lineno for frame in traceback.extract_tb(link.__traceback__) if frame.filename == file]
        if lines:
            return f"line {lines[-1]}: {type(link).__name__}: {link}"
    innermost = _chain(error)[-1]  # such as a SyntaxError
    return f"{type(innermost).__name__}: {innermost}"


def _parse_flags(argv: Sequence[str]) -> list[str]:
    """absl's parser, but that its complaints look like all others, and that help is about this command's flags."""
    if {"--help", "-help", "-h"} & set(argv[1:]):
        modules = (flags.FLAGS.module_help(name) for name in (sys.argv[0], __name__))
        print(sys.modules["__main__"].__doc__, *modules, sep="\n")
        sys.exit(0)
    try:
        return flags.FLAGS(argv)
    except UserError as error:
        _stop(str(error))
    except flags.Error as error:
        _stop(f"{error} (--help lists the flags)")
    except (AttributeError, KeyError) as error:
        _stop(_no_such_field(error, argv))


def _no_such_field(error: BaseException, argv: Sequence[str]) -> str:
    """Names the override that fails, and the field that it may have meant: by its whole name, or by its last part."""
    known = flags.FLAGS["config"].parser.fields
    given = [flag.removeprefix("--config.").split("=")[0] for flag in argv if flag.startswith("--config.")]
    unknown = next((field for field in given if field not in known), _chain(error)[-1].args[0])
    by_end = {field.rsplit(".", 1)[-1]: field for field in known}
    near = difflib.get_close_matches(unknown, known, 1, 0.8)
    near = near or [by_end[end] for end in difflib.get_close_matches(unknown.rsplit(".", 1)[-1], by_end, 1)]
    return f"--config has no field {unknown}" + (f": did you mean {near[0]}?" if near else "")


def _stop(message: str) -> NoReturn:
    print(f"error: {' '.join(message.split())}", file=sys.stderr)
    sys.exit(2)
