"""What to do with a run that exists already."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Resume:
    """What to do with a run that exists already.

    Attributes:
      required: resume it; it is an error if there is none.
      if_there: resume it if there is one, otherwise start a run.
      changed: resume even if settings or data have changed.
    """

    required: bool = False
    if_there: bool = False
    changed: bool = False
