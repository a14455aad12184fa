"""The size-penalised problem (T15) as a second-order cone programme over atoms of a grid, by Clarabel, finer where atoms are used."""

import clarabel
import numpy as np
import scipy.sparse as sp
from size_penalised import around, heights, sphere, value


def optimum(X, lam, tau, finer=8):
    """The least value over the sphere of one to three dimensions, to about 1e-6 (no offset): an upper bound whatever the grid."""
    grid, _ = sphere(X.shape[1])
    atoms, spacing = sphere(X.shape[1], 150)
    for _ in range(finer if X.shape[1] > 1 else 1):
        codes = best_codes(X, atoms, lam, tau)
        used = np.linalg.norm(codes, axis=0) > 1e-4 * np.linalg.norm(codes)
        missing = grid[np.argsort(-heights((X - codes @ atoms) @ grid.T, tau))[:10]]
        least = value(X, atoms, codes, lam, tau)
        atoms = np.vstack([missing, *(around(atom, spacing) for atom in atoms[used])])
        atoms = atoms[np.unique(np.round(atoms, 9), axis=0, return_index=True)[1]]
        spacing /= 2.5
    return least


def best_codes(X, atoms, lam, tau):
    """`min 1/2 ||R||^2 + lam sum Z + lam tau sum t` over Z >= 0, `R + Z D = X`, `||z_k|| <= t_k`; unknowns (Z by atoms, t, R)."""
    (n, d), n_atoms = X.shape, len(atoms)
    n_codes, n_left = n * n_atoms, n * d
    quadratic = sp.diags(np.r_[np.zeros(n_codes + n_atoms), np.ones(n_left)]).tocsc()
    linear = np.r_[np.full(n_codes, lam), np.full(n_atoms, lam * tau), np.zeros(n_left)]
    product = sp.hstack([sp.kron(atoms.T, sp.eye(n)), sp.csc_matrix((n_left, n_atoms)), sp.eye(n_left)])
    positive = sp.hstack([-sp.eye(n_codes), sp.csc_matrix((n_codes, n_atoms + n_left))])
    heads = np.arange(n_atoms) * (n + 1)
    bodies = (heads[:, None] + 1 + np.arange(n)).ravel()
    rows, columns = np.r_[heads, bodies], np.r_[n_codes + np.arange(n_atoms), np.arange(n_codes)]
    shape = (n_atoms * (n + 1), n_codes + n_atoms + n_left)
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
