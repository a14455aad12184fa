"""Best supports of a given size: the atom with the largest correlation joins until there are enough, then exchanges of one for one.

A sample works on rows of the Gram matrix, those of the atoms that it uses, so that one move costs no product with all atoms. With
the support's inverse Gram matrix H, W = H B (B: those rows) and q2 the squared norms of what of all atoms lies outside their span,

    exchange i for j:   (c_j + z_i W_ij / H_ii)^2 / (2 (q2_j + W_ij^2 / H_ii)) - z_i^2 / (2 H_ii)

is how much the error falls with signs free, and at most so much with values that must stay non-negative. All in float64.
"""

from typing import NamedTuple

import numpy as np

from jaxdict.encoding.numba_engine.kernels.refits import Small, small_space, solve_small
from jaxdict.encoding.numba_engine.kernels.steps import ROUNDING, append, kernel

# A part of an atom outside the span of others that is smaller than this share of its square is rounding.
OUTSIDE = 1e-10
# Additions that a sample may take, as multiples of its size: with values that may become zero, atoms come and go.
ADDITIONS = 8
# Of a sample: atoms in use, how many of them have their rows, whether it has begun, exchanges made, whether these were cut short,
# additions made, atoms allowed.
COUNT, LOADED, BEGUN, MADE, OPEN, ADDED, MOST = range(7)


class Rules(NamedTuple):
    """An exchange counts if it gains this share of a sample's energy; at most so many; whether signs are free; the data's rounding."""

    tol: float
    exchanges: int
    free: int
    eps: float


RULES = Rules(0.0, 1, 0, 0.0)


class Room(NamedTuple):
    """Room for one sample's search, used again for the next."""

    small: Small
    c: np.ndarray  # correlations of all atoms
    outside: np.ndarray
    inverse: np.ndarray
    turned: np.ndarray  # W
    gains: np.ndarray
    tops: np.ndarray  # the largest gain for each atom out
    place: np.ndarray


@kernel
def room_for(slots, k):
    """`Room` for so many slots and atoms."""
    return Room(
        small_space(slots + 1), np.empty(k), np.empty(k), np.empty((slots, slots)), np.empty((slots, k)),
        np.empty((slots, k)), np.empty(slots), np.empty(slots + 1, np.int64),
    )  # fmt: skip


@kernel
def _look(q, B, z, n, c):
    """Correlations `c = q - z B` of all atoms with the residual."""
    for j in range(c.shape[0]):
        c[j] = q[j]
    for i in range(n):
        row, value = B[i], z[i]
        for j in range(c.shape[0]):
            c[j] -= value * row[j]


@kernel
def _try(q, norms, used, z, n, B, room, out, new, noise, free):
    """Best values without the atom at position `out` (-1: with all) and with atom `new` (-1: none): how much the error falls.

    They are `small.z`, of the positions `place` and then of the new atom.
    """
    s, w, before = room.small, np.int64(0), 0.0
    for a in range(n):
        before += z[a] * (q[used[a]] + room.c[used[a]])
        if a != out:
            room.place[w], s.z[w], s.c[w] = a, z[a], room.c[used[a]]
            if out >= 0:
                s.c[w] += z[out] * B[out, used[a]]
            w += 1
    for a in range(w):
        row = B[room.place[a]]
        for b in range(a + 1):
            s.gram[a, b] = s.gram[b, a] = row[used[room.place[b]]]
        if new >= 0:
            s.gram[w, a] = s.gram[a, w] = row[new]
    kept = w
    if new >= 0:
        s.gram[w, w], s.z[w], s.c[w] = norms[new], 0.0, room.c[new]
        if out >= 0:
            s.c[w] += z[out] * B[out, new]
        w += 1
    solve_small(s, kept, w, noise, free)
    after = 0.0
    for a in range(kept):
        after += s.z[a] * (q[used[room.place[a]]] + s.c[a])
    if new >= 0:
        after += s.z[kept] * (q[new] + s.c[kept])
    return 0.5 * (after - before)


@kernel
def _take(used, z, n, B, room, out, new):
    """Make the change that was tried last; how many atoms are in use, and the position whose row of the Gram matrix is wanted."""
    s, kept, at = room.small, n if out < 0 else n - 1, out if out >= 0 else n
    for a in range(kept):
        z[room.place[a]] = s.z[a]
    if new >= 0:
        used[at], z[at], n = new, s.z[kept], max(n, at + 1)
    a = 0
    while a < n:
        if z[a] != 0:
            a += 1
            continue
        n -= 1
        if a != n:  # the last one moves here
            used[a], z[a] = used[n], z[n]
            if at == n:
                at = a
            else:
                for j in range(B.shape[1]):
                    B[a, j] = B[n, j]
    return n, at


@kernel
def _strongest(norms, used, n, c, noise, free):
    """The atom outside with the largest correlation for its norm, or -1 where none is above rounding."""
    best, found = 0.0, np.int64(-1)
    for i in range(n):
        c[used[i]] = 0.0  # at the best values it is
    for j in range(c.shape[0]):
        height = abs(c[j]) if free else c[j]
        if height > noise and height * height > best * norms[j]:
            best, found = height * height / norms[j], j
    return found


@kernel
def _invert(used, n, B, room):
    """H, the inverse of the Gram matrix of the atoms in use, by its factor."""
    s = room.small
    for i in range(n):
        for j in range(i + 1):
            s.gram[i, j] = s.gram[j, i] = B[i, used[j]]
    for i in range(n):
        append(s.gram, s.factor, s.order, i, i)
    for k in range(n):  # L^T h = L^-1 e_k; the factor's diagonal is stored inverted
        for i in range(n):
            value = 1.0 if i == k else 0.0
            for j in range(k, i):
                value -= s.factor[i, j] * s.step[j]
            s.step[i] = value * s.factor[i, i] if i >= k else 0.0
        for i in range(n - 1, -1, -1):
            value = s.step[i]
            for j in range(i + 1, n):
                value -= s.factor[j, i] * room.inverse[j, k]
            room.inverse[i, k] = value * s.factor[i, i]


@kernel
def _score(norms, used, z, n, B, room, free):
    """All exchanges' `gains`, at least as large as they are, and the largest for each atom out, `tops`."""
    W, outside, c, k = room.turned, room.outside, room.c, room.c.shape[0]
    _invert(used, n, B, room)
    for j in range(k):
        outside[j] = norms[j]
    for i in range(n):
        into = W[i]
        for j in range(k):
            into[j] = 0.0
        for m in range(n):
            h, row = room.inverse[i, m], B[m]
            for j in range(k):
                into[j] += h * row[j]
        row = B[i]
        for j in range(k):
            outside[j] -= into[j] * row[j]
    for i in range(n):
        h, into, gains = room.inverse[i, i], W[i], room.gains[i]
        loss = 0.5 * z[i] * z[i] / h
        for j in range(k):
            pull = c[j] + z[i] * into[j] / h
            part = outside[j] + into[j] * into[j] / h
            good = part > OUTSIDE * norms[j] and (free or pull > 0)
            gains[j] = (0.5 * pull * pull / part if good else 0.0) - loss
        for m in range(n):
            gains[used[m]] = -loss
        room.tops[i] = np.max(gains)


@kernel
def _best_exchange(q, norms, used, z, n, B, room, bar, noise, free):
    """The exchange that lowers the error most, by more than `bar`: (position out, atom in), the values tried last; else (-1, -1).

    Exchanges are tried in the order of their bounds, until no bound is left above the best fall that was found.
    """
    _score(norms, used, z, n, B, room, free)
    best, out, new, last = bar, np.int64(-1), np.int64(-1), False
    while True:
        i = np.argmax(room.tops[:n])
        if room.tops[i] <= best:
            break
        j = np.argmax(room.gains[i])
        fall = _try(q, norms, used, z, n, B, room, i, j, noise, free)
        room.gains[i, j] = -1.0
        room.tops[i] = np.max(room.gains[i])
        last = fall > best
        if last:
            best, out, new = fall, i, j
    if out >= 0 and not last:
        _try(q, norms, used, z, n, B, room, out, new, noise, free)
    return out, new


@kernel
def advance(q, square, norms, used, z, info, B, room, rules):
    """One move of a sample; the position whose row of the Gram matrix is wanted next, or -1 where it is done.

    `q` are the correlations of the sample with all atoms, `B[i]` the Gram matrix's row of its atom at position i.
    """
    if info[LOADED] < info[COUNT]:  # atoms to start from
        info[LOADED] += 1
        return info[LOADED] - 1
    n, free = info[COUNT], rules.free
    noise = ROUNDING * np.sqrt(square * np.max(norms))
    _look(q, B, z, n, room.c)
    if not info[BEGUN]:
        info[BEGUN] = 1
        if n:
            _try(q, norms, used, z, n, B, room, -1, -1, noise, free)
            n, _ = _take(used, z, n, B, room, -1, -1)
            _look(q, B, z, n, room.c)
    at = np.int64(-1)
    if n < info[MOST]:
        new = _strongest(norms, used, n, room.c, noise, free)
        more = new >= 0 and info[ADDED] < ADDITIONS * info[MOST]
        if more and _try(q, norms, used, z, n, B, room, -1, new, noise, free) > 0:
            info[ADDED] += 1
            n, at = _take(used, z, n, B, room, -1, new)
    elif n and info[MADE] < rules.exchanges:
        bar = max(rules.tol, rules.eps) * 0.5 * square
        out, new = _best_exchange(q, norms, used, z, n, B, room, bar, noise, free)
        if out >= 0:
            info[MADE] += 1
            n, at = _take(used, z, n, B, room, out, new)
    elif n:
        info[OPEN] = 1
    info[COUNT] = info[LOADED] = n
    return at
