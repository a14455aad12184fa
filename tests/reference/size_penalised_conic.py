"""The size-penalised problem (T15) as a second-order cone programme over atoms of a grid, by Clarabel, finer where atoms are used."""

import clarabel
import numpy as np
import scipy.sparse as sp
from size_penalised import around, heights, sphere


def optimum(X, lam, tau, m=None, offset=False, finer=8):
    """The least value over the sphere of one to three dimensions, to about 1e-6: an upper bound whatever the grid."""
    m = np.ones(X.shape[1]) if m is None else m
    grid, _ = sphere(X.shape[1])
    atoms, spacing = sphere(X.shape[1], 150)
    for _ in range(finer if X.shape[1] > 1 else 1):
        codes = best_codes(X, atoms, lam, tau, m, offset)
        left = X - codes @ atoms
        left -= np.mean(left, axis=0) if offset else 0
        sizes = np.sum(codes) + tau * np.sum(np.linalg.norm(codes, axis=0))
        least = 0.5 * np.sum(m * left**2) + lam * sizes
        used = np.linalg.norm(codes, axis=0) > 1e-4 * np.linalg.norm(codes)
        missing = grid[np.argsort(-heights((m * left) @ grid.T, tau))[:10]]
        atoms = np.vstack([missing, *(around(atom, spacing) for atom in atoms[used])])
        atoms = atoms[np.unique(np.round(atoms, 9), axis=0, return_index=True)[1]]
        spacing /= 2.5
    return least


def best_codes(X, atoms, lam, tau, m, offset):
    """`min 1/2 ||R||_m^2 + lam sum Z + lam tau sum t` over Z >= 0, `R + Z D + b = X`, `||z_k|| <= t_k`; unknowns (Z by atoms, t, R, b)."""
    (n, d), n_atoms = X.shape, len(atoms)
    n_codes, n_left = n * n_atoms, n * d
    n_free = d if offset else 0
    n_unknowns = n_codes + n_atoms + n_left + n_free
    quadratic = sp.diags(np.r_[np.zeros(n_codes + n_atoms), np.repeat(m, n), np.zeros(n_free)]).tocsc()
    linear = np.r_[np.full(n_codes, lam), np.full(n_atoms, lam * tau), np.zeros(n_left + n_free)]
    free = sp.kron(sp.eye(d), np.ones((n, 1))) if offset else sp.csc_matrix((n_left, 0))
    product = sp.hstack([sp.kron(atoms.T, sp.eye(n)), sp.csc_matrix((n_left, n_atoms)), sp.eye(n_left), free])
    positive = sp.hstack([-sp.eye(n_codes), sp.csc_matrix((n_codes, n_unknowns - n_codes))])
    heads = np.arange(n_atoms) * (n + 1)
    bodies = (heads[:, None] + 1 + np.arange(n)).ravel()
    rows, columns = np.r_[heads, bodies], np.r_[n_codes + np.arange(n_atoms), np.arange(n_codes)]
    shape = (n_atoms * (n + 1), n_unknowns)
    cones = sp.csc_matrix((-np.ones(len(rows)), (rows, columns)), shape=shape)
    settings = clarabel.DefaultSettings()
    settings.verbose = False
    settings.tol_gap_abs = settings.tol_gap_rel = settings.tol_feas = 1e-9
    solution = clarabel.DefaultSolver(
        quadratic, linear, sp.vstack([product, positive, cones]).tocsc(),
        np.r_[X.T.ravel(), np.zeros(n_codes + shape[0])],
        [clarabel.ZeroConeT(n_left), clarabel.NonnegativeConeT(n_codes)] + [clarabel.SecondOrderConeT(n + 1)] * n_atoms,
        settings,
    ).solve()  # fmt: skip
    return np.maximum(np.array(solution.x)[:n_codes].reshape(n_atoms, n).T, 0)
