"""The program in a torch file, carried out by a machine that can build nothing but plain values and tensors.

A torch file is a zip of `data.pkl` and one raw member per storage. `data.pkl` is a program for the pickle machine;
run by pickle it can call any function. Here `pickletools` decodes the instructions, which executes nothing, and
`_Machine` carries them out. It knows dictionaries, lists, strings, numbers and tensors, and nothing that imports,
calls or sets attributes. A restricted `pickle.Unpickler` is not enough: one memo instruction makes it allocate
gigabytes, and a deeply nested tuple used as a key overflows the C stack.
"""

import pickletools
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from jaxdict.containers.tensors import BadFileError
from jaxdict.storage import listing

STORAGES = {
    "DoubleStorage": np.dtype("<f8"),
    "FloatStorage": np.dtype("<f4"),
    "HalfStorage": np.dtype("<f2"),
    "BFloat16Storage": np.dtype(ml_dtypes.bfloat16),
    "LongStorage": np.dtype("<i8"),
    "IntStorage": np.dtype("<i4"),
    "ShortStorage": np.dtype("<i2"),
    "CharStorage": np.dtype("i1"),
    "ByteStorage": np.dtype("u1"),
    "BoolStorage": np.dtype("?"),
}
CALLS = ("torch._utils _rebuild_tensor_v2", "torch._utils _rebuild_parameter", "collections OrderedDict")
# Instructions that push what they carry, and those that push something new.
PUSHED = frozenset(
    {
        *("BININT", "BININT1", "BININT2", "LONG1", "INT", "LONG", "BINFLOAT", "FLOAT"),
        *("UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"),
    }
)
CONSTANTS = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_DICT": dict,
    "EMPTY_LIST": list,
    "EMPTY_TUPLE": tuple,
}


class _Name(NamedTuple):
    """A permitted global, by name only; there is nothing to call."""

    name: str


class Storage(NamedTuple):
    """A run of numbers in a member of the archive, by name, type and length."""

    key: str
    dtype: np.dtype
    length: int


class TensorView(NamedTuple):
    """A tensor as the program describes it: where it lies in a storage, not yet checked against the archive."""

    storage: Storage
    offset: int
    shape: tuple
    stride: tuple


class _Refused(Exception):
    """The program asks for something a state of tensors does not need."""


def run_program(path, program: bytes) -> Any:
    """Carry out a pickle program in a machine that can build nothing but plain values and descriptions of tensors.

    Raises ValueError naming the file and the first thing that was refused.

    >>> import pickle
    >>> run_program("x.pt", pickle.dumps({"k": 3, "name": "relu"}, protocol=2))
    {'k': 3, 'name': 'relu'}
    >>> run_program("x.pt", pickle.dumps(print, protocol=2))
    Traceback (most recent call last):
    jaxdict.containers.tensors.BadFileError: x.pt: data.pkl asks for '__builtin__ print'; only tensors are read, ...
    """
    machine = _Machine()
    try:
        for opcode, argument, _ in pickletools.genops(program):
            machine.step(opcode.name, argument)
        return machine.result()
    except _Refused as refused:
        raise BadFileError(
            f"{path}: data.pkl {refused}; only tensors are read, nothing is executed: save them by themselves"
        ) from None
    except (ValueError, IndexError, KeyError, TypeError, AttributeError, OverflowError, RecursionError, AssertionError):
        raise BadFileError(f"{path}: data.pkl is damaged or truncated") from None


class _Machine:
    """The pickle machine, less everything that calls, imports or sets attributes."""

    def __init__(self):
        self.stack, self.marks, self.memo, self.done = [], [], {}, False

    def step(self, name, argument):
        """One instruction."""
        if name in PUSHED:
            self.stack.append(argument)
        elif name in CONSTANTS:
            self.stack.append(CONSTANTS[name]())
        elif (action := getattr(self, "op_" + name.lower(), None)) is not None:
            action(argument)
        else:
            raise _Refused(f"holds the instruction {name}")

    def result(self):
        """What the program left."""
        if not self.done:
            raise ValueError("the program does not end")
        return self.stack[-1]

    def _pop_mark(self):
        start = self.marks.pop()
        items = self.stack[start:]
        del self.stack[start:]
        return items

    def op_proto(self, version):
        if version > 5:
            raise _Refused(f"has protocol {version}")

    def op_frame(self, _):
        pass

    def op_stop(self, _):
        self.done = True

    def op_mark(self, _):
        self.marks.append(len(self.stack))

    def op_memoize(self, _):
        self.memo[len(self.memo)] = self.stack[-1]

    def op_binput(self, index):
        self.memo[index] = self.stack[-1]

    op_long_binput = op_binput

    def op_binget(self, index):
        self.stack.append(self.memo[index])

    op_long_binget = op_binget

    def op_tuple(self, _):
        items = self._pop_mark()
        self.stack.append(tuple(items))

    def op_tuple1(self, _):
        self.stack[-1:] = [(self.stack[-1],)]

    def op_tuple2(self, _):
        self.stack[-2:] = [tuple(self.stack[-2:])]

    def op_tuple3(self, _):
        self.stack[-3:] = [tuple(self.stack[-3:])]

    def op_setitem(self, _):
        value, key = self.stack.pop(), self.stack.pop()
        self._set(self.stack[-1], [key, value])

    def op_setitems(self, _):
        items = self._pop_mark()
        self._set(self.stack[-1], items)

    def _set(self, target, items):
        if type(target) is not dict or len(items) % 2:
            raise _Refused("fills something that is not a dictionary")
        for key, value in zip(items[::2], items[1::2], strict=True):
            # Optimizer states count their parameters, so whole numbers are keys too; anything else could be deep or
            # costly to hash.
            if type(key) not in (str, int):
                raise _Refused(f"has a dictionary key of type {type(key).__name__}")
            target[key] = value

    def op_append(self, _):
        value = self.stack.pop()
        self._extend(self.stack[-1], [value])

    def op_appends(self, _):
        items = self._pop_mark()
        self._extend(self.stack[-1], items)

    def _extend(self, target, items):
        if type(target) is not list:
            raise _Refused("appends to something that is not a list")
        target.extend(items)

    def op_global(self, name):
        module, _, attribute = name.partition(" ")
        if name not in CALLS and not (module == "torch" and attribute in STORAGES):
            raise _Refused(f"asks for {listing([name])}")
        self.stack.append(_Name(name))

    def op_stack_global(self, _):
        attribute, module = self.stack.pop(), self.stack.pop()
        self.op_global(f"{module} {attribute}" if type(module) is type(attribute) is str else "?")

    def op_binpersid(self, _):
        kind, storage, key, _, length = self.stack.pop()
        dtype = STORAGES.get(storage.name.partition(" ")[2]) if type(storage) is _Name else None
        if kind != "storage" or dtype is None or type(key) is not str or type(length) is not int or length < 0:
            raise _Refused("refers to something that is not a storage")
        self.stack.append(Storage(key, dtype, length))

    def op_reduce(self, _):
        arguments, function = self.stack.pop(), self.stack.pop()
        if type(function) is not _Name or type(arguments) is not tuple:
            raise _Refused("calls something that is not a tensor's constructor")
        self.stack.append(_construct(function.name, arguments))

    def op_build(self, _):
        # Module.state_dict() carries its version numbers in an attribute of the dictionary: dropped.
        self.stack.pop()
        if type(self.stack[-1]) is not dict:
            raise _Refused("sets attributes")


def _construct(name, arguments):
    """The three calls a state of tensors is made of, as descriptions."""
    if name == CALLS[0]:
        storage, offset, shape, stride = arguments[:4]
        if type(storage) is not Storage or type(shape) is not tuple or type(stride) is not tuple:
            raise _Refused("rebuilds a tensor from something that is not a storage")
        return TensorView(storage, offset, shape, stride)
    if name == CALLS[1] and type(arguments[0]) is TensorView:
        return arguments[0]
    if name == CALLS[2] and arguments == ():
        return {}
    raise _Refused(f"calls {listing([name])} with unexpected arguments")
