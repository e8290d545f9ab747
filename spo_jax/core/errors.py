"""Exceptions that end a command without being a fault of the program."""


class _Told(BaseException):
    """An exception whose message says everything: in a notebook it is shown without a traceback, as by a command."""

    def _render_traceback_(self) -> list[str]:
        """Returns the lines that IPython shows."""
        return [f"{'error: ' if isinstance(self, UserError) else ''}{self}"]


class UserError(_Told, Exception):
    """A mistake in a flag, a config field or a file.

    The message is one line: what is wrong, where (file, field or key), what was expected, and what to do next.
    Commands print it after ``error:`` and exit with status 2; they show nothing else.
    """


class Preempted(_Told, Exception):
    """The machine is about to be taken away and the run has been saved; commands exit with status 75."""


class Interrupted(_Told, KeyboardInterrupt):
    """Ctrl-C came and the run has been saved; commands exit with status 130, so that no script restarts them."""


def missing_extra(need: str, extra: str) -> UserError:
    """Returns the error that says how to install what ``need`` asks for, an extra of the package."""
    return UserError(f'{need}: run pip install -e ".[{extra}]" in the checkout')
