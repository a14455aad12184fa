"""Best supports of all samples: by the Gram matrix where atoms are few, else by products that give the rows of it that are wanted."""

import numpy as np

from jaxdict.encoding.numba_engine.kernels.codes import product
from jaxdict.encoding.numba_engine.kernels.exchanges import COUNT, MADE, MOST, OPEN, RULES, advance, room_for
from jaxdict.encoding.numba_engine.kernels.refits import finite_rows
from jaxdict.encoding.numba_engine.kernels.steps import careful, kernel
from jaxdict.encoding.numba_engine.kernels.threads import in_turns

# Entries of the largest array of a block of samples: correlations (block, atoms), and rows of the Gram matrix (block, slots, atoms).
GRAM_BLOCK, WIDE_BLOCK = 2**21, 2**25
# Entries of a sample's state.
STATE = 7


@kernel
def _gram_rows(lo, hi, todo, gram, Q, squares, norms, rules, used, z, info):
    """Moves of samples `todo[lo:hi]` until each is done."""
    slots, k = used.shape[1], gram.shape[0]
    B, room = np.empty((slots, k)), room_for(slots, k)
    for t in range(lo, hi):
        row = todo[t]
        while True:
            at = advance(Q[row], squares[row], norms, used[row], z[row], info[row], B, room, rules)
            if at < 0:
                break
            B[at] = gram[used[row, at]]


@kernel
def _round_rows(lo, hi, todo, C, Q, squares, norms, rules, used, z, info, B, wanted):
    """One move of samples `todo[lo:hi]`, whose wanted rows of the Gram matrix are `C`; `wanted` says which ones are next."""
    room = room_for(used.shape[1], Q.shape[1])
    for t in range(lo, hi):
        row = todo[t]
        if wanted[row] >= 0:
            B[row, wanted[row]] = C[t]
        wanted[row] = advance(Q[row], squares[row], norms, used[row], z[row], info[row], B[row], room, rules)


_SOME, _WHOLE, _NUMBERS, _STACK = np.zeros(1, np.int64), np.zeros((1, 1)), np.zeros(1), np.zeros((1, 1, 1))
_STATE = (np.zeros((1, 1), np.int64), _WHOLE, np.zeros((1, 1), np.int64))
_by_gram = in_turns("subset_gram_rows", _gram_rows, _SOME, _WHOLE, _WHOLE, _NUMBERS, _NUMBERS, RULES, *_STATE)
_by_round = in_turns(
    "subset_round", _round_rows, _SOME, _WHOLE, _WHOLE, _NUMBERS, _NUMBERS, RULES, *_STATE, _STACK, _SOME
)


@kernel
def solve_by_gram(targets, atoms, good, squares, norms, rules, used, z, info):
    """Best supports of all good rows, from the Gram matrix of all atoms."""
    k = len(atoms)
    gram, block = np.empty((k, k)), max(1, GRAM_BLOCK // k)
    product(atoms, atoms, gram)
    for lo in range(0, len(targets), block):
        hi = min(len(targets), lo + block)
        todo, Q = np.nonzero(good[lo:hi])[0], np.empty((hi - lo, k))
        product(targets[lo:hi], atoms, Q)
        state = (used[lo:hi], z[lo:hi], info[lo:hi])
        work = k * used.shape[1]
        _by_gram(len(todo), work, (todo, gram, Q, squares[lo:hi], norms, rules, state[0], state[1], state[2]))


@kernel
def solve_by_passes(targets, atoms, good, squares, norms, rules, used, z, info):
    """Best supports of all good rows: in each round one product gives the rows of the Gram matrix that the samples' moves want."""
    k, (n, slots) = len(atoms), used.shape
    block = max(1, min(n, WIDE_BLOCK // (slots * k)))
    B, C, news = np.empty((block, slots, k)), np.empty((block, k)), np.empty((block, atoms.shape[1]))
    for lo in range(0, n, block):
        hi = min(n, lo + block)
        todo, Q, wanted = np.nonzero(good[lo:hi])[0], np.empty((hi - lo, k)), np.full(hi - lo, -1)
        np.dot(targets[lo:hi], atoms.T, Q)
        here = (used[lo:hi], z[lo:hi], info[lo:hi])
        while len(todo):
            given = (todo, C, Q, squares[lo:hi], norms, rules, here[0], here[1], here[2], B, wanted)
            _by_round(len(todo), k * slots, given)
            left = 0
            for row in todo:
                if wanted[row] >= 0:
                    todo[left], news[left] = row, atoms[here[0][row, wanted[row]]]
                    left += 1
            todo = todo[:left]
            np.dot(news[:left], atoms.T, C[:left])


def subset(solve):
    """A kernel: best supports of each row from slots to start at, with so many atoms at most; exchanges made, and whether cut short.

    `rules` as of `exchanges`. A row that is not finite has values NaN.
    """

    @careful
    def found(targets, atoms, most, start, rules, indices, values, made, cut):
        n, slots = indices.shape
        used, z, info = np.zeros((n, slots), np.int64), np.zeros((n, slots)), np.zeros((n, STATE), np.int64)
        good, squares, norms = finite_rows(targets, atoms)
        for row in range(n):
            info[row, MOST] = min(max(most[row], 0), slots)
            count = 0
            for slot in range(start[0].shape[1]):
                if start[1][row, slot] != 0 and count < info[row, MOST]:
                    used[row, count], z[row, count] = start[0][row, slot], start[1][row, slot]
                    count += 1
            info[row, COUNT] = count
        solve(targets.astype(np.float64), atoms.astype(np.float64), good, squares, norms, rules, used, z, info)
        for row in range(n):
            made[row], cut[row] = info[row, MADE], info[row, OPEN]
            for slot in range(slots):
                there = slot < info[row, COUNT]
                indices[row, slot] = used[row, slot] if there else 0
                values[row, slot] = z[row, slot] if there else 0.0
                if not good[row]:
                    values[row, slot] = np.nan

    return found
