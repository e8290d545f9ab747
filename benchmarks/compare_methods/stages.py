"""Stages whose results are files: what is there and belongs to the same settings is not made again."""

import hashlib
import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from absl import logging

from spo_jax.core.errors import Interrupted, Preempted, UserError
from spo_jax.core.files import read_json_object, write_json
from spo_jax.core.json_text import finite_or_null

About = Mapping[str, Any]


def digest(about: About) -> str:
    """Returns ten letters that stand for JSON values."""
    return hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:10]


class Stages:
    """The finished stages of a comparison, in one folder.

    A stage's file has the digest of its settings in its name, so that another setting is another file, and nothing is
    ever replaced or removed. Files are written in one step: a killed stage has none.

    Args:
      folder: the folder.

    Attributes:
      failures: what failed since the command was started, by the name of the stage. It is tried again at the next
        start.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self.failures: dict[str, str] = {}

    def path(self, kind: str, name: str, about: About) -> Path:
        """Returns the file of a stage."""
        return self.folder / kind / f"{name}-{digest(about)}.json"

    def made(self, kind: str, name: str, about: About, make: Callable[[], Any]) -> Any:
        """Returns the result of a stage, which is made if its file is not there.

        Args:
          kind: kind of the stage, which is the folder of its file.
          name: name of the stage among those of its kind.
          about: JSON values on which the result depends.
          make: makes the result, of JSON values.

        Raises:
          UserError: the file is damaged or cannot be written; or as ``make`` does.
        """
        path = self.path(kind, name, about)
        if path.exists():
            found = read_json_object(path)
            if "result" not in found:
                raise UserError(f"{path}: expected a finished stage with a field 'result'; delete it to make it again")
            return found["result"]
        begin = time.perf_counter()
        result = finite_or_null(make())
        seconds = round(time.perf_counter() - begin, 2)
        write_json(path, {"about": dict(about), "seconds": seconds, "result": result})
        return result

    def attempted(self, name: str, make: Callable[[], Any]) -> Any:
        """Returns what ``make`` does, or None if it fails, which is noted and does not end the command.

        Args:
          name: name of what is attempted, for messages.
          make: what may fail.

        Raises:
          Preempted: the machine is about to be taken away.
          Interrupted: Ctrl-C was pressed.
        """
        self.failures.pop(name, None)
        try:
            return make()
        except (Preempted, Interrupted):
            raise
        except Exception as error:  # a method may fail in any way, and the others go on
            reason = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
            self.failures[name] = " ".join(reason.split())[:500]
            logging.warning("%s failed, and the others go on: %s", name, self.failures[name])
            logging.debug("%s", name, exc_info=True)
            return None
