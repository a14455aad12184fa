"""Threads for kernels: plain ones of the system, started for a call and joined before it returns, so any number of calls may run at once.

Numba's own parallel layers are not safe for calls from several threads at a time. Where the system has no pthreads (Windows) all runs
on the caller's.
"""

import ctypes
import os

import llvmlite.binding as llvm
import numba
import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils, config
from numba.core.errors import TypingError
from numba.core.imputils import impl_ret_borrowed
from numba.extending import intrinsic

from jaxdict.encoding.numba_engine.kernels.frame import add_one
from jaxdict.encoding.numba_engine.kernels.steps import kernel

# Below this many entries of (rows, atoms) threads cost more than they bring.
THREADED = 2**15
HAS_THREADS = os.name == "posix" and bool(llvm.address_of_symbol("pthread_create"))
# How many threads kernels use: the cores, or what NUMBA_NUM_THREADS says. Compiled code finds it by its name, also from disk.
count = ctypes.c_int64(getattr(config, "NUMBA_NUM_THREADS", 1) if HAS_THREADS else 1)
llvm.add_symbol("jaxdict_numba_threads", ctypes.addressof(count))
_create = types.ExternalFunction("pthread_create", types.int32(types.intp, types.intp, types.intp, types.intp))
_join = types.ExternalFunction("pthread_join", types.int32(types.intp, types.intp))
WORD = ir.IntType(64)
# What threads run, by name: to be compiled before what calls them.
BODIES = {}


def threads() -> int:
    """How many threads the kernels use."""
    return count.value


@intrinsic
def threads_now(typing_context):
    """`threads()`, read by compiled code at each call."""

    def generate(context, builder, signature, arguments):
        name = "jaxdict_numba_threads"
        known = builder.module.globals.get(name)
        return builder.load(known or cgutils.add_global_variable(builder.module, WORD, name))

    return types.int64(), generate


def _stack_of(form):
    """Arguments of one type as a word that a C function takes: where they lie on the stack of who calls, and back."""

    @intrinsic
    def address_of(typing_context, arguments):
        if arguments != form:
            raise TypingError(f"a thread takes {form}, not {arguments}")

        def generate(context, builder, signature, values):
            return builder.ptrtoint(cgutils.alloca_once_value(builder, values[0]), WORD)

        return types.intp(arguments), generate

    @intrinsic
    def arguments_at(typing_context, address):
        def generate(context, builder, signature, values):
            place = builder.inttoptr(values[0], context.get_value_type(form).as_pointer())
            return impl_ret_borrowed(context, builder, form, builder.load(place))

        return form(types.intp), generate

    return address_of, arguments_at


def _function_named(name):
    """The address of a C function `int64 (int64)`, and a call of it here."""

    @intrinsic
    def address(typing_context):
        def generate(context, builder, signature, values):
            function = cgutils.get_or_insert_function(builder.module, ir.FunctionType(WORD, [WORD]), name)
            return builder.ptrtoint(function, WORD)

        return types.intp(), generate

    @intrinsic
    def call(typing_context, argument):
        def generate(context, builder, signature, values):
            function = cgutils.get_or_insert_function(builder.module, ir.FunctionType(WORD, [WORD]), name)
            return builder.call(function, values)

        return types.intp(types.intp), generate

    return address, call


def shared(name: str, body, example):
    """A kernel `share(arguments, helpers)`: `body(arguments)` here and on so many more threads as the system grants, all ended on return.

    The body is a C function of its own, compiled once under its name, and what it raises ends in it. `example` are arguments of the
    types that it takes.
    """
    address_of, arguments_at = _stack_of(numba.typeof(example))
    address, call = _function_named(f"jaxdict_{name}")

    def run(place):
        body(arguments_at(place))
        return 0

    BODIES[name] = run

    @kernel
    def share(arguments, helpers):
        place = address_of(arguments)
        if not HAS_THREADS:
            call(place)
            return
        names, started = np.empty(helpers, np.int64), 0
        for _ in range(helpers):
            if _create(names.ctypes.data + 8 * started, 0, address(), place) == 0:
                started += 1
        call(place)
        for i in range(started):
            _join(names[i], 0)

    return share


@kernel
def next_of(tickets):
    """Each number from 0 on to one thread only."""
    return add_one(tickets.ctypes.data)


def in_turns(name: str, run, *example):
    """A kernel `(n, k, arguments)`: `run(lo, hi, *arguments)` over ranges of n rows, on threads where n times k is worth them.

    Ranges are small and go in turn to whichever thread is free, since samples differ in difficulty.
    """

    @kernel
    def turns(given):
        tickets, n, chunk, arguments = given
        lo = chunk * next_of(tickets)
        while lo < n:
            run(lo, min(n, lo + chunk), *arguments)
            lo = chunk * next_of(tickets)

    share = shared(name, turns, (np.zeros(1, np.int64), 1, 1, example))

    @kernel
    def over_rows(n, k, arguments):
        helpers = threads_now() - 1 if n * k >= THREADED else 0
        chunk = max(16, n // (16 * (helpers + 1))) if helpers else max(n, 1)
        share((np.zeros(1, np.int64), n, chunk, arguments), helpers)

    return over_rows
