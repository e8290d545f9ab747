"""Interprets the pickle of a torch file: some forty opcodes, in time and memory that are proportional to its length.

Python's own unpickler is no match for a hostile file, even if it can call nothing: a memo of 4 GiB, the hash of a tuple
nested a million times (which overflows the stack of the process) and one of a pair of twins of pairs of twins (which
never ends) each take a few bytes. Here keys are texts or integers, what a state dict cannot need is forgotten at once,
and what is kept is at most `_DEPTH` deep. Nothing is imported, nothing is called, and no weights are read. Of objects
that are not part of a state dict, such as the callbacks in a trainer's checkpoint, only the name of the class is kept.
"""

import pickletools
from typing import Any

from spo_jax.core.words import size
from spo_jax.weights.torch_values import (
    BYTES,
    LIST,
    LONG,
    NAMES,
    ORDERED_DICT,
    REBUILT_PARAMETER,
    REBUILT_TENSOR,
    SET,
    TUPLE,
    BadPickle,
    Dict,
    Name,
    Other,
    holds_tensor,
    kind_of,
    storage_of,
    tensor_of,
    without_containers,
)

MAX_BYTES = 2**24  # SDXL with all of its 2,500 tensors takes 400 KB
_OPCODES = 10**6  # SDXL takes 100,000
_DEPTH = 50
_WIDTH = 64  # elements of a tuple; torch's longest are the shapes of tensors


def too_large(count: int) -> BadPickle:
    """Returns the error for a pickle of this number of bytes."""
    return BadPickle(f"its pickle takes {size(count)}, more than any state dict (at most {size(MAX_BYTES)})")


def interpret(pickled: bytes) -> Any:
    """Returns the object that a pickle describes: a `Dict`, a `Tensor`, or something that is not a state dict.

    Raises:
      BadPickle: the pickle is damaged, has an opcode that no state dict needs, or has too many of them.
    """
    if len(pickled) > MAX_BYTES:
        raise too_large(len(pickled))
    machine = _Machine()
    try:
        for number, (opcode, argument, _) in enumerate(pickletools.genops(pickled)):
            if number >= _OPCODES:
                raise BadPickle(f"its pickle has more than {_OPCODES} opcodes, more than any state dict")
            if opcode.name == "STOP":
                return machine.pop()
            action = _ACTIONS.get(opcode.name)
            if action is None:
                raise BadPickle(f"it uses the opcode {opcode.name}, which plain weights do not need; no code was run")
            action(machine, argument)
    except BadPickle:
        raise
    except ValueError as error:  # from genops: the pickle is cut off, or has bytes that are no opcodes
        raise BadPickle(f"its pickle is damaged: {error}") from error
    raise BadPickle("its pickle is damaged: it has no end")


class _Machine:
    """The stack, its marks, and the memo, as the pickle module describes them."""

    def __init__(self):
        self.stack: list[Any] = []
        self._marks: list[int] = []
        self._memo: dict[int, Any] = {}

    def pop(self) -> Any:
        """Takes the top of the stack, but nothing below the last mark."""
        if len(self.stack) <= (self._marks[-1] if self._marks else 0):
            raise BadPickle("its pickle is damaged: the stack is empty")
        return self.stack.pop()

    def _top(self, expected: str) -> Any:
        """Returns the top of the stack, which has to be a dict or an object of which only the kind was kept."""
        value = self.pop()
        if not isinstance(value, Dict | Other):
            raise BadPickle(f"its pickle is damaged: found {kind_of(value)}, expected {expected}")
        self.stack.append(value)
        return value

    def push(self, value: Any) -> None:
        self.stack.append(value)

    def mark(self, _: None) -> None:
        self._marks.append(len(self.stack))

    def _pop_to_mark(self) -> list[Any]:
        if not self._marks:
            raise BadPickle("its pickle is damaged: there is no mark")
        start = self._marks.pop()
        values = self.stack[start:]
        del self.stack[start:]
        return values

    # The memo

    def put(self, index: int | None) -> None:
        value = self.pop()
        self.stack.append(value)
        self._memo[len(self._memo) if index is None else index] = value

    def get(self, index: int) -> None:
        if index not in self._memo:
            raise BadPickle(f"its pickle is damaged: nothing has the number {index}")
        self.stack.append(self._memo[index])

    # Values

    def integer(self, value: int) -> None:
        # A dict compares the hashes of its keys. Those of long integers can be chosen to be equal.
        self.stack.append(value if -(2**63) <= value < 2**63 else LONG)

    def tuple_to_mark(self, _: None) -> None:
        self._push_tuple(self._pop_to_mark())

    def tuple_of(self, count: int) -> None:
        self._push_tuple([self.pop() for _ in range(count)][::-1])

    def _push_tuple(self, values: list[Any]) -> None:
        """Pushes a tuple; it keeps the tuples in it, but not the tuples in those, and no dicts."""
        is_long = len(values) > _WIDTH
        self.stack.append(TUPLE if is_long else tuple(map(without_containers, values)))

    def append(self, _: None) -> None:
        self.pop()
        self._check_list()

    def add_all(self, _: None) -> None:
        self._pop_to_mark()
        self._check_list()

    def _check_list(self) -> None:
        if isinstance(self._top("a list or set"), Dict):
            raise BadPickle("its pickle is damaged: found a dict, expected a list or set")

    def frozen_set(self, _: None) -> None:
        self._pop_to_mark()
        self.stack.append(SET)

    def set_item(self, _: None) -> None:
        value = self.pop()
        self._set_items([self.pop(), value])

    def set_items(self, _: None) -> None:
        self._set_items(self._pop_to_mark())

    def _set_items(self, values: list[Any]) -> None:
        if len(values) % 2:
            raise BadPickle("its pickle is damaged: a key has no value")
        target = self._top("a dict")
        if isinstance(target, Other):
            return
        if target.is_placed and values:
            raise BadPickle("it changes a dict that is in use already, which plain weights do not need")
        for key, value in zip(values[::2], values[1::2], strict=True):
            if not isinstance(key, str | int):
                target.dropped = target.dropped or kind_of(key)
                continue
            if isinstance(value, Dict):
                if value is target:
                    raise BadPickle("it has a dict that holds itself")
                value.is_placed = True
                target.depth = max(target.depth, value.depth + 1)
            if target.depth > _DEPTH:
                raise BadPickle(f"it is more than {_DEPTH} dicts deep")
            target.items[key] = TUPLE if isinstance(value, tuple) else value

    # Names and what is made of them

    def name(self, joined: str) -> None:
        module, _, name = joined.partition(" ")  # as pickletools joins them
        self._push_name(module, name)

    def name_from_stack(self, _: None) -> None:
        name = self.pop()
        self._push_name(self.pop(), name)

    def _push_name(self, module: Any, name: Any) -> None:
        if not isinstance(module, str) or not isinstance(name, str):
            raise BadPickle("its pickle is damaged: a name is no text")
        self.stack.append(NAMES.get((module, name)) or Other(name, module))

    def reduce(self, _: None) -> None:
        arguments = self.pop()
        name = self.pop()
        full = name.full if isinstance(name, Name) else ""
        if isinstance(name, Other):
            self.stack.append(name)
        elif full == ORDERED_DICT and arguments == ():
            self.stack.append(Dict())
        elif full == REBUILT_TENSOR and isinstance(arguments, tuple):
            self.stack.append(tensor_of(arguments))
        elif full == REBUILT_PARAMETER and isinstance(arguments, tuple) and holds_tensor(arguments):
            self.stack.append(arguments[0])
        else:
            raise BadPickle("it calls something that plain weights do not need; no code was run")

    def new_object(self, count: int) -> None:
        """Makes an object of a class from ``count`` values above it, the arguments."""
        for _ in range(count):
            self.pop()
        if not isinstance(self._top("a class"), Other):
            raise BadPickle("it makes an object that plain weights do not need; no code was run")

    def build(self, _: None) -> None:
        # Torch's own state dicts have an attribute, with the versions of their modules. No weight depends on it.
        self.pop()
        self._top("an object")

    def storage(self, _: None) -> None:
        self.stack.append(storage_of(self.pop()))


def _ignore(machine: _Machine, argument: Any) -> None:
    del machine, argument


# What `torch.save` writes from protocol 2 of pickle on. For each opcode: what it does to the machine.
_ACTIONS = {
    "PROTO": _ignore,
    "FRAME": _ignore,
    "MARK": _Machine.mark,
    "BINPUT": _Machine.put,
    "LONG_BINPUT": _Machine.put,
    "MEMOIZE": _Machine.put,
    "BINGET": _Machine.get,
    "LONG_BINGET": _Machine.get,
    "NONE": _Machine.push,
    "NEWTRUE": lambda machine, _: machine.push(True),
    "NEWFALSE": lambda machine, _: machine.push(False),
    "BININT": _Machine.integer,
    "BININT1": _Machine.integer,
    "BININT2": _Machine.integer,
    "LONG1": _Machine.integer,
    "LONG4": _Machine.integer,
    "BINFLOAT": _Machine.push,
    "BINUNICODE": _Machine.push,
    "SHORT_BINUNICODE": _Machine.push,
    "BINBYTES": lambda machine, _: machine.push(BYTES),
    "SHORT_BINBYTES": lambda machine, _: machine.push(BYTES),
    "BYTEARRAY8": lambda machine, _: machine.push(BYTES),
    "EMPTY_TUPLE": lambda machine, _: machine.tuple_of(0),
    "TUPLE1": lambda machine, _: machine.tuple_of(1),
    "TUPLE2": lambda machine, _: machine.tuple_of(2),
    "TUPLE3": lambda machine, _: machine.tuple_of(3),
    "TUPLE": _Machine.tuple_to_mark,
    "EMPTY_LIST": lambda machine, _: machine.push(LIST),
    "APPEND": _Machine.append,
    "APPENDS": _Machine.add_all,
    "EMPTY_SET": lambda machine, _: machine.push(SET),
    "ADDITEMS": _Machine.add_all,
    "FROZENSET": _Machine.frozen_set,
    "EMPTY_DICT": lambda machine, _: machine.push(Dict()),
    "SETITEM": _Machine.set_item,
    "SETITEMS": _Machine.set_items,
    "GLOBAL": _Machine.name,
    "STACK_GLOBAL": _Machine.name_from_stack,
    "REDUCE": _Machine.reduce,
    "NEWOBJ": lambda machine, _: machine.new_object(1),
    "NEWOBJ_EX": lambda machine, _: machine.new_object(2),
    "BUILD": _Machine.build,
    "BINPERSID": _Machine.storage,
}
