"""Exact codes of all samples: blocks of them, by the atoms' Gram matrix where atoms are few, else by passes over all atoms."""

import numpy as np

from jaxdict.encoding.numba_engine.kernels.gram import gram_rows
from jaxdict.encoding.numba_engine.kernels.steps import careful, kernel
from jaxdict.encoding.numba_engine.kernels.threads import in_turns
from jaxdict.encoding.numba_engine.kernels.wide import cut_rows, residual, round_of

# Entries of the largest array of a block of samples: (block, atoms).
GRAM_BLOCK, WIDE_BLOCK = 2**21, 2**24
# Products up to this size stay on the calling thread in OpenBLAS; its own threads spin for a while after larger ones.
SERIAL_PRODUCT = 2**18


@kernel
def _product_pieces(lo, hi, left, right, out, size):
    for at in range(lo * size, min(hi * size, left.shape[0]), size):
        to = min(left.shape[0], at + size)
        np.dot(left[at:to], right.T, out[at:to])


_WHOLE = np.zeros((1, 1))
_products = in_turns("product_float64", _product_pieces, _WHOLE, _WHOLE, _WHOLE, 1)


@kernel
def product(left, right, out):
    """`out = left right^T` in float64: small problems in pieces on our threads, large ones on BLAS's.

    BLAS rounds the last rows of a piece in another order, so pieces are of one size whatever the threads: the same data, the same product.
    """
    (n, d), k = left.shape, right.shape[0]
    rows = SERIAL_PRODUCT // max(1, d * k)
    if rows < 8:
        np.dot(left, right.T, out)
    else:
        _products((n + rows - 1) // rows, rows * k, (left, right, out, rows))


@careful
def _sum_of_squares(rows, squares):
    """The squared norm of each row, in float64; all of them together."""
    total = 0.0
    for i in range(rows.shape[0]):
        square = 0.0
        for p in range(rows.shape[1]):
            square += np.float64(rows[i, p]) * np.float64(rows[i, p])
        squares[i] = square
        total += square
    return total


@careful
def _finite(number):
    return abs(number) < np.inf


@careful
def _good_rows(out):
    """Which rows of a block can be solved, in order."""
    todo, n = np.empty(len(out), np.int64), 0
    for row in range(len(out)):
        if out[row, 0] == out[row, 0]:
            todo[n] = row
            n += 1
    return todo[:n]


@kernel
def _left(todo, out):
    """The rows that were given too little room."""
    n = 0
    for row in todo:
        if out[row, 3] < 0:
            todo[n] = row
            n += 1
    return todo[:n]


@kernel
def _short(turn, todo, out):
    """`_left`, of places in `todo`."""
    n = 0
    for at in turn:
        if out[todo[at], 3] < 0:
            turn[n] = at
            n += 1
    return turn[:n]


@kernel
def _open(todo, done, R):
    """The rows that are not done; their residuals move to the front."""
    n = 0
    for at, row in enumerate(todo):
        if not done[row]:
            todo[n] = row
            for p in range(R.shape[1]):
                R[n, p] = R[at, p]
            n += 1
    return todo[:n]


@kernel
def _begin(first, k, room):
    """Codes to start from, moved together: atoms `used` by a row, their codes, how many there are."""
    (n, slots), width = first[0].shape, max(room, first[0].shape[1])
    used, z, count = np.full((n, width), k), np.zeros((n, width)), np.zeros(n, np.int64)
    for row in range(n):
        for slot in range(slots):
            if first[1][row, slot] > 0:
                used[row, count[row]], z[row, count[row]] = first[0][row, slot], first[1][row, slot]
                count[row] += 1
    return used, z, count


@kernel
def _wider(array, width, filling):
    out = np.full((array.shape[0], width), filling, array.dtype)
    for row in range(array.shape[0]):
        for at in range(array.shape[1]):
            out[row, at] = array[row, at]
    return out


@kernel
def _first_residuals(targets, atoms, todo, used, z, count):
    R, r = np.empty((len(todo), targets.shape[1]), targets.dtype), np.empty(targets.shape[1])
    for at, row in enumerate(todo):
        residual(targets[row], atoms, used[row], z[row], count[row], r)
        for p in range(r.shape[0]):
            R[at, p] = r[p]
    return R


@kernel
def _write_wide(targets, atoms, lam, used, z, count, results):
    """The codes of a block: dense where asked for, and the largest in their slots."""
    indices, values, Z, out = results
    if not Z.shape[0]:
        cut_rows(targets, atoms, lam, indices.shape[1], used, z, count, out)
    for row in range(len(count)):
        if Z.shape[0]:
            for i in range(count[row]):
                Z[row, used[row, i]] = z[row, i]
        for slot in range(min(count[row], indices.shape[1])):
            indices[row, slot], values[row, slot] = used[row, slot], z[row, slot]


def _block_by_gram(real):
    gram_rows_of = gram_rows(real)

    @kernel
    def solve_block(targets, atoms, gram, squares, todo, limits, room, first, results):
        k, rows = len(gram), targets.astype(np.float64)
        Q = np.empty((len(rows), k))
        product(rows, atoms, Q)
        room = min(k, room)
        while len(todo):
            gram_rows_of(len(todo), k, (todo, gram, Q, squares, limits, room, first, results))
            todo, room = _left(todo, results[-1]), min(k, 2 * room)

    return solve_block


def _block_by_passes(real):
    one_round = round_of(real)

    @kernel
    def solve_block(targets, atoms, margin, todo, limits, room, first, results):
        """Rounds over a block: correlations of the residuals of the rows that are left, in one product, then their few atoms."""
        n, k, out = targets.shape[0], atoms.shape[0], results[-1]
        used, z, count = _begin(first, k, min(k, room))
        idle, done = np.zeros(n, np.int64), np.zeros(n, np.bool_)
        R, C = _first_residuals(targets, atoms, todo, used, z, count), np.empty((len(todo), k), atoms.dtype)
        while len(todo):
            left = len(todo)
            np.dot(R[:left], atoms.T, C[:left])
            turn = np.arange(left)
            while len(turn):
                state = (used, z, count, idle, done)
                one_round(len(turn), k, (turn, todo, targets, atoms, C, R, limits, margin, state, out))
                turn = _short(turn, todo, out)
                if len(turn):
                    width = min(k, 2 * used.shape[1])
                    used, z = _wider(used, width, k), _wider(z, width, 0.0)
            todo = _open(todo, done, R)
        _write_wide(targets, atoms, limits.lam, used, z, count, results)

    return solve_block


@careful
def _begin_rows(targets, atoms, limits, indices, values, Z):
    """Codes of zero; squared norms of rows, the largest of atoms, and by row the figures of `solve_rows`: NaN where it cannot be solved."""
    indices.fill(0)
    values.fill(0)
    Z.fill(0)
    out, squares, norms = np.zeros((len(targets), 5)), np.empty(len(targets)), np.empty(len(atoms))
    _sum_of_squares(targets, squares)
    fine = _finite(_sum_of_squares(atoms, norms)) and limits.lam > 0 and _finite(limits.lam)
    for row in range(len(squares)):
        if not (fine and _finite(squares[row])):
            out[row, 0] = out[row, 1] = out[row, 4] = np.nan
    largest = 0.0
    for k in range(len(norms)):
        largest = max(largest, norms[k])
    return squares, largest, out


def by_gram(real):
    """`solve_rows` for few atoms, all in float64.

    `solve_rows(targets, atoms, limits, room, first, indices, values, Z)`: exact codes of each row of targets, from the slots `first`:
    in the slots `indices` and `values`, and in `Z` where it has rows. Returns gap, objective, looks at all atoms, atoms in use and
    T1's defect as columns; a row that is not finite has the gap NaN and codes of zero.
    """
    solve_block = _block_by_gram(real)

    @careful
    def solve_rows(targets, atoms, limits, room, first, indices, values, Z):
        squares, _, out = _begin_rows(targets, atoms, limits, indices, values, Z)
        n, k, atoms64 = len(targets), len(atoms), atoms.astype(np.float64)
        gram, block = np.empty((k, k)), max(1, GRAM_BLOCK // max(k, 1))
        product(atoms64, atoms64, gram)
        for lo in range(0, n, block):
            hi = min(n, lo + block)
            todo, starts = _good_rows(out[lo:hi]), (first[0][lo:hi], first[1][lo:hi])
            results = (indices[lo:hi], values[lo:hi], Z[lo : hi if Z.shape[0] else lo], out[lo:hi])
            solve_block(targets[lo:hi], atoms64, gram, squares[lo:hi], todo, limits, room, starts, results)
        return out

    return solve_rows


def by_passes(real):
    """`solve_rows`, as of `by_gram`, for many atoms."""
    solve_block = _block_by_passes(real)

    @careful
    def solve_rows(targets, atoms, limits, room, first, indices, values, Z):
        _, largest, out = _begin_rows(targets, atoms, limits, indices, values, Z)
        (n, d), block = targets.shape, max(1, WIDE_BLOCK // max(len(atoms), 1))
        # Rounding of a correlation taken in the data's dtype, for a residual of norm one.
        margin = (8 + 0.5 * np.sqrt(d)) * np.float64(np.finfo(atoms.dtype).eps) * np.sqrt(largest)
        for lo in range(0, n, block):
            hi = min(n, lo + block)
            todo, starts = _good_rows(out[lo:hi]), (first[0][lo:hi], first[1][lo:hi])
            results = (indices[lo:hi], values[lo:hi], Z[lo : hi if Z.shape[0] else lo], out[lo:hi])
            solve_block(targets[lo:hi], atoms, margin, todo, limits, room, starts, results)
        return out

    return solve_rows
