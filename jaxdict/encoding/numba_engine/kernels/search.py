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
def _bent(model, change):
    """The model's Hessian times a change of atoms and offset (its last row), both over their scales."""
    n_atoms, d = model.units.shape
    signed = len(model.atoms) > n_atoms  # plain atoms are (A, -A)
    turn, shift = np.empty(model.atoms.shape), np.empty(d)
    for k in range(n_atoms):
        for p in range(d):
            turn[k, p] = model.root[p] * model.scales[k] * change[k, p]
            if signed:
                turn[n_atoms + k, p] = -turn[k, p]
    for p in range(d):
        shift[p] = model.root[p] * model.scale * change[n_atoms, p]
    cross, image = bend(*model[:7], turn, shift)
    bent = np.empty(change.shape)
    for k in range(n_atoms):
        unit, scale, along = model.units[k], model.scales[k], 0.0
        for p in range(d):
            twin = cross[n_atoms + k, p] if signed else 0.0
            bent[k, p] = model.root[p] * (cross[k, p] - twin) + model.rates[k] * scale * change[k, p]
            along += bent[k, p] * unit[p]
        for p in range(d):
            bent[k, p] = scale * (bent[k, p] - along * unit[p])
    for p in range(d):
        bent[n_atoms, p] = model.scale * model.root[p] * image[p]
    return bent


@kernel
def dot(a, b):
    """The inner product of two changes."""
    total = 0.0
    for k in range(len(a)):
        for p in range(a.shape[1]):
            total += a[k, p] * b[k, p]
    return total


@kernel
def _moved(a, length, b):
    """`a + length b`. A loop, as all here: numba takes seconds to compile arithmetic on whole arrays, for the sake of its errors."""
    out = np.empty(a.shape)
    for k in range(len(a)):
        for p in range(a.shape[1]):
            out[k, p] = a[k, p] + length * b[k, p]
    return out


def steihaug(product):
    """`solvers.newton.steihaug` for `product(model, change)`: a kernel of the model, slopes, radius, accuracy and most products.

    It gives the step, minus the model's slope there, whether it ends on the edge, and products taken.
    """

    @kernel
    def search(model, slopes, radius, accuracy, most):
        step = np.zeros(slopes.shape)
        direction = _moved(step, -1.0, slopes)
        left = direction
        square, count, out = dot(left, left), 0, False
        goal = accuracy**2 * square
        while square > goal and count < most and not out:
            image = product(model, direction)
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
    """The step within the radius, what the model promises of it, whether it ends on the edge, products taken.

    Slopes and step are of the atoms, and of the offset in the last row.
    """
    starts, packed = support_factors(atoms, indices, values)
    model = Model(targets, atoms, weights, indices, values, starts, packed, units, root, scales, scale, rates)
    step, left, edge, count = _search(model, slopes, radius, accuracy, most)
    promise = 0.5 * (dot(step, left) - dot(step, slopes))
    for p in range(step.shape[1]):
        for k in range(len(scales)):
            step[k, p] *= scales[k]
        step[len(scales), p] *= scale
    return step, promise, edge, count
