"""Parts of the size-penalised problem (T15) once more, in plain numpy and sharing nothing with the package."""

import numpy as np


def value(X, atoms, codes, lam, tau):
    left = X - codes @ atoms
    return 0.5 * np.sum(left**2) + lam * (np.sum(codes) + tau * np.sum(np.linalg.norm(codes, axis=0)))


def heights(y, tau):
    """The root k of `||(y - k)_+|| = k tau` of each column, by bisection."""
    low, high = np.zeros(y.shape[1]), np.maximum(np.max(y, axis=0), 0)
    for _ in range(60):
        middle = (low + high) / 2
        beyond = np.linalg.norm(np.maximum(y - middle, 0), axis=0) > middle * tau
        low, high = np.where(beyond, middle, low), np.where(beyond, high, middle)
    return high


def sphere(d, n_points=4000):
    """Points on the unit sphere of one, two or three dimensions, and about how far neighbours are apart."""
    if d == 1:
        return np.array([[1.0], [-1.0]]), 0.0
    if d == 2:
        angles = np.linspace(0, 2 * np.pi, n_points, endpoint=False)
        return np.stack([np.cos(angles), np.sin(angles)], axis=1), 2 * np.pi / n_points
    n = np.arange(n_points) + 0.5
    height, turn = 1 - 2 * n / n_points, np.pi * (1 + np.sqrt(5)) * n
    flat = np.sqrt(1 - height**2)
    return np.stack([flat * np.cos(turn), flat * np.sin(turn), height], axis=1), np.sqrt(4 * np.pi / n_points)


def around(atom, radius):
    """The atom, and unit vectors on rings about it, out to the radius."""
    if len(atom) == 1:
        return atom[None]
    across = np.linalg.svd(atom[None])[2][1:]
    turns = np.array([0, np.pi]) if len(atom) == 2 else np.arange(8) * np.pi / 4
    ways = np.cos(turns)[:, None] * across[0] + (np.sin(turns)[:, None] * across[1] if len(atom) == 3 else 0)
    rings = np.concatenate([atom[None], *(atom + share * radius * ways for share in (0.33, 0.66, 1.0))])
    return rings / np.linalg.norm(rings, axis=1)[:, None]
