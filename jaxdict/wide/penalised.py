"""The size-penalised problem solved by column generation, with the gap of what it ends at (T15)."""

from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxdict.numerics import matmul
from jaxdict.problem import Dictionary
from jaxdict.wide.cells import MAX_CELLS
from jaxdict.wide.certifying import SizeCertificate, certified, check_size_problem
from jaxdict.wide.columns import alternate, candidates, solve_codes
from jaxdict.wide.descents import SAME_ATOM, descended, merged, task_of

# Room for atoms at first; it doubles when it is full.
FIRST_SLOTS = 16
# New atoms at a time.
MOST_NEW = 8
# Codes with more entries than this are left to alternation: a joint descent holds twenty times as many numbers.
MOST_DESCENDED = 50_000


class SizePenalised(NamedTuple):
    """A point of the size-penalised problem (T15) and its distance from the optimum, as known; sums over samples."""

    dictionary: Dictionary
    codes: Float[Array, "samples atoms"]
    certificate: SizeCertificate
    rounds: int

    @property
    def value(self) -> Float[Array, ""]:
        """The objective at the point."""
        return self.certificate.value

    @property
    def lower_bound(self) -> Float[Array, ""]:
        """Certified, for every dictionary of every width."""
        return self.certificate.lower_bound

    @property
    def gap(self) -> Float[Array, ""]:
        """`value - lower_bound`."""
        return self.certificate.gap

    @property
    def polar(self) -> Float[Array, ""]:
        """The largest polar value of the residual that was found."""
        return self.certificate.polar

    @property
    def refuted(self) -> bool:
        """Whether an atom was found that still lowers the value."""
        return self.certificate.refuted

    def message(self) -> str:
        """What has been proved, in plain sentences."""
        return f"{self.codes.shape[1]} atoms. {self.certificate.message()}"


def solve_size_penalised(
    X: Float[Array, "samples d"],
    lam,
    tau,
    *,
    offset: bool = False,
    metric=None,
    max_atoms: int | None = None,
    tol: float = 1e-4,
    max_rounds: int = 30,
    max_cells: int = MAX_CELLS,
    start: SizePenalised | None = None,
) -> SizePenalised:
    """Dictionary learning that pays for every atom used, with the number of atoms left to the problem (T15).

        minimise  sum_n 1/2 ||x_n - b - z_n D||_m^2 + lam sum_k (||z_k||_1 + tau ||z_k||_2),   Z >= 0, unit atoms

    (sums over samples, not means; z_k the code of atom k over all samples). In Xhat = Z D this is convex, and it is
    solved by column generation: codes by accelerated proximal gradient and atoms in turn for a fixed set, small
    problems then by a joint descent; new atoms where the polar `max_{||d||=1} kappa(m R d)` of the residual exceeds
    `lam (1 + tol / 2)`, from many starts. tau -> 0 gives N times the wide limit.

    Where no start finds an atom, the sphere of the residual's row space is searched by branch and bound (`polar`), which finds one or
    excludes all: up to three dimensions, and mostly four on small data, the gap closes to `tol` of the value. In more dimensions the
    status is "not refuted", with the number of starts and a gap to a loose bound (`certify_size`). `max_cells` bounds that search; 0
    leaves it out.

    A Python loop around jitted pieces: not for jit, vmap or an Explicit mesh. X is (samples, d), metric (d,) or None; at most
    `max_atoms` (default: two a sample, up to 1024) are kept; `start` is another solution of these samples, for a path in tau.
    Raises ValueError for a `lam` that is not positive or a negative `tau`, and for a start of other samples.

    >>> import numpy as np
    >>> solution = solve_size_penalised(np.array([[3.0, 0.0], [5.0, 0.0]]), 0.5, 0.1)
    >>> solution.codes.shape[1], solution.refuted
    (1, False)
    """
    X, problem = check_size_problem(X, lam, tau, offset=offset, metric=metric)
    tau, level = jnp.asarray(float(tau), X.dtype), float(lam) * (1 + tol / 2)
    max_atoms = min(2 * X.shape[0], 1024) if max_atoms is None else max_atoms
    target = X - jnp.mean(X, axis=0) if offset else X
    atoms, codes = _first(X, start, max_atoms)
    for rounds in range(max_rounds + 1):
        atoms, codes = _best_of_width(problem, tau, target, atoms, codes)
        used = np.flatnonzero(np.asarray(jnp.any(codes > 0, axis=0)))
        directions, heights = map(np.asarray, candidates(problem, tau, target, atoms, codes))
        last = rounds == max_rounds or used.size == max_atoms
        if last or not np.max(heights) > level:
            free = jnp.mean(X - matmul(codes, atoms), axis=0) if offset else jnp.zeros(X.shape[1], X.dtype)
            dictionary = Dictionary(atoms[used], free)
            proof = certified(problem, tau, X, dictionary, codes[:, used], tol=tol, max_cells=max_cells)
            if last or not proof.refuted:
                break
            directions, heights = np.asarray(proof.direction)[None], np.full(1, np.inf)
        fresh = _distinct(directions, heights, level, max_atoms - used.size)
        atoms, codes = _with_room(atoms[used], codes[:, used], fresh, max_atoms)
    return SizePenalised(dictionary, codes[:, used], proof, rounds)


def _first(X: Float[Any, "samples d"], start, max_atoms):
    """Slots for atoms and codes, those of the start where there is one."""
    atoms, codes = jnp.zeros((0, X.shape[1]), X.dtype), jnp.zeros((X.shape[0], 0), X.dtype)
    if start is not None:
        atoms, codes = jnp.asarray(start.dictionary.atoms, X.dtype), jnp.asarray(start.codes, X.dtype)
    if codes.shape[0] != X.shape[0] or atoms.shape[1:] != X.shape[1:]:
        raise ValueError(
            f"start has codes of shape {codes.shape} and atoms of shape {atoms.shape}, which do not fit X {X.shape}; "
            "start from a solution of the same samples"
        )
    order = np.argsort(-np.asarray(jnp.sum(codes, axis=0)))[:max_atoms]
    return _with_room(atoms[order], codes[:, order], np.zeros((0, X.shape[1])), max_atoms)


def _with_room(atoms, codes, fresh, max_atoms):
    """The atoms, the new ones with zero codes, and empty slots: numbers of slots double, so that few shapes are compiled."""
    n_slots = min(FIRST_SLOTS, max_atoms)
    while n_slots < len(atoms) + len(fresh):
        n_slots = min(2 * n_slots, max_atoms)
    empty = n_slots - len(atoms) - len(fresh)
    atoms = jnp.pad(jnp.concatenate([atoms, jnp.asarray(fresh, atoms.dtype)]), [(0, empty), (0, 0)])
    return atoms, jnp.pad(codes, [(0, 0), (0, n_slots - codes.shape[1])])


def _best_of_width(problem, tau, X: Float[Any, "samples d"], atoms, codes):
    """Atoms and codes at a local optimum, or near it where there are many codes; atoms that became the same made one."""
    atoms, codes = alternate(problem, tau, X, atoms, codes)
    if codes.size > MOST_DESCENDED:
        return atoms, codes
    task = task_of(problem, tau, X)
    point = merged(task, np.asarray(atoms, np.float64), np.asarray(codes, np.float64))
    n_slots, (some, their_codes) = len(atoms), merged(task, *descended(task, *point))
    empty = n_slots - len(some)
    atoms = jnp.asarray(np.pad(some, [(0, empty), (0, 0)]), X.dtype)
    codes = jnp.asarray(np.pad(their_codes, [(0, 0), (0, empty)]), X.dtype)
    return atoms, solve_codes(problem, tau, X, atoms, codes)


def _distinct(directions, heights, level, room):
    """The highest candidates above the level that are not nearly the same, a few at a time."""
    kept = []
    for i in np.argsort(-heights):
        if heights[i] <= level or len(kept) == min(room, MOST_NEW):
            break
        if all(directions[i] @ other < SAME_ATOM for other in kept):
            kept.append(directions[i])
    return np.asarray(kept).reshape(len(kept), directions.shape[1])
