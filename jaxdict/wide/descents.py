"""The size-penalised problem in numpy's float64: its value, atoms that are one, and a joint descent in atoms and codes (T15)."""

from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float
from scipy.optimize import Bounds, minimize

from jaxdict.problem import Problem

# Atoms closer than this cosine may be the same.
SAME_ATOM = 0.99


class Task(NamedTuple):
    """`minimise 1/2 ||X - b - Z D||_m^2 + lam sum_k ||d_k|| (||z_k||_1 + tau ||z_k||_2)`, sums over samples, b free or none."""

    X: np.ndarray
    m: np.ndarray
    lam: float
    tau: float
    offset: bool

    def residual(self, atoms, codes):
        """What is left at the best offset."""
        left = self.X - codes @ atoms
        return left - np.mean(left, axis=0) if self.offset else left

    def penalty(self, atoms, codes):
        """`sum_k ||d_k|| (||z_k||_1 + tau ||z_k||_2)`."""
        sizes = np.sum(codes, axis=0) + self.tau * np.linalg.norm(codes, axis=0)
        return float(np.linalg.norm(atoms, axis=1) @ sizes)

    def value(self, atoms, codes):
        """The objective at the best offset."""
        left = self.residual(atoms, codes)
        return float(0.5 * np.sum(self.m * left * left) + self.lam * self.penalty(atoms, codes))


def task_of(problem: Problem, tau, X: Float[Any, "samples d"]) -> Task:
    """The problem of these arrays in float64."""
    X = np.asarray(X, np.float64)
    m = np.ones(X.shape[1]) if problem.metric is None else np.asarray(problem.metric, np.float64)
    return Task(X, m, float(problem.lam), float(tau), problem.offset)


def merged(task: Task, atoms, codes):
    """Atoms nearly the same made one, `d` along `sum_k ||z_k||_1 d_k` and `z = sum_k <d_k, d> z_k`, where the value does not rise."""
    alive = np.any(codes > 0, axis=0)
    atoms, codes = atoms[alive], codes[:, alive]
    value = task.value(atoms, codes)
    near = atoms @ atoms.T
    pairs = np.argwhere(np.triu(near > SAME_ATOM, 1))
    kept = np.ones(len(atoms), bool)
    for i, j in sorted(pairs.tolist(), key=lambda pair: -near[pair[0], pair[1]]):
        if not (kept[i] and kept[j]):
            continue
        both = [i, j]
        one = np.sum(codes[:, both], axis=0) @ atoms[both]
        one /= np.linalg.norm(one)
        new_atoms, new_codes = atoms.copy(), codes.copy()
        new_atoms[i], new_codes[:, i], new_codes[:, j] = one, np.maximum(codes[:, both] @ (atoms[both] @ one), 0), 0
        new = task.value(new_atoms, new_codes)
        if new <= value * (1 + 1e-9):
            atoms, codes, value, kept[j] = new_atoms, new_codes, new, False
    return atoms[kept], codes[:, kept]


def descended(task: Task, atoms, codes, steps: int = 500):
    """A joint descent in atoms and codes by L-BFGS-B, norms shared evenly between both at first; unit atoms again at last.

    Alternation is slow where atoms and codes move together; this reaches the local optimum. The value does not rise.
    """
    n_atoms, d = atoms.shape
    unit = np.max(np.abs(task.X))
    if n_atoms == 0 or unit == 0:
        return atoms, codes
    # Data of size one: the descent's tolerances are absolute. A metric has a size of its own.
    weight = np.max(task.m)
    scaled = Task(task.X / unit, task.m / weight, task.lam / unit / weight, task.tau, task.offset)
    share = np.sqrt(np.linalg.norm(codes, axis=0) / unit)

    def value_and_slope(flat):
        D, Z = flat[: n_atoms * d].reshape(n_atoms, d), flat[n_atoms * d :].reshape(-1, n_atoms)
        left = scaled.residual(D, Z)
        pull = scaled.m * left
        norms, lengths = np.linalg.norm(D, axis=1), np.linalg.norm(Z, axis=0)
        sizes = np.sum(Z, axis=0) + scaled.tau * lengths
        in_atoms = scaled.lam * (sizes / np.where(norms > 0, norms, 1))[:, None] * D - Z.T @ pull
        in_codes = scaled.lam * norms * (1 + scaled.tau * Z / np.where(lengths > 0, lengths, 1)) - pull @ D.T
        slope = np.concatenate([in_atoms.ravel(), in_codes.ravel()])
        return 0.5 * np.sum(left * pull) + scaled.lam * norms @ sizes, slope

    start = np.concatenate([(atoms * share[:, None]).ravel(), (codes / (unit * share)).ravel()])
    lowest: Any = np.concatenate([np.full(n_atoms * d, -np.inf), np.zeros(codes.size)])
    options = {"maxiter": steps, "maxfun": 2 * steps, "ftol": 1e-15, "gtol": 1e-9 * scaled.lam, "maxcor": 20}
    flat = minimize(
        value_and_slope, start, jac=True, method="L-BFGS-B", bounds=Bounds(lowest, np.inf), options=options
    ).x
    D, Z = flat[: n_atoms * d].reshape(n_atoms, d), flat[n_atoms * d :].reshape(-1, n_atoms)
    norms = np.linalg.norm(D, axis=1)
    alive = norms > 0
    new = D[alive] / norms[alive, None], Z[:, alive] * norms[alive] * unit
    return new if task.value(*new) <= task.value(atoms, codes) else (atoms, codes)
