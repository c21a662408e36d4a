"""What a pickle would cost whoever reads it, found out before it is read.

Python's unpickler makes room for as many remembered objects as the largest number that a pickle gives one: nine bytes
can ask for 64 GB. And it hashes dictionaries' keys, which takes a frame of C's stack for each tuple within a tuple: a
megabyte of these ends the process. Called by `quire.engine.weights.pickled`.
"""

from __future__ import annotations

import pickle
import pickletools

MOST_NESTED = 100  # tuples within tuples; of a tensor there are 2
_PUTS = ("PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE")
_GETS = ("GET", "BINGET", "LONG_BINGET")
_TUPLES = ("TUPLE", "TUPLE1", "TUPLE2", "TUPLE3")
_MARK = -1  # in place of a depth


def refuse_costly(data: bytes) -> None:
    """Raises UnpicklingError for a pickle as above. What is no pickle at all may raise ValueError or IndexError, and
    may pass: the unpickler refuses it."""
    stack: list[int] = []  # of each object on the unpickler's stack, how deep tuples nest in it
    memo: dict[int, int] = {}
    for opcode, argument, _ in pickletools.genops(data):
        if opcode.name in _PUTS:
            number = len(memo) if argument is None else int(argument)
            if number > len(data):
                raise pickle.UnpicklingError(f"it numbers an object {number}, and has {len(data)} bytes")
            memo[number] = stack[-1]
        elif opcode.name in _GETS:
            stack.append(memo.get(int(argument or 0), 0))
        elif opcode.name == "MARK":
            stack.append(_MARK)
        else:
            depth = _take(stack, opcode) + (opcode.name in _TUPLES)
            if depth > MOST_NESTED:
                raise pickle.UnpicklingError(f"it nests tuples more than {MOST_NESTED} deep")
            stack += [depth] * len(opcode.stack_after)


def _take(stack: list[int], opcode: pickletools.OpcodeInfo) -> int:
    """Remove what `opcode` takes from `stack`; the greatest of its depths."""
    taken = [0]
    count = len(opcode.stack_before)
    to_mark = pickletools.markobject in opcode.stack_before
    if to_mark:
        count = opcode.stack_before.index(pickletools.markobject)
        while (depth := stack.pop()) != _MARK:
            taken.append(depth)
    for _ in range(count):
        taken.append(stack.pop())  # a mark that is taken so, as POP may, counts for nothing
    return max(taken)
