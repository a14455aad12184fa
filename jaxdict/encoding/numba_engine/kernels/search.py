"""The trust region's search of truncated Newton: conjugate gradients, supports factored once, in one call.

`solvers/newton.py` has the same search for accelerators.
"""

from typing import NamedTuple

import numpy as np

from jaxdict.encoding.numba_engine.kernels.steps import kernel
from jaxdict.encoding.numba_engine.kernels.supports import bend, support_factors


class Model(NamedTuple):
    """What a product with the Hessian takes: samples, their codes and factored supports, and the space of the variables."""

    targets: np.ndarray
    atoms: np.ndarray
    weights: np.ndarray
    indices: np.ndarray
    values: np.ndarray
    starts: np.ndarray
    packed: np.ndarray
    units: np.ndarray
    root: np.ndarray
    scales: np.ndarray
    scale: float
    rates: np.ndarray


@kernel
def _bent(model, atoms, offset):
    """The model's Hessian times a change of (atoms, offset), both over their scales."""
    n_atoms = model.units.shape[0]
    signed = model.atoms.shape[0] > n_atoms  # plain atoms are (A, -A)
    scales, rates = model.scales.reshape(n_atoms, 1), model.rates.reshape(n_atoms, 1)
    step = scales * atoms
    turn = np.empty(model.atoms.shape)
    for k in range(len(turn)):
        for p in range(len(model.root)):
            turn[k, p] = model.root[p] * (step[k, p] if k < n_atoms else -step[k - n_atoms, p])
    cross, image = bend(*model[:7], turn, model.root * (model.scale * offset))
    bent = cross[:n_atoms] - cross[n_atoms:] if signed else cross
    bent = model.root * bent + rates * step
    for k in range(n_atoms):
        along = np.sum(bent[k] * model.units[k])
        for p in range(len(model.root)):
            bent[k, p] -= along * model.units[k, p]
    return scales * bent, model.scale * model.root * image


@kernel
def dot(a, b):
    """The inner product of two changes of (atoms, offset)."""
    return np.sum(a[0] * b[0]) + np.sum(a[1] * b[1])


@kernel
def _moved(a, length, b):
    return a[0] + length * b[0], a[1] + length * b[1]


def steihaug(product):
    """`solvers.newton.steihaug` for `product(model, atoms, offset)`: a kernel of the model, slopes, radius, accuracy and most products.

    It gives the step, minus the model's slope there, whether it ends on the edge, and products taken.
    """

    @kernel
    def search(model, slopes, radius, accuracy, most):
        direction = (-slopes[0], -slopes[1])
        left, step = direction, (np.zeros_like(slopes[0]), np.zeros_like(slopes[1]))
        square, count, out = dot(left, left), 0, False
        goal = accuracy**2 * square
        while square > goal and count < most and not out:
            image = product(model, direction[0], direction[1])
            curve, count = dot(direction, image), count + 1
            ss, sd, dd = dot(step, step), dot(step, direction), dot(direction, direction)
            reach = square / curve if curve > 0 else 0.0
            out = curve <= 0 or ss + 2 * reach * sd + reach**2 * dd >= radius**2
            if out:  # the positive root of ||step + t direction|| = radius, without cancellation
                short = max(radius**2 - ss, 0.0)
                reach = short / (sd + np.sqrt(sd**2 + dd * short)) if short > 0 else 0.0
            step, left = _moved(step, reach, direction), _moved(left, -reach, image)
            new = dot(left, left)
            direction, square = _moved(left, new / square, direction), new
        return step, left, out, count

    return search


_search = steihaug(_bent)


@kernel
def search(targets, atoms, weights, indices, values, units, root, scales, scale, rates, slopes, radius, accuracy, most):
    """The step (atoms, offset) within the radius, what the model promises of it, whether it ends on the edge, products taken."""
    starts, packed = support_factors(atoms, indices, values)
    model = Model(targets, atoms, weights, indices, values, starts, packed, units, root, scales, scale, rates)
    step, left, edge, count = _search(model, slopes, radius, accuracy, most)
    promise = 0.5 * (dot(step, left) - dot(step, slopes))
    return scales.reshape(len(scales), 1) * step[0], scale * step[1], promise, edge, count
