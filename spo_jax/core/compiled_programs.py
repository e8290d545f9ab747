"""The cache of compiled programs, which is kept between starts."""

import os
from pathlib import Path

DEFAULT_FOLDER = "~/.cache/spo_jax/xla"


def keep_compiled_programs() -> None:
    """Turns on jax's persistent compilation cache, so that a command that is started again compiles in seconds.

    Its folder is ``JAX_COMPILATION_CACHE_DIR``, or else `DEFAULT_FOLDER`; an empty value of the variable turns it off.
    It keeps small programs as well, which jax leaves out by default if they compile within a second: a command has
    dozens of them. jax reads the variables when it is imported, so this has to be called before. `run_command` does so
    for the commands of the package.
    """
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(Path(DEFAULT_FOLDER).expanduser()))
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
