"""The cache of compiled programs, which is kept between starts."""

import os
from pathlib import Path

import jax

DEFAULT_FOLDER = "~/.cache/spo_jax/xla"


def keep_compiled_programs() -> None:
    """Turns on jax's persistent compilation cache, so that a run that is started again compiles in seconds.

    Its folder is ``JAX_COMPILATION_CACHE_DIR``, or else `DEFAULT_FOLDER`; an empty value of the variable turns it off.
    """
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        jax.config.update("jax_compilation_cache_dir", str(Path(DEFAULT_FOLDER).expanduser()))
