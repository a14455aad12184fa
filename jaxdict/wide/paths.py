"""The size-penalised problem along its price of an atom, from none to one a ray, and what fresh rows say of each width (T15)."""

import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxdict.encoding.exact import encode
from jaxdict.objectives import sample_objectives
from jaxdict.problem import Dictionary, Problem, metric_of, offset_of
from jaxdict.validation import check_data
from jaxdict.wide.cells import MAX_CELLS
from jaxdict.wide.certifying import CLOSED, check_size_problem
from jaxdict.wide.descents import task_of
from jaxdict.wide.penalised import SizePenalised, solve_size_penalised


class SizePath(NamedTuple):
    """Solutions along tau, from the largest to the smallest, and what fresh rows say of them."""

    taus: Float[np.ndarray, " taus"]
    points: tuple[SizePenalised, ...]
    held_out: Float[np.ndarray, "taus rows"] | None  # fresh rows' shares of F, exact codes

    @property
    def n_atoms(self) -> np.ndarray:
        """Atoms of each solution."""
        return np.array([point.codes.shape[1] for point in self.points])

    @property
    def fresh(self) -> np.ndarray:
        """F on the fresh rows, solution by solution."""
        return np.mean(self._held_out(), axis=1)

    @property
    def standard_errors(self) -> np.ndarray:
        """Of each solution's excess over the best on the same fresh rows; zero for the best."""
        rows = self._held_out()
        excess = rows - rows[np.argmin(np.mean(rows, axis=1))]
        return np.std(excess, axis=1, ddof=1) / np.sqrt(rows.shape[1])

    def lasting(self) -> int:
        """The number of atoms, not zero, that is kept over the widest range of log tau: the width that least depends on the price."""
        n_atoms, ends = self.n_atoms, np.flatnonzero(np.diff(self.n_atoms)) + 1
        edges = np.concatenate([[0], ends, [len(n_atoms)]])
        prices = np.log(np.maximum(self.taus, np.finfo(float).tiny))
        prices = np.append(prices, prices[-1])  # a run lasts until the next one begins
        runs = [(prices[a] - prices[b], n_atoms[a]) for a, b in itertools.pairwise(edges) if n_atoms[a] > 0]
        return int(max(runs, key=lambda run: run[0])[1]) if runs else 0

    def best(self, errors: float = 1.0) -> int:
        """The solution of fewest atoms whose F on fresh rows is within so many standard errors of the least: its place in the path."""
        enough = self.fresh - np.min(self.fresh) <= errors * self.standard_errors
        return int(min(np.flatnonzero(enough), key=lambda i: (self.n_atoms[i], self.fresh[i])))

    def message(self) -> str:
        """The path in a sentence or two."""
        closed = sum(point.certificate.status == CLOSED for point in self.points)
        said = (
            f"{self.n_atoms[0]} to {self.n_atoms[-1]} atoms as tau falls from {self.taus[0]:.3g} to {self.taus[-1]:.3g}; "
            f"the gap is closed at {closed} of {len(self.points)}; {self.lasting()} atoms last longest."
        )
        if self.held_out is None:
            return said
        i, rows = self.best(), self.held_out.shape[1]
        return f"{said} On {rows} fresh rows {self.n_atoms[i]} atoms (tau={self.taus[i]:.3g}) are within a standard error of the best."

    def _held_out(self) -> np.ndarray:
        if self.held_out is None:
            raise ValueError("the path has no fresh rows: held_out=None; give size_path(..., held_out=rows)")
        return self.held_out


def tau_max(X: Float[Array, "samples d"], lam, *, offset: bool = False, metric=None) -> Float[Array, ""]:
    """The price of an atom from which none is worth it: `max_{||d|| = 1} ||(m X d - lam)_+|| / lam`, the largest found (T15).

    `Omega_tau^o(m X) <= lam` says the same; for m = 1, `(lam tau)^2 / 2` is N times the best gain of a first atom (T10). From local
    searches, so that slightly above it zero may not be the optimum yet. X is (samples, d), centred first where the offset is free.

    >>> import jax.numpy as jnp
    >>> float(tau_max(jnp.array([[3.0, 0.0], [0.0, 1.5]]), 1.0))
    2.0
    """
    X, problem = check_size_problem(X, lam, 0.0, offset=offset, metric=metric)
    task = task_of(problem, 0.0, X)
    pull = task.m * (task.X - np.mean(task.X, axis=0) if offset else task.X)
    rows = pull[np.argsort(-np.linalg.norm(pull, axis=1))[:64]]
    axes = np.linalg.svd(pull, full_matrices=False)[2][:16]
    d = np.concatenate([rows, axes, -axes])
    for _ in range(200):
        norms = np.linalg.norm(d, axis=1, keepdims=True)
        d = d / np.where(norms > 0, norms, 1)
        above = np.maximum(pull @ d.T - task.lam, 0)
        d = np.where(np.any(above > 0, axis=0)[:, None], above.T @ pull, d)
    return jnp.asarray(np.max(np.linalg.norm(above, axis=0)) / task.lam, X.dtype)


def size_path(
    X: Float[Array, "samples d"],
    lam,
    taus: Sequence[float] | Float[Any, " taus"] | None = None,
    *,
    held_out: Float[Any, "rows d"] | None = None,
    offset: bool = False,
    metric=None,
    max_atoms: int | None = None,
    tol: float = 1e-4,
    max_cells: int = MAX_CELLS,
) -> SizePath:
    """The size-penalised problem along tau, from no atom towards the wide limit, each solution the next one's start (T15).

    tau prices an atom: it falls from `tau_max`, where none is worth it, and at zero every ray has its own (`bound`, N times). On
    `held_out` rows (rows, d) each dictionary is given exact codes and its plain F, with lam but without the price of atoms: where
    more atoms no longer lower it by more than its standard error, further ones describe these rows and not the next (`best`).
    Noise has rays of its own, so F may fall on fresh rows long after all planted ones are found; what marks these is that their
    number stands over a wide range of prices (`lasting`). Rows are treated as independent.

    `taus`: prices, in any order (default: twelve from `tau_max` to a hundredth of it); the other arguments are those of
    `solve_size_penalised`. A program for the host. Raises ValueError for negative or no taus, and as `solve_size_penalised`.

    >>> import numpy as np
    >>> X = np.array([[3.0, 0.0], [5.0, 0.0], [0.0, 2.0]])
    >>> size_path(X, 0.5, [20.0, 4.0, 0.1], held_out=X).n_atoms.tolist()
    [0, 1, 2]
    """
    X = check_data(X, wide="allow")
    if taus is None:
        taus = float(tau_max(X, lam, offset=offset, metric=metric)) * np.geomspace(1, 0.01, 12)
    prices = np.sort(np.asarray(taus, np.float64))[::-1]
    if prices.ndim != 1 or prices.size == 0 or not prices[-1] >= 0:
        raise ValueError(f"taus={np.array2string(prices, threshold=5)}: give one or more prices, none below zero")
    fresh = None if held_out is None else check_data(held_out, name="held_out", wide="allow").astype(X.dtype)
    if fresh is not None and fresh.shape[1] != X.shape[1]:
        raise ValueError(f"held_out has shape {fresh.shape} but X {X.shape[1]} features; give rows of the same kind")
    if fresh is not None and fresh.shape[0] < 2:
        raise ValueError("held_out has one row; a standard error wants two or more")
    points, point = [], None
    for tau in prices:
        point = solve_size_penalised(
            X, lam, tau, offset=offset, metric=metric, max_atoms=max_atoms, tol=tol, max_cells=max_cells, start=point
        )
        points.append(point)
    problem = Problem(float(lam), offset=offset, metric=metric).like(X)
    rows = None if fresh is None else np.stack([_shares(problem, point.dictionary, fresh) for point in points])
    return SizePath(prices, tuple(points), rows)


def _shares(problem, dictionary: Dictionary, X: Float[Array, "rows d"]) -> np.ndarray:
    """Each row's share of F at its exact codes; dictionaries without atoms have only an offset."""
    if dictionary.atoms.shape[0] == 0:
        left = X - offset_of(dictionary)
        return np.asarray(0.5 * jnp.sum(metric_of(problem, X) * left * left, axis=1), np.float64)
    codes = encode(problem, dictionary, X).codes
    return np.asarray(sample_objectives(problem, dictionary, codes, X), np.float64)
