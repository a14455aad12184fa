"""The highest point of `kappa(R d)` over the unit sphere by branch and bound, in numpy's float64 (T15)."""

import itertools
from typing import NamedTuple

import numpy as np

# Cells of the sphere that are looked at before the search stops with the bound that it has.
MAX_CELLS = 100_000
# Cells have a corner a dimension and 2^dimensions faces: beyond this no budget closes anything.
MOST_DIMENSIONS = 6
# Singular values below this share of the largest are no dimension; what they add is put on the bound.
NEGLIGIBLE = 1e-12
# What rounding may have taken from a bound, relative.
ROUNDING = 1e-10


class Highest(NamedTuple):
    """The highest direction found and a bound that none exceeds."""

    value: float
    upper: float
    direction: np.ndarray
    starts: int
    cells: int


def heights(y, tau):
    """`kappa` of each column of y from below by Newton's steps, and from above: `k + (||(y - k)_+|| - k tau)_+ / (1 + tau)`."""
    k = np.zeros(y.shape[1])
    for _ in range(60):
        above = np.maximum(y - k, 0)
        size = np.sqrt(np.sum(above * above, axis=0))
        excess = np.maximum(size - k * tau, 0)
        step = excess / (np.sum(above, axis=0) / np.where(size > 0, size, 1) + np.where(size > 0, tau, 1))
        if not np.any(step > 1e-15 * k):
            break
        k = k + step
    # ||(y - k)_+|| falls at least as fast as k rises as long as it is positive.
    return k, k + excess / (1 + tau)


def climbed(R, tau, starts, steps=100):
    """Local maximisers of `kappa(R d)` from unit starts (M, d): the linear function that is active at d is maximised in turn."""
    d = starts
    for _ in range(steps):
        y = R @ d.T
        above = np.maximum(y - heights(y, tau)[0], 0)
        new = above.T @ R
        norms = np.linalg.norm(new, axis=1, keepdims=True)
        new = np.where(norms > 0, new / np.where(norms > 0, norms, 1), d)
        if np.max(np.abs(new - d)) < 1e-10:
            break
        d = new
    return d, heights(R @ d.T, tau)[0]


def highest(R, tau, *, tol, level=0.0, max_cells=MAX_CELLS, starts=None) -> Highest:
    """`max_{||d|| = 1} kappa(R d)` from below and above; `starts` (M, d) are looked at beside rows and singular vectors."""
    left, sizes, right = np.linalg.svd(R, full_matrices=False)
    unit = sizes[0]
    if unit == 0:
        return Highest(0.0, 0.0, np.eye(R.shape[1])[0], 0, 0)
    rank = int(np.sum(sizes > NEGLIGIBLE * unit))
    rotation, beyond = right[:rank], np.sum(sizes[rank:]) / unit / (1 + tau)
    S = left[:, :rank] * (sizes[:rank] / unit)
    tried = _starts(S, None if starts is None else starts @ rotation.T)
    points, found = climbed(S, tau, tried)
    best = int(np.argmax(found))
    value, point = float(found[best]), points[best]
    rows = np.linalg.norm(S, axis=1)[:, None]
    upper, cells = min(float(heights(rows, tau)[1][0]), 1 / (1 + tau)), 0
    if rank <= MOST_DIMENSIONS and 2**rank <= max_cells:
        value, point, closed, cells = _branch(S, tau, value, point, tol, level / unit, max_cells)
        upper = min(upper, closed)
    upper = max((upper + beyond) * (1 + ROUNDING), value)
    return Highest(value * unit, upper * unit, point @ rotation, len(tried), cells)


def _starts(S, given):
    """The longest rows, the leading singular vectors both ways, and the directions given."""
    rows = S[np.argsort(-np.linalg.norm(S, axis=1))[:64]]
    axes = np.eye(S.shape[1])[:16]
    tried = np.concatenate([rows, axes, -axes, *([] if given is None else [given])])
    norms = np.linalg.norm(tried, axis=1)
    return tried[norms > 0] / norms[norms > 0, None]


def _branch(S, tau, value, point, tol, level, max_cells):
    """Cells of the sphere, halved until none may hold more than `max(level, (1 + tol) value)`: value, point, upper, cells."""
    dimensions = S.shape[1]
    signs = np.array(list(itertools.product((1.0, -1.0), repeat=dimensions)))
    corners = signs[:, :, None] * np.eye(dimensions)  # the orthants: (cells, corners, dimensions)
    at = heights(S @ corners.reshape(-1, dimensions).T, tau)[1].reshape(len(corners), dimensions)
    done, cells = 0.0, len(corners)
    while True:
        cell, corner = np.unravel_index(np.argmax(at), at.shape)
        if at[cell, corner] > value:  # a corner above all local searches: search on from there
            higher, heights_there = climbed(S, tau, corners[cell, corner][None])
            value, point = float(heights_there[0]), higher[0]
        tops = _tops(corners, at)
        open_cells = tops > max(level, (1 + tol) * value)
        done = max(done, np.max(tops[~open_cells], initial=0.0))
        n_open = int(np.sum(open_cells))
        if n_open == 0 or cells + 2 * n_open > max_cells:
            return value, point, max(done, np.max(tops[open_cells], initial=0.0)), cells
        corners, at = _halved(S, tau, corners[open_cells], at[open_cells])
        cells += 2 * n_open


def _tops(corners, at):
    """The highest point of each cell's linear function: over faces, `sqrt(<h, G^-1 h>)` where it lies within the face, G = V V^T."""
    tops = np.max(at, axis=1)
    gram = corners @ np.swapaxes(corners, 1, 2)
    for size in range(2, corners.shape[1] + 1):
        for face in itertools.combinations(range(corners.shape[1]), size):
            h = at[:, face]
            shares = np.linalg.solve(gram[:, face][:, :, face], h[:, :, None])[:, :, 0]
            # A point a little beyond the face only makes the bound looser.
            within = np.all(shares >= -1e-9 * np.max(np.abs(shares), axis=1, keepdims=True), axis=1)
            squared = np.sum(h * shares, axis=1)
            tops = np.where(within, np.maximum(tops, np.sqrt(np.maximum(squared, 0))), tops)
    return tops


def _halved(S, tau, corners, at):
    """Both halves of each cell, cut at the middle of its longest edge."""
    n_cells, dimensions = at.shape
    gram = corners @ np.swapaxes(corners, 1, 2) + 2 * np.eye(dimensions)
    first, second = np.unravel_index(np.argmin(gram.reshape(n_cells, -1), axis=1), (dimensions, dimensions))
    cell = np.arange(n_cells)
    middle = corners[cell, first] + corners[cell, second]
    middle /= np.linalg.norm(middle, axis=1, keepdims=True)
    height = heights(S @ middle.T, tau)[1]
    halves = []
    for end in (first, second):
        half, half_at = corners.copy(), at.copy()
        half[cell, end], half_at[cell, end] = middle, height
        halves.append((half, half_at))
    return tuple(np.concatenate(pair) for pair in zip(*halves, strict=True))
