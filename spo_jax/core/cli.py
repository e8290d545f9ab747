"""What every command does with a user's mistake: one line, status 2, no traceback."""

import logging as stdlib_logging
import sys
from collections.abc import Callable, Sequence

from absl import app, logging

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
            print(f"error: {error}", file=sys.stderr)
            sys.exit(2)
        except KeyboardInterrupt:
            print("interrupted", file=sys.stderr)
            sys.exit(130)

    app.run(reporting, argv=argv, flags_parser=_parse_flags)


def _parse_flags(argv: Sequence[str]) -> list[str]:
    """absl's parser, but that a mistake inside a config file is told like any other."""
    try:
        return app.parse_flags_with_usage(argv)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
    except FileNotFoundError as error:
        print(f"error: --config: no such file: {error.filename or error}", file=sys.stderr)
    except (AttributeError, KeyError, TypeError, ValueError, SyntaxError, ImportError) as error:
        print(f"error: --config: {' '.join(str(error).split())}", file=sys.stderr)
    sys.exit(2)
