"""The list of a checkpoint's files, by which damage is found and named before anything is read.

The list holds names and sizes, and is written into the checkpoint's folder after orbax has finished it. Orbax finds
most damage itself, but only by failing deep inside its threads; a missing or truncated file is found here first. A
checkpoint without the list (the run was killed in between) is left to orbax's own checks.
"""

import json

from etils import epath

from spo_jax.core.json_text import parse_json
from spo_jax.run.damage import Damaged

FILE_LIST = "files.json"


def write_file_list(folder: epath.Path) -> None:
    """Writes the list of the files in ``folder``, completely or not at all."""
    part = folder / f"{FILE_LIST}.part"
    part.write_text(json.dumps(_file_sizes(folder), indent=0))
    part.rename(folder / FILE_LIST)


def check_file_list(folder: epath.Path) -> None:
    """Compares the files in ``folder`` with its list, if it has one.

    Raises:
      Damaged: a file is missing or has another size, or the list cannot be read.
    """
    try:
        expected = parse_json((folder / FILE_LIST).read_bytes())
    except FileNotFoundError:
        return
    except ValueError as error:
        raise Damaged(f"{FILE_LIST} is not JSON") from error
    if not isinstance(expected, dict):
        raise Damaged(f"{FILE_LIST} is not a list of files")
    found = _file_sizes(folder)
    for name, size in expected.items():
        if name not in found:
            raise Damaged(f"{name} is missing")
        if found[name] != size:
            raise Damaged(f"{name} has {found[name]} bytes instead of {size}")


def _file_sizes(folder: epath.Path) -> dict[str, int]:
    sizes = {}
    for path in sorted(folder.iterdir()):
        if path.is_dir():
            sizes |= {f"{path.name}/{name}": size for name, size in _file_sizes(path).items()}
        else:
            sizes[path.name] = path.stat().length
    return sizes
