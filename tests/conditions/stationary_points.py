"""Stationary points of tiny problems, found without the package's solvers: numpy, scipy's L-BFGS, then Newton.

L-BFGS runs on `phi(D, b) = min_Z F` over raw atoms divided by their norms, codes by coordinate descent, with the
envelope gradient `-E[z m r]`; Newton solves T1's equations on the support it found, to rounding.
"""

import jax
import jax.numpy as jnp
import numpy as np
from scipy.optimize import minimize

import jaxdict as jd


def optimal_codes(units, offset, X, lam, m, signed, Z):
    """The lasso of every sample by coordinate descent, to rounding."""
    r, squares = X - offset - Z @ units, (m * units**2).sum(axis=1)
    for _ in range(20000):
        moved = 0.0
        for k in range(len(units)):
            pull = r @ (m * units[k]) + squares[k] * Z[:, k]
            new = (np.sign(pull) * np.maximum(abs(pull) - lam, 0) if signed else np.maximum(pull - lam, 0)) / squares[k]
            r -= np.outer(new - Z[:, k], units[k])
            moved, Z[:, k] = max(moved, abs(new - Z[:, k]).max()), new
        if moved < 1e-13:
            break
    return Z


def solve(problem, X, n_atoms, seed, start=None):
    """A point of T1 to about 1e-12, from random atoms or given ones: problem, dictionary, codes, X, all float64."""
    X, lam, d = np.asarray(X), float(problem.lam), X.shape[1]
    m = np.ones(d) if problem.metric is None else np.asarray(problem.metric)
    w = np.ones(len(X)) if problem.weights is None else np.asarray(problem.weights)
    w = w / w.sum()
    Z = np.zeros((len(X), n_atoms))

    def reduced(flat):
        raw, offset = flat[: n_atoms * d].reshape(n_atoms, d), flat[n_atoms * d :] * problem.offset
        norms = np.linalg.norm(raw, axis=1, keepdims=True)
        units = raw / norms
        optimal_codes(units, offset, X, lam, m, problem.signed, Z)
        r = X - offset - Z @ units
        value = w @ (0.5 * (m * r**2).sum(axis=1) + lam * abs(Z).sum(axis=1))
        slope = -(w[:, None] * Z).T @ (m * r)
        slope = (slope - (slope * units).sum(axis=1, keepdims=True) * units) / norms
        return value, np.concatenate([slope.ravel(), -(w @ (m * r)) * problem.offset])

    atoms = np.random.default_rng(seed).normal(size=n_atoms * d) if start is None else np.asarray(start.atoms).ravel()
    first = np.concatenate([atoms, w @ X if start is None else np.zeros(d)])
    found = minimize(reduced, first, jac=True, method="L-BFGS-B", options={"maxiter": 500, "gtol": 1e-8, "ftol": 0})
    reduced(found.x)
    raw, offset = found.x[: n_atoms * d].reshape(n_atoms, d), found.x[n_atoms * d :] * problem.offset
    units = raw / np.linalg.norm(raw, axis=1, keepdims=True)
    return polish(problem, units, offset, Z, X, m, w)


def polish(problem, units, offset, Z, X, m, w):
    """Newton on T1's equations with the support held; codes of weightless samples are left out, then recomputed."""
    n_atoms, d = units.shape
    rows, columns = np.nonzero((Z != 0) & (w > 0)[:, None])
    signs, size = jnp.asarray(np.sign(Z[rows, columns])), len(rows)

    def equations(flat):
        D = flat[size : size + n_atoms * d].reshape(n_atoms, d)
        b = flat[size + n_atoms * d :]
        full = jnp.zeros(Z.shape).at[rows, columns].set(flat[:size])
        mr = m * (X - b - full @ D)
        atoms = (w[:, None] * full).T @ mr - problem.lam * (w @ jnp.abs(full))[:, None] * D
        mean = w @ mr if problem.offset else b
        return jnp.concatenate([(mr @ D.T)[rows, columns] - problem.lam * signs, atoms.ravel(), mean])

    flat = jnp.concatenate([Z[rows, columns], units.ravel(), offset])
    slope = jax.jit(jax.jacfwd(equations))
    for _ in range(6):
        flat = flat - np.linalg.lstsq(np.asarray(slope(flat)), np.asarray(equations(flat)), rcond=None)[0]
    flat = np.asarray(flat)
    D, b = flat[size : size + n_atoms * d].reshape(n_atoms, d), flat[size + n_atoms * d :]
    codes = optimal_codes(D, b, X, float(problem.lam), m, problem.signed, Z.copy())
    codes[rows, columns] = flat[:size]
    return problem, jd.Dictionary(jnp.asarray(D), jnp.asarray(b)), jnp.asarray(codes), jnp.asarray(X)


def sparse_data(seed, n_samples=48, n_atoms=4, d=3, signed=False):
    """Sparse non-negative (or signed) combinations of random unit atoms, a shift and a little noise."""
    rng = np.random.default_rng(seed)
    atoms = rng.normal(size=(n_atoms, d))
    atoms /= np.linalg.norm(atoms, axis=1, keepdims=True)
    codes = (1 + rng.exponential(size=(n_samples, n_atoms))) * (rng.random((n_samples, n_atoms)) < 0.35)
    codes *= rng.choice([-1, 1], size=codes.shape) if signed else 1
    return codes @ atoms + 0.3 * rng.normal(size=d) * (not signed) + 0.05 * rng.normal(size=(n_samples, d))


def made_child(codes, parent=0, child=1):
    """The codes with one feature on at times where another is, never else: a hierarchy, so not stationary (C1)."""
    sometimes = codes[:, child] + 0.3 * (jnp.arange(len(codes)) % 2)
    return codes.at[:, child].set(jnp.where(codes[:, parent] > 0, sometimes, 0))


def turned(dictionary, seed=0, size=0.05):
    """The dictionary with its atoms turned a little, still unit."""
    noise = np.random.default_rng(seed).normal(size=dictionary.atoms.shape)
    atoms = dictionary.atoms + size * noise
    return dictionary._replace(atoms=atoms / jnp.linalg.norm(atoms, axis=1, keepdims=True))
