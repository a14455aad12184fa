"""How far a dictionary and its codes are from the optimum of the size-penalised problem (T15)."""

from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxdict.problem import Codes, Dictionary, Problem, dense_codes, offset_of
from jaxdict.validation import check_codes, check_data
from jaxdict.wide.bounds import loose_bound
from jaxdict.wide.cells import MAX_CELLS, Highest, highest
from jaxdict.wide.descents import Task, task_of
from jaxdict.wide.polars import polar_like

CLOSED, NOT_REFUTED, REFUTED = range(3)


class SizeCertificate(NamedTuple):
    """A point's value in the size-penalised problem and what is proved of its distance from the optimum; sums over samples."""

    value: Float[Array, ""]
    lower_bound: Float[Array, ""]  # certified, for every dictionary of every width
    gap: Float[Array, ""]  # value - lower_bound
    polar: Float[Array, ""]  # the residual's largest found: at the optimum lam, or less without atoms
    polar_bound: Float[Array, ""]  # certified: no direction is higher
    direction: Float[Array, " d"]  # where `polar` was found
    starts: int  # local searches for a new atom
    cells: int  # cells of the sphere looked at, none where only local searches were possible
    status: int

    @property
    def refuted(self) -> bool:
        """Whether an atom was found that lowers the value."""
        return self.status == REFUTED

    @property
    def share(self) -> float:
        """The gap as a share of the value."""
        return float(self.gap) / max(float(self.value), float(np.finfo(self.value.dtype).tiny))

    def message(self) -> str:
        """What has been proved, in a sentence."""
        if self.status == CLOSED:
            return f"Optimal: the gap to every dictionary of every width is closed to {self.share:.1e} of the value."
        if self.status == REFUTED:
            return f"Not optimal: a new atom lowers the value, which is within {self.share:.1%} of a certified bound."
        return (
            f"Not refuted: none of {self.starts} starts found a new atom that lowers the value, "
            f"which is within {self.share:.1%} of a certified bound."
        )


def certify_size(
    X: Float[Array, "samples d"],
    lam,
    tau,
    dictionary: Dictionary,
    codes: Codes,
    *,
    offset: bool = False,
    metric=None,
    tol: float = 1e-4,
    max_cells: int = MAX_CELLS,
) -> SizeCertificate:
    """The gap of any dictionary and codes to the optimum of the size-penalised problem over all widths (T15).

        gap = value - max_s ( <X, theta>_m - 1/2 ||theta||_m^2 ),   theta = s R,  0 <= s <= lam / U,  U >= Omega_tau^o(m R)

    U is the polar's certified bound, to within `tol / 2` where the sphere can be searched (`polar`); the loose bound stands in where
    that does not close the gap. R is what is left, less its mean where the offset is free. A local optimum in D and Z with an atom
    to spare, zero or made so by `fewer_atoms`, is global: no way of bringing a zero atom to life lowers the value to first order, and
    that says `Omega_tau^o(m R) <= lam`.

    Status 0, the gap is at most `tol` times the value; 1, no atom was found that lowers the value, and none is excluded; 2, one was
    found: `direction`, with `kappa(m R d)` above `lam (1 + tol / 2)`. `message()` says it. A program for the host, in float64; the
    offset is the dictionary's. Raises ValueError for a `lam` that is not positive, a negative `tau`, codes that are negative.

    >>> import jax.numpy as jnp, jaxdict as jd
    >>> one = jd.Dictionary(jnp.array([[1.0, 0.0]])), jnp.array([[2.4]])
    >>> print(certify_size(jnp.array([[3.0, 0.0]]), 0.5, 0.2, *one).message())
    Optimal: the gap to every dictionary of every width is closed to ... of the value.
    """
    X, problem = check_size_problem(X, lam, tau, offset=offset, metric=metric)
    dictionary = dictionary.like(X)
    Z = dense_codes(check_codes(codes, dictionary, X), dictionary.atoms.shape[0])
    return certified(problem, tau, X, dictionary, Z, tol=tol, max_cells=max_cells)


def check_size_problem(X: Float[Any, "samples d"], lam, tau, *, offset, metric) -> tuple[Array, Problem]:
    """The data and the problem in their dtype, or a ValueError where they do not fit."""
    X = check_data(X, wide="allow")
    if not float(lam) > 0 or not float(tau) >= 0:
        raise ValueError(f"lam={float(lam):g}, tau={float(tau):g}: give lam > 0 and tau >= 0")
    return X, Problem(float(lam), offset=offset, metric=metric).like(X)


def certified(problem, tau, X: Float[Array, "samples d"], dictionary, codes, *, tol, max_cells) -> SizeCertificate:
    """`certify_size` of arrays that fit."""
    task = task_of(problem, tau, X)
    b = offset_of(dictionary)
    atoms, codes, offset = (np.asarray(leaf, np.float64) for leaf in (dictionary.atoms, codes, b))
    level = task.lam * (1 + tol / 2)
    centred = task._replace(X=task.X - offset)
    left = centred.X - codes @ atoms
    value = float(0.5 * np.sum(task.m * left * left) + task.lam * task.penalty(atoms, codes))
    pull = task.m * centred.residual(atoms, codes)
    found = highest(pull, task.tau, tol=max(tol / 2, 1e-7), level=level, max_cells=max_cells, starts=atoms)
    lower = _dual(centred, pull, found)
    if value - lower > tol * value:
        loose = loose_bound(X - b, problem.lam, tau, offset=problem.offset, metric=problem.metric)
        lower = max(lower, float(loose))
    gap = max(value - lower, 0.0)
    status = REFUTED if found.value > level else CLOSED if gap <= tol * value else NOT_REFUTED
    numbers = (jnp.asarray(number, X.dtype) for number in (value, lower, gap))
    heights = polar_like(X, found)
    return SizeCertificate(*numbers, heights.value, heights.upper, heights.direction, found.starts, found.cells, status)


def _dual(task: Task, pull, found: Highest) -> float:
    """The dual value at the best multiple of the residual that is feasible, `m theta = s m R`."""
    along, size = float(np.sum(task.X * pull)), float(np.sum(pull * pull / task.m))
    most = task.lam / found.upper if found.upper > 0 else np.inf
    s = min(max(along / size, 0.0), most) if size > 0 else 0.0
    return s * along - 0.5 * s * s * size
