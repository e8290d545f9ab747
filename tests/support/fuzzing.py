"""Damages good files at random, and checks that readers read them or refuse them in one line, within bounds.

The default tests try a few hundred cases of each reader. ``SPO_FUZZ_CASES=5000 python -m pytest -k damaged_at_random``
tries more; a case that fails names its seed, and ``SPO_FUZZ_FIRST=SEED SPO_FUZZ_CASES=1`` repeats it alone.
"""

import copy
import json
import os
import random
import time
import tracemalloc
from collections.abc import Callable, Iterator
from typing import Any

from spo_jax.core.errors import UserError

_NUMBERS = (0, 1, 2, 3, 7, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 2**31 - 1, 2**31, 2**32 - 1, 2**63 - 1, 2**64 - 1)
# Values that take the place of those in a JSON file.
_VALUES = (
    None, True, False, 0, 1, -1, 7, 10**12, 2**63, 10**400, 0.5, -0.5, 1e-300, 1e300, float("nan"), float("inf"),
    "", "a", "\ud800", "é" * 40, "x" * 5000, "../../x", "/dev/zero", "\0", [], {}, [[]], [1, "a"], {"a": 1}, [-1] * 3,
)  # fmt: skip


def cases(quick: int) -> Iterator[random.Random]:
    """Yields a random generator per case, ``quick`` of them unless the environment asks for more."""
    first = int(os.environ.get("SPO_FUZZ_FIRST", 0))
    for seed in range(first, first + int(os.environ.get("SPO_FUZZ_CASES", quick))):
        generator = random.Random(seed)
        generator.name = f"case {seed}"
        yield generator


def damaged(random: random.Random, data: bytes) -> bytes:
    """Returns bytes with one to four places changed."""
    content = bytearray(data)
    for _ in range(random.randint(1, 4)):
        at = random.randrange(len(content) + 1)
        length = random.choice((1, 1, 2, 4, 8, 40))
        kind = random.randrange(6)
        if kind == 0:  # other bits
            for place in range(at, min(at + length, len(content))):
                content[place] ^= 1 << random.randrange(8)
        elif kind == 1:  # other bytes
            content[at : at + length] = random.randbytes(length)
        elif kind == 2:  # a number at one of the limits
            width = random.choice((1, 2, 4, 8))
            number = random.choice(_NUMBERS) % 2 ** (8 * width)
            content[at : at + width] = number.to_bytes(width, random.choice(("little", "big")))
        elif kind == 3:  # a part is missing
            del content[at : at + length]
        elif kind == 4:  # a part occurs twice
            source = random.randrange(len(content) + 1)
            content[at:at] = content[source : source + length]
        elif random.random() < 0.2:  # the end is missing
            del content[at:]
    return bytes(content)


def damaged_json(random: random.Random, value: Any) -> str:
    """Returns the text of a JSON value of which one or two items are others, or missing; sometimes it is cut off."""
    value = copy.deepcopy(value)
    for _ in range(random.randint(1, 2)):
        holder, key = random.choice(list(_places(value)) or [([value], 0)])
        other = random.choice(_VALUES)
        if random.random() < 0.15:
            del holder[key]
        elif isinstance(holder[key], int | float) and abs(holder[key]) < 1e100 and random.random() < 0.5:
            holder[key] = random.choice((-holder[key], holder[key] * 10**6, holder[key] + 0.5, str(holder[key])))
        else:
            holder[key] = other
    text = json.dumps(value)
    return text[: random.randrange(len(text))] if random.random() < 0.05 else text


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Yields every container inside of a value with every one of its keys."""
    for key in value if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ():
        yield value, key
        yield from _places(value[key])


def read_or_refused(
    case: random.Random, read: Callable[[], Any], megabytes: float = 32, seconds: float = 5
) -> Any | None:
    """Calls a reader, and fails unless it returns or raises a `UserError` in time, without much memory.

    Args:
      case: the case, which is named in a failure.
      read: the reader.
      megabytes: most memory that it may take.
      seconds: most seconds of the processor that it may take, which a busy machine does not change.

    Returns:
      What the reader returned, or None if it refused.
    """
    tracemalloc.start()
    started = time.process_time()
    try:
        value = read()
    except UserError as error:
        assert str(error).strip(), case.name
        assert len(str(error)) < 5000, f"{case.name}: a message of {len(str(error))} characters"
        value = None
    except BaseException as error:
        error.add_note(f"{case.name}: see tests/support/fuzzing.py")
        raise
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    took = time.process_time() - started
    assert took < seconds, f"{case.name}: took {took:.1f} s"
    assert peak < megabytes * 2**20, f"{case.name}: took {peak / 2**20:.0f} MiB"
    return value
