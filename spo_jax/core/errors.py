"""The one error that means "the user can mend this"."""


class UserError(Exception):
    """A mistake in a flag, a config field or a file.

    The message is one line: what is wrong, where (file, field or key), what was expected, what to do next.
    Commands print it after ``error:`` and exit with status 2; nothing else is shown.
    """
