"""What XLA hands to a typed FFI target on the CPU, read from numba: arrays of the operands and results, and the integers of an attribute.

Words of 8 bytes, after jaxlib's `xla/ffi/api/c_api.h`. A call frame: [1] extension, [4] stage, [9] operands, [14] results, [20]
attributes; a buffer: [3] data, [4] rank, [5] shape. At registration XLA calls once with an extension that asks for the API's version.
"""

from llvmlite import ir
from numba import types
from numba.extending import intrinsic
from numba.np.numpy_support import carray

from jaxdict.encoding.numba_engine.kernels.steps import written_out

METADATA, EXECUTE = 1, 3
# Minor version 3 in the upper half, major version 0: XLA runs later minor versions, and older ones for a year.
API_VERSION = 3 << 32


def _at(element):
    """The memory at an address as numbers of one type."""

    @intrinsic
    def at(typing_context, address):
        def generate(context, builder, signature, arguments):
            return builder.inttoptr(arguments[0], context.get_value_type(element).as_pointer())

        return types.CPointer(element)(types.int64), generate

    return at


_words, _floats, _doubles, _ints = (_at(t) for t in (types.int64, types.float32, types.float64, types.int32))


@intrinsic
def add_one(typing_context, address):
    """What stands at an address, which is one more afterwards, whoever else does the same."""

    def generate(context, builder, signature, arguments):
        word = builder.inttoptr(arguments[0], ir.IntType(64).as_pointer())
        return builder.atomic_rmw("add", word, ir.Constant(ir.IntType(64), 1), "monotonic")

    return types.int64(types.int64), generate


@intrinsic
def word(typing_context, address, k):
    """The word number k at an address."""

    def generate(context, builder, signature, arguments):
        first = builder.inttoptr(arguments[0], ir.IntType(64).as_pointer())
        return builder.load(builder.gep(first, [arguments[1]]))

    return types.int64(types.int64, types.int64), generate


@written_out
def asks_for_version(frame):
    """Whether this is the call at registration, which is then answered."""
    extension = word(frame, 1)
    if extension == 0 or (word(extension, 1) & 0xFFFFFFFF) != METADATA:
        return False
    carray(_words(word(extension, 3)), (4,))[3] = API_VERSION
    return True


@written_out
def executes(frame):
    return (word(frame, 4) & 0xFFFFFFFF) == EXECUTE


@written_out
def operand(frame, k):
    return word(word(frame, 9), k)


@written_out
def result(frame, k):
    return word(word(frame, 14), k)


@written_out
def settings(frame):
    """The integers (of four bytes) of the call's one attribute."""
    array = word(word(frame, 20), 0)
    return carray(_ints(word(array, 2)), (word(array, 1),))


@written_out
def size(buffer, axis):
    return word(word(buffer, 5), axis)


@written_out
def ints(buffer):
    return carray(_ints(word(buffer, 3)), (size(buffer, 0), size(buffer, 1)))


@written_out
def int_vector(buffer):
    return carray(_ints(word(buffer, 3)), (size(buffer, 0),))


def _reals(numbers):
    """Arrays of one floating type over a buffer's own memory, by rank: matrix, vector, and a scalar as a vector of one."""

    @written_out
    def matrix(buffer):
        return carray(numbers(word(buffer, 3)), (size(buffer, 0), size(buffer, 1)))

    @written_out
    def vector(buffer):
        return carray(numbers(word(buffer, 3)), (size(buffer, 0),))

    @written_out
    def scalar(buffer):
        return carray(numbers(word(buffer, 3)), (1,))

    return matrix, vector, scalar


FLOAT32, FLOAT64 = _reals(_floats), _reals(_doubles)
