"""What the processes of a run tell each other besides numbers: facts that have to be equal, decisions, and failures.

They use the key-value store of jax's coordination service. In a collective on the devices, a process would wait for
ever for one that has failed; a process that waits here sees the failure and ends with the same line. In a run of one
process, every function returns at once.
"""

import contextlib
import hashlib
import itertools
import json
import os
import re
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

import jax
from jax._src import distributed  # the store has no public name; orbax takes it from here as well

from spo_jax.core.cli import tell_error
from spo_jax.core.errors import Interrupted, Preempted, UserError
from spo_jax.core.signals import INTERRUPTED, last_words
from spo_jax.core.words import differences
from spo_jax.parallel.multihost import is_writer

T = TypeVar("T")

_FAILED = "spo_jax/failed"
_POLL = 0.3  # seconds between two looks at the failures of others
_PATIENCE = 20.0  # seconds that a process has to end by itself after another one has failed
_VISIBLE = 90.0  # seconds after which every process sees a change of another one's files, or never
_NAMES_A_PROCESS = re.compile(r"process \d+: ")  # so does the message of one that ended because another one had failed
_rounds = itertools.count()  # every process meets the others in the same order


def gathered(value: Any) -> list[Any]:
    """Returns the values of all processes, in their order; all of them have to call it.

    Args:
      value: JSON value of this process.

    Raises:
      UserError: another process has ended with this error instead (see `ending_together`).
    """
    if jax.process_count() == 1:
        return [value]
    store = distributed.global_state.client
    name = f"spo_jax/meeting/{next(_rounds)}"
    store.key_value_set(f"{name}/{jax.process_index()}", json.dumps(value))
    if not is_writer():
        return json.loads(_awaited(f"{name}/all"))
    values = [json.loads(_awaited(f"{name}/{index}")) for index in range(jax.process_count())]
    store.key_value_set(f"{name}/all", json.dumps(values))
    return values


def decided(decide: Callable[[], T]) -> T:
    """Returns in every process what ``decide``, which process 0 calls, returns there; all of them meet here.

    Args:
      decide: function that returns a JSON value. An error that it raises ends all processes (see `ending_together`).
    """
    return gathered(decide() if is_writer() else None)[0]


def check_equal(facts: Mapping[str, str]) -> None:
    """Compares facts between all processes.

    Args:
      facts: values by name, both as they shall appear in the message.

    Raises:
      UserError: they differ; every process raises the same message, which names facts, values and processes.
    """
    digest = hashlib.sha256(json.dumps(sorted(facts.items())).encode()).hexdigest()
    if len(set(gathered(digest))) == 1:
        return
    first, *others = gathered(dict(facts))
    for index, other in enumerate(others, 1):
        found = differences(first, other, ("in process 0", f"in process {index}"))
        if found:
            raise UserError(f"the processes of this run are not equal: {found}")


def is_visible(condition: Callable[[], bool]) -> bool:
    """Whether a condition on files holds that process 0 has made true.

    A network file system may show it to other processes up to a minute later, so these wait for it.
    """
    end = time.monotonic() + (0 if is_writer() else _VISIBLE)
    while not condition():
        if time.monotonic() >= end:
            return False
        time.sleep(0.2)
    return True


# Failures


@contextlib.contextmanager
def ending_together() -> Iterator[None]:
    """A context in which an error of one process ends all of them, each with one line that names the first.

    A process that waits for the others in this module raises the error. One that does not come here in time, because it
    waits in a program for the process that failed, is ended by a thread of its own.
    """
    if distributed.global_state.client is None or jax.process_count() == 1:
        yield
        return
    ended = threading.Event()
    threading.Thread(target=_watch, args=(jax.process_index(), ended), name="failures of others", daemon=True).start()
    try:
        with last_words(_announce_interruption):
            yield
    except (Preempted, Interrupted):  # all processes stop together, and have saved
        raise
    except UserError as error:
        _announce(2, str(error))
        raise
    except KeyboardInterrupt:
        _announce_interruption()
        raise
    except Exception as error:
        _announce(1, f"{type(error).__name__}: {error}".strip(": ").splitlines()[0])
        raise
    finally:
        ended.set()


def _announce(status: int, message: str) -> None:
    with contextlib.suppress(jax.errors.JaxRuntimeError):  # process 0, which keeps the store, may be gone
        value = json.dumps([status, message])
        distributed.global_state.client.key_value_set(f"{_FAILED}/{jax.process_index()}", value)


def _announce_interruption() -> None:
    """Announces that this process ends at once, and gives the others the time to notice, before the store is gone."""
    _announce(INTERRUPTED, "stopped by Ctrl-C")
    time.sleep(4 * _POLL)


def _failure_of_others(me: int) -> tuple[int, str] | None:
    """Returns exit status and message of the first process but ``me`` that has failed."""
    for key, value in sorted(distributed.global_state.client.key_value_dir_get(f"{_FAILED}/")):
        index = key.rpartition("/")[2]
        if index != str(me):
            status, message = json.loads(value)
            return status, message if _NAMES_A_PROCESS.match(message) else f"process {index}: {message}"
    return None


def _awaited(key: str) -> str:
    """Waits for a value in the store."""
    while True:
        try:
            return distributed.global_state.client.blocking_key_value_get(key, 1000)  # milliseconds
        except jax.errors.JaxRuntimeError as error:
            if "DEADLINE_EXCEEDED" not in str(error):
                raise
        failure = _failure_of_others(jax.process_index())
        if failure is not None and failure[0] == 2:  # `_watch` ends the process after other failures
            raise UserError(failure[1])


def _watch(me: int, ended: threading.Event) -> None:
    """Ends the process if another one has failed and this one does not end by itself."""
    while not ended.wait(_POLL):
        with contextlib.suppress(jax.errors.JaxRuntimeError):  # jax itself ends the process if the store is gone
            failure = _failure_of_others(me)
            # A process that Ctrl-C ends is gone within two seconds, and with process 0 the store.
            if failure is not None and not ended.wait(_POLL if failure[0] == INTERRUPTED else _PATIENCE):
                status, message = failure
                tell_error(message)
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stderr.fileno())  # the line is the last one
                jax.distributed.shutdown()  # so that the others, which wait for all to leave, can end as well
                os._exit(status)
